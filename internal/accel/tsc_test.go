package accel

import "testing"

func TestTSCIsSteady(t *testing.T) {
	var got [2]int64
	for i := range got {
		khz, err := TSCKHz(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got[i] = khz
	}
	// Nothing that runs QEMU is slower than 500 MHz or faster than 10 GHz, and Linux takes a value within half a percent.
	if got[0] < 500_000 || got[0] > 10_000_000 {
		t.Errorf("the counter runs at %d kHz", got[0])
	}
	if d := float64(got[0]-got[1]) / float64(got[0]); d > 0.005 || d < -0.005 {
		t.Errorf("two measurements differ by %.2f%%: %d and %d kHz", 100*d, got[0], got[1])
	}
}
