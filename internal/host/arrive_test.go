package host

import (
	"testing"
	"testing/synctest"
	"time"

	"drover/internal/clock"
)

// A console that is opened the moment its VM was created waits for the VM to arrive; not for ever.
func TestConsoleWaitsForItsVM(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &agent{clk: clock.Real(), machines: map[string]*machine{}, arrived: make(chan struct{})}
		want := &machine{uid: "u"}
		go func() {
			for _, m := range []*machine{{uid: "other"}, want} {
				time.Sleep(time.Second)
				a.mu.Lock()
				a.machines[m.uid] = m
				close(a.arrived)
				a.arrived = make(chan struct{})
				a.mu.Unlock()
			}
		}()
		begin := time.Now()
		if got := a.expect(t.Context(), "u"); got != want || time.Since(begin) != 2*time.Second {
			t.Errorf("got %v after %v", got, time.Since(begin))
		}
		begin = time.Now()
		if got := a.expect(t.Context(), "never"); got != nil || time.Since(begin) != arrivalTime {
			t.Errorf("got %v after %v", got, time.Since(begin))
		}
	})
}
