package vswitch

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"drover/internal/vswitch/table"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"
)

// Names in the network of these tests: a port, one more MAC of it, and somebody whom nobody registered.
var (
	ownMAC     = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}
	grantedMAC = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 2}
	otherMAC   = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 9}
	vrrpMAC    = net.HardwareAddr{0, 0, 0x5e, 0, 1, 7}
	broadcast  = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allHosts   = net.HardwareAddr{1, 0, 0x5e, 0, 0, 1}
)

const (
	guardNet  = 7
	guardSlot = 3

	openFlags   = table.PortDHCPServer | table.PortRouter | table.PortVirtualRouter
	secureFlags = table.PortIPGuard | table.PortARPGuard | table.PortNDGuard | table.PortDHCPSnoop | table.PortMoreIPs | table.PortMoreMACs
)

// guarded is a datapath with one port.
type guarded struct {
	*Datapath
	dev  int
	want *table.Tables
}

func newGuarded(t testing.TB) *guarded {
	t.Helper()
	n := testNet(t, "g")
	g := &guarded{Datapath: testDatapath(t, n, filepath.Join(testBPF(t), "drover-g")), dev: testTAP(t, n, "g"), want: table.New()}
	g.want.Networks[guardNet] = table.Network{Flags: table.NetworkSnooping, MTU: 1500}
	dev := uint32(g.dev)
	g.want.Ports[dev] = table.Port{Slot: guardSlot, Net: guardNet, MAC: table.MAC(ownMAC), MTU: 1500, DSCP: table.Leave, CoS: table.Leave,
		IP4Count: 1, IP4: [table.InlineIPs][4]byte{{10, 0, 0, 5}, {10, 0, 0, 66}}, IP6Count: 1, IP6: [table.InlineIPs]table.IP{addr("2001:db8::5"), addr("2001:db8::66")}}
	g.want.MACs[table.MACKey{Ifindex: dev, MAC: table.MAC(grantedMAC)}] = 1
	for ip, b := range map[string]table.Binding{
		"10.0.0.6":      {Ifindex: dev, MAC: table.MAC(ownMAC), Source: table.BindingDHCP, Expires: ^uint64(0)},
		"10.0.0.7":      {Ifindex: dev, MAC: table.MAC(ownMAC), Source: table.BindingDHCP, Expires: 1},
		"10.0.0.8":      {Ifindex: dev + 1, MAC: table.MAC(ownMAC), Source: table.BindingDHCP},
		"10.0.0.9":      {MAC: table.MAC(otherMAC), Source: table.BindingRemote},
		"10.0.0.10":     {Ifindex: dev, MAC: table.MAC(grantedMAC), Source: table.BindingAssigned},
		"2001:db8::6":   {Ifindex: dev, MAC: table.MAC(ownMAC), Source: table.BindingDHCP},
		"2001:db8::9":   {MAC: table.MAC(otherMAC), Source: table.BindingRemote},
		"fe80::1234:99": {Ifindex: dev, MAC: table.MAC(ownMAC), Source: table.BindingAssigned},
	} {
		g.want.Bindings[table.BindingKey{Net: guardNet, IP: addr(ip)}] = b
	}
	must(t, g.Apply(t.Context(), g.want))
	return g
}

func addr(s string) table.IP { return table.IPOf(netip.MustParseAddr(s)) }

// set changes the port and its meters.
func (g *guarded) set(t testing.TB, flags table.PortFlag, m table.Meter) {
	t.Helper()
	port := g.want.Ports[uint32(g.dev)]
	port.Flags = flags
	port = g.want.Row(port)
	must(t, g.objs.Ports.Put(uint32(g.dev), &port))
	must(t, g.objs.Meters.Put(uint32(guardSlot), &m))
}

// verdict sends a frame from the port and says why it was dropped. Nobody else is in the network: a unicast frame that passed all guards is UNREGISTERED, and
// comes back as none.
func (g *guarded) verdict(t testing.TB, frame []byte) table.Reason {
	t.Helper()
	must(t, g.ResetCounters(guardSlot))
	_, _, err := g.Try(KindPort, g.dev, frame)
	must(t, err)
	c, err := g.Counters([]uint32{guardSlot})
	must(t, err)
	got := table.DropNone
	for r, n := range c[guardSlot].Drops {
		if got != table.DropNone || n.Packets != 1 || n.Bytes != uint64(len(frame)) {
			t.Fatalf("one frame of %d bytes was counted as %v", len(frame), c[guardSlot].Drops)
		}
		got = r
	}
	if got == table.DropUnregistered {
		return table.DropNone
	}
	return got
}

func guardFrame(l ...gopacket.SerializableLayer) []byte {
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, l...); err != nil {
		panic(err)
	}
	return append([]byte(nil), b.Bytes()...)
}

func etherLayer(src, dst net.HardwareAddr, proto layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: src, DstMAC: dst, EthernetType: proto}
}

// rawFrame is a frame with any content.
func rawFrame(src, dst net.HardwareAddr, proto uint16, body ...byte) []byte {
	f := append(append(append([]byte(nil), dst...), src...), byte(proto>>8), byte(proto))
	return append(f, body...)
}

func guardARP(src net.HardwareAddr, op uint16, sha net.HardwareAddr, spa string) []byte {
	return guardFrame(etherLayer(src, broadcast, layers.EthernetTypeARP), &layers.ARP{AddrType: 1, Protocol: 0x800, HwAddressSize: 6, ProtAddressSize: 4, Operation: op,
		SourceHwAddress: sha, SourceProtAddress: netip.MustParseAddr(spa).AsSlice(), DstHwAddress: make([]byte, 6), DstProtAddress: []byte{10, 0, 0, 1}})
}

// patched overwrites bytes of a frame.
func patched(f []byte, at int, b ...byte) []byte {
	copy(f[at:], b)
	return f
}

func guardIP(src, dst string, proto layers.IPProtocol, l ...gopacket.SerializableLayer) []byte {
	to := otherMAC
	if d := netip.MustParseAddr(dst); d.IsMulticast() {
		b := d.As4()
		to = net.HardwareAddr{1, 0, 0x5e, b[1] & 0x7f, b[2], b[3]}
	} else if dst == "255.255.255.255" {
		to = broadcast
	}
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: proto, SrcIP: net.ParseIP(src), DstIP: net.ParseIP(dst)}
	return guardFrame(append([]gopacket.SerializableLayer{etherLayer(ownMAC, to, layers.EthernetTypeIPv4), ip}, l...)...)
}

func guardUDP(src, dst string, sport, dport uint16) []byte {
	return guardIP(src, dst, layers.IPProtocolUDP, gopacket.Payload(udpBytes(sport, dport, 20)))
}

// discover is a DHCPv4 client's broadcast for a MAC.
func discover(src string, mac net.HardwareAddr) []byte {
	b := udpBytes(68, 67, 240)
	b[8], b[9], b[10] = 1, 1, 6
	copy(b[8+28:], mac)
	return guardIP(src, "255.255.255.255", 17, gopacket.Payload(b))
}

func udpBytes(sport, dport uint16, body int) []byte {
	b := make([]byte, 8+body)
	binary.BigEndian.PutUint16(b, sport)
	binary.BigEndian.PutUint16(b[2:], dport)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)))
	return b
}

// guardIP6 is a frame with extension headers already in the payload.
func guardIP6(src, dst string, next byte, hops byte, payload []byte) []byte {
	to := otherMAC
	d := netip.MustParseAddr(dst).As16()
	if d[0] == 0xff {
		to = net.HardwareAddr{0x33, 0x33, d[12], d[13], d[14], d[15]}
	}
	h := make([]byte, 40)
	h[0] = 0x60
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	h[6], h[7] = next, hops
	s := netip.MustParseAddr(src).As16()
	copy(h[8:], s[:])
	copy(h[24:], d[:])
	return rawFrame(ownMAC, to, 0x86dd, append(h, payload...)...)
}

// ndBytes is a message of neighbour discovery: its fixed part, and options.
func ndBytes(kind byte, target string, options ...byte) []byte {
	body := map[byte]int{133: 8, 134: 16, 135: 24, 136: 24, 137: 40}[kind]
	b := make([]byte, body)
	b[0] = kind
	if target != "" {
		a := netip.MustParseAddr(target).As16()
		copy(b[8:], a[:])
	}
	return append(b, options...)
}

func linkLayer(kind byte, mac net.HardwareAddr) []byte { return append([]byte{kind, 1}, mac...) }

const ownLinkLocal = "fe80::5054:ff:fe00:1"

func TestGuards(t *testing.T) {
	g := newGuarded(t)
	ctl := func(b ...byte) net.HardwareAddr { return b }
	snap := func(oui uint32, pid uint16, rest ...byte) []byte {
		return append([]byte{0xaa, 0xaa, 3, byte(oui >> 16), byte(oui >> 8), byte(oui), byte(pid >> 8), byte(pid)}, rest...)
	}
	many := func(n int) []byte {
		var b []byte
		for range n {
			b = append(b, 14, 1, 0, 0, 0, 0, 0, 0)
		}
		return b
	}
	secure, plain := table.PortFlag(secureFlags), table.PortFlag(0)
	tests := []struct {
		name  string
		flags table.PortFlag
		frame []byte
		want  table.Reason
	}{
		// 5. Control frames.
		{"bpdu", plain, rawFrame(ownMAC, ctl(1, 0x80, 0xc2, 0, 0, 0), 38, 0x42, 0x42, 3), table.DropBPDU},
		{"bpdu allowed", table.PortBPDU, rawFrame(ownMAC, ctl(1, 0x80, 0xc2, 0, 0, 0), 38, 0x42, 0x42, 3), table.DropNone},
		{"bpdu, control allowed", table.PortL2Control, rawFrame(ownMAC, ctl(1, 0x80, 0xc2, 0, 0, 0), 38, 0x42, 0x42, 3), table.DropBPDU},
		{"provider bpdu", plain, rawFrame(ownMAC, ctl(1, 0x80, 0xc2, 0, 0, 8), 38, 0x42, 0x42, 3), table.DropBPDU},
		{"pvst+", plain, rawFrame(ownMAC, ctl(1, 0, 0xc, 0xcc, 0xcc, 0xcd), 50, snap(0x00000c, 0x010b)...), table.DropBPDU},
		{"bpdu to a unicast address", plain, rawFrame(ownMAC, otherMAC, 38, 0x42, 0x42, 3, 0, 0, 0, 0), table.DropBPDU},
		{"pvst+ to everybody", plain, rawFrame(ownMAC, broadcast, 50, snap(0x00000c, 0x010b)...), table.DropBPDU},
		{"cdp", plain, rawFrame(ownMAC, ctl(1, 0, 0xc, 0xcc, 0xcc, 0xcc), 50, snap(0x00000c, 0x2000)...), table.DropL2Control},
		{"dtp to a unicast address", plain, rawFrame(ownMAC, otherMAC, 50, snap(0x00000c, 0x2004)...), table.DropL2Control},
		{"cdp allowed", table.PortL2Control, rawFrame(ownMAC, ctl(1, 0, 0xc, 0xcc, 0xcc, 0xcc), 50, snap(0x00000c, 0x2000)...), table.DropNone},
		{"tunnelled bpdu", plain, rawFrame(ownMAC, ctl(1, 0, 0xc, 0xcd, 0xcd, 0xd0), 50, 0x42, 0x42, 3), table.DropL2Control},
		{"isl", plain, rawFrame(ownMAC, ctl(3, 0, 0xc, 0, 0, 0), 50, 1, 2, 3), table.DropL2Control},
		{"lldp", plain, rawFrame(ownMAC, ctl(1, 0x80, 0xc2, 0, 0, 0xe), 0x88cc, 2, 7), table.DropL2Control},
		{"beacon of a host", plain, rawFrame(ownMAC, ctl(3, 'D', 'R', 'O', 'V', 'E'), 0x88b5, 1), table.DropL2Control},
		{"beacon of a host, allowed", table.PortL2Control, rawFrame(ownMAC, ctl(3, 'D', 'R', 'O', 'V', 'E'), 0x88b5, 1), table.DropNone},
		{"0x88b5 to others", plain, rawFrame(ownMAC, ctl(3, 'D', 'R', 'O', 'V', 'F'), 0x88b5, 1), table.DropNone},
		{"something else to the beacons' group", plain, rawFrame(ownMAC, ctl(3, 'D', 'R', 'O', 'V', 'E'), 0x88b6, 1), table.DropNone},
		{"lldp to a unicast address", plain, rawFrame(ownMAC, otherMAC, 0x88cc, 2, 7), table.DropL2Control},
		{"lacp", plain, rawFrame(ownMAC, ctl(1, 0x80, 0xc2, 0, 0, 2), 0x8809, 1), table.DropL2Control},
		{"pause to a unicast address", plain, rawFrame(ownMAC, otherMAC, 0x8808, 0, 1), table.DropL2Control},
		{"gvrp", plain, rawFrame(ownMAC, ctl(1, 0x80, 0xc2, 0, 0, 0x21), 20, 0x42, 0x42, 3), table.DropL2Control},
		{"not control: 01:80:c2:00:00:30", plain, rawFrame(ownMAC, ctl(1, 0x80, 0xc2, 0, 0, 0x30), 0x8902, 1), table.DropNone},
		{"llc that ends early", plain, rawFrame(ownMAC, otherMAC, 2, 0x42, 0x42), table.DropNone},
		{"control from a foreign mac", plain, rawFrame(otherMAC, ctl(1, 0x80, 0xc2, 0, 0, 0), 38, 0x42, 0x42, 3), table.DropBPDU},

		// 6. Source MAC.
		{"own mac", plain, rawFrame(ownMAC, otherMAC, 0x1234, 1), table.DropNone},
		{"foreign mac", plain, rawFrame(otherMAC, otherMAC, 0x1234, 1), table.DropSourceMAC},
		{"forged", table.PortForged, rawFrame(otherMAC, otherMAC, 0x1234, 1), table.DropNone},
		{"granted", table.PortMoreMACs, rawFrame(grantedMAC, otherMAC, 0x1234, 1), table.DropNone},
		{"granted, but not looked up", plain, rawFrame(grantedMAC, otherMAC, 0x1234, 1), table.DropSourceMAC},
		{"new mac", table.PortMACChanges | table.PortMoreMACs, rawFrame(otherMAC, otherMAC, 0x1234, 1), table.DropNewMAC},
		{"vrrp mac", table.PortForged, rawFrame(vrrpMAC, otherMAC, 0x1234, 1), table.DropVirtualRouter},
		{"vrrp6 mac", plain, rawFrame(net.HardwareAddr{0, 0, 0x5e, 0, 2, 9}, otherMAC, 0x1234, 1), table.DropVirtualRouter},
		{"hsrp mac", plain, rawFrame(net.HardwareAddr{0, 0, 0xc, 7, 0xac, 9}, otherMAC, 0x1234, 1), table.DropVirtualRouter},
		{"hsrp2 mac", plain, rawFrame(net.HardwareAddr{0, 0, 0xc, 0x9f, 0xf5, 9}, otherMAC, 0x1234, 1), table.DropVirtualRouter},
		{"hsrp6 mac", plain, rawFrame(net.HardwareAddr{0, 5, 0x73, 0xa0, 0xf, 9}, otherMAC, 0x1234, 1), table.DropVirtualRouter},
		{"glbp mac", plain, rawFrame(net.HardwareAddr{0, 7, 0xb4, 0, 1, 9}, otherMAC, 0x1234, 1), table.DropVirtualRouter},
		{"near an hsrp mac", plain, rawFrame(net.HardwareAddr{0, 0, 0xc, 0x9f, 0xe5, 9}, otherMAC, 0x1234, 1), table.DropSourceMAC},
		{"vrrp mac allowed", table.PortVirtualRouter, rawFrame(vrrpMAC, otherMAC, 0x1234, 1), table.DropNone},

		// 7. ARP.
		{"arp", secure, guardARP(ownMAC, 1, ownMAC, "10.0.0.5"), table.DropNone},
		{"arp, leased", secure, guardARP(ownMAC, 2, ownMAC, "10.0.0.6"), table.DropNone},
		{"arp, lease over", secure, guardARP(ownMAC, 2, ownMAC, "10.0.0.7"), table.DropARP},
		{"arp, another port's", secure, guardARP(ownMAC, 2, ownMAC, "10.0.0.8"), table.DropARP},
		{"arp, another host's", secure, guardARP(ownMAC, 1, ownMAC, "10.0.0.9"), table.DropARP},
		{"arp, nobody's", secure, guardARP(ownMAC, 2, ownMAC, "10.0.0.1"), table.DropARP},
		{"arp, inline slot that is not used", secure, guardARP(ownMAC, 2, ownMAC, "10.0.0.66"), table.DropARP},
		{"arp, unguarded", plain, guardARP(ownMAC, 2, ownMAC, "10.0.0.1"), table.DropNone},
		{"arp probe", secure, guardARP(ownMAC, 1, ownMAC, "0.0.0.0"), table.DropNone},
		{"arp reply for 0.0.0.0", secure, guardARP(ownMAC, 2, ownMAC, "0.0.0.0"), table.DropARP},
		{"arp, other sender mac", secure, guardARP(ownMAC, 2, otherMAC, "10.0.0.5"), table.DropARP},
		{"arp probe, other sender mac", secure, guardARP(ownMAC, 1, otherMAC, "0.0.0.0"), table.DropARP},
		{"arp, granted mac and its address", secure, guardARP(grantedMAC, 2, grantedMAC, "10.0.0.10"), table.DropNone},
		{"arp, granted mac and another address", secure, guardARP(grantedMAC, 2, grantedMAC, "10.0.0.5"), table.DropARP},
		{"arp, own mac and the granted one's address", secure, guardARP(ownMAC, 2, ownMAC, "10.0.0.10"), table.DropARP},
		{"arp, operation 3", secure, guardARP(ownMAC, 3, ownMAC, "10.0.0.5"), table.DropARP},
		{"arp, hardware type", secure, patched(guardARP(ownMAC, 1, ownMAC, "10.0.0.5"), 14, 0, 6), table.DropARP},
		{"arp, sizes", secure, patched(guardARP(ownMAC, 1, ownMAC, "10.0.0.5"), 18, 8, 4), table.DropARP},
		{"arp, truncated", secure, guardARP(ownMAC, 1, ownMAC, "10.0.0.5")[:41], table.DropARP},
		{"arp, truncated, unguarded", plain, guardARP(ownMAC, 1, ownMAC, "10.0.0.5")[:41], table.DropMalformed},
		{"arp, virtual sender", plain, guardARP(ownMAC, 2, vrrpMAC, "10.0.0.5"), table.DropVirtualRouter},
		{"arp, virtual router", secure | table.PortVirtualRouter, guardARP(vrrpMAC, 1, vrrpMAC, "10.0.0.5"), table.DropNone},
		{"arp, virtual router, not its address", secure | table.PortVirtualRouter, guardARP(vrrpMAC, 1, vrrpMAC, "10.0.0.6"), table.DropARP},
		{"arp in snap", secure, rawFrame(ownMAC, broadcast, 36, snap(0, 0x806, guardARP(ownMAC, 2, ownMAC, "10.0.0.1")[14:]...)...), table.DropMalformed},
		{"ipv4 in a bridge tunnel's snap", plain, rawFrame(ownMAC, broadcast, 36, snap(0xf8, 0x800, 0x45)...), table.DropMalformed},
		{"a tag in snap", plain, rawFrame(ownMAC, broadcast, 36, snap(0, 0x8100, 0, 9)...), table.DropMalformed},
		{"arp in snap, open port", openFlags, rawFrame(ownMAC, broadcast, 36, snap(0, 0x806, 0, 1)...), table.DropNone},
		{"arp in snap with the poll bit", secure, rawFrame(ownMAC, broadcast, 36, patched(snap(0, 0x806, 0, 1), 2, 0x13)...), table.DropMalformed},
		{"arp in snap as a response", secure, rawFrame(ownMAC, broadcast, 36, patched(snap(0, 0x806, 0, 1), 1, 0xab)...), table.DropMalformed},
		{"arp in snap to the group", secure, rawFrame(ownMAC, broadcast, 36, patched(snap(0, 0x806, 0, 1), 0, 0xab)...), table.DropMalformed},
		{"numbered snap", secure, rawFrame(ownMAC, broadcast, 36, 0xaa, 0xaa, 0, 0, 0, 0, 0, 8, 6), table.DropMalformed},
		{"cdp in snap with the poll bit", plain, rawFrame(ownMAC, otherMAC, 36, patched(snap(0xc, 0x2000, 0, 1), 2, 0x13)...), table.DropL2Control},
		{"bpdu with the poll bit", plain, rawFrame(ownMAC, otherMAC, 38, 0x42, 0x42, 0x13), table.DropBPDU},
		{"other snap", secure, rawFrame(ownMAC, broadcast, 36, snap(0, 0x809b, 0)...), table.DropNone},

		// IPv4.
		{"tcp", secure, guardIP("10.0.0.5", "10.0.0.1", 6, gopacket.Payload(make([]byte, 20))), table.DropNone},
		{"tcp, leased", secure, guardIP("10.0.0.6", "10.0.0.1", 6, gopacket.Payload(make([]byte, 20))), table.DropNone},
		{"tcp, not bound", secure, guardIP("10.0.0.9", "10.0.0.1", 6, gopacket.Payload(make([]byte, 20))), table.DropSourceIP},
		{"tcp, inline slot that is not used", secure, guardIP("10.0.0.66", "10.0.0.1", 6, gopacket.Payload(make([]byte, 20))), table.DropSourceIP},
		{"from 0.0.0.0", secure, guardIP("0.0.0.0", "10.0.0.1", 6, gopacket.Payload(make([]byte, 20))), table.DropSourceIP},
		{"later fragment from elsewhere", secure, patched(guardUDP("10.0.0.9", "10.0.0.1", 1, 2), 20, 0, 9), table.DropSourceIP},
		{"later fragment from 0.0.0.0", secure, patched(discover("0.0.0.0", ownMAC), 20, 0, 9), table.DropSourceIP},
		{"ip options, not bound", secure | table.PortDHCPServer, optioned("10.0.0.9"), table.DropSourceIP},
		{"ip options, dhcp server", plain, optioned("10.0.0.5"), table.DropDHCPServer},
		{"version 5", plain, patched(guardUDP("10.0.0.5", "10.0.0.1", 1, 2), 14, 0x55), table.DropMalformed},
		{"header of 16 bytes", plain, patched(guardUDP("10.0.0.5", "10.0.0.1", 1, 2), 14, 0x44), table.DropMalformed},
		{"header longer than the frame", plain, patched(guardUDP("10.0.0.5", "10.0.0.1", 1, 2)[:50], 14, 0x4f), table.DropMalformed},
		{"total length too long", plain, patched(guardUDP("10.0.0.5", "10.0.0.1", 1, 2), 16, 9, 9), table.DropMalformed},
		{"malformed from an open port", openFlags, patched(guardUDP("10.0.0.5", "10.0.0.1", 1, 2), 14, 0x55), table.DropNone},
		{"malformed group frame from an open port", openFlags, patched(guardUDP("10.0.0.5", "224.0.0.9", 1, 2), 14, 0x55), table.DropMalformed},
		{"tiny first fragment", plain, patched(guardIP("10.0.0.5", "10.0.0.1", 17, gopacket.Payload{0, 67}), 20, 0x20, 0), table.DropFragment},

		// DHCP.
		{"discover", secure, discover("0.0.0.0", ownMAC), table.DropNone},
		{"renewal", secure, discover("10.0.0.6", ownMAC), table.DropNone},
		{"renewal of another", secure, discover("10.0.0.9", ownMAC), table.DropSourceIP},
		{"discover for another mac", secure, discover("0.0.0.0", otherMAC), table.DropDHCPClient},
		{"discover for another mac, not snooped", plain, discover("0.0.0.0", otherMAC), table.DropNone},
		{"discover for another mac, of a relay", secure | table.PortDHCPServer, discover("0.0.0.0", otherMAC), table.DropNone},
		{"discover as a relay", secure, patched(discover("0.0.0.0", ownMAC), 42+24, 10, 9, 0, 1), table.DropDHCPClient},
		{"release of one's own", secure, patched(discover("10.0.0.6", ownMAC), 42+12, 10, 0, 0, 6), table.DropNone},
		{"release of another port's", secure, patched(discover("10.0.0.6", ownMAC), 42+12, 10, 0, 0, 8), table.DropNone}, // it has the same MAC: the guest was there
		{"release of another host's", secure, patched(discover("10.0.0.6", ownMAC), 42+12, 10, 0, 0, 9), table.DropDHCPClient},
		{"rebinding of what nobody knows", secure, patched(discover("10.0.0.6", ownMAC), 42+12, 10, 0, 0, 77), table.DropNone},
		{"discover, hardware type", secure, patched(discover("0.0.0.0", ownMAC), 43, 6), table.DropDHCPClient},
		{"answer to a server", secure, patched(discover("0.0.0.0", ownMAC), 42, 2), table.DropDHCPClient},
		{"discover, too short to say for whom", secure, guardIP("0.0.0.0", "255.255.255.255", 17, gopacket.Payload(udpBytes(68, 67, 33))), table.DropDHCPClient},
		{"discover, first fragment too short to say for whom", secure, patched(guardIP("0.0.0.0", "255.255.255.255", 17, gopacket.Payload(udpBytes(68, 67, 8))), 20, 0x20, 0), table.DropDHCPClient},
		{"offer", plain, guardUDP("10.0.0.5", "255.255.255.255", 67, 68), table.DropDHCPServer},
		{"offer from another port", plain, guardUDP("10.0.0.5", "255.255.255.255", 1067, 68), table.DropDHCPServer},
		{"offer to another port", plain, guardUDP("10.0.0.5", "10.0.0.1", 67, 1068), table.DropDHCPServer},
		{"offer, first fragment", plain, patched(guardUDP("10.0.0.5", "255.255.255.255", 67, 68), 20, 0x20, 0), table.DropDHCPServer},
		{"offer allowed", table.PortDHCPServer, guardUDP("10.0.0.5", "255.255.255.255", 67, 68), table.DropNone},
		{"dhcpv6 reply", plain, guardIP6("2001:db8::5", "2001:db8::1", 17, 64, udpBytes(547, 546, 4)), table.DropDHCPServer},
		{"dhcpv6 reply from another port", plain, guardIP6("2001:db8::5", "2001:db8::1", 17, 64, udpBytes(999, 546, 4)), table.DropDHCPServer},
		{"dhcpv6 reply behind options", plain, guardIP6("2001:db8::5", "2001:db8::1", 60, 64, append([]byte{17, 0, 1, 4, 0, 0, 0, 0}, udpBytes(547, 546, 4)...)), table.DropDHCPServer},
		{"dhcpv6 solicit", secure, guardIP6(ownLinkLocal, "ff02::1:2", 17, 1, udpBytes(546, 547, 4)), table.DropNone},
		{"port 68 in ipv6", plain, guardIP6("2001:db8::5", "2001:db8::1", 17, 64, udpBytes(1, 68, 4)), table.DropNone},

		// IPv6.
		{"tcp6", secure, guardIP6("2001:db8::5", "2001:db8::1", 6, 64, make([]byte, 20)), table.DropNone},
		{"tcp6, leased", secure, guardIP6("2001:db8::6", "2001:db8::1", 6, 64, make([]byte, 20)), table.DropNone},
		{"tcp6, not bound", secure, guardIP6("2001:db8::9", "2001:db8::1", 6, 64, make([]byte, 20)), table.DropSourceIP},
		{"tcp6, inline slot that is not used", secure, guardIP6("2001:db8::66", "2001:db8::1", 6, 64, make([]byte, 20)), table.DropSourceIP},
		{"link-local", secure, guardIP6(ownLinkLocal, "fe80::1", 6, 64, make([]byte, 20)), table.DropNone},
		{"link-local of another", secure, guardIP6("fe80::5054:ff:fe00:9", "fe80::1", 6, 64, make([]byte, 20)), table.DropSourceIP},
		{"link-local that was assigned", secure, guardIP6("fe80::1234:99", "fe80::1", 6, 64, make([]byte, 20)), table.DropNone},
		{"mapped ipv4", secure, guardIP6("::ffff:10.0.0.6", "2001:db8::1", 6, 64, make([]byte, 20)), table.DropSourceIP},
		{"unspecified", secure, guardIP6("::", "2001:db8::1", 6, 64, make([]byte, 20)), table.DropSourceIP},
		{"6to4 of somebody", secure, guardIP6("2002:a00:5::1", "2001:db8::1", 6, 64, make([]byte, 20)), table.DropSourceIP},
		{"version 4 in ipv6", plain, patched(guardIP6("2001:db8::5", "2001:db8::1", 6, 64, make([]byte, 20)), 14, 0x45), table.DropMalformed},
		{"payload too long", plain, guardIP6("2001:db8::5", "2001:db8::1", 6, 64, make([]byte, 20))[:70], table.DropMalformed},

		// Router messages.
		{"ra", plain, guardIP6(ownLinkLocal, "ff02::1", 58, 255, ndBytes(134, "")), table.DropRA},
		{"ra allowed", table.PortRouter, guardIP6(ownLinkLocal, "ff02::1", 58, 255, ndBytes(134, "")), table.DropNone},
		{"redirect", plain, guardIP6(ownLinkLocal, "2001:db8::9", 58, 255, ndBytes(137, "")), table.DropRA},
		{"ra behind options", plain, guardIP6(ownLinkLocal, "ff02::1", 60, 255, append([]byte{58, 0, 1, 4, 0, 0, 0, 0}, ndBytes(134, "")...)), table.DropRA},
		{"ra behind eight headers", plain, guardIP6(ownLinkLocal, "ff02::1", 60, 255, append(chain(8, 58), ndBytes(134, "")...)), table.DropRA},
		{"ra behind nine headers", plain, guardIP6(ownLinkLocal, "ff02::1", 60, 255, append(chain(9, 58), ndBytes(134, "")...)), table.DropFragment},
		{"ra in a fragment", table.PortRouter, guardIP6(ownLinkLocal, "ff02::1", 44, 255, append([]byte{58, 0, 0, 1, 0, 0, 0, 1}, ndBytes(134, "")...)), table.DropFragment},
		{"ra in an atomic fragment", table.PortRouter, guardIP6(ownLinkLocal, "ff02::1", 44, 255, append([]byte{58, 0, 0, 0, 0, 0, 0, 1}, ndBytes(134, "")...)), table.DropFragment},
		{"ra hidden by a first fragment of options", plain, guardIP6(ownLinkLocal, "ff02::1", 44, 255, append([]byte{60, 0, 0, 1, 0, 0, 0, 1}, 58, 5, 1, 4, 0, 0, 0, 0)), table.DropFragment},
		{"rs before an address", secure, guardIP6("::", "ff02::2", 58, 255, ndBytes(133, "")), table.DropNone},

		// Neighbour discovery.
		{"ns", secure, guardIP6("2001:db8::5", "ff02::1:ff00:1", 58, 255, ndBytes(135, "2001:db8::1", linkLayer(1, ownMAC)...)), table.DropNone},
		{"ns with a nonce", secure, guardIP6("2001:db8::5", "ff02::1:ff00:1", 58, 255, ndBytes(135, "2001:db8::1", append(linkLayer(1, ownMAC), many(1)...)...)), table.DropNone},
		{"ns from another", secure, guardIP6("2001:db8::9", "ff02::1:ff00:1", 58, 255, ndBytes(135, "2001:db8::1")), table.DropND},
		{"ns from link-local", secure, guardIP6(ownLinkLocal, "ff02::1:ff00:1", 58, 255, ndBytes(135, "2001:db8::1")), table.DropNone},
		{"dad", secure, guardIP6("::", "ff02::1:ff00:1", 58, 255, ndBytes(135, "2001:db8::77")), table.DropNone},
		{"dad of the own link-local", secure, guardIP6("::", "ff02::1:ff00:1", 58, 255, ndBytes(135, ownLinkLocal)), table.DropNone},
		{"dad of a link-local that was assigned", secure, guardIP6("::", "ff02::1:ff00:99", 58, 255, ndBytes(135, "fe80::1234:99")), table.DropNone},
		{"dad of another's link-local", secure, guardIP6("::", "ff02::1:ff00:9", 58, 255, ndBytes(135, "fe80::5054:ff:fe00:9")), table.DropND},
		{"dad of another's link-local, unguarded", plain, guardIP6("::", "ff02::1:ff00:9", 58, 255, ndBytes(135, "fe80::5054:ff:fe00:9")), table.DropNone},
		{"ns, other option", secure, guardIP6("2001:db8::5", "ff02::1:ff00:1", 58, 255, ndBytes(135, "2001:db8::1", linkLayer(1, otherMAC)...)), table.DropND},
		{"ns, second option other", secure, guardIP6("2001:db8::5", "ff02::1:ff00:1", 58, 255, ndBytes(135, "2001:db8::1", append(linkLayer(1, ownMAC), linkLayer(1, otherMAC)...)...)), table.DropND},
		{"ns, routed here", secure, guardIP6("2001:db8::5", "ff02::1:ff00:1", 58, 254, ndBytes(135, "2001:db8::1")), table.DropND},
		{"ns, too short", secure, guardIP6("2001:db8::5", "ff02::1:ff00:1", 58, 255, ndBytes(135, "2001:db8::1")[:23]), table.DropND},
		{"na", secure, guardIP6("2001:db8::5", "ff02::1", 58, 255, ndBytes(136, "2001:db8::5", linkLayer(2, ownMAC)...)), table.DropNone},
		{"na of link-local", secure, guardIP6(ownLinkLocal, "ff02::1", 58, 255, ndBytes(136, ownLinkLocal, linkLayer(2, ownMAC)...)), table.DropNone},
		{"na of another", secure, guardIP6("2001:db8::5", "ff02::1", 58, 255, ndBytes(136, "2001:db8::9", linkLayer(2, ownMAC)...)), table.DropND},
		{"na of mapped ipv4", secure, guardIP6("2001:db8::5", "ff02::1", 58, 255, ndBytes(136, "::ffff:10.0.0.6")), table.DropND},
		{"na, other option", secure, guardIP6("2001:db8::5", "ff02::1", 58, 255, ndBytes(136, "2001:db8::5", linkLayer(2, otherMAC)...)), table.DropND},
		{"na, option of 16 bytes", secure, guardIP6("2001:db8::5", "ff02::1", 58, 255, ndBytes(136, "2001:db8::5", append([]byte{2, 2}, make([]byte, 14)...)...)), table.DropND},
		{"na, option of length 0", secure, guardIP6("2001:db8::5", "ff02::1", 58, 255, ndBytes(136, "2001:db8::5", 2, 0, 0, 0, 0, 0, 0, 0)), table.DropND},
		{"na, option beyond the end", secure, guardIP6("2001:db8::5", "ff02::1", 58, 255, ndBytes(136, "2001:db8::5", 14, 2, 0, 0, 0, 0, 0, 0)), table.DropND},
		{"na, half an option", secure, guardIP6("2001:db8::5", "ff02::1", 58, 255, ndBytes(136, "2001:db8::5", 2, 1, 0)), table.DropND},
		{"na, other option behind the end", secure, append(guardIP6("2001:db8::5", "ff02::1", 58, 255, ndBytes(136, "2001:db8::5")), linkLayer(2, otherMAC)...), table.DropNone},
		{"na, eight options", secure, guardIP6("2001:db8::5", "ff02::1", 58, 255, ndBytes(136, "2001:db8::5", many(8)...)), table.DropNone},
		{"na, nine options", secure, guardIP6("2001:db8::5", "ff02::1", 58, 255, ndBytes(136, "2001:db8::5", many(9)...)), table.DropND},
		{"na, virtual mac, unguarded", plain, guardIP6("2001:db8::5", "ff02::1", 58, 255, ndBytes(136, "2001:db8::9", linkLayer(2, vrrpMAC)...)), table.DropVirtualRouter},
		{"na, broken option, unguarded", plain, guardIP6("2001:db8::5", "ff02::1", 58, 255, ndBytes(136, "2001:db8::9", 2, 0, 0, 0, 0, 0, 0, 0)), table.DropNone},
		{"rs, other option", secure, guardIP6(ownLinkLocal, "ff02::2", 58, 255, ndBytes(133, "", linkLayer(1, otherMAC)...)), table.DropND},
		{"na behind options", secure, guardIP6("2001:db8::5", "ff02::1", 60, 255, append([]byte{58, 0, 1, 4, 0, 0, 0, 0}, ndBytes(136, "2001:db8::9")...)), table.DropND},

		// Virtual routers.
		{"vrrp", plain, guardIP("10.0.0.5", "224.0.0.18", 112, gopacket.Payload(make([]byte, 20))), table.DropVirtualRouter},
		{"vrrp allowed", table.PortVirtualRouter, guardIP("10.0.0.5", "224.0.0.18", 112, gopacket.Payload(make([]byte, 20))), table.DropNone},
		{"vrrp to one address", plain, guardIP("10.0.0.5", "10.0.0.1", 112, gopacket.Payload(make([]byte, 20))), table.DropNone},
		{"hsrp", plain, guardUDP("10.0.0.5", "224.0.0.2", 1985, 1985), table.DropVirtualRouter},
		{"glbp", plain, guardUDP("10.0.0.5", "224.0.0.102", 3222, 3222), table.DropVirtualRouter},
		{"vrrp6", plain, guardIP6(ownLinkLocal, "ff02::12", 112, 255, make([]byte, 20)), table.DropVirtualRouter},
		{"hsrp6", plain, guardIP6(ownLinkLocal, "ff02::66", 17, 255, udpBytes(2029, 2029, 4)), table.DropVirtualRouter},

		// Groups.
		{"igmp before an address", secure, guardIP("0.0.0.0", "224.0.0.22", 2, gopacket.Payload(make([]byte, 16))), table.DropNone},
		{"mld before an address", secure, guardIP6("::", "ff02::16", 0, 1, append([]byte{58, 0, 5, 2, 0, 0, 1, 0}, 143, 0, 0, 0, 0, 0, 0, 0)), table.DropNone},
		{"mld query before an address", secure, guardIP6("::", "ff02::1", 0, 1, append([]byte{58, 0, 5, 2, 0, 0, 1, 0}, 130, 0, 0, 0, 0, 0, 0, 0)), table.DropSourceIP},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g.set(t, tt.flags, table.Meter{})
			if got := g.verdict(t, tt.frame); got != tt.want {
				t.Errorf("verdict %v, want %v, on % x", got, tt.want, tt.frame)
			}
		})
	}
}

// optioned is a DHCP offer behind IPv4 options.
func optioned(src string) []byte {
	f := guardIP(src, "10.0.0.1", 17, gopacket.Payload(append([]byte{1, 1, 1, 1, 1, 1, 1, 1}, udpBytes(67, 68, 4)...)))
	return patched(f, 14, 0x47)
}

// chain is n destination option headers, the last of which leads to next.
func chain(n int, next byte) []byte {
	var b []byte
	for i := range n {
		h := byte(60)
		if i == n-1 {
			h = next
		}
		b = append(b, h, 0, 1, 4, 0, 0, 0, 0)
	}
	return b
}

// No frame, however short, gets past the guards by ending early: what is cut off is dropped or is what the whole frame was.
func TestGuardsOnTruncatedFrames(t *testing.T) {
	g := newGuarded(t)
	g.set(t, secureFlags, table.Meter{})
	for name, whole := range map[string][]byte{
		"arp":   guardARP(ownMAC, 2, ownMAC, "10.0.0.9"),
		"ipv4":  guardUDP("10.0.0.9", "10.0.0.1", 67, 68),
		"ra":    guardIP6(ownLinkLocal, "ff02::1", 60, 255, append(chain(3, 58), ndBytes(134, "", linkLayer(1, ownMAC)...)...)),
		"na":    guardIP6(ownLinkLocal, "ff02::1", 58, 255, ndBytes(136, "2001:db8::9", linkLayer(2, ownMAC)...)),
		"mixed": guardIP6("2001:db8::9", "2001:db8::1", 44, 64, append([]byte{17, 0, 0, 1, 0, 0, 0, 1}, udpBytes(547, 546, 8)...)),
	} {
		for n := 14; n <= len(whole); n++ {
			if _, _, err := g.Try(KindPort, g.dev, whole[:n]); errors.Is(err, unix.EINVAL) {
				continue // the kernel itself makes no such frame
			}
			if got := g.verdict(t, whole[:n]); got == table.DropNone {
				t.Errorf("%s cut to %d of %d bytes passed", name, n, len(whole))
			}
		}
	}
}

func TestDHCPRate(t *testing.T) {
	g := newGuarded(t)
	g.set(t, 0, table.Meter{DHCP: table.Bucket{Rate: 4, Burst: 3}})
	start := time.Now()
	f := discover("0.0.0.0", ownMAC)
	for i := range 3 {
		if got := g.verdict(t, f); got != table.DropNone {
			t.Fatalf("request %d: %v", i, got)
		}
	}
	if got := g.verdict(t, f); got != table.DropDHCPRate && time.Since(start) < 200*time.Millisecond {
		t.Errorf("request 4: %v, want DHCP_RATE", got)
	}
	if got := g.verdict(t, guardUDP("10.0.0.5", "10.0.0.1", 1, 2)); got != table.DropNone {
		t.Errorf("another frame: %v", got)
	}
	for g.verdict(t, f) != table.DropNone {
		if time.Since(start) > 10*time.Second {
			t.Fatal("no fourth request passes, at 4 a second")
		}
	}
	if d := time.Since(start); d < 240*time.Millisecond {
		t.Errorf("the fourth request passed after %v, want a quarter of a second", d)
	}
}
