package qga

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// Bounds on a reply, in bytes.
const (
	maxReply     = 1 << 20
	maxExecReply = 12 << 20 // base64 of two outputs
	maxSkip      = 64 << 20 // thrown away while looking for the place in the stream
)

var (
	// ErrGone is wrapped when the connection has ended.
	ErrGone = errors.New("connection to the guest agent's port is gone")
	// ErrSilent is wrapped when the agent did not answer in time: it is not
	// running, or the guest is stuck. The context's error is wrapped too.
	ErrSilent = errors.New("the guest agent does not answer")
	// ErrTooLong is wrapped when a reply exceeds its bound.
	ErrTooLong = errors.New("the guest agent's reply is too long")
	// ErrProtocol is wrapped when the agent says what is no reply.
	ErrProtocol = errors.New("the guest agent does not keep to the protocol")
)

// Error is the agent's refusal of a command. Desc is the guest's text, cleaned.
type Error struct {
	Command, Class, Desc string
}

func (e *Error) Error() string {
	return fmt.Sprintf("qga: %s: %s (%s)", e.Command, e.Desc, e.Class)
}

// IsUnsupported reports whether err says that the agent does not have the
// command, or not at present (while frozen), or that its administrator has
// disabled it.
func IsUnsupported(err error) bool {
	var e *Error
	return errors.As(err, &e) && (e.Class == "CommandNotFound" || e.Class == "CommandDisabled")
}

// Options of a Client. The zero value is ready to use.
type Options struct {
	// Timeout is for calls whose context has no deadline; default 10 s.
	Timeout time.Duration
}

// Client is one connection to a guest agent. Its methods may be called
// concurrently and take turns.
type Client struct {
	conn    net.Conn
	timeout time.Duration

	// busy holds one token while a command runs; it guards the fields below.
	busy   chan struct{}
	in     *bufio.Reader
	synced bool  // the next bytes will be the reply to the next command
	dead   error // why nothing more can be done
}

// Dial connects to the port's Unix socket. That it succeeds says nothing about
// the agent: see Ping.
func Dial(ctx context.Context, path string, o Options) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("qga: connect to %s: %w", path, err)
	}
	return New(conn, o), nil
}

// New uses conn, which it owns from here on.
func New(conn net.Conn, o Options) *Client {
	if o.Timeout <= 0 {
		o.Timeout = 10 * time.Second
	}
	return &Client{conn: conn, timeout: o.Timeout, busy: make(chan struct{}, 1), in: bufio.NewReaderSize(conn, 4<<10)}
}

// Close ends the connection. A command that runs fails with ErrGone.
func (c *Client) Close() error { return c.conn.Close() }

// Execute runs one command and decodes what it returns into out, if out is not
// nil; args nil sends none. What it returns is the guest's: the typed methods
// clean it.
func (c *Client) Execute(ctx context.Context, command string, args, out any) error {
	return c.execute(ctx, command, args, out, maxReply)
}

func (c *Client) execute(ctx context.Context, command string, args, out any, limit int) error {
	return c.turn(ctx, command, func() error {
		if err := c.say(false, request{command, args}); err != nil {
			return err
		}
		line, err := c.line(limit)
		if err != nil {
			return err
		}
		c.synced = true
		return parseReply(command, line, out)
	})
}

// turn waits for its turn, sets the deadline, finds the place in the stream and
// runs f. f says by c.synced whether the place is still known after it.
func (c *Client) turn(ctx context.Context, command string, f func() error) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.timeout)
		defer cancel()
	}
	select {
	case c.busy <- struct{}{}:
		defer func() { <-c.busy }()
	case <-ctx.Done():
		return fmt.Errorf("qga: %s: another command is still running: %w", command, ctx.Err())
	}
	if c.dead != nil {
		return fmt.Errorf("qga: %s: %w", command, c.dead)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("qga: %s: not sent: %w", command, err)
	}
	fired := make(chan struct{})
	c.conn.SetDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() {
		c.conn.SetDeadline(time.Unix(1, 0))
		close(fired)
	})
	defer func() {
		if !stop() {
			<-fired // or it would hit the next command
		}
	}()
	if c.in.Buffered() > 0 {
		c.synced = false // it said something that nobody asked for
	}
	var err error
	if !c.synced {
		err = c.sync()
	}
	if err == nil {
		c.synced = false
		err = f()
	}
	var refused *Error
	switch {
	case err == nil, errors.As(err, &refused):
		return err
	case ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("qga: %s: %w: %w", command, ErrSilent, ctx.Err())
	case errors.Is(err, ErrTooLong), errors.Is(err, ErrProtocol):
		c.synced = false
		return fmt.Errorf("qga: %s: %w", command, err)
	}
	c.dead = fmt.Errorf("%w: %w", ErrGone, err)
	c.conn.Close()
	return fmt.Errorf("qga: %s: %w", command, c.dead)
}

type request struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
}

// say writes commands. With flush it first makes the agent drop what it has of
// an earlier, unfinished one.
func (c *Client) say(flush bool, requests ...request) error {
	var out []byte
	if flush {
		out = append(out, 0xff)
	}
	for _, r := range requests {
		b, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("%w: encode %s: %w", ErrProtocol, r.Execute, err)
		}
		out = append(append(out, b...), '\n')
	}
	_, err := c.conn.Write(out)
	return err
}

// sync finds the place in the stream: it sends a number that was never used and
// drops everything up to the answer with this number.
func (c *Client) sync() error {
	id := syncID()
	if err := c.say(true, request{"guest-sync-delimited", obj{"id": id}}); err != nil {
		return err
	}
	return c.awaitSync(id)
}

func (c *Client) awaitSync(id int64) error {
	skipped := 0
	for {
		// Answers of the command are marked by a 0xFF before them.
		part, err := c.in.ReadSlice(0xff)
		if skipped += len(part); skipped > maxSkip {
			return fmt.Errorf("%w: no end to what came before", ErrTooLong)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return err
		}
		line, err := c.line(4096)
		if errors.Is(err, ErrTooLong) {
			continue
		}
		if err != nil {
			return err
		}
		// An agent that was restarted in the middle of an answer leaves half a line.
		line = line[bytes.LastIndexByte(line, 0xff)+1:]
		var got int64
		if parseReply("guest-sync-delimited", line, &got) == nil && got == id {
			c.synced = true
			return nil
		}
	}
}

// syncID is a number that no earlier command can have used, of any client. It
// stays exact in agents that count in doubles.
func syncID() int64 {
	var b [8]byte
	rand.Read(b[:])
	return int64(binary.BigEndian.Uint64(b[:]) >> 12)
}

// line reads to the end of the line, at most limit bytes.
func (c *Client) line(limit int) ([]byte, error) {
	var buf []byte
	for {
		part, err := c.in.ReadSlice('\n')
		if len(buf)+len(part) > limit {
			return nil, fmt.Errorf("%w: over %d bytes", ErrTooLong, limit)
		}
		buf = append(buf, part...)
		switch {
		case err == nil:
			return buf[:len(buf)-1], nil
		case errors.Is(err, io.EOF) && len(buf) > 0:
			return nil, io.ErrUnexpectedEOF
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}

// parseReply decodes one reply line.
func parseReply(command string, line []byte, out any) error {
	var m struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Class string `json:"class"`
			Desc  string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return fmt.Errorf("%w: reply is not JSON: %w", ErrProtocol, err)
	}
	if m.Error != nil {
		return &Error{Command: command, Class: clean(m.Error.Class, 64), Desc: clean(m.Error.Desc, 1000)}
	}
	if m.Return == nil {
		return fmt.Errorf("%w: neither a value nor an error", ErrProtocol)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, out); err != nil {
		return fmt.Errorf("%w: unexpected value: %w", ErrProtocol, err)
	}
	return nil
}
