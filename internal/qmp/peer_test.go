package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

const hello = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "x"}, "capabilities": ["oob"]}}`

// peer is the QEMU end of a connection, played by the test.
type peer struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

type request struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments"`
	ID        uint64          `json:"id"`
}

// testContext bounds everything a test waits for.
func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// pair makes a negotiated client and its peer.
func pair(t *testing.T, o Options) (*Client, *peer) {
	t.Helper()
	ours, theirs := net.Pipe()
	p := &peer{t: t, conn: theirs, in: bufio.NewReader(theirs)}
	t.Cleanup(func() { theirs.Close() })
	negotiated := make(chan struct{})
	go func() {
		defer close(negotiated)
		p.say(hello)
		r := p.hear()
		if r.Execute != "qmp_capabilities" {
			t.Errorf("first command is %q", r.Execute)
		}
		p.ok(r, `{}`)
	}()
	c, err := New(testContext(t), ours, o)
	if err != nil {
		t.Fatal(err)
	}
	<-negotiated
	t.Cleanup(func() { c.Close() })
	return c, p
}

func (p *peer) say(line string) {
	if _, err := fmt.Fprintf(p.conn, "%s\r\n", line); err != nil {
		p.t.Errorf("peer: write: %v", err)
	}
}

func (p *peer) ok(r request, value string) {
	p.say(fmt.Sprintf(`{"return": %s, "id": %d}`, value, r.ID))
}

func (p *peer) hear() request {
	var r request
	line, err := p.in.ReadString('\n')
	if err == nil {
		err = json.Unmarshal([]byte(line), &r)
	}
	if err != nil {
		p.t.Errorf("peer: read: %v", err)
	}
	return r
}

// event says an event numbered n.
func (p *peer) event(name string, n int) {
	p.say(fmt.Sprintf(`{"timestamp": {"seconds": 1700000000, "microseconds": 5}, "event": %q, "data": {"n": %d}}`, name, n))
}

// async runs an Execute and delivers its error.
func async(ctx context.Context, c *Client, command string, out any) <-chan error {
	ch := make(chan error, 1)
	go func() { ch <- c.Execute(ctx, command, nil, out) }()
	return ch
}

func long(n int) string { return strings.Repeat("x", n) }
