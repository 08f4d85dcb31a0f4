package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
)

const (
	readBuffer      = 64 << 10
	socketBuffer    = 4 << 20
	defaultInFlight = 16
	// maxStatusRange bounds one question about block status; the protocol's length is 32 bits.
	maxStatusRange = 1 << 31
)

// Options of a Client. The zero value opens the export named "", in the clear.
type Options struct {
	Export string
	// Contexts are the meta contexts to ask for. Those that the server does not have are left out: see Client.Contexts.
	Contexts []string
	// TLS, if set, is begun before the export's name is told; a server without it is refused. ServerName is the caller's.
	TLS *tls.Config
	// Connections to open at once if the server says that it can; 0 is 1.
	Connections int
	// InFlight is how many requests one connection has under way at once; 0 is 16. A call beyond waits.
	InFlight int
}

// Client is an open export. Its methods may be called concurrently.
type Client struct {
	agreed
	conns []*conn
	next  atomic.Uint32
}

// Dial opens an export at an address of package net ("unix" and a path, "tcp" and host:port). The context is for the
// handshake alone.
func Dial(ctx context.Context, network, address string, o Options) (*Client, error) {
	if len(o.Export) > maxName {
		return nil, fmt.Errorf("nbd: a name of %d bytes: the limit is %d", len(o.Export), maxName)
	}
	if o.InFlight <= 0 {
		o.InFlight = defaultInFlight
	}
	c := &Client{}
	for len(c.conns) == 0 || len(c.conns) < o.Connections && c.flags&flagMultiConn != 0 {
		x, a, err := dial(ctx, network, address, o)
		if err == nil && len(c.conns) > 0 && (a.size != c.size || a.flags != c.flags || a.structured != c.structured || len(a.contexts) != len(c.contexts)) {
			err = errors.Join(fmt.Errorf("%w: two connections find two exports", ErrProtocol), x.close())
		}
		if err != nil {
			c.Close()
			return nil, fmt.Errorf("nbd: open the export at %s: %w", address, err)
		}
		if len(c.conns) == 0 {
			c.agreed = a
		}
		c.conns = append(c.conns, x)
	}
	return c, nil
}

func dial(ctx context.Context, network, address string, o Options) (*conn, agreed, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, agreed{}, err
	}
	widen(nc)
	tc, br, a, err := handshake(ctx, nc, o)
	if err != nil {
		nc.Close()
		return nil, agreed{}, err
	}
	return newConn(tc, br, o.InFlight, a), a, nil
}

// widen makes a socket's buffers large enough that a core is not kept waiting by the other; a hint only.
func widen(nc net.Conn) {
	if s, ok := nc.(interface {
		SetReadBuffer(int) error
		SetWriteBuffer(int) error
	}); ok && nc.LocalAddr().Network() == "unix" {
		s.SetReadBuffer(socketBuffer)
		s.SetWriteBuffer(socketBuffer)
	}
}

// Size is the export's, in bytes.
func (c *Client) Size() int64 { return c.size }

// ReadOnly is set if the server takes no writes.
func (c *Client) ReadOnly() bool { return c.flags&flagReadOnly != 0 }

// Connections is how many are open.
func (c *Client) Connections() int { return len(c.conns) }

// Contexts are the meta contexts that the server agreed to, sorted.
func (c *Client) Contexts() []string {
	var out []string
	for _, name := range c.contexts {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// Err tells why the client is of no use any more; nil if it is.
func (c *Client) Err() error {
	for _, x := range c.conns {
		select {
		case <-x.done:
			return x.gone()
		default:
		}
	}
	return nil
}

// Close ends the connections. Calls under way fail.
func (c *Client) Close() error {
	var err error
	for _, x := range c.conns {
		err = errors.Join(err, x.close())
	}
	return err
}

func (c *Client) conn() *conn { return c.conns[int(c.next.Add(1))%len(c.conns)] }

func (c *Client) within(op string, off, n int64) error {
	if off < 0 || n < 0 || off > c.size || n > c.size-off {
		return fmt.Errorf("nbd: %s of %d bytes at %d: the export has %d", op, n, off, c.size)
	}
	return nil
}

// ReadAt fills p from off, or fails. Several at once are quicker than one: a request is answered in order of its bytes.
func (c *Client) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := c.within("read", off, int64(len(p))); err != nil {
		return err
	}
	for len(p) > 0 {
		if head := off % c.min; head != 0 || int64(len(p)) < c.min {
			n, err := c.readPart(ctx, p, off, head)
			if err != nil {
				return err
			}
			p, off = p[n:], off+int64(n)
			continue
		}
		n := min(int64(len(p))/c.min*c.min, c.max)
		if err := c.conn().do(ctx, &call{cmd: cmdRead, off: off, n: uint32(n), p: p[:n]}); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// readPart reads the one smallest block of the server that off is in, and copies what is asked for of it.
func (c *Client) readPart(ctx context.Context, p []byte, off, head int64) (int, error) {
	b := make([]byte, min(c.min, c.size-(off-head)))
	if err := c.conn().do(ctx, &call{cmd: cmdRead, off: off - head, n: uint32(len(b)), p: b}); err != nil {
		return 0, err
	}
	return copy(p, b[head:]), nil
}

// WriteAt writes p at off; durable only after Flush.
func (c *Client) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := c.within("write", off, int64(len(p))); err != nil {
		return err
	}
	for len(p) > 0 {
		n := min(int64(len(p)), c.max)
		if err := c.conn().do(ctx, &call{cmd: cmdWrite, off: off, n: uint32(n), out: p[:n]}); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// Zero makes [off, off+n) zeros. With punch the server may give the space free.
func (c *Client) Zero(ctx context.Context, off, n int64, punch bool) error {
	var flags uint16
	if !punch {
		flags = cmdFlagNoHole
	}
	return c.ranged(ctx, cmdZeroes, flags, flagZeroes, off, n)
}

// Trim tells the server that nobody needs the bytes of [off, off+n).
func (c *Client) Trim(ctx context.Context, off, n int64) error {
	return c.ranged(ctx, cmdTrim, 0, flagTrim, off, n)
}

func (c *Client) ranged(ctx context.Context, cmd, flags, need uint16, off, n int64) error {
	if err := c.within(opName(cmd), off, n); err != nil {
		return err
	}
	if c.flags&need == 0 {
		return &Error{Op: opName(cmd), Offset: off, Errno: ENOTSUP}
	}
	for n > 0 {
		k := min(n, maxStatusRange)
		if err := c.conn().do(ctx, &call{cmd: cmd, flags: flags, off: off, n: uint32(k)}); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// Flush makes all writes durable that were answered before.
func (c *Client) Flush(ctx context.Context) error {
	if c.flags&flagFlush == 0 {
		return nil
	}
	return c.conn().do(ctx, &call{cmd: cmdFlush})
}

// Extents tells what [off, off+n) is made of, in one of the client's meta contexts: in order, without gaps, clipped to
// the range, neighbours with the same flags joined.
func (c *Client) Extents(ctx context.Context, context string, off, n int64) ([]Extent, error) {
	all, err := c.Status(ctx, off, n, context)
	return all[context], err
}

// Status is Extents for several meta contexts at the cost of one. Without names it gives all of Contexts.
func (c *Client) Status(ctx context.Context, off, n int64, contexts ...string) (map[string][]Extent, error) {
	if err := c.within("block status", off, n); err != nil {
		return nil, err
	}
	have := c.Contexts()
	if len(contexts) == 0 {
		contexts = have
	}
	for _, name := range contexts {
		if !slices.Contains(have, name) {
			return nil, fmt.Errorf("nbd: the server has no meta context %q", name)
		}
	}
	out, at := map[string][]Extent{}, map[string]int64{}
	for _, name := range contexts {
		at[name] = off
	}
	end := off + n
	for pos := off; pos < end; {
		from := pos / c.min * c.min
		ask := min(end-from, maxStatusRange)
		ask = min((ask+c.min-1)/c.min*c.min, c.size-from)
		q := &call{cmd: cmdStatus, off: from, n: uint32(ask), status: map[string][]Extent{}}
		if err := c.conn().do(ctx, q); err != nil {
			return nil, err
		}
		// Each context may go on for another length: ask again from where the shortest ends.
		next := end
		for _, name := range contexts {
			xs := q.status[name]
			if len(xs) == 0 {
				return nil, fmt.Errorf("nbd: block status at %d: %w: nothing about %q", from, ErrProtocol, name)
			}
			for _, x := range xs {
				lo, hi := max(x.Offset, at[name]), min(x.Offset+x.Length, end)
				if lo < hi {
					out[name], at[name] = appendExtent(out[name], Extent{lo, hi - lo, x.Flags}), hi
				}
			}
			next = min(next, at[name])
		}
		if next <= pos {
			return nil, fmt.Errorf("nbd: block status at %d: %w: it does not go on", pos, ErrProtocol)
		}
		pos = next
	}
	return out, nil
}
