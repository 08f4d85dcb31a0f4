package pki

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"drover/internal/clock"
)

// memJoins is a JoinStore in memory, with real compare-and-swap.
type memJoins struct {
	mu   sync.Mutex
	recs map[string]JoinRecord
	revs map[string]int64
}

func newMemJoins() *memJoins {
	return &memJoins{recs: map[string]JoinRecord{}, revs: map[string]int64{}}
}

func (m *memJoins) CreateJoin(_ context.Context, r JoinRecord) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.recs[r.ID]; ok {
		return ErrJoinConflict
	}
	m.recs[r.ID], m.revs[r.ID] = r, 1
	return nil
}

func (m *memJoins) GetJoin(_ context.Context, id string) (JoinRecord, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.recs[id]; !ok {
		return JoinRecord{}, 0, ErrJoinNotFound
	}
	return m.recs[id], m.revs[id], nil
}

func (m *memJoins) UpdateJoin(_ context.Context, r JoinRecord, rev int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.revs[r.ID] != rev {
		return fmt.Errorf("revision %d: %w", rev, ErrJoinConflict)
	}
	m.recs[r.ID] = r
	m.revs[r.ID]++
	return nil
}

func TestJoinTokenRoundTrip(t *testing.T) {
	ca := openCA(t)
	addrs := []string{"10.0.0.1:8443", "[fd00::1]:8443", "mgr.example.org:443"}
	tok, err := NewJoinToken(ca.Fingerprint(), addrs)
	if err != nil {
		t.Fatal(err)
	}
	text := tok.Text()
	back, err := ParseJoinToken(" " + text + "\n")
	if err != nil {
		t.Fatal(err)
	}
	if back.ID != tok.ID || back.CA != tok.CA || back.secret != tok.secret || strings.Join(back.Addresses, " ") != strings.Join(addrs, " ") {
		t.Errorf("parsed %+v, want %+v", back, tok)
	}
	for i := range text {
		c := byte('a')
		if text[i] == c {
			c = 'b'
		}
		if _, err := ParseJoinToken(text[:i] + string(c) + text[i+1:]); err == nil {
			t.Fatalf("a token with character %d mistyped was accepted", i)
		}
	}
	secret := joinCoding.EncodeToString(tok.secret[:])
	if s := fmt.Sprint(tok) + fmt.Sprintf("%v %s", tok, tok) + tok.LogValue().String(); strings.Contains(s, secret[:20]) || strings.Contains(s, joinPrefix) {
		t.Error("printing a token shows its secret")
	}
	for _, bad := range []string{"", "host", "host:0", "host:99999", ":80", "a b:80", "-x:80", strings.Repeat("a.", 200) + "a:80"} {
		if _, err := NewJoinToken(ca.Fingerprint(), []string{bad}); err == nil {
			t.Errorf("address %q was accepted", bad)
		}
	}
}

func TestRedeem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, store := openCA(t), newMemJoins()
		joins := &Joins{Clock: clock.Real(), Store: store, CA: ca.Fingerprint()}
		ctx := t.Context()
		tok, rec, err := joins.Create(ctx, JoinOptions{Addresses: []string{"127.0.0.1:1"}, Site: "sj"})
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(fmt.Sprint(rec), string(tok.secret[:])) {
			t.Error("the record holds the secret")
		}
		// Many hosts at once: one gets in.
		var wg sync.WaitGroup
		var mu sync.Mutex
		var winner JoinRecord
		won, used := 0, 0
		for i := range 16 {
			wg.Go(func() {
				key, _ := NewKey()
				r, err := joins.Redeem(ctx, tok.Text(), key.Public(), fmt.Sprintf("h%d", i), fmt.Sprintf("u%d", i))
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					won++
					winner = r
				case errors.Is(err, ErrJoinUsed):
					used++
				default:
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if won != 1 || used != 15 || winner.Claim == nil || winner.Site != "sj" {
			t.Fatalf("%d hosts got in, %d were refused, record %+v", won, used, winner)
		}
		// The same key again, as after a lost answer: the same claim.
		tok2, _, err := joins.Create(ctx, JoinOptions{Addresses: []string{"127.0.0.1:1"}, Name: "fixed", Lifetime: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		key, _ := NewKey()
		one, err := joins.Redeem(ctx, tok2.Text(), key.Public(), "mine", "u1")
		if err != nil || one.Claim.Name != "fixed" {
			t.Fatalf("%+v, %v: the token's name must count", one.Claim, err)
		}
		two, err := joins.Redeem(ctx, tok2.Text(), key.Public(), "mine", "u2")
		if err != nil || two.Claim.UID != "u1" {
			t.Errorf("again: %+v, %v, want the first claim", two.Claim, err)
		}
		<-time.After(time.Minute)
		if _, err := joins.Redeem(ctx, tok2.Text(), key.Public(), "mine", "u1"); !errors.Is(err, ErrJoinExpired) {
			t.Errorf("after its end: %v", err)
		}
		// Unknown, and known with a wrong secret: the same answer.
		forged := tok
		forged.secret[0] ^= 1
		foreign, _ := NewJoinToken(ca.Fingerprint(), []string{"127.0.0.1:1"})
		for _, f := range []JoinToken{forged, foreign} {
			if _, err := joins.Redeem(ctx, f.Text(), key.Public(), "x", "y"); !errors.Is(err, ErrJoinRefused) {
				t.Errorf("forged token: %v", err)
			}
		}
	})
}

func FuzzParseJoinToken(f *testing.F) {
	tok, err := NewJoinToken(Fingerprint{1, 2}, []string{"127.0.0.1:8443", "a.example:1"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(tok.Text())
	f.Add(joinPrefix)
	f.Add(joinPrefix + strings.Repeat("a", 200))
	f.Fuzz(func(t *testing.T, text string) {
		tok, err := ParseJoinToken(text)
		if err != nil {
			return
		}
		if tok.Text() != strings.TrimSpace(text) {
			t.Errorf("%q parses and prints as %q", text, tok.Text())
		}
		if len(tok.Addresses) == 0 || len(tok.Addresses) > maxAddresses {
			t.Errorf("%d addresses", len(tok.Addresses))
		}
	})
}
