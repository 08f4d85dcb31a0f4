package host

import (
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "drover/api/drover/v1"
	"drover/internal/hostnet"
	"drover/internal/vswitch/announce"
	"drover/internal/vswitch/beacon"
	"drover/internal/vswitch/discovery"
	"drover/internal/vswitch/table"
)

// voice is what the fabric says by frames of its own. It belongs to the fabric's goroutine.
type voice struct {
	sender   *hostnet.Sender
	queue    []saying // announcements, in order of time
	discover time.Time
	beacon   time.Time
	monitors map[string]*beacon.Monitor // of teams with beacons
	cut      map[string]bool            // uplinks that beacons say are cut off
	spoke    map[string]uint32          // uplink by port, as last announced
}

// saying is a frame for later.
type saying struct {
	at      time.Time
	ifindex int
	frame   []byte
}

func (f *fabric) say(ifindex int, frame []byte) {
	if f.sender == nil || ifindex == 0 {
		return
	}
	if err := f.sender.Send(ifindex, frame); err != nil {
		f.log.Debug("a frame of the switch's own was not sent", "ifindex", ifindex, "err", err)
	}
}

// announceLimit bounds what waits to be sent: what is beyond it is not announced. Frames for such a port find it when it next sends.
const announceLimit = 1 << 16

// announceMoved tells the physical network where ports are that came or whose uplink is another one now.
func (f *fabric) announceMoved() {
	if f.spoke == nil {
		return
	}
	seen := map[string]bool{}
	now := f.clk.Now()
	for _, p := range f.sorted() {
		row, ok := f.result.Tables.Ports[p.ifindex]
		if !ok || row.Flags&table.PortDown != 0 {
			continue
		}
		ifindex := f.result.Tables.Teams[row.Team].Bucket[row.Bucket]
		seen[p.key()] = true
		if ifindex == 0 || f.spoke[p.key()] == ifindex {
			continue
		}
		f.spoke[p.key()] = ifindex
		f.announce(p, row, int(ifindex), now)
	}
	slices.SortStableFunc(f.queue, func(a, b saying) int { return a.at.Compare(b.at) })
	maps.DeleteFunc(f.spoke, func(key string, _ uint32) bool { return !seen[key] })
}

// announce queues the frames of one port, in each of its networks that has a side on uplinks.
func (f *fabric) announce(p *nicPort, row table.Port, ifindex int, now time.Time) {
	macs := append([]table.MAC{p.mac}, f.granted[p.key()]...)
	for net, n := range f.result.Tables.Networks {
		if n.Flags&table.NetworkUplink == 0 || n.Team != row.Team {
			continue
		}
		vid := n.VID
		if row.UplinkVID != 0 && net == row.Net {
			vid = row.UplinkVID
		}
		for _, mac := range macs {
			if e := f.result.Tables.FDB[table.FDBKey{Net: net, MAC: mac}]; e.Place != table.PlaceLocal || e.Target != p.ifindex {
				continue
			}
			s := announce.Subject{MAC: mac, VID: vid, Router: row.Flags&table.PortRouter != 0}
			if mac == p.mac && net == row.Net {
				s.Addresses = slices.Clone(p.addrs)
				for _, l := range f.leases.Of(p.key()) {
					s.Addresses = append(s.Addresses, l.Addr)
				}
			}
			frames := announce.Frames(s)
			for _, d := range announce.Delays() {
				for _, frame := range frames {
					if len(f.queue) < announceLimit {
						f.queue = append(f.queue, saying{now.Add(d), ifindex, frame})
					}
				}
			}
		}
	}
}

// due does what has its time, and says when the next is.
func (f *fabric) due() time.Duration {
	if f.dp == nil {
		return look
	}
	now := f.clk.Now()
	for len(f.queue) > 0 && !f.queue[0].at.After(now) {
		f.say(f.queue[0].ifindex, f.queue[0].frame)
		f.queue = f.queue[1:]
	}
	if gone := f.leases.Expire(now); len(gone) > 0 {
		f.leasesChanged()
	}
	for _, t := range f.threats.Tick(now) {
		f.threat(t)
	}
	changed, queries := f.groups.Tick(now)
	for _, q := range queries {
		f.say(int(q.Ifindex), q.Frame)
	}
	if changed {
		f.changed()
	}
	if !f.discover.After(now) {
		f.discover = now.Add(discovery.Interval)
		f.tellSwitches()
	}
	if len(f.monitors) > 0 && !f.beacon.After(now) {
		f.beacon = now.Add(beacon.Interval)
		f.sendBeacons(now)
	}
	if f.updateTeams() {
		f.rebuildLogged(f.life)
	}
	next := f.discover
	sooner := func(at time.Time, ok bool) {
		if ok && at.Before(next) {
			next = at
		}
	}
	sooner(f.leases.Next())
	sooner(f.threats.Next())
	sooner(f.groups.Next())
	sooner(f.beacon, len(f.monitors) > 0)
	if len(f.queue) > 0 {
		sooner(f.queue[0].at, true)
	}
	for _, t := range f.teams {
		sooner(t.Next())
	}
	return max(next.Sub(now), time.Millisecond)
}

// tellSwitches sends LLDP and CDP by every uplink.
func (f *fabric) tellSwitches() {
	names := slices.Sorted(maps.Keys(f.uplinks))
	var chassis table.MAC
	for _, name := range names {
		u := f.uplinks[name]
		if !u.attached || len(u.link.MAC) != 6 {
			continue
		}
		if chassis == (table.MAC{}) {
			chassis = table.MAC(u.link.MAC)
		}
		s := discovery.Self{
			MAC: table.MAC(u.link.MAC), Chassis: chassis, Ifindex: u.link.Index, Port: name, System: f.a.id.Host,
			Description: strings.TrimSpace(fmt.Sprintf("Drover %s on %s", f.a.cfg.Version, f.a.facts.os)),
		}
		if f.overlay.address.IsValid() {
			s.Addresses = []netip.Addr{f.overlay.address}
		}
		f.say(u.link.Index, discovery.LLDP(s))
		f.say(u.link.Index, discovery.CDP(s))
	}
}

// configureBeacons makes the monitors of teams that want beacons.
func (f *fabric) configureBeacons() {
	var uid [16]byte
	if b, err := hex.DecodeString(strings.ReplaceAll(f.a.id.UID, "-", "")); err == nil {
		copy(uid[:], b)
	}
	want := map[string]bool{}
	for _, t := range f.a.world.hostRecord().GetSpec().GetTeams() {
		if !t.GetBeacon() {
			continue
		}
		want[t.GetName()] = true
		if f.monitors[t.GetName()] == nil {
			f.monitors[t.GetName()] = beacon.New(uid, t.GetName())
		}
	}
	maps.DeleteFunc(f.monitors, func(name string, _ *beacon.Monitor) bool { return !want[name] })
}

func (f *fabric) monitorOf(u *uplink) *beacon.Monitor {
	if u == nil {
		return nil
	}
	return f.monitors[u.team]
}

func (f *fabric) sendBeacons(now time.Time) {
	f.cut = map[string]bool{}
	for name, m := range f.monitors {
		var up []string
		for _, u := range f.uplinks {
			if u.team == name && u.attached && u.link.Carrier {
				up = append(up, u.name)
			}
		}
		m.SetCarriers(up, now)
		for device, b := range m.Next() {
			if u := f.uplinks[device]; u != nil && len(u.link.MAC) == 6 {
				f.say(u.link.Index, b.Encode(table.MAC(u.link.MAC)))
			}
		}
		for device, cut := range m.CutOff(now) {
			f.cut[device] = cut
		}
	}
}

// neighborOf is the physical port that an uplink is in.
func (f *fabric) neighborOf(uplink string) *v1.Neighbor {
	n, seen, ok := f.neighbors.Neighbor(uplink, f.clk.Now())
	if !ok {
		return nil
	}
	out := &v1.Neighbor{Protocol: n.Protocol, Chassis: n.Chassis, Port: n.Port, System: n.System, Description: n.Description, Vlan: int32(n.VLAN), Seen: timestamppb.New(seen)}
	for _, a := range n.Addresses {
		out.Addresses = append(out.Addresses, a.String())
	}
	return out
}
