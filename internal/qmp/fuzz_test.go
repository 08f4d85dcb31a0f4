package qmp

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// script is a connection from which QEMU's side is read as given; what is
// written vanishes.
type script struct{ io.Reader }

func (script) Write(b []byte) (int, error)      { return len(b), nil }
func (script) Close() error                     { return nil }
func (script) LocalAddr() net.Addr              { return nil }
func (script) RemoteAddr() net.Addr             { return nil }
func (script) SetDeadline(time.Time) error      { return nil }
func (script) SetReadDeadline(time.Time) error  { return nil }
func (script) SetWriteDeadline(time.Time) error { return nil }

// FuzzReader feeds a client anything: it must end, without a panic, and never
// hold more than it may.
func FuzzReader(f *testing.F) {
	caps := hello + "\n{\"return\": {}, \"id\": 1}\n"
	for _, s := range []string{
		"", "\n\n", hello, caps,
		caps + `{"return": {"running": true, "status": "running"}, "id": 2}` + "\n",
		caps + `{"return": 7, "id": 2}` + "\n",
		caps + `{"return": null, "id": 2}{"return": {}, "id": 2}` + "\n",
		caps + `{"error": {"class": "GenericError", "desc": "no"}, "id": 2}` + "\n",
		caps + `{"error": null, "id": 2}` + "\n",
		caps + `{"return": {}, "id": -2}` + "\n" + `{"return": {}, "id": 18446744073709551616}` + "\n",
		caps + `{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}, "timestamp": {"seconds": -1, "microseconds": 9223372036854775807}}` + "\n",
		caps + `{"event": "X-LAGGED"}` + "\n" + strings.Repeat(`{"event": "STOP"}`+"\n", 9),
		caps + strings.Repeat("[", 11_000) + "\n",
		caps + `{"event": "` + strings.Repeat("A", 5000) + `"}` + "\n",
		`{"QMP": null}` + "\n", `{"QMP": {"version": {"qemu": {"major": 1e99}}}}` + "\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 4096
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		c, err := New(ctx, script{bytes.NewReader(b)}, Options{MaxMessage: limit})
		if err != nil {
			return
		}
		sub := c.Subscribe(2)
		if s, err := c.QueryStatus(ctx); err != nil && s.Running && ctx.Err() != nil {
			t.Fatalf("a command hangs on a dead connection: %v", err)
		}
		<-c.Done()
		if c.Err() == nil {
			t.Fatal("ended without a reason")
		}
		for e := range sub.C {
			if len(e.Name)+len(e.Data) > limit {
				t.Fatalf("event of %d bytes", len(e.Data))
			}
			var d ShutdownData
			_ = e.Decode(&d)
		}
		if ctx.Err() != nil {
			t.Fatal("took too long")
		}
		if cap(c.in.buf) > 2*limit+32<<10 {
			t.Fatalf("buffer of %d bytes", cap(c.in.buf))
		}
	})
}

// FuzzSchema: a schema of any shape can be asked without panic or endless walk.
func FuzzSchema(f *testing.F) {
	f.Add([]byte(`[{"name":"c","meta-type":"command","arg-type":"1"},{"name":"1","meta-type":"object","members":[{"name":"a","type":"1"},{"name":"b","type":"[1]"}],"variants":[{"case":"x","type":"1"}]},{"name":"[1]","meta-type":"array","element-type":"[1]"}]`), "a")
	f.Add([]byte(`[null]`), "")
	f.Fuzz(func(t *testing.T, b []byte, arg string) {
		s, err := ParseSchema(b)
		if err != nil {
			return
		}
		for name := range s.commands {
			if s.HasArg(name, arg, arg, arg) && !s.HasArg(name, arg) {
				t.Fatalf("%s has %s.%s.%s but not %s", name, arg, arg, arg, arg)
			}
			s.HasValue(name, "v", arg)
		}
		if s.HasArg("no such command", arg) && s.commands["no such command"] == nil {
			t.Fatal("argument of a command that is not there")
		}
	})
}
