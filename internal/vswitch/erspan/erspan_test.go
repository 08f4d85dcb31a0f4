package erspan

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"testing"
	"time"

	"drover/internal/hostnet"
	"drover/internal/vswitch/shark"
	"drover/internal/vswitch/table"

	"golang.org/x/sys/unix"
)

func capture(frame []byte, length int, point table.CapturePoint, vid uint16) *table.Capture {
	c := &table.Capture{Slot: 21, Point: point, Length: uint32(length), Captured: uint16(len(frame)), VID: vid}
	copy(c.Data[:], frame)
	return c
}

// arp is a request for 10.0.0.1 by 02:00:00:00:00:09.
var arp = []byte("\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x09\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01\x02\x00\x00\x00\x00\x09\x0a\x00\x00\x09\x00\x00\x00\x00\x00\x00\x0a\x00\x00\x01")

func TestMirror(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	mark := hostnet.Mark{Kind: "test", ID: "erspan"}
	var nets []*hostnet.Net
	for i := range 2 {
		name := fmt.Sprintf("drovertest-%d-er%d", os.Getpid(), i)
		t.Cleanup(func() { must(hostnet.DeleteNamespace(name)) })
		must(hostnet.CreateNamespace(nil, name))
		n, err := hostnet.Open(name)
		must(err)
		t.Cleanup(func() { n.Close() })
		nets = append(nets, n)
	}
	must(nets[0].EnsureVeth(nil, nets[1], hostnet.Veth{A: "up0", B: "up0", MarkA: mark, MarkB: mark}))
	for i, n := range nets {
		must(n.SetUp("up0", true))
		must(n.EnsureAddress(nil, "up0", netip.MustParsePrefix(fmt.Sprintf("10.4.0.%d/24", i+1))))
	}
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	must(nets[0].WaitUp(ctx, "up0"))
	must(nets[1].WaitUp(ctx, "up0"))
	var fd int
	must(nets[1].Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, int(binary.NativeEndian.Uint16([]byte{0x08, 0})))
		return err
	}))
	defer unix.Close(fd)
	must(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}))
	s, err := Open(nets[0], netip.MustParseAddr("10.4.0.2"), 77)
	must(err)
	defer s.Close()
	big := append(append([]byte(nil), arp...), make([]byte, 2000-len(arp))...)
	for _, c := range []*table.Capture{capture(arp, len(arp), table.CaptureFromGuest, 0), capture(arp, 9000, table.CaptureToGuest, 0x1000|42), capture(big, 2000, table.CaptureFromGuest, 0)} {
		must(s.Send(c))
	}
	var frames [][]byte
	for len(frames) < 4 {
		buf := make([]byte, 3000)
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			t.Fatalf("after %d frames: %v", len(frames), err)
		}
		if n > 34 && (buf[23] == unix.IPPROTO_GRE) {
			frames = append(frames, buf[:n])
		}
	}
	got := shark.Fields(t, frames, "ip.dst", "gre.proto", "gre.sequence_number", "erspan.version", "erspan.spanid", "erspan.vlan", "erspan.truncated", "arp.src.hw_mac", "arp.dst.proto_ipv4")
	want := [][]string{
		{"10.4.0.2", "0x88be", "0", "1", "77", "0", "0", "02:00:00:00:00:09", "10.0.0.1"},
		{"10.4.0.2", "0x88be", "1", "1", "77", "42", "1", "02:00:00:00:00:09", "10.0.0.1"},
		{"10.4.0.2", "", "", "", "", "", "", "", ""}, // of two fragments, read with the second
		{"10.4.0.2", "0x88be", "2", "1", "77", "0", "0", "02:00:00:00:00:09", "10.0.0.1"},
	}
	for i := range want {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("packet %d: %q\nwant %q", i, got[i], want[i])
		}
	}
}

func TestEncodeHeader(t *testing.T) {
	b := Encode(0x01020304, 1023, capture(arp, len(arp), table.CaptureToGuest, 0x1000|4095))
	want := []byte{0x10, 0, 0x88, 0xbe, 1, 2, 3, 4, 0x1f, 0xff, 0x13, 0xff, 0, 0, 0, 43}
	if !reflect.DeepEqual(b[:Header], want) {
		t.Errorf("header % x, want % x", b[:Header], want)
	}
	broken := capture(arp, 60, table.CaptureFromGuest, 0)
	broken.Captured = 65535
	if got := len(Encode(0, 1, broken)); got != Header+table.CaptureBytes {
		t.Errorf("%d bytes of a capture that says too much", got)
	}
}

func TestOpenRefuses(t *testing.T) {
	n, err := hostnet.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	for _, tt := range []struct {
		to      netip.Addr
		session uint16
	}{{netip.MustParseAddr("10.0.0.1"), 0}, {netip.MustParseAddr("10.0.0.1"), 1024}, {netip.Addr{}, 1}, {netip.MustParseAddr("239.0.0.1"), 1}} {
		if s, err := Open(n, tt.to, tt.session); err == nil {
			s.Close()
			t.Errorf("%v, %d: taken", tt.to, tt.session)
		}
	}
}
