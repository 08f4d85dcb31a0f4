package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/qemu"
)

// machine is one VM's actor. It brings what is there to what is wanted: observe, plan, do, and again, until there is
// nothing to do; then it waits for something to happen.
type machine struct {
	a       *agent
	uid     string
	dir     string // the record
	run_    string // sockets
	log     *slog.Logger
	console *console

	wake  chan struct{}
	calls chan *call
	done  chan struct{} // closed when the actor has ended

	mu        sync.Mutex
	vm        *v1.VM // as last told; never changed, only replaced
	held      bool
	unsaved   bool // vm or held are not on disk yet
	rep       *v1.VMReport
	ending    bool
	refusedAt int64              // epoch whose report was refused
	interrupt context.CancelFunc // ends the step that is under way, if it may be ended
	proc      *qemu.Process
	guest     *guestWatch
	heard     heard
	busy      string // what a long step does just now
	least     int64  // specs of lower generations are from before a revert
	idle      bool   // what interrupt ends is only housekeeping
	restoring bool   // disks are being filled from a restore point
	instant   *instant
	backingUp bool // a backup is being made

	// The rest is the actor's own.
	local     *local
	retry     time.Time
	removing  bool // the actor has seen that the VM is to be deleted
	tries     backoff
	failures  int
	stage     stopStage
	stopSince time.Time
	ioNext    time.Time
	ioWait    backoff
	ioSince   time.Time
	problem   string // what went wrong last, in words
	failedDo  action // in which step
	restart   []string
	lost      bool   // the process of local.Run ended unseen
	exit      string // how it ended
	undone    bool   // a revert was cut off: nothing else until it is carried through
	lastState processState
	readings  []*offRead            // backups and points that read the disks while the VM is off
	points    map[string]*openPoint // protection points, by id
	imports   map[string]*imported  // disks that others write to while the VM is off, by id
	following sync.WaitGroup        // goroutines that listen to the process
}

// heard is what QEMU's events said of the present process.
type heard struct {
	panicked bool
	exited   bool
	ioError  string
}

// call is something that the manager asks for, done between two steps.
type call struct {
	ctx  context.Context
	do   func(context.Context) error
	done chan error
}

func (a *agent) newMachine(vm *v1.VM, l *local) (*machine, error) {
	uid := vm.GetMeta().GetUid()
	dir, err := a.vmDir(uid)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the record of VM %s: %w", vm.GetMeta().GetName(), err)
	}
	m := &machine{
		a: a, uid: uid, dir: dir, run_: filepath.Join(a.cfg.RunDir, "vms", uid),
		log:  a.log.With("vm", vm.GetMeta().GetName(), "uid", uid),
		wake: make(chan struct{}, 1), calls: make(chan *call), done: make(chan struct{}),
		vm: vm, held: l.Held, local: l, least: l.LeastGeneration,
		tries: backoff{min: time.Second, max: time.Minute}, ioWait: backoff{min: ioPollMin, max: ioPollMax},
	}
	if m.local.Made == nil {
		m.local.Made = map[string]madeDisk{}
	}
	m.console, err = newConsole(filepath.Join(dir, recordRing), a.cfg.ConsoleBytes, m.log)
	if err != nil {
		return nil, err
	}
	m.rep = &v1.VMReport{Name: vm.GetMeta().GetName(), Uid: uid, Epoch: vm.GetStatus().GetEpoch(), Gone: l.Gone, Status: &v1.VMStatus{
		Phase: l.Phase, Message: l.Message, Owner: a.id.Host, Epoch: vm.GetStatus().GetEpoch(),
	}}
	return m, nil
}

func (m *machine) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// want takes the manager's word.
func (m *machine) want(vm *v1.VM, held bool) {
	m.mu.Lock()
	if !held {
		// What another host holds is not for us to know; keep the spec that the data here belongs to.
		old := clone(m.vm)
		if vm.GetMeta().GetDeleteTime() != nil {
			old.Meta.DeleteTime = vm.GetMeta().GetDeleteTime()
		}
		vm = old
	}
	if held && vm.GetMeta().GetGeneration() < m.least && vm.GetMeta().GetDeleteTime() == nil {
		m.mu.Unlock() // a deletion counts whenever it was wished
		return
	}
	lost := m.idle || m.held && !held || vm.GetMeta().GetDeleteTime() != nil || vm.GetStatus().GetEpoch() != m.vm.GetStatus().GetEpoch()
	m.vm, m.held, m.unsaved = vm, held, true
	stop := m.interrupt
	m.mu.Unlock()
	if lost && stop != nil {
		stop()
	}
	m.poke()
}

// disown says that the manager's list does not have the VM. Its data stays until the manager says otherwise.
func (m *machine) disown() {
	m.mu.Lock()
	was := m.held
	m.held, m.unsaved = false, true
	stop := m.interrupt
	m.mu.Unlock()
	if was {
		m.log.Warn("the manager does not give this VM to this host any more; it is stopped and its data kept")
		if stop != nil {
			stop()
		}
	}
	m.poke()
}

func (m *machine) name() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.vm.GetMeta().GetName()
}

func (m *machine) isHeld() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.held
}

func (m *machine) wantsToRun() bool {
	w := wishOf(m.vm, m.held)
	return w.held && !w.remove && !w.template && (w.power == v1.Power_POWER_ON || w.power == v1.Power_POWER_PAUSED)
}

// report is what the manager is to hear. It is not to be changed.
func (m *machine) report() *v1.VMReport {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rep
}

// refused notes that the manager did not take a report; true the first time for an epoch that we believe to hold.
func (m *machine) refused(epoch int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.held || m.vm.GetStatus().GetEpoch() != epoch || m.refusedAt == epoch {
		return false
	}
	m.refusedAt = epoch
	return true
}

// finish ends the actor and removes the record, if nothing else is left of the VM.
func (m *machine) finish() bool {
	m.mu.Lock()
	gone := m.rep.GetGone()
	if gone {
		m.ending = true
	}
	m.mu.Unlock()
	if !gone {
		return false
	}
	m.poke()
	<-m.done
	m.close()
	if err := os.RemoveAll(m.dir); err != nil {
		m.log.Error("a deleted VM's record could not be removed", "err", err)
	}
	return true
}

// close lets go of everything, but ends nothing.
func (m *machine) close() {
	m.leaveInstant()
	m.release()
	m.console.close()
}

// ask has the actor do something between two steps, and waits for it.
func (m *machine) ask(ctx context.Context, do func(context.Context) error) error {
	c := &call{ctx: ctx, do: do, done: make(chan error, 1)}
	select {
	case m.calls <- c:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-m.done:
		return errEnded
	}
	// Once it has begun it is waited for: it ends soon after ctx.
	return <-c.done
}

var errEnded = errors.New("the VM is not here any more, or the agent is ending")
