package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/bench/report"
	"drover/internal/hostnet"
	"drover/internal/vswitch/compile"
	"drover/internal/vswitch/table"
)

// large is a pair of TAPs on a switch that has more.
type large struct {
	*pair
	d             *drover
	ports, others int
	setup         []float64 // ms that each further port took
	load          time.Duration
}

// crowd numbers guests beyond the pair: MAC and address.
func crowd(i int) (table.MAC, netip.Addr) {
	mac := table.MAC{2, 0xdb, 1}
	mac[3], mac[4], mac[5] = byte(i>>16), byte(i>>8), byte(i)
	a := [4]byte{10, 100}
	binary.BigEndian.PutUint16(a[2:], uint16(i))
	a[1] += byte(i >> 16)
	return mac, netip.AddrFrom4(a)
}

func (b *bench) largePair(ports, others int) (*large, error) {
	l := &large{pair: newPair(secure), ports: ports, others: others}
	l.kind = secure
	err := func() (err error) {
		if l.sw, err = l.namespace(fmt.Sprintf("f-%d-%d", ports, others)); err != nil {
			return err
		}
		for _, e := range []*end{&l.a, &l.b} {
			if err := l.openTAP(e, true); err != nil {
				return err
			}
		}
		if l.d, err = b.switchOf(l.pair); err != nil {
			return err
		}
		for i := range ports - 2 {
			began := time.Now()
			mac, addr := crowd(i)
			name := fmt.Sprintf("p%d", i)
			if err := l.sw.EnsureTAP(nil, hostnet.TAP{Name: name, Mark: mark(name), VNetHdr: true}); err != nil {
				return err
			}
			if err := l.sw.SetNoQueue(name); err != nil {
				return err
			}
			if _, err := l.d.port(name, lan, net.HardwareAddr(mac[:]), addr, false); err != nil {
				return err
			}
			if err := l.d.apply(); err != nil {
				return err
			}
			l.setup = append(l.setup, report.Ms(time.Since(began)))
		}
		l.d.in.Peers = []*v1.Peer{{Host: "h2", Site: site, PhysicalNetworks: []string{lan}}}
		for i := range others {
			mac, addr := crowd(1<<16 + i)
			l.d.in.Registrations[table.FDBKey{Net: lanNet, MAC: mac}] = compile.Registration{Port: fmt.Sprintf("far%d/n0", i), Host: "h2", Addresses: []netip.Addr{addr}}
		}
		r := compile.Compile(l.d.in)
		began := time.Now()
		if err := l.d.dp.Apply(b.ctx, r.Tables); err != nil {
			return err
		}
		l.load = time.Since(began)
		return l.meet()
	}()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%d ports, %d registrations: %w", ports, others, err), l.close())
	}
	return l, nil
}

// flat measures small frames between two guests of switches that differ in size alone.
func (b *bench) flat() (err error) {
	sizes := [][2]int{{2, 100}, {100, 100}, {1000, 100}, {2, 10_000}, {2, 100_000}}
	if b.quick {
		sizes = [][2]int{{2, 100}, {100, 100}, {2, 10_000}}
	}
	var all []*large
	defer func() {
		for _, l := range all {
			err = errors.Join(err, l.close())
		}
	}()
	for _, s := range sizes {
		l, err := b.largePair(s[0], s[1])
		if err != nil {
			return err
		}
		all = append(all, l)
	}
	got, cpu := make([][]float64, len(all)), make([][]float64, len(all))
	order := make([]int, len(all))
	for i := range order {
		order[i] = i
	}
	for round := range 2*b.rounds + 1 {
		slices.Reverse(order)
		for _, i := range order {
			if err := b.ctx.Err(); err != nil {
				return err
			}
			v, err := all[i].frames([][]byte{udpFrame(all[i].a, all[i].b, 60)}, b.run)
			if err != nil {
				return err
			}
			if round > 0 {
				got[i], cpu[i] = append(got[i], v[0]), append(cpu[i], v[2])
			}
		}
	}
	base, baseCPU := report.Median(got[0]), report.Median(cpu[0])
	var said []string
	for i, l := range all {
		m, ns := report.Median(got[i]), report.Median(cpu[i])
		said = append(said, fmt.Sprintf("%d ports and %d registrations %.4g (%.4g ns of CPU each)", l.ports, l.others, m, ns))
		if i > 0 {
			b.rep.Add(report.Row{Name: fmt.Sprintf("CPU of the sender for each of 60 bytes with %d ports and %d registrations", l.ports, l.others), Unit: "ns", Ours: ns,
				Peer: report.Ptr(baseCPU), PeerName: "the same with 2 and 100", Better: report.Less, Goal: report.Ptr(report.Round(1.05 * baseCPU)), Met: report.Ptr(ns <= 1.05*baseCPU)})
			b.rep.Add(report.Row{Name: fmt.Sprintf("60-byte frames with %d ports and %d registrations", l.ports, l.others), Unit: "thousand/s", Ours: m,
				Peer: report.Ptr(base), PeerName: "the same with 2 and 100", Better: report.More, Goal: report.Ptr(report.Round(0.95 * base)), Met: report.Ptr(m >= 0.95*base)})
		}
	}
	b.rep.Say("flat: 60-byte frames, thousand/s: %s", strings.Join(said, ", "))
	for _, l := range all {
		if n := len(l.setup); n > 0 {
			b.rep.Add(report.Row{Name: fmt.Sprintf("a port set up, from nothing to passing frames, p50 of %d one after the other", n), Unit: "ms", Ours: report.Median(l.setup),
				Goal: report.Ptr(20.0), Better: report.Less, Note: fmt.Sprintf("TAP, programs, compiled and written policy; the last ten took %.3g ms each", report.Median(l.setup[n-min(n, 10):]))})
		}
		if l.others >= 10_000 {
			b.rep.Add(report.Row{Name: fmt.Sprintf("%d registrations and their addresses, first load", l.others), Unit: "ms", Ours: report.Ms(l.load), Better: report.Less})
		}
	}
	return b.spread(all[0])
}

// spread sends to many destinations in turn, all on the far port: what the size of the table costs when none of it is at hand.
func (b *bench) spread(l *large) error {
	ports, err := l.sw.Link(l.b.port)
	if err != nil {
		return err
	}
	counts := []int{1, 10_000, 100_000}
	if b.quick {
		counts = counts[:2]
	}
	sets := make([][][]byte, len(counts))
	rows := map[table.FDBKey]table.FDBEntry{}
	for i, n := range counts {
		for k := range n {
			mac, _ := crowd(1<<18 + k)
			rows[table.FDBKey{Net: lanNet, MAC: mac}] = table.FDBEntry{Target: uint32(ports.Index), Place: table.PlaceLocal}
			to := l.b
			to.mac = net.HardwareAddr(mac[:])
			sets[i] = append(sets[i], udpFrame(l.a, to, 60))
		}
	}
	if err := l.d.dp.Register(b.ctx, rows, nil, nil, nil); err != nil {
		return err
	}
	got := make([][]float64, len(counts))
	for range b.rounds {
		for i := range counts {
			v, err := l.frames(sets[i], b.run)
			if err != nil {
				return err
			}
			got[i] = append(got[i], v[0])
		}
	}
	one := report.Median(got[0])
	for i, n := range counts[1:] {
		b.rep.Add(report.Row{Name: fmt.Sprintf("60-byte frames to %d destinations in turn", n), Unit: "thousand/s", Ours: report.Median(got[i+1]),
			Peer: report.Ptr(one), PeerName: "all to one destination, same table", Better: report.More, Note: "the processor's caches miss: sender's frames and table's rows"})
	}
	return nil
}
