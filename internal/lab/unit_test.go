package lab

import (
	"encoding/binary"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"drover/internal/clock"
	"drover/internal/hostnet"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"
)

func TestConfigValidate(t *testing.T) {
	good := Config{Name: "a1"}
	must(t, good.Validate())
	site := func(name string, hosts ...string) Site {
		s := Site{Name: name}
		for _, h := range hosts {
			s.Hosts = append(s.Hosts, Host{Name: h})
		}
		return s
	}
	for what, c := range map[string]Config{
		"no name":            {},
		"dash in name":       {Name: "a-b"},
		"long name":          {Name: "abcdefghijklm"},
		"path as name":       {Name: "../a"},
		"host twice":         {Name: "a", Sites: []Site{site("x", "h"), site("y", "h")}},
		"host like a switch": {Name: "a", Sites: []Site{site("x", "x-sw")}},
		"host like manager":  {Name: "a", Sites: []Site{site("x", "manager")}},
		"path as host":       {Name: "a", Sites: []Site{site("x", "../h")}},
		"nine sites": {Name: "a", Sites: []Site{site("a"), site("b"), site("c"), site("d"), site("e"),
			site("f"), site("g"), site("h"), site("i")}},
		"too many uplinks": {Name: "a", Sites: []Site{{Name: "x", Hosts: []Host{{"h", 9}}}}},
		"small MTU":        {Name: "a", MTU: 100},
		"loss":             {Name: "a", WAN: WAN{Loss: 2}},
		"delay":            {Name: "a", WAN: WAN{Delay: time.Hour}},
	} {
		if c.Validate() == nil {
			t.Errorf("%s: taken", what)
		}
	}
}

func TestPlanFitsTheKernel(t *testing.T) {
	c := Config{Name: "abcdefghijkl"}
	for i := range maxSites {
		s := Site{Name: "site-" + string(rune('a'+i)) + strings.Repeat("x", 20)}
		for j := range maxHosts {
			s.Hosts = append(s.Hosts, Host{Name: s.Name[:6] + "-" + string(rune('a'+j/26)) + string(rune('a'+j%26)), Uplinks: maxUplinks})
		}
		c.Sites = append(c.Sites, s)
	}
	must(t, c.Validate())
	topo := plan(c.withDefaults())
	if len(topo.Links) != maxSites*(maxSites-1)/2 || len(topo.Hosts("")) != maxSites*maxHosts {
		t.Fatalf("%d links and %d hosts", len(topo.Links), len(topo.Hosts("")))
	}
	f := fabric{cfg: c, topo: topo}
	names, addrs := map[string]bool{}, map[netip.Addr]bool{}
	for _, n := range topo.Nodes {
		if names[n.Namespace] || addrs[n.Address.Addr()] && n.Address.IsValid() {
			t.Errorf("node %s: namespace %s or address %v is used twice", n.Name, n.Namespace, n.Address)
		}
		names[n.Namespace], addrs[n.Address.Addr()] = true, true
	}
	for i, s := range topo.Sites {
		ports := map[string]bool{}
		for _, cb := range f.cables(i, s) {
			if hostnet.CheckName(cb.port) != nil || hostnet.CheckName(cb.link) != nil || ports[cb.port] {
				t.Errorf("cable %+v", cb)
			}
			must(t, f.mark(cb.node, cb.link).Validate())
			ports[cb.port] = true
		}
	}
	for _, wl := range topo.Links {
		must(t, hostnet.CheckName(wl.Device))
		if addrs[wl.AddrA.Addr()] || addrs[wl.AddrB.Addr()] {
			t.Errorf("link %+v: an address is used twice", wl)
		}
		addrs[wl.AddrA.Addr()], addrs[wl.AddrB.Addr()] = true, true
	}
}

func TestParseUnits(t *testing.T) {
	for in, want := range map[string]int64{"100M": 1e8, "1.5G": 15e8, "64k": 64000, "0": 0, "9000": 9000} {
		if got, err := ParseBandwidth(in); err != nil || got != want {
			t.Errorf("ParseBandwidth(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for in, want := range map[string]float64{"1%": 0.01, "0.5": 0.5, "0": 0, "100%": 1} {
		if got, err := ParseLoss(in); err != nil || got != want {
			t.Errorf("ParseLoss(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	for _, bad := range []string{"", "M", "-1M", "NaN", "1e99", "10X", "1", "InfG"} {
		if got, err := ParseBandwidth(bad); err == nil {
			t.Errorf("ParseBandwidth(%q) = %d", bad, got)
		}
	}
	for _, bad := range []string{"", "%", "101%", "-1%", "NaN", "2"} {
		if got, err := ParseLoss(bad); err == nil {
			t.Errorf("ParseLoss(%q) = %v", bad, got)
		}
	}
}

func FuzzParseUnits(f *testing.F) {
	f.Add("100M")
	f.Add("1%")
	f.Fuzz(func(t *testing.T, s string) {
		if b, err := ParseBandwidth(s); err == nil && (WAN{Bandwidth: b}).Validate() != nil {
			t.Errorf("ParseBandwidth(%q) = %d, which is refused", s, b)
		}
		if l, err := ParseLoss(s); err == nil && (WAN{Loss: l}).Validate() != nil {
			t.Errorf("ParseLoss(%q) = %v, which is refused", s, l)
		}
	})
}

func TestParseStat(t *testing.T) {
	line := "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20"
	if got, err := parseStat([]byte(line)); err != nil || got != 4711 {
		t.Errorf("parseStat = %d, %v; want 4711", got, err)
	}
	if _, err := parseStat([]byte(strings.Replace(line, ") S", ") Z", 1))); err != errGone {
		t.Errorf("a zombie: %v, want errGone", err)
	}
	self := Process{PID: os.Getpid()}
	var err error
	self.Start, err = startTime(self.PID)
	must(t, err)
	if !self.alive() || (Process{PID: self.PID, Start: self.Start + 1}).alive() {
		t.Error("this process is not told from one that had its pid")
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("7 (a) S 1 2 3"))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = parseStat(b) })
}

func TestParseMounts(t *testing.T) {
	info := "1 0 8:1 / / rw - ext4 d rw\n2 1 0:5 / /r/lab rw - tmpfs t rw\n" +
		"3 1 0:5 / /r/lab/a\\040b rw - tmpfs t rw\n4 1 0:5 / /r/labour rw - tmpfs t rw\nbroken\n"
	want := []string{"/r/lab", "/r/lab/a b"}
	if got := parseMounts(info, "/r/lab"); !slices.Equal(got, want) {
		t.Errorf("parseMounts = %q, want %q", got, want)
	}
}

func FuzzParseMounts(f *testing.F) {
	f.Add("3 1 0:5 / /r/lab/a\\040b rw")
	f.Fuzz(func(_ *testing.T, s string) { parseMounts(s, "/r") })
}

// pair is a connection that keeps packets apart, as a TUN does.
func pair(t *testing.T) (a, b *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	a, b = os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// runPipe runs a pipe between two pairs and returns its outer ends.
func runPipe(t *testing.T, w WAN) (p *pipe, par *atomic.Pointer[WAN], src, dst *os.File) {
	t.Helper()
	src, in := pair(t)
	out, dst := pair(t)
	par = &atomic.Pointer[WAN]{}
	par.Store(&w)
	p, err := newPipe(in, out, par, clock.Real(), 1)
	must(t, err)
	done := make(chan struct{}, 2)
	go func() { _ = p.read(); done <- struct{}{} }()
	go func() { p.write(); done <- struct{}{} }()
	t.Cleanup(func() { in.Close(); p.stop(); <-done; <-done })
	return p, par, src, dst
}

func TestPipeKeepsOrderWhileParametersChange(t *testing.T) {
	_, par, src, dst := runPipe(t, WAN{})
	const n = 3000
	go func() {
		shapes := []WAN{{}, {Delay: 2 * time.Millisecond, Jitter: 2 * time.Millisecond}, {Bandwidth: 1e9}, {Delay: time.Millisecond}}
		b := make([]byte, 1400)
		for i := range n {
			if i%50 == 0 {
				par.Store(&shapes[i/50%len(shapes)])
			}
			binary.BigEndian.PutUint32(b[vnetHeader:], uint32(i))
			if _, err := src.Write(b[:100+i%1300]); err != nil {
				return // the test has failed
			}
		}
	}()
	must(t, dst.SetReadDeadline(time.Now().Add(20*time.Second)))
	buf := make([]byte, maxPacket)
	for i := range n {
		k, err := dst.Read(buf)
		must(t, err)
		if got := binary.BigEndian.Uint32(buf[vnetHeader:]); got != uint32(i) || k != 100+i%1300 {
			t.Fatalf("packet %d arrived as number %d with %d bytes", got, i, k)
		}
	}
}

func TestPipeDropsWhatTheQueueDoesNotHold(t *testing.T) {
	// 1 Mbit/s and 20 ms hold 2,500 bytes: two packets of 1,000 and no third.
	p, _, src, dst := runPipe(t, WAN{Bandwidth: 1e6, Queue: 20 * time.Millisecond})
	for range 20 {
		if _, err := src.Write(make([]byte, 1000+vnetHeader)); err != nil {
			t.Fatal(err)
		}
	}
	must(t, dst.SetReadDeadline(time.Now().Add(time.Second)))
	got, buf := 0, make([]byte, maxPacket)
	for {
		if _, err := dst.Read(buf); err != nil {
			break
		}
		got++
	}
	c := p.counters()
	if got < 2 || got > 10 || c.Packets != uint64(got) || c.Dropped != uint64(20-got) || c.Bytes != uint64(1000*got) {
		t.Errorf("%d of 20 passed; counters %+v", got, c)
	}
	if held := p.held.Load(); held != 0 {
		t.Errorf("%d bytes of buffers are held by an empty pipe", held)
	}
}

func TestWireBytesOfSegments(t *testing.T) {
	b := make([]byte, vnetHeader+40+3000)
	if got := wireBytes(b); got != 3040 {
		t.Errorf("a plain packet counts %d, want 3040", got)
	}
	b[1] = 1 // VIRTIO_NET_HDR_GSO_TCPV4
	binary.NativeEndian.PutUint16(b[2:], 40)
	binary.NativeEndian.PutUint16(b[4:], 1400)
	if got := wireBytes(b); got != 3000+3*40 {
		t.Errorf("a segment of three packets counts %d, want 3120", got)
	}
}

func testDHCP(t testing.TB) *dhcpServer {
	f, err := os.Create(filepath.Join(t.TempDir(), "leases"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &dhcpServer{
		site: plan(Config{Name: "a"}.withDefaults()).Sites[0], mtu: 1500, log: slog.New(slog.DiscardHandler),
		file: f, byMAC: map[string]netip.Addr{}, taken: map[netip.Addr]bool{},
	}
}

func TestDHCPAnswers(t *testing.T) {
	d := testDHCP(t)
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	want := d.site.GuestAddress(mac)
	d.taken[want] = true // another MAC of the same hash was first
	next := d.site.nthChoice(mac, 1)
	ask := func(mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
		m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(mac)}, mods...)...)
		must(t, err)
		reply, _ := d.answer(m)
		return reply
	}
	offer := ask(dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover))
	if offer == nil || offer.MessageType() != dhcpv4.MessageTypeOffer || !offer.YourIPAddr.Equal(next.AsSlice()) {
		t.Fatalf("offer: %v, want %v", offer, next)
	}
	request := dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest)
	wanting := func(a netip.Addr) dhcpv4.Modifier {
		return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(a.AsSlice()))
	}
	if r := ask(request, wanting(next)); r == nil || r.MessageType() != dhcpv4.MessageTypeAck {
		t.Errorf("request for the offer: %v", r)
	}
	if r := ask(request, wanting(want)); r == nil || r.MessageType() != dhcpv4.MessageTypeNak {
		t.Errorf("request for another's address: %v", r)
	}
	if r := ask(request, wanting(next), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(1, 2, 3, 4)))); r != nil {
		t.Errorf("request to another server: %v", r)
	}
	if r := ask(dhcpv4.WithMessageType(dhcpv4.MessageTypeRelease)); r != nil {
		t.Errorf("release: %v", r)
	}
	for i := range maxLeases + 100 {
		d.pick(net.HardwareAddr{4, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)})
	}
	if len(d.byMAC) != maxLeases {
		t.Errorf("%d leases, want no more than %d", len(d.byMAC), maxLeases)
	}
	if r := ask(request, wanting(next)); r == nil || r.MessageType() != dhcpv4.MessageTypeAck {
		t.Errorf("request when the table is full: %v", r)
	}
}

func FuzzDHCP(f *testing.F) {
	m, err := dhcpv4.NewDiscovery(net.HardwareAddr{2, 0, 0, 0, 0, 1})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(m.ToBytes())
	d := testDHCP(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := dhcpv4.FromBytes(b)
		if err != nil {
			return
		}
		reply, to := d.answer(m)
		if reply == nil {
			return
		}
		reply.ToBytes()
		if a, ok := netip.AddrFromSlice(to.IP.To4()); !ok || a != netip.AddrFrom4([4]byte{255, 255, 255, 255}) && !d.site.Guests.Contains(a) {
			t.Errorf("answer goes to %v", to)
		}
	})
}
