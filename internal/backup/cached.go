package backup

import (
	"container/list"
	"context"
	"sync"
)

const (
	unitSize = 64 << 10 // what a random read fetches at least
	maxAhead = 4 << 20  // how far a sequential reader is read ahead of
	streams  = 8        // sequential readers that are told apart
)

// Cached reads a disk for someone who reads a little at a time, such as a guest: it keeps what was read last, and reads ahead of who reads in
// order. Several readers that want the same cause one read. An error is not kept: the next read tries again.
type Cached struct {
	r     DiskReader
	limit int // units kept
	life  context.Context
	end   context.CancelFunc
	work  sync.WaitGroup

	mu      sync.Mutex
	units   map[int64]*unit
	lru     *list.List // of *unit that are ready, the last used first
	flying  int        // units on their way
	closed  bool
	readers [streams]stream
	clock   int64
}

type unit struct {
	number int64
	ready  chan struct{} // closed when data or err is there
	data   []byte
	err    error
	at     *list.Element
}

// stream is one who reads in order.
type stream struct {
	next  int64 // byte that it wants next
	done  int64 // unit before which all was asked for
	ahead int64 // bytes
	used  int64
}

// NewCached reads r, keeping about memory bytes (0: 32 MiB). ctx bounds its own reads. Close does not close r.
func NewCached(ctx context.Context, r DiskReader, memory int64) *Cached {
	if memory <= 0 {
		memory = 32 << 20
	}
	c := &Cached{r: r, limit: int(max(memory, 2*maxAhead) / unitSize), units: map[int64]*unit{}, lru: list.New()}
	c.life, c.end = context.WithCancel(ctx)
	return c
}

// Close ends reads ahead and waits for them.
func (c *Cached) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.end()
	c.work.Wait()
	return nil
}

// Size in bytes.
func (c *Cached) Size() int64 { return c.r.Size() }

// ReadAt fills p from off. Beyond the end are zeros.
func (c *Cached) ReadAt(ctx context.Context, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	for len(p) > 0 {
		// Long reads go in parts, so that they never push each other out.
		n := min(len(p), readSize)
		if err := c.part(ctx, p[:n], off); err != nil {
			return err
		}
		p = p[n:]
		off += int64(n)
	}
	return nil
}

func (c *Cached) part(ctx context.Context, p []byte, off int64) error {
	first, last := off/unitSize, (off+int64(len(p))-1)/unitSize
	wait := make([]*unit, 0, last-first+1)
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return context.Canceled
	}
	c.ask(first, last+1)
	for n := first; n <= last; n++ {
		u := c.units[n]
		if u.at != nil {
			c.lru.MoveToFront(u.at)
		}
		wait = append(wait, u)
	}
	if from, to := c.predict(off, int64(len(p))); from < to && c.flying < c.limit/2 {
		c.ask(from, to)
	}
	c.mu.Unlock()
	for _, u := range wait {
		select {
		case <-u.ready:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if u.err != nil {
			return u.err
		}
		base := u.number * unitSize
		if base >= off {
			copy(p[base-off:], u.data)
		} else {
			copy(p, u.data[off-base:])
		}
	}
	return nil
}

// ask starts to read those of [from, to) that are neither here nor on their way, neighbours together. c.mu is held.
func (c *Cached) ask(from, to int64) {
	for from < to {
		if c.units[from] != nil {
			from++
			continue
		}
		var run []*unit
		for ; from < to && c.units[from] == nil && len(run) < readSize/unitSize; from++ {
			u := &unit{number: from, ready: make(chan struct{})}
			c.units[from] = u
			run = append(run, u)
		}
		c.flying += len(run)
		c.work.Go(func() { c.fetch(run) })
	}
}

func (c *Cached) fetch(run []*unit) {
	buf := make([]byte, len(run)*unitSize)
	err := c.r.ReadAt(c.life, buf, run[0].number*unitSize)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flying -= len(run)
	for i, u := range run {
		if u.err = err; err != nil {
			delete(c.units, u.number)
		} else {
			// Its own memory, so that one unit that stays does not hold its neighbours.
			u.data = append([]byte(nil), buf[i*unitSize:(i+1)*unitSize]...)
			u.at = c.lru.PushFront(u)
		}
		close(u.ready)
	}
	for c.lru.Len() > c.limit {
		old := c.lru.Remove(c.lru.Back()).(*unit)
		delete(c.units, old.number)
	}
}

// predict says which units a reader will want soon that has just asked for [off, off+n). c.mu is held.
func (c *Cached) predict(off, n int64) (from, to int64) {
	c.clock++
	oldest := &c.readers[0]
	for i := range c.readers {
		s := &c.readers[i]
		// Requests that were sent together may come in another order.
		if s.used > 0 && off >= s.next-unitSize && off <= s.next+unitSize {
			s.used = c.clock
			s.next = max(s.next, off+n)
			s.ahead = min(max(2*s.ahead, 2*unitSize), maxAhead)
			end := (c.r.Size() + unitSize - 1) / unitSize
			to = min((s.next+s.ahead)/unitSize, end)
			from = max(s.done, s.next/unitSize)
			// Ahead in bites, not unit by unit.
			if to-from < s.ahead/unitSize/2 && to < end {
				return 0, 0
			}
			s.done = max(s.done, to)
			return from, to
		}
		if s.used < oldest.used {
			oldest = s
		}
	}
	*oldest = stream{next: off + n, used: c.clock}
	return 0, 0
}
