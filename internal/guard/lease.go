package guard

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"drover/internal/vswitch/table"
)

// MaxLeases is how many addresses DHCP may give to a port. A further one takes the place of that which would end first.
const MaxLeases = 16

// Port is a port as the caller knows it now.
type Port struct {
	// Key names the port for good, over restarts and moves of its device.
	Key string
	MAC table.MAC
	// Granted are the MACs that it may use besides its own.
	Granted []table.MAC
	// Limit is how many MACs it may have, its own included.
	Limit int
}

func (p Port) has(m table.MAC) bool { return p.MAC == m || slices.Contains(p.Granted, m) }

// Finder finds a port by its device.
type Finder func(ifindex uint32) (Port, bool)

// Lease is an address that DHCP gave to a port.
type Lease struct {
	Port    string // Port.Key
	Net     uint32
	Addr    netip.Addr
	MAC     table.MAC
	Expires time.Time // zero: never
}

// Boot is when the lease ends on the clock of the datapath (table.Binding.Expires), which says boot when the wall says now. 0: never.
func (l Lease) Boot(now time.Time, boot uint64) uint64 {
	if l.Expires.IsZero() {
		return 0
	}
	left := l.Expires.Sub(now)
	if left < 0 && uint64(-left) >= boot {
		return 1
	}
	return boot + uint64(left)
}

func (l Lease) over(now time.Time) bool { return !l.Expires.IsZero() && !l.Expires.After(now) }

type leaseKey struct {
	net  uint32
	addr netip.Addr
}

// asked is a port's last DHCPv4 request: what a refusal is about.
type asked struct {
	xid  uint32
	addr netip.Addr
}

// Leases is which addresses DHCP gave to the ports of a host. Make it with NewLeases or OpenLeases.
type Leases struct {
	path string // of its file; empty: none
	all  map[leaseKey]Lease
	last map[string]asked // by port
}

// NewLeases makes an empty one that is kept nowhere.
func NewLeases() *Leases { return &Leases{all: map[leaseKey]Lease{}, last: map[string]asked{}} }

// Heard takes a PUNT_DHCP and says whether leases changed: then they are to be written to the datapath, and saved. Messages that are for nobody here,
// or for a MAC that the port does not have, change nothing; only what is no DHCP message is an error.
func (l *Leases) Heard(p *table.Punt, find Finder, now time.Time) (changed bool, err error) {
	server := p.ToIfindex != 0
	ifindex := p.Ifindex
	if server {
		ifindex = p.ToIfindex
	}
	port, ok := find(ifindex)
	if !ok {
		return false, nil
	}
	m, err := parseMessage(p.Data[:min(int(p.Captured), len(p.Data))], server)
	if err != nil || !port.has(m.mac) {
		return false, err
	}
	switch m.verb {
	case verbRequest:
		if len(m.grants) > 0 {
			l.last[port.Key] = asked{m.xid, m.grants[0].addr}
		}
	case verbRefuse:
		if a, ok := l.last[port.Key]; ok && a.xid == m.xid {
			delete(l.last, port.Key)
			return l.end(port.Key, p.Net, a.addr), nil
		}
	case verbRelease:
		for _, g := range m.grants {
			changed = l.end(port.Key, p.Net, g.addr) || changed
		}
	case verbGrant:
		for _, g := range m.grants[:min(len(m.grants), MaxLeases)] {
			if g.life == 0 {
				changed = l.end(port.Key, p.Net, g.addr) || changed
				continue
			}
			x := Lease{Port: port.Key, Net: p.Net, Addr: g.addr, MAC: m.mac}
			if g.life > 0 {
				x.Expires = now.Add(g.life)
			}
			changed = l.put(x, now) || changed
		}
	}
	return changed, nil
}

// put notes a lease. Who has the address by a lease that is not over keeps it: servers know clients by the identifier that these name themselves, and give
// anybody who names another's what the other has.
func (l *Leases) put(x Lease, now time.Time) (changed bool) {
	k := leaseKey{x.Net, x.Addr}
	old, had := l.all[k]
	if had && (old == x || old.Port != x.Port && !old.over(now)) {
		return false
	}
	if !had || old.Port != x.Port {
		for mine := l.Of(x.Port); len(mine) >= MaxLeases; mine = mine[1:] {
			delete(l.all, leaseKey{mine[0].Net, mine[0].Addr})
		}
	}
	l.all[k] = x
	return true
}

func (l *Leases) end(port string, net uint32, addr netip.Addr) bool {
	k := leaseKey{net, addr}
	if l.all[k].Port != port {
		return false
	}
	delete(l.all, k)
	return true
}

// Expire ends leases that are over and returns them.
func (l *Leases) Expire(now time.Time) []Lease {
	var gone []Lease
	for k, x := range l.all {
		if x.over(now) {
			gone = append(gone, x)
			delete(l.all, k)
		}
	}
	slices.SortFunc(gone, byEnd)
	return gone
}

// Next is when the next lease ends.
func (l *Leases) Next() (at time.Time, ok bool) {
	for _, x := range l.all {
		if !x.Expires.IsZero() && (!ok || x.Expires.Before(at)) {
			at, ok = x.Expires, true
		}
	}
	return at, ok
}

// Of lists a port's leases, that which ends first at the front, those without end last.
func (l *Leases) Of(port string) []Lease {
	var out []Lease
	for _, x := range l.all {
		if x.Port == port {
			out = append(out, x)
		}
	}
	slices.SortFunc(out, byEnd)
	return out
}

// ByPort lists all ports' leases, each as Of does.
func (l *Leases) ByPort() map[string][]Lease {
	out := map[string][]Lease{}
	for _, x := range l.All() {
		out[x.Port] = append(out[x.Port], x)
	}
	return out
}

// All lists all leases.
func (l *Leases) All() []Lease {
	var out []Lease
	for _, x := range l.all {
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b Lease) int { return cmp.Or(cmp.Compare(a.Port, b.Port), byEnd(a, b)) })
	return out
}

// Owner is the port that has the address.
func (l *Leases) Owner(net uint32, addr netip.Addr) (port string, ok bool) {
	x, ok := l.all[leaseKey{net, addr.Unmap()}]
	return x.Port, ok
}

// Forget drops what is known of a port that is gone for good.
func (l *Leases) Forget(port string) (changed bool) {
	delete(l.last, port)
	for k, x := range l.all {
		if x.Port == port {
			delete(l.all, k)
			changed = true
		}
	}
	return changed
}

// Adopt takes leases over that a port brings along from another host.
func (l *Leases) Adopt(leases []Lease, now time.Time) (changed bool) {
	for _, x := range leases {
		x.Addr = x.Addr.Unmap()
		if x.Addr.IsValid() && x.Port != "" && !x.over(now) {
			changed = l.put(x, now) || changed
		}
	}
	return changed
}

func byEnd(a, b Lease) int {
	if a.Expires.IsZero() != b.Expires.IsZero() {
		if a.Expires.IsZero() {
			return 1
		}
		return -1
	}
	return cmp.Or(a.Expires.Compare(b.Expires), cmp.Compare(a.Net, b.Net), a.Addr.Compare(b.Addr))
}
