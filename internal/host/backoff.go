package host

import (
	"math/rand/v2"
	"time"
)

// backoff doubles a wait from min to max; each wait is cut by up to a quarter at random, so that hosts that lost one
// manager don't come back as one.
type backoff struct {
	min, max time.Duration
	last     time.Duration
}

func (b *backoff) next() time.Duration {
	b.last = min(max(b.last*2, b.min), b.max)
	return b.last - rand.N(b.last/4+1)
}

func (b *backoff) reset() { b.last = 0 }
