package host

import (
	"context"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/qemu"
	"drover/internal/qmp"
)

// askTimeout bounds a question to QEMU's monitor.
const askTimeout = 10 * time.Second

// observe looks at what is there now.
func (m *machine) observe(ctx context.Context, vm *v1.VM, w wish) sight {
	now := m.a.clk.Now()
	s := sight{now: now, halt: m.local.Halt, crashes: m.local.Crashes, retry: m.retry, data: !m.local.Gone, compact: m.local.Compact && len(m.readings) == 0 && len(m.imports) == 0, undone: m.undone, unsaved: m.isUnsaved()}
	if w.power == v1.Power_POWER_ON && !w.template && w.held {
		m.stage = stopNone // a stop that was called off
	} else if m.local.Restore != "" && m.local.Restore != resumePoint {
		m.local.Restore = "" // to be off means to boot anew the next time
	}
	s.process, s.links = m.observeProcess(ctx)
	if m.local.Run != nil {
		s.epoch = m.local.Run.Epoch
	}
	m.noteDiskErrors(s.process, now)
	s.stage, s.stopSince, s.ioNext = m.stage, m.stopSince, m.ioNext
	s.ready = m.disksReady(vm)
	var until time.Time
	s.gate, until = m.a.gate.turn(m.uid, now)
	if !s.gate && (s.retry.IsZero() || s.retry.Before(until)) {
		s.retry = until
	}
	m.restart = nil
	if s.process == procRunning || s.process == procPaused {
		var changes []change
		changes, m.restart = drift(m.local.Run.spec(), vm.GetSpec())
		s.hot = len(changes) > 0
		if !s.hot && m.failedDo == doHot {
			m.recovered()
			s.retry = time.Time{}
		}
	}
	return s
}

func (m *machine) observeProcess(ctx context.Context) (state processState, links bool) {
	m.mu.Lock()
	proc, heard := m.proc, m.heard
	m.mu.Unlock()
	run := m.local.Run
	switch {
	case run == nil:
		return procNone, false
	case proc == nil && (m.lost && !run.Stopping):
		return procLost, true
	case proc == nil:
		return procNone, true
	case heard.exited:
		return m.ended(proc), true
	case heard.panicked:
		return procBroken, false
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	st, err := proc.QMP().QueryStatus(ctx)
	if err != nil {
		select {
		case <-proc.Done():
			m.mu.Lock()
			m.heard.exited = true
			m.mu.Unlock()
			return m.ended(proc), true
		default:
		}
		m.log.Warn("QEMU does not say how it is", "err", err)
		return m.lastState, false
	}
	m.lastState = stateOf(st)
	return m.lastState, false
}

// ended says what the end of a process means.
func (m *machine) ended(proc *qemu.Process) processState {
	exit, err := proc.Wait(m.a.life)
	switch {
	case m.local.Run.Stopping:
		return procNone
	case err == nil && exit.Kind == qemu.ExitGuest:
		return procShutdown
	}
	m.exit = exit.String()
	return procLost
}

// stateOf puts QEMU's run states into ours. The odd ones stand still and go on by cont.
func stateOf(st qmp.Status) processState {
	switch st.Status {
	case "running", "suspended":
		return procRunning
	case "prelaunch", "inmigrate":
		return procPrepared
	case "io-error":
		return procIOError
	case "shutdown":
		return procShutdown
	case "internal-error", "guest-panicked":
		return procBroken
	}
	return procPaused
}

// follow passes on what a process says, until it has ended or is let go.
func (m *machine) follow(p *qemu.Process, sub *qmp.Subscription) {
	for e := range sub.C {
		m.mu.Lock()
		switch e.Name {
		case qmp.EventGuestPanicked:
			m.heard.panicked = true
		case qmp.EventBlockIOError:
			var d qmp.BlockIOErrorData
			if e.Decode(&d) == nil {
				m.heard.ioError = d.Reason
			}
		}
		g := m.guest
		m.mu.Unlock()
		if e.Name == qmp.EventVSerialChange && g != nil {
			g.poke()
		}
		m.poke()
	}
	select {
	case <-p.Done():
		m.mu.Lock()
		if m.proc == p {
			m.heard.exited = true
		}
		m.mu.Unlock()
	case <-m.a.life.Done():
	}
	m.poke()
}

// hold takes a process as this machine's own.
func (m *machine) hold(p *qemu.Process) {
	sub := p.QMP().Subscribe(64, qmp.EventStop, qmp.EventResume, qmp.EventShutdown, qmp.EventReset, qmp.EventGuestPanicked,
		qmp.EventBlockIOError, qmp.EventVSerialChange)
	m.mu.Lock()
	m.proc, m.heard = p, heard{}
	m.mu.Unlock()
	m.lost, m.exit, m.lastState = false, "", procPrepared
	if c := p.Serial(); c != nil {
		m.console.connect(c)
	}
	m.following.Go(func() { m.follow(p, sub) })
	m.holdGuest(p)
}

// release lets go of the process, which runs on if it runs.
func (m *machine) release() {
	m.mu.Lock()
	p := m.proc
	m.proc, m.heard = nil, heard{}
	m.mu.Unlock()
	m.releaseGuest()
	if p == nil {
		return
	}
	select {
	case <-p.Done():
	default:
		p.Leave()
	}
	m.console.disconnect()
	m.following.Wait()
}

// process is QEMU, if it runs.
func (m *machine) process() *qemu.Process {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.proc == nil || m.heard.exited {
		return nil
	}
	return m.proc
}
