package accel

import (
	"context"
	"slices"
	"time"
)

// rdtsc reads the time stamp counter of the CPU that it happens to run on. All CPUs that run QEMU have it in step.
func rdtsc() uint64

// tscRounds measurements of tscRound are made; their median doesn't mind that one was interrupted.
const (
	tscRounds = 5
	tscRound  = 10 * time.Millisecond
)

// tscKHz measures how fast the time stamp counter runs, in kHz. Under TCG that is also the guest's, and a guest without a timer to
// calibrate it by (microvm) may be told: Linux's tsc_early_khz.
func tscKHz(ctx context.Context) (int64, error) {
	var rates []int64
	for range tscRounds {
		begin, from := time.Now(), rdtsc()
		t := time.NewTimer(tscRound)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return 0, ctx.Err()
		}
		to, took := rdtsc(), time.Since(begin)
		rates = append(rates, int64(float64(to-from)/took.Seconds()/1000))
	}
	slices.Sort(rates)
	return rates[len(rates)/2], nil
}
