package vswitch

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"drover/internal/vswitch/table"

	"github.com/cilium/ebpf"
)

func TestApplyChanges(t *testing.T) {
	n := testNet(t, "apply")
	d := testDatapath(t, n, filepath.Join(testBPF(t), "drover-t"))
	devs := []int{101, 102, 103}
	full := func() *table.Tables { return tables(devs, 50) }
	must(t, d.Apply(t.Context(), full()))
	holds(t, d, full())

	changed := without(full(), 102, 1)
	delete(changed.Meters, 2)
	changed.Teams[3] = table.Team{Bucket: [table.TeamBuckets]uint32{9}}
	changed.VTEPs[3] = table.VTEP{Addr: ip(1), Family: table.FamilyIP4, Ifindex: 9}
	changed.VTEPSources[ip(1)] = 3
	changed.Groups[table.GroupKey{Net: 7, Target: 101, Group: ip(9), Place: uint32(table.PlaceLocal)}] = 1
	changed.Trunks[table.TrunkKey{Ifindex: 101, VID: 4}] = 7
	changed.Uplinks[55] = table.Uplink{Slot: 9, Flags: table.UplinkShared}
	changed.UplinkVLANs[table.UplinkKey{Ifindex: 55, VID: 4}] = table.UplinkVLAN{Net: 7}
	must(t, d.Apply(t.Context(), changed))
	holds(t, d, changed)
	must(t, d.Apply(t.Context(), full()))
	holds(t, d, full())
	must(t, d.Apply(t.Context(), table.New()))
	holds(t, d, table.New())
}

func TestApplyKeepsTokens(t *testing.T) {
	n := testNet(t, "tokens")
	d := testDatapath(t, n, filepath.Join(testBPF(t), "drover-t"))
	want := tables([]int{101}, 0)
	want.Meters[1] = table.Meter{In: table.Bucket{Rate: 1000, Burst: 10}, Punt: table.Bucket{Rate: 200, Burst: 400}}
	must(t, d.Apply(t.Context(), want))
	// What the datapath would have by now.
	slot, used := uint32(1), want.Meters[1]
	used.In.Tokens, used.In.Stamp, used.Punt.Tokens, used.Punt.Stamp = 5, 6, 7, 8
	must(t, d.objs.Meters.Put(&slot, &used))
	next := used
	next.In.Rate, next.Out = 2000, table.Bucket{Rate: 1, Burst: 1, Tokens: 99, Stamp: 99}
	want.Meters[1] = next
	must(t, d.Apply(t.Context(), want))
	var got table.Meter
	must(t, d.objs.Meters.Lookup(&slot, &got))
	next.Out.Tokens, next.Out.Stamp = 0, 0 // a new bucket is as new
	if got != next {
		t.Errorf("meter after a new rate = %+v, want %+v", got, next)
	}
}

func TestApplyKeepsProvisional(t *testing.T) {
	n := testNet(t, "leases")
	d := testDatapath(t, n, filepath.Join(testBPF(t), "drover-t"))
	want := tables([]int{101}, 0)
	must(t, d.Apply(t.Context(), want))
	now := bootTime()
	fresh := table.Binding{Ifindex: 101, MAC: mac(0), Source: table.BindingProvisional, Expires: now + uint64(time.Minute)}
	old, stranger := fresh, fresh
	old.Expires = now - 1
	stranger.Ifindex = 999
	for i, b := range []table.Binding{fresh, old, stranger, fresh} {
		must(t, d.objs.Bindings.Put(&table.BindingKey{Net: 7, IP: ip(500 + i)}, &b))
	}
	lease := table.Binding{Ifindex: 101, MAC: mac(0), Source: table.BindingDHCP, Expires: now + uint64(time.Hour)}
	want.Bindings[table.BindingKey{Net: 7, IP: ip(503)}] = lease
	must(t, d.Apply(t.Context(), want))
	want.Bindings[table.BindingKey{Net: 7, IP: ip(500)}] = fresh // stays; 501 has expired, 502 has no port, 503 is a lease now
	holds(t, d, want)
}

func TestRefusedRows(t *testing.T) {
	n := testNet(t, "refused")
	small := build{layout: table.Layout, spec: func() (*ebpf.CollectionSpec, error) {
		spec, err := loadDatapath()
		if err == nil {
			spec.Maps[datapathMapMacs].MaxEntries = 2
		}
		return spec, err
	}}
	d, err := openIn(t, n, filepath.Join(testBPF(t), "drover-t"), small)
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	must(t, d.Apply(t.Context(), tables([]int{101, 102}, 0)))
	err = d.Apply(t.Context(), tables([]int{101, 102, 103}, 5))
	var pe *PortError
	if !errors.As(err, &pe) || pe.Ifindex != 103 {
		t.Fatalf("Apply with one MAC too many: %v, want a PortError of device 103", err)
	}
	got, err := d.Tables()
	must(t, err)
	if _, ok := got.Ports[103]; ok || len(got.Ports) != 2 {
		t.Errorf("ports %v: want 101 and 102 without 103, whose MAC was refused", got.Ports)
	}
	// A port that was there and loses what it needs goes, too.
	want := tables([]int{101, 102}, 0)
	want.MACs[table.MACKey{Ifindex: 102, MAC: mac(77)}] = 1
	if err = d.Apply(t.Context(), want); !errors.As(err, &pe) || pe.Ifindex != 102 {
		t.Fatalf("Apply: %v, want a PortError of device 102", err)
	}
	if got, err = d.Tables(); err != nil || len(got.Ports) != 1 {
		t.Errorf("ports %v, %v; want 101 alone", got.Ports, err)
	}
	// And comes back when it is put right.
	must(t, d.Apply(t.Context(), tables([]int{101, 102}, 5)))
	holds(t, d, tables([]int{101, 102}, 5))

	wrong := tables([]int{101}, 0)
	p := wrong.Ports[101]
	p.Slot = table.MaxPorts
	wrong.Ports[101], wrong.Meters = p, map[uint32]table.Meter{table.MaxPorts: {In: table.Bucket{Rate: 1}}}
	if err := d.Apply(t.Context(), wrong); !errors.As(err, &pe) || pe.Ifindex != 101 {
		t.Errorf("a slot out of range: %v, want a PortError of device 101", err)
	}
}

func TestRegister(t *testing.T) {
	n := testNet(t, "register")
	d := testDatapath(t, n, filepath.Join(testBPF(t), "drover-t"))
	want := tables([]int{101}, 10)
	must(t, d.Apply(t.Context(), want))
	k, b := table.FDBKey{Net: 7, MAC: mac(5000)}, table.BindingKey{Net: 7, IP: ip(5000)}
	entry, binding := table.FDBEntry{Target: 3, Place: table.PlaceTunnel}, table.Binding{MAC: mac(5000), Source: table.BindingRemote}
	gone, unbound := table.FDBKey{Net: 7, MAC: mac(10001)}, table.BindingKey{Net: 7, IP: ip(10001)}
	must(t, d.Register(t.Context(), map[table.FDBKey]table.FDBEntry{k: entry}, []table.FDBKey{gone, {Net: 1}},
		map[table.BindingKey]table.Binding{b: binding}, []table.BindingKey{unbound, {Net: 1}}))
	want.FDB[k], want.Bindings[b] = entry, binding
	delete(want.FDB, gone)
	delete(want.Bindings, unbound)
	holds(t, d, want)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Register(ended, nil, []table.FDBKey{k}, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Register with an ended context: %v", err)
	}
	holds(t, d, want)
}

func TestApplyEnded(t *testing.T) {
	n := testNet(t, "ended")
	d := testDatapath(t, n, filepath.Join(testBPF(t), "drover-t"))
	ctx, cancel := context.WithCancel(t.Context())
	d.build.reached = func(step string) error {
		if step == "ports" {
			cancel()
		}
		return nil
	}
	if err := d.Apply(ctx, tables([]int{101}, 5)); !errors.Is(err, context.Canceled) {
		t.Fatalf("Apply: %v, want Canceled", err)
	}
	got, err := d.Tables()
	must(t, err)
	if len(got.Ports) != 0 || len(got.FDB) != 6 {
		t.Errorf("%d ports, %d registrations: want no port yet, and all that it needs", len(got.Ports), len(got.FDB))
	}
	must(t, d.Apply(t.Context(), tables([]int{101}, 5)))
	holds(t, d, tables([]int{101}, 5))
}

// TestSpeed has limits far above what a quiet machine needs, so that it fails on another order only.
func TestSpeed(t *testing.T) {
	n := testNet(t, "speed")
	dir := filepath.Join(testBPF(t), "drover-t")
	d := testDatapath(t, n, dir)
	timed := func(what string, limit time.Duration, f func() error) {
		t.Helper()
		start := time.Now()
		must(t, f())
		if took := time.Since(start); took > limit {
			t.Errorf("%s took %v, more than %v", what, took, limit)
		} else {
			t.Logf("%s: %v", what, took)
		}
	}
	w10k, w100k := tables([]int{101}, 10_000), tables([]int{101}, 100_000)
	timed("Apply of 10,000 registrations with addresses", time.Second, func() error { return d.Apply(t.Context(), w10k) })
	timed("Apply of 100,000", 6*time.Second, func() error { return d.Apply(t.Context(), w100k) })
	timed("Apply without a change among 100,000", 3*time.Second, func() error { return d.Apply(t.Context(), w100k) })
	p := w100k.Ports[101]
	p.Generation++
	w100k.Ports[101] = p
	timed("Apply of one port among 100,000", 3*time.Second, func() error { return d.Apply(t.Context(), w100k) })
	timed("1,000 single Registers", time.Second, func() error {
		for i := range 1000 {
			set := map[table.FDBKey]table.FDBEntry{{Net: 8, MAC: mac(i)}: {Target: 3, Place: table.PlaceTunnel}}
			if err := d.Register(t.Context(), set, nil, map[table.BindingKey]table.Binding{{Net: 8, IP: ip(i)}: {MAC: mac(i), Source: table.BindingRemote}}, nil); err != nil {
				return err
			}
		}
		return nil
	})
	timed("Counters of 1,000 ports", time.Second, func() error {
		slots := make([]uint32, 1000)
		for i := range slots {
			slots[i] = uint32(i)
		}
		_, err := d.Counters(slots)
		return err
	})
	must(t, d.Close())
	timed("Open with 100,000 registrations", 5*time.Second, func() error {
		d2, err := openIn(t, n, dir, current())
		if err != nil {
			return err
		}
		return d2.Close()
	})
	timed("Remove", 5*time.Second, func() error {
		d2, err := openIn(t, n, dir, current())
		if err != nil {
			return err
		}
		return d2.Remove()
	})
}
