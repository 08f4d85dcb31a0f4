package policy

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

func nightly(t testing.TB) Policy {
	return Policy{Name: "p", Schedules: []Schedule{schedule(t, "daily 22:00")}, Retries: 2, RetryDelay: 5 * time.Minute, Repository: "r"}
}

func TestDue(t *testing.T) {
	u := time.UTC
	at := func(s string) time.Time { return when(t, s, u) }
	night := nightly(t)
	windowed := night
	w, _ := ParseWindow("23:00-05:00")
	windowed.Windows = []Window{w}
	rpo := Policy{Name: "p", RPO: 10 * time.Hour, Retries: 2}
	short := night
	short.CatchUp = time.Hour
	paused := night
	paused.Paused = true
	old := at("2026-11-01 00:00")
	for _, c := range []struct {
		name   string
		p      Policy
		v      VM
		now    string
		at     string // "": none
		reason string
	}{
		{"on time", night, VM{Covered: old, Slot: at("2026-11-21 22:00")}, "2026-11-22 22:00", "2026-11-22 22:00", "schedule daily 22:00"},
		{"not yet", night, VM{Covered: old, Slot: at("2026-11-21 22:00")}, "2026-11-22 21:00", "2026-11-22 22:00", "schedule daily 22:00"},
		{"begun already", night, VM{Covered: old, Slot: at("2026-11-22 22:00")}, "2026-11-22 22:01", "2026-11-23 22:00", "schedule"},
		{"runs", night, VM{Covered: old, Running: true}, "2026-11-22 22:01", "", ""},
		{"new since", night, VM{Covered: at("2026-11-22 22:30")}, "2026-11-22 23:00", "2026-11-23 22:00", "schedule"},
		{"missed but too long ago", short, VM{Covered: old, Slot: at("2026-11-20 22:00")}, "2026-11-22 12:00", "2026-11-22 22:00", "schedule"},
		{"window", windowed, VM{Covered: old, Slot: at("2026-11-21 22:00")}, "2026-11-22 22:10", "2026-11-22 23:00", "schedule"},
		{"retry", night, VM{Covered: old, Slot: at("2026-11-22 22:00"), Failures: 1, Retry: at("2026-11-22 22:20")}, "2026-11-22 22:10", "2026-11-22 22:20", "retry 1 of 2"},
		{"given up", night, VM{Covered: old, Slot: at("2026-11-22 22:00"), Failures: 3, Retry: at("2026-11-22 22:20")}, "2026-11-22 22:30", "2026-11-23 22:00", "schedule"},
		{"paused", paused, VM{Covered: old}, "2026-11-22 22:00", "", ""},
		{"by hand though paused", paused, VM{Covered: old, Wanted: at("2026-11-22 10:00")}, "2026-11-22 10:01", "2026-11-22 10:01", "by hand"},
		{"rpo without point", rpo, VM{Covered: at("2026-11-22 10:00")}, "2026-11-22 10:00", "2026-11-22 10:00", "no point"},
		{"rpo", rpo, VM{Covered: old, Slot: old, Point: at("2026-11-22 10:00")}, "2026-11-22 12:00", "2026-11-22 18:00", "RPO 10 hours"},
		{"rpo overdue", rpo, VM{Covered: old, Slot: old, Point: at("2026-11-22 10:00")}, "2026-11-22 19:00", "2026-11-22 19:00", "RPO"},
		{"rpo given up", rpo, VM{Covered: old, Slot: at("2026-11-22 18:00"), Failures: 3, Point: at("2026-11-22 10:00")}, "2026-11-22 19:00", "2026-11-23 02:00", "RPO"},
	} {
		r, ok := c.p.Next(c.v, at(c.now))
		got := ""
		if ok {
			got = r.At.Format("2006-01-02 15:04")
		}
		if got != c.at || !strings.Contains(r.Reason, c.reason) {
			t.Errorf("%s: %q because %q, want %q because %q", c.name, got, r.Reason, c.at, c.reason)
		}
	}
}

// What was missed while the manager was away begins spread out, each once.
func TestMissedIsSpread(t *testing.T) {
	p := nightly(t)
	p.Up = when(t, "2026-11-22 23:30", time.UTC)
	minutes := map[int]bool{}
	for i := range 200 {
		v := VM{Name: fmt.Sprint("vm", i), Covered: when(t, "2026-11-01 00:00", time.UTC), Slot: when(t, "2026-11-21 22:00", time.UTC)}
		r, ok := p.Next(v, p.Up)
		if !ok || r.At.Before(p.Up) || r.At.After(p.Up.Add(Spread)) || r.Reason != "missed at 2026-11-22 22:00" {
			t.Fatalf("%v %+v", ok, r)
		}
		minutes[int(r.At.Sub(p.Up)/time.Minute)] = true
		v.Slot = r.Slot
		if r, _ := p.Next(v, r.At); r.At.Format("2006-01-02 15:04") != "2026-11-23 22:00" {
			t.Fatalf("again at %v", r.At)
		}
	}
	if len(minutes) < 5 {
		t.Errorf("200 runs begin in %d of 5 minutes", len(minutes))
	}
}

func TestDelay(t *testing.T) {
	p := Policy{RetryDelay: 5 * time.Minute}
	for i, want := range []time.Duration{5 * time.Minute, 5 * time.Minute, 10 * time.Minute, 20 * time.Minute} {
		if got := p.Delay(i); got != want {
			t.Errorf("after %d failures %v, want %v", i, got, want)
		}
	}
	if got := p.Delay(1000); got != 24*time.Hour {
		t.Errorf("after 1000 failures %v", got)
	}
}

// In whatever world, a plan keeps all bounds, begins nothing twice, and passes over nobody that would still fit.
func TestPlanKeepsBounds(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		now := time.Date(2026, 11, 22, 22, 0, 0, 0, time.UTC)
		b := Bounds{Host: rnd.IntN(4), Datastore: rnd.IntN(4), Repository: map[string]int{"r0": rnd.IntN(5), "r1": rnd.IntN(5)}}
		var policies []*Policy
		for i := range 3 {
			policies = append(policies, &Policy{Name: fmt.Sprint("p", i), Priority: rnd.IntN(3), Parallel: rnd.IntN(5), PerHost: rnd.IntN(3), Repository: fmt.Sprint("r", rnd.IntN(2))})
		}
		var all []Candidate
		for i := range rnd.IntN(40) {
			at := now.Add(time.Duration(rnd.IntN(20)-15) * time.Minute)
			all = append(all, Candidate{Policy: policies[rnd.IntN(3)], Run: Run{At: at, Slot: at}, VM: VM{Name: fmt.Sprint("vm", i/2), Host: fmt.Sprint("h", i/2%3), Datastores: []string{fmt.Sprint("d", i/2%4)}}})
		}
		load := &Load{}
		load.Add(Active{VM: "other", Host: "h0", Repository: "r0", Datastores: []string{"d0"}})
		start, wait := Plan(all, load, b, now)
		count := map[string]int{"host h0": 1, "repository r0": 1, "datastore d0": 1}
		vms := map[string]bool{}
		lowest := 99
		for _, c := range start {
			if c.Run.At.After(now) || vms[c.VM.Name] {
				t.Fatalf("seed %d: %+v is begun too early or twice", seed, c)
			}
			vms[c.VM.Name] = true
			lowest = min(lowest, c.Policy.Priority)
			for _, k := range []string{"policy " + c.Policy.Name, "policy host " + c.Policy.Name + c.VM.Host, "host " + c.VM.Host, "repository " + c.Policy.Repository, "datastore " + c.VM.Datastores[0]} {
				count[k]++
			}
		}
		for _, c := range start {
			for k, bound := range map[string]int{
				"policy " + c.Policy.Name: c.Policy.Parallel, "policy host " + c.Policy.Name + c.VM.Host: c.Policy.PerHost, "host " + c.VM.Host: b.Host,
				"repository " + c.Policy.Repository: b.Repository[c.Policy.Repository], "datastore " + c.VM.Datastores[0]: b.Datastore,
			} {
				if bound > 0 && count[k] > bound {
					t.Fatalf("seed %d: %d run of %s, bound is %d", seed, count[k], k, bound)
				}
			}
		}
		due := 0
		for _, c := range all {
			if !c.Run.At.After(now) {
				due++
				if load.refuses(c, b) == "" {
					t.Fatalf("seed %d: %+v could run and does not", seed, c)
				}
			}
		}
		if len(wait) > due-len(start) {
			t.Fatalf("seed %d: %d are due, %d begin, %d wait", seed, due, len(start), len(wait))
		}
	}
}

func TestPriority(t *testing.T) {
	now := time.Date(2026, 11, 22, 22, 0, 0, 0, time.UTC)
	low, high := &Policy{Name: "low"}, &Policy{Name: "high", Priority: 5}
	start, wait := Plan([]Candidate{
		{low, VM{Name: "a", Host: "h"}, Run{At: now.Add(-time.Hour)}}, {high, VM{Name: "b", Host: "h"}, Run{At: now}}, {low, VM{Name: "c", Host: "h"}, Run{At: now.Add(-2 * time.Hour)}},
	}, &Load{}, Bounds{Host: 2}, now)
	if len(start) != 2 || start[0].VM.Name != "b" || start[1].VM.Name != "c" || !strings.Contains(wait["low/a"], "host h") {
		t.Errorf("begin %v, wait %v", start, wait)
	}
}

func TestJudge(t *testing.T) {
	at := func(s string) time.Time { return when(t, s, time.UTC) }
	night, rpo := nightly(t), Policy{RPO: 4 * time.Hour}
	old := at("2026-11-01 00:00")
	for _, c := range []struct {
		name string
		p    Policy
		f    Facts
		want State
		word string
	}{
		{"fresh", night, Facts{Newest: at("2026-11-21 22:05"), Covered: old}, Protected, ""},
		{"none", night, Facts{Covered: old}, AtRisk, "no restore point"},
		{"one night late", night, Facts{Newest: at("2026-11-20 22:05"), Covered: old}, Late, "one was due at 2026-11-21 22:00"},
		{"two nights late", night, Facts{Newest: at("2026-11-19 22:05"), Covered: old}, AtRisk, "one was due"},
		{"came under it today", night, Facts{Newest: at("2026-11-10 22:05"), Covered: at("2026-11-22 10:00")}, Protected, ""},
		{"test failed", night, Facts{Newest: at("2026-11-21 22:05"), Covered: old, TestFailed: true}, AtRisk, "boot test"},
		{"rpo", rpo, Facts{Newest: at("2026-11-22 09:00"), Covered: old}, Protected, ""},
		{"rpo late", rpo, Facts{Newest: at("2026-11-22 07:00"), Covered: old, Running: true}, Late, "under way"},
		{"rpo at risk", rpo, Facts{Newest: at("2026-11-22 03:00"), Covered: old}, AtRisk, "4 hours are wanted"},
		{"by hand only", Policy{}, Facts{Newest: old, Covered: old}, Protected, ""},
	} {
		got, why := c.p.Judge(c.f, at("2026-11-22 12:00"))
		if got != c.want || !strings.Contains(why, c.word) {
			t.Errorf("%s: %v, %q; want %v, %q", c.name, got, why, c.want, c.word)
		}
	}
}

func TestRuns(t *testing.T) {
	p := nightly(t)
	now := when(t, "2026-11-22 12:00", time.UTC)
	list := p.Runs(VM{Covered: now}, now, now.Add(72*time.Hour))
	if len(list) != 3 || list[2].At.Format("2006-01-02 15:04") != "2026-11-24 22:00" {
		t.Errorf("%v", list)
	}
	p.Schedules, p.RPO = nil, 10*time.Hour
	if list = p.Runs(VM{Covered: now}, now, now.Add(24*time.Hour)); len(list) != 4 { // now, and every 8 hours
		t.Errorf("%v", list)
	}
}
