package model

import (
	"encoding/binary"
	"slices"

	"drover/internal/vswitch/table"
)

// EtherTypes.
const (
	typeIP4 = 0x0800
	typeARP = 0x0806
	typeIP6 = 0x86dd
)

// Protocols.
const (
	protoIGMP  = 2
	protoTCP   = 6
	protoUDP   = 17
	protoICMP6 = 58
	protoPIM   = 103
	protoVRRP  = 112
)

const (
	etherLen      = 14
	maxExtensions = 8
)

// extensions are the IPv6 extension headers that are walked.
var extensions = []uint8{0, 43, 44, 51, 60, 135, 139, 140}

func isExtension(n uint8) bool { return slices.Contains(extensions, n) }

// parse reads the network header and the start of the upper layer's, once.
func (w *walk) parse() table.Reason {
	if w.parsed {
		return w.fault
	}
	w.parsed = true
	switch w.proto {
	case typeIP4:
		w.fault = w.parse4()
	case typeIP6:
		w.fault = w.parse6()
	}
	if w.fault != table.DropNone {
		w.p.family = 0
	}
	return w.fault
}

func (w *walk) parse4() table.Reason {
	p, h := &w.p, w.b[etherLen:]
	if len(h) < 20 {
		return table.DropMalformed
	}
	header := int(h[0]&15) * 4
	if h[0]>>4 != 4 || header < 20 || header > len(h) {
		return table.DropMalformed
	}
	p.end = len(w.b)
	if w.f.GSOSize == 0 {
		total := int(binary.BigEndian.Uint16(h[2:]))
		if total < header || total > len(h) {
			return table.DropMalformed
		}
		p.end = etherLen + total
	}
	fragment := binary.BigEndian.Uint16(h[6:])
	switch {
	case fragment&0x1fff != 0:
		p.fragment = 2
	case fragment&0x2000 != 0:
		p.fragment = 1
	}
	p.family, p.l4, p.hopLimit, p.l4Offset = 4, h[9], h[8], etherLen+header
	p.src, p.dst = ip4(h[12:16]), ip4(h[16:20])
	return w.parseUpper()
}

func (w *walk) parse6() table.Reason {
	p, h := &w.p, w.b[etherLen:]
	if len(h) < 40 || h[0]>>4 != 6 {
		return table.DropMalformed
	}
	p.end = len(w.b)
	payload := int(binary.BigEndian.Uint16(h[4:]))
	// 0 before hop-by-hop options is a jumbogram (RFC 2675).
	if w.f.GSOSize == 0 && (payload != 0 || h[6] != 0) {
		if payload > len(h)-40 {
			return table.DropMalformed
		}
		p.end = etherLen + 40 + payload
	}
	p.family, p.l4, p.hopLimit, p.l4Offset = 6, h[6], h[7], etherLen+40
	p.src, p.dst = table.IP(h[8:24]), table.IP(h[24:40])
	if r := w.walkExtensions(); r != table.DropNone {
		return r
	}
	return w.parseUpper()
}

// walkExtensions goes behind the extension headers of IPv6.
func (w *walk) walkExtensions() table.Reason {
	p := &w.p
	cut := func() table.Reason {
		if p.fragment != 0 {
			return table.DropFragment
		}
		return table.DropMalformed
	}
	for range maxExtensions {
		if !isExtension(p.l4) {
			return table.DropNone
		}
		at := p.l4Offset
		if at+8 > p.end {
			return cut()
		}
		h := w.b[at:]
		switch p.l4 {
		case 44:
			if p.fragment != 0 { // fragments of fragments hide what they carry
				return table.DropFragment
			}
			p.l4, p.l4Offset, p.fragment = h[0], at+8, 1
			if binary.BigEndian.Uint16(h[2:])&0xfff8 != 0 {
				p.fragment = 2
				return table.DropNone
			}
		case 51:
			p.l4, p.l4Offset = h[0], at+(int(h[1])+2)*4
		default:
			p.l4, p.l4Offset = h[0], at+(int(h[1])+1)*8
		}
		if p.l4Offset > p.end {
			return cut()
		}
	}
	if isExtension(p.l4) {
		return table.DropFragment
	}
	return table.DropNone
}

// upperBytes is how much of an upper-layer header a first fragment must hold (RFC 7112).
func (p *packet) upperBytes() int {
	switch {
	case p.family == 4 && (p.l4 == protoTCP || p.l4 == protoUDP):
		return 4
	case p.family == 6 && p.l4 == protoTCP:
		return 20
	case p.family == 6 && (p.l4 == protoUDP || p.l4 == protoICMP6):
		return 8
	}
	return 0
}

func (w *walk) parseUpper() table.Reason {
	p := &w.p
	if p.fragment == 2 {
		return table.DropNone
	}
	if p.fragment == 1 && p.l4Offset+p.upperBytes() > p.end {
		return table.DropFragment
	}
	if p.l4Offset+4 > p.end {
		return table.DropNone
	}
	h := w.b[p.l4Offset:]
	switch {
	case p.l4 == protoTCP || p.l4 == protoUDP:
		p.sport, p.dport = binary.BigEndian.Uint16(h), binary.BigEndian.Uint16(h[2:])
	case p.l4 == protoICMP6 && p.family == 6:
		p.icmp = h[0]
		if p.fragment == 1 && p.icmp >= 133 && p.icmp <= 137 { // RFC 6980
			return table.DropFragment
		}
	}
	return table.DropNone
}

// udp says whether the frame is a UDP datagram with ports.
func (w *walk) udp() bool {
	return w.parse() == table.DropNone && w.p.family != 0 && w.p.l4 == protoUDP && w.p.fragment != 2
}

// isICMP6 says whether the frame has an ICMPv6 header.
func (w *walk) isICMP6() bool {
	return w.parse() == table.DropNone && w.p.family == 6 && w.p.l4 == protoICMP6 && w.p.fragment != 2
}
