package announce

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"drover/internal/vswitch/inet"
	"drover/internal/vswitch/table"
)

// Subject is who is announced.
type Subject struct {
	MAC       table.MAC
	Addresses []netip.Addr
	VID       uint16 // tag of the frames; 0: none
	Router    bool   // may be a router (PORT_ROUTER)
}

// Delays is when frames are sent, counted from the move: some may be lost while a link or a spanning tree settles.
func Delays() []time.Duration {
	return []time.Duration{0, 100 * time.Millisecond, 400 * time.Millisecond, 1500 * time.Millisecond}
}

var broadcast = table.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// Frames is what to send by the uplink that now carries the subject's frames.
func Frames(s Subject) [][]byte {
	out := [][]byte{rarp(s)}
	for _, a := range s.Addresses {
		switch a = a.Unmap(); {
		case !a.IsValid() || a.IsUnspecified() || a.IsMulticast():
		case a.Is4():
			out = append(out, arp(s, a))
		case !s.Router: // whether it is a router now only the guest knows
			out = append(out, advertisement(s, a))
		}
	}
	return out
}

// hardware is the head of ARP over Ethernet and IPv4, RFC 826.
func hardware(operation uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{0, 1, 8, 0, 6, 4}, operation)
}

// rarp asks for the subject's own address, RFC 903: nobody answers, everybody on the way learns.
func rarp(s Subject) []byte {
	none := make([]byte, 4)
	return inet.Ethernet(broadcast, s.MAC, s.VID, 0x8035, hardware(3), s.MAC[:], none, s.MAC[:], none, make([]byte, 18))
}

// arp is an announcement, RFC 5227 1.1: a request with sender and target address alike.
func arp(s Subject, a netip.Addr) []byte {
	return inet.Ethernet(broadcast, s.MAC, s.VID, 0x0806, hardware(1), s.MAC[:], a.AsSlice(), make([]byte, 6), a.AsSlice(), make([]byte, 18))
}

// advertisement is unsolicited, to all nodes, RFC 4861 7.2.6, with the override flag.
func advertisement(s Subject, a netip.Addr) []byte {
	dst := netip.MustParseAddr("ff02::1")
	na := slices.Concat([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, a.AsSlice(), []byte{2, 1}, s.MAC[:])
	binary.BigEndian.PutUint16(na[2:], inet.TransportChecksum(a, dst, inet.ICMPv6, na))
	head := binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(na)))
	return inet.Ethernet(inet.GroupMAC(dst), s.MAC, s.VID, 0x86dd, head, []byte{inet.ICMPv6, 255}, a.AsSlice(), dst.AsSlice(), na)
}
