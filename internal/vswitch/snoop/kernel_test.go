package snoop

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"drover/internal/hostnet"

	"golang.org/x/sys/unix"
)

// A real guest's kernel answers our queries with reports that Parse reads.
func TestKernelAnswersQueries(t *testing.T) {
	mark := hostnet.Mark{Kind: "test", ID: "snoop"}
	var nets []*hostnet.Net
	for _, s := range []string{"sna", "snb"} {
		name := fmt.Sprintf("drovertest-%d-%s", os.Getpid(), s)
		t.Cleanup(func() { _ = hostnet.DeleteNamespace(name) })
		if err := hostnet.CreateNamespace(nil, name); err != nil {
			t.Fatal(err)
		}
		n, err := hostnet.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		nets = append(nets, n)
	}
	a, b := nets[0], nets[1]
	if err := a.EnsureVeth(nil, b, hostnet.Veth{A: "p", B: "guest", MarkA: mark, MarkB: mark}); err != nil {
		t.Fatal(err)
	}
	for n, name := range map[*hostnet.Net]string{a: "p", b: "guest"} {
		if err := n.SetUp(name, true); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.EnsureAddress(nil, "guest", netip.MustParsePrefix("10.3.0.1/24")); err != nil {
		t.Fatal(err)
	}
	err := b.Do(func() error { // a listener of each family
		ifi, err := net.InterfaceByName("guest")
		if err != nil {
			return err
		}
		for _, g := range []netip.Addr{group4, group6} {
			c, err := net.ListenMulticastUDP("udp", ifi, &net.UDPAddr{IP: g.AsSlice(), Port: 5000})
			if err != nil {
				return err
			}
			t.Cleanup(func() { c.Close() })
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var fd int
	err = a.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, int(binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000})
	snd, err := a.OpenSender(0)
	if err != nil {
		t.Fatal(err)
	}
	defer snd.Close()
	port, err := a.Link("p")
	if err != nil {
		t.Fatal(err)
	}
	heard := map[netip.Addr]bool{}
	buf := make([]byte, 2000)
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) && !(heard[group4] && heard[group6]) {
		// Reports that were sent unasked at the join are old news by the second round.
		for _, g := range []netip.Addr{group4, group6} {
			q := query4(mac, 0, g, 100*time.Millisecond)
			if g.Is6() {
				q = query6(mac, 0, g, 100*time.Millisecond)
			}
			if err := snd.Send(port.Index, q); err != nil {
				t.Fatal(err)
			}
		}
		for {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				break
			}
			if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
				continue
			}
			m, err := Parse(buf[:n])
			if err != nil || m.Query {
				continue
			}
			for _, r := range m.Records {
				// An answer to a group query is MODE_IS_EXCLUDE (2); a join is CHANGE_TO_EXCLUDE (4).
				at := 14 + 24 + 8
				if r.Group.Is6() {
					at = 14 + 48 + 8
				}
				if r.Join && slices.Contains([]netip.Addr{group4, group6}, r.Group) && buf[at] == 2 {
					heard[r.Group] = true
				}
			}
		}
	}
	if !heard[group4] || !heard[group6] {
		t.Errorf("the kernel answered for %v, want both groups", heard)
	}
}
