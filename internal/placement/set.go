package placement

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// Assignment is where one VM of a set goes.
type Assignment struct {
	VM    string
	Host  string
	Score float64
	Disks []string // datastore names in the order of the request's disks
}

// Failure is a VM of a set that finds no host.
type Failure struct {
	VM string
	// Because, if not empty, names the VM that must run beside this one and
	// finds no room; else Rejected says why each host refuses.
	Because  string
	Rejected []Rejection
}

// Plan places a set of VMs. Both lists are in the order of the requests. A plan
// with failures is not to be carried out in part where the whole was wanted:
// its assignments take the failed VMs as gone.
type Plan struct {
	Assignments []Assignment
	Failures    []Failure
}

// PlaceAll plans a whole set: VMs that must be together are placed together,
// the picky and the large ones first.
func PlaceAll(hosts []Host, requests []Request, o Options) (Plan, error) {
	if err := o.Validate(); err != nil {
		return Plan{}, err
	}
	leaving := map[string]bool{}
	for _, r := range requests {
		if err := r.Validate(); err != nil {
			return Plan{}, err
		}
		if leaving[r.Name] {
			return Plan{}, fmt.Errorf("placement of %s: it is in the set twice", r.Name)
		}
		leaving[r.Name] = true
	}
	p := newPlan(hosts, o, leaving)
	assigned := make([]*Assignment, len(requests))
	failed := make([]*Failure, len(requests))
	for _, team := range teams(requests) {
		if !p.placeTeam(requests, team, assigned) {
			for _, at := range team {
				failed[at] = p.failure(requests, team, at)
			}
		}
	}
	var out Plan
	for i := range requests {
		if assigned[i] != nil {
			out.Assignments = append(out.Assignments, *assigned[i])
		} else {
			out.Failures = append(out.Failures, *failed[i])
		}
	}
	return out, nil
}

// Err returns nil, or which VMs find no host and why.
func (p Plan) Err() error {
	var errs []error
	for _, f := range p.Failures {
		if f.Because != "" {
			errs = append(errs, fmt.Errorf("%s finds no host: %s", f.VM, f.Because))
		} else {
			errs = append(errs, fmt.Errorf("%s finds no host:\n%s", f.VM, Explain(f.Rejected)))
		}
	}
	return errors.Join(errs...)
}

// teams groups requests that hard affinity ties together, and orders teams and
// members as they are to be placed.
func teams(requests []Request) [][]int {
	parent := make([]int, len(requests))
	for i := range parent {
		parent[i] = i
	}
	var root func(int) int
	root = func(i int) int {
		if parent[i] != i {
			parent[i] = root(parent[i])
		}
		return parent[i]
	}
	for i := range requests {
		for _, t := range requests[i].Terms {
			if !t.Hard || t.Anti {
				continue
			}
			for j := range requests {
				if t.matches(requests[j].Groups, requests[j].Labels) {
					parent[root(i)] = root(j)
				}
			}
		}
	}
	order := make([]int, len(requests))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		x, y := &requests[a], &requests[b]
		return cmp.Or(
			// Those that follow others come after them.
			falseFirst(follows(x), follows(y)),
			falseFirst(!picky(x), !picky(y)),
			cmp.Compare(y.MemoryMiB, x.MemoryMiB),
			cmp.Compare(y.CPUs, x.CPUs),
			cmp.Compare(x.Name, y.Name))
	})
	var out [][]int
	at := map[int]int{}
	for _, i := range order {
		r := root(i)
		if _, ok := at[r]; !ok {
			at[r] = len(out)
			out = append(out, nil)
		}
		out[at[r]] = append(out[at[r]], i)
	}
	// Teams are the hardest to place: first.
	slices.SortStableFunc(out, func(a, b []int) int { return cmp.Compare(min(len(b), 2), min(len(a), 2)) })
	return out
}

func falseFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// follows reports whether a VM must be near others.
func follows(r *Request) bool {
	return slices.ContainsFunc(r.Terms, func(t Term) bool { return t.Hard && !t.Anti })
}

// picky reports whether a VM may have few hosts to choose from.
func picky(r *Request) bool {
	return len(r.Sites)+len(r.Hosts)+len(r.HostLabels)+len(r.Features) > 0 || r.Accel != "" ||
		slices.ContainsFunc(r.Terms, func(t Term) bool { return t.Hard }) ||
		slices.ContainsFunc(r.Disks, func(d Disk) bool { return d.Datastore != "" || d.Kind != "" })
}

// placeTeam places all members or none. It tries each host for the first; the
// others then take their best.
func (p *plan) placeTeam(requests []Request, team []int, assigned []*Assignment) bool {
	first := p.prepare(&requests[team[0]])
	if len(team) == 1 {
		best, score := p.best(first)
		if best < 0 {
			return false
		}
		p.assign(best, score, first, team[0], assigned)
		return true
	}
	for _, c := range p.rank(first).Candidates {
		host := slices.IndexFunc(p.hosts, func(n *node) bool { return n.Name == c.Host })
		undo := []func(){p.assign(host, c.Score, first, team[0], assigned)}
		whole := true
		for _, at := range team[1:] {
			q := p.prepare(&requests[at])
			best, score := p.best(q)
			if best < 0 {
				whole = false
				break
			}
			undo = append(undo, p.assign(best, score, q, at, assigned))
		}
		if whole && p.together(requests, team, assigned) {
			return true
		}
		for _, u := range slices.Backward(undo) {
			u()
		}
		for _, at := range team {
			assigned[at] = nil
		}
	}
	return false
}

// together reports whether every member's hard affinity is met by another VM,
// unless no other VM matches it: the first to be placed could not know.
func (p *plan) together(requests []Request, team []int, assigned []*Assignment) bool {
	for _, at := range team {
		r := &requests[at]
		i := slices.IndexFunc(p.hosts, func(n *node) bool { return n.Name == assigned[at].Host })
		for _, t := range r.Terms {
			if !t.Hard || t.Anti {
				continue
			}
			self := 0
			if t.matches(r.Groups, r.Labels) {
				self = 1
			}
			c := p.tally(t)
			if c.at(t.Scope, i, p.hosts[i].site) == self && c.total > self {
				return false
			}
		}
	}
	return true
}

// best returns the best host's place, or -1.
func (p *plan) best(q *query) (host int, score float64) {
	host = -1
	for i := range p.hosts {
		if !p.fits(i, q, nil) {
			continue
		}
		if s, _ := p.score(i, q, false); host < 0 || s > score {
			host, score = i, s
		}
	}
	return host, score
}

func (p *plan) assign(host int, score float64, q *query, at int, assigned []*Assignment) (undo func()) {
	names, undo := p.commit(host, q)
	assigned[at] = &Assignment{VM: q.Name, Host: p.hosts[host].Name, Score: score, Disks: names}
	return undo
}

func (p *plan) failure(requests []Request, team []int, at int) *Failure {
	res := p.rank(p.prepare(&requests[at]))
	f := &Failure{VM: requests[at].Name, Rejected: res.Rejected}
	if len(res.Candidates) == 0 {
		return f
	}
	f.Rejected = nil
	f.Because = fmt.Sprintf("no place has room for it together with the %d other VMs that it is tied to", len(team)-1)
	for _, other := range team {
		if other != at && len(p.rank(p.prepare(&requests[other])).Candidates) == 0 {
			f.Because = fmt.Sprintf("%s, which it is tied to, finds no host", requests[other].Name)
			break
		}
	}
	return f
}
