// Package clock is the one door to wall time and timers.
//
// # Purpose
//
// Code that waits or stamps takes a [Clock], so that a reader sees in a
// signature that it depends on time. Tests run the real clock inside
// testing/synctest, whose bubble makes it deterministic; a fake is only needed
// where a bubble cannot be used (a process, a socket).
//
// # Main types
//
// [Clock], and [Real], its only implementation outside tests.
//
// # Invariants
//
// A Clock never keeps a goroutine or a global of its own. Now never loses its
// monotonic reading, so that differences never jump with the wall clock.
//
// # Lock order
//
// No locks.
//
// # Not here
//
// Cron expressions, back-off, rate limits: they belong to who needs them.
package clock
