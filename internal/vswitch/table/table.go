package table

import (
	"hash/fnv"
	"net/netip"
	"time"
	"unsafe"
)

// Layout is DROVER_LAYOUT of bpf/maps.h.
const Layout = 1

// Mark is what skb->mark is on frames that the datapath sends to a port.
const Mark = 0x44524f56

// Sizes of the maps, as in bpf/maps.h.
const (
	MaxPorts       = 4096
	MaxFDB         = 262144
	MaxNetworks    = 16384
	MaxMembers     = 65536
	MaxBindings    = 131072
	MaxTrunk       = 65536
	MaxVTEPs       = 4096
	MaxGroups      = 65536
	MaxUplinkVLANs = 16384
	MaxTeams       = 64
	TeamBuckets    = 64
	InlineIPs      = 4
	PuntBytes      = 1536
	EventBytes     = 128
	CaptureBytes   = 2048
	Reasons        = 64
)

// MAC is an Ethernet address.
type MAC [6]byte

// IP is an address as the maps have it: IPv4 is mapped into IPv6.
type IP [16]byte

// IPOf is a as the maps have it.
func IPOf(a netip.Addr) IP { return IP(a.As16()) }

// Addr is the address, IPv4 as IPv4.
func (ip IP) Addr() netip.Addr { return netip.AddrFrom16(ip).Unmap() }

// PortFlag is enum port_flag.
type PortFlag uint32

// Flags of a port.
const (
	PortPromiscuous PortFlag = 1 << iota
	PortForged
	PortMACChanges
	PortTrunk
	PortIPGuard
	PortARPGuard
	PortNDGuard
	PortDHCPServer
	PortDHCPSnoop
	PortRouter
	PortBPDU
	PortL2Control
	PortVirtualRouter
	PortMeterIn
	PortMeterOut
	PortStorm
	PortMoreIPs
	PortMoreMACs
	PortMirrorIn
	PortMirrorOut
	PortCapture
	PortPeer
	PortMark
	PortDown
	PortNoProxy
	PortNoSnooping
	PortPriority
)

// PVLAN is a port's role in a private VLAN, enum pvlan.
type PVLAN uint8

// Roles.
const (
	PVLANNone PVLAN = iota
	PVLANPromiscuous
	PVLANIsolated
	PVLANCommunity
)

// TeamHash says how a frame's uplink is chosen, enum team_hash.
type TeamHash uint8

// Hashes.
const (
	TeamByPort TeamHash = iota
	TeamByMAC
	TeamByIP
)

// Leave is the DSCP and CoS of a port that leaves them alone.
const Leave = 255

// Port is a row of ports; its key is the device's index.
type Port struct {
	Check         uint32 // of all below: see Tables.Row
	Slot          uint32
	Net           uint32
	Flags         PortFlag
	Team          uint32
	MAC           MAC
	PVLAN         PVLAN
	TeamHash      TeamHash
	Community     uint16
	MTU           uint16
	DSCP          uint8
	CoS           uint8
	IP4Count      uint8
	IP6Count      uint8
	Bucket        uint32
	Priority      uint32
	MirrorIfindex uint32
	Generation    uint32
	NetworkFlags  NetworkFlag // a copy of what Net's row has, and NetworkHere: see Tables.Row
	UplinkVID     uint16      // of frames in Net on the uplinks; 0: the network's
	_             uint16
	IP4           [InlineIPs][4]byte
	IP6           [InlineIPs]IP
}

// FDBKey is a MAC in a network.
type FDBKey struct {
	Net uint32
	MAC MAC
	_   uint16
}

// Place says where a registration or a member is, enum place.
type Place uint8

// Places.
const (
	PlaceLocal Place = 1 + iota
	PlaceUplink
	PlaceTunnel
)

// FDBEntry is a row of fdb.
type FDBEntry struct {
	Target    uint32
	Place     Place
	PVLAN     PVLAN
	Community uint16
	VID       uint16
	_         uint16
}

// NetworkFlag is enum network_flag.
type NetworkFlag uint32

// Flags of a network.
const (
	NetworkUplink NetworkFlag = 1 << iota
	NetworkOverlay
	NetworkSnooping
	NetworkWatched
	NetworkProxy
	NetworkEncrypted
)

// NetworkHere is in Port.NetworkFlags alone: the port's network has a row.
const NetworkHere NetworkFlag = 1 << 30

// Network is a row of networks; its key is the network's number.
type Network struct {
	Flags   NetworkFlag
	Team    uint32
	Members uint32
	VID     uint16
	MTU     uint16
}

// MemberKey is a row of a network's flood list.
type MemberKey struct{ Net, Row uint32 }

// MemberFlag is enum member_flag.
type MemberFlag uint8

// Flags of a member.
const (
	MemberAllGroups MemberFlag = 1 << iota
	MemberPromiscuous
)

// Member gets a network's broadcasts.
type Member struct {
	Target    uint32
	Place     Place
	PVLAN     PVLAN
	Community uint16
	VID       uint16
	Flags     MemberFlag
	_         uint8
}

// GroupKey is a member's wish for a multicast group.
type GroupKey struct {
	Net    uint32
	Target uint32
	Group  IP
	Place  uint32
}

// BindingKey is an address in a network.
type BindingKey struct {
	Net uint32
	IP  IP
}

// BindingSource says how an address came to be bound, enum binding_source.
type BindingSource uint8

// Sources.
const (
	BindingAssigned BindingSource = 1 + iota
	BindingDHCP
	BindingProvisional
	BindingRemote
	BindingVirtual
)

// Binding says whose an address is.
type Binding struct {
	Ifindex uint32 // 0: a port of another host
	MAC     MAC
	Source  BindingSource
	_       uint8
	_       uint32
	Expires uint64 // CLOCK_BOOTTIME ns; 0: never
}

// MACKey is a further source MAC of a port.
type MACKey struct {
	Ifindex uint32
	MAC     MAC
	_       uint16
}

// TrunkKey is a tag that a trunk port may use; the row is the network's number.
type TrunkKey struct{ Ifindex, VID uint32 }

// UplinkKey is a VLAN on an uplink.
type UplinkKey struct{ Ifindex, VID uint32 }

// UplinkVLAN says which network a VLAN of an uplink is.
type UplinkVLAN struct {
	Net       uint32
	PVLAN     PVLAN
	_         uint8
	Community uint16
}

// UplinkFlag is enum uplink_flag.
type UplinkFlag uint32

// Flags of an uplink.
const (
	UplinkShared UplinkFlag = 1 << iota
	UplinkCapture
)

// Uplink is a row of uplinks; its key is the device's index.
type Uplink struct {
	Slot  uint32
	Team  uint32
	Flags UplinkFlag
	MAC   MAC
	_     uint16
}

// Team is a row of teams.
type Team struct {
	Bucket [TeamBuckets]uint32
	Hash   uint32
	_      uint32
}

// Families of a VTEP, as in AF_INET and AF_INET6.
const (
	FamilyIP4 = 2
	FamilyIP6 = 10
)

// VTEPFlag is enum vtep_flag.
type VTEPFlag uint32

// VTEPPrivate is an encrypted end, or one of this site: frames of encrypted networks may come from it.
const VTEPPrivate VTEPFlag = 1

// VTEP is another host's end of tunnels.
type VTEP struct {
	Addr    IP
	Family  uint32
	Ifindex uint32 // the VXLAN device
	Local   IP     // this host's outer address, of the same family; zero: as the route says
	Flags   VTEPFlag
}

// Bucket is a token bucket. Rate and Burst are configuration; the rest is the datapath's.
type Bucket struct {
	Rate, Burst   uint64 // bytes or packets (a second); rate 0: no limit
	Tokens, Stamp uint64
}

// Meter is a row of meters; its key is the slot.
type Meter struct {
	In, Out                       Bucket // bytes
	Broadcast, Multicast, Unknown Bucket // packets
	DHCP, Punt                    Bucket // packets
}

// Traffic is a row of counters; its key is the slot.
type Traffic struct{ InPackets, InBytes, OutPackets, OutBytes uint64 }

// DropKey is a row of drops.
type DropKey struct {
	Slot   uint32
	Reason Reason
}

// DropCount is what was dropped.
type DropCount struct{ Packets, Bytes uint64 }

// Gate is a row of gates; its key is the slot.
type Gate struct {
	Last  [Reasons]uint64
	Since [Reasons]uint32
}

// Event is a record of the ring events.
type Event struct {
	Time     uint64 // CLOCK_BOOTTIME ns
	Ifindex  uint32
	Slot     uint32
	Net      uint32
	Reason   Reason
	Count    uint32
	Length   uint32
	VID      uint16
	Captured uint16
	_        uint32
	Data     [EventBytes]byte
}

// PuntKind is enum punt_kind.
type PuntKind uint32

// Kinds of punts.
const (
	PuntDHCP PuntKind = 1 + iota
	PuntGroup
	PuntLLDP
	PuntCDP
	PuntBeacon
	PuntNewMAC
	PuntVirtual
)

// Punt is a record of the ring punts.
type Punt struct {
	Time      uint64
	Ifindex   uint32
	Slot      uint32
	Net       uint32
	Kind      PuntKind
	Length    uint32
	ToIfindex uint32
	VID       uint16
	Captured  uint16
	_         uint32
	Data      [PuntBytes]byte
}

// CapturePoint is enum capture_point.
type CapturePoint uint32

// Points of capture.
const (
	CaptureFromGuest CapturePoint = 1 + iota
	CaptureAccepted
	CaptureToGuest
	CaptureDropped
)

// Capture is a record of the ring captures.
type Capture struct {
	Time     uint64
	Ifindex  uint32
	Slot     uint32
	Point    CapturePoint
	Reason   Reason
	Length   uint32
	GSOSize  uint32
	VID      uint16
	Captured uint16
	_        uint32
	Data     [CaptureBytes]byte
}

// Tables is the configuration of one host's datapath: what the maps hold, or should.
type Tables struct {
	Ports       map[uint32]Port // by ifindex
	FDB         map[FDBKey]FDBEntry
	Networks    map[uint32]Network
	Members     map[MemberKey]Member
	Groups      map[GroupKey]uint8
	Bindings    map[BindingKey]Binding
	MACs        map[MACKey]uint8
	Trunks      map[TrunkKey]uint32
	Uplinks     map[uint32]Uplink // by ifindex
	UplinkVLANs map[UplinkKey]UplinkVLAN
	Teams       map[uint32]Team
	VTEPs       map[uint32]VTEP
	VTEPSources map[IP]uint32
	Meters      map[uint32]Meter // by slot; Tokens and Stamp are not configuration
}

// New makes empty tables.
func New() *Tables {
	return &Tables{
		Ports: map[uint32]Port{}, FDB: map[FDBKey]FDBEntry{}, Networks: map[uint32]Network{}, Members: map[MemberKey]Member{},
		Groups: map[GroupKey]uint8{}, Bindings: map[BindingKey]Binding{}, MACs: map[MACKey]uint8{}, Trunks: map[TrunkKey]uint32{},
		Uplinks: map[uint32]Uplink{}, UplinkVLANs: map[UplinkKey]UplinkVLAN{}, Teams: map[uint32]Team{}, VTEPs: map[uint32]VTEP{},
		VTEPSources: map[IP]uint32{}, Meters: map[uint32]Meter{},
	}
}

// Row is a port's row with the copy of its network's flags, and the sum by which the datapath sees that a row became another while it read it. Whoever writes
// rows of ports writes these. Captures, which come and go beside, are not in the sum.
func (t *Tables) Row(p Port) Port {
	p.NetworkFlags, p.Check = 0, 0
	if n, ok := t.Networks[p.Net]; ok {
		p.NetworkFlags = n.Flags | NetworkHere
	}
	summed := p
	summed.Flags &^= PortCapture
	h := fnv.New32a()
	_, _ = h.Write(unsafe.Slice((*byte)(unsafe.Pointer(&summed)), unsafe.Sizeof(summed))) // never fails
	p.Check = h.Sum32()
	return p
}

// ProvisionalLease is how long an address is bound before the agent has seen its lease.
const ProvisionalLease = 60 * time.Second
