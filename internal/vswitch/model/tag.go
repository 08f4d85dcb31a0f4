package model

import (
	"encoding/binary"

	"drover/internal/vswitch/table"
)

const tpid = 0x8100

func isTag(t uint16) bool { return t == tpid || t == 0x88a8 || t == 0x9100 }

// tag is the outer tag of a frame.
type tag struct {
	vid     uint16
	proto   uint16 // its EtherType; 0: no tag
	inFrame bool
	twice   bool // a tag behind the tag
}

// word is a tag as records of the rings have it.
func (t tag) word() uint16 {
	if t.proto == 0 {
		return 0
	}
	return vidWord(t.vid)
}

func vidWord(vid uint16) uint16 {
	return 0x1000 | vid
}

// beside is the tag for captures of the frame as it came in: it is told only when the bytes don't have it.
func (t tag) beside() uint16 {
	if t.inFrame {
		return 0
	}
	return t.word()
}

// ethernet reads the addresses, the EtherType and the tag.
func (w *walk) ethernet() table.Reason {
	if len(w.b) < etherLen {
		return w.short()
	}
	w.dst, w.src = table.MAC(w.b[:6]), table.MAC(w.b[6:12])
	w.proto = binary.BigEndian.Uint16(w.b[12:])
	if isGroup(w.src) {
		if w.trace {
			w.say("source-mac", false, "source MAC %s is a group address: nobody can have it", text(w.src))
		}
		return table.DropSourceMulticast
	}
	switch {
	case w.f.Tag.Present:
		w.tag = tag{vid: w.f.Tag.VID & 0xfff, proto: w.f.Tag.TPID}
	case isTag(w.proto):
		if len(w.b) < etherLen+4 {
			return w.short()
		}
		w.tag = tag{vid: binary.BigEndian.Uint16(w.b[14:]) & 0xfff, proto: w.proto, inFrame: true}
		w.proto = binary.BigEndian.Uint16(w.b[16:])
	}
	w.tag.twice = w.tag.proto != 0 && isTag(w.proto)
	return table.DropNone
}

func (w *walk) short() table.Reason {
	if w.trace {
		w.say("frame", false, "%d bytes are too short for an Ethernet header", len(w.b))
	}
	return table.DropMalformed
}

// takeTag takes the tag off the frame.
func (w *walk) takeTag() {
	if !w.tag.inFrame {
		return
	}
	b := make([]byte, 0, len(w.b)-4)
	b = append(b, w.b[:12]...)
	w.b = append(b, w.b[16:]...)
}

// portNetwork is rule 3 of a port.
func (w *walk) portNetwork() table.Reason {
	deny := func(r table.Reason, format string, args ...any) table.Reason {
		if w.trace {
			w.say("tag", false, format, args...)
		}
		return r
	}
	if w.tag.proto == 0 {
		if w.port.Net == 0 {
			return deny(table.DropVLAN, "untagged, and the trunk has no native VLAN")
		}
		w.net = w.port.Net
		if w.trace {
			w.say("tag", true, "untagged: %s", w.m.names.Network(w.net))
		}
		return table.DropNone
	}
	switch {
	case w.tag.twice:
		return deny(table.DropDoubleTag, "two VLAN tags: %d outside", w.tag.vid)
	case !w.has(table.PortTrunk):
		return deny(table.DropTagged, "tagged with VLAN %d, and the port is no trunk", w.tag.vid)
	case w.tag.vid == 0:
		return deny(table.DropTagged, "a priority tag (VLAN 0)")
	case w.tag.proto != tpid:
		return deny(table.DropTagged, "tagged with EtherType 0x%04x: it has to be 0x8100", w.tag.proto)
	}
	net, ok := w.m.t.Trunks[table.TrunkKey{Ifindex: w.ifindex, VID: uint32(w.tag.vid)}]
	if !ok {
		return deny(table.DropVLAN, "VLAN %d is not allowed on this trunk", w.tag.vid)
	}
	w.net = net
	w.takeTag()
	if w.trace {
		w.say("tag", true, "VLAN %d of the trunk: %s", w.tag.vid, w.m.names.Network(net))
	}
	return table.DropNone
}
