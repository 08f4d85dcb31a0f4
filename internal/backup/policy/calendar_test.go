package policy

import (
	"strings"
	"testing"
	"time"
)

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	l, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func when(t testing.TB, s string, l *time.Location) time.Time {
	t.Helper()
	x, err := time.ParseInLocation("2006-01-02 15:04", s, l)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func schedule(t testing.TB, s string) Schedule {
	t.Helper()
	x, err := ParseSchedule(s)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// What a schedule does from a moment on. 2026-11-22 is a Sunday.
func TestNext(t *testing.T) {
	utc := time.UTC
	for _, c := range []struct{ expr, from, want string }{
		{"daily 22:00", "2026-11-22 21:59", "2026-11-22 22:00, 2026-11-23 22:00"},
		{"daily 22:00", "2026-11-22 22:00", "2026-11-23 22:00"},
		{"22:00", "2026-11-22 22:00", "2026-11-23 22:00"},
		{"mon..fri 12:00,18:00", "2026-11-22 00:00", "2026-11-23 12:00, 2026-11-23 18:00, 2026-11-24 12:00"},
		{"mon..fri 12:00", "2026-11-27 12:00", "2026-11-30 12:00"},
		{"fri..mon 01:00", "2026-11-24 00:00", "2026-11-27 01:00, 2026-11-28 01:00, 2026-11-29 01:00, 2026-11-30 01:00, 2026-12-04 01:00"},
		{"Monday,THU 9:30", "2026-11-22 00:00", "2026-11-23 09:30, 2026-11-26 09:30"},
		{"hourly", "2026-11-22 21:05", "2026-11-22 22:00, 2026-11-22 23:00, 2026-11-23 00:00"},
		{"*/15m", "2026-11-22 21:05", "2026-11-22 21:15, 2026-11-22 21:30"},
		{"*/4h", "2026-11-22 21:05", "2026-11-23 00:00, 2026-11-23 04:00"},
		{"sat,sun */6h", "2026-11-22 18:00", "2026-11-28 00:00, 2026-11-28 06:00"},
		{"1st sun 03:00", "2026-11-22 00:00", "2026-12-06 03:00, 2027-01-03 03:00"},
		{"last fri 03:00", "2026-11-22 00:00", "2026-11-27 03:00, 2026-12-25 03:00, 2027-01-29 03:00"},
		{"5th sun 03:00", "2026-11-22 00:00", "2026-11-29 03:00, 2027-01-31 03:00"},
		{"2nd,4th sat 03:00", "2026-11-22 00:00", "2026-11-28 03:00, 2026-12-12 03:00"},
		{"day 31 01:00", "2026-11-22 00:00", "2026-12-31 01:00, 2027-01-31 01:00, 2027-03-31 01:00"},
		{"day 1,15 01:00", "2026-11-22 00:00", "2026-12-01 01:00, 2026-12-15 01:00"},
		{"last day 01:00", "2027-02-01 00:00", "2027-02-28 01:00, 2027-03-31 01:00"},
		{"monthly 02:00", "2026-11-22 00:00", "2026-12-01 02:00, 2027-01-01 02:00"},
		{"weekly 02:00", "2026-11-22 03:00", "2026-11-29 02:00"},
		{"daily", "2026-11-22 03:00", "2026-11-23 00:00"},
		{"day 29 00:00", "2027-01-30 00:00", "2027-03-29 00:00"},
	} {
		at := when(t, c.from, utc)
		s := schedule(t, c.expr)
		for _, want := range strings.Split(c.want, ", ") {
			if at = s.Next(at); !at.Equal(when(t, want, utc)) {
				t.Errorf("%q from %s: %s, want %s", c.expr, c.from, at.Format("2006-01-02 15:04"), want)
				break
			}
		}
	}
}

// The clocks of Berlin skip 02:00 to 03:00 on 2026-03-29 and show it twice on 2026-10-25. In Lord Howe they move by half an hour, in Apia a whole day was skipped.
func TestNextWhenClocksChange(t *testing.T) {
	for _, c := range []struct{ zone, expr, from, want string }{
		{"Europe/Berlin", "daily 02:30", "2026-03-28T12:00:00Z", "2026-03-29T01:00:00Z, 2026-03-30T00:30:00Z"},
		{"Europe/Berlin", "daily 02:30", "2026-10-24T12:00:00Z", "2026-10-25T00:30:00Z, 2026-10-26T01:30:00Z"},
		{"Europe/Berlin", "daily 02:00", "2026-10-24T12:00:00Z", "2026-10-25T00:00:00Z, 2026-10-26T01:00:00Z"},
		{"Europe/Berlin", "daily 03:00", "2026-10-24T12:00:00Z", "2026-10-25T02:00:00Z"},
		{"Europe/Berlin", "daily 03:00", "2026-03-28T12:00:00Z", "2026-03-29T01:00:00Z, 2026-03-30T01:00:00Z"},
		{"Europe/Berlin", "hourly", "2026-10-24T23:30:00Z", "2026-10-25T00:00:00Z, 2026-10-25T01:00:00Z, 2026-10-25T02:00:00Z"},
		{"Europe/Berlin", "hourly", "2026-03-29T00:30:00Z", "2026-03-29T01:00:00Z, 2026-03-29T02:00:00Z"},
		{"Europe/Berlin", "daily 22:00", "2026-10-24T20:00:00Z", "2026-10-25T21:00:00Z"},
		{"Australia/Lord_Howe", "daily 01:45", "2026-04-04T00:00:00Z", "2026-04-04T14:45:00Z, 2026-04-05T15:15:00Z"},
		{"America/New_York", "sun 02:15", "2026-03-07T12:00:00Z", "2026-03-08T07:00:00Z, 2026-03-15T06:15:00Z"},
	} {
		at, err := time.Parse(time.RFC3339, c.from)
		if err != nil {
			t.Fatal(err)
		}
		at = at.In(zone(t, c.zone))
		s := schedule(t, c.expr)
		for _, want := range strings.Split(c.want, ", ") {
			if at = s.Next(at); at.UTC().Format(time.RFC3339) != want {
				t.Errorf("%s %q from %s: %s, want %s", c.zone, c.expr, c.from, at.UTC().Format(time.RFC3339), want)
				break
			}
		}
	}
}

// Each day that a schedule names has as many due times as it names, in every zone, through all changes of the clocks of a year.
func TestOncePerDay(t *testing.T) {
	for _, name := range []string{"UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Africa/Cairo", "America/Havana", "Asia/Tehran"} {
		l := zone(t, name)
		for _, expr := range []string{"daily 00:00", "daily 00:30", "daily 01:30", "daily 02:30", "daily 03:00,23:59"} {
			s := schedule(t, expr)
			n, at, end := 0, time.Date(2025, 12, 31, 23, 59, 59, 0, l), time.Date(2026, 12, 31, 23, 59, 59, 0, l)
			for {
				next := s.Next(at)
				if !next.After(at) {
					t.Fatalf("%s %q: after %v comes %v", name, expr, at, next)
				}
				if next.After(end) {
					break
				}
				n, at = n+1, next
			}
			if want := 365 * len(s.times); n != want {
				t.Errorf("%s %q: %d due times in 2026, want %d", name, expr, n, want)
			}
		}
	}
}

func TestLast(t *testing.T) {
	for _, c := range []struct{ expr, after, until, want string }{
		{"daily 22:00", "2026-11-20 00:00", "2026-11-22 21:00", "2026-11-21 22:00"},
		{"daily 22:00", "2026-11-21 22:00", "2026-11-22 21:00", ""},
		{"daily 22:00", "2026-11-21 22:00", "2026-11-22 22:00", "2026-11-22 22:00"},
		{"monthly 02:00", "2020-01-01 00:00", "2026-11-22 21:00", "2026-11-01 02:00"},
		{"5th sun 03:00", "2020-01-01 00:00", "2026-11-22 21:00", "2026-08-30 03:00"},
		{"*/15m", "2020-01-01 00:00", "2026-11-22 21:14", "2026-11-22 21:00"},
	} {
		at, _ := Last([]Schedule{schedule(t, c.expr)}, when(t, c.after, time.UTC), when(t, c.until, time.UTC))
		got := ""
		if !at.IsZero() {
			got = at.Format("2006-01-02 15:04")
		}
		if got != c.want {
			t.Errorf("last of %q in (%s, %s]: %q, want %q", c.expr, c.after, c.until, got, c.want)
		}
	}
}

func TestWindows(t *testing.T) {
	for _, c := range []struct {
		expr, at string
		in       bool
	}{
		{"22:00-06:00", "2026-11-22 22:00", true}, {"22:00-06:00", "2026-11-23 05:59", true}, {"22:00-06:00", "2026-11-23 06:00", false}, {"22:00-06:00", "2026-11-22 21:59", false},
		{"sat,sun", "2026-11-22 23:59", true}, {"sat,sun", "2026-11-23 00:00", false}, {"mon..fri 08:00-18:00", "2026-11-23 08:00", true},
		{"mon..fri 08:00-18:00", "2026-11-22 12:00", false}, {"fri 22:00-06:00", "2026-11-28 03:00", true}, {"fri 22:00-06:00", "2026-11-27 03:00", false},
		{"daily 00:00-24:00", "2026-11-22 23:59", true}, {"last day", "2026-11-30 10:00", true},
	} {
		w, err := ParseWindow(c.expr)
		if err != nil {
			t.Fatal(err)
		}
		if got := w.Contains(when(t, c.at, time.UTC)); got != c.in {
			t.Errorf("%s in %q: %v", c.at, c.expr, got)
		}
	}
	w, _ := ParseWindow("fri 22:00-06:00")
	if at := Open([]Window{w}, when(t, "2026-11-22 12:00", time.UTC)); !at.Equal(when(t, "2026-11-27 22:00", time.UTC)) {
		t.Errorf("opens %v", at)
	}
	if at := Open([]Window{w}, when(t, "2026-11-28 05:00", time.UTC)); !at.Equal(when(t, "2026-11-28 05:00", time.UTC)) {
		t.Errorf("is open, but opens %v", at)
	}
}

func TestBadExpressions(t *testing.T) {
	for _, s := range []string{"", "never", "25:00", "24:00", "daily 9", "mon..xyz 10:00", "*/7m", "*/0m", "*/-5m", "*/9999h", "0th sun 01:00", "day 0 01:00", "day 32 01:00", "daily 10:00,", "1st 10:00", "10:00 daily", "daily 10:0", "daily +1:00", strings.Repeat("x", 300)} {
		if x, err := ParseSchedule(s); err == nil {
			t.Errorf("schedule %q was taken: %+v", s, x)
		}
	}
	for _, s := range []string{"", "22:00", "10:00-10:00", "24:00-01:00", "x 10:00-11:00", "10:00-11:00 mon"} {
		if x, err := ParseWindow(s); err == nil {
			t.Errorf("window %q was taken: %+v", s, x)
		}
	}
}

func FuzzSchedule(f *testing.F) {
	for _, s := range []string{"daily 22:00", "mon..fri 12:00,18:00", "hourly", "*/15m", "1st sun 03:00", "last day 01:00", "day 31 00:00", "5th mon */4h"} {
		f.Add(s, int64(1_774_000_000))
	}
	berlin := zone(f, "Europe/Berlin")
	f.Fuzz(func(t *testing.T, text string, unix int64) {
		s, err := ParseSchedule(text)
		if err != nil {
			return
		}
		at := time.Unix(unix%4_000_000_000, 0).In(berlin)
		for range 3 {
			next := s.Next(at)
			if next.IsZero() {
				return
			}
			if !next.After(at) {
				t.Fatalf("%q: after %v comes %v", text, at, next)
			}
			if last, _ := Last([]Schedule{s}, at, next); !last.Equal(next) {
				t.Fatalf("%q: the last in (%v, %v] is %v", text, at, next, last)
			}
			at = next
		}
	})
}

func FuzzWindow(f *testing.F) {
	for _, s := range []string{"22:00-06:00", "sat,sun", "mon..fri 08:00-18:00", "1st sun 01:00-02:00"} {
		f.Add(s, int64(1_774_000_000))
	}
	berlin := zone(f, "Europe/Berlin")
	f.Fuzz(func(t *testing.T, text string, unix int64) {
		w, err := ParseWindow(text)
		if err != nil {
			return
		}
		at := time.Unix(unix%4_000_000_000, 0).In(berlin)
		if open := Open([]Window{w}, at); !open.IsZero() && (open.Before(at) || !w.Contains(open)) {
			t.Fatalf("%q: from %v it opens at %v", text, at, open)
		}
	})
}
