package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/hostnet"
	"drover/internal/vswitch"
	"drover/internal/vswitch/compile"
	"drover/internal/vswitch/table"
	"drover/internal/vswitch/team"
)

// uplink is a NIC that belongs to a team.
type uplink struct {
	name     string
	team     string
	link     hostnet.Uplink // zero Index: it is not there
	attached bool
	why      string // it can't be used
	machine  string // and this is the machine's address that it carries
}

// watchLinks passes on news of uplinks until ctx ends.
func (f *fabric) watchLinks(ctx context.Context) {
	for ctx.Err() == nil {
		err := f.a.net.WatchLinks(ctx, func(l hostnet.LinkChange) {
			if l.Mark.Kind == hostnet.MarkNIC {
				return
			}
			select {
			case f.links <- l:
			case <-ctx.Done():
			}
		})
		if err != nil {
			f.log.Error("news of links are late: they are only looked at now and then", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-f.clk.After(look):
		}
	}
}

// linkChanged takes in one link's news, and says whether the tables depend on it.
func (f *fabric) linkChanged(ctx context.Context, l hostnet.LinkChange) bool {
	if f.dp == nil {
		return false
	}
	u := f.uplinks[l.Name]
	if u == nil {
		return false
	}
	changed := u.link.Index != l.Index && !l.Gone || l.Gone && u.link.Index == l.Index || u.link.MTU != l.MTU
	if changed {
		f.refreshUplinks(ctx)
	} else if !l.Gone {
		u.link.Carrier, u.link.Up = l.Carrier, l.Up
	}
	return f.updateTeams() || changed
}

// readTeams takes over the teams as the host's record has them, or one of the NICs that the agent was started with, and says whether they changed. The record changes
// at any time: all that is worked out together is of one reading.
func (f *fabric) readTeams() bool {
	var out []team.Config
	for _, t := range f.a.world.hostRecord().GetSpec().GetTeams() {
		c := team.Config{Name: t.GetName(), Uplinks: t.GetUplinks(), Standby: t.GetStandby(), NoFailback: t.GetNoFailback(), FailbackDelay: t.GetFailbackDelay().AsDuration()}
		switch t.GetPolicy() {
		case v1.TeamPolicy_TEAM_POLICY_MAC:
			c.Policy = team.PolicyMAC
		case v1.TeamPolicy_TEAM_POLICY_IP:
			c.Policy = team.PolicyIP
		case v1.TeamPolicy_TEAM_POLICY_FAILOVER:
			c.Policy = team.PolicyFailover
		}
		if err := c.Validate(); err != nil {
			f.log.Error("a team of uplinks is left out", "err", err)
			continue
		}
		out = append(out, c)
	}
	if len(out) == 0 && len(f.a.cfg.Uplinks) > 0 {
		out = append(out, team.Config{Name: compile.DefaultTeam, Uplinks: f.a.cfg.Uplinks})
	}
	same := reflect.DeepEqual(f.configs, out)
	f.configs = out
	return !same
}

// refreshUplinks looks at the NICs of the teams, takes those that can be used and lets go of those that are in no team any more. It says whether anything changed.
func (f *fabric) refreshUplinks(ctx context.Context) bool {
	changed := f.readTeams()
	links, err := f.a.net.Uplinks()
	if err != nil {
		f.log.Warn("the machine's NICs can't be looked at", "err", err)
		return changed
	}
	found := map[string]hostnet.Uplink{}
	for _, l := range links {
		found[l.Name] = l
	}
	wanted := map[string]string{}
	for _, c := range f.configs {
		for _, name := range slices.Concat(c.Uplinks, c.Standby) {
			if _, twice := wanted[name]; !twice {
				wanted[name] = c.Name
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(f.uplinks)) {
		if _, stays := wanted[name]; !stays {
			f.releaseUplink(f.uplinks[name])
			delete(f.uplinks, name)
			changed = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		u := f.uplinks[name]
		if u == nil {
			u = &uplink{name: name}
			f.uplinks[name] = u
		}
		old := *u
		u.team = wanted[name]
		if u.link.Index != found[name].Index {
			u.attached = false
		}
		u.link = found[name]
		f.takeUplink(ctx, u)
		changed = changed || old.team != u.team || old.link.Index != u.link.Index || old.attached != u.attached || old.link.MTU != u.link.MTU || old.why != u.why
	}
	return changed
}

// takeUplink makes a NIC the switch's. One that carries the machine's own addresses is left alone: the machine would be cut off. Once it is the switch's, an address that
// somebody gives it doesn't change that.
func (f *fabric) takeUplink(ctx context.Context, u *uplink) {
	u.why, u.machine = "", ""
	switch {
	case u.link.Index == 0:
		u.why = "there is no NIC of that name"
		return
	case u.attached:
		return
	case f.dp == nil:
		u.why = "this host has no switch"
		return
	}
	if !f.wasAttached(u.link.Index) {
		if u.machine = ownAddress(u.link); u.machine != "" {
			u.why = fmt.Sprintf("it has the machine's address %s, which the switch would cut off; name a NIC without addresses", u.machine)
			return
		}
		if u.link.Master != "" {
			u.why = fmt.Sprintf("it belongs to link %s", u.link.Master)
			return
		}
	}
	slot, fresh, err := f.book.take("uplink/" + u.name)
	if err == nil && fresh {
		if err = f.dp.ResetCounters(slot); err != nil {
			f.book.release("uplink/" + u.name)
		}
	}
	if err == nil {
		err = f.a.net.SetUp(u.name, true)
	}
	if err == nil {
		err = f.a.net.EnsurePromiscuous(nil, u.name)
	}
	if err == nil {
		err = f.dp.Attach(ctx, vswitch.Device{Ifindex: u.link.Index, Name: u.name, Kind: vswitch.KindUplink})
	}
	if err != nil {
		u.why = err.Error()
		return
	}
	u.attached = true
}

// wasAttached says whether the switch had a NIC already, in an earlier agent.
func (f *fabric) wasAttached(ifindex int) bool {
	devices, err := f.dp.Attached()
	return err == nil && slices.ContainsFunc(devices, func(d vswitch.Device) bool { return d.Ifindex == ifindex && !d.Gone && d.Kind == vswitch.KindUplink })
}

// releaseUplink gives a NIC back.
func (f *fabric) releaseUplink(u *uplink) {
	f.book.release("uplink/" + u.name)
	if !u.attached || u.link.Index == 0 {
		return
	}
	err := errors.Join(f.dp.Detach(u.link.Index), f.a.net.SetPromiscuous(u.name, false))
	if err != nil && !errors.Is(err, hostnet.ErrNotFound) {
		f.log.Warn("an uplink is not given back whole", "uplink", u.name, "err", err)
	}
}

// configureTeams makes the state machines of the teams that there are.
func (f *fabric) configureTeams() {
	now := f.clk.Now()
	seen := map[string]bool{}
	for _, c := range f.configs {
		seen[c.Name] = true
		if t := f.teams[c.Name]; t != nil {
			t.Configure(c, now)
		} else {
			f.teams[c.Name] = team.New(c, team.Buckets{})
			f.teams[c.Name].Update(f.health(c.Name), now)
		}
	}
	maps.DeleteFunc(f.teams, func(name string, _ *team.Team) bool { return !seen[name] })
}

// resumeTeams begins with the shares that the datapath has, so that an agent that starts moves no port.
func (f *fabric) resumeTeams(was *table.Tables) {
	names := map[uint32]string{}
	for _, u := range f.uplinks {
		names[uint32(u.link.Index)] = u.name
	}
	for _, c := range f.configs {
		var before team.Buckets
		for _, u := range f.uplinks {
			row, ok := was.Uplinks[uint32(u.link.Index)]
			if !ok || u.team != c.Name {
				continue
			}
			for i, ifindex := range was.Teams[row.Team].Bucket {
				before[i] = names[ifindex]
			}
		}
		f.teams[c.Name] = team.New(c, before)
		f.teams[c.Name].Update(f.health(c.Name), f.clk.Now())
	}
}

func (f *fabric) health(name string) map[string]team.Health {
	out := map[string]team.Health{}
	for _, u := range f.uplinks {
		if u.team != name || u.link.Index == 0 {
			continue
		}
		h := team.Health{Up: u.attached && u.link.Carrier, Reason: u.why}
		switch {
		case u.attached && !u.link.Carrier:
			h.Reason = "its link is down"
		case h.Up && f.cut[u.name]:
			h = team.Health{Reason: "it hears no beacons of the team's other uplinks: the network behind it is cut off"}
		}
		out[u.name] = h
	}
	return out
}

// updateTeams takes in how the uplinks stand and says whether a port has to move.
func (f *fabric) updateTeams() bool {
	changed := false
	for name, t := range f.teams {
		before := t.View()
		if t.Update(f.health(name), f.clk.Now()) {
			changed = true
			f.tellUplinks(name, before, t.View())
		}
	}
	return changed
}

// tellUplinks tells people which uplinks of a team are used no more, and which are again. What a start finds is no news.
func (f *fabric) tellUplinks(name string, before, after team.View) {
	was, is := before.Active(), after.Active()
	if len(was) == 0 && f.result == nil {
		return
	}
	now := "no uplink is left: its networks reach nobody outside of this host"
	if len(is) > 0 {
		now = "its ports are on " + strings.Join(is, ", ")
	}
	for _, u := range after.Uplinks {
		switch had := slices.Contains(was, u.Name); {
		case had && !u.Active:
			f.a.events.add(v1.Severity_SEVERITY_WARNING, "host", f.a.id.Host, "UPLINK_LOST",
				fmt.Sprintf("uplink %s of team %s is not used any more: %s; %s", u.Name, name, cmp.Or(u.Reason, "another is preferred"), now))
		case !had && u.Active:
			f.a.events.add(v1.Severity_SEVERITY_INFO, "host", f.a.id.Host, "UPLINK_USED", fmt.Sprintf("uplink %s of team %s is used; %s", u.Name, name, now))
		}
	}
}

// compileUplinks are uplinks and teams as the compiler takes them.
func (f *fabric) compileUplinks() (ups []compile.Uplink, teams []compile.Team) {
	for _, u := range f.uplinks {
		x := compile.Uplink{Name: u.name, Team: u.team, MTU: u.link.MTU}
		if page := f.book.Slots["uplink/"+u.name]; u.attached && page != nil {
			x.Ifindex, x.Slot, x.MAC = uint32(u.link.Index), page.Slot, table.MAC(u.link.MAC)
		}
		ups = append(ups, x)
	}
	for _, c := range f.configs {
		t := compile.Team{Name: c.Name, Hash: c.Hash()}
		for i, name := range f.teams[c.Name].View().Buckets {
			if u := f.uplinks[name]; u != nil && u.attached {
				t.Buckets[i] = uint32(u.link.Index)
			}
		}
		teams = append(teams, t)
	}
	return ups, teams
}

// overlayFacts is this host's end of tunnels as others are told.
type overlayFacts struct {
	address netip.Addr
	mtu     int
}

func (f *fabric) overlayDevice() hostnet.VXLAN {
	return hostnet.VXLAN{Name: hostnet.Name("dv", f.a.tag()), Mark: hostnet.Mark{Kind: markSwitch, ID: f.a.tag()}}
}

// markSwitch is the kind of the marks on links that serve the switch itself.
const markSwitch = "switch"

// ensureOverlay makes the tunnel device, and says whether anything changed. It is made only once there is a network that needs it.
func (f *fabric) ensureOverlay() bool {
	before, facts := f.vxlan, f.overlay
	f.vxlan = compile.Overlay{EncryptedReason: before.EncryptedReason, Encrypted: before.Encrypted, Tunnel: before.Tunnel}
	address, mtu, err := f.overlayAddress()
	if err != nil {
		f.vxlan.Reason = err.Error()
		f.overlay = overlayFacts{}
		return f.vxlan != before || facts != f.overlay
	}
	f.overlay = overlayFacts{address, mtu}
	f.vxlan.MTU, f.vxlan.Six, f.vxlan.Address = mtu, address.Is6(), address
	if before.Ifindex != 0 {
		if l, err := f.a.net.Link(f.overlayDevice().Name); err == nil && l.Index == int(before.Ifindex) && l.Up {
			f.vxlan.Ifindex = before.Ifindex
			return f.vxlan != before || facts != f.overlay
		}
	}
	if err := f.makeOverlay(); err != nil {
		f.vxlan.Ifindex = 0
		f.vxlan.Reason = "no tunnel device: " + err.Error()
	}
	return f.vxlan != before || facts != f.overlay
}

func (f *fabric) makeOverlay() error {
	if f.dp == nil {
		return errors.New("this host has no switch")
	}
	d := f.overlayDevice()
	if err := f.a.net.EnsureVXLAN(nil, d); err != nil {
		return fmt.Errorf("%w; another program may use UDP port %d", err, hostnet.VXLANPort)
	}
	l, err := f.a.net.Link(d.Name)
	if err != nil {
		return err
	}
	if err := f.dp.Attach(f.life, vswitch.Device{Ifindex: l.Index, Name: d.Name, Kind: vswitch.KindTunnel}); err != nil {
		return err
	}
	f.vxlan.Ifindex = uint32(l.Index)
	return nil
}

// overlayAddress is where other hosts reach this one, and the largest packet on the way to them.
func (f *fabric) overlayAddress() (netip.Addr, int, error) {
	text := cmp.Or(f.a.world.hostRecord().GetSpec().GetOverlayAddress(), f.a.cfg.OverlayAddress)
	if text == "" {
		host, _, err := net.SplitHostPort(f.a.address)
		if err != nil {
			return netip.Addr{}, 0, errors.New("no address for tunnels is known; give one by --overlay-address")
		}
		text = host
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, 0, fmt.Errorf("%q is no address for tunnels; give one by --overlay-address", text)
	}
	links, err := f.a.net.Links()
	if err != nil {
		return netip.Addr{}, 0, err
	}
	for _, l := range links {
		prefixes, err := f.a.net.Addresses(l.Name)
		if err != nil {
			continue
		}
		if slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Addr() == a.Unmap() }) {
			return a.Unmap(), l.MTU, nil
		}
	}
	return netip.Addr{}, 0, fmt.Errorf("this machine does not have the overlay address %s", a)
}

// lookForForeign notes programs of others on the switch's devices.
func (f *fabric) lookForForeign() {
	var out []string
	look := func(name string, ifindex int) {
		list, err := f.dp.Foreign(ifindex)
		if err != nil {
			return
		}
		for _, s := range list {
			out = append(out, name+": "+s)
		}
	}
	for _, p := range f.sorted() {
		look(p.device, int(p.ifindex))
	}
	for _, name := range slices.Sorted(maps.Keys(f.uplinks)) {
		if u := f.uplinks[name]; u.attached {
			look(name, u.link.Index)
		}
	}
	if !slices.Equal(out, f.foreign) {
		f.foreign = out
		f.show()
	}
}
