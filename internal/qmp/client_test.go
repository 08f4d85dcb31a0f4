package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestRepliesFindTheirCommandInAnyOrder(t *testing.T) {
	c, p := pair(t, Options{})
	ctx := testContext(t)
	const n = 20
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			var got string
			name := fmt.Sprintf("cmd-%d", i)
			if err := c.Execute(ctx, name, nil, &got); err != nil {
				t.Error(err)
			} else if got != name {
				t.Errorf("%s got the reply of %s", name, got)
			}
		})
	}
	var all []request
	for range n {
		all = append(all, p.hear())
	}
	for i := n - 1; i >= 0; i-- {
		p.event("STOP", i)
		p.ok(all[i], fmt.Sprintf("%q", all[i].Execute))
	}
	wg.Wait()
}

func TestLateReplyIsDropped(t *testing.T) {
	c, p := pair(t, Options{})
	ctx, cancel := context.WithCancel(testContext(t))
	first := async(ctx, c, "slow", nil)
	slow := p.hear()
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled command: %v", err)
	}
	var got string
	second := async(testContext(t), c, "quick", &got)
	quick := p.hear()
	p.ok(slow, `"slow"`)
	p.ok(slow, `"slow again"`)
	p.ok(quick, `"quick"`)
	if err := <-second; err != nil || got != "quick" {
		t.Fatalf("got %q, %v", got, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.pending) != 0 {
		t.Fatalf("%d commands are still pending", len(c.pending))
	}
}

func TestErrorIsTyped(t *testing.T) {
	c, p := pair(t, Options{})
	done := async(testContext(t), c, "device_del", nil)
	r := p.hear()
	p.say(fmt.Sprintf(`{"id": %d, "error": {"class": "DeviceNotFound", "desc": "Device 'x' not found"}}`, r.ID))
	err := <-done
	var e *Error
	if !errors.As(err, &e) || e.Command != "device_del" || e.Desc != "Device 'x' not found" || !IsClass(err, ClassDeviceNotFound) {
		t.Fatalf("got %v", err)
	}
}

func TestPeerClosesInTheMiddle(t *testing.T) {
	c, p := pair(t, Options{})
	sub := c.Subscribe(0)
	a := async(testContext(t), c, "one", nil)
	b := async(testContext(t), c, "two", nil)
	p.hear()
	p.hear()
	io.WriteString(p.conn, `{"return": {"half`)
	p.conn.Close()
	for _, ch := range []<-chan error{a, b} {
		if err := <-ch; !errors.Is(err, ErrGone) || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("got %v", err)
		}
	}
	<-c.Done()
	if err := c.Err(); !errors.Is(err, ErrGone) {
		t.Errorf("Err: %v", err)
	}
	if _, err := sub.Next(testContext(t)); !errors.Is(err, ErrGone) {
		t.Errorf("Next: %v", err)
	}
	if _, ok := <-c.Subscribe(0).C; ok {
		t.Error("a subscription to a dead connection delivers")
	}
	if err := c.Execute(testContext(t), "late", nil, nil); !errors.Is(err, ErrGone) {
		t.Errorf("command after the end: %v", err)
	}
}

func TestProtocolViolationsEndTheConnection(t *testing.T) {
	for name, line := range map[string]string{
		"no json":    `hello`,
		"array":      `[]`,
		"empty":      `{}`,
		"no id":      `{"error": {"class": "GenericError", "desc": "JSON parse error"}}`,
		"foreign id": `{"return": {}, "id": "other"}`,
		"deep":       strings.Repeat("[", 20_000),
		"long":       `{"return": "` + long(5000) + `", "id": 2}`,
	} {
		t.Run(name, func(t *testing.T) {
			c, p := pair(t, Options{MaxMessage: 4096})
			done := async(testContext(t), c, "query-status", nil)
			p.hear()
			go io.WriteString(p.conn, line+"\n")
			if err := <-done; !errors.Is(err, ErrGone) {
				t.Fatalf("got %v", err)
			}
			if name == "long" && !errors.Is(c.Err(), errTooLong) {
				t.Errorf("got %v", c.Err())
			}
		})
	}
}

func TestGreetingIsRequired(t *testing.T) {
	for name, line := range map[string]string{
		"silence": "", "other protocol": "SSH-2.0-x\n", "json": "{\"return\": {}}\n", "huge": long(100_000) + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer theirs.Close()
			go io.WriteString(theirs, line)
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			c, err := New(ctx, ours, Options{MaxMessage: 65536})
			if err == nil {
				c.Close()
				t.Fatal("accepted")
			}
			if line == "" && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestPeerThatDoesNotRead(t *testing.T) {
	c, p := pair(t, Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Execute(ctx, "stuck", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	// Nothing was written, so the connection is still good.
	done := async(testContext(t), c, "next", nil)
	r := p.hear()
	if r.Execute != "next" {
		t.Fatalf("peer heard %q", r.Execute)
	}
	p.ok(r, `{}`)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	// Cut off in the middle: nothing may follow.
	ctx, cancel = context.WithCancel(testContext(t))
	cut := async(ctx, c, "cut", nil)
	if _, err := io.ReadFull(p.in, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	// bufio may have read all of it; a second, never read command is cut for sure.
	if p.in.Buffered() > 0 {
		cancel()
		<-cut
		ctx, cancel = context.WithCancel(testContext(t))
		cut = async(ctx, c, "cut", nil)
		if _, err := io.ReadFull(p.conn, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-cut; !errors.Is(err, ErrGone) {
		t.Fatalf("cut command: %v", err)
	}
	<-c.Done()
}

func TestFilesNeedAUnixSocket(t *testing.T) {
	c, p := pair(t, Options{})
	if err := c.GetFD(testContext(t), "x", os.Stdin); !errors.Is(err, errNoFiles) {
		t.Fatalf("got %v", err)
	}
	done := async(testContext(t), c, "next", nil)
	p.ok(p.hear(), `{}`)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestUnexpectedReplyType(t *testing.T) {
	c, p := pair(t, Options{})
	var s Status
	done := async(testContext(t), c, "query-status", &s)
	p.ok(p.hear(), `["no", "object"]`)
	if err := <-done; err == nil || errors.Is(err, ErrGone) {
		t.Fatalf("got %v", err)
	}
}

// What QEMU had still to say to a client that was killed comes before the greeting of the next.
func TestLeftoversBeforeTheGreeting(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	go func() {
		io.WriteString(theirs, `{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "JOB_STATUS_CHANGE", "data": {"status": "running", "id": "x"}}`+"\n"+`{"return": {}, "id": "7"}`+"\n")
		io.WriteString(theirs, `{"QMP": {"version": {"qemu": {"micro": 1, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}`+"\n")
		in := bufio.NewScanner(theirs)
		for in.Scan() {
			var r request
			if json.Unmarshal(in.Bytes(), &r) == nil {
				fmt.Fprintf(theirs, `{"return": {}, "id": %d}`+"\n", r.ID)
			}
		}
	}()
	c, err := New(testContext(t), ours, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if v := c.Greeting().Version.QEMU.Major; v != 7 {
		t.Errorf("QEMU %d", v)
	}
}
