package inet

import (
	"encoding/binary"
	"net/netip"

	"drover/internal/vswitch/table"
)

// ICMPv6 is its protocol number.
const ICMPv6 = 58

// Checksum is RFC 1071's over b, an odd byte taken as if a zero followed. Over data that includes a right checksum it is 0.
func Checksum(b []byte) uint16 { return fold(add(0, b)) }

// TransportChecksum is that of an upper-layer message in an IPv6 packet, RFC 8200 8.1, or an IPv4 one, RFC 9293 3.1: it covers the addresses, too.
func TransportChecksum(src, dst netip.Addr, proto byte, b []byte) uint16 {
	sum := add(0, src.AsSlice())
	sum = add(sum, dst.AsSlice())
	return fold(add(sum+uint32(len(b))+uint32(proto), b))
}

func add(sum uint32, b []byte) uint32 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

func fold(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// GroupMAC is the Ethernet address of a multicast group, RFC 1112 6.4 and RFC 2464 7.
func GroupMAC(group netip.Addr) table.MAC {
	if group = group.Unmap(); group.Is4() {
		g := group.As4()
		return table.MAC{0x01, 0, 0x5e, g[1] & 0x7f, g[2], g[3]}
	}
	g := group.As16()
	return table.MAC{0x33, 0x33, g[12], g[13], g[14], g[15]}
}

// LinkLocal is the address that RFC 4291 appendix A makes of a MAC.
func LinkLocal(m table.MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}

// Ethernet is a frame, with a tag if vid is not 0.
func Ethernet(dst, src table.MAC, vid, proto uint16, payload ...[]byte) []byte {
	f := append(append([]byte(nil), dst[:]...), src[:]...)
	if vid != 0 {
		f = binary.BigEndian.AppendUint16(append(f, 0x81, 0), vid)
	}
	f = binary.BigEndian.AppendUint16(f, proto)
	for _, p := range payload {
		f = append(f, p...)
	}
	return f
}
