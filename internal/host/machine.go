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

	"google.golang.org/protobuf/types/known/timestamppb"

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

	// The rest is the actor's own.
	local     *local
	retry     time.Time
	tries     backoff
	failures  int
	stage     stopStage
	stopSince time.Time
	ioNext    time.Time
	ioWait    backoff
	ioSince   time.Time
	problem   string // what went wrong last, in words
	restart   []string
	lost      bool   // the process of local.Run ended unseen
	exit      string // how it ended
	lastState processState
	following sync.WaitGroup // goroutines that listen to the process
}

// heard is what QEMU's events said of the present process.
type heard struct {
	shutdown bool // the guest switched off
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
	if held && vm.GetMeta().GetGeneration() < m.least {
		m.mu.Unlock()
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

func wishOf(vm *v1.VM, held bool) wish {
	spec := vm.GetSpec()
	w := wish{
		held: held, remove: vm.GetMeta().GetDeleteTime() != nil,
		epoch: vm.GetStatus().GetEpoch(), generation: vm.GetMeta().GetGeneration(),
		power: spec.GetPower(), template: spec.GetTemplate(), policy: spec.GetRestartPolicy(),
		stopWait: spec.GetStopTimeout().AsDuration(),
	}
	if spec.GetStopTimeout() == nil {
		w.stopWait = stopWaitDefault
	}
	stopRequest(&w, vm)
	return w
}

// run is the actor.
func (m *machine) run(ctx context.Context) {
	defer close(m.done)
	if err := errors.Join(m.mendSnapshots(ctx), m.mendOperations(ctx)); err != nil {
		m.log.Error("what an agent before left half done is not settled; the next start of the agent tries again", "err", err)
	}
	timer := m.a.clk.NewTimer(time.Hour)
	defer timer.Stop()
	for ctx.Err() == nil {
		vm, w, ok := m.take()
		if !ok {
			return
		}
		s := m.observe(ctx, vm, w)
		steps := plan(w, s)
		m.publish(vm, w, s)
		until, acted := m.do(ctx, vm, w, steps)
		if acted {
			select {
			case c := <-m.calls:
				m.serve(c)
			default:
			}
			continue
		}
		wait := time.Hour
		if !until.IsZero() {
			wait = max(until.Sub(m.a.clk.Now()), time.Millisecond)
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
		case <-m.wake:
		case <-timer.C:
		case c := <-m.calls:
			m.serve(c)
		}
	}
}

func (m *machine) serve(c *call) {
	if err := c.ctx.Err(); err != nil {
		c.done <- err
		return
	}
	c.done <- c.do(c.ctx)
}

// take reads what is wanted, and has it on disk before anything is done about it.
func (m *machine) take() (*v1.VM, wish, bool) {
	m.mu.Lock()
	vm, held, unsaved := m.vm, m.held, m.unsaved
	m.unsaved = false
	ending := m.ending
	m.mu.Unlock()
	if ending {
		return nil, wish{}, false
	}
	if unsaved {
		m.local.Held = held
		if err := errors.Join(saveVM(m.dir, vm), m.save()); err != nil {
			m.log.Error("the VM's record is not on disk; after a restart of the agent an older one counts", "err", err)
		}
	}
	return vm, wishOf(vm, held), true
}

// save writes what the host knows.
func (m *machine) save() error {
	m.local.Version, m.local.Boot = 1, m.a.boot
	return writeJSON(filepath.Join(m.dir, recordLocal), m.local)
}

// note is save for when nothing can be done about a failure but tell.
func (m *machine) note() {
	if err := m.save(); err != nil {
		m.log.Error("the VM's record is not on disk", "err", err)
	}
}

// do carries out steps until one fails. acted is false when there was only waiting.
func (m *machine) do(ctx context.Context, vm *v1.VM, w wish, steps []step) (until time.Time, acted bool) {
	for _, st := range steps {
		if st.do == doWait {
			return st.until, acted
		}
		if ctx.Err() != nil {
			return time.Time{}, true
		}
		acted = true
		m.log.Debug("step", "do", st.do.String(), "why", st.why)
		if err := m.step(ctx, vm, w, st); err != nil {
			if ctx.Err() == nil {
				m.failed(st, w, err)
			}
			return time.Time{}, true
		}
	}
	return time.Time{}, acted
}

func (m *machine) step(ctx context.Context, vm *v1.VM, w wish, st step) error {
	switch st.do {
	case doProvision:
		ctx, done := m.interruptible(ctx)
		defer done()
		if err := m.provision(ctx, vm); err != nil {
			return fmt.Errorf("make the disks: %w", err)
		}
	case doStart:
		ctx, done := m.interruptible(ctx)
		defer done()
		if err := m.startQEMU(ctx, vm, w); err != nil {
			return fmt.Errorf("start: %w", err)
		}
	case doResume:
		return m.resume(ctx)
	case doPause:
		return m.pause(ctx)
	case doPressPower:
		return m.pressPower(ctx)
	case doAskAgent:
		m.askAgent(ctx)
		return nil
	case doKill:
		return m.kill(ctx, st.why)
	case doClean:
		return m.clean(ctx)
	case doWipe:
		return m.wipe(ctx)
	case doHot:
		return m.hot(ctx, vm)
	case doMend:
		return m.mend(ctx)
	case doCompact:
		ctx, done := m.interruptible(ctx)
		m.setIdle(true)
		defer m.setIdle(false)
		defer done()
		return m.compact(ctx)
	case doHalt:
		m.halt(w, st.halt, st.why)
		return nil
	case doCrash:
		m.crashed(st)
		return nil
	}
	m.failures, m.problem = 0, ""
	m.tries.reset()
	m.retry = time.Time{}
	return nil
}

// interruptible lets want end a step that is not worth going on with.
func (m *machine) interruptible(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	m.mu.Lock()
	m.interrupt = cancel
	m.mu.Unlock()
	return ctx, func() {
		m.mu.Lock()
		m.interrupt = nil
		m.mu.Unlock()
		cancel()
	}
}

func (m *machine) setIdle(idle bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.idle = idle
}

// errWaiting is wrapped by failures that end by themselves: they are tried again without limit.
var errWaiting = errors.New("not yet")

// startTries is how often making and starting a VM is tried before it is called failed.
const startTries = 3

// failed decides what a failed step leads to: another try later, or FAILED.
func (m *machine) failed(st step, w wish, err error) {
	if errors.Is(err, context.Canceled) {
		return // interrupted: what is wanted has changed
	}
	m.failures++
	m.retry = m.a.clk.Now().Add(m.tries.next())
	if m.problem != err.Error() {
		m.log.Warn("step failed", "do", st.do.String(), "try", m.failures, "err", err)
	}
	m.problem = err.Error()
	creating := st.do == doProvision || st.do == doStart
	if creating && !errors.Is(err, errWaiting) && m.failures >= startTries {
		m.halt(w, haltFailed, err.Error())
	}
}

// halt notes why the VM stays off until its spec changes.
func (m *machine) halt(w wish, reason haltReason, why string) {
	m.local.Halt = &halt{Reason: reason, Generation: w.generation, Epoch: w.epoch, Message: why}
	m.failures, m.retry, m.problem = 0, time.Time{}, ""
	m.tries.reset()
	m.note()
	switch reason {
	case haltCrashed:
		m.event(v1.Severity_SEVERITY_ERROR, "VM_CRASHED", why+"; it stays off")
	case haltFailed:
		m.event(v1.Severity_SEVERITY_ERROR, "VM_FAILED", why)
	}
	m.settled()
}

// crashed counts an end that nobody asked for.
func (m *machine) crashed(st step) {
	now := m.a.clk.Now()
	m.local.Crashes = append(m.local.Crashes, now)
	if over := len(m.local.Crashes) - crashLimit - 1; over > 0 {
		m.local.Crashes = m.local.Crashes[over:]
	}
	m.local.Restarts++
	m.retry = st.until
	m.note()
	m.event(v1.Severity_SEVERITY_WARNING, "VM_CRASHED", st.why+"; it is started again")
}

func (m *machine) settled() {
	if m.a.gate.settled(m.uid, m.a.clk.Now()) {
		m.a.wakeWaiting()
	}
}

func (m *machine) event(sev v1.Severity, reason, message string) {
	m.a.events.add(sev, "vm", m.name(), reason, message)
	m.a.reporter.poke()
}

// publish makes the status that goes to the manager, if it changed.
func (m *machine) publish(vm *v1.VM, w wish, s sight) {
	st := m.status(vm, w, s)
	if st.Phase != m.local.Phase {
		m.local.Phase, m.local.PhaseTime = st.Phase, m.a.clk.Now()
		m.log.Info("phase", "phase", phaseName(st.Phase), "message", st.Message)
	}
	m.local.Message = st.Message
	st.PhaseTime = timestamppb.New(m.local.PhaseTime)
	rep := &v1.VMReport{Name: vm.GetMeta().GetName(), Uid: m.uid, Epoch: w.epoch, Status: st, Gone: m.local.Gone && w.remove}
	rep.GuestOff = halted(w, s) && s.halt.Reason == haltGuestOff
	m.mu.Lock()
	same := equal(rep, m.rep)
	if !same {
		m.rep = rep
	}
	m.mu.Unlock()
	if !same {
		m.a.reporter.changed(m.uid)
	}
}
