package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	v1 "drover/api/drover/v1"
	"drover/bench/report"
	"drover/internal/lab"
	"drover/internal/osimage"

	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	guestDisk = 256 << 20
	patience  = 2 * time.Minute
	// A guest's writes are timed for so long at each of three times, and so many times over.
	timing = 3 * time.Second
	turns  = 3
)

// guests is a lab with two hosts: VMs run on one, the repository is served by the other.
type guests struct {
	*bench
	*lab.Fleet
}

// timed is what a guest tells of its writes, in microseconds.
type timed struct {
	Writes        int
	P50, P99, Max int64
}

func (b *bench) guests() (err error) {
	root, err := os.MkdirTemp("/tmp", "dbb") // short enough for sockets
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(root)) }()
	image, err := osimage.BuildTiny(b.ctx, osimage.Tiny{}, osimage.Options{})
	if err != nil {
		return fmt.Errorf("build the test guest: %w", err)
	}
	cfg := lab.FleetConfig{Drover: []string{b.drover}, HostTimeout: time.Minute, Config: lab.Config{Name: "backup", Root: filepath.Join(root, "r"), Sites: []lab.Site{
		{Name: "east", Hosts: []lab.Host{{Name: "east-1"}}}, {Name: "west", Hosts: []lab.Host{{Name: "west-1"}}},
	}}}
	f, err := lab.UpFleet(b.ctx, cfg)
	if err != nil {
		return errors.Join(err, lab.Down(context.WithoutCancel(b.ctx), cfg.Root, cfg.Name))
	}
	defer func() {
		f.Close()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(b.ctx), patience)
		defer cancel()
		err = errors.Join(err, f.DeleteVMs(ctx), f.Down(ctx))
	}()
	g := &guests{bench: b, Fleet: f}
	if err := f.PutImage(b.ctx, "tiny", image.Path); err != nil {
		return err
	}
	if _, err := f.API.Repository.Create(b.ctx, &v1.CreateRepositoryRequest{Passphrase: secret, Repository: &v1.Repository{
		Meta: &v1.Meta{Name: "main"}, Spec: &v1.RepositorySpec{Host: "west-1", Location: filepath.Join(f.DataDir(), "repository")},
	}}); err != nil {
		return err
	}
	if err := g.until("the repository is ready", func(ctx context.Context) (bool, error) {
		r, err := f.API.Repository.Get(ctx, &v1.GetRequest{Name: "main"})
		return r.GetStatus().GetPhase() == v1.RepositoryPhase_REPOSITORY_PHASE_READY, err
	}); err != nil {
		return err
	}
	url, err := g.start("db")
	if err != nil {
		return err
	}
	if err := g.write(url, 0, 192<<20, 1); err != nil {
		return err
	}
	if _, _, err := g.backup(); err != nil {
		return err
	}
	return errors.Join(g.incremental(url), g.latency(url), g.restores(url))
}

// start makes a VM with a data disk, and waits until it answers.
func (g *guests) start(name string) (string, error) {
	ctx, cancel := context.WithTimeout(g.ctx, patience)
	defer cancel()
	if _, err := g.API.VM.Create(ctx, &v1.CreateVMRequest{Vm: &v1.VM{Meta: &v1.Meta{Name: name, Labels: map[string]string{"slow": "yes"}}, Spec: &v1.VMSpec{
		KernelImage: "tiny", MemoryBytes: 128 << 20, Cpus: 1, Power: v1.Power_POWER_ON, Placement: &v1.PlacementSpec{Host: "east-1"},
		Nics: []*v1.NICSpec{{Name: "eth0", Network: lab.NetworkName}}, Disks: []*v1.DiskSpec{{Name: "data", SizeBytes: guestDisk}},
	}}}); err != nil {
		return "", err
	}
	vm, err := g.AwaitVM(ctx, name, lab.Phase(v1.VMPhase_VM_PHASE_RUNNING))
	if err != nil {
		return "", err
	}
	addr, err := g.Address(ctx, vm, "eth0")
	if err != nil {
		return "", err
	}
	_, err = g.Get(ctx, g.Router("east"), "http://"+addr+"/")
	return "http://" + addr, err
}

func (g *guests) write(url string, offset, size int64, seed int) error {
	ctx, cancel := context.WithTimeout(g.ctx, patience)
	defer cancel()
	_, err := g.Get(ctx, g.Router("east"), fmt.Sprintf("%s/disk/write?dev=vda&offset=%d&size=%d&seed=%d", url, offset, size, seed))
	return err
}

// writes has the guest time its writes.
func (g *guests) writes(url string, seed int) (t timed, err error) {
	ctx, cancel := context.WithTimeout(g.ctx, patience)
	defer cancel()
	body, err := g.Get(ctx, g.Router("east"), fmt.Sprintf("%s/disk/time?dev=vda&offset=%d&size=%d&ms=%d&seed=%d", url, 64<<20, 64<<20, timing.Milliseconds(), seed))
	if err != nil {
		return t, err
	}
	return t, json.Unmarshal([]byte(body), &t)
}

// until asks ten times a second.
func (g *guests) until(what string, done func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(g.ctx, patience)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := done(ctx)
		if ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waited %v and it is not so: %s", patience, what)
		}
	}
}

func (g *guests) await(task *v1.Task, err error) error {
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(g.ctx, patience)
	defer cancel()
	return g.AwaitTask(ctx, task.GetMeta().GetName())
}

// backup makes a point of the VM and tells how long it took, from the command to the task's end.
func (g *guests) backup() (*v1.RestorePoint, time.Duration, error) {
	began := time.Now()
	if err := g.await(g.API.Backup.Create(g.ctx, &v1.CreateBackupRequest{Vm: "db", Repository: "main"})); err != nil {
		return nil, 0, err
	}
	took := time.Since(began)
	l, err := g.API.Backup.List(g.ctx, &v1.ListRequest{OrderBy: "status.time"})
	if err != nil || len(l.GetPoints()) == 0 {
		return nil, 0, fmt.Errorf("%d points after a backup: %w", len(l.GetPoints()), err)
	}
	return l.GetPoints()[len(l.GetPoints())-1], took, nil
}

// incremental backs up a running VM whose guest has changed 8 MiB.
func (g *guests) incremental(url string) error {
	const change = 8 << 20
	var took []float64
	var read int64
	for i := range turns {
		if err := g.write(url, int64(i)*2*change, change, 10+i); err != nil {
			return err
		}
		p, d, err := g.backup()
		if err != nil {
			return err
		}
		if full := p.GetStatus().GetFullRead(); full != "" {
			return fmt.Errorf("an incremental backup read all: %s", full)
		}
		took = append(took, d.Seconds())
		read = p.GetStatus().GetReadBytes()
	}
	g.rep.Add(report.Row{Name: "incremental backup of a running VM, 8 MiB changed", Unit: "s", Ours: report.Median(took), Better: report.Less, Note: "emulated guest (TCG), from the command to the end of the task"})
	g.rep.Add(report.Row{Name: "bytes that it reads of the disk, to what changed", Unit: "x", Ours: float64(read) / change, Better: report.Less})
	return nil
}

// latency is what a guest's writes take while nothing happens, while a backup reads all, and while the repository has stopped in the middle of one.
func (g *guests) latency(url string) error {
	// Backups by it last long enough to time writes beside them. It starts none by itself.
	if _, err := g.API.Policy.Create(g.ctx, &v1.CreateBackupPolicyRequest{Policy: &v1.BackupPolicy{Meta: &v1.Meta{Name: "slow"}, Spec: &v1.BackupPolicySpec{
		Select: &v1.PolicySelector{Filter: `meta.labels.slow = "yes"`}, Rpo: durationpb.New(24 * time.Hour), Repository: "main", BandwidthLimit: 24 << 20, Paused: true, Retention: &v1.Retention{Last: 100},
	}}}); err != nil {
		return err
	}
	var idle, busy, stalled []float64
	for i := range turns {
		t, err := g.writes(url, 100+i)
		if err != nil {
			return err
		}
		idle = append(idle, float64(t.P99))
		// All has changed, so that the backup outlives the timing.
		if err := g.write(url, 0, 192<<20, 200+i); err != nil {
			return err
		}
		task, err := g.API.Backup.Create(g.ctx, &v1.CreateBackupRequest{Vm: "db", Policy: "slow"})
		if err != nil {
			return err
		}
		if t, err = g.writes(url, 300+i); err != nil {
			return err
		}
		busy = append(busy, float64(t.P99))
		t, err = g.stalled(func() (timed, error) { return g.writes(url, 400+i) })
		if err != nil {
			return err
		}
		stalled = append(stalled, float64(t.P99))
		if err := g.await(task, nil); err != nil {
			return err
		}
	}
	base := report.Median(idle)
	for _, x := range []struct {
		name string
		p99  []float64
	}{{"during a backup", busy}, {"while the repository stands still", stalled}} {
		m := report.Median(x.p99)
		g.rep.Add(report.Row{Name: "guest's write latency " + x.name + ", p99, to idle", Unit: "x", Ours: m / base, Goal: report.Ptr(1.3), Better: report.Less,
			Note: fmt.Sprintf("%.2f ms, idle %.2f ms; emulated guest (TCG)", m/1000, base/1000)})
	}
	_, err := g.API.Policy.Delete(g.ctx, &v1.DeleteRequest{Name: "slow"})
	return err
}

// stalled does something while the process that serves the repository is stopped.
func (g *guests) stalled(do func() (timed, error)) (t timed, err error) {
	procs, err := g.Processes()
	if err != nil {
		return t, err
	}
	for _, p := range procs {
		if p.Name == "west-1" {
			if err := syscall.Kill(p.PID, syscall.SIGSTOP); err != nil {
				return t, err
			}
			defer func() { err = errors.Join(err, syscall.Kill(p.PID, syscall.SIGCONT)) }()
			return do()
		}
	}
	return t, errors.New("no process west-1 in the lab")
}

// restores compares an instant restore, until the guest runs, with a full one.
func (g *guests) restores(url string) error {
	if _, _, err := g.backup(); err != nil {
		return err
	}
	run := func(name string, instant bool) (running, whole time.Duration, err error) {
		ctx, cancel := context.WithTimeout(g.ctx, patience)
		defer cancel()
		began := time.Now()
		task, err := g.API.Backup.Restore(ctx, &v1.RestoreRequest{Point: "main/db", Name: name, Start: true, Instant: instant, Placement: &v1.PlacementSpec{Host: "east-1"}})
		if err != nil {
			return 0, 0, err
		}
		if _, err := g.AwaitVM(ctx, name, lab.Phase(v1.VMPhase_VM_PHASE_RUNNING)); err != nil {
			return 0, 0, err
		}
		running = time.Since(began)
		if err := g.await(task, nil); err != nil {
			return 0, 0, err
		}
		whole = time.Since(began)
		if _, err := g.API.VM.Delete(ctx, &v1.DeleteRequest{Name: name, Force: true}); err != nil {
			return 0, 0, err
		}
		_, err = g.AwaitVM(ctx, name, lab.Gone)
		return running, whole, err
	}
	var instant, full, whole []float64
	for i := range turns {
		a, w, err := run(fmt.Sprint("quick-", i), true)
		if err != nil {
			return err
		}
		z, _, err := run(fmt.Sprint("slow-", i), false)
		if err != nil {
			return err
		}
		instant, full, whole = append(instant, a.Seconds()), append(full, z.Seconds()), append(whole, w.Seconds())
	}
	g.rep.Add(report.Row{Name: "instant restore: from the command to a running VM", Unit: "s", Ours: report.Median(instant), Peer: report.Ptr(report.Median(full)), PeerName: "our full restore", Better: report.Less,
		Note: fmt.Sprintf("192 MiB of data that do not compress; disks whole after %.2f s", report.Median(whole))})
	return nil
}
