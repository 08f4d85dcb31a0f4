package query

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// ErrToken: the page token is not one that this query gave.
var ErrToken = errors.New("page token is not from this list; start again without one")

// Error is a mistake in a filter, an order or a field mask.
type Error struct {
	In     string // "filter", "order_by", "update_mask"
	Pos    int    // 1-based byte position in In; 0 if it has none
	Reason string
}

func (e *Error) Error() string {
	if e.Pos == 0 {
		return e.In + ": " + e.Reason
	}
	return fmt.Sprintf("%s, at character %d: %s", e.In, e.Pos, e.Reason)
}

// unknownField says which names would have been right.
func unknownField(md protoreflect.MessageDescriptor, name string) string {
	names := make([]string, md.Fields().Len())
	for i := range names {
		names[i] = string(md.Fields().Get(i).Name())
	}
	return fmt.Sprintf("%s has no field %q; %s", md.Name(), clip(name), suggest(name, names))
}

func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}

// suggest names the nearest of names, or all if none is near and they are few.
func suggest(got string, names []string) string {
	got = strings.ToLower(clip(got))
	type near struct {
		name string
		d    int
	}
	var ns []near
	for _, n := range names {
		d := distance(got, strings.ToLower(n))
		if strings.HasPrefix(strings.ToLower(n), got) {
			d = min(d, 1)
		}
		if d <= max(2, len(n)/3) {
			ns = append(ns, near{n, d})
		}
	}
	slices.SortStableFunc(ns, func(a, b near) int { return a.d - b.d })
	if len(ns) == 0 {
		return "it has " + strings.Join(names[:min(len(names), 24)], ", ")
	}
	out := make([]string, 0, 3)
	for _, n := range ns[:min(len(ns), 3)] {
		out = append(out, n.name)
	}
	return "did you mean " + strings.Join(out, " or ") + "?"
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost = 1 + min(diag, row[j], row[j+1])
			}
			diag, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
