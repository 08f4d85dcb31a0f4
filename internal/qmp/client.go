package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync"
	"time"
)

// DefaultMaxMessage bounds one message from QEMU. query-qmp-schema is about
// 200 KB; a VM with some hundred block nodes answers a few MB.
const DefaultMaxMessage = 64 << 20

// ErrGone is wrapped by every error that comes from a connection that has
// ended, whoever ended it.
var ErrGone = errors.New("connection to QEMU is gone")

// Options of a Client. The zero value is ready to use.
type Options struct {
	// MaxMessage bounds one message from QEMU, in bytes; 0 is
	// DefaultMaxMessage. A longer one ends the connection.
	MaxMessage int
	// Log gets what the protocol calls wrong but not fatal; nil discards it.
	Log *slog.Logger
}

// Client is one QMP connection. All its methods may be called concurrently.
type Client struct {
	conn     net.Conn
	log      *slog.Logger
	in       *lineReader
	greeting Greeting

	// writing holds one token while a command is being written.
	writing chan struct{}
	// done is closed by the reader when it ends; err is set before.
	done chan struct{}

	mu      sync.Mutex // guards the fields below
	err     error      // why the connection ended; set once
	nextID  uint64
	pending map[uint64]*call

	subMu sync.Mutex // guards the fields below
	subs  map[*Subscription]struct{}
	ended bool // no subscriber may be added any more
}

// call is one command that waits for its reply.
type call struct {
	// reply has room for the one reply, so that the reader never waits.
	reply chan message
}

// Dial connects to the monitor's Unix socket and negotiates. QEMU serves one
// client at a time on a socket: a second one waits for the greeting until ctx
// ends.
func Dial(ctx context.Context, path string, o Options) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("qmp: connect to %s: %w", path, err)
	}
	return New(ctx, conn, o)
}

// New negotiates over conn, which it owns from here on, also when it fails.
// File descriptors can be passed only if conn is a *net.UnixConn.
func New(ctx context.Context, conn net.Conn, o Options) (*Client, error) {
	if o.MaxMessage <= 0 {
		o.MaxMessage = DefaultMaxMessage
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{
		conn:    conn,
		log:     o.Log,
		in:      newLineReader(conn, o.MaxMessage),
		writing: make(chan struct{}, 1),
		done:    make(chan struct{}),
		pending: map[uint64]*call{},
		subs:    map[*Subscription]struct{}{},
	}
	if err := c.greet(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	go c.read()
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		c.Close()
		return nil, fmt.Errorf("qmp: negotiate: %w", err)
	}
	return c, nil
}

// leftovers is how many messages may come before the greeting: what QEMU had still to say to a client that was killed is sent to the next one.
const leftovers = 64

// greet reads QEMU's first message.
func (c *Client) greet(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("qmp: greeting: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { c.conn.SetReadDeadline(time.Unix(1, 0)) })
	m, err := c.firstMessage()
	if !stop() && err == nil {
		// The deadline may be set at any moment now and would hit the reader.
		err = ctx.Err()
	}
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("qmp: no greeting from QEMU; another client may hold this monitor: %w", ctx.Err())
		}
		return err
	}
	c.greeting = *m.QMP
	return nil
}

func (c *Client) firstMessage() (m message, err error) {
	for range leftovers {
		line, err := c.in.next()
		if err != nil {
			return m, fmt.Errorf("qmp: read greeting: %w", err)
		}
		m = message{}
		if err := json.Unmarshal(line, &m); err != nil {
			return m, fmt.Errorf("qmp: greeting is not JSON: %w", err)
		}
		if m.QMP != nil {
			return m, nil
		}
		if m.Event == "" && m.Return == nil && m.Error == nil {
			break
		}
	}
	return m, errors.New("qmp: peer does not greet as a QMP monitor; is this another socket?")
}

// Greeting is what QEMU said of itself when the connection was made.
func (c *Client) Greeting() Greeting { return c.greeting }

// Done is closed when the connection has ended, for whatever reason.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err is nil until Done is closed, and then says why; it wraps ErrGone.
func (c *Client) Err() error {
	select {
	case <-c.done:
	default:
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection, waits for the reader and closes every
// Subscription. QEMU itself runs on.
func (c *Client) Close() error {
	c.fail(fmt.Errorf("qmp: %w: closed here", ErrGone))
	<-c.done
	return nil
}

// fail notes why the connection ends and makes the reader notice.
func (c *Client) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.mu.Unlock()
	c.conn.Close()
}

// Execute runs one command and decodes its return value into out, if out is not
// nil. args is marshalled to a JSON object; nil sends none. files are passed
// along (SCM_RIGHTS); they stay the caller's and may be closed afterwards.
//
// The error is a *Error when QEMU refused the command, wraps ErrGone when the
// connection ended, or ctx's error when ctx ended first. In the last two cases
// the command may have been carried out all the same.
func (c *Client) Execute(ctx context.Context, command string, args, out any, files ...*os.File) error {
	id, call, err := c.register()
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	defer c.unregister(id)
	line, err := encode(command, args, id)
	if err != nil {
		return err
	}
	if err := c.write(ctx, command, line, files); err != nil {
		return err
	}
	var m message
	select {
	case m = <-call.reply:
	case <-ctx.Done():
		return fmt.Errorf("qmp: %s: no reply yet, it may still take effect: %w", command, ctx.Err())
	case <-c.done:
		// The reply may have come just before the end.
		select {
		case m = <-call.reply:
		default:
			return fmt.Errorf("%s: %w", command, c.Err())
		}
	}
	if m.Error != nil {
		m.Error.Command = command
		return m.Error
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, out); err != nil {
		return fmt.Errorf("qmp: %s: unexpected reply: %w", command, err)
	}
	return nil
}

func (c *Client) register() (uint64, *call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, nil, c.err
	}
	c.nextID++
	ca := &call{reply: make(chan message, 1)}
	c.pending[c.nextID] = ca
	return c.nextID, ca, nil
}

func (c *Client) unregister(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
}

// read is the only reader of the connection; it ends when the connection does.
func (c *Client) read() {
	var err error
	for err == nil {
		var line []byte
		if line, err = c.in.next(); err == nil {
			err = c.dispatch(line)
		}
	}
	c.fail(fmt.Errorf("qmp: %w: %w", ErrGone, err))
	close(c.done)
	c.endSubscriptions()
}

// dispatch routes one message. Its error ends the connection.
func (c *Client) dispatch(line []byte) error {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return fmt.Errorf("message is not a QMP object: %w", err)
	}
	switch {
	case m.Event != "":
		c.publish(m.event(), len(line))
		return nil
	case m.Return == nil && m.Error == nil:
		return errors.New("message is neither reply nor event")
	case m.ID == nil:
		// QEMU answers without an id what it could not parse: the stream is broken,
		// and some command would wait for ever.
		return errors.New("reply without an id")
	}
	id, err := strconv.ParseUint(string(m.ID), 10, 64)
	if err != nil {
		return errors.New("reply with an id that was never given")
	}
	c.mu.Lock()
	ca := c.pending[id]
	delete(c.pending, id)
	c.mu.Unlock()
	if ca == nil {
		c.log.Debug("qmp: reply that nobody waits for", "id", id)
		return nil
	}
	ca.reply <- m // has room: a call leaves the map with its first reply
	return nil
}
