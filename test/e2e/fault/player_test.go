package fault

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
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

// parts are what a VM has by now that a call can be about. What is asked a moment later may have changed: that is meant.
type parts struct{ snapshots, disks, nics []string }

// look returns false for a VM that never came to be, or has gone.
func (u *user) look(ctx context.Context, name string) (p parts, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	vm, err := u.API.VM.Get(ctx, &v1.GetRequest{Name: name})
	if connect.CodeOf(err) == connect.CodeNotFound {
		u.forget(name)
		return p, false
	}
	for _, d := range vm.GetSpec().GetDisks() {
		if d.GetName() != "root" {
			p.disks = append(p.disks, name+"/"+d.GetName())
		}
	}
	for _, n := range vm.GetSpec().GetNics() {
		if n.GetName() != "eth0" {
			p.nics = append(p.nics, name+"/"+n.GetName())
		}
	}
	list, err := u.API.Snapshot.List(ctx, &v1.ListRequest{PageSize: 1000})
	if err != nil {
		return p, true // the manager is away: calls are made all the same
	}
	for _, s := range list.GetSnapshots() {
		if strings.HasPrefix(s.GetMeta().GetName(), name+"/") {
			p.snapshots = append(p.snapshots, s.GetMeta().GetName())
		}
	}
	return p, true
}

func (u *user) forget(vm string) {
	u.vms = slices.DeleteFunc(u.vms, func(v string) bool { return v == vm })
}

// one chooses from a list, or a name that may not exist from an empty one.
func one(list []string, which int, other string) string {
	if len(list) == 0 {
		return other
	}
	return list[which%len(list)]
}

// turn makes one call.
func (u *user) turn(ctx context.Context) {
	op, flag, which, size := u.rng.IntN(100), u.rng.IntN(2) == 0, u.rng.IntN(1<<20), int64(u.rng.IntN(4)+1)
	if len(u.vms) == 0 || op < 15 && len(u.vms) < vmsOfUser {
		u.create(ctx, which%4 != 0)
		return
	}
	vm := u.pick()
	has, ok := u.look(ctx, vm)
	if !ok {
		return
	}
	u.next++
	part := fmt.Sprintf("%s/p%d", vm, u.next)
	switch {
	case op < 24:
		u.call(ctx, "start", vm, func(ctx context.Context) error {
			_, err := u.API.VM.Start(ctx, &v1.StartVMRequest{Name: vm})
			return err
		})
	case op < 34:
		u.call(ctx, "stop", vm, func(ctx context.Context) error {
			_, err := u.API.VM.Stop(ctx, &v1.StopVMRequest{Name: vm, Force: flag, Timeout: durationpb.New(3 * time.Second)})
			return err
		})
	case op < 48 && len(has.snapshots) < 5:
		u.call(ctx, "snapshot", part, func(ctx context.Context) error {
			_, err := u.API.Snapshot.Create(ctx, &v1.CreateSnapshotRequest{Snapshot: &v1.Snapshot{Meta: &v1.Meta{Name: part}, Spec: &v1.SnapshotSpec{Memory: flag}}})
			return err
		})
	case op < 57:
		part = one(has.snapshots, which, part)
		u.call(ctx, "revert", part, func(ctx context.Context) error {
			_, err := u.API.Snapshot.Revert(ctx, &v1.RevertRequest{Name: part})
			return err
		})
	case op < 65:
		part = one(has.snapshots, which, part)
		u.call(ctx, "drop", part, func(ctx context.Context) error {
			_, err := u.API.Snapshot.Delete(ctx, &v1.DeleteRequest{Name: part})
			return err
		})
	case op < 73 && len(u.vms) < vmsOfUser:
		u.clone(ctx, vm, has, which)
	case op < 80 && len(has.disks) < 3:
		u.call(ctx, "add disk", part, func(ctx context.Context) error {
			_, err := u.API.Disk.Create(ctx, &v1.CreateDiskRequest{Disk: &v1.Disk{Meta: &v1.Meta{Name: part}, Spec: &v1.DiskSpec{SizeBytes: size << 20}}})
			return err
		})
	case op < 84:
		part = one(has.disks, which, part)
		u.call(ctx, "remove disk", part, func(ctx context.Context) error {
			_, err := u.API.Disk.Delete(ctx, &v1.DeleteRequest{Name: part})
			return err
		})
	case op < 89 && len(has.nics) < 3:
		u.call(ctx, "add NIC", part, func(ctx context.Context) error {
			_, err := u.API.NIC.Create(ctx, &v1.CreateNICRequest{Nic: &v1.NIC{Meta: &v1.Meta{Name: part}, Spec: &v1.NICSpec{Network: lab.NetworkName}}})
			return err
		})
	case op < 93:
		part = one(has.nics, which, part)
		u.call(ctx, "remove NIC", part, func(ctx context.Context) error {
			_, err := u.API.NIC.Delete(ctx, &v1.DeleteRequest{Name: part})
			return err
		})
	default:
		u.remove(ctx, vm)
	}
}

func (u *user) clone(ctx context.Context, vm string, has parts, which int) {
	name := u.name()
	src := &v1.CloneSource{Vm: vm}
	if len(has.snapshots) > 0 {
		src.Snapshot, src.Linked = one(has.snapshots, which, ""), which%3 != 0
	}
	if u.call(ctx, "clone", fmt.Sprintf("%s of %v", name, src), func(ctx context.Context) error {
		_, err := u.API.VM.Clone(ctx, &v1.CloneVMRequest{Source: src, Name: name, Start: which%2 == 0})
		return err
	}) {
		u.vms = append(u.vms, name)
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
	u.forget(vm)
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
		pause(ctx, time.Duration(200+k.rng.IntN(1800))*time.Millisecond)
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
