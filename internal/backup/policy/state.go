package policy

import (
	"fmt"
	"time"
)

// State is how well a VM is protected.
type State int

// The states, from the best to the worst.
const (
	Protected State = iota
	// Late: the newest point is older than wanted.
	Late
	// AtRisk: no point, twice as old as wanted, or the last boot test failed.
	AtRisk
)

// Facts are what a VM's state follows from, beside its policy.
type Facts struct {
	// Newest is the time of the newest whole point in whatever repository; zero: none.
	Newest time.Time
	// Tested, and the last test failed.
	TestFailed bool
	Covered    time.Time
	Running    bool
	Failures   int
	Error      string
}

// Judge says how a VM stands, and why if not well.
func (p Policy) Judge(f Facts, now time.Time) (State, string) {
	now = now.In(p.zone())
	state, why := p.age(f, now)
	if f.TestFailed && state < AtRisk {
		return AtRisk, "the last boot test failed"
	}
	switch {
	case state == Protected && p.Paused:
		why = "the policy is paused"
	case state == Protected:
	case p.Paused:
		why += "; the policy is paused"
	case f.Running:
		why += "; a backup is under way"
	case f.Failures > 0 && f.Failures <= p.Retries:
		why += fmt.Sprintf("; will be tried again: %s", f.Error)
	case f.Failures > 0:
		why += "; gave up: " + f.Error
	}
	return state, why
}

// age judges by the newest point alone.
func (p Policy) age(f Facts, now time.Time) (State, string) {
	if f.Newest.IsZero() {
		return AtRisk, "has no restore point"
	}
	state, why := Protected, ""
	if old := now.Sub(f.Newest); p.RPO > 0 && old > p.RPO {
		state, why = Late, fmt.Sprintf("the newest point is %s old, %s are wanted", words(old.Round(time.Minute)), words(p.RPO))
		if old > 2*p.RPO {
			state = AtRisk
		}
	}
	last := p.effective(now, now)
	if last.IsZero() || !f.Newest.Before(last) || f.Covered.After(last) {
		return state, why
	}
	text := fmt.Sprintf("the newest point is from %s, one was due at %s", f.Newest.In(now.Location()).Format("2006-01-02 15:04"), last.Format("2006-01-02 15:04"))
	before := p.effective(last.Add(-time.Nanosecond), last.Add(-time.Nanosecond))
	if !before.IsZero() && f.Newest.Before(before) && !f.Covered.After(before) {
		return AtRisk, text
	}
	if state == Protected {
		state, why = Late, text
	}
	return state, why
}

// effective is the last time until which a run was due and could begin: a due time outside of all windows is due when one opens.
func (p Policy) effective(until, now time.Time) time.Time {
	for range 64 {
		slot, _ := Last(p.Schedules, until.AddDate(-5, 0, 0), until)
		if slot.IsZero() {
			return slot
		}
		if at := Open(p.Windows, slot); !at.IsZero() && !at.After(now) {
			return at
		}
		until = slot.Add(-time.Nanosecond)
	}
	return time.Time{}
}
