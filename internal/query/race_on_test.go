//go:build race

package query

// raceEnabled: timings mean nothing under the race detector.
const raceEnabled = true
