package table

import "fmt"

// Reason says why a frame was dropped, enum reason of bpf/maps.h.
type Reason uint32

// Reasons.
const (
	DropNone            Reason = 0
	DropNoPort          Reason = 1
	DropPortDown        Reason = 2
	DropMalformed       Reason = 3
	DropTagged          Reason = 4
	DropDoubleTag       Reason = 5
	DropVLAN            Reason = 6
	DropSourceMAC       Reason = 7
	DropNewMAC          Reason = 8
	DropBPDU            Reason = 9
	DropL2Control       Reason = 10
	DropARP             Reason = 11
	DropSourceIP        Reason = 12
	DropND              Reason = 13
	DropRA              Reason = 14
	DropDHCPServer      Reason = 15
	DropDHCPRate        Reason = 16
	DropVirtualRouter   Reason = 17
	DropStormBroadcast  Reason = 18
	DropStormMulticast  Reason = 19
	DropStormUnknown    Reason = 20
	DropRateIn          Reason = 21
	DropRateOut         Reason = 22
	DropMTU             Reason = 23
	DropUnregistered    Reason = 24
	DropHairpin         Reason = 25
	DropSplitHorizon    Reason = 26
	DropPVLAN           Reason = 27
	DropReflected       Reason = 28
	DropNotActive       Reason = 29
	DropVTEP            Reason = 30
	DropNetwork         Reason = 31
	DropNoUplink        Reason = 32
	DropUnmarked        Reason = 33
	DropRedirect        Reason = 34
	DropFragment        Reason = 35
	DropSourceMulticast Reason = 36
	DropZone            Reason = 37
	DropReservedUplink  Reason = 38
	DropPunted          Reason = 39
	DropAnswered        Reason = 40
	DropDHCPClient      Reason = 41
)

// reasons has each reason's name, as counters and events call it, and its words.
var reasons = [Reasons]struct{ name, text string }{
	DropNone:            {"NONE", "not dropped"},
	DropNoPort:          {"NO_PORT", "no policy loaded for the device"},
	DropPortDown:        {"PORT_DOWN", "the port is down"},
	DropMalformed:       {"MALFORMED", "shorter than its headers, lengths that contradict each other"},
	DropTagged:          {"TAGGED", "a VLAN tag on an access port, or a priority tag"},
	DropDoubleTag:       {"DOUBLE_TAG", "two VLAN tags"},
	DropVLAN:            {"VLAN", "a VLAN that the trunk, or the uplink, does not carry"},
	DropSourceMAC:       {"SOURCE_MAC", "a source MAC that is not the port's"},
	DropNewMAC:          {"NEW_MAC", "not registered yet; asked for"},
	DropBPDU:            {"BPDU", "a spanning tree frame from a guest"},
	DropL2Control:       {"L2_CONTROL", "a control frame (CDP, LLDP, VTP, DTP, UDLD, LACP, pause) from a guest"},
	DropARP:             {"ARP", "ARP that claims what is not the port's"},
	DropSourceIP:        {"SOURCE_IP", "a source address that is not bound to the port"},
	DropND:              {"ND", "neighbour discovery that claims what is not the port's"},
	DropRA:              {"RA", "a router advertisement or redirect from a port that is no router"},
	DropDHCPServer:      {"DHCP_SERVER", "a DHCP answer from a port that is no server"},
	DropDHCPRate:        {"DHCP_RATE", "too many DHCP requests"},
	DropVirtualRouter:   {"VIRTUAL_ROUTER", "VRRP, HSRP, GLBP or CARP, or their MAC, from a port that may not hold virtual addresses"},
	DropStormBroadcast:  {"STORM_BROADCAST", "too many broadcasts"},
	DropStormMulticast:  {"STORM_MULTICAST", "too many multicasts"},
	DropStormUnknown:    {"STORM_UNKNOWN", "too many frames to unknown destinations"},
	DropRateIn:          {"RATE_IN", "above the rate limit from the guest"},
	DropRateOut:         {"RATE_OUT", "above the rate limit to the guest"},
	DropMTU:             {"MTU", "larger than the network's MTU"},
	DropUnregistered:    {"UNREGISTERED", "destination that nobody registered, and no uplink to try"},
	DropHairpin:         {"HAIRPIN", "back to where it came from"},
	DropSplitHorizon:    {"SPLIT_HORIZON", "from uplink or tunnel to uplink or tunnel"},
	DropPVLAN:           {"PVLAN", "the private VLAN keeps the two apart"},
	DropReflected:       {"REFLECTED", "from an uplink, with a source MAC of this host"},
	DropNotActive:       {"NOT_ACTIVE", "broadcast from an uplink that is not the port's"},
	DropVTEP:            {"VTEP", "tunnel packet from an address that is no host's, or not encrypted though its network is"},
	DropNetwork:         {"NETWORK", "no such network here"},
	DropNoUplink:        {"NO_UPLINK", "all uplinks are down"},
	DropUnmarked:        {"UNMARKED", "to a port, but not by the datapath"},
	DropRedirect:        {"REDIRECT", "the kernel refused a copy"},
	DropFragment:        {"FRAGMENT", "fragments that hide what guards must see (RFC 6980, RFC 7113)"},
	DropSourceMulticast: {"SOURCE_MULTICAST", "a group address as source MAC"},
	DropZone:            {"ZONE", "the zone firewall"},
	DropReservedUplink:  {"RESERVED_UPLINK", "link-local control frames from an uplink: BPDU and such, ignored"},
	DropPunted:          {"PUNTED", "taken by user space: LLDP, CDP, beacons"},
	DropAnswered:        {"ANSWERED", "ARP or ND, answered by the switch: no loss, kept out of the drop counters"},
	DropDHCPClient:      {"DHCP_CLIENT", "a DHCP request for another than who sends it: another MAC, a relay, or with another's address"},
}

// String is the reason's name: SOURCE_MAC.
func (r Reason) String() string {
	if r < Reasons && reasons[r].name != "" {
		return reasons[r].name
	}
	return fmt.Sprintf("REASON_%d", uint32(r))
}

// Text is the reason in words.
func (r Reason) Text() string {
	if r < Reasons && reasons[r].text != "" {
		return reasons[r].text
	}
	return "for a reason that this version does not know"
}

// ReasonOf finds a reason by its name.
func ReasonOf(name string) (Reason, bool) {
	for r, x := range reasons {
		if x.name == name {
			return Reason(r), true
		}
	}
	return DropNone, false
}
