package main

import (
	"errors"
	"fmt"
	"net/netip"

	v1 "drover/api/drover/v1"
	"drover/bench/report"
	"drover/internal/hostnet"
	"drover/internal/vswitch"
	"drover/internal/vswitch/compile"
	"drover/internal/vswitch/table"
)

// What hosts and guests of the overlay see of each other.
const (
	underlayMTU = 1500
	guestMTU    = 1430
)

func hostAddress(i int) netip.Addr { return netip.AddrFrom4([4]byte{172, 31, 0, byte(i + 1)}) }

// overlayPair joins guests of two hosts by VXLAN.
func (b *bench) overlayPair(kind string) (*pair, error) {
	p := newPair(kind)
	err := func() error {
		var hosts [2]*hostnet.Net
		for i := range hosts {
			var err error
			if hosts[i], err = p.namespace(fmt.Sprintf("o-%s-%d", kind, i+1)); err != nil {
				return err
			}
		}
		err := hosts[0].EnsureVeth(nil, hosts[1], hostnet.Veth{A: "u0", B: "u0", MarkA: mark("u0a"), MarkB: mark("u0b"), MTU: underlayMTU})
		if err != nil {
			return err
		}
		var rigs [2]*drover
		for i, h := range hosts {
			e := []*end{&p.a, &p.b}[i]
			err := errors.Join(quiet(h, "u0"), h.SetUp("u0", true), h.EnsureAddress(nil, "u0", netip.PrefixFrom(hostAddress(i), 24)),
				p.plug(h, fmt.Sprintf("o-%s-%c", kind, 'a'+i), e, guestMTU))
			if err != nil {
				return err
			}
			if kind == bridge || kind == bridgeBare {
				err = errors.Join(p.hooks(h), bridgeVXLAN(h, e.port, i))
			} else {
				rigs[i], err = b.tunnels(p, h, i)
			}
			if err != nil {
				return err
			}
		}
		if kind == bridge || kind == bridgeBare {
			return nil
		}
		ends := []*end{&p.a, &p.b}
		for i, d := range rigs {
			other := ends[1-i]
			d.in.Peers = []*v1.Peer{{Host: fmt.Sprintf("h%d", 2-i), Site: "there", OverlayAddress: hostAddress(1 - i).String()}}
			d.in.Registrations[table.FDBKey{Net: overNet, MAC: table.MAC(other.mac)}] = compile.Registration{
				Port: other.port + "/n0", Host: fmt.Sprintf("h%d", 2-i), Addresses: []netip.Addr{other.addr}}
			if _, err := d.port(ends[i].port, overlaid, ends[i].mac, ends[i].addr, true); err != nil {
				return err
			}
			if err := d.apply(); err != nil {
				return err
			}
		}
		return nil
	}()
	return p.orClose(err)
}

// bridgeVXLAN is what one does by hand: a VXLAN device on a bridge.
func bridgeVXLAN(h *hostnet.Net, port string, i int) error {
	err := h.EnsureBridge(nil, hostnet.Bridge{Name: "br0", Mark: mark("br0")})
	if err != nil {
		return err
	}
	err = run(h, "ip", "link", "add", "vx0", "mtu", fmt.Sprint(guestMTU), "type", "vxlan", "id", fmt.Sprint(overNet), "dstport", "4789",
		"local", hostAddress(i).String(), "remote", hostAddress(1-i).String())
	if err != nil {
		return err
	}
	return errors.Join(quiet(h, "vx0"), quiet(h, "br0"), h.Attach(nil, "br0", "vx0"), h.SetUp("vx0", true), h.Attach(nil, "br0", port))
}

// tunnels opens a host's datapath with its VXLAN device.
func (b *bench) tunnels(p *pair, h *hostnet.Net, i int) (*drover, error) {
	d, err := b.newDrover(p, h)
	if err != nil {
		return nil, err
	}
	d.in.Host = fmt.Sprintf("h%d", i+1)
	d.in.Networks = []*v1.Network{{Meta: &v1.Meta{Name: overlaid}, Spec: &v1.NetworkSpec{Overlay: &v1.Overlay{}, Vni: overNet}}}
	if err := h.EnsureVXLAN(nil, hostnet.VXLAN{Name: "vx0", Mark: mark("vx0")}); err != nil {
		return nil, err
	}
	ifindex, err := d.attach("vx0", vswitch.KindTunnel)
	d.in.Overlay = compile.Overlay{Ifindex: ifindex, MTU: underlayMTU}
	return d, err
}

func (b *bench) overlay() (err error) {
	pairs, done, err := b.pairs(b.overlayPair, bridge, bridgeBare, plain, secure)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	goal := map[string]float64{bridge: 1.2, bridgeBare: 1.2}
	more := func(name, unit string) number {
		return number{name: name, unit: unit, better: report.More, goals: goal}
	}
	less := func(name, unit string) number { return number{name: name, unit: unit, better: report.Less} }
	lessBy := func(name, unit string) number {
		return number{name: name, unit: unit, better: report.Less, goals: goal}
	}
	return b.compare("overlay", pairs, []trial{
		{"TCP 1 stream", []number{more("TCP, 1 stream", "Gbit/s"), less("CPU for a Gbit of TCP, 1 stream", "ms")}, stream(1), nil},
		{"TCP 8 streams", []number{more("TCP, 8 streams", "Gbit/s"), less("CPU for a Gbit of TCP, 8 streams", "ms")}, stream(8), nil},
		{"TCP MTU", []number{more("TCP, MTU-size frames", "Gbit/s"), less("CPU for a Gbit of MTU-size frames", "ms")}, uncut, nil},
		{"UDP", []number{more("UDP, 64-byte frames", "thousand/s"), lessBy("CPU of the sender for each 64-byte frame", "ns")}, (*pair).packets, nil},
		{"round trip", []number{less("round trip, p50", "µs"), less("round trip, p99", "µs")}, (*pair).roundTrip, nil},
		{"connections", []number{more("TCP connections", "thousand/s"), lessBy("CPU of both ends for a connection", "µs")}, (*pair).connections, nil},
	})
}
