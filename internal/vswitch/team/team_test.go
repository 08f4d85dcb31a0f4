package team

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var start = time.Unix(1_700_000_000, 0)

func up(names ...string) map[string]Health {
	m := map[string]Health{}
	for _, n := range names {
		m[n] = Health{Up: true}
	}
	return m
}

func TestTeam(t *testing.T) {
	type step struct {
		after  time.Duration
		up     []string
		active []string
	}
	abc := []string{"a", "b", "c"}
	tests := []struct {
		name  string
		cfg   Config
		steps []step
	}{
		{"all that are up are active", Config{Uplinks: abc}, []step{{0, abc, abc}, {1, []string{"a", "c"}, []string{"a", "c"}}}},
		{"back after the delay only", Config{Uplinks: abc}, []step{
			{0, abc, abc}, {time.Second, []string{"a", "b"}, []string{"a", "b"}}, {time.Second, abc, []string{"a", "b"}},
			{4999 * time.Millisecond, abc, []string{"a", "b"}}, {time.Millisecond, abc, abc}}},
		{"flapping starts the delay again", Config{Uplinks: abc[:2]}, []step{
			{0, abc[:2], abc[:2]}, {time.Second, []string{"a"}, []string{"a"}}, {time.Second, abc[:2], []string{"a"}},
			{4 * time.Second, []string{"a"}, []string{"a"}}, {time.Second, abc[:2], []string{"a"}}, {4 * time.Second, abc[:2], []string{"a"}}, {time.Second, abc[:2], abc[:2]}}},
		{"nothing else is up", Config{Uplinks: abc[:2]}, []step{
			{0, abc[:2], abc[:2]}, {time.Second, nil, nil}, {time.Second, []string{"b"}, []string{"b"}}}},
		{"the last goes while the other waits", Config{Uplinks: abc[:2]}, []step{
			{0, abc[:2], abc[:2]}, {1, []string{"a"}, []string{"a"}}, {1, abc[:2], []string{"a"}}, {1, []string{"b"}, []string{"b"}}}},
		{"failover", Config{Uplinks: abc, Policy: PolicyFailover}, []step{
			{0, abc, []string{"a"}}, {1, []string{"b", "c"}, []string{"b"}}, {1, abc, []string{"b"}}, {5 * time.Second, abc, []string{"a"}}}},
		{"no failback", Config{Uplinks: abc, Policy: PolicyFailover, NoFailback: true}, []step{
			{0, abc, []string{"a"}}, {1, []string{"b", "c"}, []string{"b"}}, {time.Hour, abc, []string{"b"}}, {1, []string{"a", "c"}, []string{"a"}}}},
		{"no failback, all active", Config{Uplinks: abc, NoFailback: true}, []step{
			{0, abc, abc}, {1, []string{"b", "c"}, []string{"b", "c"}}, {time.Hour, abc, []string{"b", "c"}}, {1, []string{"a", "c"}, []string{"a", "c"}}}},
		{"standby", Config{Uplinks: []string{"a"}, Standby: []string{"b", "c"}}, []step{
			{0, abc, []string{"a"}}, {1, []string{"b", "c"}, []string{"b", "c"}}, {1, abc, []string{"b", "c"}}, {5 * time.Second, abc, []string{"a"}}}},
		{"standby that serves stays without failback", Config{Uplinks: []string{"a"}, Standby: []string{"b"}, NoFailback: true}, []step{
			{0, abc, []string{"a"}}, {1, []string{"b"}, []string{"b"}}, {time.Hour, []string{"a", "b"}, []string{"b"}}, {1, []string{"a"}, []string{"a"}}}},
		{"a device that comes to be later is no failback", Config{Uplinks: abc[:2]}, []step{{0, []string{"a"}, []string{"a"}}, {1, abc[:2], abc[:2]}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.cfg.Validate(); err != nil {
				t.Fatal(err)
			}
			team, now := New(tt.cfg, Buckets{}), start
			for i, s := range tt.steps {
				now = now.Add(s.after)
				team.Update(up(s.up...), now)
				if got := team.View().Active(); !slices.Equal(got, s.active) {
					t.Fatalf("step %d: active %v, want %v; %+v", i, got, s.active, team.View().Uplinks)
				}
				for _, u := range team.View().Uplinks {
					if u.Active == (u.Reason != "") {
						t.Errorf("step %d: %+v: a reason says why an uplink is not active", i, u)
					}
				}
				checkShares(t, team.View())
			}
		})
	}
}

type fataler interface {
	Helper()
	Fatalf(string, ...any)
}

func checkShares(t fataler, v View) {
	t.Helper()
	count := map[string]int{}
	for _, u := range v.Buckets {
		count[u]++
	}
	active := v.Active()
	if len(active) == 0 {
		if v.Buckets != (Buckets{}) {
			t.Fatalf("buckets without an active uplink: %v", v.Buckets)
		}
		return
	}
	lo, hi := len(v.Buckets), 0
	for _, u := range active {
		lo, hi = min(lo, count[u]), max(hi, count[u])
	}
	if len(count) != len(active) || hi-lo > 1 {
		t.Fatalf("shares %v of %v: want all active, within one", count, active)
	}
}

func TestNextIsWhenItComesBack(t *testing.T) {
	team := New(Config{Uplinks: []string{"a", "b"}, FailbackDelay: 7 * time.Second}, Buckets{})
	team.Update(up("a", "b"), start)
	if at, ok := team.Next(); ok {
		t.Errorf("Next = %v with nothing to wait for", at)
	}
	team.Update(up("a"), start.Add(1))
	team.Update(up("a", "b"), start.Add(2))
	at, ok := team.Next()
	if want := start.Add(2 + 7*time.Second); !ok || !at.Equal(want) {
		t.Fatalf("Next = %v, %v; want %v", at, ok, want)
	}
	if !team.Update(up("a", "b"), at) || len(team.View().Active()) != 2 {
		t.Errorf("at Next nothing changed: %+v", team.View().Uplinks)
	}
}

func TestResume(t *testing.T) {
	cfg := Config{Uplinks: []string{"a", "b", "c"}, NoFailback: true}
	team := New(cfg, Buckets{})
	team.Update(up("a", "b", "c"), start)
	team.Update(up("b", "c"), start.Add(1))
	team.Update(up("a", "b", "c"), start.Add(2))
	again := New(cfg, team.View().Buckets)
	again.Update(up("a", "b", "c"), start.Add(3))
	if got, want := again.View(), team.View(); got.Buckets != want.Buckets || !slices.Equal(got.Active(), want.Active()) {
		t.Errorf("after a restart %v with %v, before %v with %v", got.Active(), got.Buckets, want.Active(), want.Buckets)
	}
	again.Update(up("a", "b"), start.Add(4))
	if got := again.View().Active(); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("c failed: active %v, want a and b", got)
	}
}

func TestValidate(t *testing.T) {
	for _, bad := range []Config{{Uplinks: []string{"a", "a"}}, {Uplinks: []string{"a"}, Standby: []string{"a"}}, {Uplinks: []string{""}}, {FailbackDelay: -1}} {
		if bad.Validate() == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

func TestBucketIsForEver(t *testing.T) {
	for port, want := range map[string]uint32{"web/net0": 32, "db/net0": 54} {
		if got := Bucket(port); got != want {
			t.Errorf("Bucket(%s) = %d, want %d", port, got, want)
		}
	}
	used := map[uint32]int{}
	for i := range 6400 {
		used[Bucket(fmt.Sprintf("vm-%d/net0", i))]++
	}
	for b := range uint32(64) {
		if used[b] < 50 || used[b] > 160 {
			t.Errorf("bucket %d has %d of 6400 ports", b, used[b])
		}
	}
}

// Whatever happens in whatever order: shares are even, the buckets of uplinks that stay active don't move but to one that joins, and what came
// back is not used too early.
func TestProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(t, "uplinks")
		var names []string
		for i := range n {
			names = append(names, fmt.Sprintf("eth%d", i))
		}
		cut := rapid.IntRange(1, n).Draw(t, "standby from")
		cfg := Config{Uplinks: names[:cut], Standby: names[cut:], Policy: Policy(rapid.IntRange(0, 3).Draw(t, "policy")), NoFailback: rapid.Bool().Draw(t, "no failback")}
		team, twin, now := New(cfg, Buckets{}), New(cfg, Buckets{}), start
		downAt := map[string]bool{}
		backAt := map[string]time.Time{}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 4000).Draw(t, "ms")) * time.Millisecond)
			health := map[string]Health{}
			for _, u := range names {
				h := Health{Up: rapid.IntRange(0, 3).Draw(t, u) > 0}
				health[u] = h
				if !h.Up {
					downAt[u] = true
				} else if downAt[u] {
					downAt[u], backAt[u] = false, now
				}
			}
			before := team.View()
			changed := team.Update(health, now)
			twin.Update(health, now)
			v := team.View()
			if changed == same(before, v) {
				t.Fatalf("Update said changed %v", changed)
			}
			if !same(v, twin.View()) {
				t.Fatalf("two teams with the same inputs differ: %+v, %+v", v, twin.View())
			}
			checkShares(t, v)
			active, was := v.Active(), before.Active()
			joined := slices.ContainsFunc(active, func(u string) bool { return !slices.Contains(was, u) })
			for i, u := range before.Buckets {
				if v.Buckets[i] == u || !slices.Contains(active, u) {
					continue
				}
				if !joined {
					t.Fatalf("bucket %d moved from %s, which is still active, to %s; active %v then %v", i, u, v.Buckets[i], was, active)
				}
				if slices.Contains(was, v.Buckets[i]) && len(was) <= len(active) {
					t.Fatalf("bucket %d moved between %s and %s, which were both active before and after", i, u, v.Buckets[i])
				}
			}
			anyUp := false
			for _, h := range health {
				anyUp = anyUp || h.Up
			}
			if anyUp != (len(active) > 0) {
				t.Fatalf("up: %v, active: %v", health, active)
			}
			stayed := slices.ContainsFunc(was, func(u string) bool { return health[u].Up && slices.Contains(active, u) })
			for _, u := range active {
				if !health[u].Up {
					t.Fatalf("%s is active and down", u)
				}
				back, was := backAt[u], slices.Contains(was, u)
				if !was && stayed && !cfg.NoFailback && !back.IsZero() && now.Sub(back) < DefaultFailback && before.index(u) >= 0 && !before.eligibleBefore(u, team) {
					t.Fatalf("%s came back %v ago and is used already", u, now.Sub(back))
				}
			}
		}
	})
}

func (v View) index(name string) int {
	return slices.IndexFunc(v.Uplinks, func(u Uplink) bool { return u.Name == name })
}

// eligibleBefore: one that came back while nothing else was up serves at once and counts as good from then on.
func (v View) eligibleBefore(name string, t *Team) bool {
	r := v.Uplinks[v.index(name)].Reason
	return r == "one that is preferred is up" || r == "it stands by"
}
