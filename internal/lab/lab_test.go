package lab

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"drover/internal/hostnet"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	MaybeDaemon()
	if len(os.Args) == 4 && os.Args[1] == "lab-up" { // see TestUpKilledAnywhere
		c := Config{Name: os.Args[2], Root: os.Args[3], Owner: os.Getpid()}
		if _, err := Up(context.Background(), c); err != nil {
			panic(err)
		}
		fmt.Println("up")
		select {}
	}
	os.Exit(m.Run())
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// testRoot is short enough for the control socket.
func testRoot(t *testing.T) string {
	t.Helper()
	root, err := os.MkdirTemp("/tmp", "lab")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(root) })
	return filepath.Join(root, "r")
}

func rootLinks(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("ip", "-o", "link").CombinedOutput()
	must(t, err)
	routes, err := exec.Command("ip", "route", "show", "table", "all").CombinedOutput()
	must(t, err)
	addrs, err := exec.Command("ip", "-o", "addr").CombinedOutput()
	must(t, err)
	fwd, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	must(t, err)
	return string(out) + string(routes) + string(addrs) + string(fwd)
}

// ping asks once and gives up after a second or two.
func ping(t *testing.T, l *Lab, from, to string) error {
	t.Helper()
	n, err := l.Topology().Node(to)
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err = l.Exec(ctx, from, "ping", "-n", "-c1", "-w2", n.Address.Addr().String())
	return err
}

// assertNothing checks that no trace of a lab is left.
func assertNothing(t *testing.T, root, name string, pids ...int) {
	t.Helper()
	list, err := hostnet.Namespaces(namespacePrefix(name))
	must(t, err)
	if len(list) > 0 {
		t.Errorf("namespaces left: %v", list)
	}
	for _, path := range []string{labDir(root, name), filepath.Join(root, name+".lock")} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left (%v)", path, err)
		}
	}
	mounts, err := mountsUnder(root)
	must(t, err)
	if len(mounts) > 0 {
		t.Errorf("mounts left: %v", mounts)
	}
	for _, pid := range pids {
		if _, err := startTime(pid); !errors.Is(err, errGone) {
			t.Errorf("process %d is left (%v)", pid, err)
		}
	}
}

func TestTwoLabsSideBySide(t *testing.T) {
	before := rootLinks(t)
	root := testRoot(t)
	labs := []*Lab{New(t, Config{Root: root}), New(t, Config{Root: root})}
	for _, l := range labs {
		for _, to := range []string{"east-2", "east-rt", "manager", "west-1", "west-2"} {
			if err := ping(t, l, "east-1", to); err != nil {
				t.Errorf("lab %s: %v", l.Name(), err)
			}
		}
	}
	// The same addresses, and still apart: only one of them is cut.
	must(t, labs[0].Cut(t.Context(), true))
	if ping(t, labs[0], "east-1", "west-1") == nil {
		t.Error("the first lab's WAN is cut and passes packets")
	}
	if err := ping(t, labs[1], "east-1", "west-1"); err != nil {
		t.Errorf("the second lab's WAN was cut with the first's: %v", err)
	}
	names, err := Names(root)
	must(t, err)
	if len(names) != 2 {
		t.Errorf("labs are %v, want two", names)
	}
	if during := rootLinks(t); during != before {
		t.Errorf("the machine's own network changed:\n%s\nbefore:\n%s", during, before)
	}
	for _, l := range labs {
		must(t, l.Down(t.Context()))
		assertNothing(t, root, l.Name())
	}
	if after := rootLinks(t); after != before {
		t.Errorf("the machine's own network changed:\n%s\nbefore:\n%s", after, before)
	}
}

func TestUpIsIdempotent(t *testing.T) {
	root := testRoot(t)
	c := Config{Root: root, Sites: []Site{{Name: "solo", Hosts: []Host{{Name: "h", Uplinks: 1}}}}}
	l := New(t, c)
	first, err := l.Status(t.Context())
	must(t, err)
	c.Name = l.Name()
	again, err := Up(t.Context(), c)
	must(t, err)
	second, err := again.Status(t.Context())
	must(t, err)
	if first.PID != second.PID {
		t.Errorf("a second up replaced daemon %d by %d", first.PID, second.PID)
	}
	c.MTU = 9000
	if _, err := Up(t.Context(), c); err == nil {
		t.Error("another configuration was taken for a lab that stands")
	}
	opened, err := Open(root, c.Name)
	must(t, err)
	if err := ping(t, opened, "h", "manager"); err != nil {
		t.Error(err)
	}
	// Namespaces of the name but no state: not ours to take over.
	if _, err := Up(t.Context(), Config{Root: filepath.Join(root, "x"), Name: c.Name}); err == nil {
		t.Error("a second lab of the same name was made under another root")
	}
	// The daemon was killed: up completes the lab again.
	killAndWait(t, first.PID)
	c.MTU = 0
	again, err = Up(t.Context(), c)
	must(t, err)
	if third, err := again.Status(t.Context()); err != nil || third.PID == first.PID {
		t.Errorf("daemon after a kill and up: %d, %v", third.PID, err)
	}
	if _, err := Open(root, "nolab"); !errors.Is(err, ErrNotUp) {
		t.Errorf("Open of no lab: %v, want ErrNotUp", err)
	}
}

func killAndWait(t *testing.T, pid int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	must(t, kill(ctx, pid, func() bool { return true }))
}

func TestDownAfterDaemonWasKilled(t *testing.T) {
	root := testRoot(t)
	before := rootLinks(t)
	l := New(t, Config{Root: root})
	st, err := l.Status(t.Context())
	must(t, err)
	// A process that was started, its child, one that nobody recorded, and a mount.
	cmd := exec.Command("sh", "-c", "sleep 1000 & wait")
	agent, err := l.Start("east-1", "agent", cmd)
	must(t, err)
	reaped := make(chan error, 2)
	go func() { reaped <- cmd.Wait() }()
	n, err := l.Net("west-2")
	must(t, err)
	stray := exec.Command("sleep", "1000")
	must(t, n.Start(stray))
	n.Close()
	go func() { reaped <- stray.Wait() }()
	dir, err := l.NodeDir("east-1")
	must(t, err)
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
	procs, err := l.Processes()
	must(t, err)
	if len(procs) != 2 {
		t.Errorf("recorded processes: %v, want daemon and agent", procs)
	}
	killAndWait(t, st.PID)
	must(t, Down(t.Context(), root, l.Name()))
	for range 2 {
		select {
		case <-reaped:
		case <-time.After(10 * time.Second):
			t.Fatal("a process in the lab lives on")
		}
	}
	assertNothing(t, root, l.Name(), st.PID, agent.PID, stray.Process.Pid)
	must(t, Down(t.Context(), root, l.Name())) // again: nothing to do
	if after := rootLinks(t); after != before {
		t.Errorf("the machine's own network changed:\n%s\nbefore:\n%s", after, before)
	}
}

func TestDownWithoutState(t *testing.T) {
	root := testRoot(t)
	l := New(t, Config{Root: root})
	st, err := l.Status(t.Context())
	must(t, err)
	must(t, os.RemoveAll(l.Dir()))
	must(t, Down(t.Context(), root, l.Name()))
	assertNothing(t, root, l.Name(), st.PID)
}

func TestLabGoesWithItsOwner(t *testing.T) {
	root := testRoot(t)
	owner := exec.Command("sleep", "1000")
	must(t, owner.Start())
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	up := func(name string) (*Lab, Status) {
		l, err := Up(ctx, Config{Name: name, Root: root, Owner: owner.Process.Pid})
		must(t, err)
		t.Cleanup(func() {
			if err := Down(context.Background(), root, name); err != nil {
				t.Error(err)
			}
		})
		st, err := l.Status(ctx)
		must(t, err)
		return l, st
	}
	suffix := strings.ToLower(filepath.Base(filepath.Dir(root)))
	suffix = suffix[max(0, len(suffix)-6):]
	one, oneSt := up("one" + suffix)
	two, twoSt := up("two" + suffix)
	oneFD, err := unix.PidfdOpen(oneSt.PID, 0)
	must(t, err)
	defer unix.Close(oneFD)
	killAndWait(t, twoSt.PID) // the second lab has no daemon to notice
	must(t, owner.Process.Kill())
	_ = owner.Wait() // killed
	must(t, waitExit(ctx, oneSt.PID, oneFD))
	assertNothing(t, root, one.Name())
	gone, err := Sweep(ctx, root)
	must(t, err)
	if len(gone) != 1 || gone[0] != two.Name() {
		t.Errorf("sweep took down %v, want %s", gone, two.Name())
	}
	assertNothing(t, root, two.Name(), twoSt.PID)
}

func TestUpKilledAnywhere(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	root := testRoot(t)
	name := "kill" + strings.ToLower(crand.Text()[:7])
	t.Cleanup(func() {
		if err := Down(context.Background(), root, name); err != nil {
			t.Error(err)
		}
	})
	exe, err := os.Executable()
	must(t, err)
	// How long an undisturbed up takes here and now.
	whole := func() time.Duration {
		start := time.Now()
		l, err := Up(t.Context(), Config{Name: name, Root: root})
		must(t, err)
		took := time.Since(start)
		must(t, l.Down(t.Context()))
		return took
	}()
	for i := range 12 {
		cmd := exec.Command(exe, "lab-up", name, root)
		cmd.Stderr = os.Stderr
		must(t, cmd.Start())
		after := time.Duration(rng.Int64N(int64(whole * 5 / 4)))
		time.Sleep(after) // the point of the kill, not a wait for anything
		must(t, cmd.Process.Kill())
		_ = cmd.Wait() // killed
		if i%3 == 2 {
			// What was left half made can be made whole, or is being removed by a
			// daemon that saw its owner go: then it is made anew.
			must(t, upUntil(t, Config{Name: name, Root: root}))
		}
		must(t, Down(t.Context(), root, name))
		assertNothing(t, root, name)
		if t.Failed() {
			t.Fatalf("killed %v into up", after)
		}
	}
}

// upUntil brings a lab up whose last owner was killed.
func upUntil(t *testing.T, c Config) error {
	l, err := Up(t.Context(), c)
	if err != nil {
		return err
	}
	_, err = l.Exec(t.Context(), "west-1", "true")
	return err
}

func TestFailedUpLeavesNothing(t *testing.T) {
	root := testRoot(t)
	c := Config{Name: "fails" + strings.ToLower(filepath.Base(filepath.Dir(root)))[7:], Root: root}
	c.Name = c.Name[:min(12, len(c.Name))]
	c.Daemon = []string{"/bin/sh", "-c", "echo broken daemon >&2; exit 3"}
	_, err := Up(t.Context(), c)
	if err == nil || !strings.Contains(err.Error(), "broken daemon") {
		t.Errorf("up with a broken daemon: %v, want its words", err)
	}
	assertNothing(t, root, c.Name)
}

func TestCommandsRunOnTheirNode(t *testing.T) {
	l := New(t, Config{Root: testRoot(t), Sites: []Site{{Name: "solo", Hosts: []Host{{Name: "h", Uplinks: 3}}}}})
	out, err := l.Exec(t.Context(), "h", "ip", "-o", "link")
	must(t, err)
	for _, link := range []string{"lo", "mgmt0@", "up0@", "up1@", "up2@"} {
		if !strings.Contains(string(out), ": "+link) {
			t.Errorf("links of h: %s; want %s", out, link)
		}
	}
	if n := strings.Count(string(out), "\n"); n != 5 {
		t.Errorf("h has %d links, want 5", n)
	}
	if _, err := l.Exec(t.Context(), "h", "sh", "-c", "echo words >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "words") {
		t.Errorf("a failing command: %v, want its words", err)
	}
	if _, err := l.Exec(t.Context(), "mars", "true"); err == nil {
		t.Error("a command ran on a node that isn't there")
	}
	must(t, l.Shell(t.Context(), "h", "sh", "-c", `test "$DROVER_LAB/$DROVER_LAB_NODE" = "`+l.Name()+`/h"`))
	cmd := exec.Command("sh", "-c", "echo it logs")
	p, err := l.Start("h", "talker", cmd)
	must(t, err)
	must(t, cmd.Wait())
	log, err := os.ReadFile(filepath.Join(l.Dir(), "talker.log"))
	if err != nil || string(log) != "it logs\n" {
		t.Errorf("log of %v: %q, %v", p, log, err)
	}
	if _, err := l.Start("h", daemonName, exec.Command("true")); err == nil {
		t.Error("the name of a process that runs was taken")
	}
	if _, err := l.Start("h", "../evil", exec.Command("true")); err == nil {
		t.Error("a process name that climbs out was taken")
	}
}
