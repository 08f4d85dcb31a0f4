package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"net"
	"syscall"
	"time"
)

// lease is what a DHCP server granted (RFC 2131, RFC 2132).
type lease struct {
	addr     net.IPNet
	router   net.IP
	server   net.IP
	hostname string
	length   time.Duration
}

const (
	dhcpDiscover = 1
	dhcpOffer    = 2
	dhcpRequest  = 3
	dhcpAck      = 5
	dhcpNak      = 6
)

// dhcp keeps a lease on a NIC until the context ends. It asks again after 0.25 s, then twice as long each time, up to 16 s.
func (m *machine) dhcp(ctx context.Context, n *netif) {
	wait := 250 * time.Millisecond
	for ctx.Err() == nil {
		l, err := acquire(ctx, n, wait)
		if err != nil {
			if wait < 16*time.Second {
				wait *= 2
			}
			if !errors.Is(err, errTimeout) {
				select {
				case <-ctx.Done():
				case <-time.After(wait):
				}
			}
			continue
		}
		if h := m.host(); l.hostname != "" && h == "drover-tiny" {
			m.setHostname(l.hostname)
		}
		m.give(n, &l.addr)
		if l.router != nil {
			addRoute(n.index, nil, l.router)
		}
		m.settle(n)
		wait = 250 * time.Millisecond
		select {
		case <-ctx.Done():
		case <-time.After(max(l.length/2, 10*time.Second)):
		}
	}
}

var errTimeout = errors.New("no answer")

// acquire makes one try at a lease: discover, offer, request, acknowledgement.
func acquire(ctx context.Context, n *netif, wait time.Duration) (*lease, error) {
	s, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(s)
	syscall.SetsockoptInt(s, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	syscall.SetsockoptInt(s, syscall.SOL_SOCKET, syscall.SO_BROADCAST, 1)
	if err := syscall.BindToDevice(s, n.name); err != nil {
		return nil, err
	}
	if err := syscall.Bind(s, &syscall.SockaddrInet4{Port: 68}); err != nil {
		return nil, err
	}
	var xid [4]byte
	rand.Read(xid[:])
	end := time.Now().Add(wait)
	if err := sendDHCP(s, n.mac, xid, dhcpDiscover, nil); err != nil {
		return nil, err
	}
	want := byte(dhcpOffer)
	buf := make([]byte, 2048)
	for ctx.Err() == nil {
		left := time.Until(end)
		if left <= 0 {
			return nil, errTimeout
		}
		tv := syscall.NsecToTimeval(int64(left) + 1000)
		syscall.SetsockoptTimeval(s, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &tv)
		c, _, err := syscall.Recvfrom(s, buf, 0)
		if err == syscall.EAGAIN || err == syscall.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		typ, l := parseDHCP(buf[:c], xid, n.mac)
		switch {
		case l == nil:
		case typ == dhcpNak:
			return nil, errTimeout
		case typ == dhcpOffer && want == dhcpOffer:
			want = dhcpAck
			if err := sendDHCP(s, n.mac, xid, dhcpRequest, l); err != nil {
				return nil, err
			}
			end = time.Now().Add(max(wait, time.Second))
		case typ == dhcpAck && want == dhcpAck:
			return l, nil
		}
	}
	return nil, ctx.Err()
}

func sendDHCP(s int, mac net.HardwareAddr, xid [4]byte, typ byte, offer *lease) error {
	b := make([]byte, 240, 320)
	b[0], b[1], b[2] = 1, 1, 6
	copy(b[4:], xid[:])
	b[10] = 0x80 // answers by broadcast: there is no address to send them to yet
	copy(b[28:], mac)
	copy(b[236:], []byte{99, 130, 83, 99})
	b = append(b, 53, 1, typ, 61, 7, 1)
	b = append(b, mac[:6]...)
	if offer != nil {
		b = append(append(b, 50, 4), offer.addr.IP.To4()...)
		if offer.server != nil {
			b = append(append(b, 54, 4), offer.server.To4()...)
		}
	}
	b = append(b, 55, 4, 1, 3, 12, 51, 255)
	for len(b) < 300 {
		b = append(b, 0)
	}
	return syscall.Sendto(s, b, 0, &syscall.SockaddrInet4{Port: 67, Addr: [4]byte{255, 255, 255, 255}})
}

// parseDHCP reads a server's message; nil if it is malformed or not for us.
func parseDHCP(b []byte, xid [4]byte, mac net.HardwareAddr) (byte, *lease) {
	if len(b) < 240 || b[0] != 2 || [4]byte(b[4:8]) != xid || len(mac) != 6 || string(b[28:34]) != string(mac) ||
		string(b[236:240]) != "\x63\x82\x53\x63" {
		return 0, nil
	}
	l := &lease{length: time.Hour, addr: net.IPNet{IP: append(net.IP(nil), b[16:20]...), Mask: net.CIDRMask(24, 32)}}
	var typ byte
	for o := b[240:]; len(o) > 0 && o[0] != 255; {
		if o[0] == 0 {
			o = o[1:]
			continue
		}
		if len(o) < 2 || len(o) < 2+int(o[1]) {
			return 0, nil
		}
		v := append([]byte(nil), o[2:2+int(o[1])]...)
		switch {
		case o[0] == 53 && len(v) == 1:
			typ = v[0]
		case o[0] == 1 && len(v) == 4:
			if _, bits := net.IPMask(v).Size(); bits == 32 {
				l.addr.Mask = v
			}
		case o[0] == 3 && len(v) >= 4:
			l.router = v[:4]
		case o[0] == 54 && len(v) == 4:
			l.server = v
		case o[0] == 12:
			l.hostname = string(v)
		case o[0] == 51 && len(v) == 4:
			l.length = time.Duration(binary.BigEndian.Uint32(v)) * time.Second
		}
		o = o[2+int(o[1]):]
	}
	return typ, l
}
