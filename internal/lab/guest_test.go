package lab

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"drover/internal/hostnet"
)

var guestMark = hostnet.Mark{Kind: "test", ID: "guest"}

// hostBridge is what a host does until the distributed switch comes: a plain
// bridge on its uplinks.
func hostBridge(t *testing.T, l *Lab, host string, uplinks ...string) *hostnet.Net {
	t.Helper()
	n, err := l.Net(host)
	must(t, err)
	t.Cleanup(func() { n.Close() })
	must(t, n.EnsureBridge(nil, hostnet.Bridge{Name: "br0", Mark: guestMark}))
	for _, up := range uplinks {
		must(t, n.Attach(nil, "br0", up))
	}
	return n
}

// guest puts a namespace with eth0 on the host's bridge. It goes with the lab.
func guest(t *testing.T, l *Lab, host *hostnet.Net, name string, mac net.HardwareAddr) *hostnet.Net {
	t.Helper()
	must(t, hostnet.CreateNamespace(nil, namespacePrefix(l.Name())+name))
	g, err := hostnet.Open(namespacePrefix(l.Name()) + name)
	must(t, err)
	t.Cleanup(func() { g.Close() })
	must(t, host.EnsureVeth(nil, g, hostnet.Veth{A: name, B: "eth0", MarkA: guestMark, MarkB: guestMark, MACB: mac}))
	must(t, host.Attach(nil, "br0", name))
	must(t, host.SetUp(name, true))
	must(t, g.SetUp("eth0", true))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	must(t, host.WaitUp(ctx, name))
	return g
}

// lease is what udhcpc tells its script.
type lease struct {
	addr   netip.Addr
	bits   string
	router string
	mtu    string
}

// ask runs busybox's DHCP client in the guest. It changes nothing there.
func ask(t *testing.T, g *hostnet.Net) lease {
	t.Helper()
	script := filepath.Join(t.TempDir(), "script")
	must(t, os.WriteFile(script, []byte("#!/bin/sh\n[ \"$1\" != bound ] || echo LEASE $ip $mask $router $mtu\n"), 0o755))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "busybox", "udhcpc", "-i", "eth0", "-f", "-q", "-n", "-t", "10", "-T", "1", "-O", "mtu", "-s", script)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := g.Run(cmd); err != nil {
		t.Fatalf("udhcpc: %v: %s", err, out.String())
	}
	_, line, _ := strings.Cut(out.String(), "LEASE ")
	f := strings.Fields(line)
	if len(f) < 4 {
		t.Fatalf("udhcpc: no whole lease in %s", out.String())
	}
	addr, err := netip.ParseAddr(f[0])
	must(t, err)
	return lease{addr, f[1], f[2], f[3]}
}

func TestGuestsGetAddressesAndReachTheOtherSite(t *testing.T) {
	l := New(t, Config{Root: testRoot(t), MTU: 1450})
	var addrs []netip.Addr
	var nets []*hostnet.Net
	for i, where := range []string{"east-1", "west-1"} {
		mac := net.HardwareAddr{0x52, 0x54, 0, 0, 0, byte(i)}
		host := hostBridge(t, l, where, "up0")
		g := guest(t, l, host, "guest"+where[:1], mac)
		got := ask(t, g)
		site := l.Topology().Sites[i]
		addr, router := got.addr, gateway(site.Guests).Addr()
		want := lease{site.GuestAddress(mac), "16", router.String(), "1450"}
		if got != want {
			t.Errorf("%s: lease %v, want %v", site.Name, got, want)
		}
		if again := ask(t, g); again != got {
			t.Errorf("%s: asked again, got %v after %v", site.Name, again, got)
		}
		must(t, g.EnsureAddress(nil, "eth0", netip.PrefixFrom(addr, site.Guests.Bits())))
		must(t, g.EnsureRoute(nil, prefix(0, 0, 0, 0, 0), router))
		addrs, nets = append(addrs, addr), append(nets, g)
	}
	ln := listenIn(t, nets[1], netip.AddrPortFrom(addrs[1], 80).String())
	defer ln.Close()
	var c net.Conn
	must(t, nets[0].Do(func() (err error) {
		c, err = net.DialTimeout("tcp4", ln.Addr().String(), 5*time.Second)
		return err
	}))
	defer c.Close()
	if got := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); got != addrs[0] {
		t.Errorf("the guest speaks from %v, want %v", got, addrs[0])
	}
	st, err := l.Status(t.Context())
	must(t, err)
	if len(st.Leases) != 2 {
		t.Errorf("leases: %+v, want two", st.Leases)
	}
	// A new daemon goes on with the old leases.
	killAndWait(t, st.PID)
	_, err = Up(t.Context(), l.cfg)
	must(t, err)
	after, err := l.Status(t.Context())
	must(t, err)
	if len(after.Leases) != 2 {
		t.Errorf("leases after a restart of the daemon: %+v, want two", after.Leases)
	}
}

func listenIn(t *testing.T, n *hostnet.Net, addr string) net.Listener {
	t.Helper()
	var ln net.Listener
	must(t, n.Do(func() (err error) {
		ln, err = net.Listen("tcp4", addr)
		return err
	}))
	return ln
}

func TestSwitchCarriesTaggedFrames(t *testing.T) {
	l := New(t, Config{Root: testRoot(t)})
	var taps []*os.File
	for _, where := range []string{"east-1", "east-2"} {
		host := hostBridge(t, l, where, "up1")
		must(t, host.EnsureTAP(nil, hostnet.TAP{Name: "tap0", Mark: guestMark}))
		must(t, host.Attach(nil, "br0", "tap0"))
		f, err := host.OpenTAP("tap0", false)
		must(t, err)
		defer f.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		must(t, host.WaitUp(ctx, "tap0", "up1"))
		taps = append(taps, f)
	}
	frame := append([]byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x81, 0, 0x0f, 0xa0, 0x88, 0xb5}, make([]byte, 1486)...)
	if _, err := taps[0].Write(frame); err != nil {
		t.Fatal(err)
	}
	must(t, taps[1].SetReadDeadline(time.Now().Add(5*time.Second)))
	for buf := make([]byte, 2000); ; {
		k, err := taps[1].Read(buf)
		if err != nil {
			t.Fatalf("a full frame of VLAN 4000 did not get from host to host: %v", err)
		}
		if slices.Equal(buf[:k], frame) {
			return
		}
	}
}

// A host that puts both uplinks on one bridge makes a loop, which is what the
// switch has its spanning tree for.
func TestSpanningTreeBreaksALoop(t *testing.T) {
	l := New(t, Config{Root: testRoot(t)})
	hostBridge(t, l, "west-1", "up0", "up1")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		out, err := l.Exec(ctx, "west-sw", "bridge", "-d", "link", "show")
		must(t, err)
		if n := strings.Count(string(out), "state blocking"); n == 1 {
			break
		}
		select {
		case <-ctx.Done():
			t.Fatalf("no port was blocked:\n%s", out)
		case <-tick.C:
		}
	}
}
