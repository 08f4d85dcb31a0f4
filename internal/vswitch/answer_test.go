package vswitch

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"drover/internal/vswitch/table"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"
)

func arpRequest(t testing.TB, src, dst table.MAC, from, to net.IP) []byte {
	return packet(t, &layers.Ethernet{DstMAC: dst[:], SrcMAC: src[:], EthernetType: layers.EthernetTypeARP}, &layers.ARP{
		AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: 1,
		SourceHwAddress: src[:], SourceProtAddress: from.To4(), DstHwAddress: make([]byte, 6), DstProtAddress: to.To4(),
	})
}

// bootNow is the clock that bindings expire by.
func bootNow(t testing.TB) uint64 {
	t.Helper()
	var ts unix.Timespec
	must(t, unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts))
	return uint64(ts.Nano())
}

func answerBed(t *testing.T, suffix string) (b *bed, a, c *plug) {
	b = testBed(t, suffix)
	b.want.Networks[7] = table.Network{Flags: table.NetworkOverlay | table.NetworkProxy, MTU: 1500}
	a, c = b.port("a", 1, nil), b.port("c", 2, nil)
	bind := func(addr string, i int, expires uint64) {
		b.want.Bindings[table.BindingKey{Net: 7, IP: table.IPOf(netip.MustParseAddr(addr))}] = table.Binding{MAC: mac(i), Source: table.BindingRemote, Expires: expires}
	}
	bind("10.0.0.1", 1, 0)
	bind("10.0.0.2", 2, 0)
	bind("10.0.0.3", 3, bootNow(t)-1)
	bind("10.0.0.4", 4, bootNow(t)+uint64(time.Hour))
	bind("fd00::1", 1, 0)
	bind("fd00::2", 2, 0)
	bind("fe80::2", 2, 0)
	return b, a, c
}

func TestAnswerARP(t *testing.T) {
	b, a, c := answerBed(t, "arp")
	silent := b.port("s", 5, func(p *table.Port) { p.Flags = table.PortNoProxy })
	trunk := b.port("t", 6, func(p *table.Port) { p.Net, p.Flags = 0, table.PortTrunk })
	b.join(trunk, 7, mac(6), 30)
	b.want.Trunks[table.TrunkKey{Ifindex: trunk.ifindex, VID: 30}] = 7
	b.apply()

	reply := func(from table.MAC, ip net.IP, to table.MAC, toIP net.IP) []byte {
		return packet(t, &layers.Ethernet{DstMAC: to[:], SrcMAC: from[:], EthernetType: layers.EthernetTypeARP}, &layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: 2,
			SourceHwAddress: from[:], SourceProtAddress: ip.To4(), DstHwAddress: to[:], DstProtAddress: toIP.To4(),
		})
	}
	one, two, four := net.IP{10, 0, 0, 1}, net.IP{10, 0, 0, 2}, net.IP{10, 0, 0, 4}
	for name, x := range map[string]struct{ ask, want []byte }{
		"broadcast":  {arpRequest(t, mac(1), everybody, one, two), reply(mac(2), two, mac(1), one)},
		"a lease":    {arpRequest(t, mac(1), everybody, one, four), reply(mac(4), four, mac(1), one)},
		"unicast":    {arpRequest(t, mac(1), mac(2), one, two), reply(mac(2), two, mac(1), one)},
		"probe":      {arpRequest(t, mac(1), everybody, net.IPv4zero, two), reply(mac(2), two, mac(1), net.IPv4zero)},
		"gratuitous": {arpRequest(t, mac(1), everybody, two, two), reply(mac(2), two, mac(1), two)},
	} {
		t.Run(name, func(t *testing.T) {
			a.send(x.ask)
			a.gets(x.want)
			c.getsNothing()
		})
	}
	ask := arpRequest(t, mac(6), everybody, net.IP{10, 0, 0, 6}, two)
	trunk.send(tagged(ask, 0x8100, 30))
	trunk.gets(tagged(reply(mac(2), two, mac(6), net.IP{10, 0, 0, 6}), 0x8100, 30))

	// Its own address, one nobody has, one whose lease ran out, and a guest that wants none of it.
	for _, ask := range [][]byte{
		arpRequest(t, mac(1), everybody, one, one),
		arpRequest(t, mac(1), everybody, one, net.IP{10, 0, 0, 99}),
		arpRequest(t, mac(1), everybody, one, net.IP{10, 0, 0, 3}),
		reply(mac(1), one, everybody, two),
	} {
		a.send(ask)
		c.gets(ask)
		silent.gets(ask)
		a.getsNothing()
	}
	ask = arpRequest(t, mac(5), everybody, net.IP{10, 0, 0, 5}, two)
	silent.send(ask)
	c.gets(ask)
	silent.getsNothing()
	if got, err := b.d.Counters([]uint32{1}); err != nil || len(got[1].Drops) != 0 || got[1].OutPackets != 5+1 {
		t.Errorf("answers are not counted as delivered, or as drops: %+v, %v", got[1], err)
	}
}

func solicit(t testing.TB, src table.MAC, from, to string, options layers.ICMPv6Options, hop uint8) []byte {
	target := net.ParseIP(to)
	group := net.IP{0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, target[13], target[14], target[15]}
	dst := net.HardwareAddr{0x33, 0x33, 0xff, target[13], target[14], target[15]}
	ip := &layers.IPv6{Version: 6, HopLimit: hop, NextHeader: layers.IPProtocolICMPv6, SrcIP: net.ParseIP(from), DstIP: group}
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(135, 0)}
	must(t, icmp.SetNetworkLayerForChecksum(ip))
	return packet(t, &layers.Ethernet{DstMAC: dst, SrcMAC: src[:], EthernetType: layers.EthernetTypeIPv6}, ip, icmp,
		&layers.ICMPv6NeighborSolicitation{TargetAddress: target, Options: options})
}

func TestAnswerND(t *testing.T) {
	b, a, c := answerBed(t, "nd")
	b.apply()
	source := mac(1)
	link := layers.ICMPv6Options{{Type: layers.ICMPv6OptSourceAddress, Data: source[:]}}
	nonce := layers.ICMPv6Options{{Type: 14, Data: []byte{1, 2, 3, 4, 5, 6}}}
	for name, x := range map[string]struct {
		ask   []byte
		to    string
		mac   net.HardwareAddr
		flags uint8
	}{
		"solicitation":  {solicit(t, mac(1), "fd00::1", "fd00::2", link, 255), "fd00::1", source[:], 0x60},
		"no option":     {solicit(t, mac(1), "fd00::1", "fd00::2", nil, 255), "fd00::1", source[:], 0x60},
		"many options":  {solicit(t, mac(1), "fd00::1", "fd00::2", append(append(layers.ICMPv6Options{}, nonce...), append(nonce, link...)...), 255), "fd00::1", source[:], 0x60},
		"duplicates":    {solicit(t, mac(1), "::", "fd00::2", nonce, 255), "ff02::1", net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, 0x20},
		"duplicates, 0": {solicit(t, mac(1), "::", "fd00::2", nil, 255), "ff02::1", net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, 0x20},
	} {
		t.Run(name, func(t *testing.T) {
			a.send(x.ask)
			_, got := a.poll(time.Second)
			if len(got) != 86 {
				t.Fatalf("got %d bytes (%x), want 86", len(got), got)
			}
			holder := mac(2)
			ip := &layers.IPv6{Version: 6, HopLimit: 255, NextHeader: layers.IPProtocolICMPv6, SrcIP: net.ParseIP("fd00::2"), DstIP: net.ParseIP(x.to)}
			icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(136, 0)}
			must(t, icmp.SetNetworkLayerForChecksum(ip))
			want := packet(t, &layers.Ethernet{DstMAC: x.mac, SrcMAC: holder[:], EthernetType: layers.EthernetTypeIPv6}, ip, icmp,
				&layers.ICMPv6NeighborAdvertisement{Flags: x.flags, TargetAddress: net.ParseIP("fd00::2"), Options: layers.ICMPv6Options{{Type: layers.ICMPv6OptTargetAddress, Data: holder[:]}}})
			if !bytes.Equal(got, want) {
				t.Errorf("got\n%x\nwant, checksum by gopacket,\n%x", got, want)
			}
			c.getsNothing()
		})
	}
	for name, ask := range map[string][]byte{
		"nobody's":   solicit(t, mac(1), "fd00::1", "fd00::9", link, 255),
		"its own":    solicit(t, mac(1), "::", "fd00::1", nil, 255),
		"mapped":     solicit(t, mac(1), "fd00::1", "::ffff:10.0.0.2", link, 255),
		"link-local": solicit(t, mac(1), "fd00::1", "fe80::2", link, 255),
		"hop limit":  solicit(t, mac(1), "fd00::1", "fd00::2", link, 254),
	} {
		t.Run(name, func(t *testing.T) {
			a.send(ask)
			c.gets(ask)
			a.getsNothing()
		})
	}
}

func dhcp(t testing.TB, src, dst, client table.MAC, kind layers.DHCPMsgType, addr net.IP, before ...layers.DHCPOption) []byte {
	reply := &layers.DHCPv4{Operation: layers.DHCPOpReply, HardwareType: layers.LinkTypeEthernet, HardwareLen: 6, ClientHWAddr: client[:], YourClientIP: addr,
		Options: append(before, layers.NewDHCPOption(layers.DHCPOptMessageType, []byte{byte(kind)}), layers.NewDHCPOption(layers.DHCPOptEnd, nil))}
	buf := gopacket.NewSerializeBuffer()
	must(t, reply.SerializeTo(buf, gopacket.SerializeOptions{FixLengths: true}))
	return udp4(t, dst, src, net.IP{255, 255, 255, 255}, net.IP{10, 0, 0, 254}, 68, 67, buf.Bytes())
}

// TestLease wants an acknowledged address to be the guest's at once, and nothing else.
func TestLease(t *testing.T) {
	b := testBed(t, "lease")
	server := b.port("s", 1, func(p *table.Port) { p.Flags = table.PortDHCPServer })
	guest := b.port("g", 2, func(p *table.Port) { p.Flags = table.PortDHCPSnoop | table.PortIPGuard | table.PortMoreIPs })
	other := b.port("o", 3, func(p *table.Port) { p.Flags = table.PortDHCPSnoop })
	taken := table.BindingKey{Net: 7, IP: table.IPOf(netip.MustParseAddr("10.0.0.7"))}
	b.want.Bindings[taken] = table.Binding{MAC: mac(9), Source: table.BindingAssigned}
	b.apply()

	bound := func(addr string) *table.Binding {
		t.Helper()
		tables, err := b.d.Tables()
		must(t, err)
		x, ok := tables.Bindings[table.BindingKey{Net: 7, IP: table.IPOf(netip.MustParseAddr(addr))}]
		if !ok {
			return nil
		}
		return &x
	}
	speaks := func(addr net.IP) []byte {
		return udp4(t, mac(1), mac(2), net.IP{10, 0, 0, 254}, addr, 5, 6, []byte("x"))
	}
	give := func(addr string, kind layers.DHCPMsgType, before ...layers.DHCPOption) {
		t.Helper()
		frame := dhcp(t, mac(1), everybody, mac(2), kind, net.ParseIP(addr).To4(), before...)
		server.send(frame)
		guest.gets(frame)
		other.gets(frame)
	}
	give("10.0.0.5", layers.DHCPMsgTypeOffer)
	if bound("10.0.0.5") != nil {
		t.Error("an offer was taken for a lease")
	}
	b.refused(guest, 2, speaks(net.IP{10, 0, 0, 5}), table.DropSourceIP)
	now := bootNow(t)
	give("10.0.0.5", layers.DHCPMsgTypeAck)
	got := bound("10.0.0.5")
	if got == nil || got.Ifindex != guest.ifindex || got.MAC != mac(2) || got.Source != table.BindingProvisional || got.Expires < now+uint64(table.ProvisionalLease) || got.Expires > now+uint64(table.ProvisionalLease)+uint64(10*time.Second) {
		t.Fatalf("binding %+v: want the guest's, provisional, for a minute", got)
	}
	guest.send(speaks(net.IP{10, 0, 0, 5}))
	server.gets(speaks(net.IP{10, 0, 0, 5}))
	give("10.0.0.6", layers.DHCPMsgTypeAck, layers.NewDHCPOption(layers.DHCPOptLeaseTime, []byte{0, 0, 1, 0}), layers.NewDHCPOption(layers.DHCPOptPad, nil))
	if bound("10.0.0.6") == nil || bound("10.0.0.5") != nil {
		t.Error("the port's second provisional address must replace its first")
	}
	give("10.0.0.7", layers.DHCPMsgTypeAck)
	if x := bound("10.0.0.7"); x == nil || x.MAC != mac(9) {
		t.Errorf("a lease took an address that is assigned: %+v", x)
	}
	row := b.want.Ports[server.ifindex]
	row.Flags = 0
	b.want.Ports[server.ifindex] = row
	b.apply()
	b.refused(server, 1, dhcp(t, mac(1), mac(2), mac(2), layers.DHCPMsgTypeAck, net.IP{10, 0, 0, 8}), table.DropDHCPServer)
	if bound("10.0.0.8") != nil {
		t.Error("a lease from a port that may not give any")
	}
}

// TestLeaseExchange is a guest with all guards on and no address that asks for one: its very next frames pass, before anything but the datapath knows.
func TestLeaseExchange(t *testing.T) {
	b := testBed(t, "dora")
	server := b.port("s", 1, func(p *table.Port) { p.Flags = table.PortDHCPServer })
	guest := b.port("g", 2, func(p *table.Port) { p.Flags = secure })
	b.apply()
	asks := func(kind layers.DHCPMsgType) []byte {
		client := mac(2)
		request := &layers.DHCPv4{Operation: layers.DHCPOpRequest, HardwareType: layers.LinkTypeEthernet, HardwareLen: 6, ClientHWAddr: client[:],
			Options: layers.DHCPOptions{layers.NewDHCPOption(layers.DHCPOptMessageType, []byte{byte(kind)}), layers.NewDHCPOption(layers.DHCPOptEnd, nil)}}
		buf := gopacket.NewSerializeBuffer()
		must(t, request.SerializeTo(buf, gopacket.SerializeOptions{FixLengths: true}))
		return udp4(t, everybody, mac(2), net.IP{255, 255, 255, 255}, net.IPv4zero.To4(), 67, 68, buf.Bytes())
	}
	own := net.IP{10, 0, 0, 5}
	announces, speaks := arpRequest(t, mac(2), everybody, own, own), udp4(t, mac(1), mac(2), net.IP{10, 0, 0, 254}, own, 5, 6, []byte("x"))
	b.refused(guest, 2, announces, table.DropARP)
	b.refused(guest, 2, speaks, table.DropSourceIP)
	for _, step := range []struct{ asks, answers layers.DHCPMsgType }{{layers.DHCPMsgTypeDiscover, layers.DHCPMsgTypeOffer}, {layers.DHCPMsgTypeRequest, layers.DHCPMsgTypeAck}} {
		guest.send(asks(step.asks))
		server.gets(asks(step.asks))
		answer := dhcp(t, mac(1), mac(2), mac(2), step.answers, own)
		server.send(answer)
		guest.gets(answer)
	}
	for _, frame := range [][]byte{speaks, announces} {
		guest.send(frame)
		server.gets(frame)
	}
	b.refused(guest, 2, udp4(t, mac(1), mac(2), net.IP{10, 0, 0, 254}, net.IP{10, 0, 0, 6}, 5, 6, nil), table.DropSourceIP)
}
