package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"

	v1 "drover/api/drover/v1"
	"drover/internal/hostnet"
	"drover/internal/resource"
	"drover/internal/vswitch"
	"drover/internal/vswitch/compile"
	"drover/internal/vswitch/table"

	"google.golang.org/protobuf/proto"
)

// Where things are in the switch that is measured.
const (
	site     = "here"
	lan      = "lan"    // a VLAN on the uplink
	overlaid = "inside" // an overlay
	lanNet   = 100
	overNet  = 200
	uplink   = "up0"
	firstOwn = 16 // slots below are for uplinks
)

// drover is the datapath of one host, filled by the same code as in the agent.
type drover struct {
	b    *bench
	sw   *hostnet.Net
	dp   *vswitch.Datapath
	cfg  vswitch.Config
	in   compile.Input
	kind string
}

// newDrover opens a datapath in a namespace. It is closed with the pair.
func (b *bench) newDrover(p *pair, sw *hostnet.Net) (*drover, error) {
	d := &drover{b: b, sw: sw, kind: p.kind, cfg: vswitch.Config{Dir: filepath.Join(b.dir, "bpf", sw.Name()), Log: b.log}}
	if err := d.open(); err != nil {
		return nil, err
	}
	p.later(func() error { return d.dp.Remove() })
	d.in = compile.Input{
		Host: "h1", Site: site,
		Networks:      []*v1.Network{{Meta: &v1.Meta{Name: lan}, Spec: &v1.NetworkSpec{Physical: &v1.PhysicalSegment{Vlan: 7}, Vni: lanNet}}},
		Profiles:      map[string]compile.Profile{secure: {Effective: securePolicy()}, plain: {Effective: &v1.PortProfileSpec{}}},
		Registrations: map[table.FDBKey]compile.Registration{},
	}
	return d, nil
}

func (d *drover) open() error {
	return d.sw.Do(func() (err error) {
		d.dp, err = vswitch.Open(d.b.ctx, d.cfg)
		return err
	})
}

// securePolicy is the built-in profile with what it inherits.
func securePolicy() *v1.PortProfileSpec {
	all := resource.BuiltinProfiles()
	p := proto.Clone(all[resource.DefaultProfile]).(*v1.PortProfileSpec)
	proto.Merge(p, all[resource.SecureProfile])
	return p
}

// attach puts the programs on a device and returns its index.
func (d *drover) attach(dev string, kind vswitch.Kind) (uint32, error) {
	l, err := d.sw.Link(dev)
	if err != nil {
		return 0, err
	}
	return uint32(l.Index), d.dp.Attach(d.b.ctx, vswitch.Device{Ifindex: l.Index, Name: dev, Kind: kind})
}

// uplink gives the host a cable that leads nowhere: without one nothing is connected to a physical network.
func (d *drover) uplink() error {
	err := errors.Join(
		d.sw.EnsureVeth(nil, d.sw, hostnet.Veth{A: uplink, B: uplink + "x", MarkA: mark(uplink), MarkB: mark(uplink + "x")}),
		quiet(d.sw, uplink), quiet(d.sw, uplink+"x"), d.sw.SetUp(uplink, true), d.sw.SetUp(uplink+"x", true),
	)
	if err != nil {
		return err
	}
	i, err := d.attach(uplink, vswitch.KindUplink)
	if err != nil {
		return err
	}
	t := compile.Team{Name: compile.DefaultTeam}
	for k := range t.Buckets {
		t.Buckets[k] = i
	}
	d.in.Uplinks = []compile.Uplink{{Name: uplink, Ifindex: i, Slot: 1, MAC: table.MAC{2, 0xdb, 0, 0, 1, 1}, MTU: 1500, Team: compile.DefaultTeam}}
	d.in.Teams = []compile.Team{t}
	return nil
}

// port adds a port; apply makes it pass frames.
func (d *drover) port(dev, network string, mac net.HardwareAddr, addr netip.Addr, peer bool) (ifindex uint32, err error) {
	i, err := d.attach(dev, vswitch.KindPort)
	if err != nil {
		return 0, err
	}
	n := uint32(len(d.in.Ports))
	p := compile.Port{
		Name: dev + "/n0", Ifindex: i, Slot: firstOwn + n, MAC: table.MAC(mac), Network: network, Profile: d.kind,
		Addresses: []netip.Addr{addr}, Peer: peer, Bucket: n % table.TeamBuckets,
	}
	d.in.Ports = append(d.in.Ports, p)
	key := table.FDBKey{Net: lanNet, MAC: p.MAC}
	if network == overlaid {
		key.Net = overNet
	}
	d.in.Registrations[key] = compile.Registration{Port: p.Name, Host: d.in.Host, Addresses: p.Addresses}
	return i, nil
}

func (d *drover) apply() error {
	r := compile.Compile(d.in)
	if len(r.Problems) > 0 {
		return fmt.Errorf("compile: %v", r.Problems)
	}
	return d.dp.Apply(d.b.ctx, r.Tables)
}

// joinDrover makes a switch of the pair's two ports.
func (b *bench) joinDrover(p *pair) error {
	_, err := b.switchOf(p)
	return err
}

func (b *bench) switchOf(p *pair) (*drover, error) {
	d, err := b.newDrover(p, p.sw)
	if err != nil {
		return nil, err
	}
	if err := d.uplink(); err != nil {
		return nil, err
	}
	for _, e := range []*end{&p.a, &p.b} {
		if _, err := d.port(e.port, lan, e.mac, e.addr, e.net != nil); err != nil {
			return nil, err
		}
	}
	return d, d.apply()
}
