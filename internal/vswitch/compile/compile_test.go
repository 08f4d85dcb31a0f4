package compile

import (
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	v1 "drover/api/drover/v1"
	"drover/internal/vswitch/table"
)

const (
	on  = v1.Toggle_TOGGLE_ON
	off = v1.Toggle_TOGGLE_OFF
)

func secure() *v1.PortProfileSpec {
	return &v1.PortProfileSpec{
		Security: &v1.Security{Promiscuous: off, ForgedTransmits: off, MacChanges: off, MacLimit: 1},
		Guards: &v1.Guards{IpSource: on, Arp: on, Nd: on, DhcpSnooping: on, DhcpServer: on, DhcpRate: 15, Ra: on, Bpdu: on, Control: on, VirtualRouter: on,
			Storm: &v1.StormControl{Broadcast: 1000, Multicast: 5000, UnknownUnicast: -1}},
		PrivateRole: v1.PrivateRole_PRIVATE_ROLE_NONE, Qos: &v1.QoS{In: &v1.Rate{LimitBps: -1}, Out: &v1.Rate{LimitBps: 8_000_000}, Dscp: -1, DscpSet: true},
		Mirror: &v1.Mirror{},
	}
}

func with(change func(*v1.PortProfileSpec)) Profile {
	s := secure()
	change(s)
	return Profile{Effective: s, Generation: 7}
}

func network(name string, vni int32, change func(*v1.NetworkSpec)) *v1.Network {
	n := &v1.Network{Meta: &v1.Meta{Name: name}, Spec: &v1.NetworkSpec{}, Status: &v1.NetworkStatus{Vni: vni}}
	if change != nil {
		change(n.Spec)
	}
	return n
}

func vlanNet(vid int32) func(*v1.NetworkSpec) {
	return func(s *v1.NetworkSpec) { s.Physical = &v1.PhysicalSegment{Vlan: vid} }
}

func mac(last byte) table.MAC { return table.MAC{0x52, 0x54, 0, 0, 0, last} }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// world is a host h1 in site east with a VLAN, an overlay, a stretched and an encrypted network.
func world() Input {
	return Input{
		Host: "h1", Site: "east",
		Networks: []*v1.Network{
			network("lan", 10, vlanNet(100)), network("inside", 20, nil),
			network("wide", 30, func(s *v1.NetworkSpec) {
				s.Physical, s.Overlay, s.Mtu = &v1.PhysicalSegment{Vlan: 300, SiteVlans: map[string]int32{"east": 301}}, &v1.Overlay{}, 1400
			}),
			network("secret", 40, func(s *v1.NetworkSpec) { s.Overlay = &v1.Overlay{Encrypted: true} }),
			network("far", 50, func(s *v1.NetworkSpec) { s.Sites = []string{"west"} }),
		},
		Profiles: map[string]Profile{"secure": {Effective: secure(), Generation: 3}},
		Ports:    []Port{{Name: "web/n0", Ifindex: 5, Slot: 2, MAC: mac(1), Network: "lan", Profile: "secure", Addresses: []netip.Addr{addr("10.0.0.1")}, Bucket: 9}},
		Uplinks:  []Uplink{{Name: "up0", Ifindex: 3, Slot: 1, MAC: mac(200), MTU: 1500, Team: "default"}},
		Teams:    []Team{{Name: "default", Buckets: [table.TeamBuckets]uint32{9: 3}}},
		Peers: []*v1.Peer{
			{Host: "h1", Site: "east", OverlayAddress: "192.0.2.1"},
			{Host: "h2", Site: "east", OverlayAddress: "192.0.2.2", PhysicalNetworks: []string{"lan", "wide"}},
			{Host: "h3", Site: "west", OverlayAddress: "192.0.2.3", TunnelKey: "k", TunnelAddress: "fd64::3", PhysicalNetworks: []string{"lan", "wide"}},
		},
		Overlay: Overlay{Ifindex: 4, MTU: 1500, Encrypted: true},
		Registrations: map[table.FDBKey]Registration{
			{Net: 10, MAC: mac(1)}:  {Port: "web/n0", Host: "h1", Addresses: []netip.Addr{addr("10.0.0.1")}},
			{Net: 10, MAC: mac(2)}:  {Port: "db/n0", Host: "h2", Addresses: []netip.Addr{addr("10.0.0.2")}},
			{Net: 10, MAC: mac(3)}:  {Port: "far/n0", Host: "h3"},
			{Net: 30, MAC: mac(4)}:  {Port: "w/n0", Host: "h2"},
			{Net: 30, MAC: mac(5)}:  {Port: "w/n1", Host: "h3", PVLAN: table.PVLANIsolated},
			{Net: 40, MAC: mac(6)}:  {Port: "s/n0", Host: "h2"},
			{Net: 40, MAC: mac(7)}:  {Port: "s/n1", Host: "h3"},
			{Net: 20, MAC: mac(8)}:  {Port: "i/n1", Host: "gone"},
			{Net: 99, MAC: mac(9)}:  {Port: "x/n1", Host: "h2"},
			{Net: 10, MAC: mac(10)}: {Port: "off/n1", Host: "h1"},
		},
	}
}

func reasons(r *Result) (out []string) {
	for _, p := range r.Problems {
		out = append(out, strings.TrimPrefix(p.Port+":"+p.Network+":"+p.Reason, ":"))
	}
	return out
}

func TestWorld(t *testing.T) {
	r := Compile(world())
	if len(r.Problems) > 0 {
		t.Errorf("problems: %v", r.Problems)
	}
	vtep := func(a string) uint32 { return r.Tables.VTEPSources[table.IPOf(addr(a))] }
	if vtep("192.0.2.2") == 0 || vtep("192.0.2.3") == 0 || vtep("fd64::3") == 0 || vtep("fd64::3") == vtep("192.0.2.3") || vtep("192.0.2.1") != 0 {
		t.Errorf("tunnel ends: %v", r.Tables.VTEPSources)
	}
	for a, want := range map[string]table.VTEPFlag{"192.0.2.2": table.VTEPPrivate, "192.0.2.3": 0, "fd64::3": table.VTEPPrivate} {
		if got := r.Tables.VTEPs[vtep(a)].Flags; got != want {
			t.Errorf("tunnel end %s: flags %b, want %b: frames of encrypted networks come from this site or from encrypted ends", a, got, want)
		}
	}
	want := map[table.FDBKey]table.FDBEntry{
		{Net: 10, MAC: mac(1)}: {Target: 5, Place: table.PlaceLocal},
		{Net: 10, MAC: mac(2)}: {Place: table.PlaceUplink},
		{Net: 30, MAC: mac(4)}: {Place: table.PlaceUplink},
		{Net: 30, MAC: mac(5)}: {Place: table.PlaceTunnel, Target: vtep("192.0.2.3"), PVLAN: table.PVLANIsolated},
		{Net: 40, MAC: mac(6)}: {Place: table.PlaceTunnel, Target: vtep("192.0.2.2")},
		{Net: 40, MAC: mac(7)}: {Place: table.PlaceTunnel, Target: vtep("fd64::3")},
	}
	if !reflect.DeepEqual(r.Tables.FDB, want) {
		t.Errorf("fdb:\n%v\nwant\n%v", r.Tables.FDB, want)
	}
	bind := map[table.BindingKey]table.Binding{
		{Net: 10, IP: table.IPOf(addr("10.0.0.1"))}: {Ifindex: 5, MAC: mac(1), Source: table.BindingAssigned},
		{Net: 10, IP: table.IPOf(addr("10.0.0.2"))}: {MAC: mac(2), Source: table.BindingRemote},
	}
	if !reflect.DeepEqual(r.Tables.Bindings, bind) {
		t.Errorf("bindings %v, want %v", r.Tables.Bindings, bind)
	}
	members := map[table.MemberKey]table.Member{
		{Net: 10, Row: 0}: {Target: 5, Place: table.PlaceLocal},
		{Net: 30, Row: 0}: {Target: vtep("192.0.2.3"), Place: table.PlaceTunnel, PVLAN: table.PVLANPromiscuous},
	}
	for k, m := range members {
		if r.Tables.Members[k] != m {
			t.Errorf("member %v: %v, want %v", k, r.Tables.Members[k], m)
		}
	}
	if len(r.Tables.Members) != 4 || r.Tables.Networks[40].Members != 2 {
		t.Errorf("members: %v", r.Tables.Members)
	}
	nets := map[uint32]table.Network{
		10: {Flags: table.NetworkUplink | table.NetworkSnooping | table.NetworkProxy, VID: 100, MTU: 1500, Members: 1},
		20: {Flags: table.NetworkOverlay | table.NetworkSnooping | table.NetworkProxy, MTU: 1430},
		30: {Flags: table.NetworkUplink | table.NetworkOverlay | table.NetworkSnooping | table.NetworkProxy, VID: 301, MTU: 1400, Members: 1},
		40: {Flags: table.NetworkOverlay | table.NetworkEncrypted | table.NetworkSnooping | table.NetworkProxy, MTU: 1350, Members: 2},
	}
	if !reflect.DeepEqual(r.Tables.Networks, nets) {
		t.Errorf("networks %v, want %v", r.Tables.Networks, nets)
	}
	port := table.Port{
		Slot: 2, Net: 10, MAC: mac(1), MTU: 1500, DSCP: table.Leave, CoS: table.Leave, IP4Count: 1, Bucket: 9, Generation: 3,
		IP4: [table.InlineIPs][4]byte{{10, 0, 0, 1}},
		Flags: table.PortIPGuard | table.PortARPGuard | table.PortNDGuard | table.PortDHCPSnoop | table.PortStorm | table.PortMeterOut |
			table.PortMoreIPs,
	}
	if r.Tables.Ports[5] != port {
		t.Errorf("port %+v\nwant %+v", r.Tables.Ports[5], port)
	}
	meter := table.Meter{Punt: bucket(200, 400), DHCP: bucket(15, 15), Out: bucket(1_000_000, 64<<10), Broadcast: bucket(1000, 1000), Multicast: bucket(5000, 5000)}
	if r.Tables.Meters[2] != meter {
		t.Errorf("meter %+v, want %+v", r.Tables.Meters[2], meter)
	}
	vlans := map[table.UplinkKey]table.UplinkVLAN{{Ifindex: 3, VID: 100}: {Net: 10}, {Ifindex: 3, VID: 301}: {Net: 30}}
	if !reflect.DeepEqual(r.Tables.UplinkVLANs, vlans) {
		t.Errorf("uplink VLANs %v, want %v", r.Tables.UplinkVLANs, vlans)
	}
	for name, c := range r.Connections {
		if !c.Connects {
			t.Errorf("network %s can't be connected", name)
		}
	}
}

func uplinkVIDIs(want uint16) func(*testing.T, *Result) {
	return func(t *testing.T, r *Result) {
		if got := r.Tables.Ports[5].UplinkVID; got != want {
			t.Errorf("frames leave with VLAN %d, want %d (0: the network's)", got, want)
		}
	}
}

// Each case changes the world a little and says what must come of it.
func TestPolicy(t *testing.T) {
	flags := func(have, lack table.PortFlag) func(*testing.T, *Result) {
		return func(t *testing.T, r *Result) {
			if f := r.Tables.Ports[5].Flags; f&have != have || f&lack != 0 {
				t.Errorf("flags %b: want all of %b and none of %b", f, have, lack)
			}
		}
	}
	profile := func(change func(*v1.PortProfileSpec)) func(*Input) {
		return func(in *Input) { in.Profiles["secure"] = with(change) }
	}
	trunk := func(in *Input) {
		in.Profiles["secure"] = with(func(s *v1.PortProfileSpec) { s.Trunk = &v1.Trunk{Vlans: []string{"100", "300-310", "4000"}} })
	}
	cases := map[string]struct {
		change   func(*Input)
		problems []string
		check    func(*testing.T, *Result)
	}{
		"guards off": {profile(func(s *v1.PortProfileSpec) {
			s.Guards = &v1.Guards{DhcpServer: off, Ra: off, Bpdu: off, Control: off, VirtualRouter: off, VirtualAddresses: []string{"10.0.0.254"}, Storm: &v1.StormControl{Broadcast: -1}}
		}), nil, func(t *testing.T, r *Result) {
			flags(table.PortDHCPServer|table.PortRouter|table.PortBPDU|table.PortL2Control|table.PortVirtualRouter, table.PortIPGuard|table.PortARPGuard|table.PortNDGuard|table.PortDHCPSnoop|table.PortStorm|table.PortMoreIPs)(t, r)
			if p := r.Tables.Ports[5]; p.IP4Count != 2 || p.IP4[0] != [4]byte{10, 0, 0, 254} {
				t.Errorf("the virtual address is not the first: %v", p.IP4)
			}
			if _, ok := r.Tables.Bindings[table.BindingKey{Net: 10, IP: table.IPOf(addr("10.0.0.254"))}]; ok {
				t.Error("the switch would answer for a virtual address, whose holder moves")
			}
		}},
		"security": {profile(func(s *v1.PortProfileSpec) {
			s.Security = &v1.Security{Promiscuous: on, ForgedTransmits: on, MacChanges: on, MacLimit: 2}
		}), nil, func(t *testing.T, r *Result) {
			flags(table.PortPromiscuous|table.PortForged|table.PortMACChanges, table.PortMoreMACs)(t, r)
			if r.Tables.Networks[10].Flags&table.NetworkWatched == 0 || r.Tables.Members[table.MemberKey{Net: 10}].Flags != table.MemberPromiscuous|table.MemberAllGroups {
				t.Error("the network does not know that it is watched")
			}
		}},
		"more MACs": {func(in *Input) {
			in.Profiles["secure"] = with(func(s *v1.PortProfileSpec) { s.Security.MacChanges, s.Security.MacLimit = on, 3 })
			in.Ports[0].MACs = []table.MAC{mac(2), mac(50), mac(51), mac(52)}
		}, []string{"web/n0:lan:MAC_CONFLICT"}, func(t *testing.T, r *Result) {
			flags(table.PortMoreMACs, 0)(t, r)
			if len(r.Tables.MACs) != 2 || r.Tables.FDB[table.FDBKey{Net: 10, MAC: mac(51)}].Place != table.PlaceLocal || r.Tables.FDB[table.FDBKey{Net: 10, MAC: mac(2)}].Place != table.PlaceUplink {
				t.Errorf("MACs %v, fdb %v", r.Tables.MACs, r.Tables.FDB)
			}
		}},
		"MACs without permission": {func(in *Input) { in.Ports[0].MACs = []table.MAC{mac(50), {0, 0, 0x5e, 0, 1, 1}} }, nil, func(t *testing.T, r *Result) {
			if len(r.Tables.MACs) != 0 || len(r.Tables.FDB) != 6 {
				t.Errorf("MACs %v", r.Tables.MACs)
			}
		}},
		"marks": {profile(func(s *v1.PortProfileSpec) {
			s.Qos = &v1.QoS{In: &v1.Rate{LimitBps: 8e9, GuaranteeBps: 1e9}, Dscp: 46, DscpSet: true, Cos: 5, CosSet: true}
		}), nil, func(t *testing.T, r *Result) {
			flags(table.PortMark|table.PortPriority|table.PortMeterIn, table.PortMeterOut)(t, r)
			p := r.Tables.Ports[5]
			if p.DSCP != 46 || p.CoS != 5 || p.Priority != 0x10002 || r.Tables.Meters[2].In != bucket(1e9, 5e7) {
				t.Errorf("port %+v, meter %+v", p, r.Tables.Meters[2].In)
			}
		}},
		"link down": {func(in *Input) { in.Ports[0].LinkDown = true }, nil, flags(table.PortDown, 0)},
		"leases": {func(in *Input) {
			in.Ports[0].Addresses = nil
			for i := range 6 {
				in.Ports[0].Leases = append(in.Ports[0].Leases, Lease{Net: 10, Addr: netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}), MAC: mac(1), Expires: 77})
			}
			in.Ports[0].Leases = append(in.Ports[0].Leases, Lease{Net: 20, Addr: addr("10.9.9.9"), MAC: mac(1)})
		}, nil, func(t *testing.T, r *Result) {
			b := r.Tables.Bindings[table.BindingKey{Net: 10, IP: table.IPOf(addr("10.0.1.5"))}]
			if b != (table.Binding{Ifindex: 5, MAC: mac(1), Source: table.BindingDHCP, Expires: 77}) || r.Tables.Ports[5].IP4Count != 4 || len(r.Tables.Bindings) != 7 {
				t.Errorf("binding %v of %v", b, r.Tables.Bindings)
			}
		}},
		"leases of a trunk": {func(in *Input) {
			trunk(in)
			in.Ports[0].Addresses = nil
			in.Ports[0].Leases = []Lease{{Net: 30, Addr: addr("10.0.3.1"), MAC: mac(1)}}
		}, nil, func(t *testing.T, r *Result) {
			flags(table.PortMoreIPs, 0)(t, r)
			if p := r.Tables.Ports[5]; p.IP4Count != 0 || r.Tables.Bindings[table.BindingKey{Net: 30, IP: table.IPOf(addr("10.0.3.1"))}].Ifindex != 5 {
				t.Errorf("a lease in one network is good in all: %+v, bindings %v", p, r.Tables.Bindings)
			}
		}},
		"tunnels' punts": {func(in *Input) {}, nil, func(t *testing.T, r *Result) {
			if r.Tables.Meters[0].Punt != bucket(2000, 4000) {
				t.Errorf("meter of tunnels %+v", r.Tables.Meters[0])
			}
		}},
		"own outer addresses": {func(in *Input) { in.Overlay.Address, in.Overlay.Tunnel = addr("192.0.2.1"), addr("fd64::1") }, nil, func(t *testing.T, r *Result) {
			for outer, want := range map[string]string{"192.0.2.2": "192.0.2.1", "192.0.2.3": "192.0.2.1", "fd64::3": "fd64::1"} {
				if row := r.Tables.VTEPs[r.Tables.VTEPSources[table.IPOf(addr(outer))]]; row.Local != table.IPOf(addr(want)) {
					t.Errorf("to %s from %s, want %s", outer, row.Local.Addr(), want)
				}
			}
		}},
		"other family": {func(in *Input) { in.Overlay.Address = addr("2001:db8::1") }, nil, func(t *testing.T, r *Result) {
			for _, row := range r.Tables.VTEPs {
				if row.Local != (table.IP{}) {
					t.Errorf("to %s from %s", row.Addr.Addr(), row.Local.Addr())
				}
			}
		}},
		"trunk": {trunk, nil, func(t *testing.T, r *Result) {
			flags(table.PortTrunk, 0)(t, r)
			if !reflect.DeepEqual(r.Tables.Trunks, map[table.TrunkKey]uint32{{Ifindex: 5, VID: 301}: 30}) {
				t.Errorf("trunks %v", r.Tables.Trunks)
			}
			e := r.Tables.FDB[table.FDBKey{Net: 30, MAC: mac(1)}]
			if e.VID != 301 || e.Place != table.PlaceLocal || r.Tables.Networks[30].Members != 2 || r.Tables.Members[table.MemberKey{Net: 30}].VID != 301 {
				t.Errorf("row %v, members %v", e, r.Tables.Members)
			}
		}},
		"trunk without native": {profile(func(s *v1.PortProfileSpec) { s.Trunk = &v1.Trunk{Vlans: []string{"100"}, NoNative: true} }), nil, func(t *testing.T, r *Result) {
			if p := r.Tables.Ports[5]; p.Net != 0 || r.Tables.Trunks[table.TrunkKey{Ifindex: 5, VID: 100}] != 10 || r.Tables.FDB[table.FDBKey{Net: 10, MAC: mac(1)}].VID != 100 {
				t.Errorf("port %+v, trunks %v", p, r.Tables.Trunks)
			}
		}},
		"trunk of nonsense": {profile(func(s *v1.PortProfileSpec) { s.Trunk = &v1.Trunk{Vlans: []string{"5-4"}} }), []string{"web/n0:lan:TRUNK"}, func(t *testing.T, r *Result) {
			if len(r.Tables.Ports) != 0 || len(r.Tables.Members) != 3 {
				t.Error("a port with half a policy is there")
			}
		}},
		"private VLANs": {func(in *Input) {
			in.Networks[0].Spec.PrivateVlans = &v1.PrivateVLANs{IsolatedVlan: 101, CommunityVlans: map[int32]int32{7: 102}}
			in.Profiles["secure"] = with(func(s *v1.PortProfileSpec) {
				s.PrivateRole, s.Community = v1.PrivateRole_PRIVATE_ROLE_COMMUNITY, 7
			})
		}, nil, func(t *testing.T, r *Result) {
			u := r.Tables.UplinkVLANs
			if u[table.UplinkKey{Ifindex: 3, VID: 100}].PVLAN != table.PVLANPromiscuous || u[table.UplinkKey{Ifindex: 3, VID: 101}].PVLAN != table.PVLANIsolated ||
				u[table.UplinkKey{Ifindex: 3, VID: 102}] != (table.UplinkVLAN{Net: 10, PVLAN: table.PVLANCommunity, Community: 7}) {
				t.Errorf("uplink VLANs %v", u)
			}
			if p, m := r.Tables.Ports[5], r.Tables.Members[table.MemberKey{Net: 10}]; p.PVLAN != table.PVLANCommunity || p.Community != 7 || p.UplinkVID != 102 || m.PVLAN != p.PVLAN || m.Community != 7 || r.Tables.FDB[table.FDBKey{Net: 10, MAC: mac(1)}].Community != 7 {
				t.Errorf("port %+v, member %+v", p, m)
			}
		}},
		"isolated": {func(in *Input) {
			in.Networks[0].Spec.PrivateVlans = &v1.PrivateVLANs{IsolatedVlan: 101, CommunityVlans: map[int32]int32{7: 102}}
			in.Profiles["secure"] = with(func(s *v1.PortProfileSpec) { s.PrivateRole = v1.PrivateRole_PRIVATE_ROLE_ISOLATED })
		}, nil, uplinkVIDIs(101)},
		"promiscuous": {func(in *Input) {
			in.Networks[0].Spec.PrivateVlans = &v1.PrivateVLANs{IsolatedVlan: 101, CommunityVlans: map[int32]int32{7: 102}}
			in.Profiles["secure"] = with(func(s *v1.PortProfileSpec) { s.PrivateRole = v1.PrivateRole_PRIVATE_ROLE_PROMISCUOUS })
		}, nil, uplinkVIDIs(0)},
		"community without a VLAN": {func(in *Input) {
			in.Networks[0].Spec.PrivateVlans = &v1.PrivateVLANs{IsolatedVlan: 101, CommunityVlans: map[int32]int32{7: 102}}
			in.Profiles["secure"] = with(func(s *v1.PortProfileSpec) {
				s.PrivateRole, s.Community = v1.PrivateRole_PRIVATE_ROLE_COMMUNITY, 8
			})
		}, nil, uplinkVIDIs(0)},
		"isolated without uplinks": {func(in *Input) {
			in.Networks[0].Spec.PrivateVlans = &v1.PrivateVLANs{IsolatedVlan: 101}
			in.Profiles["secure"] = with(func(s *v1.PortProfileSpec) { s.PrivateRole = v1.PrivateRole_PRIVATE_ROLE_ISOLATED })
			in.Uplinks[0].Ifindex = 0
		}, []string{"lan:UPLINK_MISSING", "wide:UPLINK_MISSING"}, uplinkVIDIs(0)},
		"mirror": {func(in *Input) {
			in.Profiles["watched"] = with(func(s *v1.PortProfileSpec) { s.Mirror = &v1.Mirror{In: true, Port: "ids/n0"} })
			in.Ports[0].Profile = "watched"
			in.Ports = append(in.Ports, Port{Name: "ids/n0", Ifindex: 6, Slot: 3, MAC: mac(60), Network: "inside", Profile: "secure"})
		}, nil, func(t *testing.T, r *Result) {
			flags(table.PortMirrorIn, table.PortMirrorOut)(t, r)
			if r.Tables.Ports[5].MirrorIfindex != 6 {
				t.Error("not mirrored")
			}
		}},
		"mirror to nobody":  {profile(func(s *v1.PortProfileSpec) { s.Mirror = &v1.Mirror{In: true, Out: true, Port: "ids/n0"} }), []string{"web/n0::MIRROR_MISSING"}, flags(0, table.PortMirrorIn|table.PortMirrorOut)},
		"mirror to address": {profile(func(s *v1.PortProfileSpec) { s.Mirror = &v1.Mirror{Out: true, Address: "192.0.2.9"} }), nil, flags(table.PortMirrorOut, table.PortMirrorIn)},
		"no profile": {func(in *Input) { in.Ports[0].Profile = "gone" }, []string{"web/n0:lan:PROFILE_MISSING"}, func(t *testing.T, r *Result) {
			if len(r.Tables.Ports) != 0 || r.Tables.FDB[table.FDBKey{Net: 10, MAC: mac(1)}].Place != 0 {
				t.Error("a port without a policy is there")
			}
		}},
		"no network": {func(in *Input) { in.Ports[0].Network = "far" }, []string{"web/n0:far:NETWORK_MISSING"}, nil},
		"same MAC": {func(in *Input) {
			in.Ports = append(in.Ports, Port{Name: "b/n0", Ifindex: 6, Slot: 3, MAC: mac(1), Network: "lan", Profile: "secure"})
		}, []string{"b/n0:lan:MAC_CONFLICT"}, nil},
		"same slot": {func(in *Input) {
			in.Ports = append(in.Ports, Port{Name: "b/n0", Ifindex: 6, Slot: 2, MAC: mac(61), Network: "lan", Profile: "secure"})
		}, []string{"web/n0:lan:SLOT"}, nil},
		"same address": {func(in *Input) {
			in.Ports = append(in.Ports, Port{Name: "b/n0", Ifindex: 6, Slot: 3, MAC: mac(61), Network: "lan", Profile: "secure", Addresses: []netip.Addr{addr("10.0.0.1")}})
		}, []string{"b/n0:lan:ADDRESS_CONFLICT"}, func(t *testing.T, r *Result) {
			if r.Tables.Bindings[table.BindingKey{Net: 10, IP: table.IPOf(addr("10.0.0.1"))}].Ifindex != 5 {
				t.Error("the later port took the address")
			}
		}},
		"uplink gone": {func(in *Input) { in.Uplinks[0].Ifindex = 0 }, []string{"lan:UPLINK_MISSING", "wide:UPLINK_MISSING"}, func(t *testing.T, r *Result) {
			if len(r.Tables.Uplinks) != 0 || r.Tables.Networks[10].Flags&table.NetworkUplink != 0 || r.Connections["lan"].Connects || !r.Connections["wide"].Connects {
				t.Error("the uplink is not gone")
			}
			if r.Tables.FDB[table.FDBKey{Net: 30, MAC: mac(4)}].Place != table.PlaceTunnel {
				t.Error("a stretched network goes by tunnel where there is no uplink")
			}
		}},
		"uplink too small": {func(in *Input) { in.Uplinks[0].MTU = 1450 }, []string{"lan:MTU_TOO_LARGE"}, func(t *testing.T, r *Result) {
			if r.Connections["lan"].Connects || !r.Connections["wide"].Connects || r.Tables.Networks[10].Flags&table.NetworkUplink == 0 {
				t.Errorf("%+v", r.Connections["lan"])
			}
		}},
		"overlay too small": {func(in *Input) { in.Overlay.MTU = 1479 }, []string{"inside:MTU_TOO_LARGE", "secret:MTU_TOO_LARGE"}, nil},
		"no overlay": {func(in *Input) { in.Overlay = Overlay{Reason: "port 4789 is taken"} }, []string{"inside:OVERLAY_UNAVAILABLE", "secret:OVERLAY_UNAVAILABLE", "wide:OVERLAY_UNAVAILABLE"}, func(t *testing.T, r *Result) {
			if len(r.Tables.VTEPs) != 0 || len(r.Hops) != 0 || len(r.Tables.Networks) != 4 || !r.Connections["wide"].Connects {
				t.Errorf("%v", r.Tables.VTEPs)
			}
		}},
		"no tunnel": {func(in *Input) { in.Overlay.Encrypted = false }, []string{"secret:TUNNEL_UNAVAILABLE"}, func(t *testing.T, r *Result) {
			if _, ok := r.Tables.FDB[table.FDBKey{Net: 40, MAC: mac(7)}]; ok {
				t.Error("frames that should be encrypted have a way that is not")
			}
		}},
		"same address of hosts": {func(in *Input) { in.Peers[2].OverlayAddress = "192.0.2.2" }, []string{":PEER_ADDRESS"}, func(t *testing.T, r *Result) {
			if _, ok := r.Tables.FDB[table.FDBKey{Net: 30, MAC: mac(5)}]; ok {
				t.Error("a frame for one host would go to another")
			}
		}},
		"same number": {func(in *Input) { in.Networks[1].Status.Vni = 10 }, []string{"lan:NETWORK_NUMBER", "web/n0:lan:NETWORK_MISSING"}, nil},
		"same VLAN":   {func(in *Input) { in.Networks[0].Spec.Physical.Vlan = 301 }, []string{"wide:VLAN_CONFLICT"}, nil},
		"two teams": {func(in *Input) {
			in.Networks[0].Spec.Physical.Team = "backup"
			in.Uplinks = append(in.Uplinks, Uplink{Name: "up1", Ifindex: 8, Slot: 9, MTU: 9000, Team: "backup"})
			in.Teams = append(in.Teams, Team{Name: "backup", Hash: table.TeamByIP})
		}, nil, func(t *testing.T, r *Result) {
			if p := r.Tables.Ports[5]; p.Team != 1 || p.TeamHash != table.TeamByIP || r.Tables.Networks[10].Team != 1 || r.Tables.Uplinks[8].Team != 1 || r.Tables.UplinkVLANs[table.UplinkKey{Ifindex: 8, VID: 100}].Net != 10 {
				t.Errorf("%+v", p)
			}
		}},
		"groups": {func(in *Input) {
			in.Ports[0].Groups, in.Ports[0].Routers = []Group{{10, addr("239.1.1.1")}, {20, addr("239.1.1.2")}}, []uint32{10}
		}, nil, func(t *testing.T, r *Result) {
			key := table.GroupKey{Net: 10, Target: 5, Group: table.IPOf(addr("239.1.1.1")), Place: uint32(table.PlaceLocal)}
			if len(r.Tables.Groups) != 1 || r.Tables.Groups[key] != 1 || r.Tables.Members[table.MemberKey{Net: 10}].Flags != table.MemberAllGroups {
				t.Errorf("%v", r.Tables.Groups)
			}
		}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			in := world()
			c.change(&in)
			r := Compile(in)
			got := reasons(r)
			slices.Sort(got)
			want := slices.Clone(c.problems)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("problems %v, want %v", r.Problems, want)
			}
			if c.check != nil {
				c.check(t, r)
			}
		})
	}
}

func TestRead(t *testing.T) {
	key, r, err := Read(&v1.Registration{Port: "a/b", Network: "n", Vni: 10, Mac: "52:54:00:00:00:01", Addresses: []string{"10.0.0.1/24", "::ffff:10.0.0.2"}, Host: "h", PrivateRole: v1.PrivateRole_PRIVATE_ROLE_ISOLATED})
	want := Registration{Port: "a/b", Host: "h", Addresses: []netip.Addr{addr("10.0.0.1"), addr("10.0.0.2")}, PVLAN: table.PVLANIsolated}
	if err != nil || key != (table.FDBKey{Net: 10, MAC: mac(1)}) || !reflect.DeepEqual(r, want) {
		t.Errorf("%v %v %v", key, r, err)
	}
	for _, bad := range []*v1.Registration{{Vni: 0, Mac: "52:54:00:00:00:01"}, {Vni: 1 << 24, Mac: "52:54:00:00:00:01"}, {Vni: 1, Mac: "53:54:00:00:00:01"}, {Vni: 1}, {Vni: 1, Mac: "52:54:00:00:00:01", Addresses: []string{"x"}}} {
		if _, _, err := Read(bad); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
	if k, err := ReadKey("10/52:54:00:00:00:01"); err != nil || k != key {
		t.Errorf("%v %v", k, err)
	}
	for _, bad := range []string{"", "10", "x/52:54:00:00:00:01", "99999999/52:54:00:00:00:01", "1/zz"} {
		if _, err := ReadKey(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func FuzzParseVLANs(f *testing.F) {
	for _, s := range []string{"1", "1-4094", "4095", "3-1", " 7 - 9 ", "-", "0x10"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		out, err := ParseVLANs([]string{s})
		if err == nil && (len(out) == 0 || out[0] < 1 || out[len(out)-1] > 4094 || !slices.IsSorted(out)) {
			t.Errorf("%q: %v", s, out)
		}
	})
}

// draw makes a random input.
func draw(t *rapid.T) Input {
	in := world()
	in.Profiles["open"] = with(func(s *v1.PortProfileSpec) {
		s.Security = &v1.Security{Promiscuous: on, MacChanges: on, MacLimit: 4}
		s.Guards.VirtualRouter = off
	})
	in.Profiles["trunk"] = with(func(s *v1.PortProfileSpec) { s.Trunk = &v1.Trunk{Vlans: []string{"1-400"}} })
	in.Ports, in.Registrations = nil, map[table.FDBKey]Registration{}
	anyMAC := rapid.Custom(func(t *rapid.T) table.MAC { return mac(byte(rapid.IntRange(0, 40).Draw(t, "mac"))) })
	anyAddr := rapid.Custom(func(t *rapid.T) netip.Addr {
		return netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(0, 20).Draw(t, "addr"))})
	})
	for i := range rapid.IntRange(0, 8).Draw(t, "ports") {
		in.Ports = append(in.Ports, Port{
			Name: "p" + string(rune('a'+i)), Ifindex: uint32(rapid.IntRange(5, 14).Draw(t, "ifindex")), Slot: uint32(rapid.IntRange(2, 12).Draw(t, "slot")),
			MAC: anyMAC.Draw(t, "own"), MACs: rapid.SliceOfN(anyMAC, 0, 3).Draw(t, "more"), Addresses: rapid.SliceOfN(anyAddr, 0, 6).Draw(t, "addresses"),
			Network: rapid.SampledFrom([]string{"lan", "inside", "wide", "secret", "far", "none"}).Draw(t, "network"),
			Profile: rapid.SampledFrom([]string{"secure", "open", "trunk", "gone"}).Draw(t, "profile"),
		})
	}
	for range rapid.IntRange(0, 30).Draw(t, "registrations") {
		key := table.FDBKey{Net: uint32(rapid.SampledFrom([]int{10, 20, 30, 40, 99}).Draw(t, "net")), MAC: anyMAC.Draw(t, "registered")}
		in.Registrations[key] = drawRegistration(t, anyAddr)
	}
	if rapid.Bool().Draw(t, "no overlay") {
		in.Overlay = Overlay{}
	}
	return in
}

func drawRegistration(t *rapid.T, anyAddr *rapid.Generator[netip.Addr]) Registration {
	return Registration{
		Port: "x" + string(rune('a'+rapid.IntRange(0, 9).Draw(t, "of"))), Host: rapid.SampledFrom([]string{"h1", "h2", "h3", "h9"}).Draw(t, "host"),
		Addresses: rapid.SliceOfN(anyAddr, 0, 3).Draw(t, "its addresses"),
	}
}

func TestProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := draw(t)
		r := Compile(in)
		tb := r.Tables
		shuffled := in
		for _, s := range []func(int, func(int, int)){rand.New(rand.NewPCG(1, 2)).Shuffle} {
			shuffled.Ports = slices.Clone(in.Ports)
			s(len(in.Ports), func(i, j int) { shuffled.Ports[i], shuffled.Ports[j] = shuffled.Ports[j], shuffled.Ports[i] })
			shuffled.Networks = slices.Clone(in.Networks)
			slices.Reverse(shuffled.Networks)
			shuffled.Peers = slices.Clone(in.Peers)
			slices.Reverse(shuffled.Peers)
		}
		if again := Compile(shuffled); !reflect.DeepEqual(again.Tables, tb) || !slices.Equal(again.Problems, r.Problems) {
			t.Fatalf("another order gives another result: %s", cmp.Diff(again.Problems, r.Problems))
		}
		own := map[table.MAC]bool{}
		for _, p := range in.Ports {
			own[p.MAC] = true
			for _, m := range p.MACs {
				own[m] = true
			}
		}
		for k, e := range tb.FDB {
			reg, registered := in.Registrations[k]
			switch e.Place {
			case table.PlaceLocal:
				if _, there := tb.Ports[e.Target]; !there || !own[k.MAC] {
					t.Fatalf("row %v is for no port: %v", k, e)
				}
			case table.PlaceTunnel:
				v, there := tb.VTEPs[e.Target]
				if !registered || reg.Host == "h1" || !there {
					t.Fatalf("row %v for what is not registered, or no host: %v", k, e)
				}
				if k.Net == 40 && reg.Host == "h3" && v.Family != table.FamilyIP6 {
					t.Fatalf("an encrypted network goes to another site in the clear: %v", v)
				}
			default:
				if !registered || tb.Networks[k.Net].Flags&table.NetworkUplink == 0 {
					t.Fatalf("row %v: %v", k, e)
				}
			}
			if _, ok := tb.Networks[k.Net]; !ok {
				t.Fatalf("row %v in no network", k)
			}
		}
		seen := map[table.Member]bool{}
		for k, m := range tb.Members {
			if k.Row >= tb.Networks[k.Net].Members {
				t.Fatalf("member %v is beyond the list", k)
			}
			_, port := tb.Ports[m.Target]
			_, vtep := tb.VTEPs[m.Target]
			if m.Place == table.PlaceLocal && !port || m.Place == table.PlaceTunnel && !vtep {
				t.Fatalf("member %v is nobody: %v", k, m)
			}
			key := m
			key.Community = uint16(k.Net)
			if seen[key] {
				t.Fatalf("%v is a member twice", m)
			}
			seen[key] = true
		}
		for i, p := range tb.Ports {
			if _, ok := tb.Networks[p.Net]; !ok && p.Net != 0 || p.Slot == 0 {
				t.Fatalf("port %d: %+v", i, p)
			}
			if _, ok := tb.Meters[p.Slot]; !ok {
				t.Fatalf("port %d has no meter", i)
			}
		}
		for k, b := range tb.Bindings {
			if b.Source != table.BindingRemote && tb.Ports[b.Ifindex].Slot == 0 {
				t.Fatalf("binding %v is of no port: %v", k, b)
			}
		}
	})
}

// Registrations one by one lead to the same rows as all at once, and Hops say when flood lists change.
func TestRegistered(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := draw(t)
		r := Compile(in)
		have, hops := r.Tables, r.Hops
		anyAddr := rapid.Custom(func(t *rapid.T) netip.Addr {
			// Addresses of their own: of two with one address, a single change can't know which is next.
			return netip.AddrFrom4([4]byte{10, 1, byte(rapid.IntRange(0, 255).Draw(t, "a")), byte(rapid.IntRange(0, 255).Draw(t, "b"))})
		})
		var steps []Step
		done := map[table.FDBKey]bool{}
		for range rapid.IntRange(1, 6).Draw(t, "steps") {
			key := table.FDBKey{Net: uint32(rapid.SampledFrom([]int{10, 20, 30, 40, 99}).Draw(t, "net")), MAC: mac(byte(rapid.IntRange(0, 60).Draw(t, "mac")))}
			if done[key] {
				continue
			}
			done[key] = true
			s := Step{Key: key}
			if old, ok := in.Registrations[key]; ok {
				s.Old = &old
			}
			if rapid.Bool().Draw(t, "registered") {
				reg := drawRegistration(t, anyAddr)
				s.New = &reg
			}
			steps = append(steps, s)
		}
		// Registrations that give up an address which another has, too, wait for the next whole compile.
		shared := map[table.BindingKey]int{}
		for k, reg := range in.Registrations {
			for _, a := range slices.Compact(slices.SortedFunc(slices.Values(reg.Addresses), netip.Addr.Compare)) {
				shared[table.BindingKey{Net: k.Net, IP: table.IPOf(a)}]++
			}
		}
		ch := r.View.Registered(have, steps)
		for _, s := range steps {
			if s.Old != nil {
				if h, ok := r.View.Hop(s.Key, *s.Old); ok {
					hops[h]--
				}
			}
			delete(in.Registrations, s.Key)
			if s.New != nil {
				if h, ok := r.View.Hop(s.Key, *s.New); ok {
					hops[h]++
				}
				in.Registrations[s.Key] = *s.New
			}
		}
		for k, e := range ch.Set {
			have.FDB[k] = e
		}
		for _, k := range ch.Remove {
			delete(have.FDB, k)
		}
		for k, b := range ch.Bind {
			have.Bindings[k] = b
		}
		for _, k := range ch.Unbind {
			delete(have.Bindings, k)
		}
		want := Compile(in)
		granted := false // a registration of a MAC that a port was granted before: the next whole compile takes it back
		for _, p := range want.Problems {
			granted = granted || p.Reason == "MAC_CONFLICT"
		}
		for _, p := range r.Problems {
			granted = granted || p.Reason == "MAC_CONFLICT"
		}
		if granted {
			return
		}
		if d := cmp.Diff(want.Tables.FDB, have.FDB, cmp.AllowUnexported(table.FDBKey{}, table.FDBEntry{})); d != "" {
			t.Fatalf("rows differ (- whole, + one by one): %s", d)
		}
		for k, b := range want.Tables.Bindings {
			if shared[k] < 2 && have.Bindings[k] != b {
				t.Fatalf("binding %v is %v, want %v", k, have.Bindings[k], b)
			}
		}
		for h, n := range hops {
			if n < 0 || n > 0 != (want.Hops[h] > 0) {
				t.Fatalf("tunnel end %v is there for %d, want %d", h, n, want.Hops[h])
			}
		}
	})
}

func BenchmarkCompile(b *testing.B) {
	in := world()
	for i := range 100_000 {
		in.Registrations[table.FDBKey{Net: 30, MAC: table.MAC{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)}}] = Registration{
			Port: "v", Host: "h3", Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}}
	}
	for b.Loop() {
		Compile(in)
	}
}
