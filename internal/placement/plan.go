package placement

import (
	"cmp"
	"maps"
	"slices"
	"strings"
)

// plan is the picture of the hosts while VMs are put on them, one by one.
type plan struct {
	opts  Options
	hosts []*node  // by name
	sites []string // by first appearance
	// free is the room of each distinct datastore, the reserve taken off.
	free []int64
	// counts are made when a term first asks, and kept up to date.
	counts map[string]*tally
	// keepers are hard anti-affinities of residents, which keep others away.
	keepers        map[string]*keeper
	keepersByGroup map[string][]*keeper
	keepersByLabel []*keeper
}

// node is a host in a plan.
type node struct {
	*Host
	site              int
	cpuLimit, memory  int64 // what may be allocated
	cpuUsed, memUsed  int64
	stores            []store
	networks, feature map[string]bool
	residents         []*Resident
}

// store is a datastore of a node; at is its place in plan.free.
type store struct {
	*Datastore
	at int
}

// tally counts the residents that match a term's others.
type tally struct {
	term  Term
	host  []int
	site  []int
	total int
}

// keeper counts the residents that hold one hard anti-affinity.
type keeper struct {
	tally
}

// query is a request made ready for many hosts.
type query struct {
	*Request
	terms   []wish
	keepers []*keeper
	// order is the disks' indices, largest first.
	order []int
	chose []int // scratch: store index per disk
}

type wish struct {
	Term
	count *tally
	self  bool
}

// newPlan takes the residents named in leaving as gone already.
func newPlan(hosts []Host, o Options, leaving map[string]bool) *plan {
	p := &plan{
		opts: o.withDefaults(), counts: map[string]*tally{},
		keepers: map[string]*keeper{}, keepersByGroup: map[string][]*keeper{},
	}
	siteAt, storeAt := map[string]int{}, map[string]int{}
	for i := range hosts {
		h := &hosts[i]
		n := &node{
			Host: h, cpuUsed: h.AllocatedCPUs, memUsed: h.AllocatedMemoryMiB,
			cpuLimit: scale(h.CPUs, p.opts.CPUOvercommit),
			memory:   scale(h.MemoryMiB, p.opts.MemoryOvercommit),
			networks: set(h.Networks), feature: set(h.Features),
		}
		at, ok := siteAt[h.Site]
		if !ok {
			at = len(p.sites)
			siteAt[h.Site] = at
			p.sites = append(p.sites, h.Site)
		}
		n.site = at
		for k := range h.Datastores[:min(len(h.Datastores), 64)] {
			d := &h.Datastores[k]
			room := d.FreeBytes - p.opts.DatastoreReserve
			at, seen := storeAt[d.Name] // holds shared ones alone
			if seen && d.Shared {
				// Hosts may have looked at different times: believe the least.
				p.free[at] = min(p.free[at], room)
			} else {
				at = len(p.free)
				p.free = append(p.free, room)
				if d.Shared {
					storeAt[d.Name] = at
				}
			}
			n.stores = append(n.stores, store{d, at})
		}
		p.hosts = append(p.hosts, n)
	}
	slices.SortStableFunc(p.hosts, func(a, b *node) int { return cmp.Compare(a.Name, b.Name) })
	for i, n := range p.hosts {
		for k := range n.Residents {
			if r := &n.Residents[k]; !leaving[r.Name] {
				p.settle(i, r, 1)
			}
		}
	}
	return p
}

// scale multiplies without overflow.
func scale(n int64, ratio float64) int64 {
	v := float64(n) * ratio
	if v >= 1<<62 {
		return 1 << 62
	}
	return int64(v)
}

func set(names []string) map[string]bool {
	m := make(map[string]bool, len(names))
	for _, n := range names {
		m[n] = true
	}
	return m
}

// settle counts a resident in (by 1) or out (by -1) on a host.
func (p *plan) settle(i int, r *Resident, by int) {
	n := p.hosts[i]
	if by > 0 {
		n.residents = append(n.residents, r)
	} else {
		at := slices.IndexFunc(n.residents, func(x *Resident) bool { return x.Name == r.Name })
		n.residents = slices.Delete(n.residents, at, at+1)
	}
	for _, t := range p.counts {
		if t.term.matches(r.Groups, r.Labels) {
			t.add(i, n.site, by)
		}
	}
	for _, t := range r.Terms {
		if t.Hard && t.Anti {
			p.keeper(t).add(i, n.site, by)
		}
	}
}

func (t *tally) add(host, site, by int) {
	t.host[host] += by
	t.site[site] += by
	t.total += by
}

// at returns the count in the term's scope around a host.
func (t *tally) at(scope Scope, host, site int) int {
	if scope == SameSite {
		return t.site[site]
	}
	return t.host[host]
}

func (p *plan) newTally(t Term) tally {
	return tally{term: t, host: make([]int, len(p.hosts)), site: make([]int, len(p.sites))}
}

// tally returns the counts for a term's others.
func (p *plan) tally(t Term) *tally {
	key := t.key()
	c := p.counts[key]
	if c == nil {
		made := p.newTally(t)
		c = &made
		for i, n := range p.hosts {
			for _, r := range n.residents {
				if t.matches(r.Groups, r.Labels) {
					c.add(i, n.site, 1)
				}
			}
		}
		p.counts[key] = c
	}
	return c
}

func (p *plan) keeper(t Term) *keeper {
	key := t.Scope.String() + " " + t.key()
	k := p.keepers[key]
	if k == nil {
		k = &keeper{p.newTally(t)}
		p.keepers[key] = k
		if t.Group != "" {
			p.keepersByGroup[t.Group] = append(p.keepersByGroup[t.Group], k)
		} else {
			p.keepersByLabel = append(p.keepersByLabel, k)
		}
	}
	return k
}

// key names a term's others; lengths are not needed since names hold no NUL.
func (t Term) key() string {
	if t.Group != "" {
		return "group\x00" + t.Group
	}
	var b strings.Builder
	b.WriteString("labels")
	for _, k := range slices.Sorted(maps.Keys(t.Labels)) {
		b.WriteString("\x00" + k + "\x00" + t.Labels[k])
	}
	return b.String()
}

func (t Term) matches(groups []string, labels map[string]string) bool {
	if t.Group != "" {
		return slices.Contains(groups, t.Group)
	}
	return len(t.Labels) > 0 && subset(t.Labels, labels)
}

func subset(want, have map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// prepare looks up what does not depend on the host.
func (p *plan) prepare(r *Request) *query {
	q := &query{Request: r, order: make([]int, len(r.Disks)), chose: make([]int, len(r.Disks))}
	for i := range q.order {
		q.order[i] = i
	}
	slices.SortStableFunc(q.order, func(a, b int) int { return cmp.Compare(r.Disks[b].Bytes, r.Disks[a].Bytes) })
	for _, t := range r.Terms {
		q.terms = append(q.terms, wish{t, p.tally(t), t.matches(r.Groups, r.Labels)})
	}
	for _, g := range r.Groups {
		q.keepers = append(q.keepers, p.keepersByGroup[g]...)
	}
	for _, k := range p.keepersByLabel {
		if k.term.matches(r.Groups, r.Labels) {
			q.keepers = append(q.keepers, k)
		}
	}
	return q
}

// commit puts a VM on a host that fits, and returns how to take it back.
func (p *plan) commit(i int, q *query) (names []string, undo func()) {
	names = p.diskNames(i, q)
	chose := slices.Clone(q.chose)
	n := p.hosts[i]
	r := &Resident{Name: q.Name, Groups: q.Groups, Labels: q.Labels, Terms: q.Terms}
	apply := func(by int64) {
		n.cpuUsed += by * q.CPUs
		n.memUsed += by * q.MemoryMiB
		for d, s := range chose {
			p.free[n.stores[s].at] -= by * q.Disks[d].Bytes
		}
		p.settle(i, r, int(by))
	}
	apply(1)
	return names, func() { apply(-1) }
}
