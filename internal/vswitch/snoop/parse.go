package snoop

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"drover/internal/vswitch/inet"
)

// Message is what one frame says.
type Message struct {
	Six    bool
	Source netip.Addr // of the packet
	// Query: somebody asks. Group is invalid in a general query.
	Query   bool
	Group   netip.Addr
	MaxResp time.Duration
	// Old: IGMPv1, v2 or MLDv1, whose hosts keep their report back if they hear another's for the same group.
	Old     bool
	Records []Record
	// Hello: a multicast router is there, for as long as Hold (PIM, RFC 7761); 0: it goes.
	Hello bool
	Hold  time.Duration
}

// Record is a wish for a group.
type Record struct {
	Group netip.Addr
	Join  bool // else: leave
}

// ErrMalformed is wrapped by all errors of Parse.
var ErrMalformed = errors.New("malformed multicast group message")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// Parse reads a frame without tag. Groups that are never filtered are left out of the records.
func Parse(frame []byte) (Message, error) {
	if len(frame) < 14 {
		return Message{}, malformed("%d bytes", len(frame))
	}
	b := frame[14:]
	switch binary.BigEndian.Uint16(frame[12:]) {
	case 0x0800:
		return parseIP4(b)
	case 0x86dd:
		return parseIP6(b)
	}
	return Message{}, malformed("neither IPv4 nor IPv6")
}

func parseIP4(b []byte) (Message, error) {
	if len(b) < 20 || b[0]>>4 != 4 || b[9] != 2 && b[9] != pim {
		return Message{}, malformed("neither IGMP nor PIM")
	}
	head, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if head < 20 || total < head+8 || total > len(b) || binary.BigEndian.Uint16(b[6:])&0x3fff != 0 {
		return Message{}, malformed("%d bytes of which %d are header, or a fragment", total, head)
	}
	m := Message{Source: netip.AddrFrom4([4]byte(b[12:]))}
	p := b[head:total]
	if inet.Checksum(p) != 0 {
		return m, malformed("a wrong checksum")
	}
	if b[9] == pim {
		return m, m.hello(p)
	}
	group := netip.AddrFrom4([4]byte(p[4:]))
	switch p[0] {
	case 0x11:
		m.Query = true
		switch {
		case len(p) >= 12:
			m.MaxResp = float8(p[1]) * 100 * time.Millisecond
		case p[1] == 0: // version 1
			m.MaxResp = 10 * time.Second
		default:
			m.MaxResp = time.Duration(p[1]) * 100 * time.Millisecond
		}
		if !group.IsUnspecified() {
			if !group.IsMulticast() {
				return m, malformed("query for %v", group)
			}
			m.Group = group
		}
	case 0x12, 0x16:
		m.Old = true
		m.add(group, true)
	case 0x17:
		m.Old = true
		m.add(group, false)
	case 0x22:
		return m, m.records(p, 4)
	default:
		return m, malformed("IGMP type %#x", p[0])
	}
	return m, nil
}

func parseIP6(b []byte) (Message, error) {
	if len(b) < 40 || b[0]>>4 != 6 || b[7] != 1 {
		return Message{}, malformed("no IPv6, or a hop limit other than 1")
	}
	m := Message{Six: true, Source: netip.AddrFrom16([16]byte(b[8:]))}
	dst := netip.AddrFrom16([16]byte(b[24:]))
	size, next := int(binary.BigEndian.Uint16(b[4:])), b[6]
	if size > len(b)-40 {
		return m, malformed("IPv6 payload of %d bytes, %d left", size, len(b)-40)
	}
	p := b[40 : 40+size]
	if next == 0 && len(p) >= 8 { // hop by hop: the router alert
		skip := (int(p[1]) + 1) * 8
		if skip > len(p) {
			return m, malformed("options of %d bytes, %d left", skip, len(p))
		}
		next, p = p[0], p[skip:]
	}
	if next == pim {
		if inet.TransportChecksum(m.Source, dst, pim, p) != 0 {
			return m, malformed("PIM with a wrong checksum")
		}
		return m, m.hello(p)
	}
	if next != inet.ICMPv6 || len(p) < 8 {
		return m, malformed("no MLD")
	}
	if inet.TransportChecksum(m.Source, dst, inet.ICMPv6, p) != 0 {
		return m, malformed("MLD with a wrong checksum")
	}
	if p[0] == 143 {
		return m, m.records(p, 16)
	}
	if len(p) < 24 {
		return m, malformed("MLD of %d bytes", len(p))
	}
	group := netip.AddrFrom16([16]byte(p[8:]))
	switch p[0] {
	case 130:
		if !m.Source.IsLinkLocalUnicast() {
			return m, malformed("query from %v, which is not link-local", m.Source)
		}
		m.Query = true
		code := binary.BigEndian.Uint16(p[4:])
		m.MaxResp = time.Duration(code) * time.Millisecond
		if len(p) >= 28 && code >= 0x8000 { // RFC 3810 5.1.3
			m.MaxResp = time.Duration(code&0xfff|0x1000) << (code>>12&7 + 3) * time.Millisecond
		}
		if !group.IsUnspecified() {
			if !group.IsMulticast() {
				return m, malformed("query for %v", group)
			}
			m.Group = group
		}
	case 131, 132:
		m.Old = true
		m.add(group, p[0] == 131)
	default:
		return m, malformed("ICMPv6 type %d", p[0])
	}
	return m, nil
}

// float8 is a code of RFC 3376 4.1.1.
func float8(code byte) time.Duration {
	if code < 0x80 {
		return time.Duration(code)
	}
	return time.Duration(code&0xf|0x10) << (code>>4&7 + 3)
}

// records reads the group records of IGMPv3 and MLDv2, which differ in the length of addresses.
func (m *Message) records(p []byte, size int) error {
	count := int(binary.BigEndian.Uint16(p[6:]))
	p = p[8:]
	for range count {
		if len(p) < 4+size {
			return malformed("group record of %d bytes", len(p))
		}
		kind, sources := p[0], int(binary.BigEndian.Uint16(p[2:]))
		length := 4 + size + sources*size + int(p[1])*4
		if length > len(p) {
			return malformed("group record of %d bytes, %d left", length, len(p))
		}
		group, _ := netip.AddrFromSlice(p[4 : 4+size])
		p = p[length:]
		switch kind {
		case 1, 3: // include these sources: none of them means nothing at all
			m.add(group, sources > 0)
		case 2, 4: // exclude
			m.add(group, true)
		case 5: // allow
			if sources > 0 {
				m.add(group, true)
			}
		}
		// 6, block, says nothing of what is left; the next query will.
	}
	return nil
}

func (m *Message) add(group netip.Addr, join bool) {
	if Filtered(group) {
		m.Records = append(m.Records, Record{group, join})
	}
}

var (
	local4    = netip.MustParsePrefix("224.0.0.0/24")
	solicited = netip.MustParsePrefix("ff02::1:ff00:0/104")
	allNodes  = netip.MustParseAddr("ff02::1")
	routers   = netip.MustParseAddr("ff02::2")
)

// Filtered says whether a group's frames go to members only; the datapath has the same rule.
func Filtered(group netip.Addr) bool {
	if !group.IsMulticast() || group.IsInterfaceLocalMulticast() {
		return false
	}
	return !local4.Contains(group) && !solicited.Contains(group) && group != allNodes && group != routers
}
