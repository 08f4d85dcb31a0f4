package snoop

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"drover/internal/vswitch/table"
)

// Times and numbers of RFC 3376 8 and RFC 3810 9.
const (
	robustness = 2
	// Interval is how often a querier asks in general.
	Interval = 125 * time.Second
	// Response is how long guests may take to answer.
	Response = 10 * time.Second
	// Membership is how long a group is kept after a report.
	Membership = robustness*Interval + Response
	// LastMember is how long a guest may take to answer whether it really left; it is asked robustness times.
	LastMember = time.Second
	// OtherQuerier is how long a querier is believed to be there.
	OtherQuerier = robustness*Interval + Response/2
)

// MaxGroups is how many groups a port may listen to, in all its networks.
const MaxGroups = 256

// ErrFull says that a port, or the datapath, has all the groups that it can have. The group is left out.
var ErrFull = errors.New("too many multicast groups")

// Port is a port in a network; one with a trunk is in several.
type Port struct{ Net, Ifindex uint32 }

// Info is what is known of a port.
type Info struct {
	VID    uint16 // tag of the network on the port; 0: none
	Router bool   // it may be a router (PORT_ROUTER): its queries count
}

// Config is what a Snooper works on.
type Config struct {
	MAC      table.MAC     // source of queries: the host's own, locally administered
	Ports    map[Port]Info // in networks with NETWORK_SNOOPING
	Networks []uint32      // those networks
}

// Query is a frame to be sent to a port, marked as the datapath's own.
type Query struct {
	Ifindex uint32
	Frame   []byte
}

type member struct {
	expires time.Time
	leaving bool // asked whether it really left; only its own report keeps it
	ask     int  // how often yet
	askAt   time.Time
	old     bool // reports of an old version, its own may be kept back
}

type querier struct {
	seen    [2]time.Time // another one, of IPv4 and IPv6
	next    [2]time.Time // we ask then
	startup [2]int       // quick first queries yet
}

// Snooper is the state of a host. Make it with New.
type Snooper struct {
	cfg     Config
	members map[table.GroupKey]*member
	count   map[uint32]int // groups by ifindex
	routers map[Port]time.Time
	nets    map[uint32]*querier
}

// New makes a Snooper. rows are what the datapath has from an earlier process: they are kept, and soon asked for.
func New(cfg Config, rows map[table.GroupKey]uint8, now time.Time) *Snooper {
	s := &Snooper{members: map[table.GroupKey]*member{}, count: map[uint32]int{}, routers: map[Port]time.Time{}, nets: map[uint32]*querier{}}
	for k := range rows {
		if k.Place == uint32(table.PlaceLocal) {
			s.members[k] = &member{expires: now.Add(Membership)}
			s.count[k.Target]++
		}
	}
	s.Configure(cfg, now)
	return s
}

// Configure takes in which ports there are. What is known of ports that stay is kept. It says whether Rows or Routers changed.
func (s *Snooper) Configure(cfg Config, now time.Time) (changed bool) {
	s.cfg = cfg
	for k := range s.members {
		if _, ok := cfg.Ports[Port{k.Net, k.Target}]; !ok || !slices.Contains(cfg.Networks, k.Net) {
			s.drop(k)
			changed = true
		}
	}
	for p := range s.routers {
		if !cfg.Ports[p].Router {
			delete(s.routers, p)
			changed = true
		}
	}
	for n := range s.nets {
		if !slices.Contains(cfg.Networks, n) {
			delete(s.nets, n)
		}
	}
	for _, n := range cfg.Networks {
		if s.nets[n] == nil {
			s.nets[n] = &querier{next: [2]time.Time{now, now}, startup: [2]int{robustness, robustness}}
		}
	}
	return changed
}

func (s *Snooper) drop(k table.GroupKey) {
	delete(s.members, k)
	if s.count[k.Target]--; s.count[k.Target] <= 0 {
		delete(s.count, k.Target)
	}
}

// Heard takes in a message from a port of this host; from 0 is an uplink or a tunnel. It says whether Rows or Routers changed.
// An error of ErrFull comes with what could be taken in.
func (s *Snooper) Heard(net, from uint32, m Message, now time.Time) (changed bool, err error) {
	q := s.nets[net]
	p := Port{net, from}
	info, known := s.cfg.Ports[p]
	if q == nil || from != 0 && !known {
		return false, nil
	}
	if m.Query {
		return s.heardQuery(q, p, from == 0 || info.Router, m, now), nil
	}
	if m.Hello {
		return s.heardHello(p, from != 0 && info.Router, m, now), nil
	}
	for _, r := range m.Records {
		if r.Join && m.Old {
			s.keepOthers(net, r.Group, now)
		}
		if from == 0 {
			continue
		}
		k := table.GroupKey{Net: net, Target: from, Group: table.IPOf(r.Group), Place: uint32(table.PlaceLocal)}
		got := s.members[k]
		switch {
		case r.Join && got == nil:
			if s.count[from] >= MaxGroups || len(s.members) >= table.MaxGroups {
				err = fmt.Errorf("port %d, group %v: %w: a port may have %d", from, r.Group, ErrFull, MaxGroups)
				continue
			}
			s.members[k] = &member{expires: now.Add(Membership), old: m.Old}
			s.count[from]++
			changed = true
		case r.Join:
			*got = member{expires: now.Add(Membership), old: m.Old}
		case got != nil && !got.leaving:
			// There may be more listeners behind the port.
			*got = member{expires: now.Add(robustness*LastMember + LastMember), leaving: true, old: got.old}
			if now.After(q.seen[family(m.Six)].Add(OtherQuerier)) {
				got.ask, got.askAt = robustness, now
			}
		}
	}
	return changed, err
}

func family(six bool) int {
	if six {
		return 1
	}
	return 0
}

// keepOthers: hosts of an old version that hear this report will not send their own.
func (s *Snooper) keepOthers(net uint32, group netip.Addr, now time.Time) {
	ip := table.IPOf(group)
	for p := range s.cfg.Ports {
		k := table.GroupKey{Net: net, Target: p.Ifindex, Group: ip, Place: uint32(table.PlaceLocal)}
		if g := s.members[k]; p.Net == net && g != nil && g.old && !g.leaving {
			g.expires = now.Add(Membership)
		}
	}
}

func (s *Snooper) heardQuery(q *querier, p Port, believed bool, m Message, now time.Time) (changed bool) {
	// A source of 0.0.0.0 is another snooping switch, which is no querier and no router (RFC 4541 2.1.1).
	if !believed || m.Source.IsUnspecified() {
		return false
	}
	q.seen[family(m.Six)] = now
	if p.Ifindex != 0 {
		changed = s.routers[p].IsZero()
		s.routers[p] = now.Add(OtherQuerier)
	}
	return changed
}

// heardHello: who routes multicast gets all groups. A router that goes is kept until its end, since IGMP may have named it, too.
func (s *Snooper) heardHello(p Port, believed bool, m Message, now time.Time) (changed bool) {
	end := now.Add(m.Hold)
	if !believed || m.Hold == 0 || !end.After(s.routers[p]) {
		return false
	}
	changed = s.routers[p].IsZero()
	s.routers[p] = end
	return changed
}

// Tick does what is due. It says whether Rows or Routers changed, and returns queries to send. Call it at Next.
func (s *Snooper) Tick(now time.Time) (changed bool, queries []Query) {
	for k, g := range s.members {
		switch {
		case !now.Before(g.expires):
			s.drop(k)
			changed = true
		case g.ask > 0 && !now.Before(g.askAt):
			g.ask--
			g.askAt = now.Add(LastMember)
			queries = append(queries, s.query(Port{k.Net, k.Target}, k.Group.Addr(), k.Group.Addr().Is6(), LastMember))
		}
	}
	for p, end := range s.routers {
		if !now.Before(end) {
			delete(s.routers, p)
			changed = true
		}
	}
	for n, q := range s.nets {
		for f := range q.next {
			if now.Before(q.due(f)) {
				continue
			}
			q.next[f] = now.Add(Interval)
			if q.startup[f] > 0 {
				q.startup[f]--
				q.next[f] = now.Add(Interval / 4)
			}
			for p := range s.cfg.Ports {
				if p.Net == n {
					queries = append(queries, s.query(p, netip.Addr{}, f == 1, Response))
				}
			}
		}
	}
	return changed, queries
}

// due is when we ask, if no other querier is heard until then.
func (q *querier) due(f int) time.Time {
	if q.seen[f].IsZero() {
		return q.next[f]
	}
	if end := q.seen[f].Add(OtherQuerier); end.After(q.next[f]) {
		return end
	}
	return q.next[f]
}

func (s *Snooper) query(p Port, group netip.Addr, six bool, resp time.Duration) Query {
	build := query4
	if six {
		build = query6
	}
	return Query{p.Ifindex, build(s.cfg.MAC, s.cfg.Ports[p].VID, group, resp)}
}

// Next is when Tick is due; ok is false if never.
func (s *Snooper) Next() (at time.Time, ok bool) {
	take := func(t time.Time) {
		if !ok || t.Before(at) {
			at, ok = t, true
		}
	}
	for _, g := range s.members {
		take(g.expires)
		if g.ask > 0 {
			take(g.askAt)
		}
	}
	for _, end := range s.routers {
		take(end)
	}
	for _, q := range s.nets {
		take(q.due(0))
		take(q.due(1))
	}
	return at, ok
}

// Rows are the datapath's rows of groups for ports of this host.
func (s *Snooper) Rows() map[table.GroupKey]uint8 {
	out := make(map[table.GroupKey]uint8, len(s.members))
	for k := range s.members {
		out[k] = 1
	}
	return out
}

// Groups lists what a port listens to, in order.
func (s *Snooper) Groups(p Port) []netip.Addr {
	var out []netip.Addr
	for k := range s.members {
		if k.Net == p.Net && k.Target == p.Ifindex {
			out = append(out, k.Group.Addr())
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// Router says whether a multicast router is behind a port: it gets all groups (MEMBER_ALL_GROUPS).
func (s *Snooper) Router(p Port) bool { return !s.routers[p].IsZero() }
