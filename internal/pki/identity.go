package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Role is what a process is in the system.
type Role string

// The roles that have certificates.
const (
	RoleManager Role = "manager"
	RoleHost    Role = "host"
)

// domain is the private-use domain (RFC 9476 and ICANN's reservation of
// .internal) under which process names live.
const domain = "drover.internal"

// ErrNoIdentity says that a connection or certificate carries no verified
// Drover identity.
var ErrNoIdentity = errors.New("no verified Drover identity")

// Identity is who a process is. Name is for people and can be reused after a
// host is removed; UID never is, and is what decisions compare.
type Identity struct {
	Role Role
	Name string
	UID  string
}

// String returns "host:NAME", the certificate's common name.
func (id Identity) String() string { return string(id.Role) + ":" + id.Name }

// URI returns "drover://host/UID", the certificate's URI name.
func (id Identity) URI() *url.URL {
	return &url.URL{Scheme: "drover", Host: string(id.Role), Path: "/" + id.UID}
}

// ServerName returns the DNS name by which TLS clients verify the process. All
// managers share one, since a client does not choose among them.
func (id Identity) ServerName() string {
	if id.Role == RoleManager {
		return string(RoleManager) + "." + domain
	}
	return id.UID + "." + string(id.Role) + "." + domain
}

// Validate says whether the identity can stand in a certificate.
func (id Identity) Validate() error {
	if id.Role != RoleManager && id.Role != RoleHost {
		return fmt.Errorf("identity %q: role %q is neither manager nor host", id.Name, id.Role)
	}
	if !label(id.Name) {
		return fmt.Errorf("identity %q: a name has 1 to 63 of a-z, 0-9 and inner '-'", id.Name)
	}
	if !label(id.UID) {
		return fmt.Errorf("identity %q: uid %q: a uid has 1 to 63 of a-z, 0-9 and inner '-'", id.Name, id.UID)
	}
	return nil
}

// label reports whether s is a lower-case DNS label (RFC 1123).
func label(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// dnsName reports whether s is a lower-case DNS name without a wildcard.
func dnsName(s string) bool {
	for part := range strings.SplitSeq(s, ".") {
		if !label(part) {
			return false
		}
	}
	return len(s) <= 253
}

// FromCertificate reads the identity that a certificate states. The caller has
// verified the certificate's chain.
func FromCertificate(cert *x509.Certificate) (Identity, error) {
	var id Identity
	if len(cert.URIs) != 1 || cert.URIs[0].Scheme != "drover" {
		return id, fmt.Errorf("certificate %q: %w", cert.Subject.CommonName, ErrNoIdentity)
	}
	uri := cert.URIs[0]
	role, name, ok := strings.Cut(cert.Subject.CommonName, ":")
	id = Identity{Role: Role(role), Name: name, UID: strings.TrimPrefix(uri.Path, "/")}
	if !ok || id.Validate() != nil || uri.String() != id.URI().String() {
		return Identity{}, fmt.Errorf("certificate %q for %q: %w", cert.Subject.CommonName, uri, ErrNoIdentity)
	}
	return id, nil
}

// FromState returns who is at the other end of a connection. It fails with
// [ErrNoIdentity] for a peer without a certificate or with an unverified one.
func FromState(state tls.ConnectionState) (Identity, error) {
	if len(state.VerifiedChains) == 0 || len(state.VerifiedChains[0]) == 0 {
		return Identity{}, ErrNoIdentity
	}
	return FromCertificate(state.VerifiedChains[0][0])
}
