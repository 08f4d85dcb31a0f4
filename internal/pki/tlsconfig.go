package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
)

// Trust is the set of CAs that a process believes. It does not change.
type Trust struct {
	pool  *x509.CertPool
	certs []*x509.Certificate
}

// NewTrust returns the trust in these CAs.
func NewTrust(roots ...*x509.Certificate) *Trust {
	t := &Trust{pool: x509.NewCertPool(), certs: roots}
	for _, c := range roots {
		t.pool.AddCert(c)
	}
	return t
}

// ParseTrust reads PEM certificates, each a CA's.
func ParseTrust(text []byte) (*Trust, error) {
	certs, err := DecodeCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("CA certificates: %w", err)
	}
	for _, c := range certs {
		if !c.IsCA {
			return nil, fmt.Errorf("CA certificates: %q is not a CA's", c.Subject.CommonName)
		}
	}
	return NewTrust(certs...), nil
}

// PEM returns the certificates as text for [ParseTrust].
func (t *Trust) PEM() []byte { return EncodeCertificates(t.certs...) }

// Admit says whether a verified peer may connect now: nil, or why not. It is
// how a removed host is refused before its certificate ends.
type Admit func(Identity) error

// ServerOptions are for [ServerConfig].
type ServerOptions struct {
	Credential *Credential
	Trust      *Trust
	// RequireClient refuses peers without a certificate at the handshake; else
	// they come in without an [Identity].
	RequireClient bool
	// Admit, if set, is asked about each peer with a certificate.
	Admit Admit
	// Public, if set, is the user's own certificate for browsers and the CLI.
	// Peers that ask for a name under drover.internal still get Credential.
	Public func(*tls.ClientHelloInfo) (*tls.Certificate, error)
}

// ServerConfig returns the TLS side of a listener. Sessions are never resumed,
// so that Admit and expiry are looked at on each connection.
func ServerConfig(o ServerOptions) (*tls.Config, error) {
	if o.Credential == nil || o.Trust == nil {
		return nil, errors.New("TLS server: a credential and a trust are needed")
	}
	cfg := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		GetCertificate:         o.Credential.GetCertificate,
		ClientCAs:              o.Trust.pool,
		ClientAuth:             tls.VerifyClientCertIfGiven,
		SessionTicketsDisabled: true,
		NextProtos:             []string{"h2", "http/1.1"},
	}
	if o.RequireClient {
		cfg.ClientAuth = tls.RequireAndVerifyClientCert
	}
	if o.Public != nil {
		cfg.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if own(hello.ServerName) {
				return o.Credential.GetCertificate(hello)
			}
			return o.Public(hello)
		}
	}
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return nil
		}
		id, err := FromState(state)
		if err != nil {
			return err
		}
		if o.Admit == nil {
			return nil
		}
		if err := o.Admit(id); err != nil {
			return fmt.Errorf("%s may not connect: %w", id, err)
		}
		return nil
	}
	return cfg, nil
}

// own reports whether a server name is one of ours rather than a browser's.
func own(name string) bool {
	return strings.HasSuffix(strings.ToLower(name), "."+domain)
}

// ClientOptions are for [ClientConfig].
type ClientOptions struct {
	// Credential is this process's own; nil for the CLI, which has a token.
	Credential *Credential
	Trust      *Trust
	// Peer is whom to talk to: the manager (its Role suffices), or the host
	// with that UID. The address dialled does not matter.
	Peer Identity
}

// ClientConfig returns the TLS side of a dialler that talks to Peer and nobody
// else.
func ClientConfig(o ClientOptions) (*tls.Config, error) {
	if o.Trust == nil {
		return nil, errors.New("TLS client: a trust is needed")
	}
	if o.Peer.Role != RoleManager && (o.Peer.Role != RoleHost || !label(o.Peer.UID)) {
		return nil, fmt.Errorf("TLS client: peer %s with uid %q: name the manager, or a host by its uid", o.Peer, o.Peer.UID)
	}
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13,
		RootCAs:    o.Trust.pool,
		ServerName: o.Peer.ServerName(),
		NextProtos: []string{"h2", "http/1.1"},
		VerifyConnection: func(state tls.ConnectionState) error {
			id, err := FromState(state)
			if err != nil {
				return err
			}
			if id.Role != o.Peer.Role || id.Role == RoleHost && id.UID != o.Peer.UID {
				return fmt.Errorf("the peer is %s, not %s", id, o.Peer)
			}
			return nil
		},
	}
	if o.Credential != nil {
		cfg.GetClientCertificate = o.Credential.GetClientCertificate
	}
	return cfg, nil
}

// PinnedConfig returns the TLS side of a host that joins: it knows no CA yet,
// only its fingerprint. The manager presents its CA's certificate in the
// chain; it must have that fingerprint, and the rest must verify under it.
func PinnedConfig(pin Fingerprint) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: Identity{Role: RoleManager}.ServerName(),
		NextProtos: []string{"h2", "http/1.1"},
		// VerifyConnection does the whole verification, under the pin.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			_, err := PinnedTrust(state, pin)
			return err
		},
	}
}

// PinnedTrust returns the CA that a manager presented, if it is the pinned one
// and the manager's certificate stands under it.
func PinnedTrust(state tls.ConnectionState, pin Fingerprint) (*Trust, error) {
	for _, root := range state.PeerCertificates {
		if !FingerprintOf(root).Equal(pin) {
			continue
		}
		trust := NewTrust(root)
		leaf := state.PeerCertificates[0]
		_, err := leaf.Verify(x509.VerifyOptions{
			Roots:     trust.pool,
			DNSName:   Identity{Role: RoleManager}.ServerName(),
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		})
		if err != nil {
			return nil, fmt.Errorf("manager's certificate: %w", err)
		}
		if id, err := FromCertificate(leaf); err != nil || id.Role != RoleManager {
			return nil, fmt.Errorf("manager's certificate: %q is not a manager's", leaf.Subject.CommonName)
		}
		return trust, nil
	}
	return nil, fmt.Errorf("the manager has not the CA %s of the join token: another manager answers at this address, or the token is an old one", pin)
}
