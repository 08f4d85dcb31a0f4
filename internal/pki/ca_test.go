package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"drover/internal/clock"
)

var hostA = Identity{Role: RoleHost, Name: "a1", UID: "0f3c"}

func openCA(t *testing.T) *CA {
	t.Helper()
	ca, err := Open(t.TempDir(), clock.Real())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func TestOpenMakesOnceAndLoadsAfter(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	const racers = 8
	var wg sync.WaitGroup
	prints := make([]Fingerprint, racers)
	for i := range racers {
		wg.Go(func() {
			ca, err := Open(dir, clock.Real())
			if err != nil {
				t.Error(err)
				return
			}
			prints[i] = ca.Fingerprint()
		})
	}
	wg.Wait()
	for _, p := range prints {
		if p != prints[0] {
			t.Fatalf("two CAs were made: %v and %v", p, prints[0])
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatalf("directory holds %v (%v), want the CA's file alone", entries, err)
	}
	info, err := entries[0].Info()
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("CA file has mode %v (%v), want 0600", info.Mode(), err)
	}
}

func TestLoadRefuses(t *testing.T) {
	ca := openCA(t)
	other := openCA(t)
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := ca.Issue(key.Public(), Grant{Identity: hostA})
	if err != nil {
		t.Fatal(err)
	}
	good, _ := encodePair(ca.key, ca.cert)
	mixed, _ := encodePair(ca.key, other.cert)
	leaf, _ := encodePair(key, chain...)
	for _, tt := range []struct {
		name string
		text []byte
		mode os.FileMode
		want string
	}{
		{"open to others", good, 0o640, "set it to 0600"},
		{"foreign key", mixed, 0o600, "not the certificate's"},
		{"not a CA", leaf, 0o600, "not a CA's"},
		{"cut short", good[:len(good)/2], 0o600, "no certificate"},
		{"empty", nil, 0o600, "no private key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, CAFile)
			if err := os.WriteFile(path, tt.text, tt.mode); err != nil {
				t.Fatal(err)
			}
			_, err := Open(dir, clock.Real())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Open said %v, want %q", err, tt.want)
			}
			if now, _ := os.ReadFile(path); string(now) != string(tt.text) {
				t.Error("Open replaced an existing CA")
			}
		})
	}
	if _, err := Load(t.TempDir(), clock.Real()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load of nothing: %v, want fs.ErrNotExist", err)
	}
}

func TestRequestGivesOnlyItsKey(t *testing.T) {
	ca := openCA(t)
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:     pkix.Name{CommonName: "manager:boss", Organization: []string{"root"}},
		DNSNames:    []string{"manager.drover.internal"},
		IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)},
		URIs:        []*url.URL{{Scheme: "drover", Host: "manager", Path: "/x"}},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := ca.IssueRequest(csr, Grant{Identity: hostA, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	leaf := chain[0]
	if leaf.Subject.String() != "CN=host:a1" {
		t.Errorf("subject %q, want CN=host:a1", leaf.Subject)
	}
	if got := strings.Join(leaf.DNSNames, " "); got != "0f3c.host.drover.internal" {
		t.Errorf("DNS names %q came from the request", got)
	}
	if len(leaf.IPAddresses) != 1 || !leaf.IPAddresses[0].IsLoopback() {
		t.Errorf("addresses %v came from the request", leaf.IPAddresses)
	}
	if id, err := FromCertificate(leaf); err != nil || id != hostA {
		t.Errorf("identity %+v (%v), want %+v", id, err, hostA)
	}
	if leaf.IsCA || leaf.KeyUsage&x509.KeyUsageCertSign != 0 {
		t.Error("a host's certificate can sign others")
	}
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	if life < DefaultLifetime || life > DefaultLifetime+time.Hour {
		t.Errorf("lifetime %v, want about %v", life, DefaultLifetime)
	}
	again, err := ca.IssueRequest(csr, Grant{Identity: hostA})
	if err != nil || again[0].SerialNumber.Cmp(leaf.SerialNumber) == 0 {
		t.Errorf("two certificates share serial %v (%v)", leaf.SerialNumber, err)
	}
}

func TestIssueRefuses(t *testing.T) {
	ca := openCA(t)
	key, _ := NewKey()
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p224, _ := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	good := Grant{Identity: hostA}
	for _, tt := range []struct {
		name  string
		pub   any
		grant Grant
	}{
		{"RSA", weak.Public(), good},
		{"P-224", p224.Public(), good},
		{"no key", nil, good},
		{"no role", key.Public(), Grant{Identity: Identity{Name: "a", UID: "b"}}},
		{"colon in name", key.Public(), Grant{Identity: Identity{Role: RoleHost, Name: "a:b", UID: "b"}}},
		{"slash in uid", key.Public(), Grant{Identity: Identity{Role: RoleHost, Name: "a", UID: "../b"}}},
		{"manager's DNS name", key.Public(), Grant{Identity: hostA, DNSNames: []string{"manager.drover.internal"}}},
		{"manager's in capitals", key.Public(), Grant{Identity: hostA, DNSNames: []string{"Manager.Drover.Internal"}}},
		{"wildcard", key.Public(), Grant{Identity: hostA, DNSNames: []string{"*.drover.internal"}}},
		{"negative life", key.Public(), Grant{Identity: hostA, Lifetime: -time.Hour}},
	} {
		if _, err := ca.Issue(tt.pub, tt.grant); err == nil {
			t.Errorf("%s: a certificate was issued", tt.name)
		}
	}
	csr, _ := NewRequest(key, "x")
	csr[len(csr)-1] ^= 1
	if _, err := ca.IssueRequest(csr, good); err == nil {
		t.Error("a request with a broken proof of possession was taken")
	}
	if _, err := ca.IssueRequest(make([]byte, 1<<20), good); err == nil {
		t.Error("a request of 1 MiB was taken")
	}
}

func FuzzRequestKey(f *testing.F) {
	key, _ := NewKey()
	csr, _ := NewRequest(key, "host")
	f.Add(csr)
	f.Add(csr[:40])
	f.Fuzz(func(t *testing.T, b []byte) {
		pub, err := RequestKey(b)
		if err == nil && strong(pub) != nil {
			t.Errorf("accepted a key of type %T", pub)
		}
	})
}

func FuzzDecodePair(f *testing.F) {
	text, err := newCA(clock.Real())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add(text[:len(text)-20])
	f.Fuzz(func(t *testing.T, b []byte) {
		key, chain, err := decodePair(b)
		if err == nil && !samePublic(key.Public(), chain[0].PublicKey) {
			t.Error("accepted a key that is not the certificate's")
		}
	})
}
