package compile

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/vswitch/table"
)

// Input is all that the rows depend on.
type Input struct {
	// Host and Site are this host's.
	Host, Site string
	Networks   []*v1.Network
	// Profiles by name.
	Profiles map[string]Profile
	Ports    []Port
	Uplinks  []Uplink
	Teams    []Team
	Peers    []*v1.Peer
	Overlay  Overlay
	// Registrations of all hosts, this one included.
	Registrations map[table.FDBKey]Registration
}

// Profile is a port profile in force.
type Profile struct {
	// Effective has every field set.
	Effective *v1.PortProfileSpec
	// Generation of the whole chain.
	Generation int64
}

// Port is a device of this host that belongs to a NIC.
type Port struct {
	// Name is "VM/NIC".
	Name    string
	Ifindex uint32
	// Slot is given by the caller, not 0, and stays with the port.
	Slot    uint32
	MAC     table.MAC
	Network string
	Profile string
	// LinkDown: the cable is out.
	LinkDown bool
	// Addresses are the NIC's own, by its spec.
	Addresses []netip.Addr
	Leases    []Lease
	// MACs are those that were granted to it besides its own.
	MACs []table.MAC
	// Groups that it listens to, by the network's number.
	Groups []Group
	// Routers are the networks in which it is a multicast router: it gets every group.
	Routers []uint32
	// Peer says that the device is a veth whose other end is the NIC.
	Peer bool
	// Bucket of its team, below table.TeamBuckets.
	Bucket uint32
}

// Lease is an address that DHCP gave to a port.
type Lease struct {
	Net     uint32
	Addr    netip.Addr
	MAC     table.MAC
	Expires uint64 // CLOCK_BOOTTIME ns; 0: never
}

// Group is a multicast group that a port wants.
type Group struct {
	Net  uint32
	Addr netip.Addr
}

// Uplink is a NIC of this host that is in a team. One that is not there has Ifindex 0.
type Uplink struct {
	Name    string
	Ifindex uint32
	Slot    uint32
	MAC     table.MAC
	MTU     int
	Team    string
	Shared  bool
}

// Team says which uplink each bucket uses.
type Team struct {
	Name    string
	Hash    table.TeamHash
	Buckets [table.TeamBuckets]uint32 // ifindex, 0: none
}

// Overlay is this host's end of tunnels.
type Overlay struct {
	// Ifindex of the VXLAN device; 0: this host has no overlay, and Reason says why.
	Ifindex uint32
	Reason  string
	// MTU is the largest packet on the way to other hosts.
	MTU int
	// Address is this host's own, as other hosts know it; Tunnel is that in the encrypted tunnel. Others believe no outer packet from another one. Invalid: as routes say.
	Address, Tunnel netip.Addr
	// Six says that outer packets are IPv6.
	Six bool
	// Encrypted says that there is an encrypted tunnel to send into; else EncryptedReason says why not.
	Encrypted       bool
	EncryptedReason string
}

// Registration is what is known of a MAC that is registered.
type Registration struct {
	// Port is "VM/NIC".
	Port      string
	Host      string
	Addresses []netip.Addr
	PVLAN     table.PVLAN
	Community uint16
}

// Problem is something that can't be done as wanted.
type Problem struct {
	// Port, Network: what it is about; empty: the host.
	Port, Network string
	// Reason is for machines: "PROFILE_MISSING"; Message is for people.
	Reason, Message string
}

// Read turns a registration of the API into a row's key and what is known.
func Read(r *v1.Registration) (table.FDBKey, Registration, error) {
	mac, err := ParseMAC(r.GetMac())
	if err != nil {
		return table.FDBKey{}, Registration{}, fmt.Errorf("registration of %s: %w", r.GetPort(), err)
	}
	if r.GetVni() <= 0 || r.GetVni() >= 1<<24 {
		return table.FDBKey{}, Registration{}, fmt.Errorf("registration of %s: network number %d: want 1 to 16777215", r.GetPort(), r.GetVni())
	}
	out := Registration{Port: r.GetPort(), Host: r.GetHost(), PVLAN: roleOf(r.GetPrivateRole()), Community: uint16(r.GetCommunity())}
	for _, s := range r.GetAddresses() {
		a, err := ParseAddr(s)
		if err != nil {
			return table.FDBKey{}, Registration{}, fmt.Errorf("registration of %s: %w", r.GetPort(), err)
		}
		out.Addresses = append(out.Addresses, a)
	}
	return table.FDBKey{Net: uint32(r.GetVni()), MAC: mac}, out, nil
}

// ReadKey reads "VNI/MAC".
func ReadKey(s string) (table.FDBKey, error) {
	num, text, ok := strings.Cut(s, "/")
	vni, err := strconv.ParseUint(num, 10, 24)
	if !ok || err != nil {
		return table.FDBKey{}, fmt.Errorf("registration %q: want VNI/MAC", s)
	}
	mac, err := ParseMAC(text)
	if err != nil {
		return table.FDBKey{}, fmt.Errorf("registration %q: %w", s, err)
	}
	return table.FDBKey{Net: uint32(vni), MAC: mac}, nil
}

// ParseMAC reads a unicast Ethernet address.
func ParseMAC(s string) (table.MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != 6 || hw[0]&1 != 0 {
		return table.MAC{}, fmt.Errorf("MAC %q: want a unicast Ethernet address like 52:54:00:12:34:56", s)
	}
	return table.MAC(hw), nil
}

// ParseAddr reads an address, with or without a prefix length.
func ParseAddr(s string) (netip.Addr, error) {
	text, _, _ := strings.Cut(s, "/")
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("address %q: want an IPv4 or IPv6 address", s)
	}
	return a.Unmap(), nil
}

func roleOf(r v1.PrivateRole) table.PVLAN {
	switch r {
	case v1.PrivateRole_PRIVATE_ROLE_PROMISCUOUS:
		return table.PVLANPromiscuous
	case v1.PrivateRole_PRIVATE_ROLE_ISOLATED:
		return table.PVLANIsolated
	case v1.PrivateRole_PRIVATE_ROLE_COMMUNITY:
		return table.PVLANCommunity
	}
	return table.PVLANNone
}
