package e2e

import (
	"context"
	"crypto/rand"
	mrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"drover/internal/lab"
)

var labHosts = []string{"east-1", "east-2", "west-1", "west-2"}

// machine is what of this machine a lab must not change: links, addresses and routes of its own network.
func machine(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, args := range [][]string{{"-o", "link"}, {"-o", "address"}, {"route", "show", "table", "all"}, {"rule"}} {
		out, err := exec.Command("ip", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
		all.Write(out)
	}
	return all.String()
}

// cli runs the program as a person would.
func cli(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, drover[0], append(drover[1:], args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("drover %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// labRoot is a directory for labs that goes with the test, and a name for one.
func labRoot(t *testing.T) (root, name string) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "lab")
	if err != nil {
		t.Fatal(err)
	}
	root, name = filepath.Join(dir, "r"), "c"+strings.ToLower(rand.Text()[:9])
	t.Cleanup(func() {
		if err := lab.Down(context.Background(), root, name); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return root, name
}

func nothingOf(t *testing.T, root, name string) {
	t.Helper()
	left, err := lab.Left(root, name, labHosts)
	if err != nil {
		t.Fatal(err)
	}
	if len(left) > 0 {
		t.Fatalf("left over:\n%s", strings.Join(left, "\n"))
	}
}

// The commands of the lab, as a person uses them.
func TestLabCommands(t *testing.T) {
	t.Parallel()
	before := machine(t)
	root, name := labRoot(t)
	at := []string{"--root", root, "--name", name}
	run := func(args ...string) string {
		return cli(t, append(append([]string{"lab", args[0]}, at...), args[1:]...)...)
	}
	up := run("up", "--delay", "5ms")
	for _, want := range append([]string{"ready", "east → west", "5ms each way", "DROVER_SOCKET="}, labHosts...) {
		if !strings.Contains(up, want) {
			t.Errorf("up says %s; want %q in it", up, want)
		}
	}
	socket := strings.TrimSpace(run("socket"))
	if hosts := cli(t, "--socket", socket, "host", "list", "-o", "name"); strings.Count(hosts, "\n") != 4 {
		t.Errorf("hosts by the manager's socket: %q", hosts)
	}
	run("wan", "--cut")
	if got := run("status"); !strings.Contains(got, "cut") {
		t.Errorf("status of a cut WAN: %s", got)
	}
	run("wan", "--mend", "--bandwidth", "50M")
	if got := run("wan"); !strings.Contains(got, "50 Mbit/s") || strings.Contains(got, "cut") {
		t.Errorf("wan: %s", got)
	}
	run("restart", "manager")
	run("restart", "west-1", "--kill")
	if got := run("exec", "west-1", "cat", "/proc/self/comm"); strings.TrimSpace(got) != "cat" {
		t.Errorf("exec: %q", got)
	}
	if got := run("list"); strings.TrimSpace(got) != name {
		t.Errorf("list: %q", got)
	}
	again := time.Now()
	run("up")
	if took := time.Since(again); took > 10*time.Second {
		t.Errorf("up of a lab that stands took %v", took)
	}
	run("down")
	nothingOf(t, root, name)
	run("down") // again: nothing to do
	if after := machine(t); after != before {
		t.Errorf("the machine's own network changed:\n%s\nbefore:\n%s", after, before)
	}
}

// A lab whose processes were all killed goes down with the VMs that run on.
func TestDownAfterKills(t *testing.T) {
	t.Parallel()
	before := machine(t)
	root, name := labRoot(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	f, err := lab.UpFleet(ctx, lab.FleetConfig{Config: lab.Config{Root: root, Name: name}, Drover: drover})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := &rig{Fleet: f, t: t, ctx: t.Context()}
	r.create("web", guest(r.tiny(false)))
	r.running("web")
	procs, err := f.Processes()
	r.must(err)
	if len(procs) != 6 {
		t.Fatalf("processes of the lab: %v; want manager, four agents and the daemon", procs)
	}
	for _, p := range procs {
		r.must(f.Kill(ctx, p.Name))
	}
	if q, err := f.QEMUs(); err != nil || len(q) != 1 {
		t.Fatalf("QEMUs after all else was killed: %v %v", q, err)
	}
	r.must(lab.Down(ctx, root, name))
	nothingOf(t, root, name)
	if after := machine(t); after != before {
		t.Errorf("the machine's own network changed:\n%s\nbefore:\n%s", after, before)
	}
}

// "drover lab up" is killed somewhere: down leaves nothing, and up makes it whole.
func TestLabUpKilled(t *testing.T) {
	t.Parallel()
	root, name := labRoot(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := mrand.New(mrand.NewPCG(seed, 0))
	up := append(append([]string{}, drover...), "lab", "up", "--root", root, "--name", name)
	began := time.Now()
	cli(t, up[len(drover):]...)
	whole := time.Since(began)
	cli(t, "lab", "down", "--root", root, "--name", name)
	for i := range 4 {
		cmd := exec.Command(up[0], up[1:]...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		after := time.Duration(rng.Int64N(int64(whole)))
		time.Sleep(after) // the point of the kill, not a wait for anything
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // killed
		if i%2 == 1 {
			if got := cli(t, up[len(drover):]...); strings.Count(got, "ready") < 5 {
				t.Errorf("up after one that was killed after %v: %s", after, got)
			}
		}
		cli(t, "lab", "down", "--root", root, "--name", name)
		nothingOf(t, root, name)
	}
}
