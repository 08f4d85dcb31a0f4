package vswitch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"

	"drover/internal/vswitch/table"

	"golang.org/x/sys/unix"
)

// Tables is a copy of the configuration as the maps hold it, read from them.
func (d *Datapath) Tables() (*table.Tables, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, ErrClosed
	}
	return d.maps.read()
}

// PortError says that a port could not be given its whole policy. It has no connectivity.
type PortError struct {
	Ifindex uint32
	Err     error
}

func (e *PortError) Error() string {
	return fmt.Sprintf("the port of device %d has no connectivity, since its policy could not be loaded: %v", e.Ifindex, e.Err)
}

func (e *PortError) Unwrap() error { return e.Err }

// Apply brings the maps to want. Rows that are equal are not written; leases that the datapath noted itself (PROVISIONAL) stay until they expire or want
// has their address. Ports that are no more go first; then comes what ports refer to; then the ports; then what nothing refers to any more.
//
// A port for which a row could not be written is left without a row of its own, or loses it: the error has a PortError for it. The others are as wanted.
// Members may get other rows than in want: see arrange. Network.Members, Port.NetworkFlags, the tokens of meters and the capture flags are not taken from want.
//
// The first Apply after Open found maps of another layout switches the links to them; it does that also if rows were refused, but not if ctx has ended.
func (d *Datapath) Apply(ctx context.Context, want *table.Tables) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return ErrClosed
	}
	// The datapath writes bindings: only the map knows.
	d.have.Bindings = make(map[table.BindingKey]table.Binding, len(want.Bindings))
	if err := d.maps.bindings.read(d.have.Bindings); err != nil {
		return err
	}
	o := &outcome{ports: map[uint32]error{}, nets: map[uint32]error{}, slots: map[uint32]error{}}
	if err := d.apply(ctx, want, o); err != nil {
		return fmt.Errorf("load the datapath's tables: %w", errors.Join(err, o.err()))
	}
	return errors.Join(o.err(), d.switchLinks(want))
}

// outcome collects what went wrong, by whom it concerns.
type outcome struct {
	ports, nets, slots map[uint32]error
	others             []error
}

func (o *outcome) other(err error) { o.others = append(o.others, err) }

func (o *outcome) port(ifindex uint32, err error) {
	o.ports[ifindex] = errors.Join(o.ports[ifindex], err)
}

func (o *outcome) err() error {
	errs := slices.Clone(o.others)
	for _, ifindex := range slices.Sorted(maps.Keys(o.ports)) {
		errs = append(errs, &PortError{Ifindex: ifindex, Err: o.ports[ifindex]})
	}
	for _, err := range o.nets {
		errs = append(errs, err)
	}
	for _, err := range o.slots {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// spread gives the faults of networks and slots to the ports that need them.
func (o *outcome) spread(want *table.Tables) {
	for ifindex, p := range want.Ports {
		if err := cmp.Or(o.nets[p.Net], o.slots[p.Slot]); err != nil {
			o.port(ifindex, err)
		}
	}
	for k, net := range want.Trunks {
		if err := o.nets[net]; err != nil {
			o.port(k.Ifindex, err)
		}
	}
}

// part is a change of one map whose types are known where it is made.
type part struct {
	write, remove func()
}

func partOf[K, V comparable](r rows[K, V], have, want map[K]V, blame func(K, V, error), o *outcome) part {
	c := changes(r, have, want)
	return part{func() { c.write(blame) }, func() { c.remove(o.other) }}
}

// apply does the work of Apply; an error ends it in between.
func (d *Datapath) apply(ctx context.Context, want *table.Tables, o *outcome) error {
	m, h := &d.maps, d.have
	ports := changes(m.ports, h.Ports, d.wantPorts(want))
	uplinks := d.wantUplinks(want)
	members, counts := arrange(h.Members, want.Members)
	networks := make(map[uint32]table.Network, len(want.Networks))
	for net, n := range want.Networks {
		n.Members = counts[net]
		networks[net] = n
	}
	local := func(ifindex uint32, err error) {
		if ifindex == 0 {
			o.other(err)
		} else {
			o.port(ifindex, err)
		}
	}
	parts := []part{
		partOf(m.teams, h.Teams, want.Teams, func(_ uint32, _ table.Team, err error) { o.other(err) }, o),
		d.metersPart(want, o),
		partOf(m.vteps, h.VTEPs, want.VTEPs, func(_ uint32, _ table.VTEP, err error) { o.other(err) }, o),
		partOf(m.members, h.Members, members, func(_ table.MemberKey, v table.Member, err error) {
			if v.Place == table.PlaceLocal {
				o.port(v.Target, err)
			} else {
				o.other(err)
			}
		}, o),
		partOf(m.networks, h.Networks, networks, func(net uint32, _ table.Network, err error) { o.nets[net] = err }, o),
		partOf(m.groups, h.Groups, want.Groups, func(_ table.GroupKey, _ uint8, err error) { o.other(err) }, o),
		partOf(m.macs, h.MACs, want.MACs, func(k table.MACKey, _ uint8, err error) { o.port(k.Ifindex, err) }, o),
		partOf(m.trunks, h.Trunks, want.Trunks, func(k table.TrunkKey, _ uint32, err error) { o.port(k.Ifindex, err) }, o),
		partOf(m.bindings, h.Bindings, d.wantBindings(want), func(_ table.BindingKey, v table.Binding, err error) { local(v.Ifindex, err) }, o),
		partOf(m.fdb, h.FDB, want.FDB, func(_ table.FDBKey, v table.FDBEntry, err error) {
			if v.Place == table.PlaceLocal {
				o.port(v.Target, err)
			} else {
				o.other(err)
			}
		}, o),
		partOf(m.uplinkVLANs, h.UplinkVLANs, want.UplinkVLANs, func(_ table.UplinkKey, _ table.UplinkVLAN, err error) { o.other(err) }, o),
		partOf(m.uplinks, h.Uplinks, uplinks, func(_ uint32, _ table.Uplink, err error) { o.other(err) }, o),
		partOf(m.vtepSources, h.VTEPSources, want.VTEPSources, func(_ table.IP, _ uint32, err error) { o.other(err) }, o),
	}
	ports.remove(o.other)
	for _, p := range parts {
		if err := errors.Join(d.build.at("apply"), ctx.Err()); err != nil {
			return err
		}
		p.write()
	}
	o.spread(want)
	if err := errors.Join(d.build.at("ports"), ctx.Err()); err != nil {
		return err
	}
	d.writePorts(ports, o)
	for _, p := range slices.Backward(parts) {
		if err := errors.Join(d.build.at("remove"), ctx.Err()); err != nil {
			return err
		}
		p.remove()
	}
	return nil
}

// writePorts writes rows of ports whose other rows are all there, and takes the row from those with a fault.
func (d *Datapath) writePorts(c *change[uint32, table.Port], o *outcome) {
	keys, values := c.keys, c.values
	c.keys, c.values = nil, nil
	for i, k := range keys {
		if o.ports[k] == nil {
			c.keys, c.values = append(c.keys, k), append(c.values, values[i])
		}
	}
	c.write(func(k uint32, _ table.Port, err error) { o.port(k, err) })
	c.gone = nil
	for k := range o.ports {
		if _, ok := d.have.Ports[k]; ok {
			c.gone = append(c.gone, k)
		}
	}
	c.remove(o.other)
}

func (d *Datapath) wantPorts(want *table.Tables) map[uint32]table.Port {
	out := make(map[uint32]table.Port, len(want.Ports))
	for ifindex, p := range want.Ports {
		p.Flags &^= table.PortCapture
		if d.captured[ifindex] > 0 {
			p.Flags |= table.PortCapture
		}
		out[ifindex] = want.Row(p)
	}
	return out
}

func (d *Datapath) wantUplinks(want *table.Tables) map[uint32]table.Uplink {
	out := make(map[uint32]table.Uplink, len(want.Uplinks))
	for ifindex, u := range want.Uplinks {
		u.Flags &^= table.UplinkCapture
		if d.captured[ifindex] > 0 {
			u.Flags |= table.UplinkCapture
		}
		out[ifindex] = u
	}
	return out
}

// wantBindings are those of want and what the datapath noted itself, if it is still good and its port stays.
func (d *Datapath) wantBindings(want *table.Tables) map[table.BindingKey]table.Binding {
	var out map[table.BindingKey]table.Binding
	now := bootTime()
	for k, b := range d.have.Bindings {
		if b.Source != table.BindingProvisional || b.Expires != 0 && b.Expires <= now {
			continue
		}
		if _, ok := want.Bindings[k]; ok {
			continue
		}
		if _, ok := want.Ports[b.Ifindex]; !ok {
			continue
		}
		if out == nil {
			out = maps.Clone(want.Bindings)
		}
		out[k] = b
	}
	if out == nil {
		return want.Bindings
	}
	return out
}

// bootTime is the clock of Expires and of events.
func bootTime() uint64 { return clock(unix.CLOCK_BOOTTIME) }

// clock is one of the kernel's, in ns.
func clock(id int32) uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		panic(fmt.Sprintf("vswitch: the kernel has no clock %d: %v", id, err)) // since Linux 2.6.39
	}
	return uint64(ts.Nano())
}

// metersPart leaves tokens and stamps to the datapath: a row is read, gets its new rates, and is written. What the datapath takes between the two, in
// microseconds, is given back to the port.
func (d *Datapath) metersPart(want *table.Tables, o *outcome) part {
	rates := make(map[uint32]table.Meter, len(want.Meters))
	for slot, m := range want.Meters {
		if m = configured(m); m != (table.Meter{}) {
			rates[slot] = m
		}
	}
	c := changes(d.maps.meters, d.have.Meters, rates)
	return part{
		write: func() {
			c.raw = make([]table.Meter, len(c.keys))
			for i, slot := range c.keys {
				if slot >= table.MaxPorts {
					continue // the write says it
				}
				if err := c.rows.m.Lookup(&slot, &c.raw[i]); err != nil {
					o.slots[slot] = c.rows.errorf("read", slot, err)
				}
				c.raw[i] = rated(c.raw[i], c.values[i], clock(unix.CLOCK_MONOTONIC))
			}
			c.write(func(slot uint32, _ table.Meter, err error) { o.slots[slot] = err })
		},
		remove: func() { c.remove(o.other) },
	}
}

func buckets(m *table.Meter) [7]*table.Bucket {
	return [...]*table.Bucket{&m.In, &m.Out, &m.Broadcast, &m.Multicast, &m.Unknown, &m.DHCP, &m.Punt}
}

// configured is m without what the datapath keeps in it.
func configured(m table.Meter) table.Meter {
	for _, b := range buckets(&m) {
		b.Tokens, b.Stamp = 0, 0
	}
	return m
}

// rated is now with the rates of want. A bucket that was not used before is as new: its stamp is 0, so the first packet finds it full. Of others the stamp
// says how long the old rate needs to fill it: what is missing stays, at most all, and the new rate fills it. at is CLOCK_MONOTONIC in ns.
func rated(now, want table.Meter, at uint64) table.Meter {
	const ticks, second, most = 16, 16e9, 1 << 29 // as in bpf/meter.h
	at *= ticks
	n, w := buckets(&now), buckets(&want)
	for i := range n {
		if n[i].Rate == 0 {
			n[i].Tokens, n[i].Stamp = 0, 0
		}
		if old, rate := n[i].Rate, w[i].Rate; old != 0 && rate != 0 && n[i].Stamp > at {
			left := min(w[i].Burst, most) * second / rate
			if hi, lo := bits.Mul64(n[i].Stamp-at, old); hi < rate {
				missing, _ := bits.Div64(hi, lo, rate)
				left = min(left, missing)
			}
			n[i].Stamp = at + left
		}
		n[i].Rate, n[i].Burst = w[i].Rate, w[i].Burst
	}
	return now
}

// Register changes rows of fdb and bindings alone: what changes most. New rows are written before old ones are removed. Rows that were refused
// are in the error; the others are done.
func (d *Datapath) Register(ctx context.Context, set map[table.FDBKey]table.FDBEntry, removed []table.FDBKey, bind map[table.BindingKey]table.Binding, unbind []table.BindingKey) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	o := &outcome{}
	b := change[table.BindingKey, table.Binding]{rows: d.maps.bindings, have: d.have.Bindings, gone: unbind}
	for k, v := range bind {
		b.keys, b.values = append(b.keys, k), append(b.values, v)
	}
	f := change[table.FDBKey, table.FDBEntry]{rows: d.maps.fdb, have: d.have.FDB, gone: removed}
	for k, v := range set {
		if old, ok := d.have.FDB[k]; !ok || old != v {
			f.keys, f.values = append(f.keys, k), append(f.values, v)
		}
	}
	b.write(func(_ table.BindingKey, _ table.Binding, err error) { o.other(err) })
	f.write(func(_ table.FDBKey, _ table.FDBEntry, err error) { o.other(err) })
	f.remove(o.other)
	b.remove(o.other)
	return o.err()
}
