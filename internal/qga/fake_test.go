package qga

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// brief is a deadline for agents that never answer.
func brief(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

type heard struct {
	Execute   string `json:"execute"`
	Arguments struct {
		ID   int64  `json:"id"`
		Mode string `json:"mode"`
	} `json:"arguments"`
	Raw string `json:"-"`
}

// fake is an agent that answers syncs properly and other commands by answer,
// whose result is written as it is. nil answers nothing.
func fake(t *testing.T, answer func(heard) []byte) *Client {
	ours, theirs := net.Pipe()
	c := New(ours, Options{})
	var wg sync.WaitGroup
	wg.Go(func() {
		defer theirs.Close()
		in := bufio.NewReader(theirs)
		for {
			line, err := in.ReadBytes('\n')
			if err != nil {
				return
			}
			line = bytes.TrimPrefix(line, []byte{0xff})
			var r heard
			if err := json.Unmarshal(line, &r); err != nil {
				t.Errorf("agent heard %q: %v", line, err)
				return
			}
			r.Raw = string(line)
			if r.Execute == "guest-sync-delimited" {
				_, err = fmt.Fprintf(theirs, "\xff{\"return\": %d}\n", r.Arguments.ID)
			} else {
				b := answer(r)
				if b == nil {
					continue
				}
				_, err = theirs.Write(b)
			}
			if err != nil {
				return
			}
		}
	})
	t.Cleanup(func() { c.Close(); theirs.Close(); wg.Wait() })
	return c
}

func always(s string) func(heard) []byte { return func(heard) []byte { return []byte(s + "\n") } }

func TestLateAnswerIsNotTakenForAnother(t *testing.T) {
	// The first command's answer comes just before the answer of the second.
	first := true
	c := fake(t, func(r heard) []byte {
		if first {
			first = false
			return nil
		}
		return []byte(`{"return": {"host-name": "right"}}` + "\n")
	})
	if _, err := c.HostName(brief(t)); !errors.Is(err, ErrSilent) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	if name, err := c.HostName(testContext(t)); err != nil || name != "right" {
		t.Fatalf("got %q, %v", name, err)
	}
}

// raw is a connection whose other end the test plays itself.
func raw(t *testing.T) (*Client, net.Conn, *bufio.Reader) {
	ours, theirs := net.Pipe()
	c := New(ours, Options{})
	t.Cleanup(func() { c.Close(); theirs.Close() })
	return c, theirs, bufio.NewReader(theirs)
}

func hear(t *testing.T, in *bufio.Reader) heard {
	t.Helper()
	line, err := in.ReadBytes('\n')
	var r heard
	if err = errors.Join(err, json.Unmarshal(bytes.TrimPrefix(line, []byte{0xff}), &r)); err != nil {
		t.Fatalf("agent heard %q: %v", line, err)
	}
	return r
}

func TestSyncSkipsWhatCameBefore(t *testing.T) {
	c, agent, in := raw(t)
	got := make(chan error, 1)
	go func() { got <- c.Ping(testContext(t)) }()
	id := hear(t, in).Arguments.ID
	for _, s := range []string{
		`{"return": {}}` + "\n",                       // late
		`{"error": {"class": "GenericError"}}` + "\n", // late
		strings.Repeat("x", 100_000),
		"\xff{\"return\": 1}\n", // an earlier sync
		"\xff" + strings.Repeat("y", 10_000) + "\n",
		"\xff{\"retu", // restarted here
		fmt.Sprintf("\xff{\"return\": %d}\n", id),
	} {
		io.WriteString(agent, s)
	}
	if r := hear(t, in); r.Execute != "guest-ping" {
		t.Fatalf("heard %q", r.Execute)
	}
	io.WriteString(agent, `{"return": {}}`+"\n")
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}

func TestUnaskedAnswer(t *testing.T) {
	n := 0
	c := fake(t, func(r heard) []byte {
		n++
		return fmt.Appendf(nil, "{\"return\": {\"host-name\": \"%d\"}}\n{\"return\": {\"host-name\": \"forged\"}}\n", n)
	})
	for want := 1; want <= 3; want++ {
		name, err := c.HostName(testContext(t))
		if err != nil || name != fmt.Sprint(want) {
			t.Fatalf("got %q, %v", name, err)
		}
	}
}

func TestMisbehaviour(t *testing.T) {
	for name, c := range map[string]struct {
		answer string
		want   error
	}{
		"no json":        {"hello\n", ErrProtocol},
		"neither":        {"{}\n", ErrProtocol},
		"null":           {"null\n", ErrProtocol},
		"wrong type":     {`{"return": [1]}` + "\n", ErrProtocol},
		"deep":           {strings.Repeat("[", 20_000) + "\n", ErrProtocol},
		"endless":        {strings.Repeat("x", maxReply+100_000), ErrTooLong},
		"half an answer": {`{"return": {"host-na`, ErrSilent},
	} {
		t.Run(name, func(t *testing.T) {
			bad := true
			cl := fake(t, func(heard) []byte {
				if bad {
					return []byte(c.answer)
				}
				return []byte("{\"return\": {\"host-name\": \"ok\"}}\n")
			})
			ctx := testContext(t)
			if c.want == ErrSilent {
				ctx = brief(t)
			}
			if _, err := cl.HostName(ctx); !errors.Is(err, c.want) {
				t.Fatalf("got %v", err)
			}
			bad = false
			if name == "endless" {
				return // the fake is still writing; the next sync would have to skip it
			}
			if n, err := cl.HostName(testContext(t)); err != nil || n != "ok" {
				t.Fatalf("afterwards: %q, %v", n, err)
			}
		})
	}
}

func TestEndlessGarbageEndsAtTheDeadline(t *testing.T) {
	c, agent, in := raw(t)
	go func() {
		in.ReadBytes('\n')
		for {
			if _, err := agent.Write(bytes.Repeat([]byte("z"), 4096)); err != nil {
				return
			}
		}
	}()
	if err := c.Ping(brief(t)); !errors.Is(err, ErrSilent) && !errors.Is(err, ErrTooLong) {
		t.Fatalf("got %v", err)
	}
}

func TestNobodyReads(t *testing.T) {
	c, _, _ := raw(t)
	if err := c.Ping(brief(t)); !errors.Is(err, ErrSilent) {
		t.Fatalf("got %v", err)
	}
}

func TestPortGone(t *testing.T) {
	c, agent, in := raw(t)
	go func() { in.ReadBytes('\n'); agent.Close() }()
	for range 2 {
		if err := c.Ping(testContext(t)); !errors.Is(err, ErrGone) {
			t.Fatalf("got %v", err)
		}
	}
}

func TestOneAtATime(t *testing.T) {
	c := fake(t, func(r heard) []byte {
		switch r.Execute {
		case "guest-ping":
			return []byte("{\"return\": {}}\n")
		case "guest-get-host-name":
			return []byte("{\"return\": {\"host-name\": \"h\"}}\n")
		}
		return nil
	})
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if i%2 == 0 {
				if err := c.Ping(testContext(t)); err != nil {
					t.Error(err)
				}
			} else if n, err := c.HostName(testContext(t)); err != nil || n != "h" {
				t.Errorf("%q, %v", n, err)
			}
		})
	}
	wg.Wait()
}

func TestShutdown(t *testing.T) {
	var mode string
	c := fake(t, func(r heard) []byte {
		mode = r.Arguments.Mode
		if mode == Halt {
			return []byte(`{"error": {"class": "GenericError", "desc": "no\u001b[31m way"}}` + "\n")
		}
		return nil
	})
	if err := c.Shutdown(testContext(t), PowerDown); err != nil || mode != PowerDown {
		t.Fatalf("mode %q, %v", mode, err)
	}
	var e *Error
	if err := c.Shutdown(testContext(t), Halt); !errors.As(err, &e) || e.Desc != "no[31m way" {
		t.Fatalf("got %v", err)
	}
	if err := c.Shutdown(testContext(t), Reboot); err != nil || mode != Reboot {
		t.Fatalf("after a refusal: mode %q, %v", mode, err)
	}
	// The guest is gone before it answers.
	c, agent, in := raw(t)
	go func() {
		line, _ := in.ReadBytes('\n')
		var r heard
		json.Unmarshal(line[1:], &r)
		fmt.Fprintf(agent, "\xff{\"return\": %d}\n", r.Arguments.ID)
		in.ReadBytes('\n')
		agent.Close()
	}()
	if err := c.Shutdown(testContext(t), PowerDown); err != nil {
		t.Fatalf("guest went down at once: %v", err)
	}
	if err := c.Shutdown(testContext(t), PowerDown); !errors.Is(err, ErrGone) {
		t.Fatalf("on a dead port: %v", err)
	}
}

func TestFreeze(t *testing.T) {
	frozen := false
	c := fake(t, func(r heard) []byte {
		switch r.Execute {
		case "guest-fsfreeze-status":
			return []byte(map[bool]string{false: `{"return": "thawed"}`, true: `{"return": "frozen"}`}[frozen] + "\n")
		case "guest-fsfreeze-freeze":
			frozen = true
		case "guest-fsfreeze-thaw":
			frozen = false
		default:
			return []byte(`{"error": {"class": "CommandNotFound", "desc": "disabled"}}` + "\n")
		}
		return []byte(`{"return": 3}` + "\n")
	})
	ctx := testContext(t)
	n, err := c.Freeze(ctx)
	s, err2 := c.FreezeStatus(ctx)
	if err = errors.Join(err, err2); err != nil || n != 3 || s != Frozen {
		t.Fatalf("%d, %s, %v", n, s, err)
	}
	if _, err := c.Freeze(ctx, "/data"); !IsUnsupported(err) {
		t.Errorf("freeze list: %v", err)
	}
	n, err = c.Thaw(ctx)
	s, err2 = c.FreezeStatus(ctx)
	if err = errors.Join(err, err2); err != nil || n != 3 || s != Thawed {
		t.Fatalf("%d, %s, %v", n, s, err)
	}
	if _, err := fake(t, always(`{"return": "melting"}`)).FreezeStatus(ctx); !errors.Is(err, ErrProtocol) {
		t.Errorf("got %v", err)
	}
}

func TestInterfacesAreCleaned(t *testing.T) {
	many := strings.Repeat(`{"name": "x"},`, 1000) + `{"name": "y"}`
	if got, err := fake(t, always(`{"return": [`+many+`]}`)).NetworkInterfaces(testContext(t)); err != nil || len(got) != maxInterfaces {
		t.Fatalf("%d interfaces, %v", len(got), err)
	}
	got, err := fake(t, always(compact)).NetworkInterfaces(testContext(t))
	want := []Interface{
		{Name: "e[2Jth0", MAC: "52:54:00:aa:bb:cc", Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24"), netip.MustParsePrefix("fe80::1/64")}},
		{Name: "lo"},
	}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); err != nil || d != "" {
		t.Fatalf("%v\n%s", err, d)
	}
}

const compact = `{"return": [{"name": "e\u001b[2Jth0\n", "hardware-address": "52:54:00:AA:BB:CC", "ip-addresses": [` +
	`{"ip-address": "10.0.0.1", "prefix": 24, "ip-address-type": "ipv4"}, {"ip-address": "fe80::1%evil", "prefix": 64},` +
	`{"ip-address": "10.0.0.2", "prefix": 99}, {"ip-address": "10.0.0.3", "prefix": -1}, {"ip-address": "$(reboot)", "prefix": 8}]},` +
	`{"name": "lo", "hardware-address": "zz"}]}`

func TestRequests(t *testing.T) {
	var last string
	c := fake(t, func(r heard) []byte { last = strings.TrimSpace(r.Raw); return []byte("{\"return\": {}}\n") })
	ctx := testContext(t)
	if err := c.SetTime(ctx, time.Unix(1, 5)); err != nil || last != `{"execute":"guest-set-time","arguments":{"time":1000000005}}` {
		t.Errorf("%s, %v", last, err)
	}
	if err := c.SetTime(ctx, time.Time{}); err != nil || last != `{"execute":"guest-set-time"}` {
		t.Errorf("%s, %v", last, err)
	}
	if err := c.AddAuthorizedKeys(ctx, "debian", []string{"ssh-ed25519 AAAA me"}); err != nil ||
		last != `{"execute":"guest-ssh-add-authorized-keys","arguments":{"keys":["ssh-ed25519 AAAA me"],"username":"debian"}}` {
		t.Errorf("%s, %v", last, err)
	}
	before := last
	if err := c.AddAuthorizedKeys(ctx, "debian", []string{"a\nb"}); err == nil || last != before {
		t.Errorf("a key of two lines was sent: %s, %v", last, err)
	}
}

func TestHostileFiles(t *testing.T) {
	answers := map[string]string{"guest-file-open": `{"return": 7}`, "guest-file-close": `{"return": {}}`}
	c := fake(t, func(r heard) []byte { return []byte(answers[r.Execute] + "\n") })
	ctx := testContext(t)
	for name, a := range map[string]string{
		"no base64":    `{"return": {"buf-b64": "!", "count": 1}}`,
		"nothing":      `{"return": {"buf-b64": "", "count": 0, "eof": false}}`,
		"endless file": `{"return": {"buf-b64": "QUFBQQ==", "count": 4, "eof": false}}`,
	} {
		answers["guest-file-read"] = a
		if _, err := c.ReadFile(ctx, "/x", 10); !errors.Is(err, ErrProtocol) && !errors.Is(err, ErrTooLong) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, n := range []int{0, -1, 99} {
		answers["guest-file-write"] = fmt.Sprintf(`{"return": {"count": %d}}`, n)
		if err := c.WriteFile(ctx, "/x", []byte("abc")); !errors.Is(err, ErrProtocol) {
			t.Errorf("wrote %d of 3: %v", n, err)
		}
	}
}
