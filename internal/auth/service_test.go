package auth

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"drover/internal/clock"
)

// memory is both stores, with real compare-and-swap.
type memory struct {
	mu     sync.Mutex
	users  map[string]User
	revs   map[string]int64
	tokens map[string]Token
	touch  int
}

func (m *memory) GetUser(_ context.Context, name string) (User, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	u, ok := m.users[name]
	if !ok {
		return User{}, 0, ErrNotFound
	}
	return u, m.revs[name], nil
}

func (m *memory) UpdateUser(_ context.Context, u User, rev int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.revs[u.Name] != rev {
		return ErrConflict
	}
	m.users[u.Name] = u
	m.revs[u.Name]++
	return nil
}

func (m *memory) CreateToken(_ context.Context, t Token) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tokens[t.ID] = t
	return nil
}

func (m *memory) GetToken(_ context.Context, id string) (Token, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, ok := m.tokens[id]
	if !ok {
		return Token{}, ErrNotFound
	}
	return t, nil
}

func (m *memory) TouchToken(_ context.Context, id string, at time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t, ok := m.tokens[id]; ok {
		t.LastUsed = at
		m.tokens[id] = t
		m.touch++
	}
	return nil
}

func (m *memory) DeleteToken(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.tokens, id)
	return nil
}

func (m *memory) ListTokens(_ context.Context, user string) ([]Token, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Token
	for _, t := range m.tokens {
		if user == "" || t.User == user {
			out = append(out, t)
		}
	}
	return out, nil
}

const password = "correct horse"

var here = netip.MustParseAddr("127.0.0.1")

func newService(t *testing.T) (*Service, *memory, *bytes.Buffer) {
	t.Helper()
	m := &memory{users: map[string]User{}, revs: map[string]int64{}, tokens: map[string]Token{}}
	var log bytes.Buffer
	s := &Service{
		Clock: clock.Real(), Log: slog.New(slog.NewTextHandler(&log, nil)),
		Users: m, Tokens: m, Hasher: NewHasher(2, 8), Limiter: NewLimiter(clock.Real()),
	}
	weak := params{memory: 64, passes: 1, threads: 1, salt: []byte("saltsalt")}
	weak.key = weak.derive(password, 32)
	m.users["ann"] = User{Name: "ann", PasswordHash: weak.phc(), Roles: []Grant{{Role: RoleAdmin}}}
	m.revs["ann"] = 1
	return s, m, &log
}

func TestLoginAndSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, m, log := newService(t)
		ctx := t.Context()
		for _, try := range [][2]string{{"ann", "wrong password"}, {"nobody", password}, {"", ""}} {
			if _, _, err := s.Login(ctx, try[0], try[1], here); !errors.Is(err, ErrWrongPassword) {
				t.Errorf("log in as %q: %v", try[0], err)
			}
		}
		text, p, err := s.Login(ctx, "ann", password, here)
		if err != nil || p.Kind != KindUser || p.Name != "ann" || p.Source != "127.0.0.1" {
			t.Fatalf("log in: %+v, %v", p, err)
		}
		if !strings.Contains(m.users["ann"].PasswordHash, "m=19456") {
			t.Error("the weak hash was not brought up to date")
		}
		for _, tok := range m.tokens {
			if strings.Contains(tok.ID+string(tok.Hash), text) || tok.Expires.IsZero() {
				t.Errorf("stored %+v", tok)
			}
		}
		got, err := s.Authenticate(ctx, text, "10.9.9.9")
		if err != nil || got.Name != "ann" || got.Source != "10.9.9.9" {
			t.Fatalf("authenticate: %+v, %v", got, err)
		}
		if m.touch != 0 {
			t.Error("a use within the minute was written")
		}
		if strings.Contains(log.String(), text) || strings.Contains(log.String(), password) {
			t.Error("a secret is in the log")
		}
		// Each use moves the idle end, the last end stays.
		for range 13 {
			time.Sleep(SessionIdle - time.Second)
			if _, err := s.Authenticate(ctx, text, ""); err != nil {
				t.Fatal(err)
			}
		}
		if m.touch != 13 {
			t.Errorf("%d uses written, want 13", m.touch)
		}
		time.Sleep(SessionIdle)
		if _, err := s.Authenticate(ctx, text, ""); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("after its end: %v", err)
		}
		if n, err := s.Sweep(ctx); n != 1 || err != nil || len(m.tokens) != 0 {
			t.Errorf("sweep: %d, %v, %d left", n, err, len(m.tokens))
		}
	})
}

func TestIdleSessionEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _ := newService(t)
		text, _, err := s.Open(t.Context(), "ann", "oidc")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(SessionIdle)
		if _, err := s.Authenticate(t.Context(), text, ""); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("idle session: %v", err)
		}
		if _, _, err := s.Open(t.Context(), "nobody", "oidc"); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("session for a user who does not exist: %v", err)
		}
	})
}

func TestTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, m, _ := newService(t)
		ctx := t.Context()
		_, ann, err := s.Login(ctx, "ann", password, here)
		if err != nil {
			t.Fatal(err)
		}
		text, tok, err := s.CreateToken(ctx, ann, TokenOptions{User: "ann", Title: "ci", Scopes: []Scope{ScopeRead}, Lifetime: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		p, err := s.Authenticate(ctx, text, "")
		if err != nil || p.Kind != KindToken || p.TokenID != tok.ID || len(p.Scopes) != 1 {
			t.Fatalf("token: %+v, %v", p, err)
		}
		if _, _, err := s.CreateToken(ctx, p, TokenOptions{User: "ann", Scopes: []Scope{ScopeWrite}}); !errors.Is(err, ErrDenied) {
			t.Errorf("a read token made a write token: %v", err)
		}
		for _, o := range []TokenOptions{{User: "ann"}, {User: "ann", Scopes: []Scope{"root"}}, {User: "nobody", Scopes: []Scope{ScopeRead}}} {
			if _, _, err := s.CreateToken(ctx, ann, o); err == nil {
				t.Errorf("%+v was accepted", o)
			}
		}
		flip := text[:len(text)-2] + "aa"
		if text == flip {
			flip = text[:len(text)-2] + "ba"
		}
		for _, bad := range []string{"", "drv_", flip, strings.ToUpper(text), text + "a", text[4:], tok.ID} {
			if _, err := s.Authenticate(ctx, bad, ""); !errors.Is(err, ErrUnauthenticated) {
				t.Errorf("%q: %v", bad, err)
			}
		}
		u := m.users["ann"]
		u.Disabled = true
		m.users["ann"] = u
		if _, err := s.Authenticate(ctx, text, ""); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("disabled user: %v", err)
		}
		if _, _, err := s.Login(ctx, "ann", password, here); !errors.Is(err, ErrWrongPassword) {
			t.Errorf("disabled user logs in: %v", err)
		}
		u.Disabled = false
		m.users["ann"] = u
		time.Sleep(time.Hour)
		if _, err := s.Authenticate(ctx, text, ""); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("expired: %v", err)
		}
		ever, tok, err := s.CreateToken(ctx, ann, TokenOptions{User: "ann", Scopes: []Scope{ScopeMetrics}, Lifetime: -1})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * 365 * 24 * time.Hour)
		if _, err := s.Authenticate(ctx, ever, ""); err != nil {
			t.Errorf("token without end: %v", err)
		}
		if err := s.Revoke(ctx, tok.ID); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Authenticate(ctx, ever, ""); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("revoked: %v", err)
		}
	})
}

func TestSetPasswordLogsOutEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _ := newService(t)
		ctx := t.Context()
		old, _, err := s.Login(ctx, "ann", password, here)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if err := s.SetPassword(ctx, "ann", "another password"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Authenticate(ctx, old, ""); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("the old session: %v", err)
		}
		if _, _, err := s.Login(ctx, "ann", password, here); !errors.Is(err, ErrWrongPassword) {
			t.Errorf("the old password: %v", err)
		}
		text, _, err := s.Login(ctx, "ann", "another password", here)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Authenticate(ctx, text, ""); err != nil {
			t.Errorf("the new session: %v", err)
		}
	})
}

func TestLoginIsSlowedDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _ := newService(t)
		for range freeAttempts {
			if _, _, err := s.Login(t.Context(), "ann", "guess", here); !errors.Is(err, ErrWrongPassword) {
				t.Fatal(err)
			}
		}
		_, _, err := s.Login(t.Context(), "ann", password, here)
		if waitOf(t, err) != time.Second {
			t.Errorf("after %d guesses: %v, want a wait of 1 s", freeAttempts, err)
		}
		time.Sleep(time.Second)
		if _, _, err := s.Login(t.Context(), "ann", password, here); err != nil {
			t.Errorf("after the wait: %v", err)
		}
	})
}
