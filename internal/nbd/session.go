package nbd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

const (
	poolSize = 1 << 20
	// holeUnit is how many zeros in a row are answered as a hole.
	holeUnit = 64 << 10
	// maxExtents in one chunk of block status.
	maxExtents = 16 << 10
)

// session is the server's side of a connection after the handshake.
type session struct {
	s          *Server
	nc         net.Conn
	br         *bufio.Reader
	x          Export
	w          Writable // nil: read-only
	c          Contexter
	chosen     []string
	structured bool

	slots chan struct{}
	wg    sync.WaitGroup

	writing sync.Mutex // held over the write of one reply, which Stall bounds
	broken  bool       // guarded by writing: nothing more can be written
}

func newSession(s *Server, h *greeter) *session {
	x := &session{s: s, nc: h.nc, br: h.br, x: h.x, structured: h.structured, slots: make(chan struct{}, s.o.InFlight)}
	x.w, _ = h.x.(Writable)
	if h.structured && h.metaOf == h.name && len(h.chosen) > 0 {
		x.c, _ = h.x.(Contexter)
		x.chosen = h.chosen
	}
	return x
}

// request is one of the peer's, with its payload.
type request struct {
	cmd, flags uint16
	cookie     uint64
	off        int64
	n          int64
	buf        *[]byte // of writes; n bytes count
	held       int64   // of the server's memory
}

// run takes requests until the peer goes, and waits for those under way.
func (x *session) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer x.wg.Wait()
	defer cancel()
	for {
		q, err := x.next(ctx)
		if err == io.EOF || err == nil && q.cmd == cmdDisc {
			// Requests that came before the goodbye are carried out.
			x.wg.Wait()
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case x.slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		x.wg.Go(func() {
			defer func() { <-x.slots }()
			x.serve(ctx, q)
			x.s.drop(q.buf)
			x.s.memory.give(q.held)
		})
	}
}

// next reads a request and its payload, for which it waits until there is memory.
func (x *session) next(ctx context.Context) (request, error) {
	var head [requestSize]byte
	if _, err := io.ReadFull(x.br, head[:1]); err != nil {
		return request{}, err
	}
	stall := time.AfterFunc(x.s.o.Stall, func() { x.nc.Close() })
	defer stall.Stop()
	if _, err := io.ReadFull(x.br, head[1:]); err != nil {
		return request{}, fmt.Errorf("in the middle of a request: %w", err)
	}
	if binary.BigEndian.Uint32(head[:]) != magicRequest {
		return request{}, fmt.Errorf("%w: this is no request", ErrProtocol)
	}
	q := request{
		flags: binary.BigEndian.Uint16(head[4:]), cmd: binary.BigEndian.Uint16(head[6:]), cookie: binary.BigEndian.Uint64(head[8:]),
		off: int64(binary.BigEndian.Uint64(head[16:])), n: int64(binary.BigEndian.Uint32(head[24:])),
	}
	switch {
	case q.cmd == cmdWrite && q.n > maxPayload:
		return q, fmt.Errorf("%w: a write of %d bytes", ErrProtocol, q.n)
	case q.cmd == cmdWrite, q.cmd == cmdRead && q.n <= maxPayload:
		q.held = q.n
	case q.cmd == cmdStatus:
		q.held = maxExtents * 8 * int64(len(x.chosen))
	}
	stall.Stop() // to wait for memory is not the peer's fault
	if err := x.s.memory.take(ctx, q.held); err != nil {
		return q, err
	}
	if q.cmd == cmdWrite {
		stall := time.AfterFunc(x.s.o.Stall, func() { x.nc.Close() })
		defer stall.Stop()
		q.buf = x.s.take(q.n)
		if _, err := io.ReadFull(x.br, (*q.buf)[:q.n]); err != nil {
			x.s.drop(q.buf)
			x.s.memory.give(q.held)
			return q, fmt.Errorf("in the middle of a write: %w", err)
		}
	}
	return q, nil
}

// take gives a buffer of at least n bytes.
func (s *Server) take(n int64) *[]byte {
	if n <= poolSize {
		if b, ok := s.bufs.Get().(*[]byte); ok {
			return b
		}
		b := make([]byte, poolSize)
		return &b
	}
	b := make([]byte, n)
	return &b
}

func (s *Server) drop(b *[]byte) {
	if b != nil && len(*b) == poolSize {
		s.bufs.Put(b)
	}
}

func (x *session) serve(ctx context.Context, q request) {
	if errno := x.check(q); errno != 0 {
		x.fail(q, errno)
		return
	}
	var err error
	switch q.cmd {
	case cmdRead:
		x.read(ctx, q)
		return
	case cmdStatus:
		x.status(ctx, q)
		return
	case cmdWrite:
		err = x.w.WriteAt(ctx, (*q.buf)[:q.n], q.off)
	case cmdZeroes:
		err = x.w.Zero(ctx, q.off, q.n, q.flags&cmdFlagNoHole == 0)
	case cmdTrim:
		err = x.w.Trim(ctx, q.off, q.n)
	case cmdFlush:
		err = x.w.Flush(ctx)
	}
	if err == nil && q.flags&cmdFlagFUA != 0 && q.cmd != cmdFlush {
		err = x.w.Flush(ctx)
	}
	if err != nil {
		x.fail(q, err)
		return
	}
	x.done(q)
}

// check refuses what the peer may not ask for.
func (x *session) check(q request) Errno {
	var flags uint16
	known := true
	switch q.cmd {
	case cmdRead:
		flags = cmdFlagDF | cmdFlagFUA
	case cmdZeroes:
		flags = cmdFlagNoHole | cmdFlagFUA
	case cmdStatus:
		flags = cmdFlagOne | cmdFlagFUA
	case cmdWrite, cmdFlush, cmdTrim:
		flags = cmdFlagFUA
	default:
		known = false
	}
	size := x.x.Size()
	within := q.off >= 0 && q.off <= size && q.n <= size-q.off
	switch {
	case !known || q.flags&^flags != 0:
		return EINVAL
	case q.cmd == cmdFlush && (x.w == nil || q.off != 0 || q.n != 0):
		return EINVAL
	case q.cmd == cmdStatus && (x.c == nil || q.n == 0):
		return EINVAL
	case q.cmd == cmdRead && q.n > maxPayload:
		return EOVERFLOW
	case x.w == nil && (q.cmd == cmdWrite || q.cmd == cmdTrim || q.cmd == cmdZeroes):
		return EPERM
	case !within && (q.cmd == cmdWrite || q.cmd == cmdZeroes):
		return ENOSPC
	case !within:
		return EINVAL
	}
	return 0
}

func (x *session) read(ctx context.Context, q request) {
	if q.n == 0 {
		x.done(q)
		return
	}
	buf := x.s.take(q.n)
	defer x.s.drop(buf)
	p := (*buf)[:q.n]
	if err := x.x.ReadAt(ctx, p, q.off); err != nil {
		x.fail(q, err)
		return
	}
	if !x.structured {
		x.write(simple(q, 0), p)
		return
	}
	var bufs [][]byte
	for at := int64(0); at < q.n; {
		n, zero := q.n, false
		if q.flags&cmdFlagDF == 0 {
			n, zero = stretch(p[at:])
		}
		var flags uint16
		if at+n == q.n {
			flags = chunkDone
		}
		if zero {
			b := binary.BigEndian.AppendUint64(chunk(q, flags, chunkHole, 12), uint64(q.off+at))
			bufs = append(bufs, binary.BigEndian.AppendUint32(b, uint32(n)))
		} else {
			bufs = append(bufs, binary.BigEndian.AppendUint64(chunk(q, flags, chunkData, 8+n), uint64(q.off+at)), p[at:at+n])
		}
		at += n
	}
	x.write(bufs...)
}

// stretch measures how far p is all zeros or all not, in whole holeUnits; a rest counts as data unless p is shorter.
func stretch(p []byte) (n int64, zero bool) {
	unit := min(len(p), holeUnit)
	zero = isZero(p[:unit])
	at := unit
	for at < len(p) && isZero(p[at:min(at+holeUnit, len(p))]) == zero {
		at += min(holeUnit, len(p)-at)
	}
	return int64(at), zero
}

func isZero(p []byte) bool {
	return len(p) == 0 || p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1])
}

func (x *session) status(ctx context.Context, q request) {
	var bufs [][]byte
	for id, name := range x.chosen {
		xs, err := x.c.Extents(ctx, name, q.off, q.n)
		if err == nil && (len(xs) == 0 || xs[0].Offset > q.off) {
			err = errors.New("no extents")
		}
		if err != nil {
			x.fail(q, err)
			return
		}
		b := binary.BigEndian.AppendUint32(nil, uint32(id))
		at, end, k := q.off, q.off+q.n, 0
		for _, e := range xs {
			n := min(e.Offset+e.Length, end) - at
			if n <= 0 || k == maxExtents || k == 1 && q.flags&cmdFlagOne != 0 {
				break
			}
			b = binary.BigEndian.AppendUint32(b, uint32(n))
			b = binary.BigEndian.AppendUint32(b, e.Flags)
			at, k = at+n, k+1
		}
		if k == 0 {
			x.fail(q, errors.New("no extents"))
			return
		}
		var flags uint16
		if id == len(x.chosen)-1 {
			flags = chunkDone
		}
		bufs = append(bufs, append(chunk(q, flags, chunkStatus, int64(len(b))), b...))
	}
	x.write(bufs...)
}

func chunk(q request, flags, kind uint16, n int64) []byte {
	b := make([]byte, 0, 32)
	b = binary.BigEndian.AppendUint32(b, magicStructured)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint64(b, q.cookie)
	return binary.BigEndian.AppendUint32(b, uint32(n))
}

func simple(q request, e Errno) []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 16), magicSimple)
	b = binary.BigEndian.AppendUint32(b, uint32(e))
	return binary.BigEndian.AppendUint64(b, q.cookie)
}

func (x *session) done(q request) {
	if x.structured {
		x.write(chunk(q, chunkDone, chunkNone, 0))
		return
	}
	x.write(simple(q, 0))
}

// fail tells the peer that a request failed.
func (x *session) fail(q request, err error) {
	e := EIO
	errors.As(err, &e)
	if !x.structured {
		x.write(simple(q, e))
		return
	}
	text := err.Error()
	text = strings.ToValidUTF8(text[:min(len(text), 200)], "")
	b := chunk(q, chunkDone, chunkError, int64(6+len(text)))
	b = binary.BigEndian.AppendUint32(b, uint32(e))
	b = binary.BigEndian.AppendUint16(b, uint16(len(text)))
	x.write(append(b, text...))
}

// write writes one reply. A peer that does not take it in time loses the connection.
func (x *session) write(bufs ...[]byte) {
	x.writing.Lock()
	defer x.writing.Unlock()
	if x.broken {
		return
	}
	stall := time.AfterFunc(x.s.o.Stall, func() { x.nc.Close() })
	defer stall.Stop()
	b := net.Buffers(bufs)
	if _, err := b.WriteTo(x.nc); err != nil {
		x.broken = true
		x.nc.Close()
	}
}
