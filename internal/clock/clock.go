package clock

import "time"

// Clock tells the time and makes timers. Implementations are safe for
// concurrent use.
type Clock interface {
	// Now returns the present time with its monotonic reading.
	Now() time.Time
	// NewTimer returns a timer that fires once after d. The caller stops it.
	NewTimer(d time.Duration) *time.Timer
	// After is NewTimer(d).C for waits whose timer nobody needs to stop.
	After(d time.Duration) <-chan time.Time
}

// Real returns the machine's clock. Inside a testing/synctest bubble it is the
// bubble's clock.
func Real() Clock { return real{} }

type real struct{}

func (real) Now() time.Time                         { return time.Now() }
func (real) NewTimer(d time.Duration) *time.Timer   { return time.NewTimer(d) }
func (real) After(d time.Duration) <-chan time.Time { return time.After(d) }
