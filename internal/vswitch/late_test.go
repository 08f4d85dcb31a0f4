package vswitch

import (
	"bytes"
	"encoding/binary"
	"net"
	"testing"
	"time"

	"drover/internal/hostnet"
	"drover/internal/vswitch/table"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// lateHeader is a virtio header that leaves a checksum to others: of the frame from start, to be written offset bytes behind it.
func lateHeader(start, offset int) []byte {
	h := make([]byte, vnetHeader)
	h[0] = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
	binary.LittleEndian.PutUint16(h[6:], uint16(start))
	binary.LittleEndian.PutUint16(h[8:], uint16(offset))
	return h
}

// lateBed has a guarded port a, and c whose guest takes no frames without checksums: the kernel writes them on the way.
func lateBed(t *testing.T, suffix string, flags table.PortFlag) (b *bed, a, c *plug) {
	b = testBed(t, suffix)
	a = b.port("a", 1, func(p *table.Port) {
		p.Flags = flags
		p.IP4Count, p.IP4 = 1, [table.InlineIPs][4]byte{{10, 0, 0, 5}}
		p.IP6Count, p.IP6 = 1, [table.InlineIPs]table.IP{addr("2001:db8::5")}
	})
	c = b.port("c", 2, nil)
	must(t, hostnet.SetOffload(c.file, false))
	b.apply()
	return b, a, c
}

// TestLateChecksum has a guest name every place of honest frames as a checksum's: what guards have read must arrive as it was.
func TestLateChecksum(t *testing.T) {
	b, a, c := lateBed(t, "late", secureFlags)
	src, dst := net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
	from, to := net.IP{10, 0, 0, 5}, net.IP{10, 0, 0, 1}
	six := func(next layers.IPProtocol, l ...gopacket.SerializableLayer) []byte {
		ip := &layers.IPv6{Version: 6, HopLimit: 255, NextHeader: next, SrcIP: net.ParseIP("2001:db8::5"), DstIP: net.ParseIP("2001:db8::1")}
		return guardFrame(append([]gopacket.SerializableLayer{etherLayer(src, dst, layers.EthernetTypeIPv6), ip}, l...)...)
	}
	na := gopacket.Payload(ndBytes(136, "2001:db8::5", linkLayer(2, src)...))
	request := patched(patched(patched(make([]byte, 240), 0, 1, 1, 6), 28, src...), 236, 99, 130, 83, 99)
	for _, tt := range []struct {
		name  string
		frame []byte
		free  func(at int) bool // places that may change
		own   int               // where the checksum really is; 0: nowhere
	}{
		{"arp", rawFrame(src, dst, 0x806, guardARP(src, 2, src, "10.0.0.5")[14:]...), func(int) bool { return false }, 0},
		{"snap", append(rawFrame(src, dst, 100, 0xaa, 0xaa, 3, 0, 0, 0, 8, 1), make([]byte, 92)...), func(at int) bool { return at >= 22 }, 0},
		{"udp", udp4(t, mac(2), mac(1), to, from, 5, 6, make([]byte, 40)), func(at int) bool { return at == 40 || at >= 42 }, 40},
		{"dhcp", udp4(t, mac(2), mac(1), to, from, 67, 68, request), func(at int) bool { return at == 40 }, 40},
		{"tcp", patched(tcp4(t, mac(2), mac(1), make([]byte, 40)), 26, from...), func(at int) bool { return at == 50 }, 50},
		{"na", six(58, na), func(at int) bool { return at == 56 }, 56},
		{"esp", six(50, gopacket.Payload(make([]byte, 40))), func(at int) bool { return at >= 54 }, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			passed := map[int]bool{}
			for at := 0; at+2 <= len(tt.frame); at++ {
				for _, start := range []int{14, 20, 34, 54, at - 2, at} {
					if start < 0 || start > at || at-start > 0xffff {
						continue
					}
					frame := bytes.Clone(tt.frame)
					if _, err := a.file.Write(append(lateHeader(start, at-start), frame...)); err != nil {
						continue // the kernel has rules of its own
					}
					_, got := c.poll(300 * time.Microsecond)
					if got == nil {
						continue
					}
					passed[at] = true
					for i := range frame {
						if got[i] != frame[i] && !tt.free(i) && !(i > 0 && tt.free(i-1)) {
							t.Fatalf("a checksum from %d at %d changed byte %d behind the guards:\n%x\n%x", start, at, i, frame[:min(len(frame), 60)], got[:min(len(got), 60)])
						}
					}
					if !tt.free(at) {
						t.Fatalf("a checksum at %d passed", at)
					}
				}
			}
			if tt.own != 0 && !passed[tt.own] {
				t.Errorf("a checksum in its own place, %d, did not pass", tt.own)
			}
			if b.dropped(1, table.DropMalformed) == 0 {
				t.Error("nothing was dropped as malformed")
			}
		})
	}
}
