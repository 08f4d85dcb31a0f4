package nbd

import (
	"bufio"
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

// call is one request. Fields above mu are the maker's until it is written, then the reader's until done.
type call struct {
	cmd, flags uint16
	off        int64
	n          uint32
	out        []byte              // payload of a write
	p          []byte              // what a read fills
	filled     int64               // bytes of p that came
	status     map[string][]Extent // what a question about block status brings
	err        error

	done chan struct{} // closed when the last of the reply has come

	mu    sync.Mutex
	left  bool          // the maker has gone: p is not ours any more
	busy  bool          // the reader fills p just now
	freed chan struct{} // made by a maker that goes while busy, closed by the reader when it is not any more
}

// conn is one connection, with one goroutine that reads replies.
type conn struct {
	nc         net.Conn
	br         *bufio.Reader
	structured bool
	contexts   map[uint32]string

	slots   chan struct{} // one token for each request under way
	writing chan struct{} // one token while a request is written
	done    chan struct{} // closed by the reader when it ends; err is set before

	mu    sync.Mutex // guards the fields below
	err   error
	calls map[uint64]*call
	last  uint64
}

func newConn(nc net.Conn, br *bufio.Reader, inFlight int, a agreed) *conn {
	c := idleConn(nc, br, inFlight, a)
	go c.read()
	return c
}

func idleConn(nc net.Conn, br *bufio.Reader, inFlight int, a agreed) *conn {
	return &conn{
		nc: nc, br: br, structured: a.structured, contexts: a.contexts,
		slots:   make(chan struct{}, inFlight),
		writing: make(chan struct{}, 1),
		done:    make(chan struct{}),
		calls:   map[uint64]*call{},
	}
}

// do sends a request and waits for its reply.
func (c *conn) do(ctx context.Context, q *call) error {
	if err := c.send(ctx, q); err != nil {
		return err
	}
	select {
	case <-q.done:
		return q.err
	case <-ctx.Done():
		c.leave(q)
		return fmt.Errorf("nbd: %s at %d: %w", opName(q.cmd), q.off, ctx.Err())
	}
}

// leave gives up a call, and waits until the reader lets go of its buffer. A server that stops in the middle of a chunk
// loses the connection.
func (c *conn) leave(q *call) {
	const grace = time.Second
	q.mu.Lock()
	q.left = true
	if !q.busy {
		q.mu.Unlock()
		return
	}
	q.freed = make(chan struct{})
	q.mu.Unlock()
	t := time.AfterFunc(grace, func() { c.fail(errors.New("the server stopped in the middle of a reply")) })
	defer t.Stop()
	<-q.freed
}

// send takes a slot, which the reader gives back with the end of the reply, and writes the request.
func (c *conn) send(ctx context.Context, q *call) error {
	q.done = make(chan struct{})
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case c.slots <- struct{}{}:
	case <-c.done:
		return c.gone()
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case c.writing <- struct{}{}:
	case <-ctx.Done():
		<-c.slots
		return ctx.Err()
	case <-c.done:
		return c.gone()
	}
	defer func() { <-c.writing }()
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return c.gone()
	}
	c.last++
	cookie := c.last
	c.calls[cookie] = q
	c.mu.Unlock()

	head := make([]byte, 0, requestSize)
	head = binary.BigEndian.AppendUint32(head, magicRequest)
	head = binary.BigEndian.AppendUint16(head, q.flags)
	head = binary.BigEndian.AppendUint16(head, q.cmd)
	head = binary.BigEndian.AppendUint64(head, cookie)
	head = binary.BigEndian.AppendUint64(head, uint64(q.off))
	head = binary.BigEndian.AppendUint32(head, q.n)
	late := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { c.nc.SetWriteDeadline(time.Unix(1, 0)); close(late) })
	err := writeAll(c.nc, head, q.out)
	if !stop() {
		<-late
		c.nc.SetWriteDeadline(time.Time{})
	}
	if err != nil {
		c.fail(fmt.Errorf("write a request: %w", err))
		<-c.done
		return c.gone()
	}
	return nil
}

// writeAll writes head and payload with one system call where that can be.
func writeAll(nc net.Conn, head, payload []byte) error {
	if len(payload) == 0 {
		_, err := nc.Write(head)
		return err
	}
	b := net.Buffers{head, payload}
	_, err := b.WriteTo(nc)
	return err
}

// fail ends the connection; the reader then ends the calls.
func (c *conn) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.mu.Unlock()
	c.nc.Close()
}

// gone is the error of calls that come too late.
func (c *conn) gone() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Errorf("nbd: %w: %w", ErrGone, c.err)
}

// close says goodbye if nobody writes just now, ends the connection and waits for the reader.
func (c *conn) close() error {
	select {
	case c.writing <- struct{}{}:
		t := time.AfterFunc(time.Second, func() { c.nc.Close() })
		bye := make([]byte, requestSize)
		binary.BigEndian.PutUint32(bye, magicRequest)
		binary.BigEndian.PutUint16(bye[6:], cmdDisc)
		c.nc.Write(bye)
		t.Stop()
		<-c.writing
	default:
	}
	c.fail(net.ErrClosed)
	<-c.done
	return nil
}

// read takes replies until the connection ends.
func (c *conn) read() {
	var err error
	for err == nil {
		err = c.reply()
	}
	if err == io.EOF {
		err = errors.New("the server closed it")
	}
	c.fail(err)
	c.mu.Lock()
	calls := c.calls
	c.calls = nil
	c.mu.Unlock()
	close(c.done)
	for _, q := range calls {
		q.err = c.gone()
		close(q.done)
	}
}

// finish ends a call with the error that it has, or err.
func (c *conn) finish(cookie uint64, q *call) {
	c.mu.Lock()
	delete(c.calls, cookie)
	c.mu.Unlock()
	if q.err == nil && q.cmd == cmdRead && q.filled != int64(q.n) {
		q.err = fmt.Errorf("nbd: read at %d: %w: %d bytes of %d came", q.off, ErrProtocol, q.filled, q.n)
	}
	close(q.done)
	<-c.slots
}

// reply takes one reply or one chunk of a structured reply.
func (c *conn) reply() error {
	var head [20]byte
	if _, err := io.ReadFull(c.br, head[:16]); err != nil {
		return err
	}
	cookie := binary.BigEndian.Uint64(head[8:])
	c.mu.Lock()
	q := c.calls[cookie]
	c.mu.Unlock()
	if q == nil {
		return fmt.Errorf("%w: a reply to no request", ErrProtocol)
	}
	switch binary.BigEndian.Uint32(head[:]) {
	case magicSimple:
		if c.structured && (q.cmd == cmdRead || q.cmd == cmdStatus) {
			return fmt.Errorf("%w: a simple reply to %s", ErrProtocol, opName(q.cmd))
		}
		if e := Errno(binary.BigEndian.Uint32(head[4:])); e != 0 {
			q.err = &Error{Op: opName(q.cmd), Offset: q.off, Errno: e}
		} else if q.cmd == cmdRead {
			if err := c.fill(q, q.off, int64(q.n)); err != nil {
				return err
			}
		}
		c.finish(cookie, q)
		return nil
	case magicStructured:
		if !c.structured {
			return fmt.Errorf("%w: a structured reply that was not agreed", ErrProtocol)
		}
	default:
		return fmt.Errorf("%w: this is no reply", ErrProtocol)
	}
	if _, err := io.ReadFull(c.br, head[16:]); err != nil {
		return err
	}
	flags, kind, n := binary.BigEndian.Uint16(head[4:]), binary.BigEndian.Uint16(head[6:]), int64(binary.BigEndian.Uint32(head[16:]))
	if err := c.chunk(q, kind, n); err != nil {
		return err
	}
	if flags&chunkDone != 0 {
		c.finish(cookie, q)
	}
	return nil
}

// chunk takes the n bytes of one chunk.
func (c *conn) chunk(q *call, kind uint16, n int64) error {
	wrong := fmt.Errorf("%w: a chunk of kind %d and %d bytes in the reply to %s", ErrProtocol, kind, n, opName(q.cmd))
	switch {
	case kind == chunkNone && n == 0:
		return nil
	case kind == chunkData && q.cmd == cmdRead && n > 8:
		var b [8]byte
		if _, err := io.ReadFull(c.br, b[:]); err != nil {
			return err
		}
		return c.fill(q, int64(binary.BigEndian.Uint64(b[:])), n-8)
	case kind == chunkHole && q.cmd == cmdRead && n == 12:
		var b [12]byte
		if _, err := io.ReadFull(c.br, b[:]); err != nil {
			return err
		}
		return c.hole(q, int64(binary.BigEndian.Uint64(b[:])), int64(binary.BigEndian.Uint32(b[8:])))
	case kind == chunkStatus && q.cmd == cmdStatus && n > 4 && n%8 == 4 && n <= maxStatus:
		return c.extents(q, n)
	case kind&chunkError&^1 != 0 && n >= 6 && n <= 6+maxName+8:
		b := make([]byte, n)
		if _, err := io.ReadFull(c.br, b); err != nil {
			return err
		}
		k := int(binary.BigEndian.Uint16(b[4:]))
		if 6+k > len(b) || binary.BigEndian.Uint32(b) == 0 {
			return wrong
		}
		if q.err == nil {
			q.err = &Error{Op: opName(q.cmd), Offset: q.off, Errno: Errno(binary.BigEndian.Uint32(b)), Message: strings.ToValidUTF8(string(b[6:6+k]), "")}
		}
		return nil
	}
	return wrong
}

// part finds the bytes of a read that [off, off+n) is, and claims the buffer. No bytes: the maker has gone.
func (q *call) part(off, n int64) ([]byte, error) {
	if off < q.off || n < 1 || off-q.off > int64(q.n)-n || q.filled+n > int64(q.n) {
		return nil, fmt.Errorf("%w: bytes that were not asked for", ErrProtocol)
	}
	q.filled += n
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.left {
		return nil, nil
	}
	q.busy = true
	return q.p[off-q.off:][:n], nil
}

func (q *call) release() {
	q.mu.Lock()
	q.busy = false
	if q.left {
		close(q.freed)
	}
	q.mu.Unlock()
}

func (c *conn) fill(q *call, off, n int64) error {
	p, err := q.part(off, n)
	if err != nil {
		return err
	}
	if p == nil {
		_, err = c.br.Discard(int(n))
		return err
	}
	_, err = io.ReadFull(c.br, p)
	q.release()
	return err
}

func (c *conn) hole(q *call, off, n int64) error {
	p, err := q.part(off, n)
	if p != nil {
		clear(p)
		q.release()
	}
	return err
}

// extents takes a chunk of block status.
func (c *conn) extents(q *call, n int64) error {
	b := make([]byte, n)
	if _, err := io.ReadFull(c.br, b); err != nil {
		return err
	}
	name, ok := c.contexts[binary.BigEndian.Uint32(b)]
	if !ok || len(q.status[name]) > 0 {
		return fmt.Errorf("%w: block status of a context that was not agreed, or twice", ErrProtocol)
	}
	off := q.off
	var xs []Extent
	for b = b[4:]; len(b) > 0; b = b[8:] {
		l := int64(binary.BigEndian.Uint32(b))
		if l == 0 {
			return fmt.Errorf("%w: an extent without length", ErrProtocol)
		}
		// The last may reach past what was asked for.
		xs = appendExtent(xs, Extent{off, l, binary.BigEndian.Uint32(b[4:])})
		off += l
	}
	q.status[name] = xs
	return nil
}
