package compile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	v1 "drover/api/drover/v1"
	"drover/internal/vswitch/table"
)

// Result is what an input makes.
type Result struct {
	Tables *table.Tables
	// View places single registrations until the next compile.
	View *View
	// Hops are the tunnel ends in flood lists, with how many registrations each is there for.
	Hops map[Hop]int
	// Connections are the networks of this host's site, by name.
	Connections map[string]*Connection
	// Ports are those that have a row, by name.
	Ports    map[string]bool
	Problems []Problem
}

// Compile makes the rows.
func Compile(in Input) *Result {
	v, t := prepare(in), table.New()
	v.takePeers(t, in.Peers)
	for _, net := range sortedKeys(v.byNet) {
		c := v.byNet[net]
		t.Networks[net] = v.network(c)
		v.uplinkVLANs(t, c)
	}
	if in.Overlay.Ifindex != 0 {
		t.Meters[0] = table.Meter{Punt: bucket(uplinkPunts, 2*uplinkPunts)} // the tunnels' slot
	}
	teams := map[string]Team{}
	for _, x := range in.Teams {
		teams[x.Name] = x
		if i, ok := v.teams[x.Name]; ok {
			t.Teams[i] = table.Team{Bucket: x.Buckets, Hash: uint32(x.Hash)}
		}
	}
	for _, u := range v.uplinks {
		v.uplink(t, u)
	}
	for _, p := range v.ports {
		t.Ports[p.Ifindex] = v.row(p, teams)
		t.Meters[p.Slot] = meter(p.policy)
		v.local_(t, p)
	}
	for _, p := range v.ports {
		v.bind(t, p)
	}
	r := &Result{Tables: t, View: v, Hops: map[Hop]int{}, Connections: v.byName, Ports: map[string]bool{}}
	v.registered(t, in.Registrations, r.Hops)
	v.members(t, r.Hops)
	v.bound(t)
	for _, p := range v.ports {
		r.Ports[p.Name] = true
	}
	r.Problems = slices.SortedFunc(slices.Values(v.problems), func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Network, b.Network), cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Message, b.Message))
	})
	return r
}

func (v *View) uplink(t *table.Tables, u Uplink) {
	if u.Ifindex == 0 {
		return
	}
	index, ok := v.teams[u.Team]
	if !ok {
		return // said by number
	}
	row := table.Uplink{Slot: u.Slot, Team: index, MAC: u.MAC}
	if u.Shared {
		row.Flags |= table.UplinkShared
	}
	t.Uplinks[u.Ifindex] = row
	t.Meters[u.Slot] = table.Meter{Punt: bucket(uplinkPunts, 2*uplinkPunts)}
}

// Punts a second: of a port, so that a guest can't keep the agent busy; of an uplink, or of all tunnels, which many VMs of other hosts are behind.
const (
	portPunts   = 200
	uplinkPunts = 2000
)

func bucket(rate, burst uint64) table.Bucket { return table.Bucket{Rate: rate, Burst: burst} }

// DHCPRate is how many DHCP requests a second a port may send whose profile does not say.
const DHCPRate = 15

// Burst of a rate that names none: what it carries in 50 ms, at least 64 KiB, which is one GSO frame.
const burstLeast = 64 << 10

func meter(p *v1.PortProfileSpec) table.Meter {
	m := table.Meter{Punt: bucket(portPunts, 2*portPunts)}
	bytes := func(r *v1.Rate) table.Bucket {
		if r.GetLimitBps() <= 0 {
			return table.Bucket{}
		}
		rate := max(uint64(r.GetLimitBps())/8, 1)
		burst := uint64(max(r.GetBurstBytes(), 0))
		if burst == 0 {
			burst = max(rate/20, burstLeast)
		}
		return bucket(rate, burst)
	}
	frames := func(n int32) table.Bucket {
		if n <= 0 {
			return table.Bucket{}
		}
		return bucket(uint64(n), uint64(n)) // what a second carries may come at once
	}
	m.In, m.Out = bytes(p.GetQos().GetIn()), bytes(p.GetQos().GetOut())
	s := p.GetGuards().GetStorm()
	m.Broadcast, m.Multicast, m.Unknown = frames(s.GetBroadcast()), frames(s.GetMulticast()), frames(s.GetUnknownUnicast())
	m.DHCP = frames(cmp.Or(p.GetGuards().GetDhcpRate(), DHCPRate))
	return m
}

// local_ adds what a local port is registered by: its own MAC and those granted to it, in each of its networks; and its tags.
func (v *View) local_(t *table.Tables, p *port) {
	role, community := roleOf(p.policy.GetPrivateRole()), uint16(p.policy.GetCommunity())
	for _, mac := range append([]table.MAC{p.MAC}, p.macs...) {
		p.networks(func(c *Connection, vid uint16) {
			key := table.FDBKey{Net: c.Net, MAC: mac}
			if v.local[key] == p {
				t.FDB[key] = table.FDBEntry{Target: p.Ifindex, Place: table.PlaceLocal, PVLAN: role, Community: community, VID: vid}
			}
		})
	}
	for _, mac := range p.macs {
		t.MACs[table.MACKey{Ifindex: p.Ifindex, MAC: mac}] = 1
	}
	for _, x := range p.tagged {
		t.Trunks[table.TrunkKey{Ifindex: p.Ifindex, VID: uint32(x.vid)}] = x.net.Net
	}
	p.networks(func(c *Connection, _ uint16) {
		for _, g := range p.Groups {
			if g.Net == c.Net {
				t.Groups[table.GroupKey{Net: c.Net, Target: p.Ifindex, Group: table.IPOf(g.Addr), Place: uint32(table.PlaceLocal)}] = 1
			}
		}
	})
}

// bind adds a local port's addresses. Of two ports with one address the first by slot has it; assigned goes before leased.
func (v *View) bind(t *table.Tables, p *port) {
	add := func(net uint32, ip table.IP, b table.Binding) {
		key := table.BindingKey{Net: net, IP: ip}
		old, taken := t.Bindings[key]
		switch {
		case !taken, old.Ifindex == p.Ifindex && old.Source > b.Source:
		case old.Ifindex == p.Ifindex:
			return
		case old.Source == table.BindingDHCP && b.Source == table.BindingAssigned:
			v.conflict(p, net, ip)
		default:
			v.conflict(p, net, ip)
			return
		}
		t.Bindings[key] = b
	}
	for _, a := range sortedAddrs(p.Addresses) {
		add(p.home.Net, table.IPOf(a), table.Binding{Ifindex: p.Ifindex, MAC: p.MAC, Source: table.BindingAssigned})
	}
	for _, l := range p.Leases {
		p.networks(func(c *Connection, _ uint16) {
			if c.Net == l.Net {
				add(c.Net, table.IPOf(l.Addr), table.Binding{Ifindex: p.Ifindex, MAC: l.MAC, Source: table.BindingDHCP, Expires: l.Expires})
			}
		})
	}
}

func (v *View) conflict(p *port, net uint32, ip table.IP) {
	v.problem(Problem{Port: p.Name, Network: v.byNet[net].Name, Reason: "ADDRESS_CONFLICT", Message: fmt.Sprintf("address %s is bound to two ports of network %s", ip.Addr(), v.byNet[net].Name)})
}

// registered adds the registrations of other hosts, and counts who gets floods.
func (v *View) registered(t *table.Tables, all map[table.FDBKey]Registration, hops map[Hop]int) {
	rows := Rows{FDB: t.FDB, Bindings: t.Bindings}
	for key, r := range all {
		if e, ok := v.Place(rows, key, r); ok && e.Place == table.PlaceTunnel {
			hops[Hop{key.Net, e.Target}]++
		}
	}
}

// members adds the flood lists: local ports by slot, then tunnels. Positions change as little as slots do.
func (v *View) members(t *table.Tables, hops map[Hop]int) {
	rows := map[uint32]uint32{}
	add := func(net uint32, m table.Member) {
		t.Members[table.MemberKey{Net: net, Row: rows[net]}] = m
		rows[net]++
	}
	for _, p := range v.ports {
		promiscuous := p.policy.GetSecurity().GetPromiscuous() == v1.Toggle_TOGGLE_ON
		p.networks(func(c *Connection, vid uint16) {
			m := table.Member{Target: p.Ifindex, Place: table.PlaceLocal, PVLAN: roleOf(p.policy.GetPrivateRole()), Community: uint16(p.policy.GetCommunity()), VID: vid}
			if promiscuous {
				m.Flags |= table.MemberPromiscuous | table.MemberAllGroups
				n := t.Networks[c.Net]
				n.Flags |= table.NetworkWatched
				t.Networks[c.Net] = n
			}
			if slices.Contains(p.Routers, c.Net) {
				m.Flags |= table.MemberAllGroups
			}
			add(c.Net, m)
		})
	}
	for _, h := range slices.SortedFunc(maps.Keys(hops), func(a, b Hop) int { return cmp.Or(cmp.Compare(a.Net, b.Net), cmp.Compare(a.VTEP, b.VTEP)) }) {
		// The other host decides by the sender's registration who of its ports gets a private VLAN's frame.
		add(h.Net, table.Member{Target: h.VTEP, Place: table.PlaceTunnel, PVLAN: table.PVLANPromiscuous})
	}
	for net, n := range rows {
		row := t.Networks[net]
		row.Members = n
		t.Networks[net] = row
	}
}

// bound says when there is more than the maps hold. The datapath refuses what is too much; this says it in words.
func (v *View) bound(t *table.Tables) {
	for _, m := range []struct {
		what       string
		have, most int
	}{
		{"registrations", len(t.FDB), table.MaxFDB}, {"networks", len(t.Networks), table.MaxNetworks}, {"members of flood lists", len(t.Members), table.MaxMembers},
		{"bindings", len(t.Bindings), table.MaxBindings}, {"trunk VLANs", len(t.Trunks), table.MaxTrunk}, {"uplink VLANs", len(t.UplinkVLANs), table.MaxUplinkVLANs},
		{"multicast groups", len(t.Groups), table.MaxGroups},
	} {
		if m.have > m.most {
			v.problem(Problem{Reason: "TABLE_FULL", Message: fmt.Sprintf("this host would need %d %s, and the switch holds %d", m.have, m.what, m.most)})
		}
	}
}
