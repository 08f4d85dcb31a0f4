package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/guest"
	"drover/internal/qmp"
)

// Errors that callers branch on.
var (
	// ErrNotRunning says that the machine's QEMU is not there (any more).
	ErrNotRunning = errors.New("the machine is not running")
	// ErrNotFound says that the machine has no such disk, NIC, drive or layer.
	ErrNotFound = errors.New("not in this machine")
	// ErrGuest says that the guest did not do its part of an operation.
	ErrGuest = errors.New("the guest did not cooperate")
)

// Options say how a machine's process is run.
type Options struct {
	Binary string       // QEMU; empty: qemu-system-x86_64 from PATH
	Dir    string       // the machine's directory, made by Start: sockets, state, log
	UID    uint32       // of QEMU; not 0
	GID    uint32       // of QEMU; not 0
	Cgroup string       // a cgroup v2 directory to start QEMU in; empty: the agent's own
	OOM    int          // oom_score_adj of QEMU, -1000 to 1000
	Log    *slog.Logger // nil discards
}

// Process is a machine that runs in a QEMU process. Methods may be called concurrently. Operations that change the
// machine wait for each other.
type Process struct {
	opt Options
	log *slog.Logger

	pid    int
	fd     *pidfd
	child  *os.Process // nil for an adopted process
	qmp    *qmp.Client
	stderr *stderrLog

	events  *qmp.Subscription // ends with the monitor; drained by watch
	exited  chan struct{}     // closed when exit is set and files are gone
	watched chan struct{}     // closed when the watcher of events has ended

	op chan struct{} // holds one token while the machine is being changed

	// Guarded by op: points that are open, the newest last, and whether QEMU's NBD server runs.
	points  []*LivePoint
	serving bool

	mu       sync.Mutex // guards the fields below
	state    state
	exit     Exit
	shutdown *qmp.ShutdownData // the last SHUTDOWN event
	left     bool              // Leave was called
	serial   net.Conn
	agent    net.Conn
}

// Exit says how a process ended.
type Exit struct {
	Kind   ExitKind
	Code   int         // with ExitFailed; -1 when it is not known, as the process was another agent's child
	Signal unix.Signal // with ExitKilled
	Stderr string      // the last that QEMU said
	Time   time.Time
}

// ExitKind is a way to end.
type ExitKind string

// The ways to end.
const (
	ExitGuest  ExitKind = "guest-shutdown" // the guest powered off
	ExitQuit   ExitKind = "quit"           // Drover told QEMU to end
	ExitKilled ExitKind = "killed"         // by a signal
	ExitFailed ExitKind = "failed"         // by itself, or unseen
)

func (e Exit) String() string {
	s := string(e.Kind)
	switch e.Kind {
	case ExitKilled:
		s += " by " + unix.SignalName(e.Signal)
	case ExitFailed:
		s += fmt.Sprintf(" with status %d", e.Code)
	}
	if e.Stderr != "" && (e.Kind == ExitKilled || e.Kind == ExitFailed) {
		s += ": " + e.Stderr
	}
	return s
}

func newProcess(opt Options, st state) *Process {
	p := &Process{
		opt: opt, log: opt.Log, state: st,
		exited: make(chan struct{}), watched: make(chan struct{}), op: make(chan struct{}, 1),
	}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	p.log = p.log.With("vm", st.Spec.Name)
	return p
}

// hardware is the machine's table, made when it is needed: a table for each of many machines would be most of what
// they take. Every state that becomes a Process was found to have one.
func (p *Process) hardware() *guest.Hardware {
	spec := p.Spec()
	hw, err := guest.Lookup(spec.Machine, spec.Version)
	if err != nil {
		panic(fmt.Sprintf("machine %s has no hardware any more: %v", spec.Name, err))
	}
	return hw
}

// PID is QEMU's process id.
func (p *Process) PID() int { return p.pid }

// QMP is the connection to QEMU, for what this package has no method for. It ends with the process.
func (p *Process) QMP() *qmp.Client { return p.qmp }

// Spec is what the machine is now, with all changes made since the start.
func (p *Process) Spec() Spec {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state.Spec.clone()
}

// Serial is the connection to the serial console. There is one reader; a guest that writes waits for it.
func (p *Process) Serial() net.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.serial
}

// Agent is the connection to the guest agent's channel.
func (p *Process) Agent() net.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.agent
}

// DialSerial connects to the serial console again; the connection before is over.
func (p *Process) DialSerial(ctx context.Context) (net.Conn, error) {
	return p.redial(ctx, conSocket, &p.serial)
}

// DialAgent connects to the guest agent's channel again; the connection before is over.
func (p *Process) DialAgent(ctx context.Context) (net.Conn, error) {
	return p.redial(ctx, qgaSocket, &p.agent)
}

func (p *Process) redial(ctx context.Context, name string, at *net.Conn) (net.Conn, error) {
	p.mu.Lock()
	old := *at
	*at = nil
	p.mu.Unlock()
	if old != nil {
		old.Close()
	}
	conn, err := dialUnix(ctx, filepath.Join(p.opt.Dir, name))
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	*at = conn
	p.mu.Unlock()
	return conn, nil
}

// Done is closed when the process has ended and its memory files are gone.
func (p *Process) Done() <-chan struct{} { return p.exited }

// Wait waits for the end of the process.
func (p *Process) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-p.exited:
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.exit, nil
	case <-ctx.Done():
		return Exit{}, fmt.Errorf("wait for machine %s: %w", p.opt.Dir, ctx.Err())
	}
}

// Kill ends the process at once, like pulling the power cord, and waits until it is gone.
func (p *Process) Kill(ctx context.Context) (Exit, error) {
	if err := p.fd.signal(unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		select {
		case <-p.exited: // the pidfd is closed then
		default:
			return Exit{}, fmt.Errorf("kill QEMU %d: %w", p.pid, err)
		}
	}
	return p.Wait(ctx)
}

// Quit ends QEMU in order: what it has in flight reaches the images. The guest is not asked.
func (p *Process) Quit(ctx context.Context) (Exit, error) {
	if err := p.qmp.Quit(ctx); err != nil && !errors.Is(err, qmp.ErrGone) {
		return Exit{}, err
	}
	return p.Wait(ctx)
}

// Leave lets go of the machine without ending it, for another agent to adopt. Nothing of p may be used after.
func (p *Process) Leave() {
	p.mu.Lock()
	p.left = true
	conns := []net.Conn{p.serial, p.agent}
	p.mu.Unlock()
	p.qmp.Close()
	for _, c := range conns {
		if c != nil {
			c.Close()
		}
	}
	p.fd.f.Close()
	<-p.exited
}

// watch notes what QEMU says of its end.
func (p *Process) watch() {
	defer close(p.watched)
	for e := range p.events.C {
		var d qmp.ShutdownData
		if e.Name == qmp.EventShutdown && e.Decode(&d) == nil {
			p.mu.Lock()
			p.shutdown = &d
			p.mu.Unlock()
		}
	}
}

// reap waits for the end of the process and cleans up after it. It is the process's one goroutine that outlives Start.
func (p *Process) reap() {
	defer close(p.exited)
	p.fd.wait()
	p.mu.Lock()
	left := p.left
	p.mu.Unlock()
	if left {
		<-p.watched
		p.stderr.close()
		return
	}
	exit := Exit{Kind: ExitFailed, Code: -1, Time: time.Now()}
	if p.child != nil {
		if ps, err := p.child.Wait(); err == nil {
			exit.Code = ps.ExitCode()
			if ws, ok := ps.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
				exit.Kind, exit.Signal = ExitKilled, ws.Signal()
			}
		}
	}
	<-p.stderr.done // the process was the FIFO's last writer
	<-p.watched     // QEMU's end of the monitor is closed
	exit.Stderr = p.stderr.said()
	p.mu.Lock()
	defer p.mu.Unlock()
	if sd := p.shutdown; sd != nil && exit.Kind != ExitKilled {
		switch {
		case sd.Guest:
			exit.Kind, exit.Code = ExitGuest, 0
		case sd.Reason == "host-qmp-quit":
			exit.Kind, exit.Code = ExitQuit, 0
		case sd.Reason == "host-signal":
			exit.Kind, exit.Signal = ExitKilled, unix.SIGTERM
		}
	}
	p.exit = exit
	for _, c := range []net.Conn{p.serial, p.agent} {
		if c != nil {
			c.Close()
		}
	}
	p.fd.f.Close()
	removeMemory(&p.state.Spec)
	p.log.Info("QEMU ended", "pid", p.pid, "how", exit.String())
}

// lock begins an operation; the returned function ends it.
func (p *Process) lock(ctx context.Context) (func(), error) {
	select {
	case p.op <- struct{}{}:
		return func() { <-p.op }, nil
	case <-p.exited:
		return nil, ErrNotRunning
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for another operation on the machine: %w", ctx.Err())
	}
}

// change edits the state and writes it. It is called with the operation lock held.
func (p *Process) change(edit func(*state)) error {
	p.mu.Lock()
	next := p.state
	next.Spec = p.state.Spec.clone()
	edit(&next)
	p.state = next
	p.mu.Unlock()
	return next.write(p.opt.Dir)
}

// clone copies a Spec so that changes to its lists stay apart.
func (s Spec) clone() Spec {
	s.Disks = slices.Clone(s.Disks)
	for i := range s.Disks {
		s.Disks[i].Layers = slices.Clone(s.Disks[i].Layers)
	}
	s.CDROMs, s.NICs, s.FwCfg = slices.Clone(s.CDROMs), slices.Clone(s.NICs), slices.Clone(s.FwCfg)
	s.CPU.Plugged, s.Memory.DIMMs = slices.Clone(s.CPU.Plugged), slices.Clone(s.Memory.DIMMs)
	return s
}
