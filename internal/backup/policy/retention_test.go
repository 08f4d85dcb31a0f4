package policy

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

func every(d time.Duration, n int, last time.Time) (list []Point) {
	for i := range n {
		list = append(list, Point{ID: fmt.Sprint(i), Time: last.Add(-time.Duration(i) * d)})
	}
	return list
}

func keptOf(list []Verdict) (ids []string) {
	for _, v := range list {
		if v.Kept {
			ids = append(ids, v.ID)
		}
	}
	return ids
}

func TestRetention(t *testing.T) {
	last := time.Date(2026, 11, 22, 22, 0, 0, 0, time.UTC) // a Sunday: the last of its week
	day := 24 * time.Hour
	for _, c := range []struct {
		name   string
		r      Retention
		points []Point
		want   string
	}{
		{"last", Retention{Last: 3}, every(day, 10, last), "0 1 2"},
		{"none set: the default", Retention{}, every(day, 40, last), "0 1 2 3 4 5 6 7 14 21"},
		{"daily of hourly points", Retention{Daily: 2}, every(time.Hour, 60, last), "0 23"},
		{"hourly", Retention{Hourly: 3}, every(20*time.Minute, 12, last), "0 1 4"},
		{"weekly", Retention{Weekly: 3}, every(day, 30, last), "0 7 14"},
		{"monthly", Retention{Monthly: 2}, every(day, 60, last), "0 22"},
		{"yearly", Retention{Yearly: 2}, every(100*day, 6, last), "0 4"},
		{"within", Retention{Within: 3 * day}, every(day, 10, last), "0 1 2"},
		{"a pause loses nothing", Retention{Daily: 2}, every(30*day, 3, last), "0 1"},
		{"kept by hand", Retention{Last: 1}, append(every(day, 3, last), Point{ID: "k", Time: last.Add(-90 * day), Keep: true}), "0 k"},
		{"damaged stands for nothing", Retention{Last: 1, Daily: 1}, []Point{{ID: "bad", Time: last, Damaged: true}, {ID: "good", Time: last.Add(-day)}}, "good"},
		{"only damaged ones", Retention{Last: 1}, []Point{{ID: "bad", Time: last, Damaged: true}, {ID: "worse", Time: last.Add(-day), Damaged: true}}, "bad"},
		{"within, all too old", Retention{Within: day}, every(day, 3, last.Add(-90*day)), "0"},
	} {
		got := strings.Join(keptOf(c.r.Choose(c.points, last, true)), " ")
		if got != c.want {
			t.Errorf("%s: keeps %q, want %q", c.name, got, c.want)
		}
	}
}

func TestRetentionReasons(t *testing.T) {
	last := time.Date(2026, 11, 22, 22, 0, 0, 0, time.UTC)
	list := Retention{Last: 1, Daily: 2, Weekly: 2}.Choose(every(12*time.Hour, 6, last), last, true)
	for i, want := range []string{"last 1 of 1; daily 2026-11-22, 1 of 2; weekly 2026-W47, 1 of 2", "a newer point stands for 2026-11-22", "daily 2026-11-21, 2 of 2", "a newer point stands for 2026-11-21", "2026-11-20 is before the last 2 of rule daily"} {
		if !strings.Contains(list[i].Reason, want) {
			t.Errorf("point %d: %q, want %q", i, list[i].Reason, want)
		}
	}
}

// Whatever the rules and the points: what must stay does, more rules keep no less, pruning twice prunes no more, and the order of the points is of no matter.
func TestRetentionProperties(t *testing.T) {
	now := time.Date(2026, 11, 22, 22, 0, 0, 0, time.UTC)
	for seed := range uint64(500) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		r := Retention{Last: rnd.IntN(4), Hourly: rnd.IntN(4), Daily: rnd.IntN(5), Weekly: rnd.IntN(4), Monthly: rnd.IntN(3), Yearly: rnd.IntN(3), Within: time.Duration(rnd.IntN(3)) * 36 * time.Hour}
		var points []Point
		for i := range rnd.IntN(60) {
			points = append(points, Point{ID: fmt.Sprint(i), Time: now.Add(-time.Duration(rnd.IntN(20_000)) * time.Hour / 4), Keep: rnd.IntN(20) == 0, Damaged: rnd.IntN(10) == 0})
		}
		list := r.Choose(points, now, true)
		kept := map[string]bool{}
		var left []Point
		whole, anyWhole := 0, false
		for _, v := range list {
			if v.Reason == "" {
				t.Fatalf("seed %d: %s has no reason", seed, v.ID)
			}
			if v.Keep && !v.Kept {
				t.Fatalf("seed %d: a point that is kept by hand goes", seed)
			}
			anyWhole = anyWhole || !v.Damaged
			if v.Kept {
				kept[v.ID] = true
				left = append(left, v.Point)
				if !v.Damaged {
					whole++
				}
			}
		}
		if len(points) > 0 && len(left) == 0 || anyWhole && whole == 0 {
			t.Fatalf("seed %d: nothing whole is left of a VM that exists", seed)
		}
		if again := keptOf(r.Choose(left, now, true)); len(again) != len(left) {
			t.Fatalf("seed %d: a second pruning leaves %d of %d", seed, len(again), len(left))
		}
		rnd.Shuffle(len(points), func(i, j int) { points[i], points[j] = points[j], points[i] })
		for _, id := range keptOf(r.Choose(points, now, true)) {
			if !kept[id] {
				t.Fatalf("seed %d: in another order %s is kept", seed, id)
			}
		}
		if r == (Retention{}) {
			continue
		}
		more := r
		more.Daily += 2
		more.Last++
		now2 := map[string]bool{}
		for _, id := range keptOf(more.Choose(points, now, true)) {
			now2[id] = true
		}
		for id := range kept {
			if !now2[id] && whole > 1 {
				t.Fatalf("seed %d: more rules keep %s no longer", seed, id)
			}
		}
	}
}
