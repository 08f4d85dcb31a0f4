package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/unit"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
)

// vaultName is the repository of the act about backups.
const vaultName = "main"

// backups shows a repository: two Debians backed up twice, a guest that is wrecked and runs again, a file of yesterday.
func (d *demo) backups() error {
	d.act("Backups: blocks stored once, a wrecked guest back in seconds, one file of yesterday")
	ctx, cancel := context.WithTimeout(d.ctx, demoTimeout)
	defer cancel()
	for _, f := range []func(context.Context) error{d.makeRepository, d.backTwice, d.wreck, d.fetchFile} {
		if err := f(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) makeRepository(ctx context.Context) error {
	_, err := d.step("repository "+vaultName+" and a policy that covers the Debians", func(note func(string)) error {
		_, err := d.f.API.Repository.Create(ctx, &v1.CreateRepositoryRequest{
			Repository: &v1.Repository{Meta: &v1.Meta{Name: vaultName}, Spec: &v1.RepositorySpec{Location: filepath.Join(d.f.DataDir(), "repository")}}, Passphrase: "of the demo alone",
		})
		if err != nil && connect.CodeOf(err) != connect.CodeAlreadyExists {
			return err
		}
		_, err = d.f.API.Policy.Create(ctx, &v1.CreateBackupPolicyRequest{Policy: &v1.BackupPolicy{Meta: &v1.Meta{Name: "nightly"}, Spec: &v1.BackupPolicySpec{
			Select: &v1.PolicySelector{Vms: []string{"debian-east", "debian-west"}}, Schedules: []string{"daily 22:00"}, Repository: vaultName,
			Retention: &v1.Retention{Daily: 7, Weekly: 4},
		}}})
		if err != nil && connect.CodeOf(err) != connect.CodeAlreadyExists {
			return err
		}
		note("waiting for the repository")
		return retry(ctx, func() error {
			r, err := d.f.API.Repository.Get(ctx, &v1.GetRequest{Name: vaultName})
			if err == nil && r.GetStatus().GetPhase() != v1.RepositoryPhase_REPOSITORY_PHASE_READY {
				err = fmt.Errorf("repository %s: %s", vaultName, r.GetStatus().GetMessage())
			}
			return err
		})
	})
	if err != nil {
		return err
	}
	p, err := d.f.API.Policy.Preview(ctx, &v1.PreviewPolicyRequest{Name: "nightly", Horizon: durationpb.New(24 * time.Hour)})
	if err != nil {
		return err
	}
	for _, r := range p.GetRuns() {
		d.say("drover policy preview nightly: %s of %s, %s", r.GetTime().AsTime().Local().Format("Mon 15:04"), r.GetVm(), r.GetReason())
	}
	return nil
}

// backUp makes a point of a VM and says what it took.
func (d *demo) backUp(ctx context.Context, vm string) (*v1.RestorePoint, error) {
	var p *v1.RestorePoint
	took, err := d.step("drover backup create "+vm, func(note func(string)) error {
		t, err := d.f.API.Backup.Create(ctx, &v1.CreateBackupRequest{Vm: vm, Repository: vaultName})
		if err != nil {
			return err
		}
		note("reading")
		if err := d.f.AwaitTask(ctx, t.GetMeta().GetName()); err != nil {
			return err
		}
		return retry(ctx, func() error {
			l, err := d.f.API.Backup.List(ctx, &v1.ListRequest{Filter: fmt.Sprintf("status.vm = %q", vm), OrderBy: "status.time desc", PageSize: 1})
			switch {
			case err != nil:
				return err
			case len(l.GetPoints()) == 0 || l.GetPoints()[0].GetStatus().GetTime().AsTime().Before(t.GetMeta().GetCreateTime().AsTime().Add(-time.Minute)):
				return errors.New("the point is not listed yet")
			}
			p = l.GetPoints()[0]
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	st := p.GetStatus()
	d.say("%s: %s of disk, %s read, %s new to the repository, %s stored, in %s", st.GetConsistency(), unit.Size(st.GetLogicalBytes()), unit.Size(st.GetReadBytes()),
		unit.Size(st.GetLackedBytes()), unit.Size(st.GetAddedBytes()), span(took))
	return p, nil
}

// backTwice backs both Debians up, and again after one has written something.
func (d *demo) backTwice(ctx context.Context) error {
	for _, vm := range []string{"debian-east", "debian-west"} {
		if _, err := d.backUp(ctx, vm); err != nil {
			return err
		}
	}
	if _, err := d.exec(ctx, "debian-east", "/bin/sh", "-c", "echo what happened today > /etc/motd; dd if=/dev/urandom of=/var/tmp/today bs=1M count=4 2>/dev/null; sync"); err != nil {
		return err
	}
	if _, err := d.backUp(ctx, "debian-east"); err != nil {
		return err
	}
	return retry(ctx, func() error {
		r, err := d.f.API.Repository.Get(ctx, &v1.GetRequest{Name: vaultName})
		if err != nil {
			return err
		}
		st := r.GetStatus()
		if st.GetPoints() < 3 || st.GetStoredBytes() == 0 {
			return fmt.Errorf("repository %s tells of %d points", vaultName, st.GetPoints())
		}
		d.say("drover repository list: %d points, guests see %s, stored %s: %.1f times less", st.GetPoints(), unit.Size(st.GetLogicalBytes()), unit.Size(st.GetStoredBytes()),
			float64(st.GetLogicalBytes())/float64(st.GetStoredBytes()))
		return nil
	})
}

// shop is the guest that is wrecked. The tiny guest has no file system of its own: its disk has a pattern that can be checked.
const shop = "shop"

func (d *demo) pattern(ctx context.Context, verb string, seed int) (string, error) {
	return d.exec(ctx, shop, "/bin/busybox", "wget", "-q", "-O", "-", fmt.Sprintf("http://127.0.0.1/disk/%s?dev=vda&offset=0&size=%d&seed=%d", verb, 32<<20, seed))
}

// wreck overwrites a guest's disk, and has it run again out of the repository.
func (d *demo) wreck(ctx context.Context) error {
	_, err := d.step("VM "+shop+" with 32 MiB of data that can be told from any other", func(note func(string)) error {
		if _, err := d.ensureVM(ctx, shop, "east", &v1.VMSpec{
			KernelImage: "tiny", Cpus: 1, MemoryBytes: 128 << 20, Description: "guest that is wrecked", Disks: []*v1.DiskSpec{{Name: "data", SizeBytes: 64 << 20}},
			Nics: []*v1.NICSpec{{Name: "eth0", Network: NetworkName}},
		}); err != nil {
			return err
		}
		if _, err := d.f.AwaitVM(ctx, shop, Phase(v1.VMPhase_VM_PHASE_RUNNING)); err != nil {
			return err
		}
		return retry(ctx, func() error { _, err := d.pattern(ctx, "write", 1); return err })
	})
	if err != nil {
		return err
	}
	p, err := d.backUp(ctx, shop)
	if err != nil {
		return err
	}
	if _, err := d.step("its disk is overwritten", func(func(string)) error { _, err := d.pattern(ctx, "write", 666); return err }); err != nil {
		return err
	}
	took, err := d.step("drover restore "+shop+" --instant --force", func(note func(string)) error {
		t, err := d.f.API.Backup.Restore(ctx, &v1.RestoreRequest{Point: p.GetMeta().GetName(), Instant: true, Start: true, Force: true})
		if err != nil {
			return err
		}
		note("the VM starts out of the repository")
		return retry(ctx, func() error {
			now, err := d.f.API.Task.Get(ctx, &v1.GetRequest{Name: t.GetMeta().GetName()})
			if err != nil {
				return err
			}
			if st := now.GetStatus(); st.GetNotes()["running"] == "" && st.GetState() != v1.TaskState_TASK_STATE_SUCCEEDED {
				return fmt.Errorf("task %s: %s %s", now.GetMeta().GetName(), st.GetStep(), st.GetMessage())
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	d.measured("instant restore: command to guest running", took, "its disk fills behind it")
	return retry(ctx, func() error {
		said, err := d.pattern(ctx, "verify", 1)
		if err == nil && !strings.Contains(said, `"ok":true`) {
			err = fmt.Errorf("VM %s has not its data again: %s", shop, said)
		}
		if err == nil {
			d.say("the guest reads its 32 MiB as they were: %s", strings.TrimSpace(said))
		}
		return err
	})
}

// fetchFile gets one file out of a point of a Debian, through the helper VM.
func (d *demo) fetchFile(ctx context.Context) error {
	var volume, text string
	took, err := d.step("drover backup get debian-east VOLUME:/etc/motd, through the helper VM", func(note func(string)) error {
		if err := d.f.PutImage(ctx, "helper", d.images["helper"].Path); err != nil {
			return err
		}
		note("the helper VM starts")
		l, err := d.f.API.Backup.Browse(ctx, &v1.BrowseRequest{Point: vaultName + "/debian-east"})
		if err != nil {
			return err
		}
		for _, e := range l.GetEntries() {
			if e.GetFilesystem() == "ext4" {
				volume = e.GetName()
			}
		}
		if volume == "" {
			return fmt.Errorf("no ext4 file system is found: %v", l.GetEntries())
		}
		s, err := d.f.API.Backup.Download(ctx, &v1.DownloadRequest{Point: vaultName + "/debian-east", Paths: []string{volume + ":/etc/motd"}})
		if err != nil {
			return err
		}
		defer s.Close()
		var b strings.Builder
		for s.Receive() {
			b.Write(s.Msg().GetData())
		}
		text = b.String()
		if err := s.Err(); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	d.say("%s:/etc/motd of the newest point, in %s:", volume, span(took))
	d.quote(text)
	return nil
}
