package model

import "drover/internal/vswitch/table"

// late says whether a checksum that others are yet to write is where no guard looks. It is the guest that names the place.
func (w *walk) late() table.Reason {
	at := w.f.Checksum
	least := etherLen
	if w.proto < 0x600 {
		least += 8 // LLC and SNAP
	}
	if at == 0 || w.proto != typeARP && at >= least && at < len(w.b) {
		return table.DropNone
	}
	return w.misplaced()
}

// lateIP is the same for a parsed IP packet: the place is the upper layer's own, or behind its header.
func (w *walk) lateIP() table.Reason {
	p, at := &w.p, w.f.Checksum
	if at == 0 {
		return table.DropNone
	}
	ok := at >= p.l4Offset
	if p.fragment != 2 {
		switch p.l4 {
		case protoTCP:
			ok = at == p.l4Offset+16
		case protoUDP:
			ok = at == p.l4Offset+6 || at >= p.l4Offset+8 && p.dport != 67
		case protoICMP6:
			ok = at == p.l4Offset+2
		}
	}
	if ok {
		return table.DropNone
	}
	return w.misplaced()
}

func (w *walk) misplaced() table.Reason {
	if w.trace {
		w.say("checksum", false, "a checksum is to be written over byte %d, which is no checksum's place", w.f.Checksum)
	}
	return table.DropMalformed
}
