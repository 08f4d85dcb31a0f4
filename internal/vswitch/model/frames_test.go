package model_test

import (
	"encoding/binary"
	"net/netip"

	"drover/internal/vswitch/frame"
	"drover/internal/vswitch/table"
)

var groups = []netip.Addr{netip.MustParseAddr("239.1.1.1"), netip.MustParseAddr("224.0.0.5"), netip.MustParseAddr("ff05::1234"), netip.MustParseAddr("ff02::1:ff00:3"), netip.MustParseAddr("ff02::1"),
	netip.MustParseAddr("ff02::fb"), netip.MustParseAddr("224.0.1.1")}

// texts are frames in words: G4 and G6 are groups, A4 and A6 addresses, M MACs.
var texts = []string{"arp who-has A4", "arp who-has A4 tell A4", "arp reply A4 is-at M", "arp probe A4", "arp announce A4", "tcp A4 > A4", "tcp A4:1 > A4:2 ack", "tcp A6 > A6",
	"udp A4 > A4", "udp A6 > A6", "udp A4:67 > A4:68", "udp A4:68 > A4:67", "udp A6:547 > A6:546", "udp A4 > G4", "udp A6 > G6", "udp A4:1985 > G4:1985", "udp A6:1 > G6:2029", "udp A4:3222 > G4:3222",
	"icmp A4 > A4", "icmp6 A6 > A6", "icmp 0.0.0.0 > A4", "icmp6 :: > A6", "icmp6 ::ffff:a00:1 > A6", "nd solicit A6", "nd solicit A6", "nd advert A6", "nd advert A6 is-at M", "nd ra", "nd rs", "nd redirect A6",
	"dhcp discover", "dhcp request A4", "dhcp release A4", "dhcp offer A4", "dhcp ack A4", "dhcp ack A4", "dhcp nak", "dhcp6 solicit", "dhcp6 reply", "dhcp6 advertise",
	"igmp join 239.1.1.1", "igmp leave 239.1.1.1", "igmp query", "mld join ff05::1234", "mld query", "bpdu", "pvst", "lldp", "cdp", "lacp", "pause", "vrrp 7", "hsrp", "glbp"}

// describe fills a text in and makes its frame.
func (g *generator) describe(src table.MAC) []byte {
	text := pick(g, texts)
	var out []byte
	for i := 0; i < len(text); i++ {
		rest := text[i:]
		switch {
		case len(rest) >= 2 && (rest[:2] == "A4" || rest[:2] == "A6" || rest[:2] == "G4" || rest[:2] == "G6"):
			from := g.ips
			if rest[0] == 'G' {
				from = groups
			}
			a := pick(g, from)
			for a.Is4() != (rest[1] == '4') {
				a = pick(g, from)
			}
			s := a.String()
			if a.Is6() && len(rest) > 2 && rest[2] == ':' {
				s = "[" + s + "]"
			}
			out = append(out, s...)
			i++
		case rest[0] == 'M':
			m := pick(g, g.macs)
			out = append(out, macText(m)...)
		default:
			out = append(out, rest[0])
		}
	}
	env := frame.Env{MAC: src, IP4: netip.AddrFrom4([4]byte{10, 0, 0, byte(g.IntN(9) + 1)}), IP6: netip.AddrFrom16([16]byte{0x20, 1, 0x0d, 0xb8, 15: byte(g.IntN(9) + 1)}),
		MACOf: func(netip.Addr) (table.MAC, bool) { return pick(g, g.macs), true }}
	b, err := frame.Describe(string(out), env)
	if err != nil {
		// Mapped addresses have no words: they are put in by hand.
		b, _ = frame.Describe("icmp6 2001:db8::1", env)
		copy(b[22:], []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, byte(g.IntN(9) + 1)})
	}
	return b
}

func macText(m table.MAC) string {
	const digits = "0123456789abcdef"
	out := make([]byte, 0, 17)
	for i, b := range m {
		if i > 0 {
			out = append(out, ':')
		}
		out = append(out, digits[b>>4], digits[b&15])
	}
	return string(out)
}

// bend makes a frame that somebody could send to get round a rule.
func (g *generator) bend(b []byte) []byte {
	switch g.IntN(14) {
	case 0: // cut off
		b = b[:14+g.IntN(len(b)-13)]
	case 1: // bytes that are others
		for range g.IntN(4) + 1 {
			b[g.IntN(len(b))] = byte(g.Uint32())
		}
	case 2: // one bit
		b[g.IntN(len(b))] ^= 1 << g.IntN(8)
	case 3: // longer than it says
		b = append(b, make([]byte, g.IntN(60))...)
	case 4:
		b = g.extend(b)
	case 5: // a fragment of IPv4
		if len(b) > 22 && b[12] == 8 && b[13] == 0 {
			binary.BigEndian.PutUint16(b[20:], uint16(pick(g, []int{0x2000, 0x2001, 1, 0x4000, 0x1fff})))
		}
	case 6: // options of IPv4, which are its data
		if len(b) > 34 && b[12] == 8 && b[13] == 0 {
			b[14] = 0x40 | byte(g.IntN(16))
		}
	case 7: // lengths that lie
		if len(b) > 20 {
			at := 16
			if b[12] == 0x86 {
				at = 18
			}
			binary.BigEndian.PutUint16(b[at:], uint16(pick(g, []int{0, 19, 20, len(b), len(b) - 14, 0xffff, 8, 24})))
		}
	case 8: // options of neighbour discovery
		if len(b) >= 78 && b[12] == 0x86 && b[20] == 58 {
			b = g.options(b)
		}
	case 9: // SNAP
		if len(b) > 14 {
			p := append([]byte{0xaa, 0xaa, 3, 0, 0, pick(g, []byte{0, 0xf8, 0x0c})}, b[12:]...)
			b = append(append(append([]byte(nil), b[:12]...), byte(len(p)>>8), byte(len(p))), p...)
		}
	case 10: // larger than the MTU
		b = append(b, make([]byte, 80+g.IntN(1500))...)
	case 12: // no source address, or a target that is mapped
		if len(b) >= 78 && b[12] == 0x86 && b[20] == 58 && g.once(3) {
			copy(b[62:], []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, byte(g.IntN(9) + 1)})
			break
		}
		if len(b) >= 54 && b[12] == 0x86 {
			clear(b[22:38])
		} else if len(b) >= 34 && b[12] == 8 && b[13] == 0 {
			clear(b[26:30])
		}
	case 13: // a first fragment of IPv6, cut somewhere
		if len(b) > 54 && b[12] == 0x86 {
			part := b[54 : 54+g.IntN(min(len(b)-54, 24)+1)]
			part = append([]byte{b[20], 0, 0, byte(g.IntN(2)), 0, 0, 0, 1}, part...)
			b = append(append([]byte(nil), b[:54]...), part...)
			b[20] = 44
			binary.BigEndian.PutUint16(b[18:], uint16(len(part)))
		}
	case 11: // another hop limit, another class
		if len(b) > 22 {
			b[15], b[21] = byte(g.Uint32()), byte(g.Uint32())
		}
	}
	return b
}

// extend puts extension headers behind the header of IPv6.
func (g *generator) extend(b []byte) []byte {
	if len(b) < 54 || b[12] != 0x86 {
		return b
	}
	next := b[20]
	var chain []byte
	for range g.IntN(11) {
		kind := pick(g, []byte{0, 43, 44, 51, 60, 60, 135, 139, 140})
		h := make([]byte, 8)
		if g.once(3) && kind != 44 {
			h[1] = byte(g.IntN(3))
			h = append(h, make([]byte, 16)...)
			size := int(h[1])*8 + 8
			if kind == 51 {
				size = int(h[1])*4 + 8
			}
			h = h[:size]
		}
		if kind == 44 {
			binary.BigEndian.PutUint16(h[2:], pick(g, []uint16{0, 1, 8, 9}))
		}
		h[0] = next
		next = kind
		chain = append(h, chain...)
	}
	b[20] = next
	out := append(append(append([]byte(nil), b[:54]...), chain...), b[54:]...)
	if !g.once(6) {
		binary.BigEndian.PutUint16(out[18:], uint16(len(out)-54))
	}
	return out
}

// options changes what is behind the fixed part of neighbour discovery.
func (g *generator) options(b []byte) []byte {
	fixed := map[byte]int{133: 8, 134: 16, 135: 24, 136: 24}[b[54]]
	if fixed == 0 {
		return b
	}
	out := append([]byte(nil), b[:54+fixed]...)
	for range g.IntN(10) {
		m := table.MAC(b[6:12])
		if g.once(8) {
			m = pick(g, g.macs)
		}
		length := byte(1)
		if g.once(10) {
			length = pick(g, []byte{0, 2, 9})
		}
		out = append(out, pick(g, []byte{1, 2, 5, 24}), length)
		out = append(out, m[:]...)
	}
	binary.BigEndian.PutUint16(out[18:], uint16(len(out)-54))
	return out
}

// lease addresses a DHCP server's message to a port, and puts other options before the message's kind.
func (g *generator) lease(b []byte) []byte {
	if g.once(8) {
		return b
	}
	m := portMAC(byte(g.IntN(devicePorts)))
	copy(b[70:], m[:])
	if g.once(2) {
		copy(b, m[:])
	}
	var before []byte
	for range g.IntN(18) {
		before = append(before, pick(g, [][]byte{{0}, {0}, {12, 1, 'x'}, {53, 1, 2}, {12, 0}})...)
		if len(before) > 2 && before[len(before)-3] == 53 && !g.once(6) {
			before = before[:len(before)-3]
		}
	}
	out := append(append(append([]byte(nil), b[:282]...), before...), b[282:]...)
	binary.BigEndian.PutUint16(out[16:], uint16(len(out)-14))
	binary.BigEndian.PutUint16(out[38:], uint16(len(out)-34))
	return out
}

// groupNews makes messages about groups out of those of the newest versions, and PIM out of others.
func (g *generator) groupNews(b []byte) {
	switch six := b[12] == 0x86 && len(b) >= 78; {
	case six && b[20] == 0 && b[54] == 58:
		b[62] = pick(g, []byte{130, 131, 131, 132, 143})
		to := pick(g, groups).As16()
		copy(b[38:], to[:])
	case six:
		b[20] = 103
	case len(b) < 42 || b[12] != 8 || b[13] != 0:
	case b[23] == 2:
		b[14+int(b[14]&15)*4] = pick(g, []byte{0x11, 0x12, 0x16, 0x16, 0x17})
		copy(b[30:], []byte{239, 1, 1, 1})
	default:
		b[23] = 103
	}
}

// arrivals are frames for a configuration.
func (g *generator) arrivals(t *table.Tables, n int) []arrival {
	out := make([]arrival, 0, n)
	// A copy is really sent, and the kernel does not like a GSO frame with lies.
	copies := false
	for _, p := range t.Ports {
		copies = copies || p.Flags&(table.PortMirrorIn|table.PortMirrorOut) != 0
	}
	for _, n := range t.Networks {
		copies = copies || n.Flags&table.NetworkWatched != 0
	}
	for range n {
		a := arrival{Ifindex: pick(g, g.k.ports[:devicePorts])}
		if g.once(40) {
			a.Ifindex = g.k.ports[devicePorts]
		}
		src := pick(g, g.macs)
		if g.once(4) {
			a.Uplink, a.Ifindex = true, pick(g, g.k.uplinks)
			if !g.once(8) {
				src = g.macs[devicePorts+g.IntN(6)]
			}
			if g.once(20) {
				a.Ifindex = g.k.ports[0]
			}
		} else if p, ok := t.Ports[a.Ifindex]; ok && !g.once(8) {
			src = p.MAC
		}
		b := g.describe(src)
		switch g.IntN(10) {
		case 0: // to another
			m := pick(g, g.macs)
			copy(b, m[:])
		case 1:
			b[6] |= byte(g.IntN(8) / 7)
		case 2:
			if a.Uplink {
				u := t.Uplinks[a.Ifindex].MAC
				copy(b, u[:])
			}
		case 3:
			copy(b, pick(g, [][]byte{{1, 0x80, 0xc2, 0, 0, byte(g.IntN(64))}, {1, 0, 0x0c, 0xcc, 0xcc, byte(0xcb + g.IntN(4))}, {3, 0, 0x0c, 0, byte(g.IntN(2)), 1}, {1, 0, 0x5e, 1, 1, 1}, {3, 'D', 'R', 'O', 'V', 'E'}}))
			if g.once(3) {
				copy(b[12:], []byte{0x88, 0xb5})
			}
		case 4:
			g.groupNews(b)
		}
		if len(b) >= 282 && b[12] == 8 && b[23] == 17 && b[42] == 2 {
			b = g.lease(b)
		}
		if len(b) >= 78 && b[12] == 0x86 && b[20] == 58 && b[54] >= 133 && b[54] <= 136 && g.once(3) {
			b = g.options(b)
		}
		if g.once(2) {
			b = g.bend(b)
		}
		tags := 0
		if p, ok := t.Ports[a.Ifindex]; g.once(20) || (a.Uplink || ok && p.Flags&table.PortTrunk != 0) && g.once(2) {
			tags = 1 + g.IntN(10)/8
		}
		for range tags {
			b = frame.Tag(b, pick(g, []uint16{0x8100, 0x8100, 0x8100, 0x8100, 0x8100, 0x88a8, 0x9100}), uint16(pick(g, []int{10, 20, 30, 0, 40, 0xe00a})))
		}
		if len(b) > 3000 {
			b = b[:3000]
		}
		a.Bytes = runnable(b)
		if b[0]&1 == 0 && !copies && g.once(6) {
			a.GSO = uint32(pick(g, []int{1, 20, 90, 500, 1400, 1448, 9000}))
		}
		out = append(out, a)
	}
	return out
}

// runnable lengthens IP frames that BPF_PROG_TEST_RUN refuses since their IP header is cut off. Behind a tag it takes them.
func runnable(b []byte) []byte {
	least := map[uint16]int{0x0800: 34, 0x86dd: 54}[binary.BigEndian.Uint16(b[12:])]
	return append(b, make([]byte, max(0, least-len(b)))...)
}
