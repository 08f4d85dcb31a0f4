package snoop

import (
	"encoding/binary"
	"time"
)

// pim is the IP protocol number of Protocol Independent Multicast.
const pim = 103

// Times of PIM's hellos, RFC 7761 4.3.3 and 4.9.2.
const (
	defaultHold = 105 * time.Second
	foreverHold = 0xffff
	mostHold    = time.Hour // of one that wants to be believed for ever: it says hello again long before
)

// hello reads what multicast routers say of themselves. Other messages of PIM say nothing here.
func (m *Message) hello(p []byte) error {
	if len(p) < 4 || p[0]>>4 != 2 {
		return malformed("PIM of %d bytes, or not of version 2", len(p))
	}
	if p[0]&15 != 0 {
		return nil
	}
	m.Hello, m.Hold = true, defaultHold
	for o := p[4:]; len(o) > 0; {
		if len(o) < 4 || len(o)-4 < int(binary.BigEndian.Uint16(o[2:])) {
			return malformed("PIM with an option that is cut off")
		}
		size := int(binary.BigEndian.Uint16(o[2:]))
		if binary.BigEndian.Uint16(o) == 1 && size == 2 {
			m.Hold = time.Duration(binary.BigEndian.Uint16(o[4:])) * time.Second
			if m.Hold == foreverHold*time.Second {
				m.Hold = mostHold
			}
		}
		o = o[4+size:]
	}
	return nil
}
