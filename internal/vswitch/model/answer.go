package model

import (
	"encoding/binary"
	"fmt"

	"drover/internal/vswitch/table"
)

// answered is rule 10: it turns a question into its answer, if the switch knows it.
func (w *walk) answered() bool {
	if w.network.Flags&table.NetworkProxy == 0 || w.has(table.PortNoProxy) {
		return false
	}
	var b []byte
	var target table.IP
	switch w.proto {
	case typeARP:
		b, target = w.answerARP()
	case typeIP6:
		b, target = w.answerND()
	}
	if b == nil {
		return false
	}
	w.b = b
	w.result.Verdict, w.result.Mark = Answered, table.Mark
	w.count(w.slot, true, len(b))
	if w.captured {
		w.capture(w.ifindex, table.CaptureToGuest, table.DropNone, w.tag.word())
	}
	w.result.Outputs = append(w.result.Outputs, Output{Ifindex: w.ifindex, Place: table.PlaceLocal, Tagged: w.tag.proto != 0, VID: w.tag.vid, Bytes: b})
	if w.trace {
		w.say("answer", true, "the switch answers for %s, which is at %s", target.Addr(), text(table.MAC(b[6:12])))
	}
	return true
}

// holder is who has an address, other than the asker.
func (w *walk) holder(a table.IP) (table.MAC, bool) {
	b, ok := w.binding(a)
	return b.MAC, ok && b.MAC != w.src
}

func (w *walk) answerARP() ([]byte, table.IP) {
	if len(w.b) < etherLen+28 || [8]byte(w.b[14:22]) != [8]byte{0, 1, 8, 0, 6, 4, 0, 1} {
		return nil, table.IP{}
	}
	target := ip4(w.b[38:42])
	owner, ok := w.holder(target)
	if !ok {
		return nil, target
	}
	b := append([]byte(nil), w.b...)
	copy(b, w.src[:])
	copy(b[6:], owner[:])
	b[21] = 2
	copy(b[22:], owner[:])
	copy(b[28:], w.b[38:42])
	copy(b[32:], w.b[22:32])
	return b, target
}

// answerND leaves link-local targets to their owner: only it knows whether it is a router (RFC 4861, 7.2.5).
func (w *walk) answerND() ([]byte, table.IP) {
	p := &w.p
	if !w.isICMP6() || p.icmp != 135 || p.fragment != 0 || p.l4Offset != etherLen+40 || p.hopLimit != 255 ||
		binary.BigEndian.Uint16(w.b[etherLen+4:]) < 24 || len(w.b) < p.l4Offset+24 || w.b[p.l4Offset+1] != 0 {
		return nil, table.IP{}
	}
	target := table.IP(w.b[p.l4Offset+8 : p.l4Offset+24])
	if target[0] == 0xfe && target[1]&0xc0 == 0x80 || target.Addr().Is4() { // ::ffff:a.b.c.d is a row of IPv4
		return nil, target
	}
	owner, ok := w.holder(target)
	if !ok {
		return nil, target
	}
	dst, to, flags := w.src, p.src, byte(0x60) // solicited, override
	if p.src == unspecified6 {
		// It looks for duplicates and has no address yet: all nodes are told.
		dst, to, flags = table.MAC{0x33, 0x33, 0, 0, 0, 1}, table.IP{0: 0xff, 1: 2, 15: 1}, 0x20
	}
	message := append([]byte{136, 0, 0, 0, flags, 0, 0, 0}, target[:]...)
	message = append(append(message, 2, 1), owner[:]...)
	sum := uint32(len(message) + protoICMP6)
	for _, part := range [][]byte{target[:], to[:], message} {
		for ; len(part) > 0; part = part[2:] {
			sum += uint32(binary.BigEndian.Uint16(part))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	if sum = ^sum & 0xffff; sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(message[2:], uint16(sum))
	b := append([]byte(nil), dst[:]...)
	b = append(b, owner[:]...)
	b = append(b, 0x86, 0xdd)
	b = append(b, w.b[etherLen:etherLen+4]...)
	b = append(b, 0, byte(len(message)), protoICMP6, 255)
	b = append(b, target[:]...)
	b = append(b, to[:]...)
	return append(b, message...), target
}

// limit is a bucket in words.
func (w *walk) limit(which int, unit string) string {
	m := w.m.t.Meters[w.slot]
	b := bucketOf(&m, which)
	if b.Rate == 0 {
		return "no limit"
	}
	return fmt.Sprintf("%d %s a second, %d at once", b.Rate, unit, b.Burst)
}
