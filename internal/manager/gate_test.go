package manager

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

// No more than the limit are ever in, all get in, and who gives up leaves no place taken.
func TestGate(t *testing.T) {
	var g gate
	var in, most atomic.Int64
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			ctx, stop := context.WithCancel(context.Background())
			defer stop()
			if i%3 == 0 {
				go stop()
			}
			leave, err := g.enter(ctx, "r", 4, func() {})
			if err != nil {
				if !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				return
			}
			n := in.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			for range rand.IntN(100) {
				_ = in.Load()
			}
			in.Add(-1)
			leave()
			leave() // twice is once
		})
	}
	wg.Wait()
	if most.Load() > 4 || most.Load() == 0 {
		t.Errorf("%d were in at once", most.Load())
	}
	if len(g.in) != 0 || len(g.queue["r"]) != 0 {
		t.Errorf("left behind: %v, %v", g.in, g.queue)
	}
}
