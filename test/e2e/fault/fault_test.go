package fault

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/lab"
	"drover/internal/osimage"
)

var drover []string

func TestMain(m *testing.M) {
	lab.MaybeDaemon()
	argv, remove, err := lab.BuildDrover(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	drover = argv
	code := m.Run()
	remove()
	os.Exit(code)
}

const (
	users = 3
	// settleTime is how long the system may take to come to rest when the faults are over.
	settleTime = 3 * time.Minute
)

// seed is the environment's, or a new one.
func seed(t *testing.T) uint64 {
	if s := os.Getenv("DROVER_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("DROVER_SEED: %v", err)
		}
		return n
	}
	var b [4]byte
	if _, err := rand.Read(b[:]); err != nil {
		t.Fatal(err)
	}
	return uint64(binary.BigEndian.Uint32(b[:]))
}

func duration(t *testing.T) time.Duration {
	if s := os.Getenv("DROVER_FAULT_TIME"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatalf("DROVER_FAULT_TIME: %v", err)
		}
		return d
	}
	if os.Getenv("DROVER_SOAK") != "" {
		return 30 * time.Minute
	}
	return 45 * time.Second
}

// run is one test.
type run struct {
	*lab.Fleet
	t     *testing.T
	began time.Time

	mu   sync.Mutex
	said []string // what was done, for when it goes wrong
	done map[string]int
}

func (r *run) say(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said = append(r.said, fmt.Sprintf("%7.2fs ", time.Since(r.began).Seconds())+fmt.Sprintf(format, args...))
}

func (r *run) count(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done[what]++
}

func TestRandomFaults(t *testing.T) {
	s, lasts := seed(t), duration(t)
	fmt.Printf("seed %d: again by DROVER_SEED=%d go test ./test/e2e/fault\n", s, s)
	c := lab.FleetConfig{Config: lab.Config{Sites: []lab.Site{
		{Name: "east", Hosts: []lab.Host{{Name: "east-1"}}}, {Name: "west", Hosts: []lab.Host{{Name: "west-1"}}},
	}}, Drover: drover}
	r := &run{Fleet: lab.NewFleet(t, c), t: t, began: time.Now(), done: map[string]int{}}
	t.Cleanup(func() {
		t.Logf("seed %d; what was done:\n%s", s, strings.Join(r.said, "\n")) // shown by a failure, or -v
	})
	ctx, cancel := context.WithTimeout(t.Context(), lasts+2*settleTime)
	defer cancel()
	image, err := osimage.BuildTiny(ctx, osimage.Tiny{}, osimage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.PutImage(ctx, "tiny", image.Path); err != nil {
		t.Fatal(err)
	}

	faults, stop := context.WithTimeout(ctx, lasts)
	defer stop()
	var wg sync.WaitGroup
	for i := range users {
		wg.Go(func() { newUser(r, s, i).play(faults) })
	}
	wg.Go(func() { newKiller(r, s).play(faults) })
	watching, unwatch := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		r.watch(watching)
	}()
	wg.Wait()

	settle, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	r.say("the faults are over")
	for _, node := range append([]string{"manager"}, r.hosts()...) {
		if err := r.Revive(settle, node); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range r.hosts() {
		if err := r.AwaitHost(settle, h, v1.HostPhase_HOST_PHASE_READY); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.agree(settle); err != nil {
		t.Error(err)
	}
	if err := r.answer(settle); err != nil {
		t.Error(err)
	}
	unwatch()
	<-watched
	began := time.Now()
	r.NoVMs(settle, t)
	t.Logf("%d things done: %v; all VMs deleted in %v", len(r.said), r.done, time.Since(began).Round(time.Millisecond))
	if r.done["create"] == 0 || r.done["kill agent"] == 0 || r.done["kill manager"] == 0 {
		t.Errorf("this tried nothing: %v", r.done)
	}
}

func (r *run) hosts() []string {
	var out []string
	for _, n := range r.Topology().Hosts("") {
		out = append(out, n.Name)
	}
	return out
}

// watch looks for VMs that run twice.
func (r *run) watch(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		all, err := r.QEMUs()
		if err != nil {
			r.t.Error(err)
		}
		seen := map[string]lab.QEMU{}
		for _, q := range all {
			if other, ok := seen[q.UID]; ok && alive(q.PID) && alive(other.PID) {
				r.t.Errorf("VM %s runs twice: %+v and %+v", q.UID, other, q)
			}
			seen[q.UID] = q
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// alive is false for zombies, too.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && len(b) > 0
}

// agree waits until nothing is under way any more and what the API says is what there is.
func (r *run) agree(ctx context.Context) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := r.compare(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("state and reality differ at the end:\n%w", err)
		case <-tick.C:
		}
	}
}

// answer checks that in every VM that runs a guest is alive.
func (r *run) answer(ctx context.Context) error {
	vms, err := r.API.VM.List(ctx, &v1.ListRequest{PageSize: 1000})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	n := 0
	for _, vm := range vms.GetVms() {
		if vm.GetSpec().GetPower() != v1.Power_POWER_ON {
			continue
		}
		addr, err := r.Address(ctx, vm, "eth0")
		if err == nil {
			_, err = r.Get(ctx, r.Router(vm.GetStatus().GetSite()), "http://"+addr+"/")
		}
		if err != nil {
			return fmt.Errorf("VM %s runs, its guest does not: %w", vm.GetMeta().GetName(), err)
		}
		n++
	}
	r.say("%d of %d VMs run, and their guests answer", n, len(vms.GetVms()))
	return nil
}

func (r *run) compare(ctx context.Context) error {
	vms, err := r.API.VM.List(ctx, &v1.ListRequest{PageSize: 1000})
	if err != nil {
		return err
	}
	tasks, err := r.API.Task.List(ctx, &v1.ListRequest{PageSize: 1000})
	if err != nil {
		return err
	}
	snaps, err := r.API.Snapshot.List(ctx, &v1.ListRequest{PageSize: 1000})
	if err != nil {
		return err
	}
	qemus, err := r.QEMUs()
	if err != nil {
		return err
	}
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, task := range tasks.GetTasks() {
		if st := task.GetStatus().GetState(); st == v1.TaskState_TASK_STATE_PENDING || st == v1.TaskState_TASK_STATE_RUNNING {
			bad("task %s (%s of %s) is %s at %q", task.GetMeta().GetName(), task.GetSpec().GetKind(), task.GetSpec().GetTarget(), st, task.GetStatus().GetStep())
		}
	}
	have := map[string]bool{}
	for _, vm := range vms.GetVms() {
		have[vm.GetMeta().GetName()] = true
		if err := r.compareVM(vm, qemus); err != nil {
			bad("VM %s (%s): %w", vm.GetMeta().GetName(), vm.GetMeta().GetUid(), err)
		}
		qemus = slices.DeleteFunc(qemus, func(q lab.QEMU) bool { return q.UID == vm.GetMeta().GetUid() })
	}
	for _, q := range qemus {
		bad("QEMU %d on host %s runs VM %s, of which the manager knows nothing", q.PID, q.Host, q.UID)
	}
	for _, s := range snaps.GetSnapshots() {
		vm, _, _ := strings.Cut(s.GetMeta().GetName(), "/")
		if ph := s.GetStatus().GetPhase(); !have[vm] || ph != v1.SnapshotPhase_SNAPSHOT_PHASE_READY && ph != v1.SnapshotPhase_SNAPSHOT_PHASE_FAILED {
			bad("snapshot %s is %s, its VM is there: %v", s.GetMeta().GetName(), ph, have[vm])
		}
	}
	return errors.Join(errs...)
}

func (r *run) compareVM(vm *v1.VM, qemus []lab.QEMU) error {
	st, power := vm.GetStatus(), vm.GetSpec().GetPower()
	var on []lab.QEMU
	for _, q := range qemus {
		if q.UID == vm.GetMeta().GetUid() {
			on = append(on, q)
		}
	}
	how := fmt.Sprintf("wanted %s, is %s %q busy %q generation %d of %d; processes %+v", power, st.GetPhase(), st.GetMessage(), st.GetBusy(),
		st.GetObservedGeneration(), vm.GetMeta().GetGeneration(), on)
	switch {
	case vm.GetMeta().GetDeleteTime() != nil:
		return errors.New("is not deleted yet: " + how)
	case st.GetPhase() == v1.VMPhase_VM_PHASE_FAILED && strings.Contains(st.GetMessage(), "it runs; stop it") && len(on) == 0:
		return nil // a clone whose source was started before its host came to copy it waits, and says for what
	case st.GetBusy() != "" || st.GetObservedGeneration() != vm.GetMeta().GetGeneration():
		return errors.New("is not at rest: " + how)
	case power == v1.Power_POWER_ON && (st.GetPhase() != v1.VMPhase_VM_PHASE_RUNNING || len(on) != 1 || on[0].Host != st.GetOwner()):
		return errors.New(how)
	case power == v1.Power_POWER_OFF && (st.GetPhase() != v1.VMPhase_VM_PHASE_OFF || len(on) != 0):
		return errors.New(how)
	}
	for _, d := range st.GetDisks() {
		if power == v1.Power_POWER_ON && !d.GetAttached() {
			return fmt.Errorf("disk %s is not attached: %s", d.GetName(), how)
		}
	}
	for _, n := range st.GetNics() {
		if power == v1.Power_POWER_ON && !n.GetAttached() {
			return fmt.Errorf("NIC %s is not attached: %s", n.GetName(), how)
		}
	}
	return nil
}
