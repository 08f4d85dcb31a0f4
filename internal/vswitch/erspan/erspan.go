package erspan

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"drover/internal/hostnet"
	"drover/internal/vswitch/table"

	"golang.org/x/sys/unix"
)

// MaxSession is the largest number of a session.
const MaxSession = 1023

// Header is how many bytes come before the frame: GRE with a number, and ERSPAN's own.
const Header = 8 + 8

// Encode makes GRE of a captured frame, with the number seq. The index says slot and direction: slot × 2, + 1 if it went to the guest.
func Encode(seq uint32, session uint16, c *table.Capture) []byte {
	const version, tagged, cut = 1, 2, 1 // type II; the tag came off and is in this header; T
	data := c.Data[:min(int(c.Captured), len(c.Data))]
	b := make([]byte, 0, Header+len(data))
	b = append(b, 0x10, 0, 0x88, 0xbe) // S: with a number; ERSPAN type II
	b = binary.BigEndian.AppendUint32(b, seq)
	b = binary.BigEndian.AppendUint16(b, version<<12|c.VID&0xfff)
	second := session & MaxSession
	if c.VID&0x1000 != 0 {
		second |= tagged << 11
	}
	if int(c.Length) > len(data) {
		second |= cut << 10
	}
	b = binary.BigEndian.AppendUint16(b, second)
	index := c.Slot << 1
	if c.Point == table.CaptureToGuest {
		index |= 1
	}
	b = binary.BigEndian.AppendUint32(b, index&0xfffff)
	return append(b, data...)
}

// Sender sends to one address in one session. Close it.
type Sender struct {
	f       *os.File
	to      unix.Sockaddr
	addr    netip.Addr
	session uint16
	seq     uint32
}

// Open makes a sender whose packets take the namespace's routes. What is too large for the way is fragmented.
func Open(n *hostnet.Net, to netip.Addr, session uint16) (*Sender, error) {
	if session < 1 || session > MaxSession || !to.IsValid() || to.IsUnspecified() || to.IsMulticast() {
		return nil, fmt.Errorf("mirror to %v, session %d: want an address, and a session of 1 to %d", to, session, MaxSession)
	}
	to = to.Unmap()
	s := &Sender{addr: to, session: session}
	family, level, opt := unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
	if to.Is4() {
		family, level, opt = unix.AF_INET, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
		s.to = &unix.SockaddrInet4{Addr: to.As4()}
	} else {
		s.to = &unix.SockaddrInet6{Addr: to.As16()}
	}
	var fd int
	err := n.Do(func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_GRE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("socket for mirror to %v: %w", to, err)
	}
	s.f = os.NewFile(uintptr(fd), "erspan")
	// It would receive all GRE that comes in: a filter that takes nothing.
	none := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
	err = errors.Join(
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &none[0]}),
		unix.SetsockoptInt(fd, level, opt, unix.IP_PMTUDISC_DONT))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("socket for mirror to %v: %w", to, err), s.f.Close())
	}
	return s, nil
}

// Send sends a copy. ENOBUFS and EAGAIN say that there was no room for it; its number is used up.
func (s *Sender) Send(c *table.Capture) error {
	packet := Encode(s.seq, s.session, c)
	s.seq++
	rc, err := s.f.SyscallConn()
	if err != nil {
		return fmt.Errorf("mirror to %v: %w", s.addr, err)
	}
	var sendErr error
	err = rc.Write(func(fd uintptr) bool {
		sendErr = unix.Sendto(int(fd), packet, 0, s.to)
		return true
	})
	if err = errors.Join(err, sendErr); err != nil {
		return fmt.Errorf("mirror to %v: %w", s.addr, err)
	}
	return nil
}

// Close ends the sender.
func (s *Sender) Close() error { return s.f.Close() }
