package blob

import (
	"context"
	"sync"
	"time"

	"drover/internal/clock"
)

// limitStep is how many bytes are waited for at once, at most: a new rate is heeded soon, and two streams share it.
const limitStep = 256 << 10

// Limit bounds the bytes per second that go in and out together.
type Limit struct {
	Store
	clock clock.Clock

	mu   sync.Mutex
	rate int64 // bytes per second; 0: no limit
	// next is when what was let through so far has been paid for.
	next time.Time
	// changed is closed when there is a new rate.
	changed chan struct{}
}

// NewLimit wraps a store. 0 is no limit. A nil clock is the machine's.
func NewLimit(st Store, rate int64, c clock.Clock) *Limit {
	if c == nil {
		c = clock.Real()
	}
	return &Limit{Store: st, clock: c, rate: rate, changed: make(chan struct{})}
}

// Unwrap returns the store below.
func (l *Limit) Unwrap() Store { return l.Store }

// SetRate changes the limit, also for those who wait.
func (l *Limit) SetRate(rate int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate == rate {
		return
	}
	l.rate = rate
	l.next = time.Time{}
	close(l.changed)
	l.changed = make(chan struct{})
}

// Rate is the limit in force, in bytes per second; 0: none.
func (l *Limit) Rate() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rate
}

// wait lets n bytes through.
func (l *Limit) wait(ctx context.Context, n int64) error {
	for n > 0 {
		l.mu.Lock()
		rate, changed := l.rate, l.changed
		if rate <= 0 {
			l.mu.Unlock()
			return nil
		}
		step := min(n, limitStep, max(rate/10, 1))
		now := l.clock.Now()
		if l.next.Before(now) {
			l.next = now
		}
		l.next = l.next.Add(time.Duration(float64(step) / float64(rate) * float64(time.Second)))
		pause := l.next.Sub(now)
		l.mu.Unlock()
		timer := l.clock.NewTimer(pause)
		select {
		case <-timer.C:
			n -= step
		case <-changed: // this step is waited for again at the new rate
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
	return nil
}

// Put implements [Store].
func (l *Limit) Put(ctx context.Context, name string, data []byte) error {
	if err := l.wait(ctx, int64(len(data))); err != nil {
		return err
	}
	return l.Store.Put(ctx, name, data)
}

// Create implements [Store].
func (l *Limit) Create(ctx context.Context, name string) (Writer, error) {
	w, err := l.Store.Create(ctx, name)
	if err != nil {
		return nil, err
	}
	return &limitWriter{Writer: w, l: l, ctx: ctx}, nil
}

type limitWriter struct {
	Writer
	l   *Limit
	ctx context.Context // of the whole writing
}

func (w *limitWriter) Write(p []byte) (int, error) {
	if err := w.l.wait(w.ctx, int64(len(p))); err != nil {
		return 0, err
	}
	return w.Writer.Write(p)
}

// ReadAt implements [Store].
func (l *Limit) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if err := l.wait(ctx, int64(len(p))); err != nil {
		return err
	}
	return l.Store.ReadAt(ctx, name, p, off)
}

// Get implements [Store]. The size is known only afterwards, and then paid for.
func (l *Limit) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	p, err := l.Store.Get(ctx, name, limit)
	if err != nil {
		return nil, err
	}
	return p, l.wait(ctx, int64(len(p)))
}
