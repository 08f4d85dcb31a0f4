package guard

import (
	"fmt"
	"net/netip"
	"time"

	"drover/internal/vswitch/table"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
)

// verb is what a DHCP message does to leases.
type verb int

const (
	verbNone    verb = iota // discover, offer, solicit, …
	verbRequest             // a client wants an address (v4)
	verbGrant               // a server gives addresses, or takes them back: those with no lifetime
	verbRefuse              // a server says no (v4)
	verbRelease             // a client gives addresses back, or does not want them
)

// grant is an address and for how long it is given; infinite is negative, 0 takes it back.
type grant struct {
	addr netip.Addr
	life time.Duration
}

const infinite = -1

// message is what is kept of a DHCP message.
type message struct {
	six    bool
	verb   verb
	xid    uint32
	mac    table.MAC // v4: the client's; v6: the frame's destination, or source if a client sent it
	grants []grant   // verbRelease and verbRequest: addresses without lifetime
}

// parseMessage reads a DHCP message out of a frame. server says that a server should have sent it.
func parseMessage(frame []byte, server bool) (message, error) {
	p, ok := parsePacket(frame)
	if !ok {
		return message{}, malformed("%d bytes", len(frame))
	}
	sport, dport, payload, ok := p.udp()
	if !ok {
		return message{}, malformed("no UDP packet")
	}
	far := dport
	if server {
		far = sport
	}
	switch {
	case p.from.Is4() && far == 67:
		return parse4(payload, server)
	case p.from.Is6() && far == 547:
		m, err := parse6(payload, server)
		if m.mac = p.src; server {
			m.mac = p.dst
		}
		return m, err
	}
	return message{}, malformed("UDP from port %d to %d is no DHCP", sport, dport)
}

func parse4(b []byte, server bool) (message, error) {
	d, err := dhcpv4.FromBytes(b)
	if err != nil {
		return message{}, fmt.Errorf("%w: DHCPv4: %w", ErrMalformed, err)
	}
	m := message{xid: uint32(d.TransactionID[0])<<24 | uint32(d.TransactionID[1])<<16 | uint32(d.TransactionID[2])<<8 | uint32(d.TransactionID[3])}
	if len(d.ClientHWAddr) != 6 {
		return m, malformed("DHCPv4 for a client MAC of %d bytes", len(d.ClientHWAddr))
	}
	m.mac = table.MAC(d.ClientHWAddr)
	if server != (d.OpCode == dhcpv4.OpcodeBootReply) {
		return m, malformed("DHCPv4 operation %d in the wrong direction", d.OpCode)
	}
	add := func(b []byte, life time.Duration) {
		if a, ok := netip.AddrFromSlice(b); ok && a.Unmap().Is4() && !a.IsUnspecified() {
			m.grants = append(m.grants, grant{a.Unmap(), life})
		}
	}
	switch d.MessageType() {
	case dhcpv4.MessageTypeRequest:
		m.verb = verbRequest
		if add(d.RequestedIPAddress(), 0); len(m.grants) == 0 {
			add(d.ClientIPAddr, 0)
		}
	case dhcpv4.MessageTypeRelease:
		m.verb = verbRelease
		add(d.ClientIPAddr, 0)
	case dhcpv4.MessageTypeDecline:
		m.verb = verbRelease
		add(d.RequestedIPAddress(), 0)
	case dhcpv4.MessageTypeAck:
		m.verb = verbGrant
		// An answer to an INFORM has neither address nor time (RFC 2131 4.3.5).
		life := d.IPAddressLeaseTime(0)
		if life >= 0xffffffff*time.Second {
			life = infinite
		}
		if life != 0 {
			add(d.YourIPAddr, life)
		}
	case dhcpv4.MessageTypeNak:
		m.verb = verbRefuse
	}
	if server != (m.verb == verbGrant || m.verb == verbRefuse) {
		m.verb = verbNone
	}
	return m, nil
}

func parse6(b []byte, server bool) (message, error) {
	d, err := dhcpv6.MessageFromBytes(b)
	if err != nil {
		return message{six: true}, fmt.Errorf("%w: DHCPv6: %w", ErrMalformed, err)
	}
	m := message{six: true}
	switch {
	case server && d.MessageType == dhcpv6.MessageTypeReply:
		m.verb = verbGrant
	case !server && (d.MessageType == dhcpv6.MessageTypeRelease || d.MessageType == dhcpv6.MessageTypeDecline):
		m.verb = verbRelease
	default:
		return m, nil
	}
	add := func(addrs []*dhcpv6.OptIAAddress) {
		for _, o := range addrs {
			a, ok := netip.AddrFromSlice(o.IPv6Addr)
			if !ok || !a.Is6() || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() {
				continue
			}
			life := o.ValidLifetime
			if life >= 0xffffffff*time.Second {
				life = infinite
			}
			m.grants = append(m.grants, grant{a, life})
		}
	}
	for _, ia := range d.Options.IANA() {
		add(ia.Options.Addresses())
	}
	for _, ia := range d.Options.IATA() {
		add(ia.Options.Addresses())
	}
	return m, nil
}
