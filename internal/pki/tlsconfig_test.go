package pki

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"drover/internal/clock"
)

func credential(t *testing.T, ca *CA, g Grant) *Credential {
	t.Helper()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := ca.Issue(key.Public(), g)
	if err != nil {
		t.Fatal(err)
	}
	c, err := SaveCredential(filepath.Join(t.TempDir(), "own.pem"), key, chain)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// shake does one handshake over loopback and returns what each side saw. A
// byte is echoed, since in TLS 1.3 a client learns of refusal only on reading.
func shake(t *testing.T, server, client *tls.Config) (seen, peer tls.ConnectionState, serr, cerr error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		raw, err := ln.Accept()
		if err != nil {
			done <- err
			return
		}
		conn := tls.Server(raw, server)
		defer conn.Close()
		err = conn.HandshakeContext(ctx)
		seen = conn.ConnectionState()
		if err == nil {
			_, err = io.CopyN(conn, conn, 1)
		}
		done <- err
	}()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(raw, client)
	if cerr = conn.HandshakeContext(ctx); cerr == nil {
		if _, cerr = conn.Write([]byte("x")); cerr == nil {
			_, cerr = io.ReadFull(conn, make([]byte, 1))
		}
	}
	peer = conn.ConnectionState()
	raw.Close()
	return seen, peer, <-done, cerr
}

func TestHandshakes(t *testing.T) {
	ca, stranger := openCA(t), openCA(t)
	mgrID := Identity{Role: RoleManager, Name: "m1", UID: "m-uid"}
	hostB := Identity{Role: RoleHost, Name: "b1", UID: "77aa"}
	mgr, host := credential(t, ca, Grant{Identity: mgrID}), credential(t, ca, Grant{Identity: hostA})
	gone := errors.New("the host was removed")
	admit := func(id Identity) error {
		if id.UID == hostB.UID {
			return gone
		}
		return nil
	}
	late := credential(t, ca, Grant{Identity: hostA, Lifetime: time.Nanosecond})
	client := func(c *Credential, tr *Trust, peer Identity) ClientOptions {
		return ClientOptions{Credential: c, Trust: tr, Peer: peer}
	}
	for _, tt := range []struct {
		name   string
		server *Credential
		open   bool // no client certificate is required
		client ClientOptions
		want   string // error of either side; empty for success
		id     Identity
	}{
		{name: "host to manager", server: mgr, client: client(host, ca.Trust(), Identity{Role: RoleManager}), id: hostA},
		{name: "manager to host", server: host, client: client(mgr, ca.Trust(), hostA), id: mgrID},
		{name: "manager to another host", server: host, client: client(mgr, ca.Trust(), hostB), want: "not 77aa.host"},
		{name: "host that poses as manager", server: host, client: client(mgr, ca.Trust(), mgrID), want: "not manager.drover"},
		{name: "client without certificate", server: mgr, client: client(nil, ca.Trust(), mgrID), want: "didn't provide a certificate"},
		{name: "person without certificate", server: mgr, open: true, client: client(nil, ca.Trust(), mgrID)},
		{name: "client of another CA", server: mgr, open: true,
			client: client(credential(t, stranger, Grant{Identity: hostA}), ca.Trust(), mgrID), want: "unknown authority"},
		{name: "server of another CA", server: mgr, client: client(host, stranger.Trust(), mgrID), want: "unknown authority"},
		{name: "expired", server: mgr, client: client(late, ca.Trust(), mgrID), want: "expired"},
		{name: "removed", server: mgr, client: client(credential(t, ca, Grant{Identity: hostB}), ca.Trust(), mgrID), want: gone.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sc, err := ServerConfig(ServerOptions{Credential: tt.server, Trust: ca.Trust(), RequireClient: !tt.open, Admit: admit})
			if err != nil {
				t.Fatal(err)
			}
			cc, err := ClientConfig(tt.client)
			if err != nil {
				t.Fatal(err)
			}
			seen, _, serr, cerr := shake(t, sc, cc)
			if tt.want != "" {
				all := errors.Join(serr, cerr)
				if serr == nil || cerr == nil || !strings.Contains(all.Error(), tt.want) {
					t.Errorf("server: %v; client: %v; want both to fail with %q", serr, cerr, tt.want)
				}
				return
			}
			if serr != nil || cerr != nil {
				t.Fatalf("server: %v; client: %v", serr, cerr)
			}
			id, err := FromState(seen)
			if id != tt.id || (err == nil) != (tt.id != Identity{}) {
				t.Errorf("the server saw %+v (%v), want %+v", id, err, tt.id)
			}
		})
	}
}

func TestPinnedJoin(t *testing.T) {
	ca, stranger := openCA(t), openCA(t)
	mgr := credential(t, ca, Grant{Identity: Identity{Role: RoleManager, Name: "m", UID: "u"}})
	sc, err := ServerConfig(ServerOptions{Credential: mgr, Trust: ca.Trust()})
	if err != nil {
		t.Fatal(err)
	}
	_, peer, serr, cerr := shake(t, sc, PinnedConfig(ca.Fingerprint()))
	if serr != nil || cerr != nil {
		t.Fatalf("server: %v; client: %v", serr, cerr)
	}
	trust, err := PinnedTrust(peer, ca.Fingerprint())
	if err != nil || string(trust.PEM()) != string(ca.Trust().PEM()) {
		t.Errorf("the pin led to %v, not to the CA", err)
	}
	if back, err := ParseTrust(trust.PEM()); err != nil || string(back.PEM()) != string(trust.PEM()) {
		t.Errorf("ParseTrust of PEM: %v", err)
	}
	if _, _, _, cerr := shake(t, sc, PinnedConfig(stranger.Fingerprint())); cerr == nil || !strings.Contains(cerr.Error(), "another manager") {
		t.Errorf("wrong pin: %v", cerr)
	}
	// A host that holds a certificate of the right CA is still no manager.
	host := credential(t, ca, Grant{Identity: hostA})
	posing, err := ServerConfig(ServerOptions{Credential: host, Trust: ca.Trust()})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, cerr := shake(t, posing, PinnedConfig(ca.Fingerprint())); cerr == nil {
		t.Error("a host passed for the manager under the pin")
	}
	// A stranger who copies the CA's public certificate into his chain.
	key, _ := NewKey()
	chain, err := stranger.Issue(key.Public(), Grant{Identity: Identity{Role: RoleManager, Name: "m", UID: "u"}})
	if err != nil {
		t.Fatal(err)
	}
	chain[1] = ca.Certificate()
	copied, err := SaveCredential(filepath.Join(t.TempDir(), "c.pem"), key, chain)
	if err != nil {
		t.Fatal(err)
	}
	fake, err := ServerConfig(ServerOptions{Credential: copied, Trust: ca.Trust()})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, cerr := shake(t, fake, PinnedConfig(ca.Fingerprint())); cerr == nil {
		t.Error("a copied CA certificate was enough to pass for the manager")
	}
}

func TestPublicCertificateIsForBrowsersAlone(t *testing.T) {
	ca, public := openCA(t), openCA(t)
	mgrID := Identity{Role: RoleManager, Name: "m", UID: "u"}
	mgr := credential(t, ca, Grant{Identity: mgrID})
	web := credential(t, public, Grant{Identity: mgrID, DNSNames: []string{"drover.example.org"}})
	sc, err := ServerConfig(ServerOptions{Credential: mgr, Trust: ca.Trust(), Public: web.GetCertificate})
	if err != nil {
		t.Fatal(err)
	}
	cc, err := ClientConfig(ClientOptions{Trust: ca.Trust(), Peer: mgrID})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, serr, cerr := shake(t, sc, cc); serr != nil || cerr != nil {
		t.Errorf("by the internal name: server %v, client %v", serr, cerr)
	}
	browser := &tls.Config{RootCAs: public.Trust().pool, ServerName: "drover.example.org"}
	if _, _, serr, cerr := shake(t, sc, browser); serr != nil || cerr != nil {
		t.Errorf("by the public name: server %v, client %v", serr, cerr)
	}
}

func TestClientConfigRefuses(t *testing.T) {
	ca, err := Open(t.TempDir(), clock.Real())
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []ClientOptions{
		{Peer: Identity{Role: RoleManager}},
		{Trust: ca.Trust()},
		{Trust: ca.Trust(), Peer: Identity{Role: RoleHost, Name: "only-a-name"}},
	} {
		if _, err := ClientConfig(o); err == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
}
