package chunkstore_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"drover/internal/blob"
	cs "drover/internal/chunkstore"
)

// TestTogether lets writers, readers, collectors and rewriters of three programs work truly at once, and ends the machine in the middle.
func TestTogether(t *testing.T) {
	end := deadline(t, 8*time.Second, 10*time.Minute)
	rounds := 0
	for s := seed(t); time.Now().Before(end); s++ {
		together(t, s)
		rounds++
		if t.Failed() {
			t.Fatalf("seed %d", s)
		}
	}
	t.Logf("%d rounds", rounds)
}

func together(t *testing.T, seed uint64) {
	w := newWorld(t.Context(), t, seed)
	if w.r.IntN(3) > 0 {
		w.fs.CrashAt(100 + w.r.Int64N(1500))
	}
	programs := []*cs.Repository{w.mustOpen(), w.mustOpen(), w.mustOpen()}
	var forks []*world
	var workers, helpers sync.WaitGroup
	stop := make(chan struct{})
	for i := range 4 {
		f := w.fork(seed*10 + uint64(i))
		forks = append(forks, f)
		workers.Go(func() {
			r := programs[i%len(programs)]
			vm := fmt.Sprintf("vm%d", i)
			for range 6 {
				f.errOK("backup", f.backup(r, vm), 0)
				if l := f.living(); len(l) > 2 {
					f.errOK("forget", f.forget(programs[f.r.IntN(len(programs))], l[f.r.IntN(len(l)-1)]), 0)
				}
				if f.r.IntN(2) == 0 {
					f.errOK("read", f.readOne(r), 0)
				}
			}
		})
	}
	for i, what := range []func(*cs.Repository) error{
		func(r *cs.Repository) error {
			_, err := r.Collect(w.ctx, cs.CollectOptions{Dead: -1, Share: 0.9})
			return err
		},
		func(r *cs.Repository) error {
			_, err := r.Collect(w.ctx, cs.CollectOptions{Dead: -1, Share: 0.99, Memory: 300})
			return err
		},
		func(r *cs.Repository) error { _, err := r.Rewrite(w.ctx, cs.RewriteOptions{}); return err },
		func(r *cs.Repository) error { _, err := r.Scrub(w.ctx, cs.ScrubOptions{}); return err },
	} {
		helpers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				w.errOK(fmt.Sprintf("upkeep %d", i), what(programs[i%len(programs)]), 0)
				if w.fs.Crashed() {
					return
				}
			}
		})
	}
	workers.Wait()
	close(stop)
	helpers.Wait()
	next := w.fs.Crash(seed)
	for _, r := range programs {
		_ = r.Close()
	}
	if t.Failed() {
		return
	}
	w.fs, w.shared = next, true
	r := w.mustOpen()
	defer func() { _ = r.Close() }()
	for _, f := range forks {
		f.fs = next
		f.verify(r)
	}
	if res, err := r.Collect(w.ctx, cs.CollectOptions{Dead: time.Nanosecond}); err != nil || len(res.Lost) > 0 {
		t.Fatalf("collect afterwards: %+v, %v", res.Lost, err)
	}
	for _, f := range forks {
		f.verify(r)
	}
}

// readOne reads one of the world's points.
func (w *world) readOne(r *cs.Repository) error {
	ids := w.living()
	if len(ids) == 0 {
		return nil
	}
	id := ids[w.r.IntN(len(ids))]
	s, err := r.Begin(w.ctx, cs.BeginOptions{Reader: true, Pins: []cs.PointID{id}})
	if err != nil {
		return err
	}
	return errors.Join(w.read(r, s, id, w.points[id]), s.Close(w.ctx))
}

// TestCopyInterrupted copies points to another repository, over faults and crashes there, until all are there. What is there is right at any time.
func TestCopyInterrupted(t *testing.T) {
	end := deadline(t, 5*time.Second, 10*time.Minute)
	copies := 0
	for s := seed(t); time.Now().Before(end); s++ {
		from := newWorld(t.Context(), t, s)
		r := from.mustOpen()
		for i := range 5 {
			if err := from.backup(r, fmt.Sprintf("vm%d", i%2)); err != nil {
				t.Fatal(err)
			}
		}
		to := newWorld(t.Context(), t, s+1000)
		rnd := rand.New(rand.NewPCG(s, 3))
		for try := 0; ; try++ {
			left := rnd.Int64N(120)
			last := try >= 4
			if rnd.IntN(2) == 0 && !last {
				to.fs.CrashAt(1 + left)
			} else {
				to.setFaults(func(blob.Verb, string) blob.Outcome {
					if left--; left == 0 && !last {
						return blob.Outcome{Err: errTired, Done: rnd.IntN(2) == 0}
					}
					return blob.Outcome{}
				})
			}
			before := to.injected()
			d, err := to.open()
			if err == nil {
				var res cs.CopyResult
				res, err = d.Copy(to.ctx, cs.NewCopySource(r), cs.CopyOptions{})
				if err == nil && len(res.Failed) > 0 {
					err = res.Failed[0].Err
				}
				if last && err != nil {
					t.Fatalf("seed %d: copy at last: %v", s, err)
				}
				if !to.fs.Crashed() {
					_ = d.Close()
				}
			}
			to.setFaults(nil)
			if !to.fs.Crashed() {
				to.fs.CrashAt(0)
			}
			to.errOK("copy", err, before)
			if to.fs.Crashed() {
				next := to.fs.Crash(rnd.Uint64())
				if d != nil {
					_ = d.Close()
				}
				to.fs = next
			}
			d = to.mustOpen()
			// A copy is of the source's points: what is there is compared with them, and at last all are there.
			for id, p := range from.points {
				q := *p
				q.state = maybe
				if last {
					q.state = live
				}
				to.points[id] = &q
			}
			to.verify(d)
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			copies++
			if last {
				break
			}
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d copies", copies)
}
