package host

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
)

// console is one VM's serial line: everything that the guest prints goes to a ring, from which each viewer reads at
// its own pace. It lives as long as its machine; the line comes and goes with QEMU.
type console struct {
	log *slog.Logger

	mu      sync.Mutex
	ring    *ring
	more    chan struct{} // closed, and made anew, when something was written or the console closed
	conn    net.Conn
	closed  bool
	pumping chan struct{} // closed when the reader of conn has ended
}

var errNoLine = errors.New("the VM is not running: its console takes no input")

func newConsole(path string, size int64, log *slog.Logger) (*console, error) {
	r, err := openRing(path, size)
	if err != nil {
		return nil, err
	}
	return &console{log: log, ring: r, more: make(chan struct{})}, nil
}

// connect takes over a line to QEMU and reads it until it ends. A line before it is closed.
func (c *console) connect(conn net.Conn) {
	c.disconnect()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		conn.Close()
		return
	}
	done := make(chan struct{})
	c.conn, c.pumping = conn, done
	go c.pump(conn, done)
}

func (c *console) pump(conn net.Conn, done chan struct{}) {
	defer close(done)
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			c.mu.Lock()
			if !c.closed {
				if err := c.ring.write(buf[:n]); err != nil {
					c.log.Warn("console ring not written", "err", err)
				}
				close(c.more)
				c.more = make(chan struct{})
			}
			c.mu.Unlock()
		}
		if err != nil {
			return
		}
	}
}

// disconnect closes the line and waits for its reader.
func (c *console) disconnect() {
	c.mu.Lock()
	conn, done := c.conn, c.pumping
	c.conn, c.pumping = nil, nil
	c.mu.Unlock()
	if conn != nil {
		conn.Close()
		<-done
	}
}

// drained waits until the line has ended by itself (QEMU is gone and all it said is in the ring).
func (c *console) drained(ctx context.Context) {
	c.mu.Lock()
	done := c.pumping
	c.mu.Unlock()
	if done == nil {
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

func (c *console) close() {
	c.disconnect()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.closed = true
	close(c.more)
	if err := c.ring.close(); err != nil {
		c.log.Warn("console ring not closed", "err", err)
	}
}

// Write types on the line.
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	conn := c.conn
	c.mu.Unlock()
	if conn == nil {
		return 0, errNoLine
	}
	return conn.Write(p)
}

// view sends backlog bytes of what was printed (-1: all that is kept), and with follow all that comes, until ctx ends,
// send fails, or the console closes.
func (c *console) view(ctx context.Context, backlog int64, follow bool, send func([]byte) error) error {
	c.mu.Lock()
	pos := c.ring.written
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	if backlog < 0 {
		pos = c.ring.oldest()
	} else {
		pos = max(c.ring.oldest(), pos-backlog)
	}
	c.mu.Unlock()
	buf := make([]byte, 16<<10)
	for {
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			return nil
		}
		n, next, err := c.ring.read(buf, pos)
		more := c.more
		c.mu.Unlock()
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		pos = next
		if n > 0 {
			if err := send(buf[:n]); err != nil {
				return err
			}
			continue
		}
		if !follow {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
