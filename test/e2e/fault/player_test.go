package fault

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/lab"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
)

// callTime bounds one call: a killed manager may never answer.
const callTime = 20 * time.Second

// user makes random calls on VMs of its own.
type user struct {
	*run
	rng  *rand.Rand
	id   int
	next int
	vms  []string
}

func newUser(r *run, seed uint64, id int) *user {
	return &user{run: r, rng: rand.New(rand.NewPCG(seed, uint64(id+1))), id: id}
}

const vmsOfUser = 3

func (u *user) play(ctx context.Context) {
	for ctx.Err() == nil {
		u.turn(ctx)
		// A pause that lets some things finish and some not.
		pause(ctx, time.Duration(u.rng.IntN(600))*time.Millisecond)
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

func (u *user) pick() string { return u.vms[u.rng.IntN(len(u.vms))] }

// turn makes one call. It draws the same numbers whatever the calls before gave.
func (u *user) turn(ctx context.Context) {
	op, flag, which, size := u.rng.IntN(100), u.rng.IntN(2) == 0, u.rng.IntN(3), int64(u.rng.IntN(4)+1)
	if len(u.vms) == 0 || op < 18 && len(u.vms) < vmsOfUser {
		u.create(ctx, flag)
		return
	}
	vm := u.pick()
	part := fmt.Sprintf("%s/p%d", vm, which)
	switch {
	case op < 32:
		u.call(ctx, "start", vm, func(ctx context.Context) error {
			_, err := u.API.VM.Start(ctx, &v1.StartVMRequest{Name: vm})
			return err
		})
	case op < 44:
		u.call(ctx, "stop", vm, func(ctx context.Context) error {
			_, err := u.API.VM.Stop(ctx, &v1.StopVMRequest{Name: vm, Force: flag, Timeout: durationpb.New(3 * time.Second)})
			return err
		})
	case op < 56:
		u.call(ctx, "snapshot", part, func(ctx context.Context) error {
			_, err := u.API.Snapshot.Create(ctx, &v1.CreateSnapshotRequest{Snapshot: &v1.Snapshot{Meta: &v1.Meta{Name: part}, Spec: &v1.SnapshotSpec{Memory: flag}}})
			return err
		})
	case op < 64:
		u.call(ctx, "revert", part, func(ctx context.Context) error {
			_, err := u.API.Snapshot.Revert(ctx, &v1.RevertRequest{Name: part})
			return err
		})
	case op < 70:
		u.call(ctx, "drop", part, func(ctx context.Context) error {
			_, err := u.API.Snapshot.Delete(ctx, &v1.DeleteRequest{Name: part})
			return err
		})
	case op < 76 && len(u.vms) < vmsOfUser:
		name := u.name()
		src := &v1.CloneSource{Vm: vm}
		if flag {
			src.Snapshot, src.Linked = part, true
		}
		if u.call(ctx, "clone", fmt.Sprintf("%s of %v", name, src), func(ctx context.Context) error {
			_, err := u.API.VM.Clone(ctx, &v1.CloneVMRequest{Source: src, Name: name, Start: flag})
			return err
		}) {
			u.vms = append(u.vms, name)
		}
	case op < 82:
		u.call(ctx, "add disk", part, func(ctx context.Context) error {
			_, err := u.API.Disk.Create(ctx, &v1.CreateDiskRequest{Disk: &v1.Disk{Meta: &v1.Meta{Name: part}, Spec: &v1.DiskSpec{SizeBytes: size << 20}}})
			return err
		})
	case op < 86:
		u.call(ctx, "remove disk", part, func(ctx context.Context) error {
			_, err := u.API.Disk.Delete(ctx, &v1.DeleteRequest{Name: part})
			return err
		})
	case op < 90:
		u.call(ctx, "add NIC", part, func(ctx context.Context) error {
			_, err := u.API.NIC.Create(ctx, &v1.CreateNICRequest{Nic: &v1.NIC{Meta: &v1.Meta{Name: part}, Spec: &v1.NICSpec{Network: lab.NetworkName}}})
			return err
		})
	case op < 93:
		u.call(ctx, "remove NIC", part, func(ctx context.Context) error {
			_, err := u.API.NIC.Delete(ctx, &v1.DeleteRequest{Name: part})
			return err
		})
	default:
		u.remove(ctx, vm)
	}
}

func (u *user) name() string {
	u.next++
	return fmt.Sprintf("u%d-%d", u.id, u.next)
}

func (u *user) create(ctx context.Context, on bool) {
	name := u.name()
	spec := &v1.VMSpec{
		KernelImage: "tiny", Cpus: 1, MemoryBytes: 96 << 20, Power: v1.Power_POWER_OFF,
		Disks: []*v1.DiskSpec{{Name: "root", SizeBytes: 16 << 20}}, Nics: []*v1.NICSpec{{Name: "eth0", Network: lab.NetworkName}},
	}
	if on {
		spec.Power = v1.Power_POWER_ON
	}
	if u.call(ctx, "create", name, func(ctx context.Context) error {
		_, err := u.API.VM.Create(ctx, &v1.CreateVMRequest{Vm: &v1.VM{Meta: &v1.Meta{Name: name}, Spec: spec}})
		return err
	}) {
		u.vms = append(u.vms, name)
	}
}

func (u *user) remove(ctx context.Context, vm string) {
	u.call(ctx, "delete", vm, func(ctx context.Context) error {
		_, err := u.API.VM.Delete(ctx, &v1.DeleteRequest{Name: vm, Force: true})
		return err
	})
	// It counts as gone when the API says so: its name is never used again.
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	got, err := u.API.VM.Get(ctx, &v1.GetRequest{Name: vm})
	if connect.CodeOf(err) != connect.CodeNotFound && got.GetMeta().GetDeleteTime() == nil {
		return
	}
	for i, v := range u.vms {
		if v == vm {
			u.vms = append(u.vms[:i], u.vms[i+1:]...)
			return
		}
	}
}

// expected are the codes that a call may end with while processes are killed and others' calls are under way. Anything
// else is a fault.
var expected = map[connect.Code]bool{
	connect.CodeUnavailable: true, connect.CodeFailedPrecondition: true, connect.CodeAborted: true, connect.CodeNotFound: true,
	connect.CodeAlreadyExists: true, connect.CodeDeadlineExceeded: true, connect.CodeCanceled: true, connect.CodeResourceExhausted: true,
}

// call makes a call and reports whether what it asks for may have come to be: also after an answer that was lost.
func (u *user) call(ctx context.Context, what, object string, do func(context.Context) error) bool {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	err := do(ctx)
	code := connect.CodeOf(err)
	if err == nil {
		u.count(what)
		u.say("user %d: %s %s", u.id, what, object)
		return true
	}
	u.say("user %d: %s %s: %v", u.id, what, object, strings.TrimSpace(err.Error()))
	// A connection that a killed manager leaves may break in ways for which there is no code.
	broken := strings.Contains(err.Error(), "EOF") || strings.Contains(err.Error(), "connection reset") || strings.Contains(err.Error(), "broken pipe")
	if !expected[code] && !broken {
		u.t.Errorf("%s %s: %v", what, object, err)
	}
	return code == connect.CodeUnavailable || code == connect.CodeDeadlineExceeded || code == connect.CodeCanceled || broken
}

// killer ends processes at random points and starts them again.
type killer struct {
	*run
	rng   *rand.Rand
	qemus map[string]int // how often each VM's was killed: after some times in a row a VM is left off
}

func newKiller(r *run, seed uint64) *killer {
	return &killer{run: r, rng: rand.New(rand.NewPCG(seed, 0)), qemus: map[string]int{}}
}

const killsOfVM = 3

func (k *killer) play(ctx context.Context) {
	for {
		pause(ctx, time.Duration(300+k.rng.IntN(2700))*time.Millisecond)
		if ctx.Err() != nil {
			return
		}
		what, which, away := k.rng.IntN(100), k.rng.IntN(1<<20), time.Duration(k.rng.IntN(1000))*time.Millisecond
		hosts := k.hosts()
		host := hosts[which%len(hosts)]
		switch {
		case what < 25:
			k.restart(ctx, "manager", away)
		case what < 65:
			k.restart(ctx, host, away)
		case what < 75:
			k.kill(ctx, host)
			k.restart(ctx, "manager", away)
			k.revive(ctx, host)
		default:
			k.killQEMU(ctx, which)
		}
	}
}

func (k *killer) kill(ctx context.Context, node string) {
	k.say("kill %s", node)
	if node == "manager" {
		k.count("kill manager")
	} else {
		k.count("kill agent")
	}
	if err := k.Kill(context.WithoutCancel(ctx), node); err != nil {
		k.t.Error(err)
	}
}

func (k *killer) revive(ctx context.Context, node string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if err := k.Revive(ctx, node); err != nil {
		k.t.Errorf("start %s again: %v", node, err)
	}
	k.say("%s is back", node)
}

func (k *killer) restart(ctx context.Context, node string, away time.Duration) {
	k.kill(ctx, node)
	pause(ctx, away)
	k.revive(ctx, node)
}

func (k *killer) killQEMU(ctx context.Context, which int) {
	all, err := k.QEMUs()
	if err != nil {
		k.t.Error(err)
	}
	if len(all) == 0 {
		return
	}
	q := all[which%len(all)]
	if k.qemus[q.UID]++; k.qemus[q.UID] > killsOfVM {
		return
	}
	k.say("kill QEMU %d of VM %s on %s", q.PID, q.UID, q.Host)
	k.count("kill QEMU")
	if err := k.KillQEMU(context.WithoutCancel(ctx), q.UID); err != nil {
		k.say("%v", err) // it ended by itself meanwhile
	}
}
