package model

import (
	"fmt"
	"net/netip"

	"drover/internal/vswitch/table"
)

// UplinkIn is what becomes of a frame from the physical network: uplink_in.
func (m *Model) UplinkIn(ifindex uint32, f Frame) Result {
	w := m.walk(&f, ifindex)
	w.origin = fromUplink
	uplink, ok := m.t.Uplinks[ifindex]
	if !ok {
		if w.trace {
			w.say("uplink", true, "%s is no uplink: the kernel has it", m.names.Device(ifindex))
		}
		w.result.Verdict = Passed
		return w.result
	}
	if w.trace {
		w.say("uplink", true, "from uplink %s", m.names.Device(ifindex))
	}
	w.slot, w.captured = uplink.Slot, uplink.Flags&table.UplinkCapture != 0
	if r := w.fromUplink(&uplink); r != table.DropNone {
		w.drop(r)
	}
	w.result.Net = w.net
	return w.result
}

// pass leaves the frame to the kernel.
func (w *walk) pass(why string) table.Reason {
	if w.trace {
		w.say("uplink", true, "%s: the kernel has it", why)
	}
	w.result.Verdict, w.result.Mark = Passed, 0
	return table.DropNone
}

func (w *walk) fromUplink(uplink *table.Uplink) table.Reason {
	r := w.ethernet()
	w.count(w.slot, false, len(w.b))
	if r != table.DropNone {
		return r
	}
	if w.captured {
		w.capture(w.ifindex, table.CaptureFromGuest, table.DropNone, w.tag.beside())
	}
	shared := uplink.Flags&table.UplinkShared != 0
	if shared && w.dst == uplink.MAC {
		return w.pass("to the machine itself")
	}
	if r := w.news(); r != table.DropNone {
		return r
	}
	v, r := w.uplinkVLAN()
	if r != table.DropNone {
		if shared {
			return w.pass("of no network of the switch")
		}
		return r
	}
	w.net = v.Net
	if r := w.sender(v.PVLAN, v.Community); r != table.DropNone {
		return r
	}
	if !w.findNetwork() {
		return table.DropNetwork
	}
	w.takeTag()
	if r := w.fits(w.network.MTU); r != table.DropNone {
		return r
	}
	if w.network.Flags&table.NetworkSnooping != 0 && isGroup(w.dst) && w.isGroupNews() {
		w.punt(table.PuntGroup, 0)
	}
	r = w.arrive(uplink.Team)
	if shared && w.tag.vid == 0 && isGroup(w.dst) {
		return w.pass("and a group's")
	}
	return r
}

// news tells frames that switches and hosts send to each other.
func (w *walk) news() table.Reason {
	kind := table.PuntKind(0)
	oui, protocol, snap := w.snapAt()
	switch {
	case w.proto == 0x88cc:
		kind = table.PuntLLDP
	case w.proto == 0x88b5 && w.dst == beacons:
		kind = table.PuntBeacon
	case !isReserved(w.dst):
		return table.DropNone
	case w.dst == table.MAC{1, 0, 0x0c, 0xcc, 0xcc, 0xcc} && snap && oui == [3]byte{0, 0, 0x0c} && protocol == 0x2000:
		kind = table.PuntCDP
	default:
		if w.trace {
			w.say("control", false, "to %s: frames between switches are ignored", text(w.dst))
		}
		return table.DropReservedUplink
	}
	w.punt(kind, 0)
	if w.trace {
		w.say("control", true, "%s: user space takes it", map[table.PuntKind]string{table.PuntLLDP: "LLDP", table.PuntCDP: "CDP", table.PuntBeacon: "a beacon of another host"}[kind])
	}
	return table.DropPunted
}

// snapAt is snap of a frame that may still have its tag.
func (w *walk) snapAt() (oui [3]byte, protocol uint16, ok bool) {
	inner := *w
	if w.tag.inFrame {
		inner.takeTag()
	}
	oui, protocol, ok = inner.snap()
	return oui, protocol, ok && [3]byte(inner.b[etherLen:]) == [3]byte{0xaa, 0xaa, 3}
}

func (w *walk) uplinkVLAN() (table.UplinkVLAN, table.Reason) {
	deny := func(r table.Reason, format string, args ...any) (table.UplinkVLAN, table.Reason) {
		if w.trace {
			w.say("tag", false, format, args...)
		}
		return table.UplinkVLAN{}, r
	}
	switch {
	case w.tag.twice:
		return deny(table.DropDoubleTag, "two VLAN tags: %d outside", w.tag.vid)
	case w.tag.proto != 0 && w.tag.proto != tpid:
		return deny(table.DropTagged, "tagged with EtherType 0x%04x: it has to be 0x8100", w.tag.proto)
	}
	word := "untagged frames"
	if w.tag.vid != 0 {
		word = fmt.Sprintf("VLAN %d", w.tag.vid)
	}
	v, ok := w.m.t.UplinkVLANs[table.UplinkKey{Ifindex: w.ifindex, VID: uint32(w.tag.vid)}]
	if !ok {
		return deny(table.DropVLAN, "%s of this uplink are no network's", word)
	}
	if w.trace {
		w.say("tag", true, "%s of this uplink: %s", word, w.m.names.Network(v.Net))
	}
	return v, table.DropNone
}

// sender fills in what registrations say of a frame's source.
func (w *walk) sender(pvlan table.PVLAN, community uint16) table.Reason {
	source, ok := w.m.t.FDB[table.FDBKey{Net: w.net, MAC: w.src}]
	if !ok {
		w.pvlan, w.community = pvlan, community
		if w.pvlan == table.PVLANNone {
			w.pvlan = table.PVLANPromiscuous
		}
		return table.DropNone
	}
	w.pvlan, w.community = source.PVLAN, source.Community
	if source.Place == table.PlaceLocal {
		if w.trace {
			w.say("source-mac", false, "source MAC %s is %s, on this host: the frame was reflected", text(w.src), w.m.names.Port(source.Target))
		}
		return table.DropReflected
	}
	return table.DropNone
}

// arrive delivers a frame from outside to ports of this host, and never elsewhere.
func (w *walk) arrive(team uint32) table.Reason {
	if isGroup(w.dst) {
		return w.flood(floodHere, 0, team)
	}
	to, ok := w.m.t.FDB[table.FDBKey{Net: w.net, MAC: w.dst}]
	w.watch(to)
	switch {
	case !ok:
		if w.trace {
			w.say("lookup", false, "%s is not registered in %s", text(w.dst), w.m.names.Network(w.net))
		}
		return table.DropUnregistered
	case to.Place != table.PlaceLocal:
		if w.trace {
			w.say("lookup", false, "%s is on another host: what came from outside does not leave again", text(w.dst))
		}
		return table.DropSplitHorizon
	}
	if w.trace {
		w.say("lookup", true, "%s is %s", text(w.dst), w.m.names.Port(to.Target))
	}
	return w.deliver(to.Target, to.VID)
}

// TunnelIn is what becomes of a frame from another host: tunnel_in. ifindex is the tunnels' device, src the outer source.
func (m *Model) TunnelIn(ifindex uint32, src netip.Addr, vni uint32, f Frame) Result {
	w := m.walk(&f, ifindex)
	w.origin = fromTunnel
	if r := w.fromTunnel(src, vni); r != table.DropNone {
		w.drop(r)
	}
	w.result.Net = w.net
	return w.result
}

func (w *walk) fromTunnel(src netip.Addr, vni uint32) table.Reason {
	w.count(0, false, len(w.b))
	w.net = vni
	host, ok := w.m.t.VTEPSources[table.IPOf(src)]
	if !ok {
		if w.trace {
			w.say("tunnel", false, "from %s, which is no host of the switch", src)
		}
		return table.DropVTEP
	}
	if w.trace {
		w.say("tunnel", true, "from %s (%s), VNI %d", w.m.names.Host(host), src, vni)
	}
	if !w.findNetwork() {
		return table.DropNetwork
	}
	if w.network.Flags&table.NetworkOverlay == 0 {
		if w.trace {
			w.say("network", false, "%s has no overlay here", w.m.names.Network(vni))
		}
		return table.DropNetwork
	}
	if w.network.Flags&table.NetworkEncrypted != 0 && w.m.t.VTEPs[host].Flags&table.VTEPPrivate == 0 {
		if w.trace {
			w.say("tunnel", false, "%s is encrypted between sites, and %s is not where that host's encrypted packets come from", w.m.names.Network(vni), src)
		}
		return table.DropVTEP
	}
	if r := w.ethernet(); r != table.DropNone {
		return r
	}
	if w.tag.proto != 0 {
		if w.trace {
			w.say("tag", false, "tagged with VLAN %d: frames in tunnels have no tag", w.tag.vid)
		}
		return table.DropTagged
	}
	if r := w.sender(table.PVLANPromiscuous, 0); r != table.DropNone {
		return r
	}
	return w.arrive(0)
}
