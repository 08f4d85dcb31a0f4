package model_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"drover/internal/vswitch/frame"
	"drover/internal/vswitch/model"
	"drover/internal/vswitch/table"
)

type names struct{}

func (names) Port(i uint32) string {
	return map[uint32]string{1: "web/net0", 2: "db/net0", 3: "fw/net0"}[i]
}
func (names) Network(n uint32) string { return map[uint32]string{5: "blue", 6: "green"}[n] }
func (names) Device(i uint32) string {
	return map[uint32]string{1: "tap1", 2: "tap2", 3: "tap3", 8: "eth1", 9: "vxlan"}[i]
}
func (names) Host(uint32) string { return "host-b" }

// small is two VMs on a stretched network, one of them guarded, and a firewall that may be promiscuous.
func small() *table.Tables {
	t := table.New()
	mtu := uint16(1430)
	t.Networks[5] = table.Network{Flags: table.NetworkUplink | table.NetworkOverlay | table.NetworkProxy | table.NetworkWatched, Members: 4, VID: 12, MTU: mtu}
	t.Ports[1] = table.Port{Slot: 1, Net: 5, MAC: portMAC(1), MTU: mtu, IP4Count: 1, IP4: [4][4]byte{{10, 0, 0, 5}},
		Flags: table.PortIPGuard | table.PortARPGuard | table.PortNDGuard | table.PortStorm}
	t.Ports[2] = table.Port{Slot: 2, Net: 5, MAC: portMAC(2), MTU: mtu}
	t.Ports[3] = table.Port{Slot: 3, Net: 5, MAC: portMAC(3), MTU: mtu, Flags: table.PortPromiscuous | table.PortTrunk, PVLAN: table.PVLANPromiscuous}
	for i := range uint32(3) {
		t.FDB[table.FDBKey{Net: 5, MAC: portMAC(byte(i + 1))}] = table.FDBEntry{Target: i + 1, Place: table.PlaceLocal}
		t.Members[table.MemberKey{Net: 5, Row: i}] = table.Member{Target: i + 1, Place: table.PlaceLocal}
	}
	t.Members[table.MemberKey{Net: 5, Row: 3}] = table.Member{Target: 4, Place: table.PlaceTunnel}
	t.FDB[table.FDBKey{Net: 5, MAC: table.MAC{0x52, 0x54, 0, 0, 1, 1}}] = table.FDBEntry{Target: 4, Place: table.PlaceTunnel}
	t.Bindings[table.BindingKey{Net: 5, IP: table.IPOf(netip.MustParseAddr("10.0.0.9"))}] = table.Binding{Ifindex: 2, MAC: portMAC(2), Source: table.BindingAssigned}
	t.VTEPs[4] = table.VTEP{Addr: table.IPOf(netip.MustParseAddr("192.0.2.4")), Family: table.FamilyIP4, Ifindex: 9}
	t.VTEPSources[table.IPOf(netip.MustParseAddr("192.0.2.4"))] = 4
	t.Networks[8] = table.Network{Flags: table.NetworkOverlay | table.NetworkEncrypted, MTU: mtu}
	t.FDB[table.FDBKey{Net: 8, MAC: portMAC(2)}] = table.FDBEntry{Target: 2, Place: table.PlaceLocal}
	t.VTEPs[5] = table.VTEP{Addr: table.IPOf(netip.MustParseAddr("fd64::4")), Family: table.FamilyIP6, Ifindex: 9, Flags: table.VTEPPrivate}
	t.VTEPSources[table.IPOf(netip.MustParseAddr("fd64::4"))] = 5
	t.Uplinks[8] = table.Uplink{Slot: 20}
	t.UplinkVLANs[table.UplinkKey{Ifindex: 8, VID: 12}] = table.UplinkVLAN{Net: 5}
	team := table.Team{}
	for i := range team.Bucket {
		team.Bucket[i] = 8
	}
	t.Teams[0] = team
	t.Meters[1] = table.Meter{Broadcast: table.Bucket{Rate: 100, Burst: 200}}
	return t
}

func built(t *testing.T, text string, mac table.MAC) []byte {
	t.Helper()
	b, err := frame.Describe(text, frame.Env{MAC: mac, IP4: netip.MustParseAddr("10.0.0.5"), MACOf: func(a netip.Addr) (table.MAC, bool) {
		return portMAC(2), a == netip.MustParseAddr("10.0.0.9")
	}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func words(r model.Result) string {
	var b strings.Builder
	for _, s := range r.Steps {
		mark := "-"
		if !s.Passed {
			mark = "x"
		}
		fmt.Fprintf(&b, "%s %s: %s\n", mark, s.Stage, s.Text)
	}
	fmt.Fprintf(&b, "%v %v", r.Verdict, r.Reason)
	return b.String()
}

func TestTrace(t *testing.T) {
	remote := table.MAC{0x52, 0x54, 0, 0, 1, 1}
	for _, c := range []struct {
		text string
		mac  table.MAC
		in   func(*model.Model, model.Frame) model.Result
		want string
	}{
		{"tcp 10.0.0.9:80", portMAC(1), nil, `- port: from web/net0 (tap1)
- tag: untagged: blue
- source-mac: source MAC 52:54:00:00:00:01: the port's own
- guard: source address 10.0.0.5: bound to this port
- lookup: 52:54:00:00:00:02 is db/net0, on this host
- deliver: to db/net0
REDIRECTED NONE`},
		{"arp announce 10.0.0.9", portMAC(1), nil, `- port: from web/net0 (tap1)
- tag: untagged: blue
- source-mac: source MAC 52:54:00:00:00:01: the port's own
x guard: ARP claims 10.0.0.9: 10.0.0.9 is not bound to this port with 52:54:00:00:00:01; it belongs to db/net0 (52:54:00:00:00:02); bound are 10.0.0.5 (assigned)
DROPPED ARP`},
		{"arp who-has 10.0.0.9", portMAC(1), nil, `- port: from web/net0 (tap1)
- tag: untagged: blue
- source-mac: source MAC 52:54:00:00:00:01: the port's own
- guard: ARP: 10.0.0.5 is bound to this port with 52:54:00:00:00:01
- rate: storm control: broadcasts within 100 packets a second, 200 at once
- answer: the switch answers for 10.0.0.9, which is at 52:54:00:00:00:02
ANSWERED NONE`},
		{"from 52:54:00:00:00:07 bpdu", portMAC(1), nil, `- port: from web/net0 (tap1)
- tag: untagged: blue
x control: destination 01:80:c2:00:00:00 is for spanning tree: this guest may not send that
DROPPED BPDU`},
		{"vlan 12 udp 10.0.0.9", portMAC(1), nil, `- port: from web/net0 (tap1)
x tag: tagged with VLAN 12, and the port is no trunk
DROPPED TAGGED`},
		{"arp who-has 10.0.0.77", portMAC(1), nil, `- port: from web/net0 (tap1)
- tag: untagged: blue
- source-mac: source MAC 52:54:00:00:00:01: the port's own
- guard: ARP: 10.0.0.5 is bound to this port with 52:54:00:00:00:01
- rate: storm control: broadcasts within 100 packets a second, 200 at once
- flood: ff:ff:ff:ff:ff:ff: for everybody in blue
- flood: a copy goes to db/net0
- flood: a copy goes to fw/net0
- tunnel: to host-b at 192.0.2.4 by the overlay, VNI 5
- uplink: out by uplink eth1, bucket 0 of its team, tagged with VLAN 12
FLOODED NONE`},
		{"to 52:54:00:00:01:01 udp 10.0.0.9", portMAC(1), nil, `- port: from web/net0 (tap1)
- tag: untagged: blue
- source-mac: source MAC 52:54:00:00:00:01: the port's own
- guard: source address 10.0.0.5: bound to this port
- lookup: 52:54:00:00:01:01 is on host-b, by the overlay
- tunnel: to host-b at 192.0.2.4 by the overlay, VNI 5
REDIRECTED NONE`},
		{"vlan 12 udp 10.0.0.9", remote, func(m *model.Model, f model.Frame) model.Result { return m.UplinkIn(8, f) }, `- uplink: from uplink eth1
- tag: VLAN 12 of this uplink: blue
- lookup: 52:54:00:00:00:02 is db/net0
- deliver: to db/net0
REDIRECTED NONE`},
	} {
		m := model.New(small(), names{})
		m.Trace = true
		in := c.in
		if in == nil {
			in = func(m *model.Model, f model.Frame) model.Result { return m.PortIn(1, f) }
		}
		if got := words(in(m, model.Frame{Bytes: built(t, c.text, c.mac)})); got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.text, got, c.want)
		}
	}
}

// TestTunnel is for what BPF_PROG_TEST_RUN can't show: a frame with an outer source.
func TestTunnel(t *testing.T) {
	remote, host := table.MAC{0x52, 0x54, 0, 0, 1, 1}, netip.MustParseAddr("192.0.2.4")
	for _, c := range []struct {
		name, text string
		mac        table.MAC
		src        netip.Addr
		vni        uint32
		verdict    model.Verdict
		reason     table.Reason
		outputs    int
	}{
		{"delivered", "udp 10.0.0.9", remote, host, 5, model.Redirected, table.DropNone, 1},
		{"flooded here only", "arp who-has 10.0.0.9", remote, host, 5, model.Flooded, table.DropNone, 3},
		{"a stranger", "udp 10.0.0.9", remote, netip.MustParseAddr("192.0.2.66"), 5, model.Dropped, table.DropVTEP, 0},
		{"not encrypted, but its network is", "udp 10.0.0.9", remote, host, 8, model.Dropped, table.DropVTEP, 0},
		{"encrypted", "udp 10.0.0.9", remote, netip.MustParseAddr("fd64::4"), 8, model.Redirected, table.DropNone, 1},
		{"encrypted without need", "udp 10.0.0.9", remote, netip.MustParseAddr("fd64::4"), 5, model.Redirected, table.DropNone, 1},
		{"another network", "udp 10.0.0.9", remote, host, 6, model.Dropped, table.DropNetwork, 0},
		{"tagged", "vlan 3 udp 10.0.0.9", remote, host, 5, model.Dropped, table.DropTagged, 0},
		{"reflected", "udp 10.0.0.9", portMAC(1), host, 5, model.Dropped, table.DropReflected, 0},
		{"never out again", "to 52:54:00:00:01:01 udp 10.0.0.9", table.MAC{2, 0, 0, 0, 0, 1}, host, 5, model.Dropped, table.DropSplitHorizon, 0},
		{"to nobody", "to 02:00:00:00:00:09 udp 10.0.0.9", remote, host, 5, model.Dropped, table.DropUnregistered, 0},
		{"cut off", "", remote, host, 5, model.Dropped, table.DropMalformed, 0},
	} {
		var b []byte
		if c.text != "" {
			b = built(t, c.text, c.mac)
		}
		r := model.New(small(), names{}).TunnelIn(9, c.src, c.vni, model.Frame{Bytes: b})
		if r.Verdict != c.verdict || r.Reason != c.reason || len(r.Outputs) != c.outputs {
			t.Errorf("%s: %v %v %+v", c.name, r.Verdict, r.Reason, r.Outputs)
		}
		for _, o := range r.Outputs {
			if o.Place != table.PlaceLocal {
				t.Errorf("%s: leaves by %+v", c.name, o)
			}
		}
	}
}

// TestTagBesideFrame is for tags that the kernel took out of the frame, which BPF_PROG_TEST_RUN can't have either.
func TestTagBesideFrame(t *testing.T) {
	tables := small()
	tables.Trunks[table.TrunkKey{Ifindex: 3, VID: 20}] = 5
	for _, c := range []struct {
		tag    model.Tag
		inside bool
		want   table.Reason
	}{
		{model.Tag{Present: true, VID: 20, TPID: 0x8100}, false, table.DropNone},
		{model.Tag{Present: true, VID: 21, TPID: 0x8100}, false, table.DropVLAN},
		{model.Tag{Present: true, VID: 0, TPID: 0x8100}, false, table.DropTagged},
		{model.Tag{Present: true, VID: 20, TPID: 0x88a8}, false, table.DropTagged},
		{model.Tag{Present: true, VID: 20, TPID: 0x8100}, true, table.DropDoubleTag},
	} {
		b := built(t, "udp 10.0.0.9", portMAC(3))
		if c.inside {
			b = frame.Tag(b, 0x8100, 30)
		}
		if r := model.New(tables, nil).PortIn(3, model.Frame{Bytes: b, Tag: c.tag}); r.Reason != c.want {
			t.Errorf("%+v, inside %v: %v, want %v", c.tag, c.inside, r.Reason, c.want)
		}
	}
}

// TestBoundOnce wants each address of a port once in the text, with where it comes from: the first ones are in the port's row and in bindings.
func TestBoundOnce(t *testing.T) {
	tables := small()
	p := tables.Ports[1]
	p.Flags |= table.PortMoreIPs
	p.IP4Count, p.IP4 = 3, [4][4]byte{{10, 0, 0, 5}, {10, 0, 0, 6}, {10, 0, 0, 7}}
	tables.Ports[1] = p
	for a, source := range map[string]table.BindingSource{"10.0.0.5": table.BindingAssigned, "10.0.0.6": table.BindingDHCP, "10.0.0.8": table.BindingDHCP} {
		tables.Bindings[table.BindingKey{Net: 5, IP: table.IPOf(netip.MustParseAddr(a))}] = table.Binding{Ifindex: 1, MAC: portMAC(1), Source: source}
	}
	m := model.New(tables, names{})
	m.Trace = true
	got := words(m.PortIn(1, model.Frame{Bytes: built(t, "arp announce 10.0.0.9", portMAC(1))}))
	if want := "bound are 10.0.0.5 (assigned), 10.0.0.6 (by DHCP), 10.0.0.7 (assigned), 10.0.0.8 (by DHCP)\n"; !strings.Contains(got, want) {
		t.Errorf("%s\nwant %s", got, want)
	}
}

// TestNoCost holds the promise that frames whose way nobody wants to know make no text.
func TestNoCost(t *testing.T) {
	m, b := model.New(small(), names{}), built(t, "tcp 10.0.0.9:80", portMAC(1))
	if r := m.PortIn(1, model.Frame{Bytes: b}); r.Steps != nil {
		t.Errorf("steps %v without being asked", r.Steps)
	}
	if n := testing.AllocsPerRun(100, func() { m.PortIn(1, model.Frame{Bytes: b}) }); n > 12 {
		t.Errorf("%v allocations for a frame", n)
	}
}

// FuzzTrace lets anything in by every way: nothing may panic, with texts too.
func FuzzTrace(f *testing.F) {
	for _, text := range []string{"arp who-has 10.0.0.1", "nd solicit 2001:db8::2", "bpdu", "dhcp ack 10.0.0.7", "vlan 12 udp 10.0.0.2", "mld join ff05::1", "vrrp"} {
		b, err := frame.Describe(text, frame.Env{MAC: portMAC(1)})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint32(0), uint16(0), true)
	}
	f.Fuzz(func(t *testing.T, b []byte, gso uint32, flags uint16, tagged bool) {
		tables := small()
		p := tables.Ports[1]
		p.Flags = table.PortFlag(flags) | table.PortStorm | table.PortMeterIn
		tables.Ports[1] = p
		m := model.New(tables, names{})
		m.Trace = true
		fr := model.Frame{Bytes: b, GSOSize: gso, Tag: model.Tag{Present: tagged, VID: 12, TPID: 0x8100}}
		for _, r := range []model.Result{m.PortIn(1, fr), m.PortIn(3, fr), m.UplinkIn(8, fr), m.TunnelIn(9, netip.MustParseAddr("192.0.2.4"), 5, fr)} {
			if (r.Verdict == model.Dropped) != (r.Reason != table.DropNone) || r.Verdict == model.Dropped && len(r.Steps) == 0 {
				t.Fatalf("%+v", r)
			}
		}
	})
}
