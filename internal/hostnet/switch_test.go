package hostnet

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"drover/internal/unwind"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

func output(t *testing.T, n *Net, args ...string) string {
	t.Helper()
	var out strings.Builder
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := n.Run(cmd); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out.String())
	}
	return out.String()
}

func TestVXLAN(t *testing.T) {
	n := testNet(t, "vx")
	v := VXLAN{Name: "dvx0", Mark: Mark{"switch", "t"}, MTU: 9000}
	var u unwind.Stack
	must(t, n.EnsureVXLAN(&u, v))
	s := output(t, n, "ip", "-d", "link", "show", "dvx0")
	for _, want := range []string{"external", "nolearning", "dstport 4789", "qdisc noqueue", "mtu 9000", "udp6zerocsumrx"} {
		if !strings.Contains(s, want) {
			t.Errorf("%q is missing in %s", want, s)
		}
	}
	first, err := n.Link("dvx0")
	must(t, err)
	if !first.Up || first.Kind != "vxlan" {
		t.Errorf("device is %+v, want it up", first)
	}
	var again unwind.Stack
	must(t, n.EnsureVXLAN(&again, v))
	if l, _ := n.Link("dvx0"); l.Index != first.Index || again.Len() != 0 {
		t.Error("an unchanged device was remade")
	}
	if addrs, _ := n.Addresses("dvx0"); len(addrs) != 0 {
		t.Errorf("the device has addresses %v", addrs)
	}
	v.Port = 4790
	must(t, n.EnsureVXLAN(&u, v))
	if s := output(t, n, "ip", "-d", "link", "show", "dvx0"); !strings.Contains(s, "dstport 4790") {
		t.Errorf("port did not change: %s", s)
	}
	output(t, n, "ip", "link", "add", "other", "type", "vxlan", "id", "7", "dstport", "5000")
	if err := n.EnsureVXLAN(nil, VXLAN{Name: "other", Mark: testMark}); !errors.Is(err, ErrForeign) {
		t.Errorf("a foreign VXLAN device: %v, want ErrForeign", err)
	}
	u.Undo(t.Context(), &err)
	must(t, err)
	if got := names(t, n); !slices.Equal(got, []string{"lo", "other"}) {
		t.Errorf("after undo: %v", got)
	}
}

func TestNoQueue(t *testing.T) {
	n := testNet(t, "nq")
	must(t, n.EnsureTAP(nil, TAP{Name: "t0", Mark: testMark}))
	for range 2 {
		must(t, n.SetNoQueue("t0"))
		if s := output(t, n, "tc", "qdisc", "show", "dev", "t0"); !strings.Contains(s, "noqueue") {
			t.Errorf("queue is %s", s)
		}
	}
}

// pair is a link from one namespace to another, up, with addresses 10.1.0.1 and 10.1.0.2.
func pair(t *testing.T) (a, b *Net) {
	t.Helper()
	a, b = testNet(t, "a"), testNet(t, "b")
	must(t, a.EnsureVeth(nil, b, Veth{A: "up0", B: "up0", MarkA: testMark, MarkB: testMark}))
	for i, n := range []*Net{a, b} {
		must(t, n.SetUp("up0", true))
		must(t, n.EnsureAddress(nil, "up0", netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(i + 1)}), 24)))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	must(t, a.WaitUp(ctx, "up0"))
	must(t, b.WaitUp(ctx, "up0"))
	return a, b
}

func TestHTB(t *testing.T) {
	a, _ := pair(t)
	h := HTB{RateBPS: 1e9, Classes: map[uint32]uint64{5: 100e6, 7: 200e6}}
	must(t, a.EnsureHTB("up0", h))
	must(t, a.EnsureHTB("up0", h))
	s := output(t, a, "tc", "class", "show", "dev", "up0")
	for _, want := range []string{"1:5 parent 1:ffff", "1:7 parent 1:ffff", "rate 100Mbit ceil 1Gbit", "rate 200Mbit ceil 1Gbit", "1:fffe parent 1:ffff", "rate 700Mbit ceil 1Gbit"} {
		if !strings.Contains(s, want) {
			t.Errorf("%q is missing in\n%s", want, s)
		}
	}
	// skb->priority selects the class, SO_PRIORITY sets it.
	sendPriority(t, a, HTBPriority(7))
	stats := output(t, a, "tc", "-s", "class", "show", "dev", "up0", "classid", "1:7")
	if !strings.Contains(stats, "Sent 1 ") && !strings.Contains(stats, " 1 pkt") {
		t.Errorf("a packet with the priority of slot 7 did not go through its class:\n%s", stats)
	}
	delete(h.Classes, 7)
	h.Classes[5] = 300e6
	must(t, a.EnsureHTB("up0", h))
	s = output(t, a, "tc", "class", "show", "dev", "up0")
	if strings.Contains(s, "1:7 ") || !strings.Contains(s, "rate 300Mbit") {
		t.Errorf("after the change:\n%s", s)
	}
	must(t, a.RemoveHTB("up0"))
	must(t, a.RemoveHTB("up0"))
	if s := output(t, a, "tc", "qdisc", "show", "dev", "up0"); strings.Contains(s, "htb") {
		t.Errorf("after removal: %s", s)
	}
	output(t, a, "tc", "qdisc", "add", "dev", "up0", "root", "handle", "9:", "tbf", "rate", "1mbit", "burst", "10k", "latency", "10ms")
	if err := a.EnsureHTB("up0", h); !errors.Is(err, ErrForeign) {
		t.Errorf("over somebody else's queue: %v, want ErrForeign", err)
	}
	must(t, a.RemoveHTB("up0"))
	if s := output(t, a, "tc", "qdisc", "show", "dev", "up0"); !strings.Contains(s, "tbf") {
		t.Errorf("somebody else's queue was removed: %s", s)
	}
	for _, bad := range []HTB{{RateBPS: 10, Classes: map[uint32]uint64{1: 10}}, {RateBPS: 10, Classes: map[uint32]uint64{0: 1}}, {RateBPS: 10, Classes: map[uint32]uint64{1: 0}}} {
		if bad.Validate() == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

func sendPriority(t *testing.T, n *Net, priority uint32) {
	t.Helper()
	must(t, n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, int(priority)); err != nil {
			return err
		}
		return unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{10, 1, 0, 2}})
	}))
	// The packet waits for ARP at most; an echo after it means that it has left.
	output(t, n, "ping", "-c1", "-w5", "10.1.0.2")
}

// On a full uplink a port with a guarantee gets it, and another without takes what is left.
func TestGuarantee(t *testing.T) {
	a, b := pair(t)
	must(t, a.EnsureHTB("up0", HTB{RateBPS: 40e6, Classes: map[uint32]uint64{5: 30e6}}))
	output(t, a, "ping", "-c1", "-w5", "10.1.0.2")
	must(t, b.Do(func() error { // somebody listens, so that nothing is refused
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			t.Cleanup(func() { unix.Close(fd) })
			err = unix.Bind(fd, &unix.SockaddrInet4{Port: 9})
		}
		return err
	}))
	end := time.Now().Add(2 * time.Second)
	var sent [2]int
	var flood sync.WaitGroup
	for i, priority := range []uint32{HTBPriority(5), HTBPriority(6)} { // 6 has no class
		flood.Go(func() {
			err := a.Do(func() error {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				// A short send buffer: the socket waits for its class, and what was sent has left.
				err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 20000), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, int(priority)))
				for err == nil && time.Now().Before(end) {
					if err = unix.Sendto(fd, make([]byte, 1400), 0, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{10, 1, 0, 2}}); err == nil {
						sent[i]++
					}
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	flood.Wait()
	t.Logf("with 30 of 40 Mbit/s guaranteed: %.1f and %.1f Mbit/s", float64(sent[0])*1400*8/2e6, float64(sent[1])*1400*8/2e6)
	if sent[0] < 2*sent[1] || sent[1] == 0 {
		t.Errorf("packets with a guarantee %d, without %d: want three times as many, and some", sent[0], sent[1])
	}
}

func TestFilters(t *testing.T) {
	a, _ := pair(t)
	if got, err := a.Filters("up0"); err != nil || len(got) != 0 {
		t.Fatalf("filters of a fresh link: %v, %v", got, err)
	}
	output(t, a, "tc", "qdisc", "add", "dev", "up0", "clsact")
	output(t, a, "tc", "filter", "add", "dev", "up0", "ingress", "u32", "match", "u32", "0", "0", "flowid", "1:1")
	got, err := a.Filters("up0")
	must(t, err)
	if !slices.Equal(got, []string{"ingress u32"}) {
		t.Errorf("filters are %v", got)
	}
}

func TestPromiscuous(t *testing.T) {
	a, _ := pair(t)
	is := func() bool { return strings.Contains(output(t, a, "ip", "-d", "link", "show", "up0"), "PROMISC") }
	var u, again unwind.Stack
	must(t, a.EnsurePromiscuous(&u, "up0"))
	must(t, a.EnsurePromiscuous(&again, "up0"))
	if !is() || again.Len() != 0 {
		t.Errorf("promiscuous %v, second time pushed %d", is(), again.Len())
	}
	var err error
	u.Undo(t.Context(), &err)
	must(t, err)
	if is() {
		t.Error("still promiscuous after undo")
	}
}

func TestWatchLinks(t *testing.T) {
	a, b := pair(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	changes := make(chan LinkChange, 100)
	done := make(chan error, 1)
	go func() { done <- a.WatchLinks(ctx, func(c LinkChange) { changes <- c }) }()
	wait := func(what string, ok func(LinkChange) bool) {
		t.Helper()
		for {
			select {
			case c := <-changes:
				if ok(c) {
					return
				}
			case <-ctx.Done():
				t.Fatalf("never heard that %s", what)
			}
		}
	}
	wait("up0 is there", func(c LinkChange) bool { return c.Name == "up0" && c.Carrier })
	must(t, b.SetUp("up0", false))
	wait("up0 lost its carrier", func(c LinkChange) bool { return c.Name == "up0" && !c.Carrier && c.Up })
	must(t, b.SetUp("up0", true))
	wait("up0 has its carrier again", func(c LinkChange) bool { return c.Name == "up0" && c.Carrier })
	must(t, a.Delete("up0", testMark))
	wait("up0 is gone", func(c LinkChange) bool { return c.Name == "up0" && c.Gone })
	cancel()
	must(t, <-done)
}

func TestSender(t *testing.T) {
	a, b := pair(t)
	const mark = 0x44524f56
	// On egress: frames with another mark are dropped, as the switch does.
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.LoadMem(asm.R1, asm.R1, 8, asm.Word), // __sk_buff.mark
		asm.Mov.Imm(asm.R0, 0),                   // TC_ACT_OK
		asm.LoadImm(asm.R2, mark, asm.DWord),
		asm.JEq.Reg(asm.R1, asm.R2, "out"),
		asm.Mov.Imm(asm.R0, 2), // TC_ACT_SHOT
		asm.Return().WithSymbol("out"),
	}})
	must(t, err)
	defer prog.Close()
	up, err := a.Link("up0")
	must(t, err)
	must(t, a.Do(func() error {
		l, err := link.AttachTCX(link.TCXOptions{Interface: up.Index, Program: prog, Attach: ebpf.AttachTCXEgress})
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	}))
	var fd int
	must(t, b.Do(func() (err error) {
		proto := binary.NativeEndian.Uint16([]byte{0x88, 0xb5})
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, int(proto))
		return err
	}))
	defer unix.Close(fd)
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}))
	frame := func(b byte) []byte {
		return append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5, b}, make([]byte, 46)...)
	}
	for _, s := range []struct {
		mark uint32
		b    byte
	}{{0, 1}, {mark, 2}} {
		snd, err := a.OpenSender(s.mark)
		must(t, err)
		if err := snd.Send(up.Index, frame(s.b)); err != nil && !(s.mark == 0 && errors.Is(err, unix.ENOBUFS)) {
			t.Fatal(err)
		}
		must(t, snd.Close())
	}
	buf := make([]byte, 100)
	k, _, err := unix.Recvfrom(fd, buf, 0)
	must(t, err)
	if k < 15 || buf[14] != 2 {
		t.Errorf("the frame that arrived is % x; want the marked one", buf[:k])
	}
	snd, err := a.OpenSender(mark)
	must(t, err)
	defer snd.Close()
	if err := snd.Send(9999, frame(0)); !errors.Is(err, unix.ENXIO) && !errors.Is(err, unix.ENODEV) {
		t.Errorf("to a link that is not there: %v", err)
	}
}
