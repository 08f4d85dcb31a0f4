package host

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	v1 "drover/api/drover/v1"
)

var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func on(change ...func(*wish)) wish {
	w := wish{held: true, epoch: 3, generation: 7, power: v1.Power_POWER_ON, stopWait: 90 * time.Second}
	for _, c := range change {
		c(&w)
	}
	return w
}

func off(change ...func(*wish)) wish {
	return on(append([]func(*wish){func(w *wish) { w.power = v1.Power_POWER_OFF }}, change...)...)
}

func seen(p processState, change ...func(*sight)) sight {
	s := sight{now: noon, process: p, epoch: 3, ready: true, data: true, gate: true}
	for _, c := range change {
		c(&s)
	}
	return s
}

func crashes(n int, ago time.Duration) func(*sight) {
	return func(s *sight) {
		for range n {
			s.crashes = append(s.crashes, noon.Add(-ago))
		}
	}
}

func TestPlan(t *testing.T) {
	notReady := func(s *sight) { s.ready = false }
	later := func(s *sight) { s.retry = noon.Add(time.Second) }
	links := func(s *sight) { s.links = true }
	unsaved := func(s *sight) { s.unsaved = true }
	undone := func(s *sight) { s.undone = true }
	stopping := func(stage stopStage, ago time.Duration) func(*sight) {
		return func(s *sight) { s.stage, s.stopSince = stage, noon.Add(-ago) }
	}
	for _, c := range []struct {
		name string
		w    wish
		s    sight
		want string
		ph   v1.VMPhase
	}{
		{"make disks first", on(), seen(procNone, notReady), "provision", v1.VMPhase_VM_PHASE_PROVISIONING},
		{"then start", on(), seen(procNone), "start", v1.VMPhase_VM_PHASE_STARTING},
		{"not before it is on disk what for", on(), seen(procNone, unsaved), "wait", v1.VMPhase_VM_PHASE_STARTING},
		{"nothing made before either", on(), seen(procNone, unsaved, notReady), "wait", v1.VMPhase_VM_PHASE_PROVISIONING},
		{"nor when off", off(), seen(procNone, unsaved, notReady), "wait", v1.VMPhase_VM_PHASE_PROVISIONING},
		{"but what is not held ends", on(func(w *wish) { w.held = false }), seen(procRunning, unsaved), "kill,clean", v1.VMPhase_VM_PHASE_STOPPING},
		{"half-way back comes first", on(), seen(procNone, undone), "settle", v1.VMPhase_VM_PHASE_STARTING},
		{"and waits for the next try", off(), seen(procNone, undone, later), "wait+1s", v1.VMPhase_VM_PHASE_OFF},
		{"but is deleted at once", on(func(w *wish) { w.remove = true }), seen(procNone, undone), "wipe", v1.VMPhase_VM_PHASE_DELETING},
		{"not before its turn", on(), seen(procNone, func(s *sight) { s.gate = false }), "wait", v1.VMPhase_VM_PHASE_STARTING},
		{"not before the retry", on(), seen(procNone, later), "wait+1s", v1.VMPhase_VM_PHASE_STARTING},
		{"sweep leftovers before a start", on(), seen(procNone, links), "clean", v1.VMPhase_VM_PHASE_STARTING},
		{"running is well", on(), seen(procRunning), "wait", v1.VMPhase_VM_PHASE_RUNNING},
		{"hot change", on(), seen(procRunning, func(s *sight) { s.hot = true }), "hot", v1.VMPhase_VM_PHASE_RUNNING},
		{"pause", on(func(w *wish) { w.power = v1.Power_POWER_PAUSED }), seen(procRunning), "pause", v1.VMPhase_VM_PHASE_RUNNING},
		{"paused is well", on(func(w *wish) { w.power = v1.Power_POWER_PAUSED }), seen(procPaused), "wait", v1.VMPhase_VM_PHASE_PAUSED},
		{"resume", on(), seen(procPaused), "resume", v1.VMPhase_VM_PHASE_PAUSED},
		{"a start that was cut short", on(), seen(procPrepared), "kill,clean", v1.VMPhase_VM_PHASE_STARTING},

		{"off is well", off(), seen(procNone), "wait", v1.VMPhase_VM_PHASE_OFF},
		{"off still gets its disks", off(), seen(procNone, notReady), "provision", v1.VMPhase_VM_PHASE_PROVISIONING},
		{"merges wait for off", off(), seen(procNone, func(s *sight) { s.compact = true }), "compact", v1.VMPhase_VM_PHASE_OFF},
		{"stop asks first", off(), seen(procRunning), "press-power", v1.VMPhase_VM_PHASE_STOPPING},
		{"a paused guest can't hear", off(), seen(procPaused), "resume,press-power", v1.VMPhase_VM_PHASE_STOPPING},
		{"then waits", off(), seen(procRunning, stopping(stopACPI, 10*time.Second)), "wait+20s", v1.VMPhase_VM_PHASE_STOPPING},
		{"then asks the agent", off(), seen(procRunning, stopping(stopACPI, 30*time.Second)), "ask-agent", v1.VMPhase_VM_PHASE_STOPPING},
		{"then waits again", off(), seen(procRunning, stopping(stopAgent, 30*time.Second)), "wait+1m0s", v1.VMPhase_VM_PHASE_STOPPING},
		{"then cuts the power", off(), seen(procRunning, stopping(stopAgent, 90*time.Second)), "kill,clean", v1.VMPhase_VM_PHASE_STOPPING},
		{"a new grace counts from the same beginning", off(func(w *wish) { w.stopWait = 5 * time.Second }), seen(procRunning, stopping(stopACPI, 10*time.Second)), "kill,clean", v1.VMPhase_VM_PHASE_STOPPING},
		{"force asks nobody", off(func(w *wish) { w.force = true }), seen(procRunning), "kill,clean", v1.VMPhase_VM_PHASE_STOPPING},
		{"it did shut down", off(), seen(procShutdown, links), "kill,clean", v1.VMPhase_VM_PHASE_STOPPING},
		{"it died while stopping", off(), seen(procLost, links), "clean", v1.VMPhase_VM_PHASE_STOPPING},
		{"a template never runs", on(func(w *wish) { w.template = true }), seen(procNone), "wait", v1.VMPhase_VM_PHASE_OFF},

		{"guest off", on(), seen(procShutdown), "kill,clean,halt guest_off", v1.VMPhase_VM_PHASE_STOPPING},
		{"guest off, always on", on(func(w *wish) { w.policy = v1.RestartPolicy_RESTART_POLICY_ALWAYS }), seen(procShutdown), "kill,clean,crash+1s", v1.VMPhase_VM_PHASE_STOPPING},
		{"crash", on(), seen(procLost), "clean,crash+1s", v1.VMPhase_VM_PHASE_STOPPING},
		{"panic", on(), seen(procBroken), "kill,clean,crash+1s", v1.VMPhase_VM_PHASE_STOPPING},
		{"third crash waits longer", on(), seen(procLost, crashes(2, time.Minute)), "clean,crash+4s", v1.VMPhase_VM_PHASE_STOPPING},
		{"old crashes don't count", on(), seen(procLost, crashes(9, time.Hour)), "clean,crash+1s", v1.VMPhase_VM_PHASE_STOPPING},
		{"too many crashes", on(), seen(procLost, crashes(5, time.Minute)), "clean,halt crashed", v1.VMPhase_VM_PHASE_STOPPING},
		{"crash, never again", on(func(w *wish) { w.policy = v1.RestartPolicy_RESTART_POLICY_NEVER }), seen(procLost), "clean,halt crashed", v1.VMPhase_VM_PHASE_STOPPING},
		{"halted stays", on(), seen(procNone, func(s *sight) { s.halt = &halt{Reason: haltCrashed, Generation: 7, Epoch: 3} }), "wait", v1.VMPhase_VM_PHASE_CRASHED},
		{"a new generation tries again", on(), seen(procNone, func(s *sight) { s.halt = &halt{Reason: haltCrashed, Generation: 6, Epoch: 3} }), "start", v1.VMPhase_VM_PHASE_STARTING},
		{"a new epoch tries again", on(), seen(procNone, func(s *sight) { s.halt = &halt{Reason: haltFailed, Generation: 7, Epoch: 2} }), "start", v1.VMPhase_VM_PHASE_STARTING},
		{"failed creation", off(), seen(procNone, notReady, func(s *sight) { s.halt = &halt{Reason: haltFailed, Generation: 7, Epoch: 3} }), "wait", v1.VMPhase_VM_PHASE_FAILED},

		{"disk error", on(), seen(procIOError, func(s *sight) { s.ioNext = noon.Add(2 * time.Second) }), "wait+2s", v1.VMPhase_VM_PHASE_IO_ERROR},
		{"look for room", on(), seen(procIOError, func(s *sight) { s.ioNext = noon }), "mend", v1.VMPhase_VM_PHASE_IO_ERROR},
		{"stop with a disk error", off(), seen(procIOError), "press-power", v1.VMPhase_VM_PHASE_IO_ERROR},

		{"not held", on(func(w *wish) { w.held = false }), seen(procRunning), "kill,clean", v1.VMPhase_VM_PHASE_STOPPING},
		{"not held and not running keeps its data", on(func(w *wish) { w.held = false }), seen(procNone), "wait", v1.VMPhase_VM_PHASE_OFF},
		{"not held makes nothing", on(func(w *wish) { w.held = false }), seen(procNone, notReady), "wait", v1.VMPhase_VM_PHASE_OFF},
		{"another epoch", on(func(w *wish) { w.epoch = 4 }), seen(procRunning), "kill,clean", v1.VMPhase_VM_PHASE_RUNNING},
		{"delete", on(func(w *wish) { w.remove = true }), seen(procRunning), "kill,clean,wipe", v1.VMPhase_VM_PHASE_DELETING},
		{"delete what is off", on(func(w *wish) { w.remove = true }), seen(procNone), "wipe", v1.VMPhase_VM_PHASE_DELETING},
		{"deleted", on(func(w *wish) { w.remove = true }), seen(procNone, func(s *sight) { s.data = false }), "wait", v1.VMPhase_VM_PHASE_DELETING},
		{"delete what is no more held", on(func(w *wish) { w.remove, w.held = true, false }), seen(procNone), "wipe", v1.VMPhase_VM_PHASE_DELETING},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			if got := stepText(plan(c.w, c.s)); got != c.want {
				t.Errorf("plan: %s, want %s", got, c.want)
			}
			if got := phase(c.w, c.s); got != c.ph {
				t.Errorf("phase: %s, want %s", got, c.ph)
			}
		})
	}
}

func stepText(steps []step) string {
	var out []string
	for _, s := range steps {
		text := s.do.String()
		if !s.until.IsZero() {
			text += fmt.Sprint("+", s.until.Sub(noon))
		}
		if s.halt != "" {
			text += " " + string(s.halt)
		}
		out = append(out, text)
	}
	return strings.Join(out, ",")
}

// What must hold for any wish and any sight.
func TestPlanNever(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := wish{
			held: rapid.Bool().Draw(t, "held"), remove: rapid.Bool().Draw(t, "remove"), epoch: rapid.Int64Range(1, 2).Draw(t, "epoch"),
			generation: rapid.Int64Range(1, 2).Draw(t, "generation"), power: v1.Power(rapid.IntRange(0, 3).Draw(t, "power")),
			template: rapid.Bool().Draw(t, "template"), policy: v1.RestartPolicy(rapid.IntRange(0, 3).Draw(t, "policy")),
			force: rapid.Bool().Draw(t, "force"), stopWait: time.Duration(rapid.IntRange(0, 100).Draw(t, "stopWait")) * time.Second,
		}
		s := sight{
			now: noon, process: processState(rapid.IntRange(0, int(procLost)).Draw(t, "process")), epoch: rapid.Int64Range(1, 2).Draw(t, "runs"),
			ready: rapid.Bool().Draw(t, "ready"), data: rapid.Bool().Draw(t, "data"), links: rapid.Bool().Draw(t, "links"),
			hot: rapid.Bool().Draw(t, "hot"), gate: rapid.Bool().Draw(t, "gate"), compact: rapid.Bool().Draw(t, "compact"),
			stage: stopStage(rapid.IntRange(0, 2).Draw(t, "stage")), stopSince: noon.Add(-time.Duration(rapid.IntRange(0, 100).Draw(t, "since")) * time.Second),
			retry:  noon.Add(time.Duration(rapid.IntRange(-1, 1).Draw(t, "retry")) * time.Second),
			ioNext: noon.Add(time.Duration(rapid.IntRange(-1, 1).Draw(t, "io")) * time.Second),
		}
		steps := plan(w, s)
		does := func(a action) bool { return slices.ContainsFunc(steps, func(s step) bool { return s.do == a }) }
		if len(steps) == 0 {
			t.Fatal("no step, not even to wait")
		}
		if does(doStart) && (!w.held || w.remove || w.template || s.process != procNone || s.links || w.power == v1.Power_POWER_OFF) {
			t.Fatalf("starts what must not run: %+v %+v", w, s)
		}
		if does(doWipe) && !w.remove {
			t.Fatalf("removes data that nobody deleted: %+v", w)
		}
		alive := s.process != procNone && s.process != procLost
		if alive && (!w.held || s.epoch != w.epoch) && !does(doKill) && !(w.remove && s.now.Before(s.retry)) {
			t.Fatalf("lets run what it does not hold: %+v %+v", w, s)
		}
		for i, st := range steps {
			if st.do == doWait && i != len(steps)-1 {
				t.Fatalf("goes on after waiting: %s", stepText(steps))
			}
			if st.do == doWait && !st.until.IsZero() && !st.until.After(s.now) {
				t.Fatalf("waits for what is over: %s", stepText(steps))
			}
		}
	})
}
