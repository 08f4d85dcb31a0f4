package snoop

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"drover/internal/vswitch/inet"
	"drover/internal/vswitch/shark"
	"drover/internal/vswitch/table"
)

var (
	start  = time.Unix(1_700_000_000, 0)
	mac    = table.MAC{2, 0x44, 0, 0, 0, 1}
	group4 = netip.MustParseAddr("239.1.2.3")
	group6 = netip.MustParseAddr("ff05::1:3")
)

// igmp is a frame with that IGMP message, checksum filled in.
func igmp(src string, msg ...byte) []byte {
	binary.BigEndian.PutUint16(msg[2:], 0)
	binary.BigEndian.PutUint16(msg[2:], inet.Checksum(msg))
	ip := []byte{0x45, 0, 0, byte(20 + len(msg)), 0, 0, 0, 0, 1, 2, 0, 0}
	ip = append(append(ip, netip.MustParseAddr(src).AsSlice()...), 239, 1, 2, 3)
	return inet.Ethernet(table.MAC{1, 0, 0x5e, 1, 2, 3}, table.MAC{2}, 0, 0x0800, ip, msg, make([]byte, 12))
}

func mld(src string, msg []byte) []byte {
	from, to := netip.MustParseAddr(src), netip.MustParseAddr("ff02::16")
	binary.BigEndian.PutUint16(msg[2:], inet.TransportChecksum(from, to, inet.ICMPv6, msg))
	head := []byte{0x60, 0, 0, 0, 0, byte(8 + len(msg)), 0, 1}
	return inet.Ethernet(inet.GroupMAC(to), table.MAC{2}, 0, 0x86dd, head, from.AsSlice(), to.AsSlice(), []byte{58, 0, 5, 2, 0, 0, 1, 0}, msg)
}

// hello is a frame with PIM's hello and its options, checksum filled in.
func hello(src string, options ...byte) []byte {
	from, msg := netip.MustParseAddr(src), append([]byte{0x20, 0, 0, 0}, options...)
	if from.Is6() {
		to := netip.MustParseAddr("ff02::d")
		binary.BigEndian.PutUint16(msg[2:], inet.TransportChecksum(from, to, pim, msg))
		return inet.Ethernet(inet.GroupMAC(to), table.MAC{2}, 0, 0x86dd, []byte{0x60, 0, 0, 0, 0, byte(len(msg)), pim, 1}, from.AsSlice(), to.AsSlice(), msg)
	}
	binary.BigEndian.PutUint16(msg[2:], inet.Checksum(msg))
	ip := append([]byte{0x45, 0, 0, byte(20 + len(msg)), 0, 0, 0, 0, 1, pim, 0, 0}, from.AsSlice()...)
	return inet.Ethernet(table.MAC{1, 0, 0x5e, 0, 0, 13}, table.MAC{2}, 0, 0x0800, append(ip, 224, 0, 0, 13), msg)
}

func v3(kind byte, sources byte) []byte {
	msg := []byte{0x22, 0, 0, 0, 0, 0, 0, 1, kind, 0, 0, sources, 239, 1, 2, 3}
	return igmp("10.0.0.1", append(msg, make([]byte, int(sources)*4)...)...)
}

func v6(kind byte) []byte {
	return mld("fe80::1", slices.Concat([]byte{143, 0, 0, 0, 0, 0, 0, 1, kind, 0, 0, 0}, group6.AsSlice()))
}

func TestParse(t *testing.T) {
	src := netip.MustParseAddr("10.0.0.1")
	six := netip.MustParseAddr("fe80::1")
	join, leave := []Record{{group4, true}}, []Record{{group4, false}}
	for name, tt := range map[string]struct {
		frame []byte
		want  Message
	}{
		"PIM hello":        {hello("10.0.0.1", 0, 1, 0, 2, 0, 30), Message{Source: src, Hello: true, Hold: 30 * time.Second}},
		"PIM, no hold":     {hello("10.0.0.1", 0, 20, 0, 4, 1, 2, 3, 4), Message{Source: src, Hello: true, Hold: 105 * time.Second}},
		"PIM for ever":     {hello("10.0.0.1", 0, 1, 0, 2, 0xff, 0xff), Message{Source: src, Hello: true, Hold: time.Hour}},
		"PIM, IPv6":        {hello("fe80::1", 0, 1, 0, 2, 0, 30), Message{Six: true, Source: six, Hello: true, Hold: 30 * time.Second}},
		"v1 report":        {igmp("10.0.0.1", 0x12, 0, 0, 0, 239, 1, 2, 3), Message{Source: src, Old: true, Records: join}},
		"v2 report":        {igmp("10.0.0.1", 0x16, 0, 0, 0, 239, 1, 2, 3), Message{Source: src, Old: true, Records: join}},
		"v2 leave":         {igmp("10.0.0.1", 0x17, 0, 0, 0, 239, 1, 2, 3), Message{Source: src, Old: true, Records: leave}},
		"v2 never tracked": {igmp("10.0.0.1", 0x16, 0, 0, 0, 224, 0, 0, 251), Message{Source: src, Old: true}},
		"v3 exclude":       {v3(4, 0), Message{Source: src, Records: join}},
		"v3 include some":  {v3(3, 2), Message{Source: src, Records: join}},
		"v3 include none":  {v3(3, 0), Message{Source: src, Records: leave}},
		"v3 block":         {v3(6, 1), Message{Source: src}},
		"v2 query":         {igmp("10.0.0.1", 0x11, 100, 0, 0, 0, 0, 0, 0), Message{Source: src, Query: true, MaxResp: 10 * time.Second}},
		"v2 group query":   {igmp("10.0.0.1", 0x11, 10, 0, 0, 239, 1, 2, 3), Message{Source: src, Query: true, MaxResp: time.Second, Group: group4}},
		"v3 query, float":  {igmp("10.0.0.1", 0x11, 0x8f, 0, 0, 0, 0, 0, 0, 2, 125, 0, 0), Message{Source: src, Query: true, MaxResp: 24800 * time.Millisecond}},
		"MLDv2 join":       {v6(4), Message{Six: true, Source: six, Records: []Record{{group6, true}}}},
		"MLDv1 done":       {mld("fe80::1", slices.Concat([]byte{132, 0, 0, 0, 0, 0, 0, 0}, group6.AsSlice())), Message{Six: true, Source: six, Old: true, Records: []Record{{group6, false}}}},
		"our own query":    {query4(mac, 0, netip.Addr{}, Response), Message{Source: netip.IPv4Unspecified(), Query: true, MaxResp: Response}},
		"our own, of a group": {query6(mac, 0, group6, time.Second),
			Message{Six: true, Source: inet.LinkLocal(mac), Query: true, MaxResp: time.Second, Group: group6}},
	} {
		got, err := Parse(tt.frame)
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v, %v\nwant %+v", name, got, err, tt.want)
		}
	}
	bad := v3(4, 0)
	bad[40] ^= 1
	far := v6(4)
	far[21] = 2
	for name, frame := range map[string][]byte{"checksum": bad, "cut": v3(3, 2)[:40], "hop limit": far, "record beyond the end": igmp("10.0.0.1", 0x22, 0, 0, 0, 0, 0, 0, 2, 4, 0, 0, 0, 239, 1, 2, 3),
		"query from a global address": mld("2001:db8::1", slices.Concat([]byte{130, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 16))), "ARP": inet.Ethernet(mac, mac, 0, 0x806, make([]byte, 40))} {
		if m, err := Parse(frame); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %+v, %v; want ErrMalformed", name, m, err)
		}
	}
}

func TestTsharkReadsOurQueries(t *testing.T) {
	got := shark.Fields(t, [][]byte{query4(mac, 7, netip.Addr{}, Response), query4(mac, 0, group4, LastMember), query6(mac, 0, netip.Addr{}, Response)},
		"vlan.id", "eth.dst", "ip.ttl", "ip.src", "ip.dst", "igmp.version", "igmp.type", "igmp.max_resp", "igmp.maddr", "igmp.qqic", "igmp.checksum.status",
		"ipv6.hlim", "ipv6.src", "icmpv6.type", "icmpv6.checksum.status")
	want := [][]string{
		{"7", "01:00:5e:00:00:01", "1", "0.0.0.0", "224.0.0.1", "3", "0x11", "100", "0.0.0.0", "125", "1", "", "", "", ""},
		{"", "01:00:5e:01:02:03", "1", "0.0.0.0", "239.1.2.3", "3", "0x11", "10", "239.1.2.3", "125", "1", "", "", "", ""},
		{"", "33:33:00:00:00:01", "", "", "", "", "", "", "", "", "", "1", "fe80::44:ff:fe00:1", "130", "1"},
	}
	for i := range want {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("query %d: %q\nwant %q", i, got[i], want[i])
		}
	}
}

type world struct {
	*testing.T
	*Snooper
	now time.Time
}

func newWorld(t *testing.T, router uint32, ifindexes ...uint32) *world {
	cfg := Config{MAC: mac, Ports: map[Port]Info{}, Networks: []uint32{1}}
	for _, i := range ifindexes {
		cfg.Ports[Port{1, i}] = Info{Router: i == router}
	}
	return &world{t, New(cfg, nil, start), start}
}

func (w *world) hear(from uint32, frame []byte) {
	w.Helper()
	m, err := Parse(frame)
	if err != nil {
		w.Fatal(err)
	}
	if _, err := w.Heard(1, from, m, w.now); err != nil {
		w.Fatal(err)
	}
}

// pass lets time pass and returns to which ports queries went, general and of groups.
func (w *world) pass(d time.Duration) (general, special []uint32) {
	end := w.now.Add(d)
	for {
		at, ok := w.Next()
		if !ok || at.After(end) {
			break
		}
		if at.After(w.now) {
			w.now = at
		}
		_, queries := w.Tick(w.now)
		for _, q := range queries {
			if m, err := Parse(q.Frame); err != nil {
				w.Fatal(err)
			} else if m.Group.IsValid() {
				special = append(special, q.Ifindex)
			} else {
				general = append(general, q.Ifindex)
			}
		}
		if again, _ := w.Next(); !again.After(w.now) {
			w.Fatalf("Next stays at %v after Tick", again)
		}
	}
	w.now = end
	return general, special
}

func (w *world) want(what string, ifindexes ...uint32) {
	w.Helper()
	var got []uint32
	for k := range w.Rows() {
		got = append(got, k.Target)
	}
	slices.Sort(got)
	if !slices.Equal(got, ifindexes) {
		w.Fatalf("%s: members %v, want %v", what, got, ifindexes)
	}
}

func TestMembership(t *testing.T) {
	w := newWorld(t, 0, 5, 6)
	w.hear(5, v3(4, 0))
	w.want("after a report", 5)
	if got := w.Groups(Port{1, 5}); !slices.Equal(got, []netip.Addr{group4}) {
		t.Errorf("groups of the port: %v", got)
	}
	w.pass(Membership - time.Second)
	w.want("just before the end", 5)
	w.pass(time.Second)
	w.want("after the end")
	w.hear(5, v6(4))
	w.hear(0, v3(4, 0)) // from the uplink: no row
	w.hear(9, v3(4, 0)) // no port
	w.want("MLD", 5)
	w.Configure(Config{MAC: mac, Networks: []uint32{1}}, w.now)
	w.want("after the port went")
}

func TestLeaveAsksFirst(t *testing.T) {
	w := newWorld(t, 0, 5, 6)
	w.hear(5, v3(4, 0))
	w.hear(6, v3(4, 0))
	w.pass(time.Minute)
	w.hear(5, v3(3, 0))
	w.want("right after the leave", 5, 6)
	if _, special := w.pass(1500 * time.Millisecond); !slices.Equal(special, []uint32{5, 5}) {
		t.Errorf("asked %v, want port 5 twice", special)
	}
	w.pass(2 * time.Second)
	w.want("after no answer", 6)
	w.hear(6, v3(3, 0))
	w.hear(6, v3(2, 0)) // another listener behind the port answers
	w.pass(time.Minute)
	w.want("after an answer", 6)
}

func TestSuppressedReportsKeepMembers(t *testing.T) {
	w := newWorld(t, 0, 5, 6, 7)
	report := igmp("10.0.0.1", 0x16, 0, 0, 0, 239, 1, 2, 3)
	for _, i := range []uint32{5, 6, 7} {
		w.hear(i, report)
	}
	w.hear(7, igmp("10.0.0.1", 0x17, 0, 0, 0, 239, 1, 2, 3))
	for range 4 {
		w.pass(200 * time.Second)
		w.hear(5, report)
	}
	w.want("one reports for all, one left", 5, 6)
}

func TestQuerier(t *testing.T) {
	w := newWorld(t, 9, 5, 9)
	general, _ := w.pass(Interval)
	if len(general) < 2*2*3 { // two families, two ports, three times at the start
		t.Errorf("asked %v in the first interval", general)
	}
	w.hear(5, igmp("10.0.0.1", 0x11, 100, 0, 0, 0, 0, 0, 0))
	if w.Router(Port{1, 5}) {
		t.Error("a port that may be no router became one by asking")
	}
	if general, _ := w.pass(Interval); len(general) != 4 {
		t.Errorf("after a query of a guest: asked %v, want both ports for both families", general)
	}
	w.hear(9, igmp("10.0.0.1", 0x11, 100, 0, 0, 0, 0, 0, 0))
	w.hear(9, mld("fe80::1", slices.Concat([]byte{130, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 16))))
	if !w.Router(Port{1, 9}) {
		t.Error("a router was not noticed")
	}
	if general, _ := w.pass(OtherQuerier - time.Second); len(general) != 0 {
		t.Errorf("beside another querier: asked %v", general)
	}
	if general, _ := w.pass(2 * time.Second); len(general) != 4 || w.Router(Port{1, 9}) {
		t.Errorf("after it fell silent: asked %v, still a router: %v", general, w.Router(Port{1, 9}))
	}
	w.hear(0, igmp("10.0.0.1", 0x11, 100, 0, 0, 0, 0, 0, 0))
	if general, _ := w.pass(Interval); len(general) != 2 {
		t.Errorf("beside an IPv4 querier behind the uplink: asked %v, want IPv6 alone", general)
	}
}

func TestRouterSaysHello(t *testing.T) {
	w := newWorld(t, 5, 5, 6)
	w.hear(5, hello("10.0.0.1", 0, 1, 0, 2, 0, 30))
	w.hear(6, hello("10.0.0.2", 0, 1, 0, 2, 0, 30)) // may be no router
	if !w.Router(Port{1, 5}) || w.Router(Port{1, 6}) {
		t.Error("the router is behind port 5 and no other")
	}
	w.pass(29 * time.Second)
	w.hear(5, hello("10.0.0.1", 0, 1, 0, 2, 0, 30))
	w.pass(29 * time.Second)
	if !w.Router(Port{1, 5}) {
		t.Error("a router that says hello again is lost")
	}
	w.pass(2 * time.Second)
	if w.Router(Port{1, 5}) {
		t.Error("a router is kept that went silent")
	}
}

func TestLimit(t *testing.T) {
	w := newWorld(t, 0, 5, 6)
	var full error
	for i := range 300 {
		m := Message{Records: []Record{{netip.AddrFrom4([4]byte{239, 0, byte(i >> 8), byte(i)}), true}}}
		if _, err := w.Heard(1, 5, m, w.now); err != nil {
			full = err
		}
	}
	if len(w.Rows()) != MaxGroups || !errors.Is(full, ErrFull) {
		t.Errorf("%d groups, %v; want %d and ErrFull", len(w.Rows()), full, MaxGroups)
	}
	w.hear(6, v3(4, 0))
	if len(w.Rows()) != MaxGroups+1 {
		t.Error("one port's groups took another's space")
	}
}

func TestRestart(t *testing.T) {
	w := newWorld(t, 0, 5)
	w.hear(5, v3(4, 0))
	again := New(w.cfg, w.Rows(), w.now)
	if !reflect.DeepEqual(again.Rows(), w.Rows()) {
		t.Errorf("after a restart: %v", again.Rows())
	}
	if at, ok := again.Next(); !ok || at.After(w.now) {
		t.Errorf("after a restart it asks at %v, %v; want at once", at, ok)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(v3(4, 2))
	f.Add(v6(3))
	f.Add(hello("10.0.0.1", 0, 1, 0, 2, 0, 30))
	f.Add(hello("fe80::1", 0, 1, 0, 2, 0, 30, 0, 20, 0, 4, 1, 2, 3, 4))
	f.Add(query4(mac, 0, group4, time.Second))
	f.Add(query6(mac, 0, netip.Addr{}, time.Second))
	f.Add(igmp("10.0.0.1", 0x17, 0, 0, 0, 239, 1, 2, 3))
	f.Fuzz(func(t *testing.T, frame []byte) {
		m, err := Parse(frame)
		if err != nil {
			return
		}
		if m.MaxResp < 0 || m.Query && len(m.Records) > 0 {
			t.Errorf("%+v", m)
		}
		for _, r := range m.Records {
			if !Filtered(r.Group) || r.Group.Is6() != m.Six {
				t.Errorf("record of %v", r.Group)
			}
		}
		w := newWorld(t, 0, 5)
		_, _ = w.Heard(1, 5, m, w.now)
		w.pass(time.Hour)
		if n := len(w.Rows()); n != 0 {
			t.Errorf("%d groups after an hour of silence", n)
		}
	})
}
