package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// vnetHeader is struct virtio_net_hdr_mrg_rxbuf, which is what QEMU uses.
const vnetHeader = 12

// look is how long a reading guest looks for the next frame before it sleeps.
const look = 20 * time.Microsecond

// udpFrame is a frame of size bytes with the virtio header before it. Checksums of UDP over IPv4 may be 0: none.
func udpFrame(from, to end, size int) []byte {
	b := make([]byte, vnetHeader+size)
	f := b[vnetHeader:]
	ethernet(f, from.mac, to.mac)
	ipv4(f[14:], unix.IPPROTO_UDP, from.addr, to.addr)
	binary.BigEndian.PutUint16(f[34:], 5001)
	binary.BigEndian.PutUint16(f[36:], 5001)
	binary.BigEndian.PutUint16(f[38:], uint16(size-34))
	return b
}

// gsoFrame is a TCP frame of nearly 64 KB that is yet to be cut and checksummed, as guests send them.
func gsoFrame(from, to end, mss int) []byte {
	const header = 14 + 20 + 20
	payload := (65535 - header) / mss * mss
	b := make([]byte, vnetHeader+header+payload)
	b[0], b[1] = 1, 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4
	binary.LittleEndian.PutUint16(b[2:], header)
	binary.LittleEndian.PutUint16(b[4:], uint16(mss))
	binary.LittleEndian.PutUint16(b[6:], 34) // checksum from the TCP header on, into its field
	binary.LittleEndian.PutUint16(b[8:], 16)
	f := b[vnetHeader:]
	ethernet(f, from.mac, to.mac)
	ipv4(f[14:], unix.IPPROTO_TCP, from.addr, to.addr)
	t := f[34:]
	binary.BigEndian.PutUint16(t, 5001)
	binary.BigEndian.PutUint16(t[2:], 5001)
	t[12], t[13] = 5<<4, 0x10 // ACK
	binary.BigEndian.PutUint16(t[14:], 0xffff)
	pseudo := make([]byte, 12)
	copy(pseudo, f[26:34])
	pseudo[9] = unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(pseudo[10:], uint16(len(t)))
	binary.BigEndian.PutUint16(t[16:], ^checksum(pseudo)) // not inverted: the rest is to come
	return b
}

// hello is a gratuitous ARP request: who sees it knows where the guest is.
func hello(e end) []byte {
	b := make([]byte, vnetHeader+60)
	f := b[vnetHeader:]
	ethernet(f, e.mac, net.HardwareAddr{255, 255, 255, 255, 255, 255})
	copy(f[12:], []byte{0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1})
	ip := e.addr.As4()
	copy(f[22:], e.mac)
	copy(f[28:], ip[:])
	copy(f[38:], ip[:])
	return b
}

func ethernet(f []byte, from, to net.HardwareAddr) {
	copy(f, to)
	copy(f[6:], from)
	binary.BigEndian.PutUint16(f[12:], 0x0800)
}

// ipv4 fills in a header for all of p.
func ipv4(p []byte, proto byte, from, to netip.Addr) {
	p[0], p[8], p[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	s, d := from.As4(), to.As4()
	copy(p[12:], s[:])
	copy(p[16:], d[:])
	binary.BigEndian.PutUint16(p[10:], checksum(p[:20]))
}

// checksum is RFC 1071's.
func checksum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// meet has both guests send a frame, so that switches which learn have learned, and waits until a frame of A is at B.
func (p *pair) meet() error {
	deadline := time.Now().Add(5 * time.Second)
	probe := udpFrame(p.a, p.b, 60)
	buf := make([]byte, 1<<17)
	for time.Now().Before(deadline) {
		for _, x := range []struct {
			fd    int
			frame []byte
		}{{p.b.tap, hello(p.b)}, {p.a.tap, hello(p.a)}, {p.a.tap, probe}} {
			if _, err := unix.Write(x.fd, x.frame); err != nil {
				return fmt.Errorf("write to the TAP of %s: %w", p.kind, err)
			}
		}
		poll := []unix.PollFd{{Fd: int32(p.b.tap), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, 100); err != nil && err != unix.EINTR {
			return err
		}
		for {
			n, err := unix.Read(p.b.tap, buf)
			if err != nil {
				break
			}
			if n == len(probe) && buf[vnetHeader+12] == 8 && buf[vnetHeader+13] == 0 {
				return nil
			}
		}
	}
	return fmt.Errorf("%s passes nothing from TAP to TAP", p.kind)
}

// drain throws away what B has not read yet.
func (p *pair) drain() {
	buf := make([]byte, 1<<17)
	for {
		if _, err := unix.Read(p.b.tap, buf); err != nil {
			return
		}
	}
}

// frames measures frames from guest to guest: thousands that arrive a second, Gbit/s of them, and processor time of the sender for each in ns. All that
// a switch in the kernel does to a frame is in that time, and nothing that others do on the machine; a switch elsewhere has no such number.
// Frames of the list are sent in turn.
func (p *pair) frames(list [][]byte, d time.Duration) ([]float64, error) {
	var c crew
	var received, bytes, sent int
	var spent time.Duration
	var stop atomic.Bool
	p.drain()
	began := time.Now()
	c.start(p.sw, cpuSend, func() error {
		defer stop.Store(true)
		before, err := threadTime()
		if err != nil {
			return err
		}
		for ; sent&63 != 0 || time.Since(began) < d; sent++ {
			if _, e := rawWrite(p.a.tap, list[sent%len(list)]); e != 0 && !again(e) {
				return fmt.Errorf("write to the TAP of %s: %w", p.kind, e)
			}
		}
		after, err := threadTime()
		spent = after - before
		return err
	})
	c.start(p.sw, cpuReceive, func() error {
		buf := make([]byte, 1<<17)
		poll := []unix.PollFd{{Fd: int32(p.b.tap), Events: unix.POLLIN}}
		last := began
		for !stop.Load() {
			n, e := rawRead(p.b.tap, buf)
			switch {
			case e == 0:
				if received++; received&63 == 0 {
					last = time.Now()
				}
				bytes += n - vnetHeader
			case !again(e):
				return fmt.Errorf("read from the TAP of %s: %w", p.kind, e)
			case time.Since(last) > look:
				if _, err := unix.Poll(poll, 20); err != nil && err != unix.EINTR {
					return err
				}
				last = time.Now()
			}
		}
		return nil
	})
	if err := c.wait(); err != nil {
		return nil, err
	}
	v := []float64{float64(received) / d.Seconds() / 1000, float64(bytes) * 8 / 1e9 / d.Seconds()}
	if p.kind != ovs {
		v = append(v, float64(spent)/float64(sent))
	}
	return v, nil
}
