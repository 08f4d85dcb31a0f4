package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"drover/internal/hostnet"

	"golang.org/x/sys/unix"
)

// The two processors that loads run on. With one processor they share it.
const (
	cpuSend    = 0
	cpuReceive = 1
)

// crew runs threads and waits for them.
type crew struct {
	wg sync.WaitGroup
	mu sync.Mutex
	// err is what failed first.
	err error
}

// start runs fn on a thread of its own, on a processor and in a namespace.
func (c *crew) start(n *hostnet.Net, cpu int, fn func() error) {
	c.wg.Go(func() {
		err := n.Do(func() error {
			// The thread is used again afterwards, for anything.
			var before, set unix.CPUSet
			if err := unix.SchedGetaffinity(0, &before); err != nil {
				return err
			}
			set.Set(cpu % runtime.NumCPU())
			if err := unix.SchedSetaffinity(0, &set); err != nil {
				return err
			}
			return errors.Join(fn(), unix.SchedSetaffinity(0, &before))
		})
		if err != nil {
			c.mu.Lock()
			c.err = errors.Join(c.err, err)
			c.mu.Unlock()
		}
	})
}

func (c *crew) wait() error { c.wg.Wait(); return c.err }

// The calls below do not tell Go's scheduler, which would cost as much as what is measured. Every socket has time limits, so that none blocks for long.

func rawWrite(fd int, b []byte) (int, unix.Errno) {
	n, _, e := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return int(n), e
}

func rawRead(fd int, b []byte) (int, unix.Errno) {
	n, _, e := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return int(n), e
}

// mmsghdr is struct mmsghdr of sendmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// batch is messages for sendmmsg and recvmmsg, with their memory.
type batch struct {
	msgs []mmsghdr
	iovs []unix.Iovec
	data []byte
}

func newBatch(n, size int) *batch {
	b := &batch{msgs: make([]mmsghdr, n), iovs: make([]unix.Iovec, n), data: make([]byte, n*size)}
	for i := range n {
		b.iovs[i] = unix.Iovec{Base: &b.data[i*size], Len: uint64(size)}
		b.msgs[i].hdr.Iov, b.msgs[i].hdr.Iovlen = &b.iovs[i], 1
	}
	return b
}

func (b *batch) send(fd int) (int, unix.Errno) {
	n, _, e := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.msgs[0])), uintptr(len(b.msgs)), 0, 0, 0)
	return int(n), e
}

func (b *batch) receive(fd int) (int, unix.Errno) {
	n, _, e := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.msgs[0])), uintptr(len(b.msgs)), unix.MSG_WAITFORONE, 0, 0)
	return int(n), e
}

// patience is how long a call may block.
const patience = 200 * time.Millisecond

func again(e unix.Errno) bool {
	return e == unix.EAGAIN || e == unix.EINTR || e == unix.ENOBUFS || e == unix.ECONNREFUSED
}

// socket makes a socket in n with both time limits.
func socket(n *hostnet.Net, kind int) (fd int, err error) {
	err = n.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("socket in %s: %w", n.Name(), err)
	}
	return fd, limit(fd)
}

func limit(fd int) error {
	tv := unix.NsecToTimeval(patience.Nanoseconds())
	return errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv),
	)
}

func sockaddr(a netip.Addr, port int) unix.Sockaddr {
	return &unix.SockaddrInet4{Port: port, Addr: a.As4()}
}

// rawAddr is struct sockaddr_in.
func rawAddr(a netip.Addr, port uint16) *unix.RawSockaddrInet4 {
	r := &unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: a.As4()}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&r.Port))[:], port)
	return r
}

// threadTime is the processor time of the calling thread.
func threadTime() (time.Duration, error) {
	var ts unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts)
	return time.Duration(ts.Nano()), err
}

// busy is the processor time that the whole machine has spent, in seconds.
func busy() (float64, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	f := strings.Fields(line)
	if len(f) < 8 || f[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	sum := 0.0
	for _, i := range []int{1, 2, 3, 6, 7} { // user, nice, system, irq, softirq
		v, err := strconv.ParseFloat(f[i], 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		sum += v
	}
	return sum / 100, nil // USER_HZ
}
