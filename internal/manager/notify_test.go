package manager

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
)

func notifier(t *testing.T) (*Manager, *v1.BackupPolicy) {
	t.Helper()
	m := &Manager{cfg: Config{StateDir: t.TempDir(), Version: "test"}}
	if err := m.cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	return m, &v1.BackupPolicy{Meta: &v1.Meta{Name: "gold", Uid: "u1"}, Spec: &v1.BackupPolicySpec{}}
}

func TestWebhook(t *testing.T) {
	m, p := notifier(t)
	var got *http.Request
	var body []byte
	status := http.StatusNoContent
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r
		body, _ = io.ReadAll(r.Body)
		w.WriteHeader(status)
	}))
	defer s.Close()
	// The manager's own client doesn't reach this machine.
	if err := m.sendWebhook(t.Context(), p, s.URL, []byte("{}")); err == nil || got != nil {
		t.Fatalf("reached itself: %v", err)
	}
	m.cfg.Outbound = s.Client()
	if err := m.sendWebhook(t.Context(), p, s.URL, []byte("{}")); err != nil || got.Header.Get(signatureHeader) != "" || string(body) != "{}" {
		t.Errorf("unsigned: %v, %v, %q", err, got.Header, body)
	}
	if err := m.keepSecret(p, "s3cret"); err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, []byte("s3cret"))
	mac.Write([]byte(`{"a":1}`))
	want := "sha256=" + hex.EncodeToString(mac.Sum(nil))
	if err := m.sendWebhook(t.Context(), p, s.URL, []byte(`{"a":1}`)); err != nil || got.Header.Get(signatureHeader) != want {
		t.Errorf("signed: %v, %q", err, got.Header.Get(signatureHeader))
	}
	status = http.StatusInternalServerError
	if err := m.sendWebhook(t.Context(), p, s.URL, nil); !errors.Is(err, errNotSent) {
		t.Errorf("a server that fails: %v", err)
	}
	m.dropSecret(p)
	if s, err := m.secret(p); s != "" || err != nil {
		t.Errorf("dropped: %q, %v", s, err)
	}
	// A secret that was given and is lost: who believes signatures must not see one without.
	p.Status, got = &v1.BackupPolicyStatus{WebhookSigned: true}, nil
	if err := m.sendWebhook(t.Context(), p, s.URL, nil); !errors.Is(err, errNotSent) || got != nil {
		t.Errorf("without the secret: %v, %v", err, got)
	}
}

// mailServer takes one mail, and returns what was said to it.
func mailServer(t *testing.T) (address string, said func() string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var all strings.Builder
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		r := bufio.NewReader(c)
		say := func(s string) { _, _ = io.WriteString(c, s+"\r\n") }
		say("220 test")
		data := false
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			mu.Lock()
			all.WriteString(line)
			mu.Unlock()
			switch {
			case data && line == ".\r\n":
				data = false
				say("250 taken")
			case data:
			case strings.HasPrefix(line, "EHLO"):
				say("250 test")
			case strings.HasPrefix(line, "DATA"):
				data = true
				say("354 go on")
			case strings.HasPrefix(line, "QUIT"):
				say("221 bye")
				return
			default:
				say("250 ok")
			}
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String(), func() string { mu.Lock(); defer mu.Unlock(); return all.String() }
}

func TestMail(t *testing.T) {
	m, _ := notifier(t)
	doc := notice{Event: "run.failed", ID: "id", Policy: "gold", VMs: 3, OK: 2, Failed: 1, Faults: []fault{{"web", "is broken\r\nBcc: all@example.org\r\n.\r\nQUIT"}, {"db", strings.Repeat("x", 5000)}}}
	ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	addr, said := mailServer(t)
	m.cfg.SMTP = SMTP{Server: addr, From: "drover@example.org"}
	if err := m.sendMail(ctx, "ops@example.org", doc); err == nil || !strings.Contains(err.Error(), "TLS") || strings.Contains(said(), "DATA") {
		t.Fatalf("without TLS: %v", err)
	}
	addr, said = mailServer(t)
	m.cfg.SMTP.Server, m.cfg.SMTP.Plain = addr, true
	if err := m.sendMail(ctx, "ops@example.org", doc); err != nil {
		t.Fatal(err)
	}
	text := said()
	for _, w := range []string{"MAIL FROM:<drover@example.org>", "RCPT TO:<ops@example.org>", "Drover: backup policy gold failed for 1 of 3 VMs", "web: is broken  Bcc: all@example.org"} {
		if !strings.Contains(text, w) {
			t.Errorf("lacks %q:\n%s", w, text)
		}
	}
	for _, line := range strings.Split(text, "\r\n") {
		if len(line) > 998 || strings.HasPrefix(line, "Bcc") {
			t.Errorf("a line of %d bytes: %.40q", len(line), line)
		}
	}
}

func TestSMTPOptions(t *testing.T) {
	for _, s := range []SMTP{{From: "a@b.c"}, {Server: "mail"}, {Server: "mail:25"}, {Server: "mail:25", From: "a@b.c\r\nBcc: x@y.z"}, {Server: "mail:25", From: "a@b.c", User: "u"}} {
		if err := s.validate(); err == nil {
			t.Errorf("%+v was taken", s)
		}
	}
	if err := (&SMTP{Server: "mail:25", From: "a@b.c", User: "u", PasswordFile: "/p"}).validate(); err != nil {
		t.Error(err)
	}
}
