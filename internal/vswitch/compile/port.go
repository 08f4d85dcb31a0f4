package compile

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	v1 "drover/api/drover/v1"
	"drover/internal/vswitch/table"
)

// port is a port with what its policy says.
type port struct {
	Port
	policy     *v1.PortProfileSpec
	generation int64
	native     *Connection // nil: a trunk without one
	home       *Connection // the NIC's network
	tagged     []tagged
	macs       []table.MAC // granted
}

// tagged is a network that a trunk carries by a tag.
type tagged struct {
	vid uint16
	net *Connection
}

// networks calls each for every network that the port is in.
func (p *port) networks(each func(c *Connection, vid uint16)) {
	if p.native != nil {
		each(p.native, 0)
	}
	for _, t := range p.tagged {
		each(t.net, t.vid)
	}
}

// takePorts checks the ports. One whose policy is not whole is left out.
func (v *View) takePorts(in Input) {
	ports := slices.SortedFunc(slices.Values(in.Ports), func(a, b Port) int { return cmp.Or(cmp.Compare(a.Slot, b.Slot), cmp.Compare(a.Name, b.Name)) })
	slots, devices := map[uint32]string{0: "the tunnel"}, map[uint32]string{}
	for _, u := range v.uplinks {
		slots[u.Slot] = "uplink " + u.Name
		if u.Ifindex != 0 {
			devices[u.Ifindex] = "uplink " + u.Name
		}
	}
	for _, p := range ports {
		fault := func(reason, format string, args ...any) {
			v.problem(Problem{Port: p.Name, Network: p.Network, Reason: reason, Message: fmt.Sprintf(format, args...)})
		}
		profile, ok := in.Profiles[p.Profile]
		if !ok || profile.Effective == nil {
			fault("PROFILE_MISSING", "port profile %q is not known to this host", p.Profile)
			continue
		}
		c := v.byName[p.Network]
		if c == nil {
			fault("NETWORK_MISSING", "network %q is not known to this host, or not in its site", p.Network)
			continue
		}
		if other, taken := slots[p.Slot]; taken || p.Slot >= table.MaxPorts {
			fault("SLOT", "slot %d is out of range or belongs to %s", p.Slot, other)
			continue
		}
		if other, taken := devices[p.Ifindex]; taken || p.Ifindex == 0 {
			fault("DEVICE", "device %d is none or belongs to %s", p.Ifindex, other)
			continue
		}
		if old := v.local[table.FDBKey{Net: c.Net, MAC: p.MAC}]; old != nil {
			fault("MAC_CONFLICT", "MAC %s is port %s's on network %s", macText(p.MAC), old.Name, c.Name)
			continue
		}
		x := &port{Port: p, policy: profile.Effective, generation: profile.Generation, native: c, home: c}
		if err := v.trunk(x); err != nil {
			fault("TRUNK", "%s", err)
			continue
		}
		slots[p.Slot], devices[p.Ifindex] = "port "+p.Name, "port "+p.Name
		v.ports, v.byPort[p.Name] = append(v.ports, x), x
		x.networks(func(c *Connection, _ uint16) {
			key := table.FDBKey{Net: c.Net, MAC: p.MAC}
			if v.local[key] == nil {
				v.local[key] = x
			}
		})
	}
	for _, p := range v.ports {
		v.grant(p, in)
	}
}

// grant takes the further MACs that a port may have: those that nobody else has, up to its limit.
func (v *View) grant(p *port, in Input) {
	if p.policy.GetSecurity().GetMacChanges() != v1.Toggle_TOGGLE_ON && p.policy.GetGuards().GetVirtualRouter() == v1.Toggle_TOGGLE_ON {
		return
	}
	limit := max(int(p.policy.GetSecurity().GetMacLimit()), 1) - 1
	virtual := 0
	for _, mac := range p.MACs {
		isVirtual := VirtualRouter(mac)
		if isVirtual && p.policy.GetGuards().GetVirtualRouter() == v1.Toggle_TOGGLE_ON {
			continue
		}
		if isVirtual && virtual == virtualMACs || !isVirtual && len(p.macs)-virtual >= limit {
			continue
		}
		taken := false
		p.networks(func(c *Connection, _ uint16) {
			key := table.FDBKey{Net: c.Net, MAC: mac}
			r, registered := in.Registrations[key]
			if v.local[key] != nil || registered && r.Port != p.Name && !isVirtual {
				taken = true
			}
		})
		if taken {
			v.problem(Problem{Port: p.Name, Network: p.Network, Reason: "MAC_CONFLICT", Message: "MAC " + macText(mac) + " that the guest uses is another port's"})
			continue
		}
		if isVirtual {
			virtual++
		}
		p.macs = append(p.macs, mac)
		p.networks(func(c *Connection, _ uint16) { v.local[table.FDBKey{Net: c.Net, MAC: mac}] = p })
	}
}

// virtualMACs is how many MACs of virtual routers a port that may have them can hold: they have a number space of their own and don't count as guests' MACs.
const virtualMACs = 16

// VirtualRouter says whether a MAC is one of VRRP, CARP, HSRP or GLBP: the datapath's list (rule 6).
func VirtualRouter(m table.MAC) bool {
	switch {
	case m[0] == 0 && m[1] == 0 && m[2] == 0x5e && m[3] == 0 && (m[4] == 1 || m[4] == 2):
	case m[0] == 0 && m[1] == 0 && m[2] == 0x0c && m[3] == 0x07 && m[4] == 0xac:
	case m[0] == 0 && m[1] == 0 && m[2] == 0x0c && m[3] == 0x9f && m[4]&0xf0 == 0xf0:
	case m[0] == 0 && m[1] == 0x05 && m[2] == 0x73 && m[3] == 0xa0 && m[4]&0xf0 == 0:
	case m[0] == 0 && m[1] == 0x07 && m[2] == 0xb4:
	default:
		return false
	}
	return true
}

func macText(m table.MAC) string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// row is a port's row.
func (v *View) row(p *port, team map[string]Team) table.Port {
	g, sec := p.policy.GetGuards(), p.policy.GetSecurity()
	row := table.Port{
		Slot: p.Slot, Team: v.teams[p.home.Team], MAC: p.MAC, PVLAN: roleOf(p.policy.GetPrivateRole()), Community: uint16(p.policy.GetCommunity()),
		TeamHash: team[p.home.Team].Hash, MTU: uint16(p.home.MTU), DSCP: table.Leave, CoS: table.Leave, Bucket: p.Bucket % table.TeamBuckets,
		Generation: uint32(p.generation), UplinkVID: uplinkVID(p),
	}
	if p.native != nil {
		row.Net = p.native.Net
	}
	set := func(flag table.PortFlag, on bool) {
		if on {
			row.Flags |= flag
		}
	}
	on := func(t v1.Toggle) bool { return t == v1.Toggle_TOGGLE_ON }
	set(table.PortDown, p.LinkDown)
	set(table.PortPeer, p.Peer)
	set(table.PortTrunk, isTrunk(p.policy))
	set(table.PortPromiscuous, on(sec.GetPromiscuous()))
	set(table.PortForged, on(sec.GetForgedTransmits()))
	set(table.PortMACChanges, on(sec.GetMacChanges()))
	set(table.PortMoreMACs, len(p.macs) > 0)
	set(table.PortIPGuard, on(g.GetIpSource()))
	set(table.PortARPGuard, on(g.GetArp()))
	set(table.PortNDGuard, on(g.GetNd()))
	set(table.PortDHCPSnoop, on(g.GetDhcpSnooping()))
	set(table.PortDHCPServer, !on(g.GetDhcpServer()))
	set(table.PortRouter, !on(g.GetRa()))
	set(table.PortBPDU, !on(g.GetBpdu()))
	set(table.PortL2Control, !on(g.GetControl()))
	set(table.PortVirtualRouter, !on(g.GetVirtualRouter()))
	s := g.GetStorm()
	set(table.PortStorm, s.GetBroadcast() > 0 || s.GetMulticast() > 0 || s.GetUnknownUnicast() > 0)
	q := p.policy.GetQos()
	set(table.PortMeterIn, q.GetIn().GetLimitBps() > 0)
	set(table.PortMeterOut, q.GetOut().GetLimitBps() > 0)
	if q.GetIn().GetGuaranteeBps() > 0 {
		row.Flags |= table.PortPriority
		row.Priority = Class(p.Slot)
	}
	if q.GetDscpSet() && q.GetDscp() >= 0 {
		row.Flags |= table.PortMark
		row.DSCP = uint8(q.GetDscp())
	}
	if q.GetCosSet() && q.GetCos() >= 0 {
		row.Flags |= table.PortMark
		row.CoS = uint8(q.GetCos())
	}
	set(table.PortNoSnooping, len(p.Routers) > 0)
	v.mirror(p, &row)
	v.inline(p, &row)
	return row
}

// Class is the traffic class of a port with a guarantee: 1:SLOT, as tc writes it.
func Class(slot uint32) uint32 { return 1<<16 | slot }

func (v *View) mirror(p *port, row *table.Port) {
	m := p.policy.GetMirror()
	var flags table.PortFlag
	if m.GetIn() {
		flags |= table.PortMirrorIn
	}
	if m.GetOut() {
		flags |= table.PortMirrorOut
	}
	switch {
	case flags == 0 || m.GetPort() == "" && m.GetAddress() == "":
		return
	case m.GetPort() == "":
		row.Flags |= flags // by the capture ring to ERSPAN
		return
	}
	to := v.byPort[m.GetPort()]
	if to == nil || to == p {
		v.problem(Problem{Port: p.Name, Reason: "MIRROR_MISSING", Message: fmt.Sprintf("frames are not mirrored: port %s is not on this host", m.GetPort())})
		return
	}
	row.Flags |= flags
	row.MirrorIfindex = to.Ifindex
}

// inline puts a port's addresses into its row: virtual ones first, since those are in no other row, then its own, then leases. What a lease allows ends when the
// caller leaves it out, not by itself: a guest goes on while nobody is there to see it renew.
func (v *View) inline(p *port, row *table.Port) {
	var all []netip.Addr
	if p.policy.GetGuards().GetVirtualRouter() != v1.Toggle_TOGGLE_ON {
		all = append(all, v.virtual(p)...)
	}
	all = append(all, sortedAddrs(p.Addresses)...)
	var leases []netip.Addr
	for _, l := range p.Leases {
		switch {
		case isTrunk(p.policy):
			row.Flags |= table.PortMoreIPs // inline it would be good in all of the trunk's networks
		case l.Net == p.home.Net:
			leases = append(leases, l.Addr)
		}
	}
	all = append(all, sortedAddrs(leases)...)
	seen := map[netip.Addr]bool{}
	for _, a := range all {
		switch {
		case seen[a]:
		case a.Is4() && row.IP4Count < table.InlineIPs:
			row.IP4[row.IP4Count] = a.As4()
			row.IP4Count++
		case a.Is6() && row.IP6Count < table.InlineIPs:
			row.IP6[row.IP6Count] = table.IPOf(a)
			row.IP6Count++
		default:
			row.Flags |= table.PortMoreIPs
		}
		seen[a] = true
	}
	if row.Flags&table.PortDHCPSnoop != 0 {
		row.Flags |= table.PortMoreIPs // what the datapath notes itself is in bindings alone
	}
}

// virtual are the virtual addresses that a profile lets its ports hold.
func (v *View) virtual(p *port) []netip.Addr {
	var out []netip.Addr
	for _, s := range p.policy.GetGuards().GetVirtualAddresses() {
		a, err := ParseAddr(s)
		if err != nil {
			v.problem(Problem{Port: p.Name, Reason: "VIRTUAL_ADDRESS", Message: "virtual " + err.Error()})
			continue
		}
		out = append(out, a)
	}
	return sortedAddrs(out)
}

func sortedAddrs(in []netip.Addr) []netip.Addr {
	out := make([]netip.Addr, 0, len(in))
	for _, a := range in {
		out = append(out, a.Unmap())
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}
