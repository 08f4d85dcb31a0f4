package index

import (
	"slices"
	"sync/atomic"
)

// view is a set of runs, oldest first, that lookups go through without a lock. It is taken under Index.mu, and let go
// without; the index itself has one reference to the present view.
type view struct {
	runs []*run
	refs atomic.Int64
}

func newView(runs []*run) *view {
	v := &view{runs: runs}
	v.refs.Store(1)
	for _, r := range runs {
		r.refs++
	}
	return v
}

func (x *Index) acquire() *view {
	x.mu.RLock()
	defer x.mu.RUnlock()
	x.view.refs.Add(1)
	return x.view
}

// release lets a view go, and closes the runs that no view has any more.
func (x *Index) release(v *view) {
	if v.refs.Add(-1) > 0 {
		return
	}
	var last []*run
	x.mu.Lock()
	for _, r := range v.runs {
		if r.refs--; r.refs == 0 {
			last = append(last, r)
		}
	}
	x.mu.Unlock()
	for _, r := range last {
		r.file.Close()
		if r.gone {
			_ = x.root.Remove(r.name) // no manifest names it: removed at the next opening
		}
	}
}

// swap puts a new set of runs in place, made by change, under Index.mu, from the present one. Runs that are left out go.
func (x *Index) swap(change func(runs []*run) []*run) {
	x.mu.Lock()
	old := x.view
	x.view = newView(change(slices.Clone(old.runs)))
	for _, r := range old.runs {
		if !slices.Contains(x.view.runs, r) {
			r.gone = true
		}
	}
	x.mu.Unlock()
	x.release(old)
}

// kill marks a pack of a run as removed.
func (x *Index) kill(r *run, num uint32) {
	x.mu.Lock()
	defer x.mu.Unlock()
	r.kill(num)
}

// drop takes a run that cannot be read out of the index.
func (x *Index) drop(r *run, err error) {
	first := false
	x.swap(func(runs []*run) []*run {
		if i := slices.Index(runs, r); i >= 0 {
			first = true
			runs = slices.Delete(runs, i, i+1)
		}
		x.lost = x.lost || first
		return runs
	})
	if first {
		x.log.Warn("index run is dropped; its packs are read again", "run", r.name, "error", err)
	}
}
