package guard

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"drover/internal/vswitch/frame"
	"drover/internal/vswitch/table"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Names says what things are called. Empty strings: not known.
type Names interface {
	// Device is what an event's device is called: "web/net0" for a port, with isPort; "uplink eth1".
	Device(ifindex uint32) (name string, isPort bool)
	// Network is a network's name.
	Network(net uint32) string
	// Holder is the port that an address belongs to in the network: "db/net0".
	Holder(net uint32, addr netip.Addr) string
	// Station is the port whose MAC this is in the network.
	Station(net uint32, mac table.MAC) string
}

// claim says in words what a frame did that it may not do: "claims 10.0.0.1, which belongs to db/net0". It follows the port's name.
type claim struct {
	e     *table.Event
	p     packet
	whole bool // the frame has an Ethernet header
	names Names
	port  string
}

func (c *claim) text() string {
	switch c.e.Reason {
	case table.DropARP:
		return c.arp()
	case table.DropND:
		return c.nd()
	case table.DropSourceIP:
		if c.p.from.IsValid() {
			return fmt.Sprintf("sends as %s", c.address(c.p.from))
		}
	case table.DropSourceMAC:
		if c.whole {
			return fmt.Sprintf("sends from MAC %s", c.station(c.p.src))
		}
	case table.DropNewMAC:
		if c.whole {
			return fmt.Sprintf("wants to use MAC %s as well", c.station(c.p.src))
		}
	case table.DropDHCPServer:
		return c.dhcp()
	case table.DropRA:
		return c.ra()
	case table.DropVirtualRouter:
		return c.router()
	case table.DropBPDU:
		return "sends spanning tree frames"
	case table.DropL2Control:
		return "sends switch control frames: " + c.summary()
	case table.DropTagged, table.DropDoubleTag, table.DropVLAN:
		return c.tag()
	case table.DropFragment:
		return "sends fragments or headers that hide what is in them: " + c.summary()
	case table.DropMalformed:
		return "sends malformed frames: " + c.summary()
	case table.DropSourceMulticast:
		if c.whole {
			return fmt.Sprintf("sends from the group address %s", macText(c.p.src))
		}
	case table.DropDHCPClient:
		return c.client()
	case table.DropDHCPRate:
		return "sends more DHCP requests than it may"
	case table.DropStormBroadcast:
		return "sends more broadcasts than it may: " + c.summary()
	case table.DropStormMulticast:
		return "sends more multicasts than it may: " + c.summary()
	case table.DropStormUnknown:
		return "sends more frames to addresses that nobody has than it may"
	case table.DropMTU:
		return fmt.Sprintf("sends frames larger than the network's MTU: %d bytes", c.e.Length)
	case table.DropUnmarked:
		return "is sent frames by something on this host that is not the switch: " + c.summary()
	case table.DropVTEP:
		return "gets overlay packets from an address that is no host's, or unencrypted ones of an encrypted network"
	}
	return c.e.Reason.Text() + ": " + c.summary()
}

// summary is the frame in a line, as far as the event has it.
func (c *claim) summary() string {
	return frame.Summary(c.e.Data[:min(int(c.e.Captured), len(c.e.Data))])
}

// address is an address and whose it is.
func (c *claim) address(a netip.Addr) string {
	a = a.Unmap()
	switch h := c.names.Holder(c.e.Net, a); {
	case h == c.port:
		return fmt.Sprintf("%s, which is its own, but not with this MAC", a)
	case h != "":
		return fmt.Sprintf("%s, which belongs to %s", a, h)
	}
	return fmt.Sprintf("%s, which is not bound to it", a)
}

func (c *claim) station(m table.MAC) string {
	switch h := c.names.Station(c.e.Net, m); {
	case h != "" && h != c.port:
		return fmt.Sprintf("%s, which belongs to %s", macText(m), h)
	case virtualMAC(m):
		return fmt.Sprintf("%s, which is a virtual router's", macText(m))
	}
	return fmt.Sprintf("%s, which is not registered for it", macText(m))
}

func (c *claim) arp() string {
	b := c.p.body
	if c.p.proto != 0x0806 || len(b) < 28 {
		return "sends ARP that is cut off"
	}
	op := binary.BigEndian.Uint16(b[6:])
	if binary.BigEndian.Uint16(b) != 1 || binary.BigEndian.Uint16(b[2:]) != 0x0800 || b[4] != 6 || b[5] != 4 || (op != 1 && op != 2) {
		return "sends ARP of a kind that IPv4 on Ethernet has no use for"
	}
	sender, addr := table.MAC(b[8:14]), netip.AddrFrom4([4]byte(b[14:18]))
	if sender != c.p.src {
		return fmt.Sprintf("says by ARP that %s is at %s, but sends from %s", addr, macText(sender), macText(c.p.src))
	}
	return fmt.Sprintf("claims by ARP %s", c.address(addr))
}

func (c *claim) nd() string {
	b := c.p.payload
	if c.p.l4 != 58 || c.p.fragment || len(b) < 4 {
		return "sends neighbour discovery that is cut off"
	}
	if b[0] == 136 && len(b) >= 24 {
		target := netip.AddrFrom16([16]byte(b[8:24]))
		if h := c.names.Holder(c.e.Net, target.Unmap()); h == c.port && h != "" {
			return fmt.Sprintf("advertises %s with a MAC or options that are not its own", target)
		}
		return fmt.Sprintf("claims by neighbour discovery %s", c.address(target))
	}
	if h := c.names.Holder(c.e.Net, c.p.from.Unmap()); c.p.from.IsUnspecified() || (h == c.port && h != "") {
		return fmt.Sprintf("sends neighbour discovery from %s with a MAC or options that are not its own", c.p.from)
	}
	return fmt.Sprintf("asks by neighbour discovery as %s", c.address(c.p.from))
}

func (c *claim) dhcp() string {
	const words = "answers DHCP as if it were a server"
	sport, _, payload, ok := c.p.udp()
	switch {
	case !ok:
		return words
	case c.p.from.Is6():
		return fmt.Sprintf("%s, from %s", words, c.p.from)
	case sport == 67 && len(payload) >= 20 && payload[0] == byte(dhcpv4.OpcodeBootReply):
		if a := netip.AddrFrom4([4]byte(payload[16:20])); !a.IsUnspecified() {
			return fmt.Sprintf("%s: %s offers %s", words, c.p.from, a)
		}
	}
	return fmt.Sprintf("%s, from %s", words, c.p.from)
}

func (c *claim) client() string {
	if _, _, b, ok := c.p.udp(); ok && len(b) >= 34 {
		client, relay := netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[24:28]))
		switch {
		case table.MAC(b[28:34]) != c.p.src:
			return fmt.Sprintf("asks by DHCP for an address of %s, but sends from %s", c.station(table.MAC(b[28:34])), macText(c.p.src))
		case !relay.IsUnspecified():
			return fmt.Sprintf("asks by DHCP as the relay %s", relay)
		case !client.IsUnspecified():
			return fmt.Sprintf("asks by DHCP as %s", c.address(client))
		}
	}
	return "sends DHCP requests that are cut off"
}

func (c *claim) ra() string {
	b := c.p.payload
	if c.p.l4 == 58 && len(b) > 0 && b[0] == 137 {
		return fmt.Sprintf("sends ICMPv6 redirects from %s", c.p.from)
	}
	if c.p.l4 == 58 && len(b) > 0 && b[0] == 134 {
		// Options begin behind 16 bytes; a prefix (3) is 32 bytes long.
		for o := b[min(16, len(b)):]; len(o) >= 8 && o[1] != 0; o = o[min(len(o), int(o[1])*8):] {
			if o[0] == 3 && len(o) >= 32 && o[2] <= 128 {
				if prefix, err := netip.AddrFrom16([16]byte(o[16:32])).Prefix(int(o[2])); err == nil {
					return fmt.Sprintf("advertises itself as a router for %s, from %s", prefix, c.p.from)
				}
			}
		}
	}
	return fmt.Sprintf("advertises itself as an IPv6 router, from %s", c.p.from)
}

func (c *claim) router() string {
	if c.whole && virtualMAC(c.p.src) {
		return fmt.Sprintf("sends from the virtual router's MAC %s", macText(c.p.src))
	}
	if c.p.proto == 0x0806 && len(c.p.body) >= 18 {
		return fmt.Sprintf("says by ARP that %s is at the virtual router's MAC %s", netip.AddrFrom4([4]byte(c.p.body[14:18])), macText(table.MAC(c.p.body[8:14])))
	}
	what := "VRRP or CARP"
	if _, dport, _, ok := c.p.udp(); ok {
		if what = "HSRP"; dport == 3222 {
			what = "GLBP"
		}
	} else if c.p.l4 == 58 {
		return fmt.Sprintf("names a virtual router's MAC in neighbour discovery, from %s", c.p.from)
	}
	return fmt.Sprintf("speaks %s, from %s", what, c.p.from)
}

func (c *claim) tag() string {
	vids := c.p.tags
	if c.e.VID&0x1000 != 0 && (len(vids) == 0 || vids[0] != c.e.VID&0xfff) {
		vids = append([]uint16{c.e.VID & 0xfff}, vids...)
	}
	switch {
	case len(vids) == 0 && c.e.Reason == table.DropVLAN:
		return "sends untagged frames, but its trunk has no native VLAN"
	case len(vids) == 0:
		return "sends tagged frames"
	case len(vids) > 1 && c.e.Reason == table.DropDoubleTag:
		return fmt.Sprintf("sends frames with two tags, VLAN %d in VLAN %d", vids[1], vids[0])
	case vids[0] == 0:
		return "sends frames with a priority tag (VLAN 0)"
	case c.e.Reason == table.DropVLAN:
		return fmt.Sprintf("sends frames tagged with VLAN %d, which its trunk does not carry", vids[0])
	}
	return fmt.Sprintf("sends frames tagged with VLAN %d, but may not tag", vids[0])
}

// virtualMAC tells MACs that virtual routers share, as bpf/bound.h does.
func virtualMAC(m table.MAC) bool {
	if m[0] != 0 {
		return false
	}
	switch uint16(m[1])<<8 | uint16(m[2]) {
	case 0x005e:
		return m[3] == 0 && (m[4] == 1 || m[4] == 2)
	case 0x000c:
		return (m[3] == 7 && m[4] == 0xac) || (m[3] == 0x9f && m[4]&0xf0 == 0xf0)
	case 0x0573:
		return m[3] == 0xa0 && m[4]&0xf0 == 0
	case 0x07b4:
		return true
	}
	return false
}
