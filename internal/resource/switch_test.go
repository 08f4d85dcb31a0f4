package resource

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "drover/api/drover/v1"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
)

// faulty fails the test unless an error has the reason at the field; an empty reason stands for no error.
func faulty(t *testing.T, what string, err error, reason, field string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{}
	}
	if e.Reason != reason || !strings.Contains(e.Field, field) || (err == nil) != (reason == "") {
		t.Errorf("%s: %v at %q, want %s at %q", what, err, e.Field, reason, field)
	}
}

func TestCheckNetwork(t *testing.T) {
	phys := func(p *v1.PhysicalSegment) *v1.NetworkSpec { return &v1.NetworkSpec{Physical: p} }
	private := func(p *v1.PrivateVLANs) *v1.NetworkSpec {
		return &v1.NetworkSpec{Physical: &v1.PhysicalSegment{Vlan: 10}, PrivateVlans: p}
	}
	for what, x := range map[string]struct {
		spec          *v1.NetworkSpec
		reason, field string
	}{
		"an empty one":           {nil, "", ""},
		"both sides":             {&v1.NetworkSpec{Physical: &v1.PhysicalSegment{Vlan: 4094}, Overlay: &v1.Overlay{Encrypted: true}}, "", ""},
		"untagged":               {phys(&v1.PhysicalSegment{}), "", ""},
		"a VLAN too high":        {phys(&v1.PhysicalSegment{Vlan: 4095}), "OUT_OF_RANGE", "physical.vlan"},
		"a negative VLAN":        {phys(&v1.PhysicalSegment{Vlan: -1}), "OUT_OF_RANGE", "physical.vlan"},
		"a site's VLAN too high": {phys(&v1.PhysicalSegment{SiteVlans: map[string]int32{"s1": 5000}}), "OUT_OF_RANGE", "site_vlans[s1]"},
		"a site it is not in":    {&v1.NetworkSpec{Sites: []string{"s2"}, Physical: &v1.PhysicalSegment{SiteVlans: map[string]int32{"s1": 5}}}, "CONTRADICTION", "site_vlans[s1]"},
		"a site twice":           {&v1.NetworkSpec{Sites: []string{"s2", "s2"}}, "NAME_TAKEN", "sites"},
		"a bad team":             {phys(&v1.PhysicalSegment{Team: "Big Team"}), "NAME_INVALID", "team"},
		"a number too high":      {&v1.NetworkSpec{Vni: 1 << 24}, "OUT_OF_RANGE", "vni"},
		"the highest number":     {&v1.NetworkSpec{Vni: 1<<24 - 1}, "", ""},
		"a small MTU":            {&v1.NetworkSpec{Mtu: 1279}, "OUT_OF_RANGE", "mtu"},
		"a jumbo MTU":            {&v1.NetworkSpec{Mtu: 9216}, "", ""},
		"a bad profile":          {&v1.NetworkSpec{Profile: "?"}, "NAME_INVALID", "profile"},
		"private VLANs":          {private(&v1.PrivateVLANs{IsolatedVlan: 11, CommunityVlans: map[int32]int32{1: 12, 65535: 13}}), "", ""},
		"isolated as primary":    {private(&v1.PrivateVLANs{IsolatedVlan: 10}), "VLAN_TAKEN", "isolated_vlan"},
		"a community twice":      {private(&v1.PrivateVLANs{IsolatedVlan: 11, CommunityVlans: map[int32]int32{1: 11}}), "VLAN_TAKEN", "community_vlans[1]"},
		"community 0":            {private(&v1.PrivateVLANs{CommunityVlans: map[int32]int32{0: 12}}), "OUT_OF_RANGE", "community_vlans[0]"},
		"an untagged community":  {private(&v1.PrivateVLANs{CommunityVlans: map[int32]int32{1: 0}}), "OUT_OF_RANGE", "community_vlans[1]"},
		"private without uplink": {&v1.NetworkSpec{PrivateVlans: &v1.PrivateVLANs{IsolatedVlan: 11}}, "CONTRADICTION", "private_vlans"},
		"a prefix with a host":   {&v1.NetworkSpec{Prefixes: []string{"10.0.0.1/24"}}, "PREFIX_INVALID", "prefixes"},
	} {
		faulty(t, what, CheckNetwork(&v1.Network{Meta: &v1.Meta{Name: "n"}, Spec: x.spec}), x.reason, x.field)
	}
}

func TestNetworkNumbers(t *testing.T) {
	four, six := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, x := range []struct {
		spec            *v1.NetworkSpec
		mtu, over4, ov6 int32
		overlay         bool
	}{
		{nil, 1430, 50, 70, true},
		{&v1.NetworkSpec{Overlay: &v1.Overlay{Encrypted: true}}, 1350, 110, 150, true},
		{&v1.NetworkSpec{Physical: &v1.PhysicalSegment{}}, 1500, 50, 70, false},
		{&v1.NetworkSpec{Physical: &v1.PhysicalSegment{}, Overlay: &v1.Overlay{}}, 1430, 50, 70, true},
		{&v1.NetworkSpec{Mtu: 9000}, 9000, 50, 70, true},
	} {
		if got := [3]int32{MTUOf(x.spec), Overhead(x.spec, four), Overhead(x.spec, six)}; got != [3]int32{x.mtu, x.over4, x.ov6} || HasOverlay(x.spec) != x.overlay {
			t.Errorf("%v: %v, overlay %v; want %v", x.spec, got, HasOverlay(x.spec), x)
		}
	}
	// What a default leaves room for is what it takes, also over IPv6.
	for _, enc := range []bool{false, true} {
		s := &v1.NetworkSpec{Overlay: &v1.Overlay{Encrypted: enc}}
		if total := MTUOf(s) + Overhead(s, six); total > 1500 {
			t.Errorf("encrypted %v: the default takes %d of 1500", enc, total)
		}
	}
	s := &v1.NetworkSpec{Physical: &v1.PhysicalSegment{Vlan: 1, SiteVlans: map[string]int32{"b": 2, "c": 0}}, PrivateVlans: &v1.PrivateVLANs{IsolatedVlan: 9, CommunityVlans: map[int32]int32{2: 7, 1: 8}}}
	for site, want := range map[string][]int32{"a": {1, 9, 8, 7}, "b": {2, 9, 8, 7}, "c": {0, 9, 8, 7}} {
		if got := VLANsAt(s, site); !slices.Equal(got, want) {
			t.Errorf("VLANs in %s: %v, want %v", site, got, want)
		}
	}
	a, err := TunnelAddress("01234567-89ab-4def-8123-456789abcdef")
	if want := netip.MustParseAddr("fd64:726f:7665:0:123:4567:89ab:4def"); err != nil || a != want {
		t.Errorf("tunnel address %v, %v; want %v", a, err, want)
	}
	for _, bad := range []string{"", "x", "01234567-89ab-4def-8123-456789abcdeg"} {
		if a, err := TunnelAddress(bad); err == nil {
			t.Errorf("%q has the tunnel address %v", bad, a)
		}
	}
}

func TestCheckTeams(t *testing.T) {
	up := []string{"eth0"}
	for what, x := range map[string]struct {
		teams         []*v1.UplinkTeam
		reason, field string
	}{
		"none":             {nil, "", ""},
		"two":              {[]*v1.UplinkTeam{{Name: "a", Uplinks: up}, {Name: "b", Uplinks: []string{"eth1"}, Standby: []string{"eth2"}, FailbackDelay: durationpb.New(time.Second)}}, "", ""},
		"no name":          {[]*v1.UplinkTeam{{Uplinks: up}}, "NAME_INVALID", "name"},
		"a name twice":     {[]*v1.UplinkTeam{{Name: "a", Uplinks: up}, {Name: "a", Uplinks: []string{"eth1"}}}, "NAME_TAKEN", "name"},
		"only standby":     {[]*v1.UplinkTeam{{Name: "a", Standby: up}}, "UPLINK_MISSING", "uplinks"},
		"in two teams":     {[]*v1.UplinkTeam{{Name: "a", Uplinks: up}, {Name: "b", Uplinks: up}}, "UPLINK_TAKEN", "teams[b]"},
		"also on standby":  {[]*v1.UplinkTeam{{Name: "a", Uplinks: up, Standby: up}}, "UPLINK_TAKEN", "teams[a]"},
		"no device":        {[]*v1.UplinkTeam{{Name: "a", Uplinks: []string{"../x"}}}, "NAME_INVALID", "uplinks"},
		"a long delay":     {[]*v1.UplinkTeam{{Name: "a", Uplinks: up, FailbackDelay: durationpb.New(2 * time.Hour)}}, "OUT_OF_RANGE", "failback_delay"},
		"a delay of what?": {[]*v1.UplinkTeam{{Name: "a", Uplinks: up, FailbackDelay: durationpb.New(time.Hour), NoFailback: true}}, "CONTRADICTION", "failback_delay"},
		"IP and standby":   {[]*v1.UplinkTeam{{Name: "a", Uplinks: up, Standby: []string{"eth1"}, Policy: v1.TeamPolicy_TEAM_POLICY_IP}}, "CONTRADICTION", "standby"},
		"a lone beacon":    {[]*v1.UplinkTeam{{Name: "a", Uplinks: up, Beacon: true}}, "CONTRADICTION", "beacon"},
		"an odd policy":    {[]*v1.UplinkTeam{{Name: "a", Uplinks: up, Policy: 99}}, "VALUE_UNKNOWN", "policy"},
	} {
		faulty(t, what, CheckHost(&v1.Host{Meta: &v1.Meta{Name: "h"}, Spec: &v1.HostSpec{Site: "s", Teams: x.teams}}), x.reason, x.field)
	}
	for addr, reason := range map[string]string{"192.0.2.1": "", "2001:db8::1": "", "127.0.0.1": "ADDRESS_INVALID", "ff02::1": "ADDRESS_INVALID", "h1": "ADDRESS_INVALID"} {
		faulty(t, addr, CheckHost(&v1.Host{Meta: &v1.Meta{Name: "h"}, Spec: &v1.HostSpec{Site: "s", OverlayAddress: addr}}), reason, "")
	}
}

func TestCheckProfile(t *testing.T) {
	const on = v1.Toggle_TOGGLE_ON
	role := v1.PrivateRole_PRIVATE_ROLE_COMMUNITY
	for what, x := range map[string]struct {
		spec          *v1.PortProfileSpec
		reason, field string
	}{
		"an empty one":              {nil, "", ""},
		"an odd toggle":             {&v1.PortProfileSpec{Guards: &v1.Guards{Arp: 7}}, "VALUE_UNKNOWN", "guards.arp"},
		"too many MACs":             {&v1.PortProfileSpec{Security: &v1.Security{MacChanges: on, MacLimit: 65}}, "OUT_OF_RANGE", "mac_limit"},
		"a negative storm":          {&v1.PortProfileSpec{Guards: &v1.Guards{Storm: &v1.StormControl{Broadcast: -2}}}, "OUT_OF_RANGE", "storm.broadcast"},
		"no storm control":          {&v1.PortProfileSpec{Guards: &v1.Guards{Storm: &v1.StormControl{Broadcast: -1}}}, "", ""},
		"a virtual address":         {&v1.PortProfileSpec{Guards: &v1.Guards{VirtualAddresses: []string{"224.0.0.1"}}}, "ADDRESS_INVALID", "virtual_addresses"},
		"trunk ranges":              {&v1.PortProfileSpec{Trunk: &v1.Trunk{Vlans: []string{"10", "20-29"}}}, "", ""},
		"a range backwards":         {&v1.PortProfileSpec{Trunk: &v1.Trunk{Vlans: []string{"29-20"}}}, "VLAN_INVALID", "trunk.vlans"},
		"VLAN 0":                    {&v1.PortProfileSpec{Trunk: &v1.Trunk{Vlans: []string{"0"}}}, "VLAN_INVALID", "trunk.vlans"},
		"no native, no VLAN":        {&v1.PortProfileSpec{Trunk: &v1.Trunk{NoNative: true}}, "CONTRADICTION", "no_native"},
		"a community without one":   {&v1.PortProfileSpec{PrivateRole: role}, "COMMUNITY_MISSING", "community"},
		"a community without role":  {&v1.PortProfileSpec{Community: 5}, "CONTRADICTION", "community"},
		"a community":               {&v1.PortProfileSpec{PrivateRole: role, Community: 5}, "", ""},
		"a slow limit":              {&v1.PortProfileSpec{Qos: &v1.QoS{In: &v1.Rate{LimitBps: 5}}}, "OUT_OF_RANGE", "in.limit_bps"},
		"a small burst":             {&v1.PortProfileSpec{Qos: &v1.QoS{In: &v1.Rate{LimitBps: 1e6, BurstBytes: 1500}}}, "OUT_OF_RANGE", "burst_bytes"},
		"a guarantee over":          {&v1.PortProfileSpec{Qos: &v1.QoS{In: &v1.Rate{LimitBps: 1e6, GuaranteeBps: 2e6}}}, "CONTRADICTION", "in.guarantee_bps"},
		"a guarantee out":           {&v1.PortProfileSpec{Qos: &v1.QoS{Out: &v1.Rate{GuaranteeBps: 2e6}}}, "CONTRADICTION", "out.guarantee_bps"},
		"dscp 64":                   {&v1.PortProfileSpec{Qos: &v1.QoS{Dscp: 64}}, "OUT_OF_RANGE", "dscp"},
		"cos 8":                     {&v1.PortProfileSpec{Qos: &v1.QoS{Cos: 8}}, "OUT_OF_RANGE", "cos"},
		"a mirror to both":          {&v1.PortProfileSpec{Mirror: &v1.Mirror{In: true, Port: "a/b", Address: "10.0.0.1", Session: 1}}, "CONTRADICTION", "mirror"},
		"a mirror to nothing":       {&v1.PortProfileSpec{Mirror: &v1.Mirror{In: true}}, "TARGET_MISSING", "mirror"},
		"a mirror of nothing":       {&v1.PortProfileSpec{Mirror: &v1.Mirror{Port: "a/b"}}, "CONTRADICTION", "mirror"},
		"a mirror to a VM":          {&v1.PortProfileSpec{Mirror: &v1.Mirror{Out: true, Port: "a"}}, "NAME_INVALID", "mirror.port"},
		"ERSPAN without session":    {&v1.PortProfileSpec{Mirror: &v1.Mirror{Out: true, Address: "10.0.0.1"}}, "SESSION_MISSING", "session"},
		"ERSPAN":                    {&v1.PortProfileSpec{Mirror: &v1.Mirror{Out: true, Address: "10.0.0.1", Session: 1023}}, "", ""},
		"a session of a local copy": {&v1.PortProfileSpec{Mirror: &v1.Mirror{Out: true, Port: "a/b", Session: 1}}, "CONTRADICTION", "session"},
	} {
		faulty(t, what, CheckProfile(&v1.PortProfile{Meta: &v1.Meta{Name: "p"}, Spec: x.spec}), x.reason, x.field)
	}
	for name, spec := range BuiltinProfiles() {
		if err := CheckProfile(&v1.PortProfile{Meta: &v1.Meta{Name: name}, Spec: spec}); err != nil || !Builtin(name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestContradictionsByInheritance(t *testing.T) {
	const on, off = v1.Toggle_TOGGLE_ON, v1.Toggle_TOGGLE_OFF
	root := BuiltinProfiles()[DefaultProfile]
	for what, x := range map[string]struct {
		own, parent   *v1.PortProfileSpec
		reason, field string
	}{
		"nothing":                     {&v1.PortProfileSpec{}, root, "", ""},
		"changes within one MAC":      {&v1.PortProfileSpec{Security: &v1.Security{MacChanges: on}}, &v1.PortProfileSpec{Security: &v1.Security{MacChanges: on, MacLimit: 1}}, "CONTRADICTION", "mac_limit"},
		"MACs without changes":        {&v1.PortProfileSpec{Security: &v1.Security{MacLimit: 4}}, root, "CONTRADICTION", "mac_limit"},
		"changes off again":           {&v1.PortProfileSpec{Security: &v1.Security{MacChanges: off}}, &v1.PortProfileSpec{Security: &v1.Security{MacChanges: on, MacLimit: 8}}, "", ""},
		"an isolated trunk":           {&v1.PortProfileSpec{PrivateRole: v1.PrivateRole_PRIVATE_ROLE_ISOLATED}, &v1.PortProfileSpec{Trunk: &v1.Trunk{Vlans: []string{"5"}}}, "CONTRADICTION", "trunk"},
		"isolated, no trunk any more": {&v1.PortProfileSpec{PrivateRole: v1.PrivateRole_PRIVATE_ROLE_ISOLATED, Trunk: &v1.Trunk{}}, &v1.PortProfileSpec{Trunk: &v1.Trunk{Vlans: []string{"5"}}}, "", ""},
		"a promiscuous trunk":         {&v1.PortProfileSpec{PrivateRole: v1.PrivateRole_PRIVATE_ROLE_PROMISCUOUS}, &v1.PortProfileSpec{Trunk: &v1.Trunk{Vlans: []string{"5"}}}, "", ""},
		"a guarantee over the limit":  {&v1.PortProfileSpec{Qos: &v1.QoS{In: &v1.Rate{GuaranteeBps: 2e6}}}, &v1.PortProfileSpec{Qos: &v1.QoS{In: &v1.Rate{LimitBps: 1e6}}}, "CONTRADICTION", "guarantee_bps"},
		"a limit under a guarantee":   {&v1.PortProfileSpec{Qos: &v1.QoS{In: &v1.Rate{LimitBps: 1e6}}}, &v1.PortProfileSpec{Qos: &v1.QoS{In: &v1.Rate{GuaranteeBps: 2e6}}}, "CONTRADICTION", "guarantee_bps"},
		"no guarantee any more":       {&v1.PortProfileSpec{Qos: &v1.QoS{In: &v1.Rate{LimitBps: 1e6, GuaranteeBps: -1}}}, &v1.PortProfileSpec{Qos: &v1.QoS{In: &v1.Rate{GuaranteeBps: 2e6}}}, "", ""},
		"virtual, but guarded":        {&v1.PortProfileSpec{Guards: &v1.Guards{VirtualAddresses: []string{"10.0.0.1"}}}, root, "CONTRADICTION", "virtual_addresses"},
	} {
		chain := []*v1.PortProfileSpec{x.own, x.parent, root}
		f := FaultsOf(KindProfile, "p")
		CheckEffective(f, x.own, Effective(chain))
		faulty(t, what, f.Err(), x.reason, x.field)
	}
}

func TestEffectiveSetsEveryField(t *testing.T) {
	e := Effective([]*v1.PortProfileSpec{{}, BuiltinProfiles()[DefaultProfile]})
	walkEnums(e.ProtoReflect(), "spec", func(at string, _ protoreflect.FieldDescriptor, n protoreflect.EnumNumber) {
		if n == 0 {
			t.Errorf("%s is unspecified", at)
		}
	})
	for _, m := range []protoreflect.Message{e.Security.ProtoReflect(), e.Guards.ProtoReflect()} {
		for i := range m.Descriptor().Fields().Len() {
			if fd := m.Descriptor().Fields().Get(i); fd.Enum() != nil && !m.Has(fd) {
				t.Errorf("%s is unset", fd.FullName())
			}
		}
	}
	if e.Qos.In.LimitBps != -1 || e.Qos.Out.LimitBps != -1 || e.Qos.Dscp != -1 || e.Qos.DscpSet || e.Security.MacLimit != 1 || e.Guards.DhcpRate != 15 || e.Guards.Storm.Multicast != 5000 {
		t.Errorf("default comes to %v", e)
	}
}

func TestEffectiveInherits(t *testing.T) {
	root := BuiltinProfiles()[DefaultProfile]
	parent := &v1.PortProfileSpec{
		Security: &v1.Security{MacChanges: v1.Toggle_TOGGLE_ON}, Qos: &v1.QoS{In: &v1.Rate{LimitBps: 80e6, BurstBytes: 100_000}, Dscp: 46, DscpSet: true, Cos: 5, CosSet: true},
		Mirror: &v1.Mirror{In: true, Port: "a/b"}, PrivateRole: v1.PrivateRole_PRIVATE_ROLE_COMMUNITY, Community: 9,
	}
	child := &v1.PortProfileSpec{Qos: &v1.QoS{In: &v1.Rate{LimitBps: 800e6}, Dscp: 0, DscpSet: true}, Mirror: &v1.Mirror{}}
	e := Effective([]*v1.PortProfileSpec{child, parent, root})
	switch {
	case e.Security.MacLimit != 4, e.Community != 9, e.Mirror.In || e.Mirror.Port != "":
		t.Errorf("child comes to %v", e)
	case e.Qos.In.LimitBps != 800e6 || e.Qos.In.BurstBytes != 5_000_000: // 50 ms of it
		t.Errorf("rate comes to %v", e.Qos.In)
	case e.Qos.Dscp != 0 || !e.Qos.DscpSet || e.Qos.Cos != 5:
		t.Errorf("marking comes to %v", e.Qos)
	}
	if e := Effective([]*v1.PortProfileSpec{{Qos: &v1.QoS{Dscp: -1}, PrivateRole: v1.PrivateRole_PRIVATE_ROLE_NONE}, parent, root}); e.Qos.DscpSet || e.Qos.Dscp != -1 || e.Community != 0 {
		t.Errorf("taken back: %v", e)
	}
	if d := Differences(e, Effective([]*v1.PortProfileSpec{parent, root})); len(d) != 5 {
		t.Errorf("differences: %v", d)
	}
	if d := Differences(e, e); len(d) != 0 {
		t.Errorf("differences from itself: %v", d)
	}
}

func FuzzParseVLANs(f *testing.F) {
	for _, s := range []string{"10", "20-29", "1-4094", "0", "29-20", "-", "4095", "01", "+5", "5-", "５"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		vlans, err := ParseVLANs([]string{s})
		if err != nil {
			return
		}
		if len(vlans) == 0 || !slices.IsSorted(vlans) || vlans[0] < 1 || vlans[len(vlans)-1] > 4094 {
			t.Errorf("%q is %v", s, vlans)
		}
		for i := 1; i < len(vlans); i++ {
			if vlans[i] != vlans[i-1]+1 {
				t.Errorf("%q has a hole after %d", s, vlans[i-1])
			}
		}
	})
}

func TestVirtualMAC(t *testing.T) {
	for mac, is := range map[string]bool{
		"00:00:5e:00:01:07": true, "00:00:5e:00:02:07": true, "00:00:5e:00:03:07": false, "00:00:0c:07:ac:01": true, "00:00:0c:9f:f1:01": true,
		"00:00:0c:9f:e1:01": false, "00:05:73:a0:0f:ff": true, "00:05:73:a0:1f:ff": false, "00:07:b4:00:01:02": true, "52:54:00:00:00:01": false,
	} {
		if VirtualMAC(mac) != is {
			t.Errorf("%s is a virtual router's: %v, want %v", mac, !is, is)
		}
		f := FaultsOf(KindVM, "v")
		checkNICs(f, &v1.VMSpec{Nics: []*v1.NICSpec{{Name: "n0", Network: "lan", Mac: mac}}}, nil)
		if err := f.Err(); (err != nil) != is {
			t.Errorf("a NIC with %s: %v", mac, err)
		}
	}
}
