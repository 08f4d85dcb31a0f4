package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"drover/internal/guest"
	"drover/internal/qmp"
)

// Attach is what a machine is started with besides its Spec. Start takes nothing over: the caller closes the files.
type Attach struct {
	TAPs     map[string][]*os.File // NIC id to one TAP descriptor per queue
	Incoming *os.File              // the saved memory, for a Spec with Incoming; nil: the caller sends migrate-incoming
}

// Start starts QEMU. When it returns, all devices are there, saved memory is loaded and the CPUs stand still: the
// machine runs at QMP().Cont. On failure nothing is left behind, and the error has QEMU's own reason.
func Start(ctx context.Context, s Spec, a Attach, opt Options) (_ *Process, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("start machine %s: %w", s.Name, err)
		}
	}()
	if opt.UID == 0 || opt.GID == 0 {
		return nil, errors.New("QEMU must not run as root: give it a uid and a gid of its own")
	}
	plan, err := Make(&s)
	if err != nil {
		return nil, err
	}
	if opt.Binary == "" {
		opt.Binary = "qemu-system-x86_64"
	}
	bin, err := exec.LookPath(opt.Binary)
	if err != nil {
		return nil, fmt.Errorf("%w; install QEMU (Debian: qemu-system-x86)", err)
	}
	if err := os.MkdirAll(opt.Dir, 0o700); err != nil {
		return nil, err
	}
	if st, err := readState(opt.Dir); err == nil {
		fd, err := openRunning(st.PID, st.StartTime, st.BootID)
		if err != nil {
			return nil, err
		}
		if fd != nil {
			fd.f.Close()
			return nil, fmt.Errorf("it is already running as process %d; adopt it", st.PID)
		}
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	st := state{Version: stateVersion, BootID: boot, UID: opt.UID, GID: opt.GID, Cgroup: opt.Cgroup, Spec: s.clone()}
	p := newProcess(opt, st)
	defer func() {
		if err != nil {
			removeMemory(&s)
			removeRuntime(opt.Dir)
		}
	}()
	if err := st.write(opt.Dir); err != nil {
		return nil, err
	}
	if err := makeMemory(&s, opt.UID, opt.GID); err != nil {
		return nil, err
	}
	conns, err := p.spawn(ctx, bin, plan, a)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	p.serial, p.agent = conns.serial, conns.agent
	p.mu.Unlock()
	if err := p.settle(ctx, conns.qmp, a); err != nil {
		return nil, p.abandon(err)
	}
	return p, nil
}

// settle brings a new process to the point where it can run.
func (p *Process) settle(ctx context.Context, monitor net.Conn, a Attach) error {
	client, err := qmp.New(ctx, monitor, qmp.Options{Log: p.log})
	if err != nil {
		return err
	}
	p.follow(client)
	st, err := readProcStat(p.pid)
	if err != nil {
		return err
	}
	if err := p.change(func(s *state) { s.PID, s.StartTime = p.pid, st.startTime }); err != nil {
		return err
	}
	for _, n := range p.state.Spec.NICs {
		if n.Down {
			if err := client.SetLink(ctx, nicID(n.ID), false); err != nil {
				return err
			}
		}
	}
	if p.state.Spec.Incoming && a.Incoming != nil {
		if err := p.load(ctx, a.Incoming); err != nil {
			return err
		}
		return p.change(func(s *state) { s.Spec.Incoming = false })
	}
	return nil
}

// follow begins to watch the process over its monitor.
func (p *Process) follow(client *qmp.Client) {
	p.qmp = client
	p.events = client.Subscribe(16, qmp.EventShutdown)
	go p.watch()
	go p.reap()
}

// abandon ends a process that could not be started, and puts what QEMU said into the error.
func (p *Process) abandon(cause error) error {
	if err := p.fd.signal(unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		p.log.Error("kill QEMU", "pid", p.pid, "err", err)
	}
	if p.qmp == nil { // it died before it greeted
		close(p.watched)
		go p.reap()
	}
	<-p.exited
	if p.exit.Stderr != "" {
		return fmt.Errorf("QEMU said: %s (%w)", p.exit.Stderr, cause)
	}
	return fmt.Errorf("QEMU ended (%s): %w", p.exit, cause)
}

type conns struct{ qmp, serial, agent net.Conn }

func (c *conns) close() {
	for _, x := range []net.Conn{c.qmp, c.serial, c.agent} {
		if x != nil {
			x.Close()
		}
	}
}

// spawn opens everything in the plan and starts QEMU with it.
func (p *Process) spawn(ctx context.Context, bin string, plan *Plan, a Attach) (c conns, err error) {
	var opened []*os.File // ours; QEMU has its own copies when this returns
	defer func() {
		for _, f := range opened {
			f.Close()
		}
		if err != nil {
			c.close()
		}
	}()
	files := make([]*os.File, 0, len(plan.FDs))
	for _, fd := range plan.FDs {
		var f *os.File
		switch fd.Source {
		case FromTAP:
			taps := a.TAPs[fd.Key]
			if fd.Index >= len(taps) {
				return c, fmt.Errorf("NIC %s: no TAP descriptor for queue %d", fd.Key, fd.Index)
			}
			files = append(files, taps[fd.Index])
			continue
		case FromMonitor:
			f, c.qmp, err = listen(ctx, filepath.Join(p.opt.Dir, qmpSocket))
		case FromSerial:
			f, c.serial, err = listen(ctx, filepath.Join(p.opt.Dir, conSocket))
		case FromAgent:
			f, c.agent, err = listen(ctx, filepath.Join(p.opt.Dir, qgaSocket))
		case FromFile:
			f, err = openForUser(fd.Path, p.opt.UID)
		case FromLayer:
			f, err = openLayer(fd.Path, fd.Write)
		default:
			err = fmt.Errorf("descriptor from %q", fd.Source)
		}
		if err != nil {
			return c, err
		}
		opened, files = append(opened, f), append(files, f)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return c, err
	}
	opened = append(opened, null)
	fifo, err := makeFIFO(p.opt.Dir)
	if err != nil {
		return c, err
	}
	opened = append(opened, fifo)
	if p.stderr, err = followStderr(p.opt.Dir); err != nil {
		return c, err
	}
	defer func() {
		if err != nil {
			p.stderr.close()
		}
	}()

	groups, err := kvmGroups(&p.state.Spec, p.opt)
	if err != nil {
		return c, err
	}
	attr := &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: p.opt.UID, Gid: p.opt.GID, Groups: groups}}
	if p.opt.Cgroup != "" {
		dir, err := os.Open(p.opt.Cgroup)
		if err != nil {
			return c, fmt.Errorf("open cgroup: %w", err)
		}
		opened = append(opened, dir)
		attr.UseCgroupFD, attr.CgroupFD = true, int(dir.Fd())
	}
	proc, err := os.StartProcess(bin, append([]string{filepath.Base(bin)}, plan.Args...), &os.ProcAttr{
		Dir: "/", Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}, Sys: attr,
		Files: append([]*os.File{null, fifo, fifo}, files...),
	})
	if err != nil {
		return c, err
	}
	p.child, p.pid = proc, proc.Pid
	// A child keeps its pid until it is waited for, so this is it.
	if p.fd, err = openPidfd(p.pid); err != nil {
		proc.Kill()
		proc.Wait()
		return c, fmt.Errorf("open process %d: %w", p.pid, err)
	}
	if p.opt.OOM != 0 {
		// The process may be gone already; its own reason is then the better error.
		err := os.WriteFile("/proc/"+strconv.Itoa(p.pid)+"/oom_score_adj", []byte(strconv.Itoa(p.opt.OOM)), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
			p.log.Warn("set OOM score", "pid", p.pid, "err", err)
		}
	}
	return c, nil
}

// kvmGroups is the one group that QEMU needs to open /dev/kvm, or none.
func kvmGroups(s *Spec, opt Options) ([]uint32, error) {
	if s.Accel != guest.KVM {
		return nil, nil
	}
	var st unix.Stat_t
	if err := unix.Stat("/dev/kvm", &st); err != nil {
		return nil, fmt.Errorf("KVM: %w; load the kvm module, or use accel tcg", &os.PathError{Op: "stat", Path: "/dev/kvm", Err: err})
	}
	if st.Mode&0o006 == 0o006 || st.Gid == opt.GID || st.Gid == 0 {
		return nil, nil
	}
	return []uint32{st.Gid}, nil
}
