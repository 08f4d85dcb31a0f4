package policy

import (
	"fmt"
	"hash/fnv"
	"time"
)

// Policy is when VMs are backed up.
type Policy struct {
	Name       string
	Zone       *time.Location // nil: UTC
	Schedules  []Schedule
	RPO        time.Duration // 0: none
	Windows    []Window
	Priority   int
	Retries    int
	RetryDelay time.Duration
	// Parallel and PerHost bound its backups at a time; 0: no bound.
	Parallel, PerHost int
	Repository        string
	// CatchUp: what was missed longer ago is left. 0: nothing is, until the next is due.
	CatchUp time.Duration
	Paused  bool
	// Up is since when runs can be made: what was due before was missed.
	Up time.Time
}

// VM is how a VM stands with a policy.
type VM struct {
	Name, UID  string
	Host       string
	Datastores []string
	// Covered is when the VM came under the policy; nothing before was missed.
	Covered time.Time
	// Slot is the due time that was begun last; Failures are the failed tries of it, and Retry is when the next may be.
	Slot     time.Time
	Failures int
	Retry    time.Time
	Running  bool
	// Point is the time of the newest whole restore point; zero: none.
	Point time.Time
	// Wanted is when somebody asked for a backup now; zero: nobody.
	Wanted time.Time
	// Expected is how many bytes a run reads.
	Expected int64
}

// Run is a backup that is due.
type Run struct {
	// At is when it may begin; Slot is the due time that it is for.
	At, Slot time.Time
	Reason   string
}

const (
	// lead is the part of an RPO after which a run is due: the rest is for the run itself, and for a retry.
	leadPart, leadOf = 4, 5
	// punctual is how late a run may be and still be on time.
	punctual = time.Minute
	// Spread is the time over which missed runs begin.
	Spread = 5 * time.Minute
)

func (p Policy) zone() *time.Location {
	if p.Zone == nil {
		return time.UTC
	}
	return p.Zone
}

// Next is the first run of a VM at now or later; false if none is in sight.
func (p Policy) Next(v VM, now time.Time) (Run, bool) {
	now = now.In(p.zone())
	if v.Running {
		return Run{}, false
	}
	if v.Wanted.After(v.Slot) {
		return Run{At: now, Slot: v.Wanted, Reason: "by hand"}, true
	}
	if p.Paused {
		return Run{}, false
	}
	var first Run
	take := func(r Run) {
		if r.At.IsZero() {
			return
		}
		if r.At = Open(p.Windows, later(r.At, now)); r.At.IsZero() {
			return
		}
		if first.At.IsZero() || r.At.Before(first.At) || r.At.Equal(first.At) && r.Slot.After(first.Slot) {
			first = r
		}
	}
	retrying := v.Failures > 0 && v.Failures <= p.Retries
	if retrying {
		take(Run{At: v.Retry, Slot: v.Slot, Reason: fmt.Sprintf("retry %d of %d", v.Failures, p.Retries)})
	}
	if len(p.Schedules) > 0 {
		if r, ok := p.missed(v, now); ok {
			take(r)
		} else if at, s := Next(p.Schedules, now); !at.IsZero() {
			take(Run{At: at, Slot: at, Reason: "schedule " + s.String()})
		}
	}
	if p.RPO > 0 && !retrying {
		take(p.objective(v, now))
	}
	return first, !first.At.IsZero()
}

// later is the later of two times, in the second one's zone.
func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a.In(b.Location())
	}
	return b
}

// missed is the last due time that has passed and was not begun.
func (p Policy) missed(v VM, now time.Time) (Run, bool) {
	slot, s := Last(p.Schedules, later(v.Slot, v.Covered.In(now.Location())), now)
	if slot.IsZero() {
		return Run{}, false
	}
	late := now.Sub(slot)
	if p.CatchUp > 0 && late > p.CatchUp && late > punctual {
		return Run{}, false
	}
	r := Run{At: slot, Slot: slot, Reason: "schedule " + s.String()}
	if slot.Before(p.Up) && p.Up.Sub(slot) > punctual {
		// The manager was away: all that was due meanwhile is not begun at one moment.
		spread := Spread
		if next, _ := Next(p.Schedules, p.Up.In(now.Location())); !next.IsZero() {
			spread = min(spread, next.Sub(p.Up)/4)
		}
		r.At, r.Reason = p.Up.Add(time.Duration(float64(spread)*part(v.UID+v.Name))), "missed at "+slot.Format("2006-01-02 15:04")
	}
	return r, true
}

// part is a number from 0 to 1 that follows from a text.
func part(s string) float64 {
	h := fnv.New32a()
	h.Write([]byte(s))
	// The last bits of similar names are alike: mix them.
	x := h.Sum32()
	x ^= x >> 16
	x *= 0x7feb352d
	x ^= x >> 15
	return float64(x) / (1 << 32)
}

// objective is when the next point must be begun so that none gets older than the RPO.
func (p Policy) objective(v VM, now time.Time) Run {
	base := v.Point
	if v.Failures > p.Retries && v.Slot.After(base) {
		base = v.Slot // given up: anew after as long
	}
	if base.IsZero() {
		slot := v.Covered
		if !slot.After(v.Slot) {
			slot = now // its points were deleted
		}
		return Run{At: slot, Slot: slot, Reason: "RPO: it has no point"}
	}
	at := base.Add(p.RPO * leadPart / leadOf)
	slot := at
	if !slot.After(v.Slot) {
		slot = v.Slot.Add(time.Nanosecond)
	}
	return Run{At: at, Slot: slot, Reason: "RPO " + words(p.RPO)}
}

// Delay is how long after a failure the next try may be: doubled each time, at most a day.
func (p Policy) Delay(failures int) time.Duration {
	d := max(p.RetryDelay, time.Second)
	for range max(failures-1, 0) {
		if d *= 2; d >= 24*time.Hour {
			return 24 * time.Hour
		}
	}
	return min(d, 24*time.Hour)
}

// mostRuns bounds what Runs tells of one VM.
const mostRuns = 2000

// Runs are what will be begun of a VM until a time, if nothing changes and all goes well.
func (p Policy) Runs(v VM, now, until time.Time) []Run {
	var list []Run
	at := now
	v.Running = false
	for len(list) < mostRuns {
		r, ok := p.Next(v, at)
		if !ok || r.At.After(until) {
			break
		}
		list = append(list, r)
		v.Slot, v.Failures, v.Retry, v.Wanted, v.Point = later(r.Slot, v.Slot), 0, time.Time{}, time.Time{}, r.At
		at = r.At.Add(time.Nanosecond)
	}
	return list
}
