package chunkstore_test

import (
	"os"
	"strconv"
	"testing"
	"time"

	cs "drover/internal/chunkstore"
)

// deadline is when a test that could go on for ever ends.
func deadline(t *testing.T, short, soak time.Duration) time.Time {
	t.Helper()
	if os.Getenv("DROVER_SOAK") != "" {
		short = soak
	}
	if testing.Short() {
		short /= 10
	}
	return time.Now().Add(short)
}

// seed is the first seed of a test; DROVER_SEED repeats a run.
func seed(t *testing.T) uint64 {
	t.Helper()
	if s := os.Getenv("DROVER_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return 1
}

// story is what happens to a repository in the tests that interrupt it. It goes on after each failure, as programs do.
func (w *world) story(r *cs.Repository) {
	step := func(what string, f func() error) {
		before := w.injected()
		if w.fs.Crashed() {
			return
		}
		w.errOK(what, f(), before-1) // the fault may have come in the step before, and spoilt what it works with
	}
	step("backup 1", func() error { return w.backup(r, "web") })
	step("backup 2", func() error { return w.backup(r, "db") })
	step("backup 3", func() error { return w.backup(r, "web") })
	step("forget", func() error {
		if l := w.living(); len(l) > 1 {
			return w.forget(r, l[0])
		}
		return nil
	})
	step("collect", func() error { _, err := r.Collect(w.ctx, cs.CollectOptions{Share: 0.9}); return err })
	step("rewrite", func() error { _, err := r.Rewrite(w.ctx, cs.RewriteOptions{}); return err })
	step("backup 4", func() error { return w.backup(r, "db") })
	step("rotate", func() error { return r.Rotate(w.ctx) })
	step("collect", func() error { _, err := r.Collect(w.ctx, cs.CollectOptions{}); return err })
}

// aftermath is what must work when the trouble is over.
func (w *world) aftermath() {
	r := w.mustOpen()
	defer func() { _ = r.Close() }()
	w.verify(r)
	if err := w.backup(r, "web"); err != nil {
		w.t.Fatalf("backup afterwards: %v", err)
	}
	for range 2 {
		if res, err := r.Collect(w.ctx, cs.CollectOptions{Dead: time.Nanosecond}); err != nil || len(res.Lost) > 0 {
			w.t.Fatalf("collect afterwards: %+v, %v", res.Lost, err)
		}
	}
	w.verify(r)
	again := w.mustOpen()
	w.verify(again)
	if err := again.Close(); err != nil {
		w.t.Fatalf("close: %v", err)
	}
}

// TestCrashAnywhere ends the machine at each write, sync, link and removal of a story, with many fates of what was not synced.
func TestCrashAnywhere(t *testing.T) {
	end := deadline(t, 20*time.Second, 30*time.Minute)
	first, runs := seed(t), 0
	for s := first; time.Now().Before(end); s++ {
		whole := newWorld(t.Context(), t, s)
		before := whole.fs.Ops()
		r := whole.mustOpen()
		whole.story(r)
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		ops := whole.fs.Ops() - before
		// All boundaries of one story take a while: each round of seeds takes every seventh of them, from another on.
		for at := 1 + int64(s%7); at <= ops && time.Now().Before(end); at += 7 {
			w := newWorld(t.Context(), t, s)
			w.fs.CrashAt(at)
			if r, err := w.open(); err == nil {
				w.story(r)
				next := w.fs.Crash(s*1000 + uint64(at))
				_ = r.Close()
				w.fs = next
			} else {
				w.fs = w.fs.Crash(s*1000 + uint64(at))
			}
			ok := false
			func() {
				defer func() {
					if !ok {
						t.Logf("seed %d, crash at operation %d of %d", s, at, ops)
					}
				}()
				w.aftermath()
				ok = true
			}()
			runs++
		}
	}
	t.Logf("%d crashes from seed %d on", runs, first)
	if runs < 100 && !testing.Short() {
		t.Errorf("only %d crashes in the time", runs)
	}
}
