package backup

import (
	"context"
	"sync"
	"time"

	"drover/internal/clock"
)

// burst is how much of the time that nobody used may be caught up on.
const burst = 100 * time.Millisecond

// Limiter bounds bytes per second over all that share it. A nil Limiter bounds nothing. It is for concurrent use.
type Limiter struct {
	clk clock.Clock

	mu      sync.Mutex
	rate    int64
	free    time.Time     // when all that was let through is paid for
	changed chan struct{} // closed when rate changes
}

// NewLimiter lets rate bytes per second through; 0: all.
func NewLimiter(clk clock.Clock, rate int64) *Limiter {
	return &Limiter{clk: clk, rate: max(rate, 0), changed: make(chan struct{})}
}

// SetRate changes the limit, also for those who wait.
func (l *Limiter) SetRate(rate int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if rate = max(rate, 0); rate == l.rate {
		return
	}
	l.rate, l.free = rate, l.clk.Now()
	close(l.changed)
	l.changed = make(chan struct{})
}

// Rate is the limit in force; 0: none.
func (l *Limiter) Rate() int64 {
	if l == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rate
}

// Wait returns when n more bytes may pass.
func (l *Limiter) Wait(ctx context.Context, n int64) error {
	for l != nil {
		l.mu.Lock()
		if l.rate == 0 {
			l.mu.Unlock()
			break
		}
		now := l.clk.Now()
		d := l.free.Sub(now)
		if d <= 0 {
			if d < -burst {
				l.free = now.Add(-burst)
			}
			l.free = l.free.Add(time.Duration(float64(n) / float64(l.rate) * float64(time.Second)))
			l.mu.Unlock()
			break
		}
		changed := l.changed
		l.mu.Unlock()
		t := l.clk.NewTimer(d)
		select {
		case <-t.C:
		case <-changed:
			t.Stop()
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
	}
	return nil
}
