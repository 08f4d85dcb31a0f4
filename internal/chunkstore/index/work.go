package index

import (
	"errors"
	"slices"
	"strings"
)

// work writes tables and merges runs until the index is closed.
func (x *Index) work() {
	defer close(x.done)
	for {
		stopping := false
		select {
		case <-x.stop:
			stopping = true
		case <-x.wake:
		}
		for x.flush() {
		}
		if stopping {
			return
		}
		for x.merge() {
			for x.flush() {
			}
		}
	}
}

// flush writes the oldest frozen table; false if there is none.
func (x *Index) flush() bool {
	x.mu.RLock()
	if len(x.frozen) == 0 {
		x.mu.RUnlock()
		return false
	}
	t := x.frozen[0]
	dead := slices.Clone(t.dead)
	x.mu.RUnlock()
	r, number, err := writeTable(x.root, runName(), x.o.Repository, t, dead)
	if err != nil {
		x.log.Warn("cannot write to the index cache; blocks may be stored again", "error", err)
		x.mu.Lock()
		x.frozen = x.frozen[1:]
		x.lost = true
		x.space.Broadcast()
		x.mu.Unlock()
		return true
	}
	x.swap(func(runs []*run) []*run {
		for n, to := range number {
			if t.dead[n] && to != gone {
				r.kill(to)
			}
		}
		x.frozen = x.frozen[1:]
		x.space.Broadcast()
		return append(runs, r)
	})
	x.writeManifest()
	return true
}

// merge makes one run of several if enough of them are alike; false if there was nothing to do.
func (x *Index) merge() bool {
	v := x.acquire()
	defer x.release(v)
	x.mu.RLock()
	from := choose(v.runs, x.o.Table)
	x.mu.RUnlock()
	if len(from) == 0 {
		return false
	}
	r, number, err := merge(x.root, runName(), x.o.Repository, from, x.stop)
	switch {
	case errors.Is(err, errStopped):
		return false
	case errors.Is(err, errDamaged):
		for _, f := range from {
			if strings.Contains(err.Error(), f.name) {
				x.drop(f, err)
				return true
			}
		}
		fallthrough
	case err != nil:
		x.log.Warn("cannot merge index runs", "error", err)
		return false
	}
	x.swap(func(runs []*run) []*run {
		for i, f := range from {
			for num, to := range number[i] {
				if to != gone && f.isDead(uint32(num)) {
					r.kill(to)
				}
			}
		}
		at := len(runs)
		for _, f := range from {
			if i := slices.Index(runs, f); i >= 0 {
				at = min(at, i)
				runs = slices.Delete(runs, i, i+1)
			}
		}
		return slices.Insert(runs, min(at, len(runs)), r)
	})
	x.writeManifest()
	return true
}
