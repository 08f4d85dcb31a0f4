package model

import (
	"encoding/binary"
	"fmt"

	"drover/internal/vswitch/table"
)

// virtualOf names the protocol whose virtual router has the MAC, or "".
func virtualOf(m table.MAC) string {
	switch {
	case m[0] == 0 && m[1] == 0 && m[2] == 0x5e && m[3] == 0 && (m[4] == 1 || m[4] == 2):
		return "VRRP or CARP"
	case m[0] == 0 && m[1] == 0 && m[2] == 0x0c && m[3] == 0x07 && m[4] == 0xac,
		m[0] == 0 && m[1] == 0 && m[2] == 0x0c && m[3] == 0x9f && m[4]>>4 == 0xf,
		m[0] == 0 && m[1] == 5 && m[2] == 0x73 && m[3] == 0xa0 && m[4]>>4 == 0:
		return "HSRP"
	case m[0] == 0 && m[1] == 7 && m[2] == 0xb4:
		return "GLBP"
	}
	return ""
}

// isReserved says whether switches keep frames to the address to themselves.
func isReserved(m table.MAC) bool {
	return [5]byte(m[:5]) == [5]byte{1, 0x80, 0xc2, 0, 0} && m[5] < 0x10 ||
		[5]byte(m[:5]) == [5]byte{1, 0, 0x0c, 0xcc, 0xcc} && (m[5] == 0xcc || m[5] == 0xcd)
}

// numbered says whether a SNAP frame has a control field of two bytes.
func (w *walk) numbered() bool { return w.b[etherLen+2]&3 != 3 }

// snap is the SNAP header of an 802.3 frame.
func (w *walk) snap() (oui [3]byte, protocol uint16, ok bool) {
	if w.proto >= 0x600 || len(w.b) < etherLen+8 {
		return oui, 0, false
	}
	h := w.b[etherLen:]
	if h[0]|1 != 0xab {
		return oui, 0, false
	}
	return [3]byte(h[3:6]), binary.BigEndian.Uint16(h[6:]), true
}

// beacons is the group that hosts' beacons go to.
var beacons = table.MAC{3, 'D', 'R', 'O', 'V', 'E'}

// controlAddress says what kind of control frames the destination is for, or DropNone.
func (w *walk) controlAddress() (kind table.Reason, what string) {
	d := w.dst
	switch {
	case w.proto == 0x88b5 && d == beacons:
		return table.DropL2Control, "a beacon of a host"
	case d == table.MAC{1, 0x80, 0xc2, 0, 0, 0}, d == table.MAC{1, 0x80, 0xc2, 0, 0, 8}, d == table.MAC{1, 0, 0x0c, 0xcc, 0xcc, 0xcd}:
		kind, what = table.DropBPDU, "destination %s is for spanning tree"
	case [5]byte(d[:5]) == [5]byte{1, 0x80, 0xc2, 0, 0} && (d[5] < 0x10 || d[5]>>4 == 2):
		kind, what = table.DropL2Control, "destination %s is for switches"
	case [3]byte(d[:3]) == [3]byte{1, 0, 0x0c}, [5]byte(d[:5]) == [5]byte{3, 0, 0x0c, 0, 0}:
		kind, what = table.DropL2Control, "destination %s is for switches of Cisco"
	default:
		return table.DropNone, ""
	}
	if w.trace {
		what = fmt.Sprintf(what, text(d))
	}
	return kind, what
}

// controlContent finds control frames by what they hold, to whichever address.
func (w *walk) controlContent() (kind table.Reason, what string) {
	switch w.proto {
	case 0x8808, 0x8809, 0x88cc, 0x88f5, 0x88f6:
		return table.DropL2Control, "the frame's EtherType is between switches (pause, LACP, LLDP, MVRP, MMRP)"
	}
	if w.proto >= 0x600 {
		return table.DropNone, ""
	}
	if h := w.b[etherLen:]; len(h) >= 3 && h[0]|1 == 0x43 {
		return table.DropBPDU, "the frame has the LLC header of spanning tree"
	}
	if oui, protocol, ok := w.snap(); ok && !w.numbered() && oui == [3]byte{0, 0, 0x0c} {
		if protocol == 0x010b {
			return table.DropBPDU, "the frame has the SNAP header of PVST+"
		}
		return table.DropL2Control, "the frame has a SNAP header of Cisco (CDP, VTP, DTP, UDLD)"
	}
	return table.DropNone, ""
}

// guard is rules 5 to 7. here says that the frame is a control frame to a group, which is allowed, but stays on this host.
func (w *walk) guard() (r table.Reason, here bool) {
	if r = w.late(); r != table.DropNone {
		return r, false
	}
	for _, of := range []func() (table.Reason, string){w.controlAddress, w.controlContent} {
		kind, what := of()
		if kind == table.DropNone {
			continue
		}
		if !(kind == table.DropBPDU && w.has(table.PortBPDU) || kind == table.DropL2Control && w.has(table.PortL2Control)) {
			if w.trace {
				w.say("control", false, "%s: this guest may not send that", what)
			}
			return kind, false
		}
		if w.trace {
			w.say("control", true, "%s, which the port's profile allows", what)
		}
		here = isGroup(w.dst)
	}
	if r = w.guardSource(); r != table.DropNone {
		return r, false
	}
	return w.guardNetwork(), here
}

func (w *walk) has(f table.PortFlag) bool { return w.port.Flags&f != 0 }

// guardSource is rule 6.
func (w *walk) guardSource() table.Reason {
	if v := virtualOf(w.src); v != "" {
		if !w.has(table.PortVirtualRouter) {
			if w.trace {
				w.say("source-mac", false, "source MAC %s is a virtual router's (%s), and the port may hold none", text(w.src), v)
			}
			return table.DropVirtualRouter
		}
		if e, ok := w.m.t.FDB[table.FDBKey{Net: w.net, MAC: w.src}]; !ok || e.Place != table.PlaceLocal || e.Target != w.ifindex {
			w.punt(table.PuntVirtual, 0)
		}
		if w.trace {
			w.say("source-mac", true, "source MAC %s: a virtual router's (%s), which the port may hold", text(w.src), v)
		}
		return table.DropNone
	}
	_, more := w.m.t.MACs[table.MACKey{Ifindex: w.ifindex, MAC: w.src}]
	why := ""
	switch {
	case w.src == w.port.MAC:
		why = "the port's own"
	case w.has(table.PortForged):
		why = "not the port's own, but its profile allows forged transmits"
	case w.has(table.PortMoreMACs) && more:
		why = "granted to the port"
	case w.has(table.PortMACChanges):
		w.punt(table.PuntNewMAC, 0)
		if w.trace {
			w.say("source-mac", false, "source MAC %s is not registered yet for this port: the manager is asked for it", text(w.src))
		}
		return table.DropNewMAC
	default:
		if w.trace {
			w.say("source-mac", false, "source MAC %s is not the port's: that is %s", text(w.src), text(w.port.MAC))
		}
		return table.DropSourceMAC
	}
	if w.trace {
		w.say("source-mac", true, "source MAC %s: %s", text(w.src), why)
	}
	return table.DropNone
}

// isOpen says whether a port's IP traffic is nobody's business.
func (w *walk) isOpen() bool {
	const may = table.PortDHCPServer | table.PortRouter | table.PortVirtualRouter
	const asked = table.PortIPGuard | table.PortNDGuard | table.PortDHCPSnoop
	return w.port.Flags&may == may && w.port.Flags&asked == 0
}

// guardNetwork is rule 7.
func (w *walk) guardNetwork() table.Reason {
	switch {
	case w.proto == typeARP:
		return w.guardARP()
	case w.proto == typeIP4, w.proto == typeIP6:
		if w.isOpen() && !isGroup(w.dst) {
			if w.trace {
				w.say("guard", true, "no guard of IP is on for this port")
			}
			return table.DropNone
		}
		return w.guardIP()
	case w.proto < 0x600:
		return w.guardSNAP()
	}
	if w.trace {
		w.say("guard", true, "EtherType 0x%04x: no guard looks at it", w.proto)
	}
	return table.DropNone
}

func (w *walk) guardSNAP() table.Reason {
	oui, protocol, ok := w.snap()
	if !ok || w.isOpen() && !w.has(table.PortARPGuard) {
		return table.DropNone
	}
	if w.numbered() {
		if w.trace {
			w.say("guard", false, "a SNAP frame with a numbered control field, which nobody sends, would go round the guards")
		}
		return table.DropMalformed
	}
	if oui != [3]byte{} && oui != [3]byte{0, 0, 0xf8} {
		return table.DropNone
	}
	switch protocol {
	case typeIP4, typeARP, typeIP6, 0x8100, 0x88a8, 0x9100:
		if w.trace {
			w.say("guard", false, "0x%04x behind a SNAP header (RFC 1042) would go round the guards", protocol)
		}
		return table.DropMalformed
	}
	return table.DropNone
}

// guardARP is ARP inspection.
func (w *walk) guardARP() table.Reason {
	h, on := w.b[etherLen:], w.has(table.PortARPGuard)
	deny := func(r table.Reason, format string, args ...any) table.Reason {
		if w.trace {
			w.say("guard", false, format, args...)
		}
		return r
	}
	if len(h) < 28 {
		if on {
			return deny(table.DropARP, "ARP of %d bytes: it has to have 28", len(h))
		}
		return deny(table.DropMalformed, "ARP of %d bytes: it has to have 28", len(h))
	}
	sender := table.MAC(h[8:14])
	if virtualOf(sender) != "" && !w.has(table.PortVirtualRouter) {
		return deny(table.DropVirtualRouter, "ARP claims the virtual router's MAC %s, and the port may hold none", text(sender))
	}
	if !on {
		if w.trace {
			w.say("guard", true, "ARP: inspection is off for this port")
		}
		return table.DropNone
	}
	operation := binary.BigEndian.Uint16(h[6:])
	if [6]byte(h[:6]) != [6]byte{0, 1, 8, 0, 6, 4} || operation != 1 && operation != 2 {
		return deny(table.DropARP, "ARP that is no request and no reply of IPv4 on Ethernet")
	}
	if sender != w.src {
		return deny(table.DropARP, "ARP claims to be from %s, but the frame is from %s", text(sender), text(w.src))
	}
	a := ip4(h[14:18])
	if a == unspecified4 && operation == 1 {
		if w.trace {
			w.say("guard", true, "ARP: a probe claims no address")
		}
		return table.DropNone
	}
	if !w.boundWith(a, sender) {
		return deny(table.DropARP, "ARP claims %s: %s", a.Addr(), w.whyUnbound(a, &sender))
	}
	if w.trace {
		w.say("guard", true, "ARP: %s is bound to this port with %s", a.Addr(), text(sender))
	}
	return table.DropNone
}
