package client

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"drover/internal/pki"
)

// DefaultPort is where managers listen.
const DefaultPort = "7443"

// Target is one manager and how to reach it: Socket, or Server with CA and Token.
type Target struct {
	Socket string
	// Server is host:port.
	Server string
	CA     *pki.Trust
	Token  string
}

// String is the target's address for people.
func (t Target) String() string {
	if t.Socket != "" {
		return t.Socket
	}
	return "https://" + t.Server
}

// ParseServer reads "https://HOST[:PORT]" or "HOST[:PORT]" into host:port.
func ParseServer(s string) (string, error) {
	bad := fmt.Errorf("server %q: give https://HOST:PORT, such as https://manager.example:%s", s, DefaultPort)
	text := s
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return "", bad
	}
	port := u.Port()
	if port == "" {
		port = DefaultPort
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}

// ParseFingerprint reads what Fingerprint.String writes; the prefix may be left out, and bytes may be set apart by colons.
func ParseFingerprint(s string) (pki.Fingerprint, error) {
	var f pki.Fingerprint
	text := strings.ReplaceAll(strings.TrimPrefix(strings.ToLower(strings.TrimSpace(s)), "sha256:"), ":", "")
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(f) {
		return f, fmt.Errorf("fingerprint %q: must be sha256: and 64 hexadecimal digits, as `drover whoami` shows it on the manager's machine", s)
	}
	copy(f[:], b)
	return f, nil
}

// meetTimeout bounds the first handshake with a manager.
const meetTimeout = 10 * time.Second

// Meet asks a manager for its CA, of which nothing is known yet. accept says whether a fingerprint is the right one; the
// manager must then really stand under that CA.
func Meet(ctx context.Context, server string, accept func(pki.Fingerprint) error) (*pki.Trust, error) {
	ctx, cancel := context.WithTimeout(ctx, meetTimeout)
	d := tls.Dialer{Config: &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: pki.Identity{Role: pki.RoleManager}.ServerName(),
		// Nothing is sent over this connection: it only shows who answers, which PinnedTrust then verifies.
		InsecureSkipVerify: true,
	}}
	conn, err := d.DialContext(ctx, "tcp", server)
	cancel()
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", server, err)
	}
	defer conn.Close()
	state := conn.(*tls.Conn).ConnectionState()
	for _, c := range state.PeerCertificates {
		if !c.IsCA {
			continue
		}
		f := pki.FingerprintOf(c)
		// The claim is checked before anybody is asked about it.
		trust, err := pki.PinnedTrust(state, f)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", server, err)
		}
		if err := accept(f); err != nil {
			return nil, err
		}
		return trust, nil
	}
	return nil, fmt.Errorf("%s: %w", server, ErrNoCA)
}

// ErrNoCA says that whatever answers is no manager, or hides its CA.
var ErrNoCA = errors.New("shows no certificate authority of its own: is it a Drover manager? If so, give its CA by --ca FILE")
