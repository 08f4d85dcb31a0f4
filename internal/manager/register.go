package manager

import (
	"net/netip"
	"slices"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"
)

// registrations are what a port wants to be registered: its own MAC, and those that it was granted, each with its addresses, if no other port has them; those of a
// trunk in all networks that it carries. A VM without a host is nowhere, so nothing of it is registered. The board's lock is held.
func (b *board) registrations(name string, p *boardPort, site string, nic *v1.NICSpec, net *v1.Network, e *v1.PortProfileSpec, bound []*v1.Binding) map[string]*v1.Registration {
	if p.host == "" || net == nil {
		return nil
	}
	list := map[string]*v1.Registration{}
	macs := append([]string{nic.Mac}, granted(p.status, e)...)
	for _, n := range b.carried(site, net, e) {
		for i, mac := range macs {
			vni := n.GetStatus().GetVni()
			key := registrationKey(vni, mac)
			if mac == "" || vni == 0 || list[key] != nil {
				continue
			}
			reg := &v1.Registration{Port: name, Network: n.Meta.Name, Vni: vni, Mac: mac, Host: p.host, PrivateRole: e.GetPrivateRole(), Community: e.GetCommunity()}
			list[key] = reg
			if n.Meta.Name != net.Meta.Name {
				continue // addresses and groups are known of the NIC's own network
			}
			if i == 0 {
				reg.Groups = p.status.GetGroups()
			}
			for _, x := range bound {
				if x.Mac == mac && (x.Source == bindingVirtual || b.addressee(addressKey(vni, x.Address)) == name) {
					reg.Addresses = append(reg.Addresses, x.Address)
				}
			}
		}
	}
	return list
}

// carried are the networks that a port is on: the NIC's own, and those that are the VLANs of a trunk in its site, on its own network's team.
func (b *board) carried(site string, own *v1.Network, e *v1.PortProfileSpec) []*v1.Network {
	vlans, _ := resource.ParseVLANs(e.GetTrunk().GetVlans()) // was checked when the profile was made
	if len(vlans) == 0 {
		return []*v1.Network{own}
	}
	var list []*v1.Network
	if !e.Trunk.NoNative {
		list = append(list, own)
	}
	all, _ := b.m.Networks.cache.List()
	for _, n := range all {
		_, has := slices.BinarySearch(vlans, uint16(resource.VLANAt(n.Spec, site)))
		if has && n.Spec.GetPhysical() != nil && resource.Spans(n.Spec, site) && resource.TeamOf(n.Spec) == resource.TeamOf(own.Spec) && !slices.ContainsFunc(list, func(x *v1.Network) bool { return x.Meta.Name == n.Meta.Name }) {
			list = append(list, n)
		}
	}
	return list
}

// granted are the further MACs of a port that its profile allows, whatever its host says.
func granted(st *v1.PortStatus, e *v1.PortProfileSpec) []string {
	var list []string
	room := int(e.GetSecurity().GetMacLimit()) - 1
	for _, mac := range st.GetMacs() {
		switch {
		case resource.VirtualMAC(mac):
			if e.GetGuards().GetVirtualRouter() != v1.Toggle_TOGGLE_ON {
				list = append(list, mac)
			}
		case e.GetSecurity().GetMacChanges() == v1.Toggle_TOGGLE_ON && room > 0:
			room--
			list = append(list, mac)
		}
	}
	return list
}

// bindings are the addresses of a port: those of its NIC, and those that its host saw and that have not ended. The MAC of one that names none is the NIC's.
func (b *board) bindings(st *v1.PortStatus, nic *v1.NICSpec, e *v1.PortProfileSpec) []*v1.Binding {
	var list []*v1.Binding
	for _, a := range nic.Addresses {
		if p, err := netip.ParsePrefix(a); err == nil {
			list = append(list, &v1.Binding{Address: p.Addr().String(), Mac: nic.Mac, Source: bindingAssigned})
		}
	}
	now := b.m.cfg.Clock.Now()
	for _, x := range st.GetBindings() {
		switch {
		case expired(x, now), slices.ContainsFunc(list, func(y *v1.Binding) bool { return y.Address == x.Address }):
		case x.Source == bindingVirtual && !slices.ContainsFunc(e.GetGuards().GetVirtualAddresses(), func(v string) bool { return sameAddress(v, x.Address) }):
		default:
			list = append(list, x)
		}
	}
	return list
}

// Sources of bindings.
const (
	bindingAssigned = "assigned"
	bindingDHCP     = "dhcp"
	bindingVirtual  = "virtual"
)

func sameAddress(a, b string) bool {
	x, err1 := netip.ParseAddr(a)
	y, err2 := netip.ParseAddr(b)
	return err1 == nil && err2 == nil && x.Unmap() == y.Unmap()
}

// show is a port as callers see it; nil if there is none. The board's lock is held.
func (b *board) show(name string, inForce func(string) force) *v1.Port {
	p := b.ports[name]
	vmName, part, _ := resource.Part(name)
	vm, _ := b.m.VMs.cache.Get(vmName)
	nic := nicOf(vm, part)
	if p == nil || nic == nil {
		return nil
	}
	e := inForce(p.profile).effective
	meta := partMeta(vm, part)
	meta.UpdateTime, meta.Generation = p.status.GetUpdateTime(), 0
	st := clone(p.status)
	if st == nil {
		st = &v1.PortStatus{}
	}
	st.Host, st.Site, st.Generation = p.host, vm.GetStatus().GetSite(), p.chain
	st.Bindings = b.bindings(p.status, nic, e)
	st.Macs = granted(p.status, e)
	for _, key := range sorted(p.wants) {
		if first := b.holders[key][0]; first.port != name {
			st.Conditions = append(st.Conditions, &v1.Condition{Type: "MAC_CONFLICT", Status: true, Reason: "MAC_CONFLICT", Message: p.wants[key].Mac + " is that of port " + first.port + ", and so not this one's"})
		}
	}
	st.Conditions = append(st.Conditions, b.addressFaults(name, p)...)
	return &v1.Port{Meta: meta, Spec: &v1.PortSpec{Network: nic.Network, Mac: nic.Mac, Profile: p.profile, LinkDown: nic.LinkDown}, Status: st}
}
