package auth

import (
	"context"
	"errors"
	"strings"
	"testing"

	"golang.org/x/crypto/argon2"
)

func TestHashAndVerify(t *testing.T) {
	h := NewHasher(0, 0)
	ctx := t.Context()
	pw := GeneratePassword()
	phc, err := h.Hash(ctx, pw)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(phc, "$argon2id$v=19$m=19456,t=2,p=1$") || strings.Contains(phc, pw) {
		t.Errorf("hash %q", phc)
	}
	for _, tt := range []struct {
		name, phc, pw string
		ok            bool
	}{
		{"right", phc, pw, true},
		{"wrong", phc, pw + "x", false},
		{"empty", phc, "", false},
		{"too long", phc, strings.Repeat("a", MaxPassword+1), false},
		{"no such user", "", pw, false},
		{"no such user, empty password", "", "", false},
	} {
		ok, stale, err := h.Verify(ctx, tt.phc, tt.pw)
		if err != nil || ok != tt.ok || stale {
			t.Errorf("%s: %v, stale %v, %v; want %v", tt.name, ok, stale, err, tt.ok)
		}
	}
	again, err := h.Hash(ctx, pw)
	if err != nil || again == phc {
		t.Errorf("two hashes of one password are alike (%v)", err)
	}
	for _, bad := range []string{"", "short", strings.Repeat("x", MaxPassword+1)} {
		if _, err := h.Hash(ctx, bad); err == nil {
			t.Errorf("a password of %d bytes was taken", len(bad))
		}
	}
	weak := params{memory: 64, passes: 1, threads: 1, salt: []byte("saltsalt")}
	weak.key = weak.derive(pw, 16)
	if ok, stale, err := h.Verify(ctx, weak.phc(), pw); !ok || !stale || err != nil {
		t.Errorf("weaker hash: %v, stale %v, %v; want it right and stale", ok, stale, err)
	}
}

// The vector is from the reference implementation's test.c (argon2id, v=19,
// t=2, m=256, p=1).
func TestParsePHCKnownVector(t *testing.T) {
	p, err := parsePHC("$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4")
	if err != nil {
		t.Fatal(err)
	}
	if string(argon2.IDKey([]byte("password"), p.salt, p.passes, p.memory, p.threads, 32)) != string(p.key) {
		t.Error("the reference vector does not verify")
	}
}

func TestVerifyIsBounded(t *testing.T) {
	h := NewHasher(1, 1)
	const tail = "$c29tZXNhbHRzYWx0$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4"
	for _, head := range []string{
		"$argon2id$v=19$m=4194304,t=2,p=1",
		"$argon2id$v=19$m=65536,t=4000000,p=1",
		"$argon2id$v=19$m=65536,t=0,p=1",
		"$argon2id$v=19$m=65536,t=1,p=0",
		"$argon2id$v=19$m=65536,t=1,p=200",
		"$argon2id$v=19$m=1,t=1,p=1",
		"$argon2id$v=19$m=99999999999,t=1,p=1",
		"$argon2id$v=19$m=65536,t=1,p=1,x=1",
		"$argon2id$v=19$m=+65536,t=1,p=1",
		"$argon2i$v=19$m=65536,t=1,p=1",
		"$argon2id$v=16$m=65536,t=1,p=1",
	} {
		if _, _, err := h.Verify(t.Context(), head+tail, "x"); !errors.Is(err, ErrBadHash) {
			t.Errorf("%s: %v, want ErrBadHash", head, err)
		}
	}
}

func TestHasherLimitsConcurrency(t *testing.T) {
	h := NewHasher(1, 1)
	ctx, cancel := context.WithCancel(t.Context())
	if err := h.enter(ctx); err != nil {
		t.Fatal(err)
	}
	waiter := make(chan error)
	go func() {
		_, _, err := h.Verify(ctx, "", "x")
		waiter <- err
	}()
	// The waiter is in the queue once the count says so; then it is full.
	for h.waiting.Load() < 2 {
		select {
		case err := <-waiter:
			t.Fatalf("the waiter ran beside the holder: %v", err)
		default:
		}
	}
	if _, _, err := h.Verify(ctx, "", "x"); !errors.Is(err, ErrBusy) {
		t.Errorf("with a full queue: %v, want ErrBusy", err)
	}
	cancel()
	if err := <-waiter; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled while waiting: %v", err)
	}
	h.leave()
	if n := h.waiting.Load(); n != 0 || len(h.slots) != 0 {
		t.Errorf("%d waiting and %d running after the end", n, len(h.slots))
	}
}

func TestGeneratePassword(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		p := GeneratePassword()
		if len(p) != 23 || strings.Count(p, "-") != 3 || strings.ContainsAny(p, "ilou") {
			t.Fatalf("password %q", p)
		}
		if seen[p] {
			t.Fatalf("password %q came twice", p)
		}
		seen[p] = true
	}
}

func FuzzParsePHC(f *testing.F) {
	f.Add("$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4")
	f.Add("$argon2id$v=19$m=0256,t=2,p=1$$")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parsePHC(s)
		if err != nil {
			return
		}
		if p.memory > maxMemory || p.passes > maxPasses || p.threads > maxThreads || p.phc() != s {
			t.Errorf("accepted %q as %+v", s, p)
		}
	})
}
