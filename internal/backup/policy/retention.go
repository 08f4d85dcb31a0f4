package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Retention says which points are kept. The zero value is the last 7 and 4 weekly.
type Retention struct {
	Last, Hourly, Daily, Weekly, Monthly, Yearly int
	// Within keeps all that are younger.
	Within time.Duration
}

// Defaults of an empty Retention.
const (
	defaultLast   = 7
	defaultWeekly = 4
)

// Point is a restore point of one VM in one repository, as retention sees it.
type Point struct {
	ID   string
	Time time.Time
	// Keep: somebody said that it stays.
	Keep bool
	// Damaged ones stand for no period: a whole one does.
	Damaged bool
}

// Verdict is what becomes of a point, and why.
type Verdict struct {
	Point
	Kept   bool
	Reason string
}

// period is a rule that keeps one point of each of the last periods that have one.
type period struct {
	name string
	keep int
	key  func(time.Time) string
}

func (r Retention) periods() []period {
	list := []period{
		{"hourly", r.Hourly, func(t time.Time) string { return t.Format("2006-01-02 15:00 -0700") }},
		{"daily", r.Daily, func(t time.Time) string { return t.Format("2006-01-02") }},
		{"weekly", r.Weekly, func(t time.Time) string { y, w := t.ISOWeek(); return fmt.Sprintf("%d-W%02d", y, w) }},
		{"monthly", r.Monthly, func(t time.Time) string { return t.Format("2006-01") }},
		{"yearly", r.Yearly, func(t time.Time) string { return t.Format("2006") }},
	}
	return slices.DeleteFunc(list, func(p period) bool { return p.keep <= 0 })
}

// Choose says of each point whether it is kept, newest first. now's zone is the one whose days and weeks count. exists: the VM still exists.
//
// A rule of N periods keeps the newest whole point of each of the last N periods that have one, so that nothing is lost by a pause. The newest whole
// point of a VM that exists is kept by whatever rules.
func (r Retention) Choose(points []Point, now time.Time, exists bool) []Verdict {
	r.Last, r.Hourly, r.Daily = max(r.Last, 0), max(r.Hourly, 0), max(r.Daily, 0)
	r.Weekly, r.Monthly, r.Yearly = max(r.Weekly, 0), max(r.Monthly, 0), max(r.Yearly, 0)
	if r == (Retention{}) {
		r.Last, r.Weekly = defaultLast, defaultWeekly
	}
	list := make([]Verdict, 0, len(points))
	for _, p := range points {
		list = append(list, Verdict{Point: p})
	}
	slices.SortStableFunc(list, func(a, b Verdict) int {
		if c := b.Time.Compare(a.Time); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	why := make([][]string, len(list))
	whole := 0
	for i, v := range list {
		if v.Keep {
			why[i] = append(why[i], "kept by hand")
		}
		if r.Within > 0 && now.Sub(v.Time) < r.Within {
			why[i] = append(why[i], "younger than "+words(r.Within))
		}
		if v.Damaged {
			continue
		}
		if whole++; whole <= r.Last {
			why[i] = append(why[i], fmt.Sprintf("last %d of %d", whole, r.Last))
		}
	}
	standIn := make([]string, len(list)) // why a point is not kept by the finest rule
	for _, p := range r.periods() {
		seen, n := map[string]bool{}, 0
		for i, v := range list {
			if v.Damaged {
				continue
			}
			key := p.key(v.Time.In(now.Location()))
			switch {
			case seen[key]:
				if standIn[i] == "" {
					standIn[i] = fmt.Sprintf("a newer point stands for %s", key)
				}
			case n >= p.keep:
				if standIn[i] == "" {
					standIn[i] = fmt.Sprintf("%s is before the last %d of rule %s", key, p.keep, p.name)
				}
			default:
				seen[key] = true
				n++
				why[i] = append(why[i], fmt.Sprintf("%s %s, %d of %d", p.name, key, n, p.keep))
			}
		}
	}
	if exists {
		keepOne(list, why)
	}
	for i := range list {
		list[i].Kept = len(why[i]) > 0
		switch {
		case list[i].Kept:
			list[i].Reason = strings.Join(why[i], "; ")
		case list[i].Damaged:
			list[i].Reason = "is damaged, and stands for nothing"
		case standIn[i] != "":
			list[i].Reason = "no rule keeps it: " + standIn[i]
		default:
			list[i].Reason = fmt.Sprintf("no rule keeps it: is not among the last %d", r.Last)
		}
	}
	return list
}

// keepOne keeps the newest whole point if no whole one is kept, and the newest of all if none is whole.
func keepOne(list []Verdict, why [][]string) {
	newest := -1
	for i, v := range list {
		if v.Damaged {
			continue
		}
		if len(why[i]) > 0 {
			return
		}
		if newest < 0 {
			newest = i
		}
	}
	if newest >= 0 {
		why[newest] = append(why[newest], "the only one that is left of its VM")
		return
	}
	if len(list) > 0 && len(why[0]) == 0 {
		why[0] = append(why[0], "the only one that is left of its VM, though damaged")
	}
}

// words is a duration for people: 36h is 36 hours, 720h is 30 days.
func words(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d >= 2*day && d%day == 0:
		return fmt.Sprintf("%d days", d/day)
	case d >= 2*time.Hour && d%time.Hour == 0:
		return fmt.Sprintf("%d hours", d/time.Hour)
	}
	return d.Round(time.Second).String()
}
