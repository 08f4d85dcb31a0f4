package pki

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"drover/internal/clock"
)

// Credential is a process's own key and certificate chain, kept in one file
// and replaced while connections use it. It is safe for concurrent use.
type Credential struct {
	path    string
	mu      sync.Mutex // orders replacements
	current atomic.Pointer[tls.Certificate]
}

// LoadCredential reads a credential file. The error wraps fs.ErrNotExist if
// there is none.
func LoadCredential(path string) (*Credential, error) {
	c := &Credential{path: path}
	if err := c.Reload(); err != nil {
		return nil, err
	}
	return c, nil
}

// SaveCredential makes or replaces a credential file.
func SaveCredential(path string, key crypto.Signer, chain []*x509.Certificate) (*Credential, error) {
	c := &Credential{path: path}
	if err := c.Replace(key, chain); err != nil {
		return nil, err
	}
	return c, nil
}

// Reload takes in what the file holds now, if another process replaced it.
func (c *Credential) Reload() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	text, err := readFile(c.path)
	if err != nil {
		return fmt.Errorf("load credential: %w", err)
	}
	key, chain, err := decodePair(text)
	if err != nil {
		return fmt.Errorf("load credential %s: %w", c.path, err)
	}
	c.current.Store(pair(key, chain))
	return nil
}

// Replace makes a new key and chain durable, then serves them to new
// connections.
func (c *Credential) Replace(key crypto.Signer, chain []*x509.Certificate) error {
	if len(chain) == 0 || !samePublic(key.Public(), chain[0].PublicKey) {
		return fmt.Errorf("replace credential %s: the certificate is not for the key", c.path)
	}
	text, err := encodePair(key, chain...)
	if err != nil {
		return fmt.Errorf("replace credential %s: %w", c.path, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := writeFile(c.path, text, false); err != nil {
		return fmt.Errorf("replace credential %s: %w", c.path, err)
	}
	c.current.Store(pair(key, chain))
	return nil
}

func pair(key crypto.Signer, chain []*x509.Certificate) *tls.Certificate {
	out := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		out.Certificate = append(out.Certificate, c.Raw)
	}
	return out
}

// Leaf returns the present certificate.
func (c *Credential) Leaf() *x509.Certificate { return c.current.Load().Leaf }

// Identity returns who the present certificate says this process is.
func (c *Credential) Identity() (Identity, error) { return FromCertificate(c.Leaf()) }

// RenewAt returns when two thirds of the certificate's life are over.
func (c *Credential) RenewAt() time.Time {
	leaf := c.Leaf()
	begin := leaf.NotBefore.Add(skew)
	return begin.Add(leaf.NotAfter.Sub(begin) / 3 * 2)
}

// GetCertificate fits tls.Config.GetCertificate.
func (c *Credential) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return c.current.Load(), nil
}

// GetClientCertificate fits tls.Config.GetClientCertificate.
func (c *Credential) GetClientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return c.current.Load(), nil
}

// Renewal asks the issuer for a chain for the key of a DER certificate request.
type Renewal func(ctx context.Context, csr []byte) ([]*x509.Certificate, error)

// Keep renews the credential, each time with a new key, whenever [Credential.RenewAt]
// has come, until ctx ends; then it returns ctx's error. After a failure it
// tries again, at first after a minute and at most an hour apart.
func (c *Credential) Keep(ctx context.Context, clk clock.Clock, log *slog.Logger, ask Renewal) error {
	const first, most = time.Minute, time.Hour
	pause := first
	at := c.RenewAt()
	for {
		timer := clk.NewTimer(at.Sub(clk.Now()))
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
		err := c.renew(ctx, ask)
		if err == nil {
			pause, at = first, c.RenewAt()
			// A clock far ahead of the issuer's must not make this a busy loop.
			if soon := clk.Now().Add(first); at.Before(soon) {
				at = soon
			}
			log.InfoContext(ctx, "certificate renewed", "credential", c.path, "until", c.Leaf().NotAfter)
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		log.WarnContext(ctx, "certificate not renewed", "credential", c.path, "until", c.Leaf().NotAfter,
			"retry", pause, "error", err)
		at = clk.Now().Add(pause)
		pause = min(pause*2, most)
	}
}

func (c *Credential) renew(ctx context.Context, ask Renewal) error {
	key, err := NewKey()
	if err != nil {
		return err
	}
	csr, err := NewRequest(key, c.Leaf().Subject.CommonName)
	if err != nil {
		return err
	}
	chain, err := ask(ctx, csr)
	if err != nil {
		return err
	}
	return c.Replace(key, chain)
}
