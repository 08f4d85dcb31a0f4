package policy

import (
	"fmt"
	"strings"
	"time"
)

// Window is a part of the week. The zero value is empty.
type Window struct {
	text     string
	days     days
	from, to int // minutes of the day; to <= from: it goes into the next day
}

// ParseWindow reads a window: [DAYS] [HH:MM-HH:MM]. One that ends before it begins goes on past midnight; the days are those on which it begins.
func ParseWindow(text string) (Window, error) {
	w := Window{text: text, to: dayHours}
	bad := func(err error) (Window, error) {
		return Window{}, fmt.Errorf(`window %q: %w; use forms such as "22:00-06:00", "sat,sun", "mon..fri 08:00-18:00"`, clip(text), err)
	}
	words := strings.Fields(strings.ToLower(text))
	if len(text) > longest || len(words) == 0 {
		return bad(fmt.Errorf("has %d characters, 1 to %d are taken", len(text), longest))
	}
	if last := words[len(words)-1]; strings.Contains(last, ":") {
		from, to, ok := strings.Cut(last, "-")
		if !ok {
			return bad(fmt.Errorf("%q is not a span such as 22:00-06:00", last))
		}
		var err error
		if w.from, err = parseTime(from); err != nil {
			return bad(err)
		}
		if w.to, err = parseTime(to); err != nil {
			return bad(err)
		}
		if w.from == dayHours || w.from == w.to {
			return bad(fmt.Errorf("%q is empty", last))
		}
		words = words[:len(words)-1]
	}
	var err error
	if w.days, err = parseDays(words); err != nil {
		return bad(err)
	}
	return w, nil
}

func (w Window) String() string { return w.text }

// span is the window that begins on a day, if one does.
func (w Window) span(y int, m time.Month, d int, loc *time.Location) (from, to time.Time, ok bool) {
	date := time.Date(y, m, d, 12, 0, 0, 0, time.UTC)
	y, m, d = date.Date()
	if !w.days.on(y, m, d) {
		return from, to, false
	}
	from = instant(y, m, d, w.from, loc)
	if w.to == dayHours {
		to = instant(y, m, d+1, 0, loc)
	} else if w.to > w.from {
		to = instant(y, m, d, w.to, loc)
	} else {
		next := date.AddDate(0, 0, 1)
		to = instant(next.Year(), next.Month(), next.Day(), w.to, loc)
	}
	return from, to, from.Before(to)
}

// Contains reports whether t is in the window.
func (w Window) Contains(t time.Time) bool {
	if w.to == 0 && w.from == 0 {
		return false
	}
	y, m, d := t.Date()
	for _, back := range []int{1, 0} {
		if from, to, ok := w.span(y, m, d-back, t.Location()); ok && !t.Before(from) && t.Before(to) {
			return true
		}
	}
	return false
}

// Open is the first time from t on that is in one of the windows; t itself if there are none. It is zero if none ever opens.
func Open(list []Window, t time.Time) time.Time {
	if len(list) == 0 {
		return t
	}
	var first time.Time
	for _, w := range list {
		if w.Contains(t) {
			return t
		}
		y, m, d := t.Date()
		for i := range farthest {
			if from, _, ok := w.span(y, m, d+i, t.Location()); ok && from.After(t) {
				if first.IsZero() || from.Before(first) {
					first = from
				}
				break
			}
		}
	}
	return first
}
