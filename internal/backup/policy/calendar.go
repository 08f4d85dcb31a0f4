package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Schedule is a parsed calendar expression: which days, and when on them. The zero value is never due.
type Schedule struct {
	text  string
	days  days
	times []int // minutes of the day, sorted, without doubles
	every int   // minutes between due times on a day, from midnight on; 0: times
}

// days says which days are meant. A day must be in all that are set.
type days struct {
	week  uint8  // bit 0 is Sunday; 0: all
	nth   uint8  // bit 1: the first such day of the week in the month, … bit 5; bit 6: the last; 0: all
	month uint32 // bit 1: the first day of the month, …; bit 0: the last; 0: all
}

const (
	lastNth  = 6
	dayHours = 24 * 60
)

var weekdays = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

var ordinals = map[string]uint8{"1st": 1, "2nd": 2, "3rd": 3, "4th": 4, "5th": 5, "last": lastNth}

// expressionHelp stands in errors.
const expressionHelp = `use forms such as "daily 22:00", "mon..fri 12:00,18:00", "hourly", "*/15m", "1st sun 03:00", "monthly 02:00", "day 15 01:00"`

// longest is the most bytes that an expression may have.
const longest = 256

// ParseSchedule reads a calendar expression.
//
//	hourly | */Nm | */Nh              every N minutes or hours of the day, N dividing it
//	[DAYS] TIME,…                     DAYS: daily, weekly (sunday), monthly (the 1st), mon, mon..fri, mon,wed,
//	                                  1st sun, last fri, day 15, last day
//	DAYS hourly | DAYS */15m          the same on some days
func ParseSchedule(text string) (Schedule, error) {
	s := Schedule{text: text}
	bad := func(format string, args ...any) (Schedule, error) {
		return Schedule{}, fmt.Errorf("schedule %q: %s; %s", clip(text), fmt.Sprintf(format, args...), expressionHelp)
	}
	if len(text) > longest {
		return bad("has %d characters, at most %d are taken", len(text), longest)
	}
	words := strings.Fields(strings.ToLower(text))
	if len(words) == 0 {
		return bad("is empty")
	}
	when := words[len(words)-1]
	rest := words[:len(words)-1]
	switch every, ok, err := parseEvery(when); {
	case err != nil:
		return bad("%v", err)
	case ok:
		s.every = every
	case strings.Contains(when, ":"):
		times, err := parseTimes(when)
		if err != nil {
			return bad("%v", err)
		}
		s.times = times
	default:
		s.times, rest = []int{0}, words // only days: at midnight
	}
	var err error
	if s.days, err = parseDays(rest); err != nil {
		return bad("%v", err)
	}
	return s, nil
}

func clip(s string) string {
	if len(s) > 64 {
		return strings.ToValidUTF8(s[:64], "") + "…"
	}
	return s
}

// parseEvery reads hourly and */N.
func parseEvery(s string) (minutes int, ok bool, err error) {
	if s == "hourly" {
		return 60, true, nil
	}
	n, ok := strings.CutPrefix(s, "*/")
	if !ok {
		return 0, false, nil
	}
	unit := 1
	if h, is := strings.CutSuffix(n, "h"); is {
		n, unit = h, 60
	} else {
		n = strings.TrimSuffix(n, "m")
	}
	v, err := strconv.Atoi(n)
	if err != nil || v <= 0 || v > dayHours || dayHours%(v*unit) != 0 {
		return 0, false, fmt.Errorf("%q must be a part of the day such as */15m or */4h", s)
	}
	return v * unit, true, nil
}

func parseTimes(s string) ([]int, error) {
	var list []int
	for _, t := range strings.Split(s, ",") {
		m, err := parseTime(t)
		if err != nil {
			return nil, err
		}
		if m == dayHours {
			return nil, fmt.Errorf("%q is the next day's 00:00", t)
		}
		list = append(list, m)
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}

// parseTime reads HH:MM, up to 24:00.
func parseTime(s string) (int, error) {
	h, m, ok := strings.Cut(s, ":")
	x, err1 := strconv.ParseUint(h, 10, 8)
	y, err2 := strconv.ParseUint(m, 10, 8)
	if !ok || err1 != nil || err2 != nil || len(h) > 2 || len(m) != 2 || y > 59 || x > 24 || x == 24 && y > 0 {
		return 0, fmt.Errorf("%q is not a time of day such as 22:00", s)
	}
	return int(x)*60 + int(y), nil
}

func parseDays(words []string) (d days, err error) {
	switch {
	case len(words) == 0:
		return d, nil
	case len(words) == 1:
		switch words[0] {
		case "daily":
			return d, nil
		case "weekly":
			d.week = 1
			return d, nil
		case "monthly":
			d.month = 1 << 1
			return d, nil
		}
		d.week, err = parseWeek(words[0])
		return d, err
	case words[0] == "day" && len(words) == 2:
		for _, w := range strings.Split(words[1], ",") {
			n, err := strconv.ParseUint(w, 10, 8)
			if err != nil || n < 1 || n > 31 {
				return d, fmt.Errorf("%q is not a day of the month", w)
			}
			d.month |= 1 << n
		}
		return d, nil
	case words[0] == "last" && words[1] == "day" && len(words) == 2:
		d.month = 1
		return d, nil
	case len(words) == 2:
		for _, w := range strings.Split(words[0], ",") {
			n, ok := ordinals[w]
			if !ok {
				return d, fmt.Errorf("%q is none of 1st, 2nd, 3rd, 4th, 5th, last", w)
			}
			d.nth |= 1 << n
		}
		d.week, err = parseWeek(words[1])
		return d, err
	}
	return d, fmt.Errorf("%q names no days", strings.Join(words, " "))
}

// parseWeek reads mon, mon,wed and mon..fri.
func parseWeek(s string) (set uint8, err error) {
	for _, part := range strings.Split(s, ",") {
		from, to, isRange := strings.Cut(part, "..")
		a, ok := weekday(from)
		b := a
		if isRange && ok {
			b, ok = weekday(to)
		}
		if !ok {
			return 0, fmt.Errorf("%q is not a day of the week such as mon, or days such as mon..fri", part)
		}
		for d := a; ; d = (d + 1) % 7 {
			set |= 1 << d
			if d == b {
				break
			}
		}
	}
	return set, nil
}

func weekday(s string) (int, bool) {
	if len(s) < 3 {
		return 0, false
	}
	i := slices.Index(weekdays, s[:3])
	if i < 0 || len(s) > 3 && s != strings.ToLower(time.Weekday(i).String()) {
		return 0, false
	}
	return i, true
}

func (s Schedule) String() string { return s.text }

// on reports whether a date is among the days.
func (d days) on(year int, month time.Month, day int) bool {
	date := time.Date(year, month, day, 12, 0, 0, 0, time.UTC)
	if d.week != 0 && d.week&(1<<date.Weekday()) == 0 {
		return false
	}
	length := time.Date(year, month+1, 0, 12, 0, 0, 0, time.UTC).Day()
	if d.nth != 0 {
		last := day+7 > length
		if d.nth&(1<<((day-1)/7+1)) == 0 && !(last && d.nth&(1<<lastNth) != 0) {
			return false
		}
	}
	if d.month != 0 && d.month&(1<<day) == 0 && !(day == length && d.month&1 != 0) {
		return false
	}
	return true
}

// farthest bounds how many days ahead a due time is looked for: the 29th of February that is a 5th Sunday may be 40 years away.
const farthest = 366 * 41

// Next is the first due time after t, in t's zone; zero if there is none. A time that the clocks skip is due when they have
// skipped it; one that they show twice is due the first time only. What is due every so many minutes of the day goes on through both.
func (s Schedule) Next(t time.Time) time.Time {
	if s.every == 0 && len(s.times) == 0 {
		return time.Time{}
	}
	y, m, d := t.Date()
	for i := range farthest {
		date := time.Date(y, m, d+i, 12, 0, 0, 0, time.UTC)
		if !s.days.on(date.Date()) {
			continue
		}
		if x := s.onDay(date, t); !x.IsZero() {
			return x
		}
	}
	return time.Time{}
}

// onDay is the first due time of a day after t.
func (s Schedule) onDay(date, t time.Time) time.Time {
	y, m, d := date.Date()
	loc := t.Location()
	if s.every > 0 {
		// By elapsed time from midnight, so that an hour that comes twice has its runs twice, and none is crowded.
		begin, end := instant(y, m, d, 0, loc), instant(y, m, d+1, 0, loc)
		x := begin
		if gap := t.Sub(begin); gap >= 0 {
			step := time.Duration(s.every) * time.Minute
			x = begin.Add((gap/step + 1) * step)
		}
		if x.Before(end) {
			return x
		}
		return time.Time{}
	}
	for _, min := range s.times {
		if x := instant(y, m, d, min, loc); x.After(t) {
			return x
		}
	}
	return time.Time{}
}

// instant is when the clocks of a place first show a time of day, or first show a later one.
func instant(y int, m time.Month, d, minutes int, loc *time.Location) time.Time {
	x := time.Date(y, m, d, minutes/60, minutes%60, 0, 0, loc)
	want := time.Date(y, m, d, minutes/60, minutes%60, 0, 0, time.UTC)
	shown := wall(x)
	if shown.Equal(want) {
		// Shown twice? The zone's offset some hours before says when it was shown first.
		for _, back := range []time.Duration{30 * time.Minute, time.Hour, 2 * time.Hour, 3 * time.Hour} {
			if e := x.Add(-back); wall(e).Equal(want) {
				return e
			}
		}
		return x
	}
	// Skipped: the moment of the change is where the wall clock jumps over it.
	lo, hi := x.Add(-26*time.Hour), x.Add(26*time.Hour)
	for hi.Sub(lo) > time.Second {
		mid := lo.Add(hi.Sub(lo) / 2)
		if wall(mid).Before(want) {
			lo = mid
		} else {
			hi = mid
		}
	}
	return hi.Round(time.Second)
}

// wall is what the clocks show, as if it were UTC.
func wall(t time.Time) time.Time {
	y, m, d := t.Date()
	return time.Date(y, m, d, t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), time.UTC)
}

// Next is the first due time of several schedules after t, and which it is of.
func Next(list []Schedule, t time.Time) (at time.Time, of Schedule) {
	for _, s := range list {
		if x := s.Next(t); !x.IsZero() && (at.IsZero() || x.Before(at)) {
			at, of = x, s
		}
	}
	return at, of
}

// mostSteps bounds a walk over missed due times: a year of every quarter of an hour.
const mostSteps = 40_000

// Last is the last due time of several schedules in (after, until]; zero if there is none.
func Last(list []Schedule, after, until time.Time) (at time.Time, of Schedule) {
	// Long ago is of no use: the last is looked for from the end, in steps that double.
	for back := 2 * time.Hour; ; back *= 4 {
		from := until.Add(-back)
		if !from.After(after) {
			from = after
		}
		x := from.In(until.Location())
		for range mostSteps {
			next, s := Next(list, x)
			if next.IsZero() || next.After(until) {
				break
			}
			at, of, x = next, s, next
		}
		if !at.IsZero() || from.Equal(after) || back > 45*366*24*time.Hour {
			return at, of
		}
	}
}
