package model

import (
	"encoding/binary"

	"drover/internal/vswitch/table"
)

// PortIn is what becomes of a frame that a port's device sends: port_in.
func (m *Model) PortIn(ifindex uint32, f Frame) Result {
	w := m.walk(&f, ifindex)
	port, ok := m.t.Ports[ifindex]
	if !ok {
		if w.trace {
			w.say("port", false, "%s has no policy loaded: nothing passes it", m.names.Device(ifindex))
		}
		w.drop(table.DropNoPort)
		return w.result
	}
	w.port, w.slot, w.pvlan, w.community = &port, port.Slot, port.PVLAN, port.Community
	w.captured = w.has(table.PortCapture)
	if w.has(table.PortDown) {
		if w.trace {
			w.say("port", false, "%s is down", m.names.Port(ifindex))
		}
		w.drop(table.DropPortDown)
		return w.result
	}
	if w.trace {
		w.say("port", true, "from %s (%s)", m.names.Port(ifindex), m.names.Device(ifindex))
	}
	if r := w.fromPort(); r != table.DropNone {
		w.drop(r)
	}
	w.result.Net = w.net
	return w.result
}

func (w *walk) fromPort() table.Reason {
	r := w.ethernet()
	w.count(w.slot, false, len(w.b))
	if r != table.DropNone {
		return r
	}
	if w.captured {
		w.capture(w.ifindex, table.CaptureFromGuest, table.DropNone, w.tag.beside())
	}
	if r := w.portNetwork(); r != table.DropNone {
		return r
	}
	if !w.findNetwork() {
		return table.DropNetwork
	}
	r, here := w.guard()
	if r != table.DropNone {
		return r
	}
	if r := w.rates(); r != table.DropNone {
		return r
	}
	if w.f.GSOSize != 0 && uint64(len(w.b)) > uint64(w.f.GSOSize)<<11 {
		if w.trace {
			w.say("mtu", false, "to be cut into more than 2048 segments of %d bytes", w.f.GSOSize)
		}
		return table.DropMalformed
	}
	if r := w.fits(w.port.MTU); r != table.DropNone {
		return r
	}
	if w.answered() {
		return table.DropNone
	}
	// A firewall of the sender's zone belongs here, as in from_port of bpf/datapath.c.
	w.extras()
	return w.forward(here)
}

func (w *walk) findNetwork() bool {
	n, ok := w.m.t.Networks[w.net]
	w.network = n
	if !ok && w.trace {
		w.say("network", false, "%s is not on this host", w.m.names.Network(w.net))
	}
	return ok
}

// fits is rule 9.
func (w *walk) fits(mtu uint16) table.Reason {
	n := len(w.b) - etherLen
	if w.f.GSOSize != 0 {
		n = headerBytes(w.b) - etherLen + int(w.f.GSOSize)
	}
	if n <= int(mtu) {
		return table.DropNone
	}
	if w.trace {
		w.say("mtu", false, "%d bytes behind the Ethernet header; the network's MTU is %d", n, mtu)
	}
	return table.DropMTU
}

// extras marks and mirrors a frame that may pass.
func (w *walk) extras() {
	if w.has(table.PortPriority) {
		w.result.Priority = w.port.Priority
	}
	if w.has(table.PortMark) && w.port.DSCP < 64 {
		w.setDSCP(w.port.DSCP)
	}
	if w.has(table.PortMirrorIn) {
		w.mirror(w.port.MirrorIfindex, table.CaptureAccepted)
	}
	if w.has(table.PortCapture) && (!w.has(table.PortMirrorIn) || w.port.MirrorIfindex != 0) {
		w.capture(w.ifindex, table.CaptureAccepted, table.DropNone, w.tag.word())
	}
}

// setDSCP sets the class of an IP packet and leaves its congestion bits alone (RFC 3168).
func (w *walk) setDSCP(dscp uint8) {
	if w.parse() != table.DropNone || w.p.family == 0 {
		return
	}
	b := append([]byte(nil), w.b...)
	before := binary.BigEndian.Uint16(b[etherLen:])
	after := before&0xff03 | uint16(dscp)<<2
	if w.p.family == 6 {
		after = before&0xf03f | uint16(dscp)<<6
	}
	if before == after {
		return
	}
	binary.BigEndian.PutUint16(b[etherLen:], after)
	if w.p.family == 4 {
		binary.BigEndian.PutUint16(b[etherLen+10:], replaced(binary.BigEndian.Uint16(b[etherLen+10:]), before, after))
	}
	w.b = b
	if w.trace {
		w.say("mark", true, "DSCP is set to %d", dscp)
	}
}

// replaced is a checksum after one of its words changed (RFC 1624, equation 3).
func replaced(sum, before, after uint16) uint16 {
	s := uint32(^sum) + uint32(^before) + uint32(after)
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return ^uint16(s)
}

// forward is rule 11.
func (w *walk) forward(here bool) table.Reason {
	if isGroup(w.dst) {
		mode := floodEverywhere
		if here {
			mode = floodHere
		}
		return w.flood(mode, 0, 0)
	}
	to, ok := w.m.t.FDB[table.FDBKey{Net: w.net, MAC: w.dst}]
	if !ok {
		if r := w.unknown(); r != table.DropNone {
			return r
		}
	}
	w.watch(to)
	switch {
	case ok && to.Place == table.PlaceLocal:
		if to.Target == w.ifindex {
			if w.trace {
				w.say("lookup", false, "%s is this port's own: it is not sent back", text(w.dst))
			}
			return table.DropHairpin
		}
		if w.trace {
			w.say("lookup", true, "%s is %s, on this host", text(w.dst), w.m.names.Port(to.Target))
		}
		return w.deliver(to.Target, to.VID)
	case ok && to.Place == table.PlaceTunnel:
		if w.trace {
			w.say("lookup", true, "%s is on %s, by the overlay", text(w.dst), w.m.names.Host(to.Target))
		}
		return w.toTunnel(to.Target, false)
	case !ok && w.network.Flags&table.NetworkUplink == 0:
		if w.trace {
			w.say("lookup", false, "%s is not registered in %s, which has no physical side here", text(w.dst), w.m.names.Network(w.net))
		}
		return table.DropUnregistered
	}
	if w.trace {
		if ok {
			w.say("lookup", true, "%s is on another host, behind the physical network", text(w.dst))
		} else {
			w.say("lookup", true, "%s is not registered in %s: it may be on the physical network", text(w.dst), w.m.names.Network(w.net))
		}
	}
	return w.toUplink(false)
}

// unknown is storm control of unicast to nobody.
func (w *walk) unknown() table.Reason {
	if !w.has(table.PortStorm) {
		return table.DropNone
	}
	packets, _ := w.wire()
	if w.pay(w.slot, bucketUnknown, packets) {
		return table.DropNone
	}
	if w.trace {
		w.say("rate", false, "the port's share of frames to unknown destinations is used up (%s)", w.limit(bucketUnknown, "packets"))
	}
	return table.DropStormUnknown
}
