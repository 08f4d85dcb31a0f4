package manager

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"
	"drover/internal/store"

	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// CreateNetwork stores a network and gives it its number.
func (m *Manager) CreateNetwork(ctx context.Context, n *v1.Network, validateOnly bool) (*v1.Network, error) {
	if err := needMeta(resource.KindNetwork, n); err != nil {
		return nil, err
	}
	ctx, done, err := m.exclusive(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	n = clone(n)
	if n.Spec == nil {
		n.Spec = &v1.NetworkSpec{}
	}
	n.Status = nil
	if _, ok := m.Networks.cache.Get(n.Meta.Name); ok {
		return nil, m.Networks.translate(store.ErrExists, n.Meta.Name)
	}
	if err := m.checkNetwork(nil, n); err != nil {
		return nil, err
	}
	ops, err := m.giveVNI(ctx, n)
	if err != nil {
		return nil, err
	}
	if validateOnly {
		if n.Spec.Vni == 0 {
			n.Status.Vni = 0 // given when it is made
		}
		return m.Networks.seen(n), nil
	}
	return m.Networks.create(ctx, m.store, n, ops...)
}

// giveVNI sets what the manager alone decides of a new network, or of one that an earlier version made, and returns the note of it that
// must be stored with the network.
func (m *Manager) giveVNI(ctx context.Context, n *v1.Network) ([]store.Op, error) {
	n.Status = &v1.NetworkStatus{Vni: n.Spec.Vni, Mtu: resource.MTUOf(n.Spec)}
	if n.Spec.Vni != 0 {
		return nil, nil
	}
	used := map[int32]bool{}
	all, _ := m.Networks.cache.List()
	for _, x := range all {
		used[x.GetStatus().GetVni()] = true
	}
	c, err := m.clusters.Get(ctx, clusterName)
	if err != nil {
		return nil, m.Networks.translate(err, n.Meta.Name)
	}
	for range len(used) + 2 {
		if c.LastVni++; c.LastVni < firstVNI || c.LastVni > lastVNI {
			c.LastVni = firstVNI
		}
		if !used[c.LastVni] {
			n.Status.Vni = c.LastVni
			return []store.Op{m.clusters.UpdateOp(c)}, nil
		}
	}
	return nil, &resource.Error{Code: resource.Exhausted, Kind: resource.KindNetwork, Name: n.Meta.Name, Reason: "VNI_EXHAUSTED", Message: "no number is left for it", Remedy: "delete networks that nothing uses"}
}

// The numbers that the manager gives: above those that people like to choose.
const (
	firstVNI = 10_000
	lastVNI  = 1<<24 - 1
)

// openNetworks gives numbers to networks that an earlier version made without.
func (m *Manager) openNetworks(ctx context.Context) error {
	ctx, done, err := m.exclusive(ctx)
	if err != nil {
		return err
	}
	defer done()
	all, _ := m.Networks.cache.List()
	for _, n := range all {
		if n.GetStatus().GetVni() != 0 {
			continue
		}
		n = clone(n)
		ops, err := m.giveVNI(ctx, n)
		if err != nil {
			return err
		}
		rev, err := m.store.Txn(ctx, append(ops, m.Networks.coll.UpdateOp(n))...)
		if err != nil {
			return m.Networks.translate(err, n.Meta.Name)
		}
		if err := m.Networks.cache.WaitRevision(ctx, rev); err != nil {
			return err
		}
	}
	return nil
}

// UpdateNetwork changes a network.
func (m *Manager) UpdateNetwork(ctx context.Context, n *v1.Network, mask *fieldmaskpb.FieldMask, validateOnly bool) (*v1.Network, error) {
	return updateSimple(ctx, m, m.Networks, n, mask, validateOnly, m.checkNetwork, func(_, n *v1.Network) error {
		n.Status = &v1.NetworkStatus{Vni: n.GetStatus().GetVni(), Mtu: resource.MTUOf(n.Spec)}
		return nil
	})
}

// DeleteNetwork deletes a network that no NIC is on.
func (m *Manager) DeleteNetwork(ctx context.Context, name string, revision int64) (*v1.Network, error) {
	ctx, done, err := m.exclusive(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return deleteSimple(ctx, m.Networks, name, revision, func(*v1.Network) (users []string) {
		vms, _ := m.VMs.cache.List()
		for _, vm := range vms {
			if slices.ContainsFunc(vm.Spec.Nics, func(n *v1.NICSpec) bool { return n.Network == name }) && len(users) < mostUsers {
				users = append(users, "vm "+vm.Meta.Name)
			}
		}
		return users
	})
}

// checkNetwork says what is wrong with a network in its place among the others, on the hosts, and under its NICs. old is what it was, or nil.
func (m *Manager) checkNetwork(old, n *v1.Network) error {
	if err := resource.CheckNetwork(n); err != nil {
		return err
	}
	f := resource.FaultsOf(resource.KindNetwork, n.Meta.Name)
	for _, s := range n.Spec.Sites {
		m.Sites.exists(f, "spec.sites", s)
	}
	for s := range n.Spec.GetPhysical().GetSiteVlans() {
		m.Sites.exists(f, "spec.physical.site_vlans", s)
	}
	if p := n.Spec.Profile; p != "" {
		m.Profiles.exists(f, "spec.profile", p)
	}
	vni := n.GetStatus().GetVni()
	if old == nil {
		vni = n.Spec.Vni
	} else if n.Spec.Vni != 0 && n.Spec.Vni != vni {
		f.Add("spec.vni", "FIELD_IMMUTABLE", "the network is number %d, which stands in packets on the way and never changes; leave it out", vni)
	}
	all, _ := m.Networks.cache.List()
	for _, x := range all {
		if x.Meta.Name == n.Meta.Name {
			continue
		}
		if vni != 0 && x.GetStatus().GetVni() == vni {
			f.Add("spec.vni", "VNI_TAKEN", "%d is network %q; leave it out to be given one", vni, x.Meta.Name)
		}
		m.apart(f, n, x)
	}
	m.checkFit(f, old, n)
	if err := f.Err(); err != nil || old == nil {
		return err
	}
	return m.checkInUse(old, n)
}

// apart adds a fault where two networks would be the same VLAN of the same uplinks.
func (m *Manager) apart(f *resource.Faults, n, x *v1.Network) {
	if n.Spec.Physical == nil || x.Spec.GetPhysical() == nil || resource.TeamOf(n.Spec) != resource.TeamOf(x.Spec) {
		return
	}
	in := []string{""} // a site that is yet to come
	all, _ := m.Sites.cache.List()
	for _, s := range all {
		in = append(in, s.Meta.Name)
	}
	for _, site := range in {
		if site == "" && len(n.Spec.Sites)+len(x.Spec.GetSites()) > 0 || !resource.Spans(n.Spec, site) || !resource.Spans(x.Spec, site) {
			continue
		}
		have := resource.VLANsAt(x.Spec, site)
		for _, v := range resource.VLANsAt(n.Spec, site) {
			if !slices.Contains(have, v) {
				continue
			}
			what, where := fmt.Sprintf("VLAN %d", v), "every site"
			if v == 0 {
				what = "what is untagged"
			}
			if site != "" {
				where = fmt.Sprintf("site %q", site)
			}
			f.Add("spec.physical", "VLAN_TAKEN", "%s on team %q of %s is network %q already; choose another VLAN, team or site", what, resource.TeamOf(n.Spec), where, x.Meta.Name)
			return
		}
	}
}

// checkFit adds faults where the MTU of a network is more than hosts of its sites can carry. Hosts that have not said what they can are
// not asked; they say so themselves then, as a condition.
func (m *Manager) checkFit(f *resource.Faults, old, n *v1.Network) {
	if old != nil && resource.MTUOf(old.Spec) >= resource.MTUOf(n.Spec) && sameSides(old.Spec, n.Spec) && slices.Equal(old.Spec.Sites, n.Spec.Sites) {
		return // it is no worse than it was
	}
	hosts, _ := m.Hosts.cache.List()
	told := 0
	for _, h := range hosts {
		for _, why := range tooNarrow(h, n.Spec) {
			if told++; told <= mostNarrow {
				f.Add("spec.mtu", "MTU_TOO_LARGE", "host %q: %s", h.Meta.Name, why)
			}
		}
	}
	if told > mostNarrow {
		f.Add("spec.mtu", "MTU_TOO_LARGE", "and %d more of this kind", told-mostNarrow)
	}
}

// mostNarrow bounds how many places are named that can't carry an MTU: of a hundred hosts most have the same fault.
const mostNarrow = 3

func sameSides(a, b *v1.NetworkSpec) bool {
	return resource.HasOverlay(a) == resource.HasOverlay(b) && a.GetOverlay().GetEncrypted() == b.GetOverlay().GetEncrypted() &&
		(a.Physical == nil) == (b.Physical == nil) && resource.TeamOf(a) == resource.TeamOf(b)
}

// tooNarrow says where a host can't carry the MTU of a network of its site.
func tooNarrow(h *v1.Host, s *v1.NetworkSpec) (faults []string) {
	if !resource.Spans(s, h.Spec.GetSite()) {
		return nil
	}
	mtu := resource.MTUOf(s)
	if s.GetPhysical() != nil {
		for _, u := range h.GetStatus().GetUplinks() {
			if u.Team == resource.TeamOf(s) && u.Mtu > 0 && u.Mtu < mtu {
				faults = append(faults, fmt.Sprintf("uplink %s has MTU %d, the network %d; raise that of the uplink, or give the network %d", u.Name, u.Mtu, mtu, u.Mtu))
			}
		}
	}
	if sw := h.GetStatus().GetSwitch(); resource.HasOverlay(s) && sw.GetOverlayAddress() != "" && sw.GetOverlayMtu() > 0 {
		outer, _ := netip.ParseAddr(sw.OverlayAddress)
		if over := resource.Overhead(s, outer); mtu+over > sw.OverlayMtu {
			faults = append(faults, fmt.Sprintf("its way to other hosts has MTU %d, and packets of MTU %d take %d there; raise that of the way, or give the network %d", sw.OverlayMtu, mtu, mtu+over, sw.OverlayMtu-over))
		}
	}
	return faults
}

// checkInUse refuses what would cut off NICs that are on the network.
func (m *Manager) checkInUse(old, n *v1.Network) error {
	on, up := map[string]int{}, 0
	nics := 0
	m.eachPort(func(vm *v1.VM, nic *v1.NICSpec, _ *v1.Network) {
		if nic.Network != n.Meta.Name {
			return
		}
		nics++
		on[vm.GetStatus().GetOwner()]++
		if isUp(vm.GetStatus().GetPhase()) {
			up++
		}
	})
	if nics == 0 {
		return nil
	}
	f := resource.FaultsOf(resource.KindNetwork, n.Meta.Name)
	a, b := old.Spec, n.Spec
	if a.GetPhysical() != nil && b.GetPhysical() == nil {
		f.Add("spec.physical", "NETWORK_IN_USE", "%d NICs reach others through the uplinks; move them to another network first", nics)
	}
	if resource.HasOverlay(a) && !resource.HasOverlay(b) {
		f.Add("spec.overlay", "NETWORK_IN_USE", "%d NICs reach those on other hosts through it; move them to another network first", nics)
	}
	if was, is := resource.MTUOf(a), resource.MTUOf(b); is < was && up > 0 {
		f.Add("spec.mtu", "NETWORK_IN_USE", "would fall from %d to %d, and %d NICs of VMs that are up go on with %d; set spec.mtu to %d, or stop them first", was, is, up, was, was)
	}
	if b.GetPhysical() != nil && (a.GetPhysical() == nil || resource.TeamOf(a) != resource.TeamOf(b)) && !resource.HasOverlay(b) {
		for _, name := range sorted(on) {
			h, ok := m.Hosts.cache.Get(name)
			if ok && len(h.GetStatus().GetUplinks()) > 0 && !hasTeam(h, resource.TeamOf(b)) {
				f.Add("spec.physical.team", "NETWORK_IN_USE", "host %q, with %d NICs on the network, has no team %q", name, on[name], resource.TeamOf(b))
			}
		}
	}
	for _, name := range sorted(on) {
		if h, ok := m.Hosts.cache.Get(name); ok && resource.Spans(a, h.Spec.Site) && !resource.Spans(b, h.Spec.Site) {
			f.Add("spec.sites", "NETWORK_IN_USE", "host %q in site %q has %d NICs on it; move them to another network first", name, h.Spec.Site, on[name])
		}
	}
	if err := f.Err(); err != nil {
		return err
	}
	return m.checkFollow(old, n)
}

// checkFollow refuses another profile for a network where some port that would follow it can't.
func (m *Manager) checkFollow(old, n *v1.Network) error {
	if a, b := profileOf(nil, old), profileOf(nil, n); a != b {
		e, _ := profiles{m: m}.effective(b)
		var faults []string
		m.eachPort(func(vm *v1.VM, nic *v1.NICSpec, _ *v1.Network) {
			if nic.Network != n.Meta.Name || nic.Profile != "" {
				return
			}
			for _, x := range m.unfit(vm, nic, n, e) {
				faults = append(faults, vm.Meta.Name+"/"+nic.Name+": "+x)
			}
		})
		return portFaults(resource.KindNetwork, n.Meta.Name, faults)
	}
	return nil
}

func hasTeam(h *v1.Host, team string) bool {
	return slices.ContainsFunc(h.GetStatus().GetUplinks(), func(u *v1.Uplink) bool { return u.Team == team })
}

func (m *Manager) showNetwork(n *v1.Network) {
	n.Status = &v1.NetworkStatus{Vni: n.GetStatus().GetVni(), Mtu: resource.MTUOf(n.Spec)}
	hosts, _ := m.Hosts.cache.List()
	for _, h := range hosts {
		if offers(h, n) {
			n.Status.Hosts = append(n.Status.Hosts, h.Meta.Name)
			if narrow := tooNarrow(h, n.Spec); len(narrow) > 0 {
				n.Status.Conditions = append(n.Status.Conditions, unconnected(h, n.Spec))
			}
		} else if resource.Spans(n.Spec, h.Spec.GetSite()) && h.GetStatus().GetPhase() != v1.HostPhase_HOST_PHASE_JOINING && !h.GetStatus().GetRepositoriesOnly() {
			n.Status.Conditions = append(n.Status.Conditions, unconnected(h, n.Spec))
		}
	}
	m.eachPort(func(_ *v1.VM, nic *v1.NICSpec, _ *v1.Network) {
		if nic.Network == n.Meta.Name {
			n.Status.Nics++
		}
	})
}

// hearing is how long hosts are given to say whether they offer a network that was just made or changed.
const hearing = 10 * time.Second

// willOffer says whether a host will offer a network that it may not have heard of yet, as far as can be seen from here.
func (m *Manager) willOffer(h *v1.Host, n *v1.Network) bool {
	s, sw := n.Spec, h.GetStatus().GetSwitch()
	if sw == nil || h.GetStatus().GetPhase() != v1.HostPhase_HOST_PHASE_READY || m.cfg.Clock.Now().Sub(n.Meta.UpdateTime.AsTime()) > hearing || !resource.Spans(s, h.Spec.GetSite()) || len(tooNarrow(h, s)) > 0 {
		return false
	}
	return s.GetPhysical() != nil && hasTeam(h, resource.TeamOf(s)) || resource.HasOverlay(s) && sw.GetOverlayAddress() != ""
}

// unconnected says why a host does not offer a network of its site, as far as can be seen from here.
func unconnected(h *v1.Host, s *v1.NetworkSpec) *v1.Condition {
	c := &v1.Condition{Type: "HOST_NOT_CONNECTED", Status: true, Reason: "HOST_NOT_CONNECTED", Message: "host " + h.Meta.Name + ": does not offer it"}
	why := func(reason, format string, args ...any) *v1.Condition {
		c.Reason, c.Message = reason, "host "+h.Meta.Name+": "+fmt.Sprintf(format, args...)
		return c
	}
	if narrow := tooNarrow(h, s); len(narrow) > 0 {
		return why("MTU_TOO_LARGE", "%s", narrow[0])
	}
	if s.GetPhysical() != nil && !hasTeam(h, resource.TeamOf(s)) && !resource.HasOverlay(s) {
		return why("UPLINK_MISSING", "has no uplink in team %q", resource.TeamOf(s))
	}
	if resource.HasOverlay(s) && h.GetStatus().GetSwitch() != nil && h.Status.Switch.OverlayAddress == "" {
		return why("OVERLAY_UNAVAILABLE", "has no address that other hosts reach it by; start its agent with --overlay-address")
	}
	return c
}
