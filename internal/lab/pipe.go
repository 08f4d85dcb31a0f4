package lab

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"drover/internal/clock"

	"golang.org/x/sys/unix"
)

const (
	vnetHeader = 10          // struct virtio_net_hdr, linux/virtio_net.h
	maxPacket  = 64<<10 + 64 // a whole segment with its header
	smallBuf   = 2 << 10     // holds a packet of the usual MTU
	maxHeld    = 64 << 20    // bytes of buffers on their way, one direction
	writeBatch = 64          // packets between looks at the queue
)

// PipeCounters are totals of one direction of a link.
type PipeCounters struct {
	Packets uint64 `json:"packets"` // passed; a whole segment counts once
	Bytes   uint64 `json:"bytes"`   // passed, of IP packets
	Lost    uint64 `json:"lost"`    // by chance
	Dropped uint64 `json:"dropped"` // since the queue was full
	Cut     uint64 `json:"cut"`     // while the link was cut
	Failed  uint64 `json:"failed"`  // refused by the receiving router
}

// pipe carries packets from one TUN to another, in order. Both TUNs carry a
// virtio_net_hdr, which is passed on as it is.
type pipe struct {
	in, out *os.File // not owned
	clk     clock.Clock
	base    time.Time
	par     *atomic.Pointer[WAN] // the link's
	rng     *rand.Rand           // the reader's
	alarm   *alarm
	wake    chan struct{} // the queue was empty and isn't any more
	done    chan struct{} // closed by stop
	small   sync.Pool
	large   sync.Pool
	held    atomic.Int64 // bytes of buffers queued or being written

	packets, bytes, lost, dropped, cut, failed atomic.Uint64

	mu      sync.Mutex
	queue   []packet // in order of due; queue[head:] waits
	head    int
	txEnd   time.Duration // when the last packet leaves the bandwidth limit
	lastDue time.Duration
}

type packet struct {
	buf []byte
	due time.Duration // since base
}

func newPipe(in, out *os.File, par *atomic.Pointer[WAN], clk clock.Clock, seed uint64) (*pipe, error) {
	a, err := newAlarm()
	if err != nil {
		return nil, err
	}
	return &pipe{
		in: in, out: out, clk: clk, base: clk.Now(), par: par, alarm: a,
		rng:  rand.New(rand.NewPCG(seed, 0)),
		wake: make(chan struct{}, 1), done: make(chan struct{}),
		small: sync.Pool{New: func() any { b := make([]byte, smallBuf); return &b }},
		large: sync.Pool{New: func() any { b := make([]byte, maxPacket); return &b }},
	}, nil
}

func (p *pipe) now() time.Duration { return p.clk.Now().Sub(p.base) }

// read takes packets in until in is closed.
func (p *pipe) read() error {
	buf := make([]byte, maxPacket)
	for {
		n, err := p.in.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		if n <= vnetHeader {
			continue
		}
		w := p.par.Load()
		switch {
		case w.Cut:
			p.cut.Add(1)
		case w.Loss > 0 && p.rng.Float64() < w.Loss:
			p.lost.Add(1)
		case w.immediate() && p.held.Load() == 0: // none is to be overtaken
			p.send(buf[:n])
		default:
			p.hold(w, buf[:n])
		}
	}
}

// hold queues a copy of b for its time.
func (p *pipe) hold(w *WAN, b []byte) {
	now := p.now()
	p.mu.Lock()
	txEnd := now
	if w.Bandwidth > 0 {
		bits := wireBytes(b) * 8
		txEnd = max(now, p.txEnd) + time.Duration(float64(bits)/float64(w.Bandwidth)*1e9)
	}
	room := smallBuf
	if len(b) > smallBuf {
		room = maxPacket
	}
	if txEnd-now > w.queue() || p.held.Load()+int64(room) > maxHeld {
		p.mu.Unlock()
		p.dropped.Add(1)
		return
	}
	p.txEnd = txEnd
	due := txEnd + w.Delay
	if w.Jitter > 0 {
		due += time.Duration(p.rng.Int64N(2*int64(w.Jitter)+1)) - w.Jitter
	}
	p.lastDue = max(p.lastDue, due, now)
	c := p.take(room)[:len(b)]
	copy(c, b)
	p.queue = append(p.queue, packet{c, p.lastDue})
	first := len(p.queue)-p.head == 1
	p.mu.Unlock()
	if first {
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
}

// wireBytes is the size of the IP packets that b is, or will be cut into; then each
// but the first repeats the headers. b begins with a virtio_net_hdr in host order.
func wireBytes(b []byte) int64 {
	n := int64(len(b) - vnetHeader)
	gsoType, headers, size := b[1], int64(binary.NativeEndian.Uint16(b[2:])), int64(binary.NativeEndian.Uint16(b[4:]))
	if gsoType == 0 || size == 0 || headers >= n {
		return n
	}
	return n + ((n-headers+size-1)/size-1)*headers
}

// write sends what is due until stop.
func (p *pipe) write() {
	batch := make([]packet, 0, writeBatch)
	for {
		var wait time.Duration
		batch, wait = p.due(batch[:0])
		switch {
		case len(batch) > 0:
			cut := p.par.Load().Cut
			for _, k := range batch {
				if cut {
					p.cut.Add(1)
				} else {
					p.send(k.buf)
				}
				p.give(k.buf)
			}
		case wait > 0:
			p.alarm.sleep(wait)
		default:
			select {
			case <-p.wake:
			case <-p.done:
			}
		}
		select {
		case <-p.done:
			return
		default:
		}
	}
}

// due takes the packets whose time has come; if there are none, wait is until the
// first one, or zero if none is queued.
func (p *pipe) due(batch []packet) (_ []packet, wait time.Duration) {
	now := p.now()
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.head < len(p.queue) && len(batch) < writeBatch {
		k := p.queue[p.head]
		if k.due > now {
			wait = k.due - now
			break
		}
		p.queue[p.head] = packet{}
		p.head++
		batch = append(batch, k)
	}
	switch {
	case p.head == len(p.queue):
		p.queue, p.head = p.queue[:0], 0
	case p.head > 1024 && p.head > len(p.queue)/2:
		n := copy(p.queue, p.queue[p.head:])
		clear(p.queue[n:])
		p.queue, p.head = p.queue[:n], 0
	}
	return batch, wait
}

func (p *pipe) send(b []byte) {
	if _, err := p.out.Write(b); err != nil {
		p.failed.Add(1) // the other router's end is down or going away
		return
	}
	p.packets.Add(1)
	p.bytes.Add(uint64(len(b) - vnetHeader))
}

// take and give account for the buffer until after it was written, so that
// the reader's short cut never overtakes.
func (p *pipe) take(room int) []byte {
	p.held.Add(int64(room))
	if room == smallBuf {
		return *p.small.Get().(*[]byte)
	}
	return *p.large.Get().(*[]byte)
}

func (p *pipe) give(b []byte) {
	b = b[:cap(b)]
	if len(b) == smallBuf {
		p.small.Put(&b)
	} else {
		p.large.Put(&b)
	}
	p.held.Add(-int64(len(b)))
}

// stop ends write. read ends when in is closed.
func (p *pipe) stop() {
	close(p.done)
	p.alarm.close()
}

func (p *pipe) counters() PipeCounters {
	return PipeCounters{
		Packets: p.packets.Load(), Bytes: p.bytes.Load(), Lost: p.lost.Load(),
		Dropped: p.dropped.Load(), Cut: p.cut.Load(), Failed: p.failed.Load(),
	}
}

// alarm sleeps to some 50 µs: the runtime's own timers wake an idle process up to 1 ms
// late, since they end in epoll_wait, which counts milliseconds.
type alarm struct {
	f *os.File
}

func newAlarm() (*alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	return &alarm{os.NewFile(uintptr(fd), "timerfd")}, nil
}

// sleep returns after d or when the alarm is closed.
func (a *alarm) sleep(d time.Duration) {
	rc, err := a.f.SyscallConn()
	if err != nil {
		return
	}
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(d.Nanoseconds())}
	if rc.Control(func(fd uintptr) { err = unix.TimerfdSettime(int(fd), 0, &spec, nil) }) != nil || err != nil {
		return
	}
	var b [8]byte
	_, _ = a.f.Read(b[:]) // fails only when closed, which ends the sleep too
}

func (a *alarm) close() { a.f.Close() }
