package vswitch

import (
	"bytes"
	"testing"
	"time"

	"drover/internal/hostnet"
	"drover/internal/vswitch/table"

	"golang.org/x/sys/unix"
)

// TestPeer wants a frame to arrive in the namespace behind a veth as if it had come by a wire: for its host, and without our mark; a group's copy too.
func TestPeer(t *testing.T) {
	b := testBed(t, "peer")
	inside := testNet(t, "peer-in")
	a := b.port("a", 1, nil)
	mark := hostnet.Mark{Kind: "test", ID: "peer"}
	second := mac(2)
	must(t, b.net.EnsureVeth(nil, inside, hostnet.Veth{A: "peer0", B: "peer0", MarkA: mark, MarkB: mark, MACB: second[:]}))
	must(t, b.net.SetUp("peer0", true))
	must(t, inside.SetSysctl("ipv6.conf.peer0.disable_ipv6", "1"))
	must(t, inside.SetUp("peer0", true))
	must(t, b.net.WaitUp(t.Context(), "peer0"))
	l, err := b.net.Link("peer0")
	must(t, err)
	must(t, b.d.Attach(t.Context(), Device{Ifindex: l.Index, Name: "peer0", Kind: KindPort}))
	p := &plug{ifindex: uint32(l.Index)}
	b.want.Ports[p.ifindex] = table.Port{Slot: 2, Net: 7, MAC: second, MTU: 1500, Flags: table.PortPeer, DSCP: table.Leave, CoS: table.Leave}
	b.join(p, 7, second, 0)
	b.apply()

	in, err := inside.Link("peer0")
	must(t, err)
	fd := -1
	must(t, inside.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0xb688) // 0x88b6 in network order
		if err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: in.Index, Protocol: 0xb688})
	}))
	t.Cleanup(func() { unix.Close(fd) })
	limit := unix.NsecToTimeval(time.Second.Nanoseconds())
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit))
	must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVMARK, 1))

	for name, x := range map[string]struct {
		dst  table.MAC
		kind uint8
	}{"unicast": {second, unix.PACKET_HOST}, "broadcast": {everybody, unix.PACKET_BROADCAST}} {
		frame := raw(x.dst, mac(1), 60)
		a.send(frame)
		buf, control := make([]byte, 200), make([]byte, 200)
		n, c, _, from, err := unix.Recvmsg(fd, buf, control, 0)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !bytes.Equal(buf[:n], frame) {
			t.Errorf("%s: got %x, want %x", name, buf[:n], frame)
		}
		if sll := from.(*unix.SockaddrLinklayer); sll.Pkttype != x.kind {
			t.Errorf("%s: packet type %d, want %d", name, sll.Pkttype, x.kind)
		}
		messages, err := unix.ParseSocketControlMessage(control[:c])
		must(t, err)
		for _, m := range messages {
			if m.Header.Type == unix.SO_MARK && !bytes.Equal(m.Data, make([]byte, 4)) {
				t.Errorf("%s: the mark %x is still on it", name, m.Data)
			}
		}
	}
	must(t, inside.Do(func() error {
		s, err := packetSocket(in.Index)
		if err != nil {
			return err
		}
		defer s.Close()
		_, err = s.Write(raw(mac(1), second, 60))
		return err
	}))
	a.gets(raw(mac(1), second, 60))
}
