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

// TSCKHz measures how fast the time stamp counter runs, in kHz. Under TCG that is also the guest's, and Linux on a microvm has to be told,
// by tsc_early_khz. Its ACPI tables are of the hardware-reduced kind, with which Linux takes no interrupts from the PIT and calibrates by it
// just once, early: the quick way, which fails when the vCPU does not run for 0.2 ms somewhere in it. Then it has no clock to calibrate the
// local APIC's timer by, no tick ever comes, and it waits for one for ever, before its first line on the console.
func TSCKHz(ctx context.Context) (int64, error) {
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
