package host

import (
	"cmp"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "drover/api/drover/v1"
	"drover/internal/hostnet"
	"drover/internal/vswitch/compile"
	"drover/internal/vswitch/table"
	"drover/internal/vswitch/team"
	"drover/internal/vswitch/tunnel"
)

// shown is what others may see of the fabric: replaced, never changed, but under fabric.mu.
type shown struct {
	status     *v1.SwitchStatus
	networks   []*v1.HostNetwork
	conditions []*v1.Condition
	ports      map[string]*v1.PortReport // by name; Epoch is not set
	uplinks    map[string]*v1.Uplink     // what the switch adds to what the kernel says
}

// conditionLimit bounds what one report tells of what is wrong.
const conditionLimit = 64

// show makes what others see, and has the manager told of what changed.
func (f *fabric) show() {
	s := shown{status: f.status(), networks: f.hostNetworks(), conditions: f.conditions(), ports: f.reports(), uplinks: f.uplinkFacts()}
	f.mu.Lock()
	old := f.shown
	for name, p := range old.ports {
		switch {
		case s.ports[name] != nil:
		case p.GetStatus().GetDevice() != "":
			// Told once more: without a device.
			gone := clone(p)
			gone.Status.Device, gone.Status.Active, gone.Status.Uplink, gone.Status.Conditions = "", false, "", nil
			s.ports[name] = gone
		default:
			s.ports[name] = p // until the manager has heard so
		}
	}
	news := false
	for name, p := range s.ports {
		if old.ports[name] == nil || !samePort(old.ports[name], p) {
			f.news[name], news = true, true
		}
	}
	f.shown = s
	f.mu.Unlock()
	sameHost := equal(old.status, s.status) && slices.EqualFunc(old.networks, s.networks, func(a, b *v1.HostNetwork) bool { return equal(a, b) }) &&
		slices.EqualFunc(old.conditions, s.conditions, func(a, b *v1.Condition) bool { return equal(a, b) }) &&
		maps.EqualFunc(old.uplinks, s.uplinks, func(a, b *v1.Uplink) bool {
			return a.GetTeam() == b.GetTeam() && a.GetActive() == b.GetActive() && a.GetReason() == b.GetReason() && equal(a.GetNeighbor(), b.GetNeighbor())
		})
	if news {
		f.a.reporter.portsChanged()
	}
	if !sameHost {
		f.a.reporter.hostChanged()
	}
}

// samePort leaves out what changes with every frame.
func samePort(a, b *v1.PortReport) bool {
	x, y := clone(a), clone(b)
	x.Status.Counters, y.Status.Counters, x.Status.UpdateTime, y.Status.UpdateTime = nil, nil, nil, nil
	return equal(x, y)
}

func (f *fabric) status() *v1.SwitchStatus {
	s := &v1.SwitchStatus{Layout: table.Layout, Ports: int32(len(f.ports)), Revision: f.regs.revision, ForeignPrograms: f.foreign}
	// Of a loopback address nobody else has a use.
	if f.overlay.address.IsValid() && !f.overlay.address.IsLoopback() && f.vxlan.Ifindex != 0 {
		s.OverlayAddress, s.OverlayMtu = f.overlay.address.String(), int32(f.overlay.mtu)
	}
	if f.keyErr == nil {
		s.TunnelKey, s.TunnelPort = f.key.PublicKey().String(), tunnel.Port
	}
	if f.result != nil {
		s.Registrations = int32(len(f.result.Tables.FDB))
	}
	return s
}

// hostNetworks are those that VMs can be put on here.
func (f *fabric) hostNetworks() []*v1.HostNetwork {
	var out []*v1.HostNetwork
	if f.result == nil || f.dp == nil {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(f.result.Connections)) {
		if c := f.result.Connections[name]; c.Connects {
			out = append(out, &v1.HostNetwork{Network: name, Uplink: strings.Join(c.Uplinks, ",")})
		}
	}
	return out
}

// problems are what is wrong with the host and its networks.
func (f *fabric) problems() []compile.Problem {
	var out []compile.Problem
	if f.broken != "" {
		reason := "SWITCH_ERROR"
		if f.dp == nil {
			reason = "SWITCH_UNAVAILABLE"
		}
		out = append(out, compile.Problem{Reason: reason, Message: f.broken})
	}
	for _, name := range slices.Sorted(maps.Keys(f.uplinks)) {
		u := f.uplinks[name]
		switch {
		case u.link.Index == 0:
			out = append(out, compile.Problem{Reason: "UPLINK_MISSING", Message: "uplink " + name + ": " + u.why})
		case u.why != "":
			for _, net := range f.networksOf(u.team) {
				out = append(out, compile.Problem{Network: net, Reason: "UPLINK_IN_USE", Message: "uplink " + name + ": " + u.why})
			}
			if len(f.networksOf(u.team)) == 0 {
				out = append(out, compile.Problem{Reason: "UPLINK_IN_USE", Message: "uplink " + name + ": " + u.why})
			}
		}
	}
	for _, s := range f.foreign {
		out = append(out, compile.Problem{Reason: "FOREIGN_PROGRAM", Message: "a program that is not Drover's is on a device of the switch: " + s})
	}
	if f.result == nil {
		return out
	}
	for _, p := range slices.Concat(f.result.Problems, f.faults) {
		if p.Port != "" {
			continue
		}
		// What an uplink that is in use explains is not said again.
		if p.Reason == "UPLINK_MISSING" && slices.ContainsFunc(out, func(q compile.Problem) bool { return q.Network == p.Network && q.Reason == "UPLINK_IN_USE" }) {
			continue
		}
		out = append(out, p)
	}
	return out
}

func (f *fabric) networksOf(team string) []string {
	var out []string
	if f.result != nil {
		for name, c := range f.result.Connections {
			if c.Physical() && c.Team == team {
				out = append(out, name)
			}
		}
	}
	slices.Sort(out)
	return out
}

// conditions are the problems of the host as the manager is told them. Those of one kind that say the same are one.
func (f *fabric) conditions() []*v1.Condition {
	var out []*v1.Condition
	seen := map[string]bool{}
	for _, p := range f.problems() {
		if seen[p.Reason+p.Message] {
			continue
		}
		seen[p.Reason+p.Message] = true
		if len(out) == conditionLimit {
			return append(out, condition("MORE", "more is wrong than is told here"))
		}
		out = append(out, condition(p.Reason, p.Message))
	}
	return out
}

// uplinkFacts are what the switch knows of its uplinks.
func (f *fabric) uplinkFacts() map[string]*v1.Uplink {
	out := map[string]*v1.Uplink{}
	for name, u := range f.uplinks {
		x := &v1.Uplink{Name: name, Team: u.team, Reason: u.why}
		if u.attached {
			x.Counters = counters(f.book.total("uplink/" + name))
			x.Neighbor = f.neighborOf(name)
		}
		out[name] = x
	}
	for _, t := range f.teams {
		for _, v := range t.View().Uplinks {
			if x := out[v.Name]; x != nil {
				x.Active, x.Reason = v.Active, cmp.Or(x.Reason, v.Reason)
			}
		}
	}
	return out
}

func counters(t tally) *v1.PortCounters {
	c := &v1.PortCounters{InPackets: t.Traffic.InPackets, InBytes: t.Traffic.InBytes, OutPackets: t.Traffic.OutPackets, OutBytes: t.Traffic.OutBytes}
	for _, r := range slices.Sorted(maps.Keys(t.Drops)) {
		c.Drops = append(c.Drops, &v1.DropCounter{Reason: r, Packets: t.Drops[r].Packets, Bytes: t.Drops[r].Bytes})
	}
	return c
}

// reports are what the manager hears of the ports.
func (f *fabric) reports() map[string]*v1.PortReport {
	out := map[string]*v1.PortReport{}
	if f.result == nil {
		return out
	}
	now := timestamppb.New(f.clk.Now())
	why := map[string][]*v1.Condition{}
	for _, p := range slices.Concat(f.result.Problems, f.faults) {
		if p.Port != "" {
			why[p.Port] = append(why[p.Port], condition(p.Reason, p.Message))
		}
	}
	bindings := map[uint32][]*v1.Binding{}
	rows := f.groupRows()
	for k, b := range f.result.Tables.Bindings {
		// The manager takes them for addresses in the NIC's own network. Those that a trunk leases in others are this host's business.
		if p := f.index[b.Ifindex]; p != nil && f.result.Connections[p.network] != nil && f.result.Connections[p.network].Net == k.Net {
			bindings[b.Ifindex] = append(bindings[b.Ifindex], f.binding(k, b))
		}
	}
	for _, p := range f.ports {
		row, there := f.result.Tables.Ports[p.ifindex]
		st := &v1.PortStatus{
			Host: f.a.id.Host, Site: f.a.id.Site, Device: p.device, Active: there && f.broken == "" && f.failed[p.ifindex] == nil, Counters: counters(f.book.total(p.key())), UpdateTime: now,
			Generation: int64(row.Generation), ObservedGeneration: int64(row.Generation), Conditions: why[p.name],
		}
		if f.broken != "" {
			st.Conditions = append(st.Conditions, condition("SWITCH_ERROR", f.broken))
		}
		if err := f.failed[p.ifindex]; err != nil {
			st.Conditions = append(st.Conditions, condition("SWITCH_ERROR", err.Error()))
		}
		if c := f.result.Connections[p.network]; c != nil && len(c.Uplinks) > 0 {
			st.Uplink = f.uplinkOf(c.Team, p.name)
		}
		st.Bindings, st.Groups = bindings[p.ifindex], f.groupsOf(p, rows)
		for _, mac := range f.granted[p.key()] {
			st.Macs = append(st.Macs, net.HardwareAddr(mac[:]).String())
		}
		slices.SortFunc(st.Bindings, func(a, b *v1.Binding) int { return cmp.Compare(a.GetAddress(), b.GetAddress()) })
		out[p.name] = &v1.PortReport{Name: p.name, Uid: p.uid, Status: st}
	}
	return out
}

// uplinkOf is the uplink that a port's frames leave by; where each frame is decided for itself, all that are active.
func (f *fabric) uplinkOf(name, port string) string {
	t := f.teams[name]
	if t == nil {
		return ""
	}
	view := t.View()
	for _, c := range f.configs {
		if c.Name == name && c.Hash() != table.TeamByPort {
			return strings.Join(view.Active(), ",")
		}
	}
	return view.Buckets[team.Bucket(port)]
}

func (f *fabric) binding(k table.BindingKey, b table.Binding) *v1.Binding {
	out := &v1.Binding{Address: k.IP.Addr().String(), Mac: net.HardwareAddr(b.MAC[:]).String(), Source: "assigned"}
	if b.Expires != 0 {
		out.ExpireTime = timestamppb.New(f.booted.Add(time.Duration(b.Expires)))
	}
	switch b.Source {
	case table.BindingDHCP, table.BindingProvisional:
		out.Source = "dhcp"
	case table.BindingVirtual:
		out.Source = "virtual"
	}
	return out
}

// portReports are what the manager hears, with the epochs that the VMs have here: all ports, or those with news.
func (f *fabric) portReports(full bool) []*v1.PortReport {
	here := map[string]*machine{}
	for _, m := range f.a.all() {
		here[m.uid] = m
	}
	f.mu.Lock()
	var told []*v1.PortReport
	for name, p := range f.shown.ports {
		switch {
		case here[p.GetUid()] == nil:
			if p.GetStatus().GetDevice() == "" {
				delete(f.shown.ports, name) // its VM is gone, which says all
			}
		case full || f.news[name]:
			told = append(told, p)
		}
	}
	f.news = map[string]bool{}
	f.mu.Unlock()
	var out []*v1.PortReport
	for _, p := range told {
		p = clone(p)
		p.Epoch = here[p.GetUid()].report().GetEpoch()
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b *v1.PortReport) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return out
}

// newCounts has the manager told of all counters.
func (f *fabric) newCounts() {
	f.mu.Lock()
	for name := range f.shown.ports {
		f.news[name] = true
	}
	f.mu.Unlock()
	f.a.reporter.portsChanged()
}

// toldGone forgets ports that have no device any more, once the manager has heard so.
func (f *fabric) toldGone(reports []*v1.PortReport) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range reports {
		if p := f.shown.ports[r.GetName()]; r.GetStatus().GetDevice() == "" && p.GetStatus().GetDevice() == "" {
			delete(f.shown.ports, r.GetName())
		}
	}
}

// facts adds what the switch knows to what the manager hears of the host.
func (f *fabric) facts(s *v1.HostStatus) {
	links, err := f.a.net.Uplinks()
	if err != nil {
		s.Conditions = append(s.Conditions, condition("UPLINKS_UNKNOWN", err.Error()))
	}
	f.mu.Lock()
	x := f.shown
	f.mu.Unlock()
	s.Switch, s.Networks = x.status, x.networks
	s.Conditions = append(s.Conditions, x.conditions...)
	for _, l := range links {
		up := uplinkOf(l)
		if y := x.uplinks[l.Name]; y != nil {
			up.Team, up.Active, up.Reason, up.Neighbor, up.Counters = y.GetTeam(), y.GetActive(), y.GetReason(), y.GetNeighbor(), y.GetCounters()
		}
		s.Uplinks = append(s.Uplinks, up)
	}
}

func uplinkOf(l hostnet.Uplink) *v1.Uplink {
	return &v1.Uplink{Name: l.Name, Mac: l.MAC.String(), LinkUp: l.Carrier, SpeedMbps: int64(l.SpeedMbit), Mtu: int32(l.MTU), Driver: l.Driver, Address: ownAddress(l)}
}
