package clock_test

import (
	"testing"
	"testing/synctest"
	"time"

	"drover/internal/clock"
)

func TestRealFollowsTheBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clock.Real()
		start := c.Now()
		<-c.After(3 * time.Hour)
		if got := c.Now().Sub(start); got != 3*time.Hour {
			t.Errorf("After(3h) took %v of bubble time", got)
		}
		timer := c.NewTimer(time.Minute)
		<-timer.C
		if got := c.Now().Sub(start); got != 3*time.Hour+time.Minute {
			t.Errorf("after the timer: %v since the start, want 3h1m", got)
		}
		timer.Reset(time.Minute)
		if !timer.Stop() {
			t.Error("Stop of an armed timer said it was not armed")
		}
	})
}
