package model

import (
	"cmp"
	"encoding/binary"
	"slices"

	"drover/internal/vswitch/table"
)

func sortedBindings(all map[table.BindingKey]table.Binding, net, ifindex uint32) []table.BindingKey {
	var out []table.BindingKey
	for k, b := range all {
		if k.Net == net && b.Ifindex == ifindex {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, func(a, b table.BindingKey) int {
		return cmp.Or(a.IP.Addr().Compare(b.IP.Addr()), cmp.Compare(a.Net, b.Net))
	})
	return out
}

// guardIP is rule 7 for IPv4 and IPv6.
func (w *walk) guardIP() table.Reason {
	if r := w.parse(); r != table.DropNone {
		if w.trace {
			w.say("guard", false, "%s", map[table.Reason]string{
				table.DropMalformed: "the IP header is cut off, or its lengths contradict the frame",
				table.DropFragment:  "a fragment, or a chain of extension headers, that hides what it carries"}[r])
		}
		return r
	}
	if r := w.lateIP(); r != table.DropNone {
		return r
	}
	dhcp, r := w.guardDHCP()
	if r != table.DropNone {
		return r
	}
	if w.isICMP6() {
		if r := w.guardICMP6(); r != table.DropNone {
			return r
		}
	}
	if r := w.guardRedundancy(); r != table.DropNone {
		return r
	}
	if w.has(table.PortIPGuard) {
		if r := w.guardAddress(); r != table.DropNone {
			return r
		}
	}
	if dhcp && w.has(table.PortDHCPSnoop) {
		w.punt(table.PuntDHCP, 0)
	}
	if w.network.Flags&table.NetworkSnooping != 0 && w.isGroupNews() {
		w.punt(table.PuntGroup, 0)
	}
	return table.DropNone
}

// guardDHCP says whether it is a client's message, too.
func (w *walk) guardDHCP() (client bool, r table.Reason) {
	if !w.udp() {
		return false, table.DropNone
	}
	p := &w.p
	server, answers := uint16(67), uint16(68)
	if p.family == 6 {
		server, answers = 547, 546
	}
	if (p.sport == server || p.dport == answers) && !w.has(table.PortDHCPServer) {
		if w.trace {
			w.say("guard", false, "UDP port %d to %d is a DHCP server's, and this port may be none", p.sport, p.dport)
		}
		return false, table.DropDHCPServer
	}
	if p.dport != server {
		return false, table.DropNone
	}
	if p.family == 4 && w.has(table.PortDHCPSnoop) && !w.has(table.PortDHCPServer) {
		if fault := w.foreignRequest(); fault != "" {
			if w.trace {
				w.say("guard", false, "%s: a port asks for itself only", fault)
			}
			return false, table.DropDHCPClient
		}
	}
	if !w.pay(w.slot, bucketDHCP, 1) {
		if w.trace {
			w.say("guard", false, "too many DHCP requests (%s)", w.limit(bucketDHCP, "packets"))
		}
		return false, table.DropDHCPRate
	}
	return true, table.DropNone
}

// foreignRequest says how a DHCPv4 client asks for another than itself; "" if it does not.
func (w *walk) foreignRequest() string {
	at := w.p.l4Offset + 8
	if at+34 > len(w.b) {
		return "a DHCP request that is cut off"
	}
	b := w.b[at:]
	mac, client, relay := table.MAC(b[28:34]), ip4(b[12:16]), ip4(b[24:28])
	switch o, ok := w.binding(client); {
	case b[0] != 1 || b[1] != 1 || b[2] != 6:
		return "a message to DHCP servers that is no client's request"
	case mac != w.src:
		return "a DHCP request for " + text(mac) + ", and the frame is from " + text(w.src)
	case relay != unspecified4:
		return "a DHCP request of the relay " + relay.Addr().String()
	case client != unspecified4 && ok && o.Ifindex != w.ifindex && o.MAC != w.src:
		return "a DHCP request from " + client.Addr().String() + ", which belongs to another"
	}
	return ""
}

// guardICMP6 is the guard of router advertisements, and inspection of neighbour discovery.
func (w *walk) guardICMP6() table.Reason {
	deny := func(r table.Reason, format string, args ...any) table.Reason {
		if w.trace {
			w.say("guard", false, format, args...)
		}
		return r
	}
	p := &w.p
	if (p.icmp == 134 || p.icmp == 137) && !w.has(table.PortRouter) {
		return deny(table.DropRA, "%s, and the port is no router's", map[uint8]string{134: "a router advertisement", 137: "a redirect"}[p.icmp])
	}
	if p.icmp < 133 || p.icmp > 136 {
		return table.DropNone
	}
	on, body := w.has(table.PortNDGuard), w.b[p.l4Offset:p.end]
	fixed := map[uint8]int{133: 8, 134: 16, 135: 24, 136: 24}[p.icmp]
	if on && (p.icmp == 135 || p.icmp == 136) {
		if p.hopLimit != 255 {
			return deny(table.DropND, "neighbour discovery with hop limit %d: it has to be 255", p.hopLimit)
		}
		if len(body) < fixed {
			return deny(table.DropND, "neighbour discovery of %d bytes: it has to have %d", len(body), fixed)
		}
		if r := w.guardNeighbour(body); r != table.DropNone {
			return r
		}
	}
	if len(body) < fixed {
		return table.DropNone
	}
	return w.guardOptions(body[fixed:], on)
}

func (w *walk) guardNeighbour(body []byte) table.Reason {
	claimed, word := w.p.src, "source"
	if w.p.icmp == 135 {
		if w.p.src == unspecified6 {
			// Who looks for duplicates of another's address at the moment when the other does takes it from both (RFC 4862, 5.4.3).
			target := table.IP(body[8:24])
			if target[0] != 0xfe || target[1]&0xc0 != 0x80 || w.bound(target, true) {
				return table.DropNone
			}
			if w.trace {
				w.say("guard", false, "a search for duplicates of %s: %s", target.Addr(), w.whyUnbound(target, nil))
			}
			return table.DropND
		}
	} else {
		claimed, word = table.IP(body[8:24]), "target"
	}
	if w.bound(claimed, true) {
		if w.trace {
			w.say("guard", true, "neighbour discovery: %s %s is bound to this port", word, claimed.Addr())
		}
		return table.DropNone
	}
	if w.trace {
		w.say("guard", false, "neighbour discovery with the %s %s: %s", word, claimed.Addr(), w.whyUnbound(claimed, nil))
	}
	return table.DropND
}

const maxOptions = 8

// guardOptions looks at the options of neighbour discovery.
func (w *walk) guardOptions(o []byte, on bool) table.Reason {
	deny := func(r table.Reason, format string, args ...any) table.Reason {
		if w.trace {
			w.say("guard", false, format, args...)
		}
		return r
	}
	for n := 0; len(o) > 0; n++ {
		if n == maxOptions || len(o) < 8 || o[1] == 0 || int(o[1])*8 > len(o) {
			if on {
				return deny(table.DropND, "neighbour discovery options that are too many, or longer than the message")
			}
			return table.DropNone
		}
		size := int(o[1]) * 8
		if o[0] == 1 || o[0] == 2 {
			if size == 8 && virtualOf(table.MAC(o[2:8])) != "" && !w.has(table.PortVirtualRouter) {
				return deny(table.DropVirtualRouter, "neighbour discovery claims the virtual router's MAC %s, and the port may hold none", text(table.MAC(o[2:8])))
			}
			if on && (size != 8 || table.MAC(o[2:8]) != w.src) {
				return deny(table.DropND, "neighbour discovery claims another MAC than the frame's %s", text(w.src))
			}
		}
		o = o[size:]
	}
	return table.DropNone
}

// isGroupIP says whether the packet's destination is a multicast group.
func (w *walk) isGroupIP() bool {
	return w.p.family == 4 && w.p.dst[12]>>4 == 14 || w.p.family == 6 && w.p.dst[0] == 0xff
}

// guardRedundancy keeps protocols of virtual routers to ports that may hold virtual addresses.
func (w *walk) guardRedundancy() table.Reason {
	p := &w.p
	if !w.isGroupIP() || w.has(table.PortVirtualRouter) {
		return table.DropNone
	}
	what := ""
	switch {
	case p.l4 == protoVRRP:
		what = "VRRP or CARP"
	case w.udp() && (p.dport == 1985 || p.dport == 2029):
		what = "HSRP"
	case w.udp() && p.dport == 3222:
		what = "GLBP"
	default:
		return table.DropNone
	}
	if w.trace {
		w.say("guard", false, "%s, and the port may hold no virtual address", what)
	}
	return table.DropVirtualRouter
}

// guardAddress is IP source guard.
func (w *walk) guardAddress() table.Reason {
	p := &w.p
	a := p.src
	why := ""
	switch {
	case p.family == 4 && p.src == unspecified4 && (w.udp() && p.dport == 67 || p.l4 == protoIGMP):
		why = "no address yet, as in DHCP and IGMP"
	case p.family == 6 && p.src == unspecified6 && w.isICMP6() && slices.Contains([]uint8{131, 132, 133, 135, 143}, p.icmp):
		why = "no address yet, as in duplicate address detection and MLD"
	case w.bound(a, p.family == 6):
		why = "bound to this port"
	}
	if why == "" {
		if w.trace {
			w.say("guard", false, "source address: %s", w.whyUnbound(a, nil))
		}
		return table.DropSourceIP
	}
	if w.trace {
		w.say("guard", true, "source address %s: %s", p.src.Addr(), why)
	}
	return table.DropNone
}

// isGroupNews says whether the frame tells who listens to groups, or who routes them: IGMP, MLD, PIM to a group.
func (w *walk) isGroupNews() bool {
	if w.parse() != table.DropNone {
		return false
	}
	if w.p.l4 == protoPIM {
		return w.isGroupIP()
	}
	if w.p.family == 4 {
		return w.p.l4 == protoIGMP
	}
	return w.isICMP6() && slices.Contains([]uint8{130, 131, 132, 143}, w.p.icmp)
}

// dhcpAck reads a DHCPv4 server's message: whom it is for, and the address if it is an acknowledgement (RFC 2131).
func dhcpAck(m []byte) (client table.MAC, address [4]byte, ack, ok bool) {
	if len(m) < 44 || m[0] != 2 || m[1] != 1 || m[2] != 6 {
		return client, address, false, false
	}
	client, address = table.MAC(m[28:34]), [4]byte(m[16:20])
	if len(m) < 240 || binary.BigEndian.Uint32(address[:]) == 0 {
		return client, address, false, true
	}
	o := m[240:]
	for range 16 { // servers put the kind of message first
		if len(o) < 3 || o[0] == 255 {
			break
		}
		if o[0] == 53 {
			return client, address, o[1] == 1 && o[2] == 5, true
		}
		if o[0] == 0 {
			o = o[1:]
			continue
		}
		if 2+int(o[1]) > len(o) {
			break
		}
		o = o[2+int(o[1]):]
	}
	return client, address, false, true
}
