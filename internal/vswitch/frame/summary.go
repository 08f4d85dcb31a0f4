package frame

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// Summary is one line for a frame, as packet analysers show it: who, to whom, what. Bytes that are no frame have a line, too.
func Summary(f []byte) string {
	if len(f) < 14 {
		return fmt.Sprintf("%d bytes, too short for an Ethernet header", len(f))
	}
	s := &summary{dst: net.HardwareAddr(f[:6]).String(), src: net.HardwareAddr(f[6:12]).String(), length: len(f)}
	t := binary.BigEndian.Uint16(f[12:])
	rest := f[14:]
	for t == 0x8100 || t == 0x88a8 || t == 0x9100 {
		if len(rest) < 4 {
			s.tags = append(s.tags, "VLAN cut off")
			return s.line("Ethernet", "")
		}
		s.tags = append(s.tags, fmt.Sprintf("VLAN %d", binary.BigEndian.Uint16(rest)&0xfff))
		t = binary.BigEndian.Uint16(rest[2:])
		rest = rest[4:]
		if len(s.tags) == 8 {
			break
		}
	}
	return s.etherType(t, rest)
}

type summary struct {
	src, dst string
	tags     []string
	length   int
}

func (s *summary) line(protocol, format string, args ...any) string {
	tags := ""
	if len(s.tags) > 0 {
		tags = strings.Join(s.tags, ", ") + ", "
	}
	return strings.TrimRight(fmt.Sprintf("%s → %s %s%s %d ", s.src, s.dst, tags, protocol, s.length)+fmt.Sprintf(format, args...), " ")
}

func (s *summary) etherType(t uint16, b []byte) string {
	switch {
	case t < 0x0600:
		return s.llc(b)
	case t == typeARP:
		return s.arp(b)
	case t == typeIP4:
		return s.ip4(b)
	case t == typeIP6:
		return s.ip6(b)
	case t == typeLLDP:
		return s.line("LLDP", "")
	case t == typeSlow && len(b) > 0 && b[0] == 1:
		return s.line("LACP", "")
	case t == typeMAC:
		return s.line("MAC control", "pause")
	case t == 0x88b5:
		return s.line("Beacon", "")
	}
	return s.line(fmt.Sprintf("0x%04x", t), "")
}

func (s *summary) llc(b []byte) string {
	switch {
	case len(b) >= 3 && b[0] == 0x42 && b[1] == 0x42:
		return s.line("STP", "%s", bpduText(b[3:]))
	case len(b) >= 8 && b[0] == 0xaa && b[1] == 0xaa:
		protocol := binary.BigEndian.Uint16(b[6:])
		if b[3] == 0 && b[4] == 0 && b[5] == 0x0c {
			if protocol == 0x010b {
				return s.line("PVST+", "%s", bpduText(b[8:]))
			}
			if n := map[uint16]string{0x2000: "CDP", 0x2003: "VTP", 0x2004: "DTP", 0x0111: "UDLD"}[protocol]; n != "" {
				return s.line(n, "")
			}
		}
		return s.line("SNAP", "%02x:%02x:%02x 0x%04x", b[3], b[4], b[5], protocol)
	case len(b) >= 2:
		return s.line("LLC", "DSAP 0x%02x SSAP 0x%02x", b[0], b[1])
	}
	return s.line("LLC", "cut off")
}

func bpduText(b []byte) string {
	if len(b) < 4 {
		return "cut off"
	}
	switch b[3] {
	case 0x80:
		return "topology change"
	case 0, 2:
		if len(b) >= 13 {
			return fmt.Sprintf("root %d/%s", binary.BigEndian.Uint16(b[5:]), net.HardwareAddr(b[7:13]))
		}
	}
	return "BPDU"
}

func (s *summary) arp(b []byte) string {
	if len(b) < 28 {
		return s.line("ARP", "cut off")
	}
	if b[4] != 6 || b[5] != 4 {
		return s.line("ARP", "of other networks than Ethernet and IPv4")
	}
	mac := net.HardwareAddr(b[8:14])
	sender, target := netip.AddrFrom4([4]byte(b[14:18])), netip.AddrFrom4([4]byte(b[24:28]))
	switch op := binary.BigEndian.Uint16(b[6:]); {
	case op == 1 && sender.IsUnspecified():
		return s.line("ARP", "Who has %s? (probe)", target)
	case op == 1 && sender == target:
		return s.line("ARP", "Announcement: %s is at %s", sender, mac)
	case op == 1:
		return s.line("ARP", "Who has %s? Tell %s", target, sender)
	case op == 2:
		return s.line("ARP", "%s is at %s", sender, mac)
	default:
		return s.line("ARP", "operation %d", op)
	}
}

func (s *summary) ip4(b []byte) string {
	if len(b) < 20 || b[0]>>4 != 4 || int(b[0]&15)*4 < 20 || int(b[0]&15)*4 > len(b) {
		return s.line("IPv4", "malformed")
	}
	s.src, s.dst = netip.AddrFrom4([4]byte(b[12:16])).String(), netip.AddrFrom4([4]byte(b[16:20])).String()
	h := int(b[0]&15) * 4
	fragment := binary.BigEndian.Uint16(b[6:])
	if offset := fragment & 0x1fff; offset != 0 {
		return s.line("IPv4", "fragment at %d of protocol %d", int(offset)*8, b[9])
	}
	payload := b[h:]
	if total := int(binary.BigEndian.Uint16(b[2:])); total >= h && total <= len(b) {
		payload = b[h:total]
	}
	return s.upper(b[9], payload)
}

func (s *summary) ip6(b []byte) string {
	if len(b) < 40 || b[0]>>4 != 6 {
		return s.line("IPv6", "malformed")
	}
	s.src, s.dst = netip.AddrFrom16([16]byte(b[8:24])).String(), netip.AddrFrom16([16]byte(b[24:40])).String()
	next := b[6]
	payload := b[40:]
	if n := int(binary.BigEndian.Uint16(b[4:])); n > 0 && n <= len(payload) {
		payload = payload[:n]
	}
	for range 8 {
		size := 0
		switch next {
		case 0, 43, 60, 135, 139, 140:
			if len(payload) >= 2 {
				size = int(payload[1])*8 + 8
			}
		case 51:
			if len(payload) >= 2 {
				size = int(payload[1])*4 + 8
			}
		case 44:
			size = 8
			if len(payload) >= 8 {
				if offset := binary.BigEndian.Uint16(payload[2:]) &^ 7; offset != 0 {
					return s.line("IPv6", "fragment at %d of protocol %d", offset, payload[0])
				}
			}
		case 59:
			return s.line("IPv6", "no upper layer")
		default:
			return s.upper(next, payload)
		}
		if size == 0 || size > len(payload) {
			return s.line("IPv6", "extension header %d cut off", next)
		}
		next, payload = payload[0], payload[size:]
	}
	return s.line("IPv6", "more than 8 extension headers")
}

func (s *summary) upper(protocol uint8, b []byte) string {
	switch protocol {
	case protoTCP:
		return s.tcp(b)
	case protoUDP:
		return s.udp(b)
	case protoICMP:
		if len(b) < 4 {
			return s.line("ICMP", "cut off")
		}
		return s.line("ICMP", "%s", named(map[uint8]string{0: "Echo reply", 3: "Destination unreachable", 5: "Redirect", 8: "Echo request", 11: "Time exceeded"}, b[0]))
	case protoICMP6:
		return s.icmp6(b)
	case protoIGMP:
		if len(b) < 8 {
			return s.line("IGMP", "cut off")
		}
		return s.line("IGMP", "%s", named(map[uint8]string{0x11: "Query", 0x12: "v1 report", 0x16: "v2 report", 0x17: "Leave", 0x22: "v3 report"}, b[0]))
	case protoVRRP:
		if len(b) < 8 {
			return s.line("VRRP", "cut off")
		}
		return s.line("VRRP", "version %d, router %d, priority %d", b[0]>>4, b[1], b[2])
	}
	return s.line("IP", "protocol %d", protocol)
}

func named(names map[uint8]string, n uint8) string {
	if s := names[n]; s != "" {
		return s
	}
	return fmt.Sprintf("type %d", n)
}

func (s *summary) tcp(b []byte) string {
	if len(b) < 20 || int(b[12]>>4)*4 < 20 {
		return s.line("TCP", "cut off")
	}
	var flags []string
	for i, n := range []string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"} {
		if b[13]>>i&1 != 0 {
			flags = append(flags, n)
		}
	}
	return s.line("TCP", "%d → %d [%s] Seq=%d Len=%d", binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]),
		strings.Join(flags, ", "), binary.BigEndian.Uint32(b[4:]), max(0, len(b)-int(b[12]>>4)*4))
}

func (s *summary) udp(b []byte) string {
	if len(b) < 8 {
		return s.line("UDP", "cut off")
	}
	sport, dport := binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	data := b[8:]
	switch {
	case (sport == 67 || dport == 67) && len(data) >= 240:
		return s.line("DHCP", "%s", dhcpText(data))
	case (sport == 547 || dport == 547) && len(data) >= 1:
		return s.line("DHCPv6", "%s", named(map[uint8]string{1: "Solicit", 2: "Advertise", 3: "Request", 4: "Confirm", 5: "Renew", 6: "Rebind", 7: "Reply", 8: "Release", 9: "Decline",
			11: "Information request", 12: "Relay forward", 13: "Relay reply"}, data[0]))
	case dport == 1985 || dport == 2029:
		return s.line("HSRP", "")
	case dport == 3222:
		return s.line("GLBP", "")
	}
	return s.line("UDP", "%d → %d Len=%d", sport, dport, len(data))
}

func dhcpText(b []byte) string {
	text := "BOOTP"
	for o := b[240:]; len(o) >= 2 && o[0] != 255; {
		if o[0] == 0 {
			o = o[1:]
			continue
		}
		n := int(o[1])
		if len(o) < 2+n {
			break
		}
		if o[0] == 53 && n == 1 {
			text = named(map[uint8]string{1: "Discover", 2: "Offer", 3: "Request", 4: "Decline", 5: "ACK", 6: "NAK", 7: "Release", 8: "Inform"}, o[2])
			break
		}
		o = o[2+n:]
	}
	text += " of " + net.HardwareAddr(b[28:34]).String()
	if a := netip.AddrFrom4([4]byte(b[16:20])); !a.IsUnspecified() {
		text += ", address " + a.String()
	}
	return text
}

func (s *summary) icmp6(b []byte) string {
	if len(b) < 4 {
		return s.line("ICMPv6", "cut off")
	}
	if (b[0] == 135 || b[0] == 136) && len(b) >= 24 {
		target := netip.AddrFrom16([16]byte(b[8:24]))
		text := fmt.Sprintf("Neighbor solicitation for %s", target)
		if b[0] == 136 {
			text = fmt.Sprintf("Neighbor advertisement of %s", target)
		}
		for o := b[24:]; len(o) >= 8 && o[1] != 0; {
			n := int(o[1]) * 8
			if n > len(o) {
				break
			}
			switch o[0] {
			case 1:
				text += " from " + net.HardwareAddr(o[2:8]).String()
			case 2:
				text += " is at " + net.HardwareAddr(o[2:8]).String()
			}
			o = o[n:]
		}
		return s.line("ICMPv6", "%s", text)
	}
	return s.line("ICMPv6", "%s", named(map[uint8]string{1: "Destination unreachable", 2: "Packet too big", 3: "Time exceeded", 128: "Echo request", 129: "Echo reply",
		130: "Multicast listener query", 131: "Multicast listener report", 132: "Multicast listener done", 133: "Router solicitation", 134: "Router advertisement",
		135: "Neighbor solicitation", 136: "Neighbor advertisement", 137: "Redirect", 143: "Multicast listener report v2"}, b[0]))
}
