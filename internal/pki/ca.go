package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"drover/internal/clock"
)

const (
	// CAFile is the CA's file in its state directory: key and certificate in
	// one, so that neither can exist without the other.
	CAFile = "ca.pem"

	// DefaultLifetime of a process's certificate. It is renewed after two
	// thirds, so that a manager may be away for ten days.
	DefaultLifetime = 30 * 24 * time.Hour

	caLifetime = 20 * 365 * 24 * time.Hour
	// skew is how far a peer's clock may be behind ours.
	skew = 5 * time.Minute
)

// Fingerprint is the SHA-256 of a certificate's DER form.
type Fingerprint [sha256.Size]byte

// FingerprintOf returns a certificate's fingerprint.
func FingerprintOf(cert *x509.Certificate) Fingerprint { return sha256.Sum256(cert.Raw) }

// String returns "sha256:" and 64 hexadecimal digits.
func (f Fingerprint) String() string { return "sha256:" + hex.EncodeToString(f[:]) }

// Equal compares in constant time.
func (f Fingerprint) Equal(g Fingerprint) bool { return subtle.ConstantTimeCompare(f[:], g[:]) == 1 }

// CA issues certificates. It is safe for concurrent use.
type CA struct {
	clock clock.Clock
	key   crypto.Signer
	cert  *x509.Certificate
}

// Open loads the CA in dir, or makes one there if there is none. dir is made
// with mode 0700 if it does not exist. Of two processes that make one at once,
// both end up with the same CA.
func Open(dir string, clk clock.Clock) (*CA, error) {
	path := filepath.Join(dir, CAFile)
	ca, err := Load(dir, clk)
	if !errors.Is(err, fs.ErrNotExist) {
		return ca, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create CA: %w", err)
	}
	text, err := newCA(clk)
	if err != nil {
		return nil, fmt.Errorf("create CA: %w", err)
	}
	if err := writeFile(path, text, true); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("create CA %s: %w", path, err)
	}
	return Load(dir, clk)
}

// Load reads the CA in dir. The error wraps fs.ErrNotExist if there is none.
func Load(dir string, clk clock.Clock) (*CA, error) {
	path := filepath.Join(dir, CAFile)
	text, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	key, chain, err := decodePair(text)
	if err != nil {
		return nil, fmt.Errorf("load CA %s: %w", path, err)
	}
	if !chain[0].IsCA {
		return nil, fmt.Errorf("load CA %s: the certificate is not a CA's", path)
	}
	return &CA{clock: clk, key: key, cert: chain[0]}, nil
}

func newCA(clk clock.Clock) ([]byte, error) {
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	serial := newSerial()
	now := clk.Now()
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "Drover CA " + serial.Text(16)[:8]},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(caLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	cert, err := sign(tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return encodePair(key, cert)
}

// Certificate returns the CA's own certificate.
func (ca *CA) Certificate() *x509.Certificate { return ca.cert }

// Fingerprint returns what join tokens pin.
func (ca *CA) Fingerprint() Fingerprint { return FingerprintOf(ca.cert) }

// Trust returns the trust in this CA alone.
func (ca *CA) Trust() *Trust { return NewTrust(ca.cert) }

// Grant is what a certificate shall say. All of it is the issuer's decision.
type Grant struct {
	Identity Identity
	// DNSNames and IPs are accepted besides Identity.ServerName. Names under
	// drover.internal are refused here: they follow from Identity alone.
	DNSNames []string
	IPs      []net.IP
	// Lifetime is DefaultLifetime if zero.
	Lifetime time.Duration
}

// Issue certifies a public key. The result is the chain to present: the leaf,
// then the CA, which a joining host needs to check its pin.
func (ca *CA) Issue(pub crypto.PublicKey, g Grant) ([]*x509.Certificate, error) {
	if err := g.Identity.Validate(); err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	if err := strong(pub); err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", g.Identity, err)
	}
	for _, name := range g.DNSNames {
		if !dnsName(name) || own(name) {
			return nil, fmt.Errorf("issue certificate for %s: DNS name %q: want a lower-case name outside %s", g.Identity, name, domain)
		}
	}
	life := g.Lifetime
	if life == 0 {
		life = DefaultLifetime
	}
	now := ca.clock.Now()
	end := now.Add(life)
	if end.After(ca.cert.NotAfter) {
		end = ca.cert.NotAfter
	}
	if life < 0 || !end.After(now) {
		return nil, fmt.Errorf("issue certificate for %s: it would end at %v, before it begins", g.Identity, end)
	}
	tmpl := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{CommonName: g.Identity.String()},
		NotBefore:             now.Add(-skew),
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{g.Identity.URI()},
		DNSNames:              append([]string{g.Identity.ServerName()}, g.DNSNames...),
		IPAddresses:           g.IPs,
	}
	leaf, err := sign(tmpl, ca.cert, pub, ca.key)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", g.Identity, err)
	}
	return []*x509.Certificate{leaf, ca.cert}, nil
}

// IssueRequest certifies the key of a DER certificate request, having checked
// that the sender holds it. Nothing else of the request is used.
func (ca *CA) IssueRequest(csr []byte, g Grant) ([]*x509.Certificate, error) {
	pub, err := RequestKey(csr)
	if err != nil {
		return nil, err
	}
	return ca.Issue(pub, g)
}

// RequestKey returns the public key of a DER certificate request, having
// checked the proof of possession. Requests are hostile input.
func RequestKey(csr []byte) (crypto.PublicKey, error) {
	if len(csr) > 16<<10 {
		return nil, fmt.Errorf("certificate request has %d bytes: the limit is 16384", len(csr))
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	// Before the signature: checking one with a huge RSA key is costly.
	if err := strong(req.PublicKey); err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	return req.PublicKey, nil
}

// NewKey makes a private key for a certificate: ECDSA on P-256.
func NewKey() (crypto.Signer, error) {
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// NewRequest returns a DER certificate request for a key. The name in it only
// helps people who look at the request.
func NewRequest(key crypto.Signer, name string) ([]byte, error) {
	tmpl := &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}
	csr, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		return nil, fmt.Errorf("certificate request for %s: %w", name, err)
	}
	return csr, nil
}

// strong refuses all keys but ECDSA on P-256 and Ed25519.
func strong(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case ed25519.PublicKey:
		return nil
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return nil
		}
	}
	return fmt.Errorf("key of type %T: use ECDSA P-256 or Ed25519", pub)
}

func sign(tmpl, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// newSerial returns a positive random number of 127 bits with its top bit set
// (RFC 5280 section 4.1.2.2 allows 20 octets).
func newSerial() *big.Int {
	var b [16]byte
	rand.Read(b[:]) // never fails, says its documentation
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b[:])
}
