package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"drover/internal/osimage/helperinit/wire"
)

// port is one virtio port: a connection that carries one request at a time.
type port struct {
	m     *machine
	fd    int
	awake chan os.Signal

	mu        sync.Mutex // guards current
	current   uint32
	cancelled atomic.Bool

	id  uint32 // of the request under way; the worker's
	out *bufio.Writer
}

// failure is an error with its code.
type failure struct {
	code wire.Code
	err  error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func fail(code wire.Code, format string, args ...any) error {
	return &failure{code, fmt.Errorf(format, args...)}
}

var errCancelled = &failure{wire.Cancelled, errors.New("cancelled")}

// serve answers on all ports, when they have appeared; it returns when one breaks the protocol or fails.
func (m *machine) serve() error {
	events, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, netlinkUevent)
	if err != nil {
		return fmt.Errorf("uevents: %w", err)
	}
	defer syscall.Close(events)
	if err := syscall.Bind(events, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK, Groups: 1}); err != nil {
		return fmt.Errorf("uevents: %w", err)
	}
	buf := make([]byte, 8<<10)
	devs := portDevices()
	for len(devs) < wire.Ports {
		// An event that was lost is as good as one that came.
		if _, _, err := syscall.Recvfrom(events, buf, 0); err != nil && err != syscall.EINTR && err != syscall.ENOBUFS {
			return fmt.Errorf("uevents: %w", err)
		}
		devs = portDevices()
	}
	done := make(chan error, len(devs))
	for _, dev := range devs {
		p, err := openPort(m, dev)
		if err != nil {
			return err
		}
		go func() { done <- p.serve() }()
	}
	return <-done
}

// portDevices are the ports that have their name, which they get after their device.
func portDevices() []string {
	files, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
	var out []string
	for _, f := range files {
		if strings.HasPrefix(strings.TrimSpace(readText(f)), wire.PortPrefix) {
			out = append(out, "/dev/"+filepath.Base(filepath.Dir(f)))
		}
	}
	return out
}

const netlinkUevent = 15 // linux/netlink.h NETLINK_KOBJECT_UEVENT

// openPort: a read of the port returns nothing while no host is connected; SIGIO tells when that changes.
func openPort(m *machine, dev string) (*port, error) {
	fd, err := syscall.Open(dev, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dev, err)
	}
	p := &port{m: m, fd: fd, awake: make(chan os.Signal, 1)}
	p.out = bufio.NewWriterSize(p, 64<<10)
	signal.Notify(p.awake, syscall.SIGIO)
	const fSetown = 8
	syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), fSetown, uintptr(os.Getpid()))
	syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_SETFL, syscall.O_RDWR|syscall.O_ASYNC)
	return p, nil
}

func (p *port) Read(b []byte) (int, error) {
	for {
		n, err := syscall.Read(p.fd, b)
		switch {
		case n > 0:
			return n, nil
		case err == syscall.EINTR || err == syscall.EAGAIN:
		case err != nil:
			return 0, err
		default:
			<-p.awake
		}
	}
}

func (p *port) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		n, err := syscall.Write(p.fd, b[done:])
		if err == syscall.EINTR || err == syscall.EAGAIN {
			continue
		}
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// serve reads requests, and gives them to one worker.
func (p *port) serve() error {
	work := make(chan wire.Frame, 1)
	failed := make(chan error, 2)
	go func() {
		for f := range work {
			if err := p.answer(f); err != nil {
				failed <- err
				return
			}
		}
	}()
	go func() {
		r := bufio.NewReaderSize(p, 64<<10)
		for {
			f, err := wire.ReadFrame(r, nil)
			if err != nil {
				failed <- err
				return
			}
			if f.Type == wire.TypeCancel {
				p.mu.Lock()
				if p.current == f.Request {
					p.cancelled.Store(true)
				}
				p.mu.Unlock()
				continue
			}
			p.mu.Lock()
			busy := p.current != 0
			if !busy {
				p.current = f.Request
				p.cancelled.Store(false)
			}
			p.mu.Unlock()
			if busy || f.Request == 0 {
				failed <- fmt.Errorf("%w: a request in a request, or without a number", wire.ErrFormat)
				return
			}
			work <- f
		}
	}()
	return <-failed
}

// answer does one request. Only a broken port is an error.
func (p *port) answer(f wire.Frame) error {
	p.id = f.Request
	err := p.do(f)
	end := wire.End{}
	if err != nil {
		end.Code, end.Message = codeOf(err), err.Error()
	}
	p.mu.Lock()
	p.current = 0
	p.mu.Unlock()
	if err := p.send(wire.TypeEnd, end.Append(nil)); err != nil {
		return err
	}
	return p.out.Flush()
}

func codeOf(err error) wire.Code {
	var f *failure
	switch {
	case errors.As(err, &f):
		return f.code
	case errors.Is(err, wire.ErrFormat):
		return wire.BadRequest
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENAMETOOLONG):
		return wire.NotFound
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.ELOOP):
		return wire.WrongType
	case errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.ENOSYS), errors.Is(err, syscall.ENOKEY), errors.Is(err, syscall.ENOPKG):
		return wire.Unsupported
	case errors.Is(err, syscall.EIO), errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.EUCLEAN), errors.Is(err, syscall.EBADMSG):
		return wire.Damaged
	}
	return wire.Other
}

func (p *port) send(t wire.Type, payload []byte) error {
	_, err := p.out.Write(wire.AppendHead(p.out.AvailableBuffer(), t, p.id, len(payload)))
	if err == nil {
		_, err = p.out.Write(payload)
	}
	return err
}

func (p *port) do(f wire.Frame) error {
	switch f.Type {
	case wire.TypeHello:
		if _, err := wire.ParseHello(f.Payload); err != nil {
			return err
		}
		return p.send(wire.TypeHelloBack, wire.HelloBack(release()))
	case wire.TypeVolumes:
		for _, v := range p.m.all() {
			if err := p.send(wire.TypeVolume, v.Volume.Append(nil)); err != nil {
				return err
			}
		}
		return nil
	case wire.TypeList:
		q, err := wire.ParseList(f.Payload)
		if err != nil {
			return err
		}
		return p.list(q)
	case wire.TypeStat:
		q, err := wire.ParseStat(f.Payload)
		if err != nil {
			return err
		}
		return p.stat(q)
	case wire.TypeRead:
		q, err := wire.ParseRead(f.Payload)
		if err != nil {
			return err
		}
		return p.read(q)
	case wire.TypeTar:
		q, err := wire.ParseTar(f.Payload)
		if err != nil {
			return err
		}
		return p.tar(q)
	}
	return fail(wire.BadRequest, "request of type %d", f.Type)
}
