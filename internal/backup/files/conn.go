package files

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"drover/internal/clock"
	"drover/internal/osimage/helperinit/wire"
)

// Errors that callers branch on.
var (
	ErrNotFound = errors.New("not found")
	// ErrWrongType: a directory where a file was expected, or the other way round.
	ErrWrongType = errors.New("of another type")
	// ErrDamaged: the file system is damaged, or the helper died of it.
	ErrDamaged = errors.New("the file system is damaged")
	// ErrUnsupported: encrypted, or nothing that the helper can read.
	ErrUnsupported = errors.New("cannot be read by the helper")
	// ErrHelper: the helper died, fell silent or spoke nonsense. The next call starts another.
	ErrHelper = errors.New("the helper failed")
)

// conn is one port of a helper, with one request at a time.
type conn struct {
	nc    net.Conn
	clock clock.Clock
	r     *bufio.Reader
	buf   []byte
	last  uint32

	mu sync.Mutex // held while a frame is written
}

func newConn(nc net.Conn, c clock.Clock) *conn {
	return &conn{nc: nc, clock: c, r: bufio.NewReaderSize(nc, 256<<10)}
}

func unexpected(f wire.Frame) error {
	return fmt.Errorf("%w: a frame of type %d where none belongs", wire.ErrFormat, f.Type)
}

// cancelWait is how long the helper may take to end a cancelled request.
const cancelWait = 15 * time.Second

func (c *conn) write(t wire.Type, id uint32, payload []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.nc.SetWriteDeadline(c.clock.Now().Add(cancelWait)); err != nil {
		return err
	}
	_, err := c.nc.Write(wire.AppendFrame(nil, wire.Frame{Type: t, Request: id, Payload: payload}))
	return err
}

// call makes a request and gives each reply to each, whose payload is valid during the call. An error of each, or the end of ctx, cancels it. Errors
// that are ErrHelper mean that the connection is of no use any more.
func (c *conn) call(ctx context.Context, t wire.Type, payload []byte, stall time.Duration, each func(wire.Frame) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(payload) > wire.MaxPayload {
		return fmt.Errorf("a request of %d bytes; ask for fewer paths", len(payload))
	}
	c.last++
	id := c.last
	if err := c.write(t, id, payload); err != nil {
		return fmt.Errorf("%w: %w", ErrHelper, err)
	}
	cancelled := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(cancelled)
		// A failure shows in the read.
		_ = c.write(wire.TypeCancel, id, nil)
		c.nc.SetReadDeadline(c.clock.Now().Add(cancelWait))
	})
	err := c.replies(ctx, id, stall, each)
	if !stop() {
		<-cancelled
	}
	if ctx.Err() != nil && err != nil && !errors.Is(err, ErrHelper) {
		return ctx.Err()
	}
	return err
}

func (c *conn) replies(ctx context.Context, id uint32, stall time.Duration, each func(wire.Frame) error) error {
	var failed error
	for {
		wait := stall
		if failed != nil || ctx.Err() != nil {
			wait = min(wait, cancelWait)
		}
		if err := c.nc.SetReadDeadline(c.clock.Now().Add(wait)); err != nil {
			return fmt.Errorf("%w: %w", ErrHelper, err)
		}
		f, err := wire.ReadFrame(c.r, c.buf)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrHelper, err)
		}
		c.buf = f.Payload[:0]
		if f.Request != id {
			return fmt.Errorf("%w: %w: an answer to request %d in %d", ErrHelper, wire.ErrFormat, f.Request, id)
		}
		if f.Type == wire.TypeEnd {
			e, err := wire.ParseEnd(f.Payload)
			if err != nil {
				return fmt.Errorf("%w: %w", ErrHelper, err)
			}
			if failed != nil {
				return failed
			}
			return endError(e)
		}
		if failed == nil {
			failed = ctx.Err() // the cancel is on its way
		}
		if failed != nil {
			continue
		}
		if failed = each(f); failed != nil {
			if errors.Is(failed, wire.ErrFormat) {
				return fmt.Errorf("%w: %w", ErrHelper, failed)
			}
			if err := c.write(wire.TypeCancel, id, nil); err != nil {
				return fmt.Errorf("%w: %w", ErrHelper, err)
			}
		}
	}
}

func endError(e wire.End) error {
	base := map[wire.Code]error{wire.NotFound: ErrNotFound, wire.WrongType: ErrWrongType, wire.Damaged: ErrDamaged, wire.Unsupported: ErrUnsupported,
		wire.Cancelled: context.Canceled}[e.Code]
	switch {
	case e.Code == wire.OK:
		return nil
	case base != nil:
		return fmt.Errorf("%w: %s", base, printable(e.Message, 500))
	}
	return fmt.Errorf("the helper says: %s", printable(e.Message, 500))
}
