package model_test

import (
	"fmt"
	"maps"
	"regexp"
	"strings"

	"drover/internal/vswitch/frame"
	"drover/internal/vswitch/model"
	"drover/internal/vswitch/table"
)

// minimise takes away arrivals, rows, flags and bytes as long as the two still differ, and says what is left as Go.
func (k *kernel) minimise(t *table.Tables, arrivals []arrival, first string) string {
	fails := func(t *table.Tables, a []arrival) bool {
		diff, _, _, err := k.try(t, a)
		return err == nil && diff != ""
	}
	if !fails(t, arrivals) {
		return "it did not happen a second time: " + first
	}
	// The shortest start that differs, then without each of its arrivals.
	low, high := 1, len(arrivals)
	for low < high {
		if mid := (low + high) / 2; fails(t, arrivals[:mid]) {
			high = mid
		} else {
			low = mid + 1
		}
	}
	arrivals = append([]arrival(nil), arrivals[:high]...)
	for step := len(arrivals) / 2; step > 0; step /= 2 {
		for i := 0; i+step <= len(arrivals); {
			if less := append(append([]arrival(nil), arrivals[:i]...), arrivals[i+step:]...); len(less) > 0 && fails(t, less) {
				arrivals = less
			} else {
				i += step
			}
		}
	}
	t = fewer(t, func(t *table.Tables) bool { return fails(t, arrivals) })
	for i := range arrivals {
		a := &arrivals[i]
		for n := len(a.Bytes) / 2; n > 0; n /= 2 {
			for len(a.Bytes)-n >= 14 {
				old := a.Bytes
				a.Bytes = old[:len(old)-n]
				if !fails(t, arrivals) {
					a.Bytes = old
					break
				}
			}
		}
		for j := range a.Bytes {
			if old := a.Bytes[j]; old != 0 {
				b := append([]byte(nil), a.Bytes...)
				b[j] = 0
				before := a.Bytes
				a.Bytes = b
				if !fails(t, arrivals) {
					a.Bytes = before
				}
			}
		}
	}
	diff, _, _, _ := k.try(t, arrivals)
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", diff)
	m := model.New(t, nil)
	m.Trace = true
	for i := range arrivals {
		r := ask(m, &arrivals[i])
		fmt.Fprintf(&b, "%s\n", frame.Summary(arrivals[i].Bytes))
		for _, s := range r.Steps {
			fmt.Fprintf(&b, "\t%-10s %-5v %s\n", s.Stage, s.Passed, s.Text)
		}
		fmt.Fprintf(&b, "\t%v %v, outputs %+v\n", r.Verdict, r.Reason, r.Outputs)
	}
	fmt.Fprintf(&b, "tables := %s\narrivals := %s\n", literal(t), literal(arrivals))
	return b.String()
}

// prune takes rows away as long as still says so.
func prune[K comparable, V any](m map[K]V, still func() bool) {
	for _, k := range sorted(m) {
		v := m[k]
		delete(m, k)
		if !still() {
			m[k] = v
		}
	}
}

func fewer(t *table.Tables, fails func(*table.Tables) bool) *table.Tables {
	c := &table.Tables{Ports: maps.Clone(t.Ports), FDB: maps.Clone(t.FDB), Networks: maps.Clone(t.Networks), Members: maps.Clone(t.Members), Groups: maps.Clone(t.Groups),
		Bindings: maps.Clone(t.Bindings), MACs: maps.Clone(t.MACs), Trunks: maps.Clone(t.Trunks), Uplinks: maps.Clone(t.Uplinks), UplinkVLANs: maps.Clone(t.UplinkVLANs),
		Teams: maps.Clone(t.Teams), VTEPs: maps.Clone(t.VTEPs), VTEPSources: maps.Clone(t.VTEPSources), Meters: maps.Clone(t.Meters)}
	// The kernel's copy is compared with what was loaded: it must not be the map that changes.
	still := func() bool {
		x := *c
		x.Ports, x.FDB, x.Networks, x.Members = maps.Clone(c.Ports), maps.Clone(c.FDB), maps.Clone(c.Networks), maps.Clone(c.Members)
		x.Groups, x.MACs, x.Trunks, x.Uplinks = maps.Clone(c.Groups), maps.Clone(c.MACs), maps.Clone(c.Trunks), maps.Clone(c.Uplinks)
		x.UplinkVLANs, x.VTEPs, x.VTEPSources = maps.Clone(c.UplinkVLANs), maps.Clone(c.VTEPs), maps.Clone(c.VTEPSources)
		x.Bindings = maps.Clone(c.Bindings)
		return fails(&x)
	}
	prune(c.FDB, still)
	prune(c.Members, still)
	prune(c.Groups, still)
	prune(c.Bindings, still)
	prune(c.MACs, still)
	prune(c.Trunks, still)
	prune(c.UplinkVLANs, still)
	prune(c.Uplinks, still)
	prune(c.Meters, still)
	prune(c.Teams, still)
	prune(c.VTEPs, still)
	prune(c.VTEPSources, still)
	prune(c.Ports, still)
	prune(c.Networks, still)
	for _, k := range sorted(c.Ports) {
		for bit := range 27 {
			p := c.Ports[k]
			old := p
			if p.Flags &^= 1 << bit; p == old {
				continue
			}
			if c.Ports[k] = p; !still() {
				c.Ports[k] = old
			}
		}
	}
	return c
}

var blank = regexp.MustCompile(`, _:0x0|_:0x0, `)

func literal(v any) string { return blank.ReplaceAllString(fmt.Sprintf("%#v", v), "") }
