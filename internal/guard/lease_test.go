package guard

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"drover/internal/vswitch/inet"
	"drover/internal/vswitch/table"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
)

var (
	mac1   = table.MAC{0x52, 0x54, 0, 0, 0, 1}
	mac2   = table.MAC{0x52, 0x54, 0, 0, 0, 2}
	mac9   = table.MAC{0x52, 0x54, 0, 0, 0, 9}
	epoch  = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	equate = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
)

// find knows ports 1 (with a granted MAC, and a virtual router's, which does not count) and 2.
func find(ifindex uint32) (Port, bool) {
	switch ifindex {
	case 1:
		return Port{Key: "web/net0", MAC: mac1, Granted: []table.MAC{mac2, {0, 0, 0x5e, 0, 1, 9}}, Limit: 4}, true
	case 2:
		return Port{Key: "db/net0", MAC: mac9, Limit: 1}, true
	}
	return Port{}, false
}

func punt(from, to uint32, frame []byte) *table.Punt {
	p := &table.Punt{Ifindex: from, ToIfindex: to, Net: 7, Kind: table.PuntDHCP, Length: uint32(len(frame)), Captured: uint16(min(len(frame), table.PuntBytes))}
	copy(p.Data[:], frame)
	return p
}

func udpFrame(dst, src table.MAC, from, to netip.AddrPort, payload []byte) []byte {
	udp := append([]byte{byte(from.Port() >> 8), byte(from.Port()), byte(to.Port() >> 8), byte(to.Port()), byte((len(payload) + 8) >> 8), byte(len(payload) + 8), 0, 0}, payload...)
	if from.Addr().Is4() {
		h := []byte{0x45, 0, byte((len(udp) + 20) >> 8), byte(len(udp) + 20), 0, 0, 0, 0, 64, 17, 0, 0}
		h = append(append(h, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
		return inet.Ethernet(dst, src, 0, 0x0800, h, udp)
	}
	h := []byte{0x60, 0, 0, 0, byte(len(udp) >> 8), byte(len(udp)), 17, 1}
	h = append(append(h, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
	return inet.Ethernet(dst, src, 0, 0x86dd, h, udp)
}

var (
	client4 = netip.MustParseAddrPort("0.0.0.0:68")
	server4 = netip.MustParseAddrPort("10.0.0.1:67")
	all4    = netip.MustParseAddrPort("255.255.255.255:67")
	allC4   = netip.MustParseAddrPort("255.255.255.255:68")
	client6 = netip.MustParseAddrPort("[fe80::5054:ff:fe00:1]:546")
	server6 = netip.MustParseAddrPort("[fe80::99]:547")
)

func dhcp4(kind dhcpv4.MessageType, mac table.MAC, mods ...dhcpv4.Modifier) []byte {
	op := dhcpv4.OpcodeBootRequest
	if kind == dhcpv4.MessageTypeAck || kind == dhcpv4.MessageTypeNak || kind == dhcpv4.MessageTypeOffer {
		op = dhcpv4.OpcodeBootReply
	}
	mods = append([]dhcpv4.Modifier{dhcpv4.WithMessageType(kind), dhcpv4.WithHwAddr(net.HardwareAddr(mac[:])), dhcpv4.WithTransactionID(dhcpv4.TransactionID{1, 2, 3, 4}),
		func(d *dhcpv4.DHCPv4) { d.OpCode = op }}, mods...)
	d, err := dhcpv4.New(mods...)
	if err != nil {
		panic(err)
	}
	return d.ToBytes()
}

func ack(mac table.MAC, addr string, life uint32) []byte {
	return udpFrame(mac, mac9, server4, allC4, dhcp4(dhcpv4.MessageTypeAck, mac, dhcpv4.WithYourIP(net.ParseIP(addr)), dhcpv4.WithLeaseTime(life)))
}

func request(mac table.MAC, addr string) []byte {
	return udpFrame(table.MAC{255, 255, 255, 255, 255, 255}, mac, client4, all4, dhcp4(dhcpv4.MessageTypeRequest, mac, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.ParseIP(addr)))))
}

func release(mac table.MAC, addr string) []byte {
	return udpFrame(mac9, mac, netip.AddrPortFrom(netip.MustParseAddr(addr), 68), server4, dhcp4(dhcpv4.MessageTypeRelease, mac, dhcpv4.WithClientIP(net.ParseIP(addr))))
}

func dhcp6(kind dhcpv6.MessageType, life time.Duration, addrs ...string) []byte {
	m, err := dhcpv6.NewMessage()
	if err != nil {
		panic(err)
	}
	m.MessageType = kind
	ia := &dhcpv6.OptIANA{IaId: [4]byte{1}}
	for _, a := range addrs {
		ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP(a), PreferredLifetime: life, ValidLifetime: life})
	}
	m.AddOption(ia)
	return m.ToBytes()
}

func reply6(dst table.MAC, life time.Duration, addrs ...string) []byte {
	return udpFrame(dst, mac9, server6, client6, dhcp6(dhcpv6.MessageTypeReply, life, addrs...))
}

func lease(port, addr string, mac table.MAC, life time.Duration) Lease {
	l := Lease{Port: port, Net: 7, Addr: netip.MustParseAddr(addr), MAC: mac}
	if life > 0 {
		l.Expires = epoch.Add(life)
	}
	return l
}

func TestLeases(t *testing.T) {
	ours := lease("web/net0", "10.0.0.5", mac1, time.Hour)
	granted := punt(9, 1, ack(mac1, "10.0.0.5", 3600))
	nak := udpFrame(mac1, mac9, server4, allC4, dhcp4(dhcpv4.MessageTypeNak, mac1))
	other := dhcp4(dhcpv4.MessageTypeNak, mac1, dhcpv4.WithTransactionID(dhcpv4.TransactionID{9}))
	tests := []struct {
		name  string
		punts []*table.Punt
		want  []Lease
	}{
		{"acknowledged", []*table.Punt{granted}, []Lease{ours}},
		{"for a granted MAC", []*table.Punt{punt(9, 1, ack(mac2, "10.0.0.5", 3600))}, []Lease{lease("web/net0", "10.0.0.5", mac2, time.Hour)}},
		{"for ever", []*table.Punt{punt(9, 1, ack(mac1, "10.0.0.5", 0xffffffff))}, []Lease{lease("web/net0", "10.0.0.5", mac1, 0)}},
		{"without a time", []*table.Punt{punt(9, 1, ack(mac1, "10.0.0.5", 0))}, nil},
		{"without an address", []*table.Punt{punt(9, 1, ack(mac1, "0.0.0.0", 3600))}, nil},
		{"for another MAC", []*table.Punt{punt(9, 1, ack(mac9, "10.0.0.5", 3600))}, nil},
		{"to no port", []*table.Punt{punt(9, 8, ack(mac1, "10.0.0.5", 3600))}, nil},
		{"said by the guest itself", []*table.Punt{punt(1, 0, ack(mac1, "10.0.0.5", 3600))}, nil},
		{"an offer", []*table.Punt{punt(9, 1, udpFrame(mac1, mac9, server4, allC4, dhcp4(dhcpv4.MessageTypeOffer, mac1, dhcpv4.WithYourIP(net.IP{10, 0, 0, 5}), dhcpv4.WithLeaseTime(9))))}, nil},
		{"renewed", []*table.Punt{granted, punt(9, 1, ack(mac1, "10.0.0.5", 7200))}, []Lease{lease("web/net0", "10.0.0.5", mac1, 2*time.Hour)}},
		{"released", []*table.Punt{granted, punt(1, 0, release(mac1, "10.0.0.5"))}, nil},
		{"released by another port", []*table.Punt{granted, punt(2, 0, release(mac9, "10.0.0.5"))}, []Lease{ours}},
		{"released with another's MAC", []*table.Punt{granted, punt(2, 0, release(mac1, "10.0.0.5"))}, []Lease{ours}},
		{"declined", []*table.Punt{granted, punt(1, 0, udpFrame(mac9, mac1, client4, all4, dhcp4(dhcpv4.MessageTypeDecline, mac1, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IP{10, 0, 0, 5})))))}, nil},
		{"refused", []*table.Punt{granted, punt(1, 0, request(mac1, "10.0.0.5")), punt(9, 1, nak)}, nil},
		{"refused, not asked for", []*table.Punt{granted, punt(9, 1, nak)}, []Lease{ours}},
		{"refused, another time", []*table.Punt{granted, punt(1, 0, request(mac1, "10.0.0.5")), punt(9, 1, udpFrame(mac1, mac9, server4, allC4, other))}, []Lease{ours}},
		{"given to another, who named its client identifier", []*table.Punt{granted, punt(9, 2, ack(mac9, "10.0.0.5", 3600))}, []Lease{ours}},
		{"given to another after it was released", []*table.Punt{granted, punt(1, 0, release(mac1, "10.0.0.5")), punt(9, 2, ack(mac9, "10.0.0.5", 3600))}, []Lease{lease("db/net0", "10.0.0.5", mac9, time.Hour)}},
		{"dhcpv6", []*table.Punt{punt(9, 1, reply6(mac1, time.Hour, "2001:db8::5", "2001:db8::6"))}, []Lease{lease("web/net0", "2001:db8::5", mac1, time.Hour), lease("web/net0", "2001:db8::6", mac1, time.Hour)}},
		{"dhcpv6 for somebody else", []*table.Punt{punt(9, 1, reply6(mac9, time.Hour, "2001:db8::5"))}, nil},
		{"dhcpv6, mapped", []*table.Punt{punt(9, 1, reply6(mac1, time.Hour, "::ffff:10.0.0.9"))}, nil},
		{"dhcpv6, taken back", []*table.Punt{punt(9, 1, reply6(mac1, time.Hour, "2001:db8::5")), punt(9, 1, reply6(mac1, 0, "2001:db8::5"))}, nil},
		{"dhcpv6, released", []*table.Punt{punt(9, 1, reply6(mac1, time.Hour, "2001:db8::5")), punt(1, 0, udpFrame(mac9, mac1, client6, server6, dhcp6(dhcpv6.MessageTypeRelease, 0, "2001:db8::5")))}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := NewLeases()
			for i, p := range tt.punts {
				before := l.All()
				changed, err := l.Heard(p, find, epoch)
				if err != nil && tt.name != "said by the guest itself" {
					t.Fatal(err)
				}
				if same := cmp.Equal(before, l.All(), equate); same == changed {
					t.Errorf("message %d: changed = %v, but same leases = %v", i, changed, same)
				}
			}
			if diff := cmp.Diff(tt.want, l.All(), equate); diff != "" {
				t.Errorf("leases (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLeasesEnd(t *testing.T) {
	l := NewLeases()
	for addr, life := range map[string]uint32{"10.0.0.5": 60, "10.0.0.6": 120, "10.0.0.7": 0xffffffff} {
		if _, err := l.Heard(punt(9, 1, ack(mac1, addr, life)), find, epoch); err != nil {
			t.Fatal(err)
		}
	}
	if at, ok := l.Next(); !ok || !at.Equal(epoch.Add(time.Minute)) {
		t.Errorf("Next = %v, %v", at, ok)
	}
	if gone := l.Expire(epoch.Add(59 * time.Second)); gone != nil {
		t.Errorf("a second early these ended: %v", gone)
	}
	if diff := cmp.Diff([]Lease{lease("web/net0", "10.0.0.5", mac1, time.Minute)}, l.Expire(epoch.Add(time.Minute)), equate); diff != "" {
		t.Errorf("ended (-want +got):\n%s", diff)
	}
	if port, ok := l.Owner(7, netip.MustParseAddr("::ffff:10.0.0.7")); !ok || port != "web/net0" {
		t.Errorf("Owner = %s, %v", port, ok)
	}
	if !l.Forget("web/net0") || l.Forget("web/net0") || len(l.All()) != 0 {
		t.Errorf("after Forget: %v", l.All())
	}
	if _, ok := l.Next(); ok {
		t.Error("there is something to wait for")
	}
}

func TestLeasesAreBounded(t *testing.T) {
	l := NewLeases()
	for i := range 3 * MaxLeases {
		addr := netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}).String()
		if _, err := l.Heard(punt(9, 1, ack(mac1, addr, uint32(3600+i))), find, epoch); err != nil {
			t.Fatal(err)
		}
	}
	got := l.Of("web/net0")
	if len(got) != MaxLeases || got[0].Addr != netip.AddrFrom4([4]byte{10, 0, 1, 2 * MaxLeases}) {
		t.Errorf("%d leases, the first of %v; want the last %d", len(got), got[0].Addr, MaxLeases)
	}
}

func TestLeaseBoot(t *testing.T) {
	l := lease("p", "10.0.0.5", mac1, time.Minute)
	for now, want := range map[time.Duration]uint64{0: 60e9 + 5, 90 * time.Second: 1, time.Minute: 5} {
		if got := l.Boot(epoch.Add(now), 5); got != want {
			t.Errorf("Boot after %v = %d, want %d", now, got, want)
		}
	}
	if got := lease("p", "10.0.0.5", mac1, 0).Boot(epoch, 5); got != 0 {
		t.Errorf("Boot of a lease without end = %d", got)
	}
}

func TestLeaseFile(t *testing.T) {
	dir := t.TempDir()
	l, err := OpenLeases(dir, epoch)
	if err != nil {
		t.Fatal(err)
	}
	want := []Lease{lease("a/net0", "10.0.0.5", mac1, time.Hour), lease("b/net0", "2001:db8::1", mac2, 0)}
	l.Adopt(append(want, lease("c/net0", "10.0.0.6", mac1, time.Minute)), epoch)
	if err := l.Save(); err != nil {
		t.Fatal(err)
	}
	l, err = OpenLeases(dir, epoch.Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, l.All(), equate); diff != "" {
		t.Errorf("after a minute (-want +got):\n%s", diff)
	}
	if files, _ := filepath.Glob(filepath.Join(dir, ".leases-*")); len(files) != 0 {
		t.Errorf("left behind: %v", files)
	}
	for _, bad := range []string{"", "{", `{"version":2}`, `{"version":1,"leases":[{"port":"a","addr":"10.0.0.1","mac":"x"}]}`, `{"version":1,"leases":[{"addr":"x"}]}`} {
		if err := os.WriteFile(filepath.Join(dir, "leases.json"), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if l, err := OpenLeases(dir, epoch); err == nil || l == nil || len(l.All()) != 0 {
			t.Errorf("a file that holds %q was taken: %v", bad, err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := l.Save(); err == nil {
		t.Error("saved into a directory that is not there")
	}
}

func TestMACs(t *testing.T) {
	m := NewMACs()
	hear := func(ifindex uint32, kind table.PuntKind, src table.MAC, at time.Duration) bool {
		p := punt(ifindex, 0, inet.Ethernet(mac9, src, 0, 0x1234))
		p.Kind = kind
		r, ok := m.Heard(p, find, epoch.Add(at))
		if ok && (r.MAC != src || r.Net != 7 || r.Virtual != (kind == table.PuntVirtual)) {
			t.Errorf("request %+v for %v", r, src)
		}
		return ok
	}
	vrrp := table.MAC{0, 0, 0x5e, 0, 1, 1}
	for i, tt := range []struct {
		ifindex uint32
		kind    table.PuntKind
		src     table.MAC
		at      time.Duration
		want    bool
	}{
		{1, table.PuntNewMAC, table.MAC{2, 1}, 0, true},
		{1, table.PuntNewMAC, table.MAC{2, 1}, time.Second, false}, // asked already
		{1, table.PuntNewMAC, table.MAC{2, 2}, 0, true},
		{1, table.PuntNewMAC, table.MAC{2, 3}, 0, false}, // its own, one granted, two asked for: 4
		{1, table.PuntNewMAC, table.MAC{2, 3}, macPatience, true},
		{1, table.PuntNewMAC, mac2, 0, false}, // has it
		{1, table.PuntNewMAC, table.MAC{3, 1}, time.Hour, false},
		{1, table.PuntNewMAC, table.MAC{}, time.Hour, false},
		{2, table.PuntNewMAC, table.MAC{2, 4}, 0, false}, // may have one
		{8, table.PuntNewMAC, table.MAC{2, 4}, 0, false},
		{2, table.PuntVirtual, vrrp, 0, true},
		{2, table.PuntVirtual, vrrp, time.Second / 2, false},
		{2, table.PuntVirtual, vrrp, time.Second, true},
		{2, table.PuntDHCP, table.MAC{2, 4}, 0, false},
	} {
		if got := hear(tt.ifindex, tt.kind, tt.src, tt.at); got != tt.want {
			t.Errorf("%d: %v asked for: %v, want %v", i, tt.src, got, tt.want)
		}
	}
	for i := range 2 * maxVirtual {
		hear(1, table.PuntVirtual, table.MAC{0, 0, 0x5e, 0, 1, byte(i)}, 0)
	}
	if n := len(m.pending["web/net0"]); n > maxVirtual+4 {
		t.Errorf("%d requests of a port are kept", n)
	}
	m.Forget("web/net0")
	m.Forget("db/net0")
	if len(m.pending) != 0 {
		t.Errorf("kept of ports that are gone: %v", m.pending)
	}
}

func FuzzHeard(f *testing.F) {
	for _, b := range [][]byte{ack(mac1, "10.0.0.5", 60), request(mac1, "10.0.0.5"), release(mac1, "10.0.0.5"), reply6(mac1, time.Hour, "2001:db8::5"), {}} {
		f.Add(b, true)
		f.Add(b, false)
	}
	f.Fuzz(func(t *testing.T, b []byte, server bool) {
		l := NewLeases()
		p := punt(1, 0, b[:min(len(b), table.PuntBytes)])
		if server {
			p = punt(9, 1, b[:min(len(b), table.PuntBytes)])
		}
		if _, err := l.Heard(p, find, epoch); err != nil && len(l.All()) > 0 {
			t.Errorf("an error, and leases: %v", l.All())
		}
		for _, x := range l.All() {
			if !server || x.Port != "web/net0" || (x.MAC != mac1 && x.MAC != mac2) || x.over(epoch) || !x.Addr.IsValid() || x.Addr.Is4In6() {
				t.Errorf("lease %+v", x)
			}
		}
		if len(l.All()) > MaxLeases {
			t.Errorf("%d leases of one message", len(l.All()))
		}
		for _, k := range []table.PuntKind{table.PuntNewMAC, table.PuntVirtual} {
			p.Kind = k
			NewMACs().Heard(p, find, epoch)
		}
	})
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(`{"version":1,"leases":[{"port":"a/b","net":7,"addr":"10.0.0.1","mac":"52:54:00:00:00:01","expires":"2027-01-01T00:00:00Z"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		l := NewLeases()
		if err := l.load(b, epoch); err != nil && len(l.All()) > 0 {
			t.Error("an error, and leases")
		}
	})
}

// An address whose lease is over may be leased to another before anybody has called Expire.
func TestLeaseAfterLease(t *testing.T) {
	l := NewLeases()
	for _, x := range []struct {
		to    uint32
		mac   table.MAC
		after time.Duration
		owner string
	}{{1, mac1, 0, "web/net0"}, {2, mac9, time.Hour - 1, "web/net0"}, {2, mac9, time.Hour, "db/net0"}} {
		if _, err := l.Heard(punt(9, x.to, ack(x.mac, "10.0.0.5", 3600)), find, epoch.Add(x.after)); err != nil {
			t.Fatal(err)
		}
		if got, _ := l.Owner(7, netip.MustParseAddr("10.0.0.5")); got != x.owner {
			t.Errorf("after %v the address is %q's, want %q", x.after, got, x.owner)
		}
	}
}
