package model_test

import (
	"math/rand/v2"
	"net/netip"

	"drover/internal/vswitch/frame"
	"drover/internal/vswitch/table"
)

// generator makes configurations and frames that have much in common, so that frames reach the last rules.
type generator struct {
	*rand.Rand
	k    *kernel
	macs []table.MAC  // of ports, remote VMs, nobody
	ips  []netip.Addr // IPv4 and IPv6
}

func newGenerator(seed uint64, k *kernel) *generator {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 3)), k: k}
	for i := range byte(devicePorts) {
		g.macs = append(g.macs, portMAC(i))
	}
	for i := range byte(6) {
		g.macs = append(g.macs, table.MAC{0x52, 0x54, 0, 0, 1, i})
	}
	g.macs = append(g.macs, table.MAC{0, 0, 0x5e, 0, 1, 7}, table.MAC{0, 0, 0x0c, 7, 0xac, 1}, table.MAC{0, 0, 0x0c, 0x9f, 0xf1, 1}, table.MAC{0, 5, 0x73, 0xa0, 1, 1},
		table.MAC{0, 7, 0xb4, 0, 1, 1}, table.MAC{0, 0, 0x5e, 0, 3, 1})
	for i := range byte(9) {
		g.ips = append(g.ips, netip.AddrFrom4([4]byte{10, 0, 0, i + 1}), netip.AddrFrom16([16]byte{0x20, 1, 0x0d, 0xb8, 15: i + 1}))
	}
	for i := range byte(3) {
		g.ips = append(g.ips, frame.LinkLocal(portMAC(i)))
	}
	return g
}

func portMAC(i byte) table.MAC { return table.MAC{0x52, 0x54, 0, 0, 0, i} }

var networkNumbers = []uint32{5, 6, 7}

// once says yes one time out of n.
func (g *generator) once(n int) bool { return g.IntN(n) == 0 }

func pick[T any](g *generator, of []T) T { return of[g.IntN(len(of))] }

func (g *generator) bucket() table.Bucket {
	switch g.IntN(4) {
	case 0: // one a second: what was taken does not come back while the test looks
		return table.Bucket{Rate: 1, Burst: uint64(g.IntN(20))}
	case 1:
		return table.Bucket{Rate: 1, Burst: 20_000}
	case 2:
		return table.Bucket{Rate: 1 << 40, Burst: 1 << 28}
	}
	return table.Bucket{}
}

func (g *generator) port(i int) table.Port {
	// Most ports have few flags; some have many.
	flags := table.PortFlag(0)
	density := pick(g, []int{3, 8, 8, 30})
	for bit := range 27 {
		if g.once(density) {
			flags |= 1 << bit
		}
	}
	if !g.once(40) {
		flags &^= table.PortDown
	}
	if !g.once(6) {
		flags &^= table.PortCapture
	}
	if g.once(4) {
		flags |= table.PortStorm | table.PortMeterIn | table.PortMeterOut
	}
	if g.once(6) { // the profile "secure"
		flags |= table.PortIPGuard | table.PortARPGuard | table.PortNDGuard | table.PortDHCPSnoop | table.PortStorm
		flags &^= table.PortForged | table.PortDHCPServer | table.PortRouter | table.PortVirtualRouter
	}
	p := table.Port{Slot: uint32(i + 1), Net: pick(g, []uint32{5, 5, 5, 5, 5, 6, 6, 6, 7, 0}), Flags: flags, Team: 0, MAC: portMAC(byte(i)), PVLAN: pick(g, []table.PVLAN{0, 0, 0, 1, 2, 3}),
		TeamHash: table.TeamHash(g.IntN(3)), Community: uint16(g.IntN(2)), MTU: pick(g, []uint16{1500, 1500, 1500, 100}), DSCP: pick(g, []uint8{0, 46, 255}), CoS: pick(g, []uint8{0, 5, 255}),
		IP4Count: uint8(g.IntN(table.InlineIPs + 1)), IP6Count: uint8(g.IntN(table.InlineIPs + 1)), Bucket: uint32(g.IntN(table.TeamBuckets)), Priority: g.Uint32(),
		UplinkVID: pick(g, []uint16{0, 0, 30})}
	if flags&(table.PortMirrorIn|table.PortMirrorOut) != 0 && g.once(2) {
		p.MirrorIfindex = pick(g, g.k.ports)
	}
	for n := range table.InlineIPs {
		p.IP4[n] = [4]byte{10, 0, 0, byte(g.IntN(9) + 1)}
		p.IP6[n] = table.IP{0x20, 1, 0x0d, 0xb8, 15: byte(g.IntN(9) + 1)}
		if g.once(20) {
			p.IP6[n] = table.IP{10: 0xff, 11: 0xff, 12: 10, 15: 1}
		}
	}
	return p
}

func (g *generator) tables() *table.Tables {
	t := table.New()
	quiet := g.once(3) // no copies of unicast frames: then frames may have GSO
	for i := range devicePorts {
		p := g.port(i)
		if quiet {
			p.Flags &^= table.PortMirrorIn | table.PortMirrorOut
		}
		t.Ports[g.k.ports[i]] = p
	}
	for _, n := range networkNumbers {
		if n == 7 && g.once(2) {
			continue
		}
		t.Networks[n] = table.Network{Flags: table.NetworkFlag(g.IntN(64)), Team: uint32(g.IntN(2)), Members: uint32(g.IntN(10)), VID: pick(g, []uint16{0, 10, 20}),
			MTU: pick(g, []uint16{1500, 1500, 100})}
		if quiet {
			w := t.Networks[n]
			w.Flags &^= table.NetworkWatched
			t.Networks[n] = w
		}
		rows := t.Networks[n].Members
		for row := range rows {
			if g.once(12) {
				continue
			}
			m := table.Member{Target: pick(g, g.k.ports), Place: table.PlaceLocal, PVLAN: table.PVLAN(g.IntN(4)), VID: pick(g, []uint16{0, 0, 10}), Flags: table.MemberFlag(g.IntN(4))}
			if g.once(5) {
				m = table.Member{Target: uint32(g.IntN(3)), Place: table.PlaceTunnel}
			}
			t.Members[table.MemberKey{Net: n, Row: row}] = m
			if g.once(2) {
				t.Groups[table.GroupKey{Net: n, Target: m.Target, Group: table.IPOf(pick(g, groups)), Place: uint32(m.Place)}] = 1
			}
		}
		for _, m := range g.macs {
			if g.once(4) {
				continue
			}
			e := table.FDBEntry{Place: table.Place(g.IntN(3) + 1), PVLAN: table.PVLAN(g.IntN(4)), Community: uint16(g.IntN(2))}
			if m[4] == 0 && m[0] == 0x52 && !g.once(8) {
				e.Place = table.PlaceLocal
			}
			switch e.Place {
			case table.PlaceLocal:
				e.Target, e.VID = g.k.ports[int(m[5])%len(g.k.ports)], pick(g, []uint16{0, 0, 10})
			case table.PlaceTunnel:
				e.Target = uint32(g.IntN(3))
			}
			t.FDB[table.FDBKey{Net: n, MAC: m}] = e
		}
		for _, a := range g.ips {
			if g.once(2) {
				t.Bindings[table.BindingKey{Net: n, IP: table.IPOf(a)}] = table.Binding{Ifindex: pick(g, append([]uint32{0}, g.k.ports...)), MAC: pick(g, g.macs),
					Source: table.BindingSource(g.IntN(5) + 1), Expires: pick(g, []uint64{0, 0, 1, 1 << 60})}
			}
		}
	}
	for _, p := range g.k.ports {
		for range 3 {
			t.MACs[table.MACKey{Ifindex: p, MAC: pick(g, g.macs)}] = 1
			t.Trunks[table.TrunkKey{Ifindex: p, VID: uint32(pick(g, []int{10, 20, 30, 0}))}] = pick(g, networkNumbers)
		}
	}
	for i, u := range g.k.uplinks {
		if i == 1 && g.once(3) {
			continue
		}
		t.Uplinks[u] = table.Uplink{Slot: uint32(20 + i), Team: uint32(g.IntN(2)), Flags: table.UplinkFlag(pick(g, []int{0, 0, 0, 0, 1, 2, 3})), MAC: table.MAC{0x52, 0x54, 0, 0, 2, byte(i)}}
	}
	for _, u := range g.k.uplinks {
		for _, v := range []uint32{0, 10, 20, 30} {
			if !g.once(4) {
				t.UplinkVLANs[table.UplinkKey{Ifindex: u, VID: v}] = table.UplinkVLAN{Net: pick(g, networkNumbers), PVLAN: table.PVLAN(g.IntN(4)), Community: uint16(g.IntN(2))}
			}
		}
	}
	for id := range uint32(2) {
		var team table.Team
		for i := range team.Bucket {
			team.Bucket[i] = pick(g, append([]uint32{0}, g.k.uplinks...))
		}
		t.Teams[id] = team
	}
	t.VTEPs[1] = table.VTEP{Addr: table.IPOf(netip.MustParseAddr("192.0.2.1")), Family: table.FamilyIP4, Ifindex: g.k.tunnel}
	t.VTEPs[2] = table.VTEP{Addr: table.IPOf(netip.MustParseAddr("2001:db8::2")), Family: table.FamilyIP6, Ifindex: g.k.tunnel}
	for i := range uint32(slots) {
		if g.once(2) {
			t.Meters[i] = table.Meter{In: g.bucket(), Out: g.bucket(), Broadcast: g.bucket(), Multicast: g.bucket(), Unknown: g.bucket(), DHCP: g.bucket(), Punt: g.bucket()}
		}
	}
	return t
}
