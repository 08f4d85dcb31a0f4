package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// readSize is what one read of a source takes at most, and window how far ahead its extents are asked for.
	readSize = 1 << 20
	window   = 1 << 30
)

// Progress tells how far a copy is.
type Progress struct {
	// Position is how much of the disk is dealt with, holes and what did not change included, of Size bytes.
	Position, Size int64
	// Bytes were read or written.
	Bytes int64
}

// StoreOptions are for Store.
type StoreOptions struct {
	// BlockSize is the repository's.
	BlockSize int
	// Incremental: only Dirty is read; the writer was begun with Incremental as well.
	Incremental bool
	// Dirty is what may have changed since the parent, in order. Used with Incremental alone.
	Dirty iter.Seq2[Extent, error]
	// Audit is the parent's disk: AuditShare (0 to 1) of the blocks that are not in Dirty are read and compared with it.
	Audit      DiskReader
	AuditShare float64
	// Seed chooses the blocks that are audited; 0: any. Release has to know it.
	Seed uint64
	// Background has the workers yield to other threads that want the processor, such as a guest's.
	Background bool
	// Workers that read and store at once; 0: as many as processors, at most 8.
	Workers int
	Limit   *Limiter
	// Progress is called now and then, by one goroutine at a time.
	Progress func(Progress)
}

// StoreResult tells of Store.
type StoreResult struct {
	Read    int64 // bytes read from the source
	Audited int64 // blocks that were compared
	// Wrong are the bytes from which audited blocks differ from the parent although nothing said so. They were stored; what else
	// did not say that it changed is as in the parent, so that the point is not to be trusted: read the disk in full.
	Wrong []int64
}

// job is a run of blocks that one worker does at once.
type job struct {
	off, n int64
	zero   bool // it is zeros
	audit  bool // compare, store if it differs
}

type storing struct {
	w       DiskWriter
	src     Source
	o       StoreOptions
	bs      int64
	jobs    chan job
	read    atomic.Int64
	audited atomic.Int64

	mu    sync.Mutex
	pos   int64
	wrong []int64
}

// Store reads a disk into a writer. Holes are skipped. It does not call Finish.
func Store(ctx context.Context, w DiskWriter, src Source, o StoreOptions) (StoreResult, error) {
	if o.BlockSize <= 0 {
		return StoreResult{}, errors.New("store a disk: no block size")
	}
	if o.Workers <= 0 {
		o.Workers = min(runtime.GOMAXPROCS(0), 8)
	}
	if o.Seed == 0 {
		o.Seed = rand.Uint64()
	}
	if o.Audit == nil {
		o.AuditShare = 0
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &storing{w: w, src: src, o: o, bs: int64(o.BlockSize), jobs: make(chan job, o.Workers)}
	var wg sync.WaitGroup
	for range o.Workers {
		wg.Go(func() {
			if o.Background {
				yieldProcessor()
			}
			if err := s.work(ctx); err != nil {
				cancel(err)
			}
		})
	}
	if err := s.plan(ctx); err != nil {
		cancel(err)
	}
	close(s.jobs)
	wg.Wait()
	r := StoreResult{Read: s.read.Load(), Audited: s.audited.Load(), Wrong: s.wrong}
	return r, context.Cause(ctx)
}

// plan makes jobs of all that has to be done, in order.
func (s *storing) plan(ctx context.Context) error {
	if !s.o.Incremental {
		return s.span(ctx, 0, s.src.Size())
	}
	return changed(s.src.Size(), s.o, func(from, to int64) error { return s.span(ctx, from, to) }, func(off, n int64) error {
		return s.give(ctx, job{off: off, n: n, audit: true})
	}, func(int64, int64) error { return nil })
}

// Release tells what of a disk of size bytes an incremental Store with the same options, Seed among them, is not going to read: neither has
// it changed nor is it audited. It asks Dirty once more.
func Release(ctx context.Context, size int64, o StoreOptions, release func(ctx context.Context, off, n int64) error) error {
	if !o.Incremental || o.BlockSize <= 0 || o.Seed == 0 {
		return errors.New("release what a backup does not read: it needs an incremental one with a block size and a seed")
	}
	nothing := func(int64, int64) error { return context.Cause(ctx) }
	return changed(size, o, nothing, nothing, func(from, to int64) error { return release(ctx, from, to-from) })
}

// changed takes a disk apart, in order and in whole blocks: what has changed (from, to), what is audited (from, length), and the rest (from, to).
func changed(size int64, o StoreOptions, dirty, audit, rest func(int64, int64) error) error {
	bs, next := int64(o.BlockSize), int64(0)
	dice := newDice(o)
	clean := func(to int64) error {
		for b := dice.first(next / bs); b*bs < to; b = dice.after(b) {
			if next < b*bs {
				if err := rest(next, b*bs); err != nil {
					return err
				}
			}
			n := min(bs, size-b*bs)
			if err := audit(b*bs, n); err != nil {
				return err
			}
			next = b*bs + n
		}
		if next < to {
			return rest(next, to)
		}
		return nil
	}
	if o.Dirty != nil {
		for e, err := range o.Dirty {
			if err != nil {
				return fmt.Errorf("what has changed: %w", err)
			}
			if e.Length <= 0 {
				continue
			}
			// Blocks are whole: an extent may share its first with the one before.
			from := max(e.Offset/bs*bs, next)
			to := min((e.Offset+e.Length+bs-1)/bs*bs, size)
			if to <= from {
				continue
			}
			if err := clean(from); err != nil {
				return err
			}
			if err := dirty(from, to); err != nil {
				return err
			}
			next = to
		}
	}
	return clean(size)
}

// span makes jobs of [from, to), which begins at a block and ends at one or at the disk's end.
func (s *storing) span(ctx context.Context, from, to int64) error {
	next := from // all before is given out
	for at := from; at < to; {
		list, err := s.src.Extents(ctx, at, min(window, to-at))
		if err != nil {
			return fmt.Errorf("what is allocated from %d: %w", at, err)
		}
		for _, e := range list {
			if e.Length <= 0 || e.Offset != at || e.Offset+e.Length > to {
				return fmt.Errorf("what is allocated from %d: extent %d+%d is out of order", at, e.Offset, e.Length)
			}
			at += e.Length
			if e.Zero {
				continue
			}
			lo := max(next, e.Offset/s.bs*s.bs)
			hi := min((at+s.bs-1)/s.bs*s.bs, to)
			if err := s.zeros(ctx, next, lo); err != nil {
				return err
			}
			for lo < hi {
				// Reads end at multiples of their size, so that storage sees them aligned.
				n := min(max(readSize, s.bs)-lo%max(readSize, s.bs), hi-lo)
				if err := s.give(ctx, job{off: lo, n: n}); err != nil {
					return err
				}
				lo += n
			}
			next = max(next, hi)
		}
		if len(list) == 0 {
			return fmt.Errorf("what is allocated from %d: no answer", at)
		}
	}
	return s.zeros(ctx, next, to)
}

func (s *storing) zeros(ctx context.Context, from, to int64) error {
	if to <= from {
		return nil
	}
	return s.give(ctx, job{off: from, n: to - from, zero: true})
}

func (s *storing) give(ctx context.Context, j job) error {
	select {
	case s.jobs <- j:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *storing) work(ctx context.Context) error {
	buf := make([]byte, max(readSize, s.bs))
	var other []byte
	for j := range s.jobs {
		if ctx.Err() != nil {
			continue
		}
		var err error
		switch {
		case j.zero:
			if s.o.Incremental {
				err = s.w.Zero(ctx, j.off/s.bs, (j.n+s.bs-1)/s.bs)
			}
		case j.audit:
			if other == nil {
				other = make([]byte, s.bs)
			}
			err = s.compare(ctx, j, buf[:j.n], other[:j.n])
		default:
			err = s.copy(ctx, j, buf[:j.n])
		}
		if err != nil {
			return err
		}
		s.tell(j)
	}
	return nil
}

// backgroundNice is the niceness of threads that yield (setpriority(2)): about a tenth of the weight of a guest's.
const backgroundNice = 10

// yieldProcessor makes the thread of this goroutine, which ends with it, one that others go before.
func yieldProcessor() {
	runtime.LockOSThread()
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), backgroundNice) // A thread may always become nicer.
}

func (s *storing) fill(ctx context.Context, off int64, p []byte) error {
	if err := s.o.Limit.Wait(ctx, int64(len(p))); err != nil {
		return err
	}
	if err := s.src.ReadAt(ctx, p, off); err != nil {
		return fmt.Errorf("read %d bytes from %d: %w", len(p), off, err)
	}
	s.read.Add(int64(len(p)))
	return nil
}

func (s *storing) copy(ctx context.Context, j job, p []byte) error {
	if err := s.fill(ctx, j.off, p); err != nil {
		return err
	}
	for b := j.off / s.bs; len(p) > 0; b++ {
		n := min(s.bs, int64(len(p)))
		if err := s.w.Put(ctx, b, p[:n]); err != nil {
			return fmt.Errorf("store the block at %d: %w", b*s.bs, err)
		}
		p = p[n:]
	}
	return nil
}

func (s *storing) compare(ctx context.Context, j job, p, other []byte) error {
	if err := s.fill(ctx, j.off, p); err != nil {
		return err
	}
	if err := s.o.Audit.ReadAt(ctx, other, j.off); err != nil {
		return fmt.Errorf("read the parent from %d: %w", j.off, err)
	}
	s.audited.Add(1)
	if bytes.Equal(p, other) {
		return nil
	}
	s.mu.Lock()
	s.wrong = append(s.wrong, j.off)
	s.mu.Unlock()
	return s.w.Put(ctx, j.off/s.bs, p)
}

func (s *storing) tell(j job) {
	if s.o.Progress == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pos = max(s.pos, j.off+j.n)
	s.o.Progress(Progress{Position: s.pos, Size: s.src.Size(), Bytes: s.read.Load()})
}

// dice picks blocks at random, each with the same chance.
type dice struct {
	none bool
	all  bool
	log  float64 // of the chance not to be picked
	next int64
	rand *rand.Rand
}

func newDice(o StoreOptions) *dice {
	d := &dice{none: o.AuditShare <= 0, all: o.AuditShare >= 1, next: -1, rand: rand.New(rand.NewPCG(o.Seed, 0))}
	if !d.none && !d.all {
		d.log = math.Log1p(-o.AuditShare)
		d.next = d.skip()
	}
	return d
}

func (d *dice) skip() int64 {
	return int64(min(math.Log(1-d.rand.Float64())/d.log, 1<<52))
}

// first is the first pick that is not before b.
func (d *dice) first(b int64) int64 {
	switch {
	case d.none:
		return math.MaxInt64 >> 24
	case d.all:
		return b
	}
	for d.next < b {
		d.next += 1 + d.skip()
	}
	return d.next
}

func (d *dice) after(b int64) int64 { return d.first(b + 1) }
