package model

import (
	"encoding/binary"

	"drover/internal/vswitch/table"
)

// mayMeet is the private VLAN.
func (w *walk) mayMeet(to *table.Port) bool {
	if w.pvlan < table.PVLANIsolated || to.PVLAN == table.PVLANPromiscuous {
		return true
	}
	return w.pvlan == table.PVLANCommunity && to.PVLAN == table.PVLANCommunity && w.community == to.Community
}

var roles = map[table.PVLAN]string{table.PVLANNone: "in no private VLAN", table.PVLANPromiscuous: "promiscuous", table.PVLANIsolated: "isolated", table.PVLANCommunity: "in a community"}

// admit asks the receiver's policy. A firewall of its zone belongs in front of the rate, as in admit of bpf/deliver.h.
func (w *walk) admit(stage string, ifindex uint32, to *table.Port) table.Reason {
	deny := func(r table.Reason, format string, args ...any) table.Reason {
		if w.trace {
			w.say(stage, false, format, args...)
		}
		return r
	}
	name := ""
	if w.trace {
		name = w.m.names.Port(ifindex)
	}
	if to.Flags&table.PortDown != 0 {
		return deny(table.DropPortDown, "%s is down", name)
	}
	if !w.mayMeet(to) {
		return deny(table.DropPVLAN, "the private VLAN keeps them apart: the sender is %s, %s is %s", roles[w.pvlan], name, roles[to.PVLAN])
	}
	if to.Flags&table.PortMeterOut != 0 {
		if _, bytes := w.wire(); !w.pay(to.Slot, bucketOut, bytes) {
			return deny(table.DropRateOut, "above the rate limit to %s", name)
		}
	}
	return table.DropNone
}

// handOver is what comes between the policy and the redirect.
func (w *walk) handOver(ifindex uint32, to *table.Port, vid uint16) {
	if to.Flags&table.PortDHCPSnoop != 0 && (w.origin != fromPort || w.has(table.PortDHCPServer)) {
		w.noteLease(ifindex, to)
	}
	if to.Flags&table.PortCapture != 0 || to.Flags&table.PortMirrorOut != 0 && to.MirrorIfindex == 0 {
		w.capture(ifindex, table.CaptureToGuest, table.DropNone, pushedWord(vid))
	}
	if to.Flags&table.PortMirrorOut != 0 && to.MirrorIfindex != 0 {
		w.mirror(to.MirrorIfindex, table.CaptureToGuest)
	}
	w.count(to.Slot, true, len(w.b))
	w.result.Mark = table.Mark
}

// mirror sends a copy to a port that watches another: no policy but that it is up.
func (w *walk) mirror(to uint32, at table.CapturePoint) {
	if to == 0 {
		w.capture(w.ifindex, at, table.DropNone, w.tag.word())
		return
	}
	port, ok := w.m.t.Ports[to]
	if !ok || port.Flags&table.PortDown != 0 || to == w.ifindex {
		return
	}
	w.count(port.Slot, true, len(w.b))
	if port.Flags&table.PortCapture != 0 {
		w.capture(to, table.CaptureToGuest, table.DropNone, 0)
	}
	w.result.Mark = table.Mark
	w.result.Outputs = append(w.result.Outputs, Output{Ifindex: to, Place: table.PlaceLocal, Copy: true, Mirror: true, Bytes: w.b})
	if w.trace {
		w.say("mirror", true, "a copy goes to %s", w.m.names.Port(to))
	}
}

// deliver sends the frame itself to a port.
func (w *walk) deliver(ifindex uint32, vid uint16) table.Reason {
	to, ok := w.m.t.Ports[ifindex]
	if !ok {
		if w.trace {
			w.say("deliver", false, "%s has no policy loaded: nothing reaches it", w.m.names.Port(ifindex))
		}
		return table.DropNoPort
	}
	if r := w.admit("deliver", ifindex, &to); r != table.DropNone {
		return r
	}
	w.handOver(ifindex, &to, vid)
	if to.Flags&table.PortPeer != 0 {
		w.result.Mark = 0
	}
	w.result.Verdict = Redirected
	w.output(Output{Ifindex: ifindex, Place: table.PlaceLocal, Tagged: vid != 0, VID: vid})
	if w.trace {
		w.say("deliver", true, "to %s%s", w.m.names.Port(ifindex), tagWords(vid))
	}
	return table.DropNone
}

func (w *walk) output(o Output) {
	o.Bytes = w.b
	w.result.Outputs = append(w.result.Outputs, o)
}

// noteLease looks for a DHCP server's message in a frame from a trusted place.
func (w *walk) noteLease(ifindex uint32, to *table.Port) {
	if w.parse() != table.DropNone || w.p.l4 != protoUDP || w.p.fragment != 0 || w.p.family == 0 {
		return
	}
	if w.p.family == 6 {
		if w.p.sport == 547 {
			w.punt(table.PuntDHCP, ifindex)
		}
		return
	}
	if w.p.sport != 67 || w.p.l4Offset+8 > len(w.b) {
		return
	}
	client, address, ack, ok := dhcpAck(w.b[w.p.l4Offset+8:])
	if !ok || client != to.MAC {
		return
	}
	w.punt(table.PuntDHCP, ifindex)
	if ack {
		w.bindLease(ifindex, to, ip4(address[:]))
	}
}

// bindLease writes the provisional binding, if nobody else holds the address, and lets go of the port's last one.
func (w *walk) bindLease(ifindex uint32, to *table.Port, a table.IP) {
	if old, ok := w.binding(a); ok && (old.Ifindex != ifindex || old.Source != table.BindingProvisional) {
		return
	}
	if last, ok := w.m.last[to.Slot]; ok {
		if old, ok := w.row(last); ok && old.Source == table.BindingProvisional && old.Ifindex == ifindex {
			w.m.notes[last] = nil
		}
	}
	k := table.BindingKey{Net: w.net, IP: a}
	b := table.Binding{Ifindex: ifindex, MAC: to.MAC, Source: table.BindingProvisional, Expires: w.f.Now + uint64(table.ProvisionalLease)}
	w.m.notes[k], w.m.last[to.Slot] = &b, k
	w.result.Notes = append(w.result.Notes, Note{k, b})
	if w.trace {
		w.say("deliver", true, "a DHCP lease: %s is bound to %s for a minute", a.Addr(), w.m.names.Port(ifindex))
	}
}

// row is a row of bindings, expired or not.
func (w *walk) row(k table.BindingKey) (table.Binding, bool) {
	if n, noted := w.m.notes[k]; noted {
		if n == nil {
			return table.Binding{}, false
		}
		return *n, true
	}
	b, ok := w.m.t.Bindings[k]
	return b, ok
}

// spread maps what frames of one conversation have in common to a team's bucket: Fibonacci hashing.
func spread(x uint32) uint32 { return x * 0x9e3779b1 >> 26 }

func lastFour(m table.MAC) uint32 { return binary.BigEndian.Uint32(m[2:]) }

func (w *walk) teamBucket() uint32 {
	switch w.port.TeamHash {
	case table.TeamByPort:
		return w.port.Bucket
	case table.TeamByMAC:
		return spread(lastFour(w.src))
	}
	if w.parse() != table.DropNone || w.p.family == 0 {
		return spread(lastFour(w.src) ^ lastFour(w.dst))
	}
	x := uint32(0)
	for _, a := range []table.IP{w.p.src, w.p.dst} {
		for i := 0; i < 16; i += 4 {
			x ^= binary.BigEndian.Uint32(a[i:])
		}
	}
	return spread(x)
}

// toUplink sends the frame, or a copy, out by the network's team.
func (w *walk) toUplink(isCopy bool) table.Reason {
	deny := func(format string, args ...any) table.Reason {
		if w.trace {
			w.say("uplink", false, format, args...)
		}
		return table.DropNoUplink
	}
	team, ok := w.m.t.Teams[w.network.Team]
	bucket := w.teamBucket()
	if bucket >= table.TeamBuckets {
		return deny("bucket %d is not in the team", bucket)
	}
	device := team.Bucket[bucket]
	uplink, up := w.m.t.Uplinks[device]
	if !ok || !up {
		return deny("all uplinks of the team are down")
	}
	vid := w.network.VID
	if w.port.UplinkVID != 0 && w.net == w.port.Net {
		vid = w.port.UplinkVID
	}
	w.count(uplink.Slot, true, len(w.b))
	if uplink.Flags&table.UplinkCapture != 0 {
		w.capture(device, table.CaptureToGuest, table.DropNone, pushedWord(vid))
	}
	w.result.Mark = 0
	o := Output{Ifindex: device, Place: table.PlaceUplink, Tagged: vid != 0, VID: vid, Copy: isCopy}
	if vid != 0 && w.has(table.PortMark) && w.port.CoS < 8 {
		o.CoS = w.port.CoS
	}
	if !isCopy {
		w.result.Verdict = Redirected
	}
	w.output(o)
	if w.trace {
		w.say("uplink", true, "out by uplink %s, bucket %d of its team%s", w.m.names.Device(device), bucket, tagWords(vid))
	}
	return table.DropNone
}

// toTunnel sends the frame, or a copy, to another host.
func (w *walk) toTunnel(host uint32, isCopy bool) table.Reason {
	v, ok := w.m.t.VTEPs[host]
	if !ok || v.Ifindex == 0 {
		if w.trace {
			w.say("tunnel", false, "there is no tunnel to %s", w.m.names.Host(host))
		}
		return table.DropUnregistered
	}
	w.count(0, true, len(w.b))
	w.result.Mark = 0
	if !isCopy {
		w.result.Verdict = Redirected
	}
	w.output(Output{Ifindex: v.Ifindex, Place: table.PlaceTunnel, VTEP: host, Copy: isCopy})
	if w.trace {
		w.say("tunnel", true, "to %s at %s by the overlay, VNI %d", w.m.names.Host(host), v.Addr.Addr(), w.net)
	}
	return table.DropNone
}
