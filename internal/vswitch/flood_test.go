package vswitch

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"drover/internal/vswitch/table"

	"github.com/gopacket/gopacket/layers"
)

func TestFlood(t *testing.T) {
	b := testBed(t, "flood")
	a, c, d := b.port("a", 1, nil), b.port("c", 2, nil), b.port("d", 3, nil)
	down := b.port("e", 4, func(p *table.Port) { p.Flags = table.PortDown })
	b.apply()
	for _, dst := range []table.MAC{everybody, {1, 0, 0x5e, 0, 0, 1}, {0x33, 0x33, 0, 0, 0, 1}} {
		frame := raw(dst, mac(1), 60)
		a.send(frame)
		c.gets(frame)
		d.gets(frame)
	}
	for _, p := range []*plug{a, c, d, down} {
		p.getsNothing()
	}
	got, err := b.d.Counters([]uint32{1, 2})
	must(t, err)
	if len(got[1].Drops) != 0 {
		t.Errorf("floods were counted as drops: %v", got[1].Drops)
	}
	if n := got[2].OutPackets; n != 3 {
		t.Errorf("%d copies were counted, want 3", n)
	}
}

// TestPrivateVLAN tries every sender on every receiver, as unicast and in a flood.
func TestPrivateVLAN(t *testing.T) {
	b := testBed(t, "pvlan")
	roles := []struct {
		role      table.PVLAN
		community uint16
	}{{table.PVLANNone, 0}, {table.PVLANPromiscuous, 0}, {table.PVLANIsolated, 0}, {table.PVLANIsolated, 0}, {table.PVLANCommunity, 1}, {table.PVLANCommunity, 1}, {table.PVLANCommunity, 2}}
	var plugs []*plug
	for i, r := range roles {
		plugs = append(plugs, b.port(fmt.Sprint("p", i), i+1, func(p *table.Port) { p.PVLAN, p.Community = r.role, r.community }))
	}
	b.apply()
	for i, from := range roles {
		plugs[i].send(raw(everybody, mac(i+1), 60))
		for j, to := range roles {
			if i == j {
				continue
			}
			may := from.role <= table.PVLANPromiscuous || to.role == table.PVLANPromiscuous || from.role == table.PVLANCommunity && from == to
			frame := raw(mac(j+1), mac(i+1), 60)
			if !may {
				plugs[j].getsNothing()
				b.refused(plugs[i], uint32(i+1), frame, table.DropPVLAN)
				plugs[j].getsNothing()
				continue
			}
			plugs[j].gets(raw(everybody, mac(i+1), 60))
			plugs[i].send(frame)
			plugs[j].gets(frame)
		}
	}
}

func groupFrame(t testing.TB, src table.MAC, group string) []byte {
	ip := net.ParseIP(group)
	if four := ip.To4(); four != nil {
		return udp4(t, table.MAC{1, 0, 0x5e, four[1] & 0x7f, four[2], four[3]}, src, four, net.IP{10, 0, 0, 1}, 5, 6, nil)
	}
	dst := net.HardwareAddr{0x33, 0x33, ip[12], ip[13], ip[14], ip[15]}
	six := &layers.IPv6{Version: 6, HopLimit: 1, NextHeader: layers.IPProtocolUDP, SrcIP: net.ParseIP("fe80::1"), DstIP: ip}
	u := &layers.UDP{SrcPort: 5, DstPort: 6}
	must(t, u.SetNetworkLayerForChecksum(six))
	return packet(t, &layers.Ethernet{DstMAC: dst, SrcMAC: src[:], EthernetType: layers.EthernetTypeIPv6}, six, u)
}

func TestSnooping(t *testing.T) {
	b := testBed(t, "snoop")
	n := b.want.Networks[7]
	n.Flags |= table.NetworkSnooping
	b.want.Networks[7] = n
	a, listens, deaf, router := b.port("a", 1, nil), b.port("l", 2, nil), b.port("d", 3, nil), b.port("r", 4, nil)
	b.member(router, table.MemberAllGroups)
	for _, g := range []string{"239.1.1.1", "ff05::1:3", "ff02::fb"} {
		b.want.Groups[table.GroupKey{Net: 7, Target: listens.ifindex, Group: table.IPOf(netip.MustParseAddr(g)), Place: uint32(table.PlaceLocal)}] = 1
	}
	b.apply()
	for _, g := range []string{"239.1.1.1", "ff05::1:3", "ff02::fb"} {
		frame := groupFrame(t, mac(1), g)
		a.send(frame)
		listens.gets(frame)
		router.gets(frame)
		deaf.getsNothing()
	}
	for _, g := range []string{"239.1.1.2", "224.0.1.1", "ff05::2", "ff02::6a", "ff02::1:fe00:1"} {
		frame := groupFrame(t, mac(1), g)
		a.send(frame)
		router.gets(frame)
		listens.getsNothing()
		deaf.getsNothing()
	}
	for _, g := range []string{"224.0.0.251", "ff02::1", "ff02::2", "ff02::1:ff12:3456"} {
		frame := groupFrame(t, mac(1), g)
		a.send(frame)
		for _, p := range []*plug{listens, router, deaf} {
			p.gets(frame)
		}
	}
	// Reports of versions whose hosts keep their own back go to routers alone, others to all who listen.
	report := func(kind byte) []byte {
		f := groupFrame(t, mac(1), "239.1.1.1")
		f[23], f[34] = 2, kind
		return f
	}
	mld := func(kind byte) []byte {
		f := groupFrame(t, mac(1), "ff05::1:3")
		f[20], f[54] = 58, kind
		return f
	}
	for _, frame := range [][]byte{report(0x12), report(0x16), mld(131)} {
		a.send(frame)
		router.gets(frame)
		listens.getsNothing()
	}
	for _, frame := range [][]byte{report(0x11), mld(130)} {
		a.send(frame)
		router.gets(frame)
		listens.gets(frame)
	}
	deaf.getsNothing()
	frame := raw(table.MAC{1, 2, 3}, mac(1), 60) // no IP: nobody can ask for it
	a.send(frame)
	deaf.gets(frame)
}

func TestWatchers(t *testing.T) {
	b := testBed(t, "watch")
	a, c := b.port("a", 1, nil), b.port("c", 2, nil)
	w := b.port("w", 3, func(p *table.Port) { p.Flags = table.PortPromiscuous })
	b.member(w, table.MemberPromiscuous)
	n := b.want.Networks[7]
	n.Flags |= table.NetworkWatched
	b.want.Networks[7] = n
	b.apply()
	frame := raw(mac(2), mac(1), 60)
	a.send(frame)
	c.gets(frame)
	w.gets(frame)
	toW := raw(mac(3), mac(1), 60)
	a.send(toW)
	w.gets(toW)
	w.getsNothing()
	fromW := raw(mac(1), mac(3), 60)
	w.send(fromW)
	a.gets(fromW)
	w.getsNothing()
	lost := raw(mac(99), mac(1), 60)
	b.refused(a, 1, lost, table.DropUnregistered)
	w.gets(lost)
	all := raw(everybody, mac(1), 60)
	a.send(all)
	w.gets(all)
	w.getsNothing()
}

func TestMirror(t *testing.T) {
	b := testBed(t, "mirror")
	m := b.port("m", 3, func(p *table.Port) { p.Net = 0 })
	a := b.port("a", 1, func(p *table.Port) {
		p.Flags, p.MirrorIfindex = table.PortMirrorIn|table.PortMirrorOut, m.ifindex
	})
	c := b.port("c", 2, nil)
	b.apply()
	out, in := raw(mac(2), mac(1), 60), raw(mac(1), mac(2), 60)
	a.send(out)
	c.gets(out)
	m.gets(out)
	c.send(in)
	a.gets(in)
	m.gets(in)
	all := raw(everybody, mac(2), 60)
	c.send(all)
	a.gets(all)
	m.gets(all)
	b.refused(a, 1, tagged(out, 0x8100, 5), table.DropTagged)
	m.getsNothing()
	if n, err := b.d.Counters([]uint32{3}); err != nil || n[3].OutPackets != 3 {
		t.Errorf("%d mirrored frames were counted, want 3 (%v)", n[3].OutPackets, err)
	}
}
