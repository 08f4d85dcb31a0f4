package vswitch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"drover/internal/hostnet"
	"drover/internal/vswitch/table"
)

// victimEnv has what a victim does: directory, namespace, devices, the step at which it is killed, and what it sets up.
const victimEnv = "DROVER_TEST_VICTIM"

// TestVictim is no test: it is what TestKilled runs and kills.
func TestVictim(t *testing.T) {
	args := strings.Fields(os.Getenv(victimEnv))
	if len(args) != 6 {
		return
	}
	n, err := hostnet.Open(args[1])
	must(t, err)
	p := &pair{}
	for _, s := range args[2:4] {
		dev, err := strconv.Atoi(s)
		must(t, err)
		p.devs = append(p.devs, dev)
	}
	at, err := strconv.Atoi(args[4])
	must(t, err)
	b, steps := miniBuild(100, 1, 0), 0
	b.reached = func(string) error {
		if steps++; steps == at {
			must(t, syscall.Kill(os.Getpid(), syscall.SIGKILL))
			select {}
		}
		return nil
	}
	d, err := openIn(t, n, args[0], b)
	must(t, err)
	if args[5] == "up" {
		p.attach(t, d)
		must(t, d.Apply(t.Context(), p.tables()))
	} else {
		must(t, d.Apply(t.Context(), without(p.tables(), p.devs[1], 1)))
		must(t, d.Detach(p.devs[0]))
	}
	must(t, d.Close())
}

// TestKilled kills a process at each step of setting ports up and of taking them away: a port that has its row has all that belongs to it. It runs
// beside others, since most of its time the kernel waits.
func TestKilled(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"up", "down"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			killAtEachStep(t, what)
		})
	}
}

func killAtEachStep(t *testing.T, what string) {
	n, bpf := testNet(t, "killed-"+what), testBPF(t)
	p := testPair(t, n)
	number := uint32(0)
	for at := 1; ; at++ {
		dir := filepath.Join(bpf, fmt.Sprintf("drover-%s-%d", what, at))
		if what == "down" {
			d, err := openIn(t, n, dir, miniBuild(100, 1, 0))
			must(t, err)
			p.attach(t, d)
			must(t, d.Apply(t.Context(), p.tables()))
			must(t, d.Close())
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestVictim$", "-test.count=1")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %d %d %d %s", victimEnv, dir, n.Name(), p.devs[0], p.devs[1], at, what))
		out, err := cmd.CombinedOutput()
		cancel()
		var exit *exec.ExitError
		killed := errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
		if err != nil && !killed {
			t.Fatalf("%s, step %d: %v\n%s", what, at, err, out)
		}

		d, err := openIn(t, n, dir, miniBuild(100, 1, 0))
		must(t, err)
		got, err := d.Tables()
		must(t, err)
		up := 0
		for i, dev := range p.devs {
			if missing := incomplete(d, got, uint32(dev), i, t); missing != "" {
				t.Errorf("killed at step %d of %s: device %d has a row without %s", at, what, dev, missing)
			}
			if _, ok := got.Ports[uint32(dev)]; ok {
				up++
			}
		}
		if up == 2 {
			if number++; !p.passes(t, number) {
				t.Errorf("killed at step %d of %s: both ports are there and frames don't pass", at, what)
			}
		}
		p.attach(t, d)
		must(t, d.Apply(t.Context(), p.tables()))
		holds(t, d, p.tables())
		if number++; !p.passes(t, number) {
			t.Errorf("killed at step %d of %s, and set up again: frames don't pass", at, what)
		}
		must(t, d.Remove())
		if !killed {
			if want := map[string]int{"up": 2, "down": 0}[what]; up != want {
				t.Errorf("%s undisturbed leaves %d ports, want %d", what, up, want)
			}
			t.Logf("%s: %d steps", what, at-1)
			if at < 15 {
				t.Errorf("%s: only %d steps: the hooks are gone", what, at-1)
			}
			break
		}
	}
}

// incomplete says what a port that has its row lacks.
func incomplete(d *Datapath, got *table.Tables, dev uint32, i int, t *testing.T) string {
	row, ok := got.Ports[dev]
	if !ok {
		return ""
	}
	want := tables(make([]int, 2), 0)
	if _, ok := got.FDB[table.FDBKey{Net: 7, MAC: mac(i)}]; !ok {
		return "its registration"
	}
	if got.Bindings[table.BindingKey{Net: 7, IP: ip(i)}].Ifindex != dev {
		return "its address"
	}
	if got.MACs[table.MACKey{Ifindex: dev, MAC: mac(i + 1000)}] != 1 {
		return "its second MAC"
	}
	if got.Meters[row.Slot] != want.Meters[row.Slot] {
		return "its meter"
	}
	member := false
	for k, m := range got.Members {
		member = member || m.Target == dev && k.Row < got.Networks[7].Members
	}
	if !member {
		return "its place in the flood list"
	}
	for _, out := range []bool{false, true} {
		a, err := d.openLink(pin{int(dev), out})
		must(t, err)
		if a == nil {
			return "a link"
		}
		a.link.Close()
	}
	return ""
}
