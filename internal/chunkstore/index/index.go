package index

import (
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"drover/internal/chunkstore/pack"
)

// ErrBusy says that another process has the directory open.
var ErrBusy = errors.New("index cache is in use by another process")

var errStopped = errors.New("index is being closed")

// hit is where a record is.
type hit struct {
	pack   pack.PackID
	record uint16
}

// Options are for Open.
type Options struct {
	// Repository is whose blocks these are. What the directory holds of another is thrown away.
	Repository [16]byte
	// Table is how many entries are kept in memory before they become a run; 0: 131,072 (some 8 MiB).
	Table int
	Log   *slog.Logger
}

// Index is an open cache. Its methods are for concurrent use.
type Index struct {
	o    Options
	log  *slog.Logger
	root *os.Root
	lock *os.File
	done chan struct{}
	stop chan struct{}
	wake chan struct{}

	mu     sync.RWMutex
	space  *sync.Cond // of mu: a table was written
	table  *table
	frozen []*table // oldest first, being written
	view   *view
	lost   bool
	closed bool
}

// Open opens the cache in a directory, which it makes. Damage is no error: what is damaged is gone, and Has says so.
func Open(dir string, o Options) (*Index, error) {
	if o.Table <= 0 {
		o.Table = 128 << 10
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open index cache: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open index cache: %w", err)
	}
	lock, err := root.OpenFile("LOCK", os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			lock.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				err = ErrBusy
			}
		}
	}
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("open index cache %s: %w", dir, err)
	}
	x := &Index{
		o: o, log: o.Log.With("index", dir), root: root, lock: lock, table: newTable(),
		done: make(chan struct{}), stop: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	x.space = sync.NewCond(&x.mu)
	x.view = newView(x.load())
	go x.work()
	return x, nil
}

// Close writes what is in memory and closes the cache. Other calls have returned before.
func (x *Index) Close() error {
	x.mu.Lock()
	if x.closed {
		x.mu.Unlock()
		return nil
	}
	x.closed = true
	x.freeze()
	x.mu.Unlock()
	close(x.stop)
	<-x.done
	x.mu.Lock()
	v := x.view
	x.view = newView(nil)
	x.mu.Unlock()
	x.release(v)
	return errors.Join(x.lock.Close(), x.root.Close())
}

// Lookup finds a record with an id in a pack that was not removed; of several in the one added last, as a rule. The error
// is always nil: what cannot be read is lost, and a miss.
func (x *Index) Lookup(id pack.ID) (p pack.PackID, record uint16, ok bool, err error) {
	h, ok := x.lookup(&id)
	return h.pack, h.record, ok, nil
}

func (x *Index) lookup(id *pack.ID) (hit, bool) {
	x.mu.RLock()
	if h, ok := x.table.lookup(id); ok {
		x.mu.RUnlock()
		return h, true
	}
	for _, t := range x.frozen {
		if h, ok := t.lookup(id); ok {
			x.mu.RUnlock()
			return h, true
		}
	}
	v := x.view
	if len(v.runs) == 0 {
		x.mu.RUnlock()
		return hit{}, false
	}
	v.refs.Add(1)
	x.mu.RUnlock()
	defer x.release(v)
	for i := len(v.runs) - 1; i >= 0; i-- {
		h, ok, err := v.runs[i].lookup(id)
		if err != nil {
			x.drop(v.runs[i], err)
			continue
		}
		if ok {
			return h, true
		}
	}
	return hit{}, false
}

// Add takes a pack's records, in the order of its records. A pack that is there already is left as it is. It waits if
// tables come quicker than they can be written.
func (x *Index) Add(p pack.PackID, records []pack.Entry) error {
	if x.Has(p) {
		return nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for len(x.frozen) >= 2 && !x.closed {
		x.space.Wait()
	}
	x.table.add(p, records)
	if len(x.table.ids) >= x.o.Table {
		x.freeze()
	}
	return nil
}

// freeze hands the table over to be written. x.mu is held.
func (x *Index) freeze() {
	if len(x.table.packs) == 0 {
		return
	}
	x.frozen = append(x.frozen, x.table)
	x.table = newTable()
	select {
	case x.wake <- struct{}{}:
	default:
	}
}

// Remove makes packs' records be found no more. Removal is not kept: after Open, what is gone is removed again.
func (x *Index) Remove(packs ...pack.PackID) error {
	for _, p := range packs {
		for seen := (*view)(nil); ; {
			x.mu.Lock()
			x.table.remove(p)
			for _, t := range x.frozen {
				t.remove(p)
			}
			v := x.view
			v.refs.Add(1)
			x.mu.Unlock()
			if v == seen {
				x.release(v)
				break
			}
			// Runs that come into the view meanwhile are looked at too.
			seen = v
			for _, r := range v.runs {
				if num, ok, err := r.find(&p); err != nil {
					x.drop(r, err)
				} else if ok {
					x.kill(r, num)
				}
			}
			x.release(v)
		}
	}
	return nil
}

// Has reports whether a pack's records are found.
func (x *Index) Has(p pack.PackID) bool {
	x.mu.RLock()
	has := x.table.has(p)
	for _, t := range x.frozen {
		has = has || t.has(p)
	}
	x.mu.RUnlock()
	if has {
		return true
	}
	v := x.acquire()
	defer x.release(v)
	for _, r := range v.runs {
		num, ok, err := r.find(&p)
		if err != nil {
			x.drop(r, err)
		} else if ok && !r.isDead(num) {
			return true
		}
	}
	return false
}

// Packs yields the packs whose records are found, each once or, while runs change, twice.
func (x *Index) Packs() iter.Seq[pack.PackID] {
	return func(yield func(pack.PackID) bool) {
		x.mu.Lock()
		var ids []pack.PackID
		for _, t := range append(slices.Clone(x.frozen), x.table) {
			for n, id := range t.packs {
				if !t.dead[n] {
					ids = append(ids, id)
				}
			}
		}
		v := x.view
		v.refs.Add(1)
		x.mu.Unlock()
		defer x.release(v)
		for _, id := range ids {
			if !yield(id) {
				return
			}
		}
		for _, r := range v.runs {
			err := r.eachPack(func(num uint32, id pack.PackID) error {
				if !r.isDead(num) && !yield(id) {
					return errStopped
				}
				return nil
			})
			if errors.Is(err, errStopped) {
				return
			}
			if err != nil {
				x.drop(r, err)
			}
		}
	}
}

// Lost reports whether runs were dropped for damage since the last call: packs that were there need to be added again.
func (x *Index) Lost() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	l := x.lost
	x.lost = false
	return l
}

// Stats tells of an index.
type Stats struct {
	Runs    int
	Entries int64 // in runs, also dead ones
	Recent  int   // in memory
	Bytes   int64 // of files
}

// Stats counts.
func (x *Index) Stats() Stats {
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := Stats{Runs: len(x.view.runs), Recent: len(x.table.ids)}
	for _, t := range x.frozen {
		s.Recent += len(t.ids)
	}
	for _, r := range x.view.runs {
		s.Entries += r.entries
		s.Bytes += r.size()
	}
	return s
}
