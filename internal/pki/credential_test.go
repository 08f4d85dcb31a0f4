package pki

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"drover/internal/clock"
)

func TestCredentialReplaceAndReload(t *testing.T) {
	ca := openCA(t)
	c := credential(t, ca, Grant{Identity: hostA})
	other, err := LoadCredential(c.path)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := other.Identity(); err != nil || id != hostA {
		t.Fatalf("loaded identity %+v (%v)", id, err)
	}
	key, _ := NewKey()
	chain, err := ca.Issue(key.Public(), Grant{Identity: hostA})
	if err != nil {
		t.Fatal(err)
	}
	wrong, _ := NewKey()
	if err := c.Replace(wrong, chain); err == nil {
		t.Error("Replace took a certificate for another key")
	}
	if err := c.Replace(key, chain); err != nil {
		t.Fatal(err)
	}
	if other.Leaf().Equal(chain[0]) {
		t.Error("the other process changed before Reload")
	}
	if err := other.Reload(); err != nil || !other.Leaf().Equal(chain[0]) {
		t.Errorf("Reload (%v) did not take the new certificate", err)
	}
	if err := os.WriteFile(c.path, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := other.Reload(); err == nil || !other.Leaf().Equal(chain[0]) {
		t.Errorf("Reload of a broken file: %v; the old certificate must stay", err)
	}
}

func TestKeepRenewsAtTwoThirdsAndRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := openCA(t)
		c := credential(t, ca, Grant{Identity: hostA})
		first := c.Leaf()
		start := time.Now()
		failures := 3
		var asked []time.Duration
		ctx, cancel := context.WithCancel(t.Context())
		var log bytes.Buffer
		ask := func(_ context.Context, csr []byte) ([]*x509.Certificate, error) {
			asked = append(asked, time.Since(start).Round(time.Minute))
			if failures > 0 {
				failures--
				return nil, errors.New("manager away")
			}
			cancel()
			return ca.IssueRequest(csr, Grant{Identity: hostA})
		}
		err := c.Keep(ctx, clock.Real(), slog.New(slog.NewTextHandler(&log, nil)), ask)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Keep ended with %v", err)
		}
		due := 20 * 24 * time.Hour
		want := []time.Duration{due, due + time.Minute, due + 3*time.Minute, due + 7*time.Minute}
		if len(asked) != len(want) {
			t.Fatalf("asked at %v, want %v", asked, want)
		}
		for i := range want {
			if asked[i] != want[i] {
				t.Errorf("attempt %d at %v, want %v", i, asked[i], want[i])
			}
		}
		if c.Leaf().Equal(first) || samePublic(c.Leaf().PublicKey, first.PublicKey) {
			t.Error("the certificate or its key is still the first")
		}
		if got := time.Until(c.Leaf().NotAfter).Round(time.Hour); got != DefaultLifetime {
			t.Errorf("the new certificate lives %v", got)
		}
		if !strings.Contains(log.String(), "manager away") {
			t.Error("the failures were not logged")
		}
	})
}
