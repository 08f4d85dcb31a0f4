package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"drover/internal/host"
)

// patience bounds each wait: guests are emulated here, on a machine that may have other things to do.
const patience = 3 * time.Minute

// screen keeps what is written and wakes those who wait for something in it.
type screen struct {
	mu   sync.Mutex
	cond *sync.Cond
	b    bytes.Buffer
}

func newScreen() *screen {
	s := &screen{}
	s.cond = sync.NewCond(&s.mu)
	return s
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cond.Broadcast()
	return s.b.Write(b)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// await waits until text has come, and forgets all up to it.
func (s *screen) await(t *testing.T, text string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	wake := time.AfterFunc(patience, s.cond.Broadcast)
	defer wake.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if i := strings.Index(s.b.String(), text); i >= 0 {
			s.b.Next(i + len(text))
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%q did not come; there is:\n%s", text, s.b.String())
		}
		s.cond.Wait()
	}
}

// until waits for what stands between two texts.
func (s *screen) until(t *testing.T, begin, end string) string {
	t.Helper()
	s.await(t, begin)
	rest := s.String()
	if i := strings.Index(rest, end); i >= 0 {
		return rest[:i]
	}
	t.Fatalf("no %q after %q: %q", end, begin, rest)
	return ""
}

// openPTY is a pseudo-terminal (ptmx(4)) of 80 by 24; what is printed on it goes to the screen.
func openPTY(t *testing.T) (master, slave *os.File, shown *screen) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
		t.Fatal(err)
	}
	shown = newScreen()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(shown, master) // ends with an error when the last slave is closed
	}()
	t.Cleanup(func() {
		slave.Close()
		<-done
		master.Close()
	})
	return master, slave, shown
}

// raw reports whether a terminal is in raw mode.
func raw(t *testing.T, f *os.File) bool {
	t.Helper()
	st, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return st.Lflag&unix.ICANON == 0
}

// up is a manager and host of a test's own, as "drover up" runs them.
type up struct {
	t      *testing.T
	dir    string
	socket string
	listen [2]string
	cmd    *exec.Cmd
	log    *screen
}

func startUp(t *testing.T) *up {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "drv") // sockets need short paths, disks a real file system
	if err != nil {
		t.Fatal(err)
	}
	u := &up{t: t, dir: dir, socket: filepath.Join(dir, "s/manager/manager.sock"), listen: [2]string{freeAddress(t), freeAddress(t)}, log: newScreen()}
	t.Cleanup(func() { os.RemoveAll(dir) })
	t.Cleanup(func() { os.RemoveAll(u.shm()) })
	_, _, pins := host.Traces(filepath.Join(dir, "s/host"))
	t.Cleanup(func() { os.RemoveAll(pins) })
	ip(t, "netns", "add", u.namespace())
	t.Cleanup(func() { ip(t, "netns", "del", u.namespace()) })
	t.Cleanup(u.killGuests)
	ip(t, "-n", u.namespace(), "link", "set", "lo", "up")
	u.start()
	return u
}

// The test's own names: of its network namespace, which all of its links go with, and of its guests' memory.
func (u *up) namespace() string { return filepath.Base(u.dir) }
func (u *up) shm() string       { return "/dev/shm/" + filepath.Base(u.dir) }

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Errorf("ip %v: %v %s", args, err, out)
	}
}

// killGuests ends QEMUs that have files of this test open: those that a failed test left.
func (u *up) killGuests() {
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*") // processes come and go
	for _, l := range links {
		if to, err := os.Readlink(l); err != nil || !strings.HasPrefix(to, u.dir+"/") {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(l, "/")[2])
		if err != nil || pid == os.Getpid() {
			continue
		}
		if !u.t.Failed() {
			u.t.Errorf("process %d is left over", pid)
		}
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may just have ended
	}
}

func (u *up) start() {
	u.t.Helper()
	u.cmd = exec.Command("nsenter", "--net=/run/netns/"+u.namespace(), "drover", "up", "--shm", u.shm(), "--state", filepath.Join(u.dir, "s"), "--listen", u.listen[0], "--host-listen", u.listen[1], "--hostname", "h1")
	u.cmd.Stdout, u.cmd.Stderr = u.log, u.log
	u.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := u.cmd.Start(); err != nil {
		u.t.Fatal(err)
	}
	cmd := u.cmd
	u.t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	u.log.await(u.t, "Try:")
}

// stop ends it as a service manager would; it must end well.
func (u *up) stop() {
	u.t.Helper()
	if err := u.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		u.t.Fatal(err)
	}
	if err := u.cmd.Wait(); err != nil {
		u.t.Errorf("drover up ended with %v:\n%s", err, u.log)
	}
}

// run runs a command line in this process.
func (u *up) run(ctx context.Context, in io.Reader, out io.Writer, args ...string) int {
	env := map[string]string{envSocket: u.socket, "TERM": "xterm", "HOME": u.dir}
	a := &App{In: in, Out: out, Err: out, Getenv: func(k string) string { return env[k] }, Version: "test"}
	return a.Main(ctx, args)
}

// must runs a command line that must succeed and returns what it printed.
func (u *up) must(args ...string) string {
	u.t.Helper()
	out := newScreen()
	if code := u.run(u.t.Context(), strings.NewReader(""), out, args...); code != 0 {
		u.t.Fatalf("drover %s: exit code %d\n%s\nlog:\n%s", strings.Join(args, " "), code, out, u.log)
	}
	return out.String()
}

// soon repeats a command line while host or guest agent don't answer yet, and returns what it printed and its exit code.
func (u *up) soon(args ...string) (string, int) {
	u.t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		out := newScreen()
		code := u.run(u.t.Context(), strings.NewReader(""), out, args...)
		if code != exitPrecondition && code != exitUnavailable {
			return out.String(), code
		}
		select {
		case <-tick.C:
		case <-deadline:
			u.t.Fatalf("drover %s: exit code %d\n%s\nlog:\n%s", strings.Join(args, " "), code, out, u.log)
		}
	}
}

// TestRealVM does what the README shows, with a real manager, host and guest: up, image, VM, console, exec, disks, snapshots, top.
func TestRealVM(t *testing.T) {
	u := startUp(t)
	if out := u.must("image", "build", "tiny"); !strings.Contains(out, "image/tiny ready") {
		t.Fatalf("build: %s", out)
	}
	if out := u.must("image", "build", "tiny"); !strings.Contains(out, "is this build already") {
		t.Errorf("second build: %s", out)
	}
	u.must("host", "list", "--filter", `status.phase = "READY"`)
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		// What a failed test left runs on without this; the agent must be there to end it.
		u.run(context.WithoutCancel(t.Context()), strings.NewReader(""), io.Discard, "vm", "rm", "--force", "--timeout", "30s", "hello")
	})
	if out := u.must("vm", "create", "hello", "--kernel", "tiny", "--memory", "128M", "--disk", "64M", "--network", "inner", "--start"); out != "vm/hello created on host h1, running\n" {
		t.Errorf("create: %q", out)
	}
	t.Run("console", func(t *testing.T) { consoleOf(t, u) })
	u.must("vm", "wait", "hello", "--for", "agent", "--timeout", patience.String())
	if out := u.must("vm", "exec", "hello", "--env", "A=b c", "--", "sh", "-c", "echo $A"); out != "b c\n" {
		t.Errorf("exec: %q", out)
	}
	if code := u.run(t.Context(), strings.NewReader("in"), io.Discard, "vm", "exec", "hello", "--stdin", "--", "sh", "-c", "read x; exit 7"); code != 7 {
		t.Errorf("exec: exit code %d, want 7", code)
	}
	u.must("vm", "disk", "add", "hello", "data", "32M")
	u.must("vm", "disk", "grow", "hello", "data", "+32M")
	// The guest finds out in its own time; it is asked in one call that ends when it has, or fails by its timeout.
	u.must("vm", "exec", "hello", "--timeout", patience.String(), "--", "sh", "-c", "until [ \"$(cat /sys/block/vdb/size)\" = 131072 ]; do sleep 0.2; done")
	u.must("snapshot", "create", "hello", "live", "--memory")
	u.must("vm", "exec", "hello", "--", "touch", "/tmp/after")
	u.must("snapshot", "revert", "hello", "live")
	if _, code := u.soon("vm", "exec", "hello", "--", "test", "-e", "/tmp/after"); code != 1 {
		t.Errorf("a file from after the snapshot: test -e gave %d, want 1", code)
	}
	if out := u.must("snapshot", "list", "hello"); !strings.Contains(out, "└─ live *") {
		t.Errorf("tree: %s", out)
	}
	t.Run("top", func(t *testing.T) { topOf(t, u) })
	t.Run("vnc", func(t *testing.T) { screenOf(t, u) })
	t.Run("round trip", func(t *testing.T) { roundTrip(t, u) })

	// The VM outlives manager and agent, which find it again.
	before := u.must("vm", "exec", "hello", "--", "cat", "/proc/sys/kernel/random/boot_id")
	u.stop()
	u.start()
	if after, _ := u.soon("vm", "exec", "hello", "--", "cat", "/proc/sys/kernel/random/boot_id"); after != before {
		t.Errorf("the guest was booted anew: %q, before %q", after, before)
	}
	if code := u.run(t.Context(), strings.NewReader(""), io.Discard, "vm", "rm", "hello"); code != exitPrecondition {
		t.Errorf("rm of a running VM: exit code %d, want %d", code, exitPrecondition)
	}
	u.must("vm", "stop", "hello", "--force")
	u.must("vm", "rm", "hello")
	if out := u.must("vm", "list", "-o", "name"); out != "" {
		t.Errorf("left: %q", out)
	}
	u.stop()
}

// consoleOf types in a guest and leaves by Ctrl-]; the terminal must be as before.
func consoleOf(t *testing.T, u *up) {
	master, slave, shown := openPTY(t)
	if raw(t, slave) {
		t.Fatal("the terminal is raw from the start")
	}
	done := make(chan int, 1)
	go func() { done <- u.run(t.Context(), slave, slave, "vm", "console", "hello", "--backlog", "-1") }()
	shown.await(t, "Ctrl-] ends the session")
	shown.await(t, "drover-tiny:") // the guest's prompt
	if !raw(t, slave) {
		t.Error("the terminal is not raw in the session")
	}
	// Ctrl-C must go to the guest.
	if _, err := master.WriteString("\x03echo si$((6*7))te\r"); err != nil {
		t.Fatal(err)
	}
	shown.await(t, "si42te")
	if _, err := master.Write([]byte{escapeKey}); err != nil {
		t.Fatal(err)
	}
	if code := <-done; code != 0 {
		t.Errorf("exit code %d", code)
	}
	shown.await(t, "Session ended")
	if raw(t, slave) {
		t.Error("the terminal was left raw")
	}
	// An interrupted session also puts it back.
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- u.run(ctx, slave, slave, "vm", "console", "hello", "--backlog", "0") }()
	shown.await(t, "Ctrl-] ends the session")
	cancel()
	if code := <-done; code != exitInterrupted {
		t.Errorf("interrupted: exit code %d", code)
	}
	if raw(t, slave) {
		t.Error("the interrupted session left the terminal raw")
	}
	// So does an unknown VM, which is told at once.
	if code := u.run(t.Context(), slave, slave, "vm", "console", "nobody"); code != exitNotFound || raw(t, slave) {
		t.Errorf("unknown VM: exit code %d, raw %v", code, raw(t, slave))
	}
}

// topOf watches the board, makes the terminal smaller, and quits.
func topOf(t *testing.T, u *up) {
	master, slave, shown := openPTY(t)
	done := make(chan int, 1)
	go func() { done <- u.run(t.Context(), slave, slave, "top", "--color", "never") }()
	shown.await(t, "hosts: 1   VMs: 1 running of 1")
	shown.await(t, "hello")
	u.must("vm", "pause", "hello")
	shown.await(t, "paused")
	u.must("vm", "resume", "hello")
	shown.await(t, "VMs: 1 running of 1")
	if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 5, Col: 40}); err != nil {
		t.Fatal(err)
	}
	if w, h, err := term.GetSize(int(slave.Fd())); err != nil || w != 40 || h != 5 {
		t.Fatalf("size %d×%d, %v", w, h, err)
	}
	shown.await(t, homeward+"drover top")
	if _, err := master.WriteString("q"); err != nil {
		t.Fatal(err)
	}
	if code := <-done; code != 0 {
		t.Errorf("exit code %d", code)
	}
	shown.await(t, screenOff)
	if raw(t, slave) {
		t.Error("the terminal was left raw")
	}
}

// roundTrip applies what get prints, and a change of it.
func roundTrip(t *testing.T, u *up) {
	doc := u.must("get", "vm", "hello", "-o", "yaml")
	out := newScreen()
	if code := u.run(t.Context(), strings.NewReader(doc), out, "apply", "-f", "-"); code != 0 || out.String() != "vm/hello unchanged\n" {
		t.Errorf("exit code %d: %s", code, out)
	}
	doc = strings.Replace(u.must("get", "vm", "hello", "-o", "yaml", "--spec-only"), "cpus: 1", "cpus: 2\n  description: two", 1)
	out = newScreen()
	if code := u.run(t.Context(), strings.NewReader(doc), out, "apply", "-f", "-"); code != 0 || out.String() != "vm/hello configured (spec.description, spec.cpus)\n" {
		t.Errorf("exit code %d: %s", code, out)
	}
	if got := u.must("get", "vm", "hello", "-o", "json"); !strings.Contains(got, `"description": "two"`) {
		t.Errorf("after the change: %s", got)
	}
}

// screenOf passes a viewer's connection on to the VM's screen.
func screenOf(t *testing.T, u *up) {
	out := newScreen()
	done := make(chan int, 1)
	go func() { done <- u.run(t.Context(), strings.NewReader(""), out, "vm", "vnc", "hello", "--once") }()
	address := strings.TrimSpace(out.until(t, "vnc://", "\n"))
	if got := greetingOf(t, address); got != "RFB 003.008\n" {
		t.Errorf("greeting %q", got)
	}
	if code := <-done; code != 0 {
		t.Errorf("exit code %d: %s", code, out)
	}
}

// greetingOf is the first thing that a VNC server says (RFC 6143, 7.1.1).
func greetingOf(t *testing.T, address string) string {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 12)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return string(b)
}
