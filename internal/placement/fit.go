package placement

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// fits reports whether a host can take a VM. Without why it stops at the first
// obstacle; with it, it writes all of them down. On success q.chose holds the
// store of each disk.
func (p *plan) fits(i int, q *query, why *[]Reason) bool {
	n, ok := p.hosts[i], true
	// no notes an obstacle and reports whether to stop.
	no := func(c Code, format string, args ...any) bool {
		ok = false
		if why != nil {
			*why = append(*why, Reason{c, fmt.Sprintf(format, args...)})
		}
		return why == nil
	}
	if n.Down != "" && no(NotReady, "the host is not ready: %s", n.Down) ||
		n.Maintenance && no(Maintenance, "the host is in maintenance") ||
		n.Cordoned && no(Cordoned, "the host is cordoned: it takes no new VMs") {
		return false
	}
	if len(q.Sites) > 0 && !slices.Contains(q.Sites, n.Site) &&
		no(NotSelected, "the VM wants site %s, the host is in %s", strings.Join(q.Sites, " or "), n.Site) ||
		len(q.Hosts) > 0 && !slices.Contains(q.Hosts, n.Name) &&
			no(NotSelected, "the VM wants host %s", strings.Join(q.Hosts, " or ")) ||
		slices.Contains(q.Avoid, n.Name) && no(NotSelected, "the VM is to leave or avoid this host") {
		return false
	}
	if !subset(q.HostLabels, n.Labels) {
		for _, k := range slices.Sorted(maps.Keys(q.HostLabels)) {
			if v, has := n.Labels[k]; !has || v != q.HostLabels[k] {
				if no(NotSelected, "the VM wants a host with label %s=%s", k, q.HostLabels[k]) {
					return false
				}
			}
		}
	}
	if q.Accel != "" && q.Accel != n.Accel && no(NoAccel, "needs %s, the host has %s", q.Accel, orNone(n.Accel)) {
		return false
	}
	for _, f := range q.Features {
		if !n.feature[f] && no(NoFeature, "needs %s, which the host cannot give", f) {
			return false
		}
	}
	if q.CPUs > n.CPUs && no(NoCPU, "needs %d CPUs, the host has only %d", q.CPUs, n.CPUs) ||
		q.CPUs <= n.CPUs && q.CPUs > n.cpuLimit-n.cpuUsed &&
			no(NoCPU, "needs %d CPUs, the host has %d free of %d (%d threads, overcommitted)", q.CPUs, max(0, n.cpuLimit-n.cpuUsed), n.cpuLimit, n.CPUs) ||
		q.MemoryMiB > n.memory-n.memUsed &&
			no(NoMemory, "needs %d MiB, the host has %d MiB free", q.MemoryMiB, max(0, n.memory-n.memUsed)) {
		return false
	}
	for _, name := range q.Networks {
		if !n.networks[name] && no(NoNetwork, "needs network %s, which the host does not have", name) {
			return false
		}
	}
	if !p.storage(n, q) && p.noStorage(n, q, no) {
		return false
	}
	p.near(i, q, no)
	return ok
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// near checks the hard rules about other VMs.
func (p *plan) near(i int, q *query, no func(Code, string, ...any) bool) {
	n := p.hosts[i]
	for _, w := range q.terms {
		if !w.Hard {
			continue
		}
		there := w.count.at(w.Scope, i, n.site)
		switch {
		case w.Anti && there > 0:
			if no(Affinity, "must not share a %s with %s: %d there", w.Scope, w.others(), there) {
				return
			}
		case !w.Anti && there == 0 && !(w.self && w.count.total == 0):
			if no(Affinity, "must share a %s with %s: none there", w.Scope, w.others()) {
				return
			}
		}
	}
	for _, k := range q.keepers {
		if k.at(k.term.Scope, i, n.site) > 0 &&
			no(Affinity, "a VM there must not share its %s with %s, which this one is of", k.term.Scope, k.term.others()) {
			return
		}
	}
}

// others names the VMs that a term is about.
func (t Term) others() string {
	if t.Group != "" {
		return fmt.Sprintf("group %q", t.Group)
	}
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(t.Labels)) {
		parts = append(parts, k+"="+t.Labels[k])
	}
	return "VMs labelled " + strings.Join(parts, ",")
}

// takes reports whether a datastore is one that a disk may be on, room aside.
func (d Disk) takes(s store) bool {
	return !s.Closed && (d.Datastore == "" || d.Datastore == s.Name) && (d.Kind == "" || d.Kind == s.Kind)
}

// storage finds a datastore for each disk: the largest disk first, on the one
// with most room; if that leads nowhere it goes back, within a budget.
func (p *plan) storage(n *node, q *query) bool {
	budget := 4096
	return p.put(n, q, 0, &budget)
}

func (p *plan) put(n *node, q *query, k int, budget *int) bool {
	if k == len(q.order) {
		return true
	}
	d := q.Disks[q.order[k]]
	var tried uint64
	for {
		best := -1
		for s := range n.stores {
			if tried&(1<<s) != 0 || !d.takes(n.stores[s]) || p.free[n.stores[s].at] < d.Bytes {
				continue
			}
			if best < 0 || p.free[n.stores[s].at] > p.free[n.stores[best].at] {
				best = s
			}
		}
		if best < 0 || *budget == 0 {
			return false
		}
		*budget--
		tried |= 1 << best
		at := n.stores[best].at
		p.free[at] -= d.Bytes
		done := p.put(n, q, k+1, budget)
		p.free[at] += d.Bytes
		if done {
			q.chose[q.order[k]] = best
			return true
		}
	}
}

// noStorage says which disk finds no room, and reports whether to stop.
func (p *plan) noStorage(n *node, q *query, no func(Code, string, ...any) bool) bool {
	alone := true
	for _, d := range q.Disks {
		var possible []string
		room := false
		for _, s := range n.stores {
			if d.takes(s) {
				possible = append(possible, fmt.Sprintf("%s has %s free", s.Name, size(p.free[s.at])))
				room = room || p.free[s.at] >= d.Bytes
			}
		}
		switch {
		case room:
			continue
		case len(possible) > 0:
			alone = false
			if no(NoStorage, "disk %s needs %s: %s", d.Name, size(d.Bytes), strings.Join(possible, ", ")) {
				return true
			}
		default:
			alone = false
			want := "a datastore"
			if d.Datastore != "" {
				want = "datastore " + d.Datastore
			}
			if d.Kind != "" {
				want += " of kind " + d.Kind
			}
			if no(NoStorage, "disk %s needs %s, which the host does not have or which is closed", d.Name, want) {
				return true
			}
		}
	}
	return alone && no(NoStorage, "the disks fit one by one, but not together")
}

// size writes bytes for people.
func size(b int64) string {
	b = max(b, 0)
	const mib = 1 << 20
	switch {
	case b < mib:
		return fmt.Sprintf("%d bytes", b)
	case b < 10<<30:
		return fmt.Sprintf("%d MiB", b/mib)
	}
	return fmt.Sprintf("%d GiB", b>>30)
}

// diskNames chooses the datastores on a host that fits.
func (p *plan) diskNames(i int, q *query) []string {
	n := p.hosts[i]
	p.storage(n, q)
	var names []string
	for _, s := range q.chose {
		names = append(names, n.stores[s].Name)
	}
	return names
}

// score rates a host that fits, right after fits or diskNames chose stores.
func (p *plan) score(i int, q *query, detail bool) (float64, []Part) {
	n, w := p.hosts[i], p.opts.Weights
	parts := [4]Part{
		{"cpu", left(n.cpuLimit, n.cpuUsed, q.CPUs), w.CPU},
		{"memory", left(n.memory, n.memUsed, q.MemoryMiB), w.Memory},
		{"storage", p.roomLeft(n, q), w.Storage},
		{"affinity", p.preference(i, q), w.Affinity},
	}
	if p.opts.Pack {
		parts[0].Value, parts[1].Value = 1-parts[0].Value, 1-parts[1].Value
	}
	var sum, weight float64
	for _, part := range parts {
		sum += part.Value * part.Weight
		weight += part.Weight
	}
	if !detail {
		return sum / weight, nil
	}
	return sum / weight, parts[:]
}

// left is the free share after taking need.
func left(limit, used, need int64) float64 {
	if limit <= 0 {
		return 0
	}
	return min(1, max(0, float64(limit-used-need)/float64(limit)))
}

func (p *plan) roomLeft(n *node, q *query) float64 {
	if len(q.Disks) == 0 {
		return 1
	}
	sum := 0.0
	for d, s := range q.chose {
		st := n.stores[s]
		sum += left(max(st.SizeBytes, st.FreeBytes), max(st.SizeBytes, st.FreeBytes)-p.free[st.at], q.Disks[d].Bytes)
	}
	return sum / float64(len(q.Disks))
}

// preference is the weighted share of soft terms that the host meets.
func (p *plan) preference(i int, q *query) float64 {
	var met, all float64
	for _, w := range q.terms {
		if w.Hard {
			continue
		}
		weight := float64(max(1, w.Weight))
		all += weight
		if (w.count.at(w.Scope, i, p.hosts[i].site) > 0) != w.Anti {
			met += weight
		}
	}
	if all == 0 {
		return 1
	}
	return met / all
}
