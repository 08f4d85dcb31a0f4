package frame

import (
	"encoding/binary"
	"net/netip"

	"drover/internal/vswitch/inet"
	"drover/internal/vswitch/table"
)

// EtherTypes.
const (
	typeIP4  = 0x0800
	typeARP  = 0x0806
	typeIP6  = 0x86dd
	typeLLDP = 0x88cc
	typeSlow = 0x8809
	typeMAC  = 0x8808
)

// IP protocols.
const (
	protoICMP  = 1
	protoIGMP  = 2
	protoTCP   = 6
	protoUDP   = 17
	protoICMP6 = 58
	protoVRRP  = 112
)

var broadcast = table.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func ethernet(dst, src table.MAC, etherType uint16, payload []byte) []byte {
	f := make([]byte, 0, 14+len(payload))
	f = append(f, dst[:]...)
	f = append(f, src[:]...)
	f = binary.BigEndian.AppendUint16(f, etherType)
	return append(f, payload...)
}

// snap is an 802.3 frame with a SNAP header.
func snap(dst, src table.MAC, oui [3]byte, protocol uint16, payload []byte) []byte {
	p := append([]byte{0xaa, 0xaa, 3}, oui[:]...)
	p = binary.BigEndian.AppendUint16(p, protocol)
	p = append(p, payload...)
	return ethernet(dst, src, uint16(len(p)), p)
}

func arp(operation uint16, senderMAC table.MAC, sender netip.Addr, targetMAC table.MAC, target netip.Addr) []byte {
	p := []byte{0, 1, 8, 0, 6, 4, byte(operation >> 8), byte(operation)}
	p = append(p, senderMAC[:]...)
	p = append(p, sender.AsSlice()...)
	p = append(p, targetMAC[:]...)
	return append(p, target.AsSlice()...)
}

// ip wraps an upper-layer packet; options go behind the IPv4 header, or before the upper layer as a hop-by-hop header that they are.
func ip(src, dst netip.Addr, protocol uint8, ttl uint8, options, payload []byte) []byte {
	if src.Is4() {
		h := []byte{0x45 + byte(len(options)/4), 0, 0, 0, 0, 1, 0, 0, ttl, protocol, 0, 0}
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(options)+len(payload)))
		h = append(h, src.AsSlice()...)
		h = append(h, dst.AsSlice()...)
		h = append(h, options...)
		binary.BigEndian.PutUint16(h[10:], inet.Checksum(h))
		return append(h, payload...)
	}
	next := protocol
	if len(options) > 0 {
		next = 0
	}
	h := []byte{0x60, 0, 0, 0, 0, 0, next, ttl}
	binary.BigEndian.PutUint16(h[4:], uint16(len(options)+len(payload)))
	h = append(h, src.AsSlice()...)
	h = append(h, dst.AsSlice()...)
	h = append(h, options...)
	return append(h, payload...)
}

func udp(src, dst netip.Addr, sport, dport uint16, data []byte) []byte {
	p := binary.BigEndian.AppendUint16(nil, sport)
	p = binary.BigEndian.AppendUint16(p, dport)
	p = binary.BigEndian.AppendUint16(p, uint16(8+len(data)))
	p = append(p, 0, 0)
	p = append(p, data...)
	c := inet.TransportChecksum(src, dst, protoUDP, p)
	if c == 0 {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(p[6:], c)
	return p
}

// Flags of TCP.
const (
	tcpFIN = 1 << iota
	tcpSYN
	tcpRST
	tcpPSH
	tcpACK
)

func tcp(src, dst netip.Addr, sport, dport uint16, flags uint8, data []byte) []byte {
	p := binary.BigEndian.AppendUint16(nil, sport)
	p = binary.BigEndian.AppendUint16(p, dport)
	p = append(p, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0)
	p = append(p, data...)
	binary.BigEndian.PutUint16(p[16:], inet.TransportChecksum(src, dst, protoTCP, p))
	return p
}

func icmp4(kind, code uint8, body []byte) []byte {
	p := append([]byte{kind, code, 0, 0}, body...)
	binary.BigEndian.PutUint16(p[2:], inet.Checksum(p))
	return p
}

func icmp6(src, dst netip.Addr, kind, code uint8, body []byte) []byte {
	p := append([]byte{kind, code, 0, 0}, body...)
	binary.BigEndian.PutUint16(p[2:], inet.TransportChecksum(src, dst, protoICMP6, p))
	return p
}

// linkLayerOption is a neighbour discovery option: 1 source, 2 target (RFC 4861).
func linkLayerOption(kind uint8, mac table.MAC) []byte { return append([]byte{kind, 1}, mac[:]...) }

// groupMAC is the Ethernet address of a multicast group (RFC 1112, RFC 2464).
func groupMAC(a netip.Addr) table.MAC {
	if a.Is4() {
		b := a.As4()
		return table.MAC{1, 0, 0x5e, b[1] & 0x7f, b[2], b[3]}
	}
	b := a.As16()
	return table.MAC{0x33, 0x33, b[12], b[13], b[14], b[15]}
}

// solicitedNode is the group that an address's neighbour solicitations go to (RFC 4291).
func solicitedNode(a netip.Addr) netip.Addr {
	b := a.As16()
	return netip.AddrFrom16([16]byte{0: 0xff, 1: 2, 11: 1, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]})
}

// LinkLocal is the address of fe80::/64 with the interface identifier that an Ethernet address gives (EUI-64, RFC 4291 appendix A).
func LinkLocal(m table.MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 0, 0, 0, 0, 0, 0, m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
}

// Tag puts a VLAN tag behind the addresses; a frame shorter than 14 bytes stays as it is.
func Tag(f []byte, tpid, tci uint16) []byte {
	if len(f) < 14 {
		return f
	}
	out := make([]byte, 0, len(f)+4)
	out = append(out, f[:12]...)
	out = binary.BigEndian.AppendUint16(out, tpid)
	out = binary.BigEndian.AppendUint16(out, tci)
	return append(out, f[12:]...)
}
