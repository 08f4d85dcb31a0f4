package manager

import (
	"cmp"
	"slices"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"
	"drover/internal/store"

	"google.golang.org/protobuf/proto"
)

// What a host is told of the switch: the other hosts, the profiles with what they inherit, who has which MAC.

// peer tells of another host, if what tunnels need of it has changed.
func (f *agentFeed) peer(kind v1.ChangeKind, h *v1.Host) error {
	was := f.peers[h.Meta.Name]
	if kind == v1.ChangeKind_CHANGE_KIND_DELETED || h.GetStatus().GetRepositoriesOnly() {
		if was == nil {
			return nil
		}
		delete(f.peers, h.Meta.Name)
		return f.send(&v1.AgentChange{Kind: v1.ChangeKind_CHANGE_KIND_DELETED, Object: &v1.AgentChange_Peer{Peer: was}})
	}
	is := peerOf(h)
	if proto.Equal(was, is) {
		return nil
	}
	kind = v1.ChangeKind_CHANGE_KIND_ADDED
	if was != nil {
		kind = v1.ChangeKind_CHANGE_KIND_MODIFIED
	}
	f.peers[h.Meta.Name] = is
	return f.send(&v1.AgentChange{Kind: kind, Object: &v1.AgentChange_Peer{Peer: is}})
}

// peerOf is a host as others need to know it.
func peerOf(h *v1.Host) *v1.Peer {
	sw := h.GetStatus().GetSwitch()
	p := &v1.Peer{
		Host: h.Meta.Name, Site: h.Spec.GetSite(), OverlayAddress: cmp.Or(sw.GetOverlayAddress(), h.Spec.GetOverlayAddress()),
		TunnelKey: sw.GetTunnelKey(), TunnelPort: sw.GetTunnelPort(),
	}
	if a, err := resource.TunnelAddress(h.Meta.Uid); err == nil {
		p.TunnelAddress = a.String()
	}
	p.PhysicalNetworks = physicalNetworks(h.GetStatus())
	return p
}

// physicalNetworks are those that a host has on its uplinks, as others need to know it.
func physicalNetworks(st *v1.HostStatus) (list []string) {
	if noSwitch(st) {
		return st.GetSwitch().GetLastNetworks()
	}
	for _, n := range st.GetNetworks() {
		if n.Uplink != "" {
			list = append(list, n.Network)
		}
	}
	slices.Sort(list)
	return list
}

// noSwitch says that a host's agent has no hold of the datapath.
func noSwitch(st *v1.HostStatus) bool {
	return slices.ContainsFunc(st.GetConditions(), func(c *v1.Condition) bool { return c.Type == "SWITCH_UNAVAILABLE" })
}

// keepReach keeps how a host is reached whose agent has no hold of its datapath any more: that goes on as it was, and others must not stop sending to its VMs, nor
// take nothing from them.
func keepReach(old, st *v1.HostStatus) {
	if !noSwitch(st) {
		return
	}
	if st.Switch == nil {
		st.Switch = &v1.SwitchStatus{}
	}
	was := old.GetSwitch()
	if st.Switch.OverlayAddress == "" {
		st.Switch.OverlayAddress, st.Switch.OverlayMtu = was.GetOverlayAddress(), was.GetOverlayMtu()
	}
	if st.Switch.TunnelKey == "" {
		st.Switch.TunnelKey, st.Switch.TunnelPort = was.GetTunnelKey(), was.GetTunnelPort()
	}
	st.Switch.LastNetworks = physicalNetworks(old)
}

// profile tells of a profile and of all that inherit from it.
func (f *agentFeed) profile(e store.Event[*v1.PortProfile]) error {
	kind, p, err := changeOf(e)
	if err != nil || kind == 0 {
		return err
	}
	if kind == v1.ChangeKind_CHANGE_KIND_DELETED {
		delete(f.chains, p.Meta.Name)
		return f.send(&v1.AgentChange{Kind: kind, Object: &v1.AgentChange_Profile{Profile: p}})
	}
	for _, name := range sorted(profiles{m: f.m}.heirs(p.Meta.Name)) {
		if err := f.chain(name); err != nil {
			return err
		}
	}
	return nil
}

// chain tells of a profile as it is in force, unless the host knows.
func (f *agentFeed) chain(name string) error {
	l := profiles{m: f.m}
	p, ok := l.get(name)
	if !ok {
		return nil
	}
	effective, gen := l.effective(name)
	was, told := f.chains[name]
	if told && was == gen {
		return nil
	}
	kind := v1.ChangeKind_CHANGE_KIND_ADDED
	if told {
		kind = v1.ChangeKind_CHANGE_KIND_MODIFIED
	}
	f.chains[name] = gen
	meta := clone(p.Meta)
	meta.Generation = gen
	return f.send(&v1.AgentChange{Kind: kind, Object: &v1.AgentChange_Profile{Profile: &v1.PortProfile{
		Meta: meta, Spec: p.Spec, Status: &v1.PortProfileStatus{Effective: effective},
	}}})
}

// largestBatch bounds a message of registrations, in bytes of them.
const largestBatch = 3 << 20

// registrations tells of a batch of changes, or of all at the first time and after changes were lost.
func (f *agentFeed) registrations(events []store.Event[*v1.Registration]) error {
	if len(events) > 0 && events[0].Type == store.Reset {
		return f.allRegistrations()
	}
	var order []string
	last := map[string]store.Event[*v1.Registration]{}
	for _, e := range events {
		if _, again := last[e.Name]; !again {
			order = append(order, e.Name)
		}
		last[e.Name] = e
	}
	b := &v1.Registrations{Revision: events[len(events)-1].Revision}
	here := f.networksHere()
	for _, key := range order {
		switch e := last[key]; {
		case e.Type == store.Delete:
			b.Removed = append(b.Removed, key)
		case here(e.Object.Network):
			b.Set = append(b.Set, e.Object)
		}
	}
	if len(b.Set) == 0 && len(b.Removed) == 0 {
		return nil
	}
	return f.sendRegistrations(b)
}

// allRegistrations tells of all of the networks of the host's site. While hosts have not said yet what they know, after the manager's
// start, what is missing may only not be known yet: the host keeps it, and is told of all again when they have.
func (f *agentFeed) allRegistrations() error {
	select {
	case <-f.m.board.settled:
		f.complete = true
	default:
	}
	all, rev := f.m.board.regs.List()
	b := &v1.Registrations{Full: f.complete, Revision: rev}
	here := f.networksHere()
	for _, r := range all {
		if here(r.Network) {
			b.Set = append(b.Set, r)
		}
	}
	return f.sendRegistrations(b)
}

// networksHere says which networks are there in the host's site.
func (f *agentFeed) networksHere() func(string) bool {
	known := map[string]bool{}
	return func(name string) bool {
		is, ok := known[name]
		if !ok {
			n, there := f.m.Networks.cache.Get(name)
			is = there && resource.Spans(n.Spec, f.site)
			known[name] = is
		}
		return is
	}
}

// sendRegistrations sends a batch in as many messages as it needs.
func (f *agentFeed) sendRegistrations(b *v1.Registrations) error {
	rest := b.Set
	for {
		size, n := 0, 0
		for n < len(rest) && size < largestBatch {
			size += proto.Size(rest[n]) + 4
			n++
		}
		part := &v1.Registrations{Full: b.Full, Set: rest[:n], Revision: b.Revision, More: n < len(rest)}
		if rest = rest[n:]; len(rest) == 0 {
			part.Removed = b.Removed
		}
		if err := f.send(&v1.AgentChange{Kind: v1.ChangeKind_CHANGE_KIND_MODIFIED, Object: &v1.AgentChange_Registrations{Registrations: part}}); err != nil {
			return err
		}
		if len(rest) == 0 {
			return nil
		}
	}
}
