package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"drover/internal/vswitch/table"
)

// ErrMalformed is wrapped by errors about frames.
var ErrMalformed = errors.New("malformed frame")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// packet is what a frame says of itself, as far as it goes: frames of events are cut off.
type packet struct {
	dst, src table.MAC
	tags     []uint16 // VLANs of tags in the frame
	proto    uint16   // EtherType, or length
	body     []byte   // behind the Ethernet header and tags
	// of IP
	from, to netip.Addr
	l4       byte
	fragment bool   // not the first
	payload  []byte // behind IP and its extension headers; to the end of what there is
}

// maxExtensions is how many IPv6 extension headers the datapath walks.
const maxExtensions = 8

// parsePacket reads as far as the frame is sound. ok is false without an Ethernet header.
func parsePacket(f []byte) (p packet, ok bool) {
	if len(f) < 14 {
		return p, false
	}
	p.dst, p.src, p.proto, p.body = table.MAC(f), table.MAC(f[6:]), binary.BigEndian.Uint16(f[12:]), f[14:]
	for len(p.tags) < 4 && (p.proto == 0x8100 || p.proto == 0x88a8 || p.proto == 0x9100) && len(p.body) >= 4 {
		p.tags = append(p.tags, binary.BigEndian.Uint16(p.body)&0xfff)
		p.proto, p.body = binary.BigEndian.Uint16(p.body[2:]), p.body[4:]
	}
	switch p.proto {
	case 0x0800:
		p.parseIP4()
	case 0x86dd:
		p.parseIP6()
	}
	return p, true
}

func (p *packet) parseIP4() {
	b := p.body
	if len(b) < 20 || b[0]>>4 != 4 {
		return
	}
	p.from, p.to, p.l4 = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:])), b[9]
	p.fragment = binary.BigEndian.Uint16(b[6:])&0x1fff != 0
	if head := int(b[0]&15) * 4; head >= 20 && head <= len(b) {
		p.payload = b[head:min(len(b), max(head, int(binary.BigEndian.Uint16(b[2:]))))]
	}
}

func (p *packet) parseIP6() {
	b := p.body
	if len(b) < 40 || b[0]>>4 != 6 {
		return
	}
	p.from, p.to, p.l4 = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:])), b[6]
	rest := b[40:min(len(b), 40+int(binary.BigEndian.Uint16(b[4:])))]
	for range maxExtensions {
		size := 8
		switch p.l4 {
		default:
			p.payload = rest
			return
		case 44:
			if len(rest) >= 8 {
				p.fragment = binary.BigEndian.Uint16(rest[2:])&0xfff8 != 0
			}
		case 51:
			if len(rest) >= 2 {
				size = (int(rest[1]) + 2) * 4
			}
		case 0, 43, 60, 135, 139, 140:
			if len(rest) >= 2 {
				size = (int(rest[1]) + 1) * 8
			}
		}
		if len(rest) < max(size, 8) {
			return
		}
		p.l4 = rest[0]
		if p.fragment {
			return
		}
		rest = rest[size:]
	}
}

// udp returns ports and payload of a whole UDP packet. In what is cut off the payload is what there is.
func (p *packet) udp() (sport, dport uint16, payload []byte, ok bool) {
	if p.l4 != 17 || p.fragment || len(p.payload) < 8 {
		return 0, 0, nil, false
	}
	b := p.payload
	n := max(8, int(binary.BigEndian.Uint16(b[4:])))
	return binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), b[8:min(n, len(b))], true
}

func macText(m table.MAC) string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}
