package httpapi

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/auth"
	"drover/internal/resource"
	"drover/internal/rpc"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const on, off = v1.Toggle_TOGGLE_ON, v1.Toggle_TOGGLE_OFF

// wants fails the test unless an error has the reason and names all the parts.
func wants(t *testing.T, what string, err error, reason string, parts ...string) {
	t.Helper()
	if reasonOf(err) != reason {
		t.Errorf("%s: %v, want %s", what, err, reason)
		return
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("%s: %v, which does not say %q", what, err, p)
		}
	}
}

func TestProfilesInherit(t *testing.T) {
	r := start(t)
	ctx, c := t.Context(), r.profiles()
	for name, arp := range map[string]v1.Toggle{"default": off, "secure": on} {
		p, err := c.Get(ctx, &v1.GetRequest{Name: name})
		if err != nil || p.Status.Effective.Guards.Arp != arp || p.Status.Effective.Guards.Ra != on || p.Status.Effective.Security.MacLimit != 1 {
			t.Errorf("%s: %v, %v", name, p.GetStatus(), err)
		}
		_, err = c.Update(ctx, &v1.UpdatePortProfileRequest{Profile: &v1.PortProfile{Meta: &v1.Meta{Name: name}, Spec: &v1.PortProfileSpec{}}})
		wants(t, "update of "+name, err, "PROFILE_BUILTIN")
		_, err = c.Delete(ctx, &v1.DeleteRequest{Name: name})
		wants(t, "deletion of "+name, err, "PROFILE_BUILTIN")
	}
	a := r.profile(t, "a", &v1.PortProfileSpec{Parent: "secure", Qos: &v1.QoS{In: &v1.Rate{LimitBps: 8_000_000}}})
	b := r.profile(t, "b", &v1.PortProfileSpec{Parent: "a", Guards: &v1.Guards{Arp: off}})
	if e := b.Status.Effective; e.Guards.Arp != off || e.Guards.Nd != on || e.Qos.In.LimitBps != 8_000_000 || e.Qos.In.BurstBytes != 64<<10 || e.Qos.Out.LimitBps != -1 {
		t.Errorf("b comes to %v", e)
	}
	_, err := c.Update(ctx, &v1.UpdatePortProfileRequest{Profile: &v1.PortProfile{Meta: &v1.Meta{Name: "a"}, Spec: &v1.PortProfileSpec{Parent: "b"}}})
	wants(t, "a cycle", err, "PROFILE_CYCLE")
	_, err = c.Delete(ctx, &v1.DeleteRequest{Name: "a"})
	wants(t, "deletion of a parent", err, "IN_USE", "profile b")
	for _, x := range []string{"c", "d", "e", "f"} { // default, secure, a, b, c, d, e, f
		r.profile(t, x, &v1.PortProfileSpec{Parent: string(x[0] - 1)})
	}
	_, err = c.Create(ctx, &v1.CreatePortProfileRequest{Profile: &v1.PortProfile{Meta: &v1.Meta{Name: "g"}, Spec: &v1.PortProfileSpec{Parent: "f"}}})
	wants(t, "a chain of 9", err, "CHAIN_TOO_LONG")
	// A parent may not get children that its own change would make too deep.
	r.profile(t, "root", &v1.PortProfileSpec{})
	_, err = c.Update(ctx, &v1.UpdatePortProfileRequest{Profile: &v1.PortProfile{Meta: &v1.Meta{Name: "a"}, Spec: &v1.PortProfileSpec{Parent: "root"}}})
	if err != nil {
		t.Error(err)
	}
	r.profile(t, "root2", &v1.PortProfileSpec{Parent: "root"})
	_, err = c.Update(ctx, &v1.UpdatePortProfileRequest{Profile: &v1.PortProfile{Meta: &v1.Meta{Name: "a"}, Spec: &v1.PortProfileSpec{Parent: "root2"}}})
	wants(t, "a deeper parent", err, "CHAIN_TOO_LONG", `"f"`)
	// A parent's change must not make a child contradict itself.
	r.profile(t, "tagged", &v1.PortProfileSpec{Parent: "root", Trunk: &v1.Trunk{Vlans: []string{"10"}}})
	_, err = c.Update(ctx, &v1.UpdatePortProfileRequest{Profile: &v1.PortProfile{Meta: &v1.Meta{Name: "root"}, Spec: &v1.PortProfileSpec{PrivateRole: v1.PrivateRole_PRIVATE_ROLE_ISOLATED}}})
	wants(t, "a child that contradicts itself", err, "CHILD_CONTRADICTS", "tagged")
	if _, err = c.Delete(ctx, &v1.DeleteRequest{Name: "f", Revision: a.Meta.Revision}); errorOf(err) != resource.Conflict {
		t.Errorf("deletion of another revision: %v", err)
	}
	if _, err = c.Delete(ctx, &v1.DeleteRequest{Name: "f"}); err != nil {
		t.Error(err)
	}
}

func TestProfileChangesArePreviewed(t *testing.T) {
	r := start(t)
	h1, h2 := r.join(t, "h1"), r.join(t, "h2")
	ctx, c := t.Context(), r.profiles()
	r.profile(t, "p", &v1.PortProfileSpec{})
	r.profile(t, "child", &v1.PortProfileSpec{Parent: "p", Guards: &v1.Guards{Nd: on}})
	at := func(host, profile string) func(*v1.VM) {
		return func(vm *v1.VM) {
			vm.Spec.Placement = &v1.PlacementSpec{Host: host}
			vm.Spec.Nics[0].Profile = profile
		}
	}
	r.vm(t, "a", at("h1", "p"))
	r.vm(t, "b", at("h2", "child"))
	r.vm(t, "c", at("h1", ""))
	_, err := r.vms().Create(ctx, &v1.CreateVMRequest{Vm: &v1.VM{Meta: &v1.Meta{Name: "d"}, Spec: &v1.VMSpec{Nics: []*v1.NICSpec{{Name: "n0", Network: testNetwork, Profile: "none"}}}}})
	wants(t, "a profile that is not there", err, "REFERENCE_UNKNOWN", "none")
	spec := func(s *v1.PortProfileSpec) *v1.PortProfile {
		return &v1.PortProfile{Meta: &v1.Meta{Name: "p"}, Spec: s}
	}
	res, err := c.Preview(ctx, &v1.PreviewPortProfileRequest{Profile: spec(&v1.PortProfileSpec{Guards: &v1.Guards{Nd: on, Arp: on}})})
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	for _, p := range res.Ports {
		for _, f := range p.Fields {
			said = append(said, p.Port+"@"+p.Host+" "+f.Field+" "+f.Before+">"+f.After)
		}
	}
	want := []string{"a/n0@h1 guards.arp off>on", "a/n0@h1 guards.nd off>on", "b/n0@h2 guards.arp off>on"}
	if !slices.Equal(said, want) {
		t.Errorf("preview: %q, want %q", said, want)
	}
	// A mirror to a port of another host can't be followed, and is refused as a whole.
	mirror := spec(&v1.PortProfileSpec{Mirror: &v1.Mirror{In: true, Port: "c/n0"}})
	res, err = c.Preview(ctx, &v1.PreviewPortProfileRequest{Profile: mirror})
	if err != nil || len(res.Ports) != 2 || len(res.Ports[0].Faults) != 0 || len(res.Ports[1].Faults) != 1 {
		t.Errorf("preview of a mirror: %v, %v", res, err)
	}
	_, err = c.Update(ctx, &v1.UpdatePortProfileRequest{Profile: mirror})
	wants(t, "a mirror to another host", err, "PORTS_CANT_FOLLOW", "b/n0", "h2")
	if p, _ := c.Get(ctx, &v1.GetRequest{Name: "p"}); p.Meta.Generation != 1 || p.Status.Ports != 2 {
		t.Errorf("after a refusal: %v", p)
	}
	_, err = c.Delete(ctx, &v1.DeleteRequest{Name: "child"})
	wants(t, "deletion of a profile in use", err, "IN_USE", "nic b/n0")
	if _, err := c.Update(ctx, &v1.UpdatePortProfileRequest{Profile: spec(&v1.PortProfileSpec{Guards: &v1.Guards{Nd: on}})}); err != nil {
		t.Fatal(err)
	}
	for _, h := range []*testHost{h1, h2} {
		h.until(t, "the new profiles", func(x *toldSwitch) bool {
			p, ch := x.profiles["p"], x.profiles["child"]
			return p.GetStatus().GetEffective().GetGuards().GetNd() == on && p.Meta.Generation == 3 && ch.GetMeta().GetGeneration() == 4
		})
	}
	// Another parent with a lower generation must not make the chain's generation fall.
	r.profile(t, "young", &v1.PortProfileSpec{})
	if _, err := c.Update(ctx, &v1.UpdatePortProfileRequest{Profile: &v1.PortProfile{Meta: &v1.Meta{Name: "child"}, Spec: &v1.PortProfileSpec{Parent: "young"}}}); err != nil {
		t.Fatal(err)
	}
	h1.until(t, "the other parent", func(x *toldSwitch) bool { return x.profiles["child"].GetMeta().GetGeneration() > 4 })
	port, err := r.ports().Get(ctx, &v1.GetRequest{Name: "b/n0"})
	if err != nil || port.Status.Generation <= 4 || port.Spec.Profile != "child" {
		t.Errorf("port: %v, %v", port, err)
	}
}

func TestNetworksGetNumbers(t *testing.T) {
	r := start(t)
	r.prepare(t)
	ctx, c := t.Context(), r.networks()
	a, b := r.network(t, "a", nil), r.network(t, "b", &v1.NetworkSpec{Physical: &v1.PhysicalSegment{Vlan: 7}})
	if a.Status.Vni == 0 || a.Status.Vni == b.Status.Vni || a.Status.Mtu != 1430 || b.Status.Mtu != 1500 {
		t.Errorf("networks: %v, %v", a.Status, b.Status)
	}
	if _, err := c.Delete(ctx, &v1.DeleteRequest{Name: "b"}); err != nil {
		t.Fatal(err)
	}
	if again := r.network(t, "b", nil); again.Status.Vni == b.Status.Vni {
		t.Errorf("number %d was given twice", b.Status.Vni)
	}
	own := r.network(t, "own", &v1.NetworkSpec{Vni: 42})
	if own.Status.Vni != 42 {
		t.Errorf("own number: %v", own.Status)
	}
	_, err := c.Create(ctx, &v1.CreateNetworkRequest{Network: &v1.Network{Meta: &v1.Meta{Name: "x"}, Spec: &v1.NetworkSpec{Vni: 42}}})
	wants(t, "a number twice", err, "VNI_TAKEN", `"own"`)
	_, err = c.Update(ctx, &v1.UpdateNetworkRequest{Network: &v1.Network{Meta: &v1.Meta{Name: "a"}, Spec: &v1.NetworkSpec{Vni: 43}}})
	wants(t, "another number", err, "FIELD_IMMUTABLE")
	if n, err := c.Update(ctx, &v1.UpdateNetworkRequest{Network: &v1.Network{Meta: &v1.Meta{Name: "own"}, Spec: &v1.NetworkSpec{Mtu: 1400}}}); err != nil || n.Status.Vni != 42 || n.Status.Mtu != 1400 {
		t.Errorf("update without the number: %v, %v", n, err)
	}
	r.stop()
	again := startIn(t, r.dir, freeAddress(t))
	if n, err := again.networks().Get(ctx, &v1.GetRequest{Name: "own"}); err != nil || n.Status.Vni != 42 || n.Status.Mtu != 1400 {
		t.Errorf("after a restart: %v, %v", n, err)
	}
}

func TestNetworksStayApart(t *testing.T) {
	r := start(t)
	r.prepare(t)
	ctx, c := t.Context(), r.networks()
	if _, err := r.sites().Create(ctx, &v1.CreateSiteRequest{Site: &v1.Site{Meta: &v1.Meta{Name: "s2"}}}); err != nil {
		t.Fatal(err)
	}
	r.network(t, "ten", &v1.NetworkSpec{Sites: []string{testSite}, Physical: &v1.PhysicalSegment{Vlan: 10}, PrivateVlans: &v1.PrivateVLANs{IsolatedVlan: 11}})
	for _, x := range []struct {
		what, reason string
		spec         *v1.NetworkSpec
	}{
		{"the same VLAN", "VLAN_TAKEN", &v1.NetworkSpec{Physical: &v1.PhysicalSegment{Vlan: 10}}},
		{"a secondary VLAN", "VLAN_TAKEN", &v1.NetworkSpec{Physical: &v1.PhysicalSegment{Vlan: 11}}},
		{"the same VLAN by site", "VLAN_TAKEN", &v1.NetworkSpec{Physical: &v1.PhysicalSegment{Vlan: 12, SiteVlans: map[string]int32{testSite: 10}}}},
		{"another site", "", &v1.NetworkSpec{Sites: []string{"s2"}, Physical: &v1.PhysicalSegment{Vlan: 10}}},
		{"another team", "", &v1.NetworkSpec{Sites: []string{testSite}, Physical: &v1.PhysicalSegment{Vlan: 10, Team: "lab"}}},
		{"an unknown profile", "REFERENCE_UNKNOWN", &v1.NetworkSpec{Profile: "none"}},
		{"an unknown site", "REFERENCE_UNKNOWN", &v1.NetworkSpec{Physical: &v1.PhysicalSegment{SiteVlans: map[string]int32{"s9": 1}}}},
	} {
		_, err := c.Create(ctx, &v1.CreateNetworkRequest{ValidateOnly: true, Network: &v1.Network{Meta: &v1.Meta{Name: "x"}, Spec: x.spec}})
		wants(t, x.what, err, x.reason)
	}
}

func TestMTUMustFit(t *testing.T) {
	r := start(t)
	h := r.join(t, "h1")
	h.say(t, func(st *v1.HostStatus) {
		st.Uplinks = []*v1.Uplink{{Name: "eth0", Team: "default", Mtu: 1500}}
		st.Switch = &v1.SwitchStatus{OverlayAddress: "192.0.2.1", OverlayMtu: 1500}
	})
	ctx, c := t.Context(), r.networks()
	for _, x := range []struct {
		what string
		spec *v1.NetworkSpec
		says []string
	}{
		{"physical", &v1.NetworkSpec{Mtu: 9000, Physical: &v1.PhysicalSegment{Vlan: 5}}, []string{"h1", "eth0", "1500", "9000"}},
		{"overlay", &v1.NetworkSpec{Mtu: 1451}, []string{"h1", "1501", "1450"}},
		{"overlay that fits", &v1.NetworkSpec{Mtu: 1450}, nil},
		{"encrypted", &v1.NetworkSpec{Mtu: 1391, Overlay: &v1.Overlay{Encrypted: true}}, []string{"1501", "1390"}},
		{"encrypted that fits", &v1.NetworkSpec{Mtu: 1390, Overlay: &v1.Overlay{Encrypted: true}}, nil},
	} {
		_, err := c.Create(ctx, &v1.CreateNetworkRequest{ValidateOnly: true, Network: &v1.Network{Meta: &v1.Meta{Name: "x"}, Spec: x.spec}})
		reason := ""
		if x.says != nil {
			reason = "MTU_TOO_LARGE"
		}
		wants(t, x.what, err, reason, x.says...)
	}
	// A host that says later that it can't is a condition of the network.
	jumbo := r.network(t, "jumbo", &v1.NetworkSpec{Mtu: 1450})
	if len(jumbo.Status.Conditions) != 1 { // not offered yet
		t.Errorf("conditions: %v", jumbo.Status.Conditions)
	}
	h.say(t, func(st *v1.HostStatus) {
		st.Switch = &v1.SwitchStatus{OverlayAddress: "2001:db8::1", OverlayMtu: 1500}
	})
	n, err := c.Get(ctx, &v1.GetRequest{Name: "jumbo"})
	if err != nil || len(n.Status.Conditions) != 1 || n.Status.Conditions[0].Reason != "MTU_TOO_LARGE" || !strings.Contains(n.Status.Conditions[0].Message, "1520") {
		t.Errorf("conditions: %v, %v", n.GetStatus().GetConditions(), err)
	}
}

func TestNetworksInUseKeepTheirSides(t *testing.T) {
	r := start(t)
	r.join(t, "h1")
	vm := r.vm(t, "a", func(vm *v1.VM) { vm.Spec.Power = v1.Power_POWER_ON })
	r.await(t, vm.Meta.Name, "up", isPhase(v1.VMPhase_VM_PHASE_RUNNING))
	if _, err := r.sites().Create(t.Context(), &v1.CreateSiteRequest{Site: &v1.Site{Meta: &v1.Meta{Name: "s2"}}}); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		what, reason string
		spec         *v1.NetworkSpec
	}{
		{"no overlay any more", "NETWORK_IN_USE", &v1.NetworkSpec{Mtu: 1430, Physical: &v1.PhysicalSegment{Vlan: 5}}},
		{"a smaller MTU by encryption", "NETWORK_IN_USE", &v1.NetworkSpec{Overlay: &v1.Overlay{Encrypted: true}}},
		{"other sites", "NETWORK_IN_USE", &v1.NetworkSpec{Sites: []string{"s2"}}},
		{"stretched to the uplinks", "", &v1.NetworkSpec{Overlay: &v1.Overlay{}, Physical: &v1.PhysicalSegment{Vlan: 5}}},
		{"a larger MTU", "", &v1.NetworkSpec{Mtu: 1440}},
		{"its own site", "", &v1.NetworkSpec{Sites: []string{testSite}}},
	} {
		_, err := r.networks().Update(t.Context(), &v1.UpdateNetworkRequest{ValidateOnly: true, Network: &v1.Network{Meta: &v1.Meta{Name: testNetwork}, Spec: x.spec}})
		wants(t, x.what, err, x.reason)
	}
}

func TestHostsAreToldWhoIsWhere(t *testing.T) {
	r := start(t)
	h1, h2 := r.join(t, "h1"), r.join(t, "h2")
	ctx := t.Context()
	vm := r.vm(t, "a", func(vm *v1.VM) {
		vm.Spec.Placement = &v1.PlacementSpec{Host: "h1"}
		vm.Spec.Nics[0].Addresses = []string{"10.0.0.5/24", "2001:db8::5/64"}
	})
	both := []*testHost{h1, h2}
	for _, h := range both {
		h.until(t, "of a's NIC", func(x *toldSwitch) bool {
			reg := x.registered("a/n0")
			return reg != nil && x.early && reg.Host == "h1" && reg.Vni == x.networks[testNetwork].GetStatus().GetVni() && slices.Equal(reg.Addresses, []string{"10.0.0.5", "2001:db8::5"})
		})
	}
	// What its host saw of it reaches the others; what others say of it does not.
	h2.reportPort(t, vm, "n0", &v1.PortStatus{Bindings: []*v1.Binding{{Address: "10.0.0.66", Source: "dhcp"}}})
	h1.reportPort(t, vm, "n0", &v1.PortStatus{
		Device: "tap0", Active: true, ObservedGeneration: 1, Counters: &v1.PortCounters{InPackets: 5}, Macs: []string{"02:00:00:00:00:09"}, Groups: []string{"239.1.1.1"},
		Bindings: []*v1.Binding{
			{Address: "10.0.0.7", Source: "dhcp", ExpireTime: timestamppb.New(time.Now().Add(time.Hour))},
			{Address: "10.0.0.8", Source: "dhcp", ExpireTime: timestamppb.New(time.Now().Add(-time.Hour))},
		},
	})
	h2.until(t, "of the lease", func(x *toldSwitch) bool {
		reg := x.registered("a/n0")
		return slices.Equal(reg.GetAddresses(), []string{"10.0.0.5", "2001:db8::5", "10.0.0.7"}) && slices.Equal(reg.Groups, []string{"239.1.1.1"}) && len(x.regs) == 1
	})
	port, err := r.ports().Get(ctx, &v1.GetRequest{Name: "a/n0"})
	if err != nil || !port.Status.Active || port.Status.Counters.InPackets != 5 || len(port.Status.Bindings) != 3 || len(port.Status.Macs) != 0 || port.Status.Host != "h1" {
		t.Errorf("port: %v, %v", port, err)
	}
	// The profile grants further MACs: at once.
	r.profile(t, "free", &v1.PortProfileSpec{Security: &v1.Security{MacChanges: on}, PrivateRole: v1.PrivateRole_PRIVATE_ROLE_ISOLATED})
	if _, err := r.nics().Update(ctx, &v1.UpdateNICRequest{Nic: &v1.NIC{Meta: &v1.Meta{Name: "a/n0"}, Spec: &v1.NICSpec{Profile: "free"}}, Mask: &fieldmaskpb.FieldMask{Paths: []string{"spec.profile"}}}); err != nil {
		t.Fatal(err)
	}
	h2.until(t, "of the granted MAC", func(x *toldSwitch) bool {
		return len(x.regs) == 2 && x.registered("a/n0").PrivateRole == v1.PrivateRole_PRIVATE_ROLE_ISOLATED
	})
	// Another port may not take it, and that is said.
	other := r.vm(t, "b", func(vm *v1.VM) {
		vm.Spec.Placement = &v1.PlacementSpec{Host: "h2"}
		vm.Spec.Nics[0].Profile = "free"
	})
	h2.reportPort(t, other, "n0", &v1.PortStatus{Macs: []string{"02:00:00:00:00:09", vm.Spec.Nics[0].Mac}})
	port, err = r.ports().Get(ctx, &v1.GetRequest{Name: "b/n0"})
	if err != nil || len(port.Status.Conditions) != 2 || port.Status.Conditions[0].Reason != "MAC_CONFLICT" || !strings.Contains(port.Status.Conditions[0].Message, "a/n0") {
		t.Errorf("port with taken MACs: %v, %v", port, err)
	}
	h1.until(t, "of b's NIC alone", func(x *toldSwitch) bool { return len(x.regs) == 3 && x.registered("b/n0") != nil })
	// Who had it gives it up: then the other gets it.
	h1.reportPort(t, vm, "n0", &v1.PortStatus{Device: "tap0"})
	h1.until(t, "that the MAC is b's", func(x *toldSwitch) bool {
		for key, reg := range x.regs {
			if strings.HasSuffix(key, "/02:00:00:00:00:09") {
				return reg.Port == "b/n0"
			}
		}
		return false
	})
	if _, err := r.vms().Delete(ctx, &v1.DeleteRequest{Name: "a"}); err != nil {
		t.Fatal(err)
	}
	h2.until(t, "that a is gone", func(x *toldSwitch) bool { return x.registered("a/n0") == nil && len(x.regs) == 3 }) // its MAC goes to b, who asked for it
}

func TestVirtualRoutersMove(t *testing.T) {
	r := start(t)
	h := r.join(t, "h1")
	r.profile(t, "router", &v1.PortProfileSpec{Guards: &v1.Guards{VirtualRouter: off, VirtualAddresses: []string{"10.0.0.1"}}})
	router := func(vm *v1.VM) { vm.Spec.Nics[0].Profile = "router" }
	a, b, c := r.vm(t, "a", router), r.vm(t, "b", router), r.vm(t, "c")
	const mac = "00:00:5e:00:01:0a"
	holds := func(port string) func(*toldSwitch) bool {
		return func(x *toldSwitch) bool {
			for key, reg := range x.regs {
				if strings.HasSuffix(key, mac) {
					return reg.Port == port && slices.Equal(reg.Addresses, []string{"10.0.0.1"})
				}
			}
			return false
		}
	}
	st := func() *v1.PortStatus {
		return &v1.PortStatus{Macs: []string{mac}, Bindings: []*v1.Binding{{Address: "10.0.0.1", Mac: mac, Source: "virtual"}, {Address: "10.0.0.2", Mac: mac, Source: "virtual"}}}
	}
	h.reportPort(t, c, "n0", st()) // may not
	h.reportPort(t, a, "n0", st())
	h.until(t, "that a has the virtual MAC", holds("a/n0"))
	h.reportPort(t, b, "n0", st())
	h.until(t, "that b has it", holds("b/n0"))
	h.reportPort(t, b, "n0", &v1.PortStatus{})
	h.until(t, "that a has it again", holds("a/n0"))
}

func TestPeersAndSites(t *testing.T) {
	r := start(t)
	h1, h2 := r.join(t, "h1"), r.join(t, "h2")
	h2.say(t, func(st *v1.HostStatus) {
		st.Switch = &v1.SwitchStatus{OverlayAddress: "192.0.2.2", TunnelKey: "key", TunnelPort: 51820, Registrations: 9}
		st.Uplinks = []*v1.Uplink{{Name: "eth0", Team: "default", Counters: &v1.PortCounters{InPackets: 3}}}
	})
	h1.until(t, "of h2", func(x *toldSwitch) bool {
		p := x.peers["h2"]
		return p.GetOverlayAddress() == "192.0.2.2" && p.TunnelKey == "key" && p.TunnelPort == 51820 && strings.HasPrefix(p.TunnelAddress, "fd64:726f:7665:0:") &&
			slices.Equal(p.PhysicalNetworks, []string{testNetwork}) && p.Site == testSite && x.peers["h1"] == nil
	})
	view, err := r.switches().Show(t.Context(), &v1.ShowSwitchRequest{})
	if err != nil || len(view.Hosts) != 2 || view.Hosts[1].Status.Registrations != 9 || view.Hosts[1].Uplinks[0].Counters.InPackets != 3 || view.Hosts[1].Stale {
		t.Errorf("switch: %v, %v", view, err)
	}
	// What moves all the time is no news, and is not stored.
	was, _ := r.hosts().Get(t.Context(), &v1.GetRequest{Name: "h2"})
	h2.say(t, func(st *v1.HostStatus) {
		st.Switch = &v1.SwitchStatus{OverlayAddress: "192.0.2.2", TunnelKey: "key", TunnelPort: 51820, Registrations: 10}
		st.Uplinks = []*v1.Uplink{{Name: "eth0", Team: "default", Counters: &v1.PortCounters{InPackets: 4}}}
	})
	is, err := r.hosts().Get(t.Context(), &v1.GetRequest{Name: "h2"})
	if err != nil || is.Meta.Revision != was.Meta.Revision || is.Status.Uplinks[0].Counters.InPackets != 4 || is.Status.Switch.Registrations != 10 {
		t.Errorf("after counting on: %v, %v", is, err)
	}
	// An agent that has no hold of its datapath takes no VMs, but the datapath goes on: the others go on to reach its VMs.
	var before *v1.Peer
	h1.until(t, "of h2 as before", func(x *toldSwitch) bool { before = x.peers["h2"]; return before != nil })
	h2.say(t, func(st *v1.HostStatus) {
		st.Networks, st.Switch = nil, &v1.SwitchStatus{}
		st.Conditions = []*v1.Condition{{Type: "SWITCH_UNAVAILABLE", Status: true, Reason: "SWITCH_UNAVAILABLE", Message: "no memory"}}
	})
	r.profile(t, "mark", &v1.PortProfileSpec{}) // is told behind the news of h2
	h1.until(t, "the mark", func(x *toldSwitch) bool { return x.profiles["mark"] != nil })
	h1.until(t, "of h2 still", func(x *toldSwitch) bool { return proto.Equal(x.peers["h2"], before) })
	view, err = r.switches().Show(t.Context(), &v1.ShowSwitchRequest{})
	if err != nil || len(view.Hosts[1].Conditions) != 1 || len(view.Hosts[1].Networks) != 0 || view.Hosts[1].Status.OverlayAddress != "192.0.2.2" {
		t.Errorf("switch without a datapath: %v, %v", view, err)
	}
	h2.say(t, func(st *v1.HostStatus) {
		st.Switch = &v1.SwitchStatus{OverlayAddress: "192.0.2.3", TunnelKey: "key", TunnelPort: 51820}
	})
	h1.until(t, "of h2's new address", func(x *toldSwitch) bool {
		return x.peers["h2"].GetOverlayAddress() == "192.0.2.3" && slices.Equal(x.peers["h2"].PhysicalNetworks, []string{testNetwork})
	})
	// Hosts hear of the networks of their sites only, also when these change.
	if _, err := r.sites().Create(t.Context(), &v1.CreateSiteRequest{Site: &v1.Site{Meta: &v1.Meta{Name: "s2"}}}); err != nil {
		t.Fatal(err)
	}
	r.vm(t, "a", func(vm *v1.VM) { vm.Spec.Placement = &v1.PlacementSpec{Host: "h1"} })
	h2.until(t, "of a", func(x *toldSwitch) bool { return x.registered("a/n0") != nil })
	if _, err := r.hosts().Update(t.Context(), &v1.UpdateHostRequest{Host: &v1.Host{Meta: &v1.Meta{Name: "h2"}, Spec: &v1.HostSpec{Site: "s2"}}, Mask: &fieldmaskpb.FieldMask{Paths: []string{"spec.site"}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.networks().Update(t.Context(), &v1.UpdateNetworkRequest{Network: &v1.Network{Meta: &v1.Meta{Name: testNetwork}, Spec: &v1.NetworkSpec{Sites: []string{testSite}}}}); err != nil {
		t.Fatal(err)
	}
	h2.until(t, "to forget a", func(x *toldSwitch) bool { return x.registered("a/n0") == nil })
	h1.until(t, "that h2 has moved", func(x *toldSwitch) bool { return x.peers["h2"].GetSite() == "s2" && x.registered("a/n0") != nil })
	h2.stop()
	if _, err := r.hosts().Delete(t.Context(), &v1.DeleteRequest{Name: "h2"}); err != nil {
		t.Fatal(err)
	}
	h1.until(t, "that h2 is gone", func(x *toldSwitch) bool { return x.peers["h2"] == nil })
}

func TestPortsAreWatched(t *testing.T) {
	r := start(t)
	h := r.join(t, "h1")
	vm := r.vm(t, "a")
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	st, err := r.ports().Watch(ctx, &v1.WatchRequest{Filter: `status.host = "h1"`})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	next := func() *v1.PortChange {
		t.Helper()
		for st.Receive() {
			if c := st.Msg(); c.Kind != v1.ChangeKind_CHANGE_KIND_SYNCED {
				return proto.CloneOf(c)
			}
		}
		t.Fatal(st.Err())
		return nil
	}
	if c := next(); c.Kind != v1.ChangeKind_CHANGE_KIND_ADDED || c.Port.Meta.Name != "a/n0" || c.Port.Spec.Profile != "default" {
		t.Errorf("first: %v", c)
	}
	h.reportPort(t, vm, "n0", &v1.PortStatus{Device: "tap0", Active: true, Counters: &v1.PortCounters{Drops: []*v1.DropCounter{{Reason: "ARP", Packets: 1}}}})
	if c := next(); c.Kind != v1.ChangeKind_CHANGE_KIND_MODIFIED || !c.Port.Status.Active || c.Port.Status.Counters.Drops[0].Reason != "ARP" {
		t.Errorf("after a report: %v", c)
	}
	// A whole report without the port means that its device is gone. What it counted stays.
	if err := h.hello(ctx); err != nil {
		t.Fatal(err)
	}
	if c := next(); c.Port.Status.Active || c.Port.Status.Device != "" || len(c.Port.Status.Counters.Drops) != 1 {
		t.Errorf("after a whole report: %v", c)
	}
	if _, err := r.vms().Delete(ctx, &v1.DeleteRequest{Name: "a"}); err != nil {
		t.Fatal(err)
	}
	c := next()
	for c.Kind == v1.ChangeKind_CHANGE_KIND_MODIFIED && c.Port.Meta.DeleteTime != nil {
		c = next()
	}
	if c.Kind != v1.ChangeKind_CHANGE_KIND_DELETED || c.Port.Meta.Name != "a/n0" {
		t.Errorf("last: %v", c)
	}
	if _, err := r.ports().Get(ctx, &v1.GetRequest{Name: "a/n0"}); errorOf(err) != resource.NotFound {
		t.Errorf("a port that is gone: %v", err)
	}
}

func TestPortsAreLookedInto(t *testing.T) {
	r := start(t)
	h := r.join(t, "h1")
	ctx := t.Context()
	capture := func(req *v1.CapturePortRequest) (data []string, err error) {
		st, err := r.ports().Capture(ctx, req)
		if err != nil {
			return nil, err
		}
		defer st.Close()
		for st.Receive() {
			data = append(data, string(st.Msg().Data))
		}
		return data, st.Err()
	}
	r.vm(t, "a")
	_, err := capture(&v1.CapturePortRequest{Name: "a/n0"})
	wants(t, "a VM that is off", err, "PORT_OFF", "vm start a")
	_, err = capture(&v1.CapturePortRequest{Name: "a/n9"})
	wants(t, "no such NIC", err, "NOT_FOUND")
	_, err = capture(&v1.CapturePortRequest{Name: "a/n0", Points: []string{"everywhere"}})
	wants(t, "an unknown point", err, "VALUE_UNKNOWN")
	_, err = capture(&v1.CapturePortRequest{Name: "a/n0", Time: durationpb.New(2 * time.Hour)})
	wants(t, "too long", err, "OUT_OF_RANGE")
	if _, err := r.vms().Start(ctx, &v1.StartVMRequest{Name: "a"}); err != nil {
		t.Fatal(err)
	}
	r.await(t, "a", "running", isPhase(v1.VMPhase_VM_PHASE_RUNNING))
	if got, err := capture(&v1.CapturePortRequest{Name: "a/n0"}); err != nil || !slices.Equal(got, []string{"a/n0", "a/n0", "a/n0"}) {
		t.Errorf("captured %q, %v", got, err)
	}
	// It is written down who looked at what, and nothing of what was seen.
	l, err := r.m.ListAudit(ctx, &v1.ListAuditRequest{Kind: "port"})
	if err != nil || len(l.Records) == 0 || l.Records[0].Name != "a/n0" || !strings.HasSuffix(l.Records[0].Method, "PortService/Capture") || l.Records[0].After != "" {
		t.Errorf("audit log: %v, %v", l, err)
	}
	for _, x := range []struct {
		req    *v1.TracePortRequest
		reason string
	}{
		{&v1.TracePortRequest{Name: "a/n0", Describe: "arp"}, ""},
		{&v1.TracePortRequest{Uplink: "h1/eth0", Describe: "arp"}, ""},
		{&v1.TracePortRequest{Name: "a/n0"}, "PACKET_MISSING"},
		{&v1.TracePortRequest{Describe: "arp"}, "NAME_MISSING"},
		{&v1.TracePortRequest{Name: "a/n0", Uplink: "h1/eth0", Describe: "arp"}, "CONTRADICTION"},
		{&v1.TracePortRequest{Uplink: "h9/eth0", Describe: "arp"}, "NOT_FOUND"},
		{&v1.TracePortRequest{Uplink: "h1", Describe: "arp"}, "NAME_INVALID"},
	} {
		res, err := r.ports().Trace(ctx, x.req)
		wants(t, x.req.String(), err, x.reason)
		if err == nil && res.Frame != "h1 arp" {
			t.Errorf("trace: %v", res)
		}
	}
	table := func(host, network string) (entries []*v1.TableEntry, err error) {
		st, err := r.switches().Table(ctx, &v1.SwitchTableRequest{Host: host, Network: network})
		if err != nil {
			return nil, err
		}
		defer st.Close()
		for st.Receive() {
			entries = append(entries, st.Msg().Entries...)
		}
		return entries, st.Err()
	}
	if e, err := table("h1", testNetwork); err != nil || len(e) != 1 || e[0].Target != "h1" {
		t.Errorf("table: %v, %v", e, err)
	}
	_, err = table("h1", "none")
	wants(t, "table of an unknown network", err, "NOT_FOUND")
	h.stop()
	_, err = capture(&v1.CapturePortRequest{Name: "a/n0"})
	wants(t, "a host that is gone", err, "HOST_UNREACHABLE", "h1")
	// Who may only look sees ports and traces, not what guests say.
	looks := auth.WithPrincipal(ctx, auth.Principal{Kind: auth.KindUser, Name: "eve", Scopes: []auth.Scope{auth.ScopeAdmin}, Roles: []auth.Grant{{Role: auth.RoleViewer}}})
	for procedure, may := range map[string]bool{"PortService/List": true, "PortService/Trace": true, "SwitchService/Table": true, "PortProfileService/Preview": true, "PortService/Capture": false, "PortProfileService/Update": false} {
		if err := permit(looks, "/drover.v1."+procedure); (err == nil) != may {
			t.Errorf("a viewer and %s: %v", procedure, err)
		}
	}
}

// After a restart the manager does not know yet what hosts have told it of ports: until they have, no host is told to forget what it knows.
func TestRestartForgetsNoRegistration(t *testing.T) {
	r := start(t)
	h := r.join(t, "h1")
	r.vm(t, "a")
	h.until(t, "of a", func(x *toldSwitch) bool { return x.registered("a/n0") != nil && x.fulls == 1 })
	// A second host, which was there and is silent after the restart.
	r.join(t, "h2").stop()
	h.sw.Lock()
	h.sw.early, h.sw.synced, h.sw.fulls = false, false, 0
	h.sw.Unlock()
	r.stop()
	again := startIn(t, r.dir, r.address)
	h.until(t, "what there is, then all of it", func(x *toldSwitch) bool { return x.synced && x.fulls == 1 })
	h.sw.Lock()
	if h.sw.early || h.sw.registered("a/n0") == nil {
		t.Errorf("whole batch before all hosts were heard: %v; registrations %v", h.sw.early, h.sw.regs)
	}
	h.sw.Unlock()
	again.stop()
}

func TestTeamsNeedTheirUplinks(t *testing.T) {
	r := start(t)
	h := r.join(t, "h1")
	if _, err := r.networks().Update(t.Context(), &v1.UpdateNetworkRequest{Network: &v1.Network{Meta: &v1.Meta{Name: testNetwork}, Spec: &v1.NetworkSpec{Physical: &v1.PhysicalSegment{Vlan: 5}}}}); err != nil {
		t.Fatal(err)
	}
	r.vm(t, "a")
	set := func(teams ...*v1.UplinkTeam) error {
		_, err := r.hosts().Update(t.Context(), &v1.UpdateHostRequest{Host: &v1.Host{Meta: &v1.Meta{Name: "h1"}, Spec: &v1.HostSpec{Teams: teams}}, Mask: &fieldmaskpb.FieldMask{Paths: []string{"spec.teams"}}, ValidateOnly: true})
		return err
	}
	team := func(name, device string) *v1.UplinkTeam { return &v1.UplinkTeam{Name: name, Uplinks: []string{device}} }
	wants(t, "before the host has said what it has", set(team("default", "eth9")), "")
	h.say(t, func(st *v1.HostStatus) {
		st.Uplinks = []*v1.Uplink{{Name: "eth0", Team: "default", Mtu: 1500}, {Name: "eth1", Mtu: 1400}, {Name: "eth2", Mtu: 1500, Address: "192.0.2.7/24"}}
	})
	wants(t, "the machine's own device", set(team("default", "eth2")), "UPLINK_IN_USE", "192.0.2.7")
	wants(t, "a device that is not there", set(team("default", "eth9")), "UPLINK_UNKNOWN", "eth9", "eth0, eth1, eth2")
	wants(t, "its own device", set(team("default", "eth0")), "")
	wants(t, "a team in use", set(team("other", "eth0")), "TEAM_IN_USE", testNetwork)
	wants(t, "a smaller MTU", set(team("default", "eth1")), "MTU_TOO_LARGE", "1400", "1500")
}

// A VM on a network that was made a moment ago is placed before any host has said that it offers the network.
func TestNetworkJustMade(t *testing.T) {
	r := start(t)
	h := r.join(t, "h1")
	on := func(network string) error {
		_, err := r.vms().Create(t.Context(), &v1.CreateVMRequest{ValidateOnly: true, Vm: &v1.VM{Meta: &v1.Meta{Name: "a"}, Spec: &v1.VMSpec{
			Cpus: 1, MemoryBytes: 64 << 20, Nics: []*v1.NICSpec{{Name: "n", Network: network}}}}})
		return err
	}
	r.network(t, "over", &v1.NetworkSpec{Overlay: &v1.Overlay{}})
	r.network(t, "wire", &v1.NetworkSpec{Physical: &v1.PhysicalSegment{Vlan: 6}})
	r.network(t, "elsewhere", &v1.NetworkSpec{Physical: &v1.PhysicalSegment{Vlan: 7, Team: "other"}})
	wants(t, "a host that has said nothing of a switch", on("over"), "NO_HOST_FITS")
	h.say(t, func(st *v1.HostStatus) {
		st.Switch = &v1.SwitchStatus{OverlayAddress: "192.0.2.1", OverlayMtu: 1500}
		st.Uplinks = []*v1.Uplink{{Name: "eth0", Team: "default", Mtu: 1500}}
	})
	wants(t, "an overlay", on("over"), "")
	wants(t, "a VLAN", on("wire"), "")
	wants(t, "a team that it does not have", on("elsewhere"), "NO_HOST_FITS")
}

// A host that only serves repositories takes no VM and no datastore, and is no peer of the others.
func TestRepositoriesOnlyHost(t *testing.T) {
	r := start(t)
	h := r.join(t, "vault1")
	h.say(t, func(st *v1.HostStatus) { st.RepositoriesOnly = true })
	_, err := r.vms().Create(t.Context(), &v1.CreateVMRequest{ValidateOnly: true, Vm: &v1.VM{Meta: &v1.Meta{Name: "a"}, Spec: &v1.VMSpec{Cpus: 1, MemoryBytes: 64 << 20}}})
	wants(t, "a VM", err, "NO_HOST_FITS", "vault1", "serves repositories")
	_, err = droverv1connect.NewDatastoreServiceClient(rpc.UnixClient(r.socket), base, rpc.ClientOptions()...).Create(t.Context(), &v1.CreateDatastoreRequest{ValidateOnly: true, Datastore: &v1.Datastore{Meta: &v1.Meta{Name: "d"}, Spec: &v1.DatastoreSpec{Host: "vault1", Path: "/srv/x"}}})
	wants(t, "a datastore", err, "NO_VMS_HERE")
	list, err := r.hosts().List(t.Context(), &v1.ListRequest{Filter: "status.repositories_only = true"})
	if err != nil || len(list.Hosts) != 1 {
		t.Errorf("hosts that only serve repositories: %v, %v", list, err)
	}
}

// A trunk is on every network whose VLAN it carries in its site: others reach it there, and cease to when the VLAN is taken off.
func TestTrunksAreRegisteredOnTheirNetworks(t *testing.T) {
	r := start(t)
	h := r.join(t, "h1")
	ctx := t.Context()
	for name, spec := range map[string]*v1.NetworkSpec{
		"ten": {Physical: &v1.PhysicalSegment{Vlan: 10}}, "twelve": {Physical: &v1.PhysicalSegment{Vlan: 4000, SiteVlans: map[string]int32{testSite: 12}}},
		"other": {Physical: &v1.PhysicalSegment{Vlan: 10, Team: "lab"}},
	} {
		r.network(t, name, spec)
	}
	r.profile(t, "router", &v1.PortProfileSpec{Trunk: &v1.Trunk{Vlans: []string{"5-15"}}})
	vm := r.vm(t, "a", func(vm *v1.VM) { vm.Spec.Nics[0].Profile = "router" })
	on := func(networks ...string) func(*toldSwitch) bool {
		return func(x *toldSwitch) bool {
			var have []string
			for _, reg := range x.regs {
				if reg.Mac == vm.Spec.Nics[0].Mac {
					have = append(have, reg.Network)
				}
			}
			slices.Sort(have)
			return slices.Equal(have, networks)
		}
	}
	h.until(t, "of the trunk's networks", on(testNetwork, "ten", "twelve"))
	r.network(t, "eleven", &v1.NetworkSpec{Physical: &v1.PhysicalSegment{Vlan: 11}})
	h.until(t, "of the trunk on a network that is new", on("eleven", testNetwork, "ten", "twelve"))
	if _, err := r.networks().Delete(ctx, &v1.DeleteRequest{Name: "eleven"}); err != nil {
		t.Fatal(err)
	}
	h.until(t, "of one network less", on(testNetwork, "ten", "twelve"))
	if _, err := r.profiles().Update(ctx, &v1.UpdatePortProfileRequest{Profile: &v1.PortProfile{Meta: &v1.Meta{Name: "router"}, Spec: &v1.PortProfileSpec{Trunk: &v1.Trunk{Vlans: []string{"12"}, NoNative: true}}}}); err != nil {
		t.Fatal(err)
	}
	h.until(t, "of the tagged network alone", on("twelve"))
}
