package host

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "drover/api/drover/v1"
)

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

// pace is the least time between two looks that found nothing to do.
const pace = 5 * time.Millisecond

// run is the actor.
func (m *machine) run(ctx context.Context) {
	defer close(m.done)
	if err := errors.Join(m.mendSnapshots(ctx), m.mendOperations(ctx)); err != nil {
		m.log.Error("what an agent before left half done is not settled; a revert is tried again, the rest by the next start of the agent", "err", err)
	}
	m.thawLeft(ctx)
	defer m.endReading(context.Canceled)
	timer := m.a.clk.NewTimer(time.Hour)
	defer timer.Stop()
	var began time.Time
	for ctx.Err() == nil {
		if now := m.a.clk.Now(); now.Sub(began) < pace {
			// A guest can make QEMU speak as often as it likes.
			select {
			case <-ctx.Done():
			case <-m.a.clk.After(pace):
			}
		}
		began = m.a.clk.Now()
		vm, w, ok := m.take()
		if !ok {
			return
		}
		s := m.observe(ctx, vm, w)
		steps := plan(w, s)
		m.publish(vm, w, s)
		until, acted := m.do(ctx, vm, w, steps)
		if acted {
			began = time.Time{}
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
		if s.unsaved {
			wait = min(wait, saveAgain)
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

// saveAgain is how long a record that could not be written waits for the next try.
const saveAgain = time.Second

func (m *machine) isUnsaved() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.unsaved
}

// take reads what is wanted, and has it on disk before anything is made or started for it: what ends something does not
// wait. A record that can't be written is tried again.
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
		err := saveVM(m.dir, vm)
		if was := m.local.Held; was != held {
			m.local.Held = held
			if serr := m.save(); serr != nil {
				m.local.Held = was
				err = errors.Join(err, serr)
			}
		}
		if err != nil {
			m.log.Error("the VM's record is not on disk; until it is, nothing is made or started for it", "err", err)
			m.mu.Lock()
			m.unsaved = true
			m.mu.Unlock()
		}
	}
	w := wishOf(vm, held)
	if w.remove && !m.removing {
		// What was to be tried again later was for another end.
		m.removing, m.retry = true, time.Time{}
		m.tries.reset()
	}
	return vm, w, true
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
		if st.do == m.failedDo {
			m.recovered()
		}
	}
	return time.Time{}, acted
}

func (m *machine) step(ctx context.Context, vm *v1.VM, w wish, st step) error {
	switch st.do {
	case doProvision:
		m.endReading(errChanged)
		ctx, done := m.interruptible(ctx)
		defer done()
		return wrap("make the disks", m.provision(ctx, vm))
	case doStart:
		ctx, done := m.interruptible(ctx)
		defer done()
		return wrap("start", m.startQEMU(ctx, vm, w))
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
		m.endReading(errVMEnded)
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
		m.halt(w, st.halt, m.withExit(st.why))
	case doCrash:
		m.crashed(st)
	case doSettle:
		return m.mendOperations(ctx)
	}
	return nil
}

func wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// recovered forgets a failure: what failed has succeeded, or is not wanted any more.
func (m *machine) recovered() {
	m.failures, m.problem, m.failedDo = 0, "", doWait
	m.tries.reset()
	m.retry = time.Time{}
}

// withExit adds how QEMU ended, if that is known.
func (m *machine) withExit(why string) string {
	if m.exit == "" {
		return why
	}
	return why + " (" + m.exit + ")"
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

// waitError makes a failure one that is waited out, without a word about it to people.
type waitError struct{ err error }

func (w *waitError) Error() string        { return w.err.Error() }
func (w *waitError) Unwrap() error        { return w.err }
func (w *waitError) Is(target error) bool { return target == errWaiting }

func notYet(format string, args ...any) error { return &waitError{fmt.Errorf(format, args...)} }

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
	m.problem, m.failedDo = err.Error(), st.do
	creating := st.do == doProvision || st.do == doStart
	if creating && !errors.Is(err, errWaiting) && m.failures >= startTries {
		m.halt(w, haltFailed, err.Error())
	}
}

// halt notes why the VM stays off until its spec changes.
func (m *machine) halt(w wish, reason haltReason, why string) {
	m.local.Halt = &halt{Reason: reason, Generation: w.generation, Epoch: w.epoch, Message: why}
	m.recovered()
	m.note()
	switch reason {
	case haltGuestOff:
		m.event(v1.Severity_SEVERITY_INFO, "GUEST_SHUTDOWN", why)
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
	m.event(v1.Severity_SEVERITY_WARNING, "VM_CRASHED", m.withExit(st.why)+"; it is started again")
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
