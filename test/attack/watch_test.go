package attack

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"drover/internal/vswitch/frame"
	"drover/internal/vswitch/table"

	"golang.org/x/sys/unix"
)

// streamPort is what the victim's own traffic uses.
const streamPort = 7777

// watcher sees every frame that a guest gets.
type watcher struct {
	g    *guest
	stop chan struct{}
	wg   sync.WaitGroup

	mu      sync.Mutex
	allow   func(f []byte) bool // more that is expected just now
	hostile int
	allowed int
	seen    []string // of the hostile ones, the first
}

// watch looks at what g gets, until the test ends. known are those that may talk to it.
func watch(t *testing.T, g *guest, known ...*guest) *watcher {
	t.Helper()
	w := &watcher{g: g, stop: make(chan struct{})}
	l, err := g.net.Link("eth0")
	must(t, err)
	var fd int
	must(t, g.net.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	}))
	tv := unix.NsecToTimeval((50 * time.Millisecond).Nanoseconds())
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
	must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20))
	must(t, unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1))
	all := uint16(unix.ETH_P_ALL)
	must(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: l.Index}))
	w.wg.Go(func() {
		defer unix.Close(fd)
		buf := make([]byte, 65536)
		for {
			n, err := unix.Read(fd, buf)
			if err == nil {
				w.look(buf[:n], known)
				continue
			}
			select {
			case <-w.stop:
				return
			default:
			}
		}
	})
	t.Cleanup(func() { close(w.stop); w.wg.Wait() })
	return w
}

func (w *watcher) look(f []byte, known []*guest) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if honest(f, w.g, known) {
		return
	}
	if w.allow != nil && w.allow(f) {
		w.allowed++
		return
	}
	if w.hostile++; len(w.seen) < 3 {
		w.seen = append(w.seen, frame.Summary(slices.Clone(f)))
	}
}

// reset forgets what was seen, and says what else may come from now on.
func (w *watcher) reset(allow func(f []byte) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.allow, w.hostile, w.allowed, w.seen = allow, 0, 0, nil
}

func (w *watcher) result() (hostile, allowed int, seen []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.hostile, w.allowed, w.seen
}

// honest says whether to may get a frame: it is to it or to all, from somebody known, who says nothing but the truth about itself, and of the kind that
// guests exchange in this test.
func honest(f []byte, to *guest, known []*guest) bool {
	if len(f) < 14 {
		return false
	}
	if f[0]&1 == 0 && table.MAC(f[:6]) != to.mac {
		return false
	}
	i := slices.IndexFunc(known, func(g *guest) bool { return table.MAC(f[6:12]) == g.mac })
	if i < 0 {
		return false
	}
	from, p := known[i], f[14:]
	switch binary.BigEndian.Uint16(f[12:]) {
	case 0x0806:
		if len(p) < 28 || table.MAC(p[8:14]) != from.mac {
			return false
		}
		sender := netip.AddrFrom4([4]byte(p[14:18]))
		return sender == from.ip4 || sender == netip.IPv4Unspecified()
	case 0x0800:
		return len(p) >= 28 && p[0] == 0x45 && p[9] == unix.IPPROTO_UDP && netip.AddrFrom4([4]byte(p[12:16])) == from.ip4 &&
			binary.BigEndian.Uint16(p[22:]) == streamPort
	case 0x86dd:
		return honest6(p, from)
	}
	return false
}

// honest6 passes neighbour discovery, router solicitations and MLD that speak of nobody else.
func honest6(p []byte, from *guest) bool {
	if len(p) < 48 {
		return false
	}
	source := netip.AddrFrom16([16]byte(p[8:24]))
	if source != from.ip6 && source != frame.LinkLocal(from.mac) && source != netip.IPv6Unspecified() {
		return false
	}
	next, body := p[6], p[40:]
	if next == 0 { // hop-by-hop, before MLD
		if len(body) < 16 {
			return false
		}
		next, body = body[0], body[8:]
	}
	if next != unix.IPPROTO_ICMPV6 {
		return false
	}
	switch body[0] {
	case 133, 135, 143:
		return true
	case 136:
		if len(body) < 24 {
			return false
		}
		target := netip.AddrFrom16([16]byte(body[8:24]))
		return target == from.ip6 || target == frame.LinkLocal(from.mac)
	}
	return false
}

// stream is the victim's own traffic: numbered datagrams to the router, which sends them back.
type stream struct {
	stop chan struct{}
	wg   sync.WaitGroup

	mu   sync.Mutex
	sent uint64
	back map[uint64]bool
}

// streamRate is how many datagrams a second the victim sends.
const streamRate = 500

func newStream(t *testing.T, from, to *guest) *stream {
	t.Helper()
	s := &stream{stop: make(chan struct{}), back: map[uint64]bool{}}
	socket := func(g, peer *guest) int {
		var fd int
		must(t, g.net.Do(func() (err error) {
			fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			return err
		}))
		tv := unix.NsecToTimeval((50 * time.Millisecond).Nanoseconds())
		must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
		must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20))
		must(t, unix.Bind(fd, &unix.SockaddrInet4{Port: streamPort, Addr: g.ip4.As4()}))
		must(t, unix.Connect(fd, &unix.SockaddrInet4{Port: streamPort, Addr: peer.ip4.As4()}))
		return fd
	}
	a, b := socket(from, to), socket(to, from)
	loop := func(fd int, each func(buf []byte)) {
		buf := make([]byte, 64)
		for {
			n, err := unix.Read(fd, buf)
			if err == nil && n == 8 {
				each(buf[:n])
				continue
			}
			select {
			case <-s.stop:
				return
			default:
			}
		}
	}
	s.wg.Go(func() { loop(b, func(buf []byte) { _, _ = unix.Write(b, buf) }) })
	s.wg.Go(func() {
		loop(a, func(buf []byte) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.back[binary.BigEndian.Uint64(buf)] = true
		})
	})
	s.wg.Go(func() {
		tick := time.NewTicker(time.Second / streamRate)
		defer tick.Stop()
		for {
			select {
			case <-s.stop:
				return
			case <-tick.C:
			}
			s.mu.Lock()
			s.sent++
			n := s.sent
			s.mu.Unlock()
			_, _ = unix.Write(a, binary.BigEndian.AppendUint64(nil, n)) // what does not come back is counted
		}
	})
	t.Cleanup(func() { close(s.stop); s.wg.Wait(); unix.Close(a); unix.Close(b) })
	return s
}

// now is the number of the last datagram.
func (s *stream) now() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent
}

// lost waits for the answers to the datagrams after first, up to now, and says which did not come.
func (s *stream) lost(first uint64) error {
	last := s.now()
	deadline := time.Now().Add(2 * time.Second)
	for {
		var missing []uint64
		s.mu.Lock()
		for n := first + 1; n <= last; n++ {
			if !s.back[n] {
				missing = append(missing, n)
			}
		}
		s.mu.Unlock()
		if len(missing) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the victim's own traffic lost %d of %d datagrams, the first of them %d", len(missing), last-first, missing[0])
		}
		time.Sleep(5 * time.Millisecond)
	}
}
