package main

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// port is what servers listen on, on the far end.
const port = 5001

// connect joins the ends by n TCP connections.
func (p *pair) connect(n int) (from, to []int, err error) {
	defer func() {
		if err != nil {
			closeAll(from, to)
		}
	}()
	l, err := p.listen()
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(l)
	for range n {
		c, err := socket(p.a.net, unix.SOCK_STREAM)
		if err != nil {
			return from, to, err
		}
		from = append(from, c)
		tv := unix.NsecToTimeval(int64(5 * time.Second)) // the first meets an empty neighbour table
		if err := unix.SetsockoptTimeval(c, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv); err != nil {
			return from, to, err
		}
		if err := unix.Connect(c, sockaddr(p.b.addr, port)); err != nil {
			return from, to, fmt.Errorf("connect by %s: %w", p.kind, err)
		}
		s, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
		if err != nil {
			return from, to, fmt.Errorf("accept by %s: %w", p.kind, err)
		}
		to = append(to, s)
		if err := errors.Join(limit(c), limit(s)); err != nil {
			return from, to, err
		}
	}
	return from, to, nil
}

func (p *pair) listen() (int, error) {
	l, err := socket(p.b.net, unix.SOCK_STREAM)
	if err != nil {
		return -1, err
	}
	err = errors.Join(unix.SetsockoptInt(l, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(l, sockaddr(p.b.addr, port)), unix.Listen(l, 4096))
	if err != nil {
		unix.Close(l)
		return -1, fmt.Errorf("listen in %s: %w", p.b.net.Name(), err)
	}
	return l, nil
}

func closeAll(lists ...[]int) {
	for _, fds := range lists {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
}

// stream measures TCP: Gbit of data a second, and processor milliseconds for each Gbit.
func (p *pair) stream(streams int, d time.Duration) ([]float64, error) {
	from, to, err := p.connect(streams)
	if err != nil {
		return nil, err
	}
	defer closeAll(from, to)
	before, err := busy()
	if err != nil {
		return nil, err
	}
	var c crew
	var bytes atomic.Int64
	began := time.Now()
	for i := range streams {
		c.start(p.a.net, cpuSend, func() error {
			buf := make([]byte, 128<<10)
			for time.Since(began) < d {
				if _, e := rawWrite(from[i], buf); e != 0 && !again(e) {
					return fmt.Errorf("write by %s: %w", p.kind, e)
				}
			}
			return unix.Shutdown(from[i], unix.SHUT_WR)
		})
		c.start(p.b.net, cpuReceive, func() error {
			buf := make([]byte, 256<<10)
			for sum := 0; ; {
				n, e := rawRead(to[i], buf)
				if e != 0 && !again(e) {
					return fmt.Errorf("read by %s: %w", p.kind, e)
				}
				if e == 0 {
					sum += n
				}
				if e == 0 && n == 0 || time.Since(began) > 2*d+5*time.Second {
					bytes.Add(int64(sum))
					return nil
				}
			}
		})
	}
	if err := c.wait(); err != nil {
		return nil, err
	}
	gbit, took := float64(bytes.Load())*8/1e9, time.Since(began).Seconds()
	after, err := busy()
	if err != nil {
		return nil, err
	}
	return []float64{gbit / took, (after - before) * 1000 / gbit}, nil
}

// datagrams are the two ends of a connected UDP pair.
func (p *pair) datagrams() (from, to int, err error) {
	if from, err = socket(p.a.net, unix.SOCK_DGRAM); err != nil {
		return -1, -1, err
	}
	if to, err = socket(p.b.net, unix.SOCK_DGRAM); err != nil {
		unix.Close(from)
		return -1, -1, err
	}
	err = errors.Join(
		unix.Bind(from, sockaddr(p.a.addr, port)), unix.Bind(to, sockaddr(p.b.addr, port)),
		unix.Connect(from, sockaddr(p.b.addr, port)), unix.Connect(to, sockaddr(p.a.addr, port)),
		unix.SetsockoptInt(to, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
	)
	if err != nil {
		closeAll([]int{from, to})
		return -1, -1, fmt.Errorf("UDP by %s: %w", p.kind, err)
	}
	return from, to, nil
}

// smallPayload makes frames of 64 bytes with their checksum: 14 + 20 + 8 + 18 + 4.
const smallPayload = 18

// packets measures small UDP packets that arrive, thousands a second, and processor time of the sender for each that it sent, in ns: see frames.
func (p *pair) packets(d time.Duration) ([]float64, error) {
	from, to, err := p.datagrams()
	if err != nil {
		return nil, err
	}
	defer closeAll([]int{from, to})
	var c crew
	var received, sent int
	var spent time.Duration
	began := time.Now()
	c.start(p.a.net, cpuSend, func() error {
		b := newBatch(32, smallPayload)
		before, err := threadTime()
		if err != nil {
			return err
		}
		for time.Since(began) < d {
			n, e := b.send(from)
			if e != 0 && !again(e) {
				return fmt.Errorf("send by %s: %w", p.kind, e)
			}
			if e == 0 {
				sent += n
			}
		}
		after, err := threadTime()
		spent = after - before
		return err
	})
	c.start(p.b.net, cpuReceive, func() error {
		b := newBatch(64, 64)
		for time.Since(began) < d {
			n, e := b.receive(to)
			if e != 0 && !again(e) {
				return fmt.Errorf("receive by %s: %w", p.kind, e)
			}
			if e == 0 {
				received += n
			}
		}
		return nil
	})
	if err := c.wait(); err != nil {
		return nil, err
	}
	return p.withTime(float64(received)/d.Seconds()/1000, float64(spent), sent), nil
}

// roundTrip measures a small question and its answer: median and 99th of a hundred, in µs.
func (p *pair) roundTrip(d time.Duration) ([]float64, error) {
	from, to, err := p.datagrams()
	if err != nil {
		return nil, err
	}
	defer closeAll([]int{from, to})
	var c crew
	took := make([]float64, 0, 1<<20)
	began := time.Now()
	c.start(p.b.net, cpuSend, func() error {
		buf := make([]byte, 64)
		for time.Since(began) < d {
			n, e := rawRead(to, buf)
			if e == 0 {
				_, e = rawWrite(to, buf[:n])
			}
			if e != 0 && !again(e) {
				return fmt.Errorf("answer by %s: %w", p.kind, e)
			}
		}
		return nil
	})
	c.start(p.a.net, cpuSend, func() error {
		buf := make([]byte, smallPayload)
		for time.Since(began) < d {
			at := time.Now()
			_, e := rawWrite(from, buf)
			if e == 0 {
				_, e = rawRead(from, buf)
			}
			if e != 0 && !again(e) {
				return fmt.Errorf("ask by %s: %w", p.kind, e)
			}
			if e == 0 && len(took) < cap(took) {
				took = append(took, float64(time.Since(at))/1e3)
			}
		}
		return nil
	})
	if err := c.wait(); err != nil {
		return nil, err
	}
	if len(took) < 10 {
		return nil, fmt.Errorf("%s: %d answers in %v", p.kind, len(took), d)
	}
	slices.Sort(took)
	return []float64{took[len(took)/2], took[len(took)*99/100]}, nil
}

// withTime adds processor time for each of n, unless the switch spends it elsewhere.
func (p *pair) withTime(rate, spent float64, n int) []float64 {
	if p.kind == ovs || n == 0 {
		return []float64{rate}
	}
	return []float64{rate, spent / float64(n)}
}

// connections measures short TCP connections (one byte each way), thousands a second, and processor time of both ends for each, in µs.
func (p *pair) connections(d time.Duration) ([]float64, error) {
	const threads = 4
	l, err := p.listen()
	if err != nil {
		return nil, err
	}
	defer unix.Close(l)
	var c crew
	var done, spent atomic.Int64
	timed := func(fn func() error) func() error {
		return func() error {
			before, err := threadTime()
			if err != nil {
				return err
			}
			err = fn()
			after, timeErr := threadTime()
			spent.Add(int64(after - before))
			return errors.Join(err, timeErr)
		}
	}
	addr := rawAddr(p.b.addr, port)
	began := time.Now()
	for range threads {
		c.start(p.b.net, cpuReceive, timed(func() error {
			buf := make([]byte, 16)
			for time.Since(began) < d {
				fd, _, e := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(l), 0, 0, unix.SOCK_CLOEXEC, 0, 0)
				if again(e) {
					continue
				}
				if e != 0 {
					return fmt.Errorf("accept by %s: %w", p.kind, e)
				}
				if err := limit(int(fd)); err != nil {
					return err
				}
				if n, e := rawRead(int(fd), buf); e == 0 && n == 1 {
					rawWrite(int(fd), buf[:1])
				}
				unix.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
			}
			return nil
		}))
		c.start(p.a.net, cpuSend, timed(func() error {
			buf := []byte{1}
			linger := unix.Linger{Onoff: 1} // a reset at the end: no port waits
			n := 0
			defer func() { done.Add(int64(n)) }()
			for time.Since(began) < d {
				fd, _, e := unix.RawSyscall(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if e != 0 {
					return e
				}
				if err := errors.Join(limit(int(fd)), unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &linger)); err != nil {
					return err
				}
				_, _, e = unix.RawSyscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(addr)), unsafe.Sizeof(*addr))
				if e == 0 {
					_, e = rawWrite(int(fd), buf)
				}
				if e == 0 {
					var got int
					if got, e = rawRead(int(fd), buf); e == 0 && got == 1 {
						n++
					}
				}
				unix.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
			}
			return nil
		}))
	}
	if err := c.wait(); err != nil {
		return nil, err
	}
	n := done.Load()
	return p.withTime(float64(n)/d.Seconds()/1000, float64(spent.Load())/1000, int(n)), nil
}
