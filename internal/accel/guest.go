package accel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// sandbox is QEMU's seccomp filter, the same as for real VMs.
const sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

// killGrace is how long the kernel may take to end a killed QEMU.
const killGrace = 5 * time.Second

// errUnkillable: QEMU hangs inside the kernel.
var errUnkillable = errors.New("QEMU was killed but does not end; the kernel's KVM is stuck, restart the machine")

// outcome of one run of the test guest.
type outcome struct {
	passed     bool
	timeout    bool
	milestones string
	biosBytes  int    // length of the BIOS's log: 0 if it never ran
	exit       string // how QEMU ended, if it did by itself
	stderr     []byte
	took       time.Duration
}

// runGuest runs the test guest under an accelerator until it ends, fails for
// sure, or the deadline passes. An error means that it could not be tried.
func runGuest(ctx context.Context, o Options, accel, cpu string, deadline time.Duration) (outcome, error) {
	disk, err := memfile("boot", bootImage())
	if err != nil {
		return outcome{}, err
	}
	defer disk.Close()
	biosLog, biosEnd, err := socketpair()
	if err != nil {
		return outcome{}, err
	}
	defer biosLog.Close()
	defer biosEnd.Close()

	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	cmd := exec.Command(o.Binary,
		"-machine", "q35", "-accel", accel, "-cpu", cpu, "-m", "32", "-smp", "1",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-sandbox", sandbox,
		"-add-fd", "fd=3,set=1",
		"-blockdev", "driver=raw,node-name=boot,file.driver=file,file.filename=/dev/fdset/1,file.locking=off",
		"-device", "virtio-blk-pci,drive=boot,bootindex=0",
		"-device", fmt.Sprintf("isa-debug-exit,iobase=%#x,iosize=4", portExit),
		"-chardev", "stdio,id=milestone,signal=off",
		"-device", fmt.Sprintf("isa-debugcon,iobase=%#x,chardev=milestone", portMilestone),
		"-chardev", "socket,id=bios,fd=4",
		"-device", fmt.Sprintf("isa-debugcon,iobase=%#x,chardev=bios", portBIOS),
	)
	cmd.ExtraFiles = []*os.File{disk, biosEnd}
	cmd.SysProcAttr = o.attr()
	marks := &limited{max: 64}
	// A guest that KVM cannot run on is stopped, not ended: do not wait for the
	// deadline then, only for the rest of QEMU's report.
	stderr := &limited{max: 16 << 10, alarm: []byte("KVM internal error"), ring: sync.OnceFunc(func() {
		time.AfterFunc(100*time.Millisecond, cancel)
	})}
	cmd.Stdout, cmd.Stderr = marks, stderr
	cmd.WaitDelay = time.Second

	start := time.Now()
	bios := &limited{max: 1 << 20}
	var drain sync.WaitGroup
	drain.Go(func() { io.Copy(bios, biosLog) })
	err = runBounded(ctx, cmd, func() { biosEnd.Close() })
	// The log ends with QEMU; only a stray holder of the socket needs the deadline.
	biosLog.SetReadDeadline(time.Now().Add(time.Second))
	drain.Wait()
	if errors.Is(err, errUnkillable) {
		return outcome{}, err
	}

	res := outcome{
		milestones: string(marks.bytes()),
		biosBytes:  len(bios.bytes()),
		stderr:     stderr.bytes(),
		took:       time.Since(start),
		timeout:    errors.Is(ctx.Err(), context.DeadlineExceeded),
	}
	if cmd.ProcessState == nil {
		return res, fmt.Errorf("accel: start %s: %w", o.Binary, err)
	}
	res.exit = cmd.ProcessState.String()
	res.passed = cmd.ProcessState.ExitCode() == exitPassed && res.milestones == allMilestones()
	return res, nil
}

// runBounded starts cmd, kills its group when ctx ends, and reaps it. started is
// called when the child has its own copies of the files.
func runBounded(ctx context.Context, cmd *exec.Cmd, started func()) error {
	done := make(chan error, 1)
	pid := make(chan int, 1)
	go func() {
		// The child is tied to the thread that starts it (Pdeathsig): keep this one.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			pid <- 0
			done <- err
			return
		}
		pid <- cmd.Process.Pid
		done <- cmd.Wait()
	}()
	p := <-pid
	started()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	if p > 0 {
		// Not reaped yet as far as we know, so the number is still its own; should it
		// have been reaped just now, the group is empty and the call fails.
		syscall.Kill(-p, syscall.SIGKILL)
	}
	grace := time.NewTimer(killGrace)
	defer grace.Stop()
	select {
	case err := <-done:
		return err
	case <-grace.C:
		return fmt.Errorf("accel: pid %d: %w", p, errUnkillable)
	}
}

// attr gives QEMU a process group of its own, which dies with us.
func (o Options) attr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Credential: o.Credential}
}

// socketpair is a connection to a process to be: our end, and the file for it.
func socketpair() (net.Conn, *os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("accel: socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("accel: socketpair: %w", err)
	}
	return conn, theirs, nil
}

// memfile is an anonymous file with the given content.
func memfile(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("accel: memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.WriteAt(content, 0); err != nil {
		f.Close()
		return nil, fmt.Errorf("accel: memfd: %w", err)
	}
	return f, nil
}

func allMilestones() string {
	var b strings.Builder
	for _, m := range milestones {
		b.WriteByte(m.mark)
	}
	return b.String()
}

// limited keeps the first max bytes written to it, takes all, and calls ring
// once alarm is among them.
type limited struct {
	max   int
	alarm []byte
	ring  func()

	mu  sync.Mutex // guards buf
	buf []byte
}

func (l *limited) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = append(l.buf, b[:min(len(b), l.max-len(l.buf))]...)
	if l.ring != nil && bytes.Contains(l.buf, l.alarm) {
		l.ring()
	}
	return len(b), nil
}

func (l *limited) bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.buf)
}
