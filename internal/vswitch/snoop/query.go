package snoop

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"drover/internal/vswitch/inet"
	"drover/internal/vswitch/table"
)

// query4 is an IGMPv3 query; an invalid group makes it general. Its source is 0.0.0.0: it never wins over a real querier (RFC 4541 2.1.1).
func query4(mac table.MAC, vid uint16, group netip.Addr, resp time.Duration) []byte {
	dst := group
	g := make([]byte, 4)
	if group.IsValid() {
		g = group.AsSlice()
	} else {
		dst = netip.AddrFrom4([4]byte{224, 0, 0, 1})
	}
	q := slices.Concat([]byte{0x11, byte(resp / (100 * time.Millisecond)), 0, 0}, g, []byte{robustness, byte(Interval / time.Second), 0, 0})
	binary.BigEndian.PutUint16(q[2:], inet.Checksum(q))
	// 24 bytes of header: the last four are the router alert, RFC 2113.
	ip := slices.Concat([]byte{0x46, 0xc0, 0, byte(24 + len(q)), 0, 0, 0x40, 0, 1, 2, 0, 0, 0, 0, 0, 0}, dst.AsSlice(), []byte{0x94, 4, 0, 0})
	binary.BigEndian.PutUint16(ip[10:], inet.Checksum(ip))
	return inet.Ethernet(inet.GroupMAC(dst), mac, vid, 0x0800, ip, q, make([]byte, 10))
}

// query6 is an MLDv2 query from the link-local address of mac, since hosts take no other.
func query6(mac table.MAC, vid uint16, group netip.Addr, resp time.Duration) []byte {
	src, dst := inet.LinkLocal(mac), group
	g := make([]byte, 16)
	if group.IsValid() {
		g = group.AsSlice()
	} else {
		dst = allNodes
	}
	q := slices.Concat([]byte{130, 0, 0, 0}, binary.BigEndian.AppendUint16(nil, uint16(resp/time.Millisecond)), []byte{0, 0}, g,
		[]byte{robustness, byte(Interval / time.Second), 0, 0})
	binary.BigEndian.PutUint16(q[2:], inet.TransportChecksum(src, dst, inet.ICMPv6, q))
	alert := []byte{inet.ICMPv6, 0, 5, 2, 0, 0, 1, 0} // router alert for MLD, RFC 2711
	head := binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(alert)+len(q)))
	return inet.Ethernet(inet.GroupMAC(dst), mac, vid, 0x86dd, head, []byte{0, 1}, src.AsSlice(), dst.AsSlice(), alert, q)
}
