package vswitch

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"drover/internal/vswitch/table"
)

// collect calls read until n records came or 5 s passed, and returns what came within a moment more.
func collect[T any](t *testing.T, n int, read func(context.Context, func(*T)) error) []*T {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	var got []*T
	err := read(ctx, func(x *T) {
		got = append(got, x)
		if len(got) == n {
			time.AfterFunc(100*time.Millisecond, cancel) // one too many would be there by then
		}
	})
	if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	return got
}

func TestEvents(t *testing.T) {
	g := newGuarded(t)
	g.set(t, secureFlags, table.Meter{})
	must(t, g.ResetCounters(guardSlot))
	spoof, bpdu := guardARP(ownMAC, 2, ownMAC, "10.0.0.9"), rawFrame(ownMAC, []byte{1, 0x80, 0xc2, 0, 0, 0}, 38, make([]byte, 300)...)
	try := func(frames ...[]byte) {
		for _, f := range frames {
			_, _, err := g.Try(KindPort, g.dev, f)
			must(t, err)
		}
	}
	start := time.Now()
	try(spoof, spoof, spoof, bpdu, spoof)
	got := collect(t, 2, g.Events)
	if time.Since(start) > time.Second {
		t.Skip("the machine is too slow to tell one second's events apart")
	}
	if len(got) != 2 {
		t.Fatalf("%d events, want one for each of two reasons", len(got))
	}
	for i, want := range []struct {
		reason table.Reason
		frame  []byte
	}{{table.DropARP, spoof}, {table.DropBPDU, bpdu}} {
		e := got[i]
		if e.Reason != want.reason || e.Count != 1 || e.Ifindex != uint32(g.dev) || e.Slot != guardSlot || e.Net != guardNet || e.Length != uint32(len(want.frame)) || e.VID != 0 {
			t.Errorf("event %d: %v", i, *e)
		}
		if n := min(len(want.frame), table.EventBytes); int(e.Captured) != n || !bytes.Equal(e.Data[:n], want.frame[:n]) {
			t.Errorf("event %d holds % x", i, e.Data[:e.Captured])
		}
	}
	// The next second's event tells of those that were not told.
	for time.Since(start) < 5*time.Second {
		try(spoof)
		var gate table.Gate
		must(t, g.objs.Gates.Lookup(uint32(guardSlot), &gate))
		if gate.Since[table.DropARP] == 0 {
			break
		}
	}
	c, err := g.Counters([]uint32{guardSlot})
	must(t, err)
	next := collect(t, 1, g.Events)
	if len(next) != 1 || uint64(next[0].Count)+1 != c[guardSlot].Drops[table.DropARP].Packets {
		t.Errorf("%d events a second later, the first %+v; want one that tells of all but one of %d drops", len(next), next[0].Count, c[guardSlot].Drops[table.DropARP].Packets)
	}
}

func TestPunts(t *testing.T) {
	g := newGuarded(t)
	flags := secureFlags | table.PortMACChanges | table.PortVirtualRouter
	igmp := guardIP("10.0.0.5", "224.0.0.22", 2)
	tests := []struct {
		name  string
		frame []byte
		kind  table.PuntKind // 0: none
	}{
		{"discover", discover("0.0.0.0", ownMAC), table.PuntDHCP},
		{"solicit", guardIP6(ownLinkLocal, "ff02::1:2", 17, 1, udpBytes(546, 547, 4)), table.PuntDHCP},
		{"discover that is dropped", discover("10.0.0.9", ownMAC), 0},
		{"report", igmp, table.PuntGroup},
		{"mld report", guardIP6(ownLinkLocal, "ff02::16", 0, 1, append([]byte{58, 0, 5, 2, 0, 0, 1, 0}, 143, 0, 0, 0, 0, 0, 0, 0)), table.PuntGroup},
		{"new mac", rawFrame(otherMAC, broadcast, 0x1234, 1), table.PuntNewMAC},
		{"virtual mac", rawFrame(vrrpMAC, broadcast, 0x1234, 1), table.PuntVirtual},
		{"tcp", guardIP("10.0.0.5", "10.0.0.1", 6), 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g.set(t, flags, table.Meter{Punt: table.Bucket{Rate: 1, Burst: 2}})
			want := 0
			if tt.kind != 0 {
				want = 2
			}
			for range 5 {
				_, _, err := g.Try(KindPort, g.dev, tt.frame)
				must(t, err)
			}
			if want == 0 { // something to wait for
				g.set(t, flags, table.Meter{})
				_, _, err := g.Try(KindPort, g.dev, igmp)
				must(t, err)
				want++
			}
			got := collect(t, want, g.Punts)
			if len(got) != want {
				t.Fatalf("%d punts, want %d", len(got), want)
			}
			if tt.kind == 0 {
				if got[0].Kind != table.PuntGroup {
					t.Errorf("it was punted, as %d", got[0].Kind)
				}
				return
			}
			p := got[0]
			if p.Kind != tt.kind || p.Ifindex != uint32(g.dev) || p.Slot != guardSlot || p.Net != guardNet || p.ToIfindex != 0 ||
				int(p.Captured) != len(tt.frame) || !bytes.Equal(p.Data[:p.Captured], tt.frame) {
				t.Errorf("punt %+v", *p)
			}
		})
	}
}

// A virtual router's MAC that is this port's already is no news.
func TestVirtualMACIsPuntedOnce(t *testing.T) {
	g := newGuarded(t)
	g.set(t, table.PortVirtualRouter, table.Meter{})
	must(t, g.objs.Fdb.Put(&table.FDBKey{Net: guardNet, MAC: table.MAC(vrrpMAC)}, &table.FDBEntry{Target: uint32(g.dev), Place: table.PlaceLocal}))
	_, _, err := g.Try(KindPort, g.dev, rawFrame(vrrpMAC, broadcast, 0x1234, 1))
	must(t, err)
	must(t, g.objs.Fdb.Put(&table.FDBKey{Net: guardNet, MAC: table.MAC(vrrpMAC)}, &table.FDBEntry{Target: 99, Place: table.PlaceTunnel}))
	_, _, err = g.Try(KindPort, g.dev, rawFrame(vrrpMAC, broadcast, 0x1235, 1))
	must(t, err)
	got := collect(t, 1, g.Punts)
	if len(got) != 1 || got[0].Data[13] != 0x35 {
		t.Errorf("%d punts, want that of the frame from a port that did not have the MAC", len(got))
	}
}
