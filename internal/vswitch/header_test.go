package vswitch

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"drover/internal/hostnet"
	"drover/internal/vswitch/table"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// TestHeaderLies has a guarded guest put anything into the header that comes before its frames: kinds of segments that the frame has not, sizes of none,
// lengths beyond it, and checksums anywhere. Whatever the kernel makes of it, others get only frames from the guest's own MAC and addresses, for those whom
// they are for.
func TestHeaderLies(t *testing.T) {
	b, a, c := lateBed(t, "lies", secureFlags|table.PortMark)
	row := b.want.Ports[a.ifindex]
	row.DSCP = 10
	b.want.Ports[a.ifindex] = row
	d := b.port("d", 3, func(p *table.Port) { p.Net = 7 })
	must(t, hostnet.SetOffload(d.file, true))
	third := b.port("e", 4, nil)
	b.apply()
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 1))
	src := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	from, own6 := net.IP{10, 0, 0, 5}, net.ParseIP("2001:db8::5")
	base := func(to table.MAC) [][]byte {
		dst := net.HardwareAddr(to[:])
		n := 1 + r.IntN(4000)
		if r.IntN(3) == 0 {
			n = r.IntN(60)
		}
		payload := gopacket.Payload(make([]byte, n))
		four := func(p layers.IPProtocol, l ...gopacket.SerializableLayer) []byte {
			ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: p, SrcIP: from, DstIP: net.IP{10, 0, 0, 1}}
			return guardFrame(append([]gopacket.SerializableLayer{etherLayer(src, dst, layers.EthernetTypeIPv4), ip}, l...)...)
		}
		six := func(p layers.IPProtocol, l ...gopacket.SerializableLayer) []byte {
			ip := &layers.IPv6{Version: 6, HopLimit: 255, NextHeader: p, SrcIP: own6, DstIP: net.ParseIP("2001:db8::1")}
			return guardFrame(append([]gopacket.SerializableLayer{etherLayer(src, dst, layers.EthernetTypeIPv6), ip}, l...)...)
		}
		tcp := gopacket.Payload(append(make([]byte, 12), 5<<4, 16, 0, 0, 0, 0, 0, 0))
		udp := gopacket.Payload(udpBytes(5, 6, n)[:8])
		return [][]byte{
			four(6, tcp, payload), four(17, udp, payload), six(6, tcp, payload), six(17, udp, payload),
			six(60, gopacket.Payload(append([]byte{6}, make([]byte, 7)...)), tcp, payload),
			six(44, gopacket.Payload{17, 0, 0, 1, 0, 0, 0, 9}, udp, payload),
			rawFrame(src, dst, 0x806, guardARP(src, 2, src, "10.0.0.5")[14:]...),
			six(58, gopacket.Payload(ndBytes(136, "2001:db8::5", linkLayer(2, src)...))),
			rawFrame(src, dst, 0x88b6, payload...), four(50, payload), four(4, gopacket.Payload(four(6, tcp, payload)[14:])),
		}
	}
	kinds := []byte{0, 0, 1, 4, 4, 4, 3, 4, 5, 0x81, 0x84, 0x85, 2, 6, 0xff}
	sizes := []uint16{0, 1, 2, 8, 100, 536, 1400, 1420, 1430, 1440, 1446, 1460, 1500, 9000, 65535, 54, 34}
	pick := func(of []uint16) uint16 {
		if r.IntN(4) == 0 {
			return uint16(r.Uint32())
		}
		return of[r.IntN(len(of))]
	}
	passed, segmented := 0, 0
	check := func(to *plug, own table.MAC) {
		for {
			h, got := to.poll(time.Microsecond)
			if got == nil {
				return
			}
			passed++
			if h[1] != 0 {
				segmented++
			}
			fine := (h[1] != 0 || len(got) <= 1514) && bytes.Equal(got[:6], own[:]) && bytes.Equal(got[6:12], src)
			switch proto := binary.BigEndian.Uint16(got[12:]); {
			case !fine:
			case proto == 0x800:
				fine = got[14] == 0x45 && bytes.Equal(got[26:30], from)
			case proto == 0x86dd:
				fine = got[14]>>4 == 6 && bytes.Equal(got[22:38], own6)
				if fine && got[20] == 58 {
					fine = bytes.Equal(got[62:78], own6) && bytes.Equal(got[80:86], src)
				}
			case proto == 0x806:
				fine = bytes.Equal(got[14:32], guardARP(src, 2, src, "10.0.0.5")[14:32])
			default:
				fine = proto == 0x88b6
			}
			if !fine {
				t.Fatalf("seed %d: %s got %x with header %x", seed, to.name, got[:min(len(got), 90)], h)
			}
		}
	}
	deadline := time.Now().Add(2 * time.Second)
	for time.Now().Before(deadline) {
		to, who := c, mac(2)
		if r.IntN(2) == 0 {
			to, who = d, mac(3)
		}
		frames := base(who)
		frame := frames[r.IntN(len(frames))]
		h := make([]byte, vnetHeader)
		h[0], h[1] = byte(r.IntN(4)), kinds[r.IntN(len(kinds))]
		binary.LittleEndian.PutUint16(h[2:], pick(sizes))
		binary.LittleEndian.PutUint16(h[4:], pick(sizes))
		binary.LittleEndian.PutUint16(h[6:], pick([]uint16{0, 14, 20, 22, 26, 28, 34, 38, 54, 62}))
		binary.LittleEndian.PutUint16(h[8:], pick([]uint16{0, 2, 6, 8, 10, 16}))
		_, _ = a.file.Write(append(h, frame...)) // the kernel refuses many
		check(to, who)
	}
	third.getsNothing()
	t.Logf("%d frames arrived, %d of them in segments yet", passed, segmented)
	if passed < 100 {
		t.Errorf("only %d frames arrived: nothing was tried", passed)
	}
}

// TestSegmentsFit wants segments with all of their headers to fit the network, and to be counted so by rates; and no frame to be cut into thousands.
func TestSegmentsFit(t *testing.T) {
	b, a, c := lateBed(t, "fit", table.PortMeterIn)
	src, dst := net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
	const data = 5000
	send := func(size uint16, data int, headers ...[]byte) (n int, bytes int) {
		t.Helper()
		next, chain := layers.IPProtocol(6), []byte(nil)
		for i, x := range headers {
			x[0] = 60
			if i == len(headers)-1 {
				x[0] = 6
			}
			next, chain = 60, append(chain, x...)
		}
		ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: next, SrcIP: net.ParseIP("2001:db8::5"), DstIP: net.ParseIP("2001:db8::1")}
		tcp := append(make([]byte, 12), 5<<4, 16, 0, 0, 0, 0, 0, 0)
		frame := guardFrame(etherLayer(src, dst, layers.EthernetTypeIPv6), ip, gopacket.Payload(chain), gopacket.Payload(tcp), gopacket.Payload(make([]byte, data)))
		start := 54 + len(chain)
		h := lateHeader(start, 16)
		h[1] = 4 // VIRTIO_NET_HDR_GSO_TCPV6
		binary.LittleEndian.PutUint16(h[2:], uint16(start+20))
		binary.LittleEndian.PutUint16(h[4:], size)
		a.sendAs(h, frame)
		for {
			_, got := c.poll(time.Millisecond)
			if got == nil {
				return n, bytes
			}
			if len(got) > 1514 {
				t.Errorf("a segment of %d bytes behind the Ethernet header, in a network with an MTU of 1500", len(got)-14)
			}
			n, bytes = n+1, bytes+len(got)
		}
	}
	options := func(n int) []byte {
		x := make([]byte, n)
		x[1] = byte(n/8 - 1)
		return x
	}
	for _, tt := range []struct {
		size    uint16
		headers [][]byte
		passes  bool
	}{
		{1440, nil, true}, {1441, nil, false},
		{1432, [][]byte{options(8)}, true}, {1433, [][]byte{options(8)}, false}, {1440, [][]byte{options(800)}, false},
		{1200, [][]byte{options(80), options(80), options(80)}, true}, {1201, [][]byte{options(80), options(80), options(80)}, false},
	} {
		if n, _ := send(tt.size, data, tt.headers...); (n > 0) != tt.passes {
			t.Errorf("%d segments of %d bytes behind %d extension headers; want some: %v", n, tt.size, len(tt.headers), tt.passes)
		}
	}
	before := b.dropped(1, table.DropMalformed)
	if n, _ := send(1, data); n != 0 || b.dropped(1, table.DropMalformed) != before+1 {
		t.Errorf("a frame was cut into %d segments", n)
	}
	b.want.Meters[1] = table.Meter{In: table.Bucket{Rate: 1, Burst: 40000}}
	b.apply()
	sum := 0
	for range 20 {
		_, bytes := send(100, 1000, options(800))
		sum += bytes
	}
	if sum == 0 || sum > 40000 {
		t.Errorf("%d bytes passed a bucket of 40000", sum)
	}
}
