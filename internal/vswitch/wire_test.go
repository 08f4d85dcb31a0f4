package vswitch

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"drover/internal/hostnet"
	"drover/internal/vswitch/table"
)

// uplinkBed has network 7 on VLAN 100 (isolated: 101, community 4: 102) of a team of two uplinks, and network 9 untagged.
func uplinkBed(t *testing.T, suffix string, flags table.UplinkFlag) (b *bed, up, other *plug) {
	b = testBed(t, suffix)
	b.want.Networks[7] = table.Network{Flags: table.NetworkUplink, VID: 100, MTU: 1500, Team: 2}
	b.want.Networks[9] = table.Network{Flags: table.NetworkUplink, MTU: 1500, Team: 2}
	up, other = b.plug("up", KindUplink), b.plug("other", KindUplink)
	team := table.Team{}
	for i := range team.Bucket {
		team.Bucket[i] = up.ifindex
	}
	team.Bucket[1] = other.ifindex
	b.want.Teams[2] = team
	for i, p := range []*plug{up, other} {
		b.want.Uplinks[p.ifindex] = table.Uplink{Slot: uint32(100 + i), Team: 2, Flags: flags, MAC: mac(500 + i)}
		b.want.UplinkVLANs[table.UplinkKey{Ifindex: p.ifindex, VID: 100}] = table.UplinkVLAN{Net: 7}
		b.want.UplinkVLANs[table.UplinkKey{Ifindex: p.ifindex, VID: 101}] = table.UplinkVLAN{Net: 7, PVLAN: table.PVLANIsolated}
		b.want.UplinkVLANs[table.UplinkKey{Ifindex: p.ifindex, VID: 0}] = table.UplinkVLAN{Net: 9}
	}
	return b, up, other
}

func TestToUplink(t *testing.T) {
	b, up, other := uplinkBed(t, "toup", 0)
	a := b.port("a", 1, nil)
	second := b.port("b", 2, func(p *table.Port) { p.Bucket, p.Flags, p.CoS = 1, table.PortMark, 5 })
	alone := b.port("i", 3, func(p *table.Port) { p.PVLAN, p.UplinkVID = table.PVLANIsolated, 101 })
	friends := b.port("c", 5, func(p *table.Port) {
		p.PVLAN, p.Community, p.UplinkVID, p.Flags = table.PVLANCommunity, 4, 102, table.PortTrunk
	})
	b.want.Trunks[table.TrunkKey{Ifindex: friends.ifindex, VID: 9}] = 9
	plain := b.port("p", 4, func(p *table.Port) { p.Net = 9 })
	b.want.FDB[table.FDBKey{Net: 7, MAC: mac(50)}] = table.FDBEntry{Place: table.PlaceUplink}
	b.apply()

	for _, dst := range []table.MAC{outside, mac(50)} {
		frame := raw(dst, mac(1), 60)
		a.send(frame)
		up.gets(tagged(frame, 0x8100, 100))
		other.getsNothing()
	}
	frame := raw(outside, mac(2), 60)
	second.send(frame)
	other.gets(tagged(frame, 0x8100, 5<<13|100))
	up.getsNothing()
	frame = raw(outside, mac(3), 60)
	alone.send(frame)
	up.gets(tagged(frame, 0x8100, 101))
	frame = raw(outside, mac(5), 60)
	friends.send(frame)
	up.gets(tagged(frame, 0x8100, 102))
	friends.send(tagged(frame, 0x8100, 9)) // another network than the one whose role it has
	up.gets(frame)
	frame = raw(outside, mac(4), 60)
	plain.send(frame)
	up.gets(frame)

	all := raw(everybody, mac(1), 60)
	a.send(all)
	second.gets(all)
	alone.gets(all)
	friends.gets(all)
	plain.getsNothing()
	up.gets(tagged(all, 0x8100, 100))
	up.getsNothing()
	other.getsNothing()

	b.want.Teams[2] = table.Team{}
	b.apply()
	b.refused(a, 1, raw(outside, mac(1), 60), table.DropNoUplink)
	b.refused(plain, 4, raw(everybody, mac(4), 60), table.DropNoUplink)
	got, err := b.d.Counters([]uint32{100, 101})
	must(t, err)
	if got[100].OutPackets != 7 || got[101].OutPackets != 1 {
		t.Errorf("uplinks counted %d and %d frames, want 7 and 1", got[100].OutPackets, got[101].OutPackets)
	}
}

// TestControlStays wants a spanning tree frame that a port may send to reach other guests here, and no switch.
func TestControlStays(t *testing.T) {
	b, up, _ := uplinkBed(t, "ctl", 0)
	a, c := b.port("a", 1, func(p *table.Port) { p.Flags = table.PortBPDU }), b.port("c", 2, nil)
	b.want.Members[table.MemberKey{Net: 7, Row: 2}] = table.Member{Target: 3, Place: table.PlaceTunnel}
	n := b.want.Networks[7]
	n.Members = 3
	b.want.Networks[7] = n
	b.apply()
	frame := raw(table.MAC{1, 0x80, 0xc2, 0, 0, 0}, mac(1), 60)
	a.send(frame)
	c.gets(frame)
	up.getsNothing()
	b.refused(c, 2, raw(table.MAC{1, 0x80, 0xc2, 0, 0, 0}, mac(2), 60), table.DropBPDU)
	got, err := b.d.Counters([]uint32{0, 100})
	must(t, err)
	if got[0].OutPackets+got[100].OutPackets != 0 {
		t.Errorf("it left the host: %+v", got)
	}
}

func TestTeamHash(t *testing.T) {
	b, up, other := uplinkBed(t, "hash", 0)
	team := table.Team{}
	for i := range team.Bucket {
		team.Bucket[i] = []uint32{up.ifindex, other.ifindex}[i%2]
	}
	b.want.Teams[2] = team
	byMAC := b.port("m", 1, func(p *table.Port) { p.TeamHash, p.Flags = table.TeamByMAC, table.PortForged })
	byIP := b.port("i", 2, func(p *table.Port) { p.TeamHash, p.Flags = table.TeamByIP, table.PortForged })
	b.apply()
	hash := func(x uint32) *plug { return []*plug{up, other}[x*0x9e3779b1>>26%2] }
	seen := map[*plug]int{}
	for i := range 40 {
		frame := raw(outside, mac(0x100+i), 60)
		byMAC.send(frame)
		want := hash(0x100 + uint32(i))
		want.gets(tagged(frame, 0x8100, 100))
		seen[want]++

		to := net.IP{10, 0, 1, byte(i)}
		frame = udp4(t, outside, mac(2), to, net.IP{10, 0, 0, 1}, 5, 6, nil)
		byIP.send(frame)
		want = hash((0x0a000001) ^ (0x0a000100 + uint32(i)))
		want.gets(tagged(frame, 0x8100, 100))
	}
	if len(seen) != 2 {
		t.Error("all MACs went by one uplink")
	}
}

func TestFromUplink(t *testing.T) {
	b, up, other := uplinkBed(t, "fromup", 0)
	a := b.port("a", 1, nil)
	second := b.port("b", 2, func(p *table.Port) { p.Bucket = 1 })
	alone := b.port("i", 3, func(p *table.Port) { p.PVLAN = table.PVLANIsolated })
	b.want.FDB[table.FDBKey{Net: 7, MAC: mac(50)}] = table.FDBEntry{Place: table.PlaceUplink}
	b.want.FDB[table.FDBKey{Net: 7, MAC: mac(51)}] = table.FDBEntry{Place: table.PlaceTunnel, Target: 4}
	b.apply()

	frame := raw(mac(1), outside, 60)
	up.send(tagged(frame, 0x8100, 100))
	a.gets(frame)
	other.send(tagged(frame, 0x8100, 100)) // a switch may use either
	a.gets(frame)
	all := raw(everybody, outside, 60)
	up.send(tagged(all, 0x8100, 100))
	a.gets(all)
	alone.gets(all)
	second.getsNothing() // gets it by the other
	other.send(tagged(all, 0x8100, 100))
	second.gets(all)
	a.getsNothing()
	up.getsNothing()
	other.getsNothing()

	isolated := raw(mac(3), outside, 60)
	b.refused(up, 100, tagged(isolated, 0x8100, 101), table.DropPVLAN)
	b.refused(up, 100, tagged(raw(mac(9), outside, 60), 0x8100, 100), table.DropUnregistered)
	b.refused(up, 100, tagged(raw(mac(50), outside, 60), 0x8100, 100), table.DropSplitHorizon)
	b.refused(up, 100, tagged(raw(mac(51), outside, 60), 0x8100, 100), table.DropSplitHorizon)
	b.refused(up, 100, tagged(raw(mac(1), mac(2), 60), 0x8100, 100), table.DropReflected)
	b.refused(up, 100, tagged(raw(everybody, mac(2), 60), 0x8100, 100), table.DropReflected)
	b.refused(up, 100, tagged(frame, 0x8100, 102), table.DropVLAN)
	b.refused(up, 100, tagged(frame, 0x88a8, 100), table.DropTagged)
	b.refused(up, 100, tagged(tagged(frame, 0x8100, 100), 0x8100, 100), table.DropDoubleTag)
	b.refused(up, 100, frame, table.DropUnregistered) // untagged is network 9
	b.refused(up, 100, tagged(frame, 0x8100, 0), table.DropUnregistered)
	b.refused(up, 100, tagged(raw(mac(1), outside, 1501), 0x8100, 100), table.DropMTU)
	b.refused(up, 100, raw(table.MAC{1, 0x80, 0xc2, 0, 0, 0}, outside, 60), table.DropReservedUplink)
	lldp := raw(table.MAC{1, 0x80, 0xc2, 0, 0, 14}, outside, 60)
	lldp[12], lldp[13] = 0x88, 0xcc
	b.refused(up, 100, lldp, table.DropPunted)
	cdp := append(append(append([]byte{}, 1, 0, 0xc, 0xcc, 0xcc, 0xcc), outside[:]...), 0, 60, 0xaa, 0xaa, 3, 0, 0, 0xc, 0x20, 0)
	b.refused(up, 100, append(cdp, make([]byte, 40)...), table.DropPunted)
	beacon := raw(table.MAC{3, 'D', 'R', 'O', 'V', 'E'}, outside, 60)
	beacon[12], beacon[13] = 0x88, 0xb5
	b.refused(up, 100, tagged(beacon, 0x8100, 100), table.DropPunted)
	for _, p := range []*plug{a, second, alone, up, other} {
		p.getsNothing()
	}
}

// TestSharedUplink wants the machine to keep what is its own.
func TestSharedUplink(t *testing.T) {
	b, up, _ := uplinkBed(t, "shared", table.UplinkShared)
	a := b.port("a", 1, func(p *table.Port) { p.Net = 9 })
	b.apply()
	const pass = 0xffffffff // TC_ACT_UNSPEC
	own := mac(500)
	for name, frame := range map[string][]byte{
		"own MAC":              raw(own, outside, 60),
		"own MAC, jumbo":       raw(own, outside, 3000),
		"own MAC, own VLAN":    tagged(raw(own, outside, 60), 0x8100, 55),
		"broadcast, own VLAN":  tagged(raw(everybody, outside, 60), 0x8100, 55),
		"broadcast, own stack": tagged(raw(everybody, outside, 60), 0x88a8, 55),
	} {
		action, out, err := b.d.Try(KindUplink, int(up.ifindex), frame)
		if err != nil || action != pass || !bytes.Equal(out, frame) {
			t.Errorf("%s: action %#x, frame %.32x, %v; want it passed on untouched", name, action, out, err)
		}
	}
	a.getsNothing()
	all := raw(everybody, outside, 60)
	action, out, err := b.d.Try(KindUplink, int(up.ifindex), all)
	if err != nil || action != pass || !bytes.Equal(out, all) {
		t.Errorf("broadcast: action %#x, frame %x, %v; want it passed on", action, out, err)
	}
	a.gets(all)
	if action, _, err := b.d.Try(KindUplink, int(up.ifindex), raw(mac(77), outside, 60)); err != nil || action != tcShot {
		t.Errorf("unicast to nobody: action %#x, %v", action, err)
	}
	if action, _, err := b.d.Try(KindUplink, int(up.ifindex), tagged(raw(everybody, outside, 60), 0x8100, 100)); err != nil || action != tcShot {
		t.Errorf("broadcast in a VLAN of ours: action %#x, %v", action, err)
	}
}

// tunnelBeds are two hosts with network 7 over an underlay.
func tunnelBeds(t *testing.T, six bool) (one, two *bed) {
	suffix, bits := "v4", 24
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}) }
	family := uint32(table.FamilyIP4)
	if six {
		suffix, bits, family = "v6", 64, table.FamilyIP6
		addr = func(i int) netip.Addr {
			a := netip.MustParseAddr("2001:db8::").As16()
			a[15] = byte(i)
			return netip.AddrFrom16(a)
		}
	}
	one, two = testBed(t, "t1"+suffix), testBed(t, "t2"+suffix)
	mark := hostnet.Mark{Kind: "test", ID: "under"}
	must(t, one.net.EnsureVeth(nil, two.net, hostnet.Veth{A: "under0", B: "under0", MarkA: mark, MarkB: mark, MTU: 1600}))
	for i, b := range []*bed{one, two} {
		if six { // no waiting for duplicates of addresses
			must(t, b.net.SetSysctl("ipv6.conf.under0.accept_dad", "0"))
		}
		must(t, b.net.SetUp("under0", true))
		must(t, b.net.EnsureAddress(nil, "under0", netip.PrefixFrom(addr(i+1), bits)))
		must(t, b.net.EnsureVXLAN(nil, hostnet.VXLAN{Name: "dvx0", Mark: mark, MTU: 1500}))
		l, err := b.net.Link("dvx0")
		must(t, err)
		must(t, b.d.Attach(t.Context(), Device{Ifindex: l.Index, Name: "dvx0", Kind: KindTunnel}))
		peer := uint32(2 - i)
		b.want.VTEPs[peer] = table.VTEP{Addr: table.IPOf(addr(2 - i)), Family: family, Ifindex: uint32(l.Index)}
		b.want.VTEPSources[table.IPOf(addr(2-i))] = peer
	}
	return one, two
}

func TestTunnel(t *testing.T) {
	for name, six := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			one, two := tunnelBeds(t, six)
			a := one.port("a", 1, nil)
			c := two.port("c", 2, nil)
			isolated := two.port("i", 3, func(p *table.Port) { p.PVLAN = table.PVLANIsolated })
			remote := func(b *bed, i int, host uint32, role table.PVLAN) {
				b.want.FDB[table.FDBKey{Net: 7, MAC: mac(i)}] = table.FDBEntry{Target: host, Place: table.PlaceTunnel, PVLAN: role}
			}
			remote(one, 2, 2, 0)
			remote(one, 3, 2, 0)
			remote(two, 1, 1, 0)
			remote(two, 5, 1, table.PVLANIsolated)
			for _, b := range []*bed{one, two} {
				n := b.want.Networks[7]
				b.want.Members[table.MemberKey{Net: 7, Row: n.Members}] = table.Member{Target: map[*bed]uint32{one: 2, two: 1}[b], Place: table.PlaceTunnel}
				n.Members++
				b.want.Networks[7] = n
				b.apply()
			}
			frame := raw(mac(2), mac(1), 60)
			a.send(frame)
			c.gets(frame)
			back := raw(mac(1), mac(2), 60)
			c.send(back)
			a.gets(back)
			all := raw(everybody, mac(1), 60)
			a.send(all)
			c.gets(all)
			isolated.gets(all)
			a.getsNothing() // it does not come back
			c.getsNothing()

			row := one.want.Ports[a.ifindex]
			row.Flags = table.PortForged
			one.want.Ports[a.ifindex] = row
			one.want.FDB[table.FDBKey{Net: 7, MAC: mac(8)}] = table.FDBEntry{Target: 2, Place: table.PlaceTunnel}
			one.apply()
			tries := func(f []byte, r table.Reason) {
				t.Helper()
				before := two.dropped(0, r)
				a.send(f)
				for range 100 { // the other host's softirq may run a moment later
					if two.dropped(0, r) > before {
						return
					}
					time.Sleep(time.Millisecond)
				}
				t.Errorf("not dropped for %v", r)
			}
			tries(raw(mac(8), mac(1), 60), table.DropUnregistered)
			tries(raw(mac(2), mac(3), 60), table.DropReflected)
			tries(raw(mac(3), mac(5), 60), table.DropPVLAN)
			two.want.FDB[table.FDBKey{Net: 7, MAC: mac(8)}] = table.FDBEntry{Place: table.PlaceUplink}
			two.apply()
			tries(raw(mac(8), mac(1), 60), table.DropSplitHorizon)
			n := two.want.Networks[7]
			n.Flags |= table.NetworkEncrypted
			two.want.Networks[7] = n
			two.apply()
			tries(frame, table.DropVTEP)
			c.getsNothing()
			v := two.want.VTEPs[1]
			v.Flags = table.VTEPPrivate
			two.want.VTEPs[1] = v
			two.apply()
			a.send(frame)
			c.gets(frame)
			n.Flags = 0
			two.want.Networks[7] = n
			two.apply()
			tries(frame, table.DropNetwork)
			clear(two.want.VTEPSources)
			two.apply()
			tries(frame, table.DropVTEP)
			c.getsNothing()
			clear(one.want.VTEPs)
			one.apply()
			one.refused(a, 1, frame, table.DropUnregistered)
		})
	}
}

// TestTunnelSource has two hosts of which one has two addresses: the other one believes the one only that the manager named, which is not the one that the route prefers.
func TestTunnelSource(t *testing.T) {
	for name, six := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			one, two := tunnelBeds(t, six)
			named := netip.MustParseAddr("192.0.2.77") // Linux prefers the first
			second := netip.PrefixFrom(named, 24)
			if six {
				named, second = netip.MustParseAddr("2001:db8::1"), netip.MustParsePrefix("2001:db8::77/64") // and here the last
			}
			must(t, one.net.EnsureAddress(nil, "under0", second))
			a, c := one.port("a", 1, nil), two.port("c", 2, nil)
			one.want.FDB[table.FDBKey{Net: 7, MAC: mac(2)}] = table.FDBEntry{Target: 2, Place: table.PlaceTunnel}
			two.want.VTEPSources = map[table.IP]uint32{table.IPOf(named): 1}
			one.apply()
			two.apply()
			frame := raw(mac(2), mac(1), 60)
			before := two.dropped(0, table.DropVTEP)
			a.send(frame)
			for range 1000 { // the other host's softirq may run a moment later
				if two.dropped(0, table.DropVTEP) > before {
					break
				}
				time.Sleep(time.Millisecond)
			}
			if two.dropped(0, table.DropVTEP) == before {
				t.Fatal("the route prefers the named address: this test shows nothing")
			}
			v := one.want.VTEPs[2]
			v.Local = table.IPOf(named)
			one.want.VTEPs[2] = v
			one.apply()
			a.send(frame)
			c.gets(frame)
		})
	}
}

// TestTunnelSegments wants a large TCP frame to cross the tunnel.
func TestTunnelSegments(t *testing.T) {
	one, two := tunnelBeds(t, false)
	a, c := one.port("a", 1, nil), two.port("c", 2, nil)
	one.want.FDB[table.FDBKey{Net: 7, MAC: mac(2)}] = table.FDBEntry{Target: 2, Place: table.PlaceTunnel}
	two.want.FDB[table.FDBKey{Net: 7, MAC: mac(1)}] = table.FDBEntry{Target: 1, Place: table.PlaceTunnel}
	one.apply()
	two.apply()
	frame := tcp4(t, mac(2), mac(1), make([]byte, 30000))
	a.sendAs(gsoHeader(1, 1400), frame)
	for got := 0; got < 30000; {
		_, part := c.poll(time.Second)
		if part == nil {
			t.Fatalf("%d bytes of 30000 arrived", got)
		}
		got += len(part) - 54
	}
}

// TestEncryptedNetwork wants a network that is encrypted between sites to take nothing from another site that came openly, nor to another address of the host
// than that inside the tunnel.
func TestEncryptedNetwork(t *testing.T) {
	for name, six := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			one, two := tunnelBeds(t, six)
			a, c := one.port("a", 1, nil), two.port("c", 2, nil)
			one.want.FDB[table.FDBKey{Net: 7, MAC: mac(2)}] = table.FDBEntry{Target: 2, Place: table.PlaceTunnel}
			one.apply()
			frame := raw(mac(2), mac(1), 60)
			network, far := two.want.Networks[7], two.want.VTEPs[1]
			network.Flags |= table.NetworkEncrypted
			local := one.want.VTEPs[2].Addr
			for _, tt := range []struct {
				name   string
				flags  table.VTEPFlag
				local  table.IP
				passes bool
			}{
				{"by the tunnel", table.VTEPPrivate, local, true},
				{"by the tunnel, whose address is not known", table.VTEPPrivate, table.IP{}, true},
				{"openly", 0, local, false},
				{"to another address", table.VTEPPrivate, far.Addr, false},
			} {
				far.Flags, far.Local = tt.flags, tt.local
				two.want.VTEPs[1], two.want.Networks[7] = far, network
				two.apply()
				before := two.dropped(0, table.DropVTEP)
				a.send(frame)
				if tt.passes {
					c.gets(frame)
					continue
				}
				c.getsNothing()
				if two.dropped(0, table.DropVTEP) != before+1 {
					t.Errorf("%s: not dropped for VTEP", tt.name)
				}
			}
			// What is not encrypted anyway comes from any host.
			network.Flags &^= table.NetworkEncrypted
			far.Flags = 0
			two.want.VTEPs[1], two.want.Networks[7] = far, network
			two.apply()
			a.send(frame)
			c.gets(frame)
		})
	}
}
