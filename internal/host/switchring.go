package host

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/guard"
	"drover/internal/vswitch/beacon"
	"drover/internal/vswitch/compile"
	"drover/internal/vswitch/discovery"
	"drover/internal/vswitch/snoop"
	"drover/internal/vswitch/table"
)

// senses is what the fabric makes of frames that the datapath shows it. It belongs to the fabric's goroutine.
type senses struct {
	leases    *guard.Leases
	macs      *guard.MACs
	threats   *guard.Threats
	granted   map[string][]table.MAC // further MACs, by port
	groups    *snoop.Snooper
	neighbors discovery.Table
	booted    time.Time // when the clock of the datapath began
	quiet     map[quietKey]time.Time
}

// openSenses begins with what the last agent, and the datapath, know.
func (f *fabric) openSenses(was *table.Tables) {
	now := f.clk.Now()
	f.booted = bootedAt(now)
	var err error
	if f.leases, err = guard.OpenLeases(f.dir, now); err != nil {
		f.log.Warn("not all leases are known: guests with addresses by DHCP may have to renew them", "err", err)
	}
	f.macs, f.threats, f.granted = guard.NewMACs(), guard.NewThreats(namer{f}), map[string][]table.MAC{}
	for _, p := range f.ports {
		for k := range was.MACs {
			if k.Ifindex == p.ifindex {
				f.granted[p.key()] = append(f.granted[p.key()], k.MAC)
			}
		}
		slices.SortFunc(f.granted[p.key()], func(a, b table.MAC) int { return slices.Compare(a[:], b[:]) })
	}
	f.groups = snoop.New(snoop.Config{MAC: f.ownMAC()}, was.Groups, now)
}

// bootedAt is when CLOCK_BOOTTIME was 0, to the second: rows of leases must not change because it is asked again.
func bootedAt(now time.Time) time.Time {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("host: the kernel has no CLOCK_BOOTTIME: %v", err)) // since Linux 2.6.39
	}
	return now.Add(-time.Duration(ts.Nano())).Round(time.Second)
}

// ownMAC is the source of frames that the switch makes itself: locally administered, the same for good.
func (f *fabric) ownMAC() table.MAC {
	m := table.MAC{2}
	copy(m[1:], f.a.tag())
	return m
}

// listen reads what the datapath tells, until ctx ends. Frames never wait for this.
func (f *fabric) listen(ctx context.Context) {
	dp := f.dp
	f.parts.Go(func() {
		err := dp.Events(ctx, func(e *table.Event) {
			x := *e
			f.hear(func() { f.event(&x) })
		})
		if err != nil && ctx.Err() == nil {
			f.log.Error("the datapath's events can't be read", "err", err)
		}
	})
	f.parts.Go(func() {
		err := dp.Punts(ctx, func(p *table.Punt) {
			x := *p
			f.hear(func() { f.punt(&x) })
		})
		if err != nil && ctx.Err() == nil {
			f.log.Error("the datapath's punted frames can't be read", "err", err)
		}
	})
}

// hear hands news to the fabric's goroutine. When that is behind, news are lost, as a full ring loses them.
func (f *fabric) hear(news func()) {
	select {
	case f.heard <- news:
	default:
	}
}

func (f *fabric) event(e *table.Event) {
	if f.hushed(e) {
		return
	}
	if t, ok := f.threats.Heard(e, f.clk.Now()); ok {
		f.threat(t)
	}
}

// threat tells people.
func (f *fabric) threat(t guard.Threat) {
	severity, kind, reason, message := t.Event()
	name := t.Device
	if kind != "port" {
		name = f.a.id.Host
	}
	f.a.events.add(severity, kind, name, reason, message)
	f.a.reporter.poke()
}

func (f *fabric) punt(p *table.Punt) {
	now := f.clk.Now()
	data := p.Data[:min(int(p.Captured), len(p.Data))]
	switch p.Kind {
	case table.PuntDHCP:
		changed, err := f.leases.Heard(p, f.find, now)
		if err != nil {
			f.log.Debug("a DHCP message makes no sense", "err", err)
		}
		if changed {
			f.leasesChanged()
		}
	case table.PuntNewMAC, table.PuntVirtual:
		if r, ok := f.macs.Heard(p, f.find, now); ok {
			f.grant(r)
		}
	case table.PuntGroup:
		m, err := snoop.Parse(data)
		if err != nil {
			f.log.Debug("an IGMP or MLD message makes no sense", "err", err)
			return
		}
		from := p.Ifindex
		if f.index[from] == nil {
			from = 0
		}
		changed, err := f.groups.Heard(p.Net, from, m, now)
		if err != nil {
			f.log.Debug("a port wants more groups than it may", "err", err)
		}
		if changed {
			f.changed()
		}
	case table.PuntLLDP, table.PuntCDP:
		u := f.uplinkAt(p.Ifindex)
		n, err := discovery.Parse(data)
		if u == nil || err != nil || n.Host() {
			return // the last: our own word, or another host's, which a switch that does not speak the protocol passes on to all of its ports
		}
		first := f.neighborOf(u.name) == nil
		if f.neighbors.Heard(u.name, n, now) && first {
			f.show() // news of one that is known already come with the counters: it may be several that speak in turns
		}
	case table.PuntBeacon:
		u := f.uplinkAt(p.Ifindex)
		b, err := beacon.Parse(data)
		if m := f.monitorOf(u); m != nil && err == nil {
			m.Heard(u.name, b, now)
		}
	}
}

func (f *fabric) uplinkAt(ifindex uint32) *uplink {
	for _, u := range f.uplinks {
		if u.attached && uint32(u.link.Index) == ifindex {
			return u
		}
	}
	return nil
}

// find is what guard knows of a port.
func (f *fabric) find(ifindex uint32) (guard.Port, bool) {
	p := f.index[ifindex]
	if p == nil {
		return guard.Port{}, false
	}
	out := guard.Port{Key: p.key(), MAC: p.mac, Granted: f.granted[p.key()], Limit: 1}
	f.a.world.mu.Lock()
	defer f.a.world.mu.Unlock()
	if e := f.a.world.profiles[f.profileOf(p)].GetStatus().GetEffective(); e != nil {
		out.Limit = max(int(e.GetSecurity().GetMacLimit()), 1)
	}
	return out, true
}

// profileOf is the name of the profile that a port follows. world.mu is held.
func (f *fabric) profileOf(p *nicPort) string {
	switch {
	case p.profile != "":
		return p.profile
	case f.a.world.networks[p.network].GetSpec().GetProfile() != "":
		return f.a.world.networks[p.network].GetSpec().GetProfile()
	}
	return defaultProfile
}

// grant lets a port use another MAC. Whether it may have one at all the datapath and guard have looked at; the compiler refuses one that is another port's.
func (f *fabric) grant(r guard.MACRequest) {
	key := table.FDBKey{Net: r.Net, MAC: r.MAC}
	if reg, taken := f.regs.all[key]; taken && !r.Virtual {
		if p := f.ports[r.Port]; p == nil || reg.Port != p.name {
			return
		}
	}
	if r.Virtual {
		for port, list := range f.granted { // it moves to who speaks with it now
			if p := f.ports[port]; p != nil && port != r.Port && f.result.Tables.FDB[key].Target == p.ifindex {
				f.granted[port] = slices.DeleteFunc(slices.Clone(list), func(m table.MAC) bool { return m == r.MAC })
			}
		}
	}
	if !slices.Contains(f.granted[r.Port], r.MAC) {
		f.granted[r.Port] = append(slices.Clone(f.granted[r.Port]), r.MAC)
	}
	f.changed()
}

func (f *fabric) leasesChanged() {
	if err := f.leases.Save(); err != nil {
		f.log.Error("leases are not on disk", "err", err)
	}
	f.changed()
}

// compileLeases are leases as the compiler takes them.
func (f *fabric) compileLeases(leases []guard.Lease) []compile.Lease {
	var out []compile.Lease
	for _, l := range leases {
		x := compile.Lease{Net: l.Net, Addr: l.Addr, MAC: l.MAC}
		if !l.Expires.IsZero() {
			x.Expires = uint64(max(l.Expires.Sub(f.booted), 1))
		}
		out = append(out, x)
	}
	return out
}

// configureGroups tells the snooper which ports there are; it says whether what it knows changed.
func (f *fabric) configureGroups(r *compile.Result) bool {
	c := snoop.Config{MAC: f.ownMAC(), Ports: map[snoop.Port]snoop.Info{}}
	for k, m := range r.Tables.Members {
		if m.Place != table.PlaceLocal || r.Tables.Networks[k.Net].Flags&table.NetworkSnooping == 0 {
			continue
		}
		c.Ports[snoop.Port{Net: k.Net, Ifindex: m.Target}] = snoop.Info{VID: m.VID, Router: r.Tables.Ports[m.Target].Flags&table.PortRouter != 0}
		if !slices.Contains(c.Networks, k.Net) {
			c.Networks = append(c.Networks, k.Net)
		}
	}
	slices.Sort(c.Networks)
	return f.groups.Configure(c, f.clk.Now())
}

// routerPorts are the networks in which a device is a multicast router's.
func (f *fabric) routerPorts() map[uint32][]uint32 {
	out := map[uint32][]uint32{}
	if f.result == nil {
		return out
	}
	for k, m := range f.result.Tables.Members {
		if m.Place == table.PlaceLocal && f.groups.Router(snoop.Port{Net: k.Net, Ifindex: m.Target}) {
			out[m.Target] = append(out[m.Target], k.Net)
		}
	}
	for _, nets := range out {
		slices.Sort(nets)
	}
	return out
}

// groupRows are the snooper's rows by device.
func (f *fabric) groupRows() map[uint32][]compile.Group {
	out := map[uint32][]compile.Group{}
	for k := range f.groups.Rows() {
		out[k.Target] = append(out[k.Target], compile.Group{Net: k.Net, Addr: k.Group.Addr()})
	}
	return out
}

// groupsOf lists what a port listens to, for people.
func (f *fabric) groupsOf(p *nicPort, rows map[uint32][]compile.Group) []string {
	var out []string
	for _, g := range rows[p.ifindex] {
		if s := g.Addr.String(); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	slices.Sort(out)
	return out
}

// namer says what things are called, by what the fabric knows.
type namer struct{ f *fabric }

func (n namer) Device(ifindex uint32) (string, bool) {
	if p := n.f.index[ifindex]; p != nil {
		return p.name, true
	}
	if u := n.f.uplinkAt(ifindex); u != nil {
		return "uplink " + u.name, false
	}
	if ifindex == n.f.vxlan.Ifindex {
		return "the overlay", false
	}
	return "", false
}

func (n namer) Network(net uint32) string {
	if n.f.result != nil {
		for name, c := range n.f.result.Connections {
			if c.Net == net {
				return name
			}
		}
	}
	return ""
}

func (n namer) Holder(net uint32, addr netip.Addr) string {
	if n.f.result == nil {
		return ""
	}
	b, ok := n.f.result.Tables.Bindings[table.BindingKey{Net: net, IP: table.IPOf(addr)}]
	if !ok {
		return ""
	}
	if p := n.f.index[b.Ifindex]; p != nil {
		return p.name
	}
	return n.Station(net, b.MAC)
}

func (n namer) Station(net uint32, mac table.MAC) string {
	key := table.FDBKey{Net: net, MAC: mac}
	if n.f.result != nil {
		if e, ok := n.f.result.Tables.FDB[key]; ok && e.Place == table.PlaceLocal && n.f.index[e.Target] != nil {
			return n.f.index[e.Target].name
		}
	}
	return n.f.regs.all[key].Port
}
