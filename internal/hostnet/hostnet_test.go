package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"drover/internal/unwind"

	"golang.org/x/sys/unix"
)

var testMark = Mark{"test", "u1"}

// testNet makes a namespace that goes with the test.
func testNet(t *testing.T, suffix string) *Net {
	t.Helper()
	name := fmt.Sprintf("drovertest-%d-%s", os.Getpid(), suffix)
	t.Cleanup(func() {
		if err := DeleteNamespace(name); err != nil {
			t.Error(err)
		}
	})
	var u unwind.Stack
	if err := CreateNamespace(&u, name); err != nil {
		t.Fatal(err)
	}
	n, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func names(t *testing.T, n *Net) []string {
	t.Helper()
	links, err := n.Links()
	must(t, err)
	var out []string
	for _, l := range links {
		out = append(out, l.Name)
	}
	slices.Sort(out)
	return out
}

func TestNamespaceLife(t *testing.T) {
	n := testNet(t, "life")
	must(t, CreateNamespace(nil, n.Name())) // again: kept
	list, err := Namespaces(n.Name())
	must(t, err)
	ino, err := n.Inode()
	must(t, err)
	if len(list) != 1 || list[0] != (Namespace{n.Name(), ino}) {
		t.Fatalf("Namespaces = %v, want %s with inode %d", list, n.Name(), ino)
	}
	if lo, err := n.Link("lo"); err != nil || !lo.Up {
		t.Fatalf("loopback = %+v, %v; want up", lo, err)
	}
	out, err := exec.Command("ip", "netns", "exec", n.Name(), "ip", "-o", "link").CombinedOutput()
	if err != nil || strings.Count(string(out), "\n") != 1 {
		t.Fatalf("ip netns exec: %v, %s; want one link", err, out)
	}
	var u unwind.Stack
	must(t, CreateNamespace(&u, n.Name()+"x"))
	u.Undo(t.Context(), &err)
	must(t, err)
	if list, _ := Namespaces(n.Name() + "x"); len(list) != 0 {
		t.Fatalf("after undo: %v", list)
	}
	must(t, DeleteNamespace(n.Name()+"x"))
	if _, err := Open(n.Name() + "x"); !errors.Is(err, ErrNotFound) {
		t.Fatalf("Open of a deleted namespace: %v, want ErrNotFound", err)
	}
	for _, bad := range []string{"", "..", "a/b", strings.Repeat("x", 201)} {
		if err := CreateNamespace(nil, bad); err == nil {
			t.Errorf("namespace name %q was taken", bad)
		}
	}
}

func TestDoComesBack(t *testing.T) {
	n := testNet(t, "do")
	inside, err := n.Inode()
	must(t, err)
	self, err := Current()
	must(t, err)
	defer self.Close()
	outside, err := self.Inode()
	must(t, err)
	for range 50 {
		err := n.Do(func() error {
			if unix.Gettid() == unix.Getpid() {
				t.Error("Do ran on the main thread")
			}
			ino, err := namespaceInode(threadNamespace())
			if ino != inside {
				t.Errorf("in Do the namespace is %d, want %d", ino, inside)
			}
			return err
		})
		must(t, err)
	}
	func() {
		defer func() {
			if p := recover(); p != "boom" {
				t.Errorf("panic in Do: recovered %v, want boom", p)
			}
		}()
		_ = n.Do(func() error { panic("boom") })
	}()
	tasks, err := os.ReadDir("/proc/self/task")
	must(t, err)
	for _, task := range tasks {
		ino, err := namespaceInode("/proc/self/task/" + task.Name() + "/ns/net")
		if err == nil && ino != outside {
			t.Errorf("thread %s was left in namespace %d", task.Name(), ino)
		}
	}
	cmd := exec.Command("readlink", "/proc/self/ns/net")
	var out strings.Builder
	cmd.Stdout = &out
	must(t, n.Run(cmd))
	if want := fmt.Sprintf("net:[%d]\n", inside); out.String() != want {
		t.Errorf("command ran in %q, want %q", out.String(), want)
	}
}

func TestTAP(t *testing.T) {
	n := testNet(t, "tap")
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	tap := TAP{Name: Name("dt", "vm-1/net0"), Mark: Mark{MarkNIC, "vm-1/net0"}, VNetHdr: true, Owner: 12345, MAC: mac, MTU: 1400}
	var u unwind.Stack
	must(t, n.EnsureTAP(&u, tap))
	if u.Len() == 0 {
		t.Fatal("a new TAP pushed no undo")
	}
	first, err := n.Link(tap.Name)
	must(t, err)
	if first.Mark != tap.Mark || first.MTU != 1400 || !first.Up || first.Carrier || first.MAC.String() != mac.String() {
		t.Fatalf("TAP is %+v", first)
	}
	var again unwind.Stack
	must(t, n.EnsureTAP(&again, tap))
	if again.Len() != 0 {
		t.Error("an unchanged TAP pushed an undo")
	}
	if l, _ := n.Link(tap.Name); l.Index != first.Index {
		t.Error("an unchanged TAP was remade")
	}
	f, err := n.OpenTAP(tap.Name, true)
	must(t, err)
	if _, err := n.OpenTAP(tap.Name, true); !errors.Is(err, unix.EBUSY) {
		t.Errorf("second open: %v, want EBUSY", err)
	}
	if l, _ := n.Link(tap.Name); !l.Carrier {
		t.Error("an open TAP has no carrier")
	}
	f.Close()

	// virtio → e1000: the header flag must not stay.
	tap.VNetHdr = false
	must(t, n.EnsureTAP(&u, tap))
	if l, _ := n.Link(tap.Name); l.Index == first.Index {
		t.Error("the TAP kept its virtio header flag")
	}
	if _, err := n.OpenTAP(tap.Name, true); err == nil {
		t.Error("opened with a header the TAP was not made with")
	}
	f, err = n.OpenTAP(tap.Name, false)
	must(t, err)
	defer f.Close()
	frame := append(slices.Concat(mac, net.HardwareAddr{2, 0, 0, 0, 0, 1}, []byte{0x88, 0xb5}), make([]byte, 46)...)
	before, err := n.Link(tap.Name)
	must(t, err)
	if _, err := f.Write(frame); err != nil {
		t.Fatal(err)
	}
	after, err := n.Link(tap.Name)
	must(t, err)
	if d := after.Counters.RxPackets - before.Counters.RxPackets; d != 1 {
		t.Errorf("one frame from the guest: counter moved by %d", d)
	}
	u.Undo(t.Context(), &err)
	must(t, err)
	if got := names(t, n); !slices.Equal(got, []string{"lo"}) {
		t.Errorf("after undo: %v", got)
	}
}

func TestForeignLinksAreLeftAlone(t *testing.T) {
	n := testNet(t, "foreign")
	must(t, n.Run(exec.Command("ip", "link", "add", "br0", "type", "bridge")))
	must(t, n.Run(exec.Command("ip", "tuntap", "add", "t0", "mode", "tap")))
	for what, err := range map[string]error{
		"EnsureBridge": n.EnsureBridge(nil, Bridge{Name: "br0", Mark: testMark}),
		"EnsureTAP":    n.EnsureTAP(nil, TAP{Name: "t0", Mark: testMark}),
		"Delete":       n.Delete("br0", testMark),
	} {
		if !errors.Is(err, ErrForeign) {
			t.Errorf("%s: %v, want ErrForeign", what, err)
		}
	}
	if _, err := n.Sweep("", func(Mark) bool { return false }); err != nil {
		t.Error(err)
	}
	if got := names(t, n); !slices.Equal(got, []string{"br0", "lo", "t0"}) {
		t.Errorf("links now: %v", got)
	}
}

func TestBridge(t *testing.T) {
	a, sw, b := testNet(t, "a"), testNet(t, "sw"), testNet(t, "b")
	var u unwind.Stack
	must(t, sw.EnsureBridge(&u, Bridge{Name: "br0", Mark: testMark, MTU: 1400}))
	for i, n := range []*Net{a, b} {
		v := Veth{A: fmt.Sprintf("p%d", i), B: "up0", MarkA: testMark, MarkB: testMark, MTU: 1400}
		must(t, sw.EnsureVeth(&u, n, v))
		must(t, sw.EnsureVeth(&u, n, v))
		must(t, sw.Attach(&u, "br0", v.A))
		must(t, sw.Attach(&u, "br0", v.A))
		must(t, sw.SetUp(v.A, true))
		must(t, n.SetUp("up0", true))
		addr := netip.MustParsePrefix(fmt.Sprintf("10.0.0.%d/24", i+1))
		must(t, n.EnsureAddress(&u, "up0", addr))
		must(t, n.EnsureAddress(&u, "up0", addr))
		got, err := n.Addresses("up0")
		must(t, err)
		if !slices.Contains(got, addr) {
			t.Fatalf("addresses of up0: %v, want %v", got, addr)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	must(t, sw.WaitUp(ctx, "p0", "p1"))
	must(t, sw.SetSTP("br0", true, 2*time.Second))
	must(t, a.EnsureRoute(&u, netip.MustParsePrefix("10.9.0.0/16"), netip.MustParseAddr("10.0.0.2")))
	must(t, a.EnsureRoute(&u, netip.MustParsePrefix("10.9.0.0/16"), netip.MustParseAddr("10.0.0.2")))
	must(t, b.EnsureAddress(&u, "lo", netip.MustParsePrefix("10.9.0.1/32")))
	// Sooner than a port takes that comes up under the spanning tree, 4 s.
	ping := exec.CommandContext(ctx, "ping", "-c1", "-w2", "10.9.0.1")
	if err := a.Run(ping); err != nil {
		t.Fatalf("no answer through the bridge right after the spanning tree was turned on: %v", err)
	}
	var out strings.Builder
	show := exec.Command("ip", "-d", "link", "show", "br0")
	show.Stdout = &out
	must(t, sw.Run(show))
	if s := out.String(); !strings.Contains(s, "stp_state 1") || !strings.Contains(s, "forward_delay 200") {
		t.Errorf("spanning tree is not on with 2 s: %s", s)
	}
	if err := sw.SetSTP("br0", true, time.Second); err == nil {
		t.Error("a forward delay under 2 s was taken")
	}
	if l, err := sw.Link("p0"); err != nil || l.Master != "br0" || l.Counters.RxPackets == 0 || l.MTU != 1400 {
		t.Errorf("port is %+v, %v", l, err)
	}
	must(t, a.SetUp("up0", false))
	short, stop := context.WithTimeout(ctx, time.Millisecond)
	defer stop()
	if err := a.WaitUp(short, "up0"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for a link that is down: %v, want a deadline", err)
	}
	must(t, a.SetUp("up0", true))
	if got, err := sw.Addresses("br0"); err != nil || len(got) != 0 {
		t.Errorf("the bridge has addresses %v, %v; want none", got, err)
	}
	ups, err := a.Uplinks()
	must(t, err)
	if len(ups) != 1 || ups[0].Name != "up0" || ups[0].Driver != "veth" || ups[0].SpeedMbit != 10000 {
		t.Errorf("uplinks are %+v, want up0 of driver veth with 10000 Mbit/s", ups)
	}
	u.Undo(t.Context(), &err)
	must(t, err)
	for _, n := range []*Net{a, sw, b} {
		if got := names(t, n); !slices.Equal(got, []string{"lo"}) {
			t.Errorf("%s after undo: %v", n.Name(), got)
		}
	}
}

// A TAP can be opened at once also while other goroutines start processes, which inherit everything until they execute.
func TestTAPWhileProcessesStart(t *testing.T) {
	n := testNet(t, "fork")
	ctx, stop := context.WithCancel(t.Context())
	var forks sync.WaitGroup
	for range 4 {
		forks.Go(func() {
			for ctx.Err() == nil {
				if err := exec.Command("true").Run(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	defer forks.Wait()
	defer stop()
	for i := range 300 {
		tap := TAP{Name: fmt.Sprintf("t%d", i), Mark: testMark}
		must(t, n.EnsureTAP(nil, tap))
		f, err := n.OpenTAP(tap.Name, false)
		if err != nil {
			t.Fatalf("TAP %d of 300: %v", i, err)
		}
		f.Close()
		must(t, n.Delete(tap.Name, testMark))
	}
}

func TestBridgeCarriesTaggedFrames(t *testing.T) {
	n := testNet(t, "tag")
	must(t, n.EnsureBridge(nil, Bridge{Name: "br0", Mark: testMark}))
	var taps []*os.File
	for i := range 2 {
		tap := TAP{Name: fmt.Sprintf("t%d", i), Mark: testMark}
		must(t, n.EnsureTAP(nil, tap))
		f, err := n.OpenTAP(tap.Name, false)
		must(t, err)
		defer f.Close()
		must(t, n.Attach(nil, "br0", tap.Name))
		taps = append(taps, f)
	}
	src, dst := net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
	frame := append(slices.Concat(dst, src, []byte{0x81, 0, 0, 7, 0x88, 0xb5}), make([]byte, 46)...)
	if _, err := taps[0].Write(frame); err != nil {
		t.Fatal(err)
	}
	must(t, taps[1].SetReadDeadline(time.Now().Add(5*time.Second)))
	buf := make([]byte, 2000)
	for {
		k, err := taps[1].Read(buf)
		if err != nil {
			t.Fatalf("frame with VLAN 7 did not arrive: %v", err)
		}
		if slices.Equal(buf[:k], frame) {
			return
		}
	}
}

func TestSweep(t *testing.T) {
	n := testNet(t, "sweep")
	for _, id := range []string{"keep", "drop1", "drop2"} {
		must(t, n.EnsureTAP(nil, TAP{Name: Name("dt", id), Mark: Mark{MarkNIC, id}}))
	}
	must(t, n.EnsureBridge(nil, Bridge{Name: "db0", Mark: Mark{"network", "n"}}))
	gone, err := n.Sweep(MarkNIC, func(m Mark) bool { return m.ID == "keep" })
	must(t, err)
	if len(gone) != 2 {
		t.Errorf("swept %v, want two", gone)
	}
	want := []string{"db0", Name("dt", "keep"), "lo"}
	slices.Sort(want)
	if got := names(t, n); !slices.Equal(got, want) {
		t.Errorf("links now %v, want %v", got, want)
	}
}

func TestLinkThatWasMadeButNotMarked(t *testing.T) {
	n := testNet(t, "half")
	b := Bridge{Name: Name("db", "net-1"), Mark: Mark{"network", "net-1"}}
	must(t, n.Run(exec.Command("ip", "link", "add", b.Name, "type", "bridge")))
	other := b
	other.Mark.ID = "net-2"
	if err := n.EnsureBridge(nil, other); !errors.Is(err, ErrForeign) {
		t.Errorf("a link that another id's name was made for: %v, want ErrForeign", err)
	}
	must(t, n.EnsureBridge(nil, b))
	if l, err := n.Link(b.Name); err != nil || l.Mark != b.Mark {
		t.Errorf("link is %+v, %v; want it marked", l, err)
	}
	must(t, n.Delete(b.Name, b.Mark))
}

func TestSysctlRefusesTheMachine(t *testing.T) {
	n := testNet(t, "sysctl")
	must(t, n.SetSysctl("ipv4.ip_forward", "1"))
	var out strings.Builder
	cmd := exec.Command("cat", "/proc/sys/net/ipv4/ip_forward")
	cmd.Stdout = &out
	must(t, n.Run(cmd))
	if out.String() != "1\n" {
		t.Errorf("ip_forward = %q", out.String())
	}
	self, err := Current()
	must(t, err)
	defer self.Close()
	if err := self.SetSysctl("ipv4.conf.lo.forwarding", "0"); err == nil {
		t.Error("a sysctl of the machine was set")
	}
}

func TestMarkAndName(t *testing.T) {
	for _, m := range []Mark{{"nic", "a:b/c"}, {"lab", "x"}} {
		if got, ok := ParseMark(m.String()); !ok || got != m {
			t.Errorf("ParseMark(%q) = %v, %v", m, got, ok)
		}
	}
	for _, alias := range []string{"", "drover", "drover:", "drover:x", "drover::y", "drover:x:", "uplink to core", "drover:a b:c"} {
		if m, ok := ParseMark(alias); ok {
			t.Errorf("ParseMark(%q) = %v, want not ours", alias, m)
		}
	}
	a, b := Name("dt", "vm-1/0"), Name("dt", "vm-1/1")
	if a == b || len(a) != MaxName || CheckName(a) != nil || a != Name("dt", "vm-1/0") {
		t.Errorf("names %q and %q", a, b)
	}
	for _, bad := range []string{"", ".", "a b", "a/b", "0123456789abcdef", "a\x00"} {
		if CheckName(bad) == nil {
			t.Errorf("link name %q was taken", bad)
		}
	}
}

func FuzzParseMark(f *testing.F) {
	f.Add("drover:nic:u1")
	f.Fuzz(func(t *testing.T, alias string) {
		if m, ok := ParseMark(alias); ok && m.String() != alias {
			t.Errorf("ParseMark(%q) reads back as %q", alias, m)
		}
	})
}
