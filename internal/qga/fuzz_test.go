package qga

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"testing"
	"time"
	"unicode/utf8"
)

// script is a connection from which the agent's side is read as given.
type script struct{ io.Reader }

func (script) Write(b []byte) (int, error)      { return len(b), nil }
func (script) Close() error                     { return nil }
func (script) LocalAddr() net.Addr              { return nil }
func (script) RemoteAddr() net.Addr             { return nil }
func (script) SetDeadline(time.Time) error      { return nil }
func (script) SetReadDeadline(time.Time) error  { return nil }
func (script) SetWriteDeadline(time.Time) error { return nil }

// FuzzReply: after the sync, anything may come as the answer to any command.
func FuzzReply(f *testing.F) {
	for _, s := range []string{
		"", "\n", "{}\n", `{"return": {}}` + "\n", `{"return": null}` + "\n", `{"error": null}` + "\n",
		`{"error": {"class": "GenericError", "desc": "\u001b"}}` + "\n", compact + "\n",
		`{"return": {"pid": 1}}` + "\n", `{"return": {"exited": true, "exitcode": -1, "out-data": "QUJD"}}` + "\n",
		`{"return": {"buf-b64": "QUJD", "count": 3, "eof": true}}` + "\n", "\xff{\"return\": 1}\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		fresh := func() *Client {
			c := New(script{bytes.NewReader(b)}, Options{})
			c.synced = true
			return c
		}
		if list, err := fresh().NetworkInterfaces(ctx); err == nil {
			for _, i := range list {
				if !utf8.ValidString(i.Name) || len(i.Name) > 64 {
					t.Fatalf("name %q", i.Name)
				}
				for _, a := range i.Addrs {
					if !a.IsValid() {
						t.Fatalf("address %v", a)
					}
				}
			}
		}
		if s, err := fresh().ExecStatus(ctx, 1); err == nil && len(s.Out)+len(s.Err) > 2*maxOutput {
			t.Fatal("too much output")
		}
		if name, err := fresh().HostName(ctx); err == nil && len(name) > 253 {
			t.Fatalf("host name %q", name)
		}
		fresh().OSInfo(ctx)
		fresh().Info(ctx)
		fresh().Shutdown(ctx, Halt)
		fresh().FreezeStatus(ctx)
		file := &File{c: fresh(), handle: 1}
		if n, err := file.Read(ctx, make([]byte, 10)); err == nil && (n <= 0 || n > 10) {
			t.Fatalf("read %d", n)
		}
		c := New(script{bytes.NewReader(b)}, Options{})
		if c.Ping(ctx) == nil {
			t.Fatal("guessed the number of the sync")
		}
		if ctx.Err() != nil {
			t.Fatal("took too long")
		}
	})
}

func FuzzClean(f *testing.F) {
	f.Add("a\x1b[2J\xff\u202eé", 3)
	f.Fuzz(func(t *testing.T, s string, max int) {
		max &= 0xfff
		got := clean(s, max)
		if len(got) > max || !utf8.ValidString(got) || clean(got, max) != got {
			t.Fatalf("clean(%q, %d) = %q", s, max, got)
		}
		if b, err := json.Marshal(got); err != nil || bytes.ContainsAny(b, "\x00\x1b\n") {
			t.Fatalf("%q, %v", b, err)
		}
	})
}
