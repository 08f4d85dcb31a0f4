package manager

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/pki"
	"drover/internal/store"
)

// openIdentity loads or makes the CA and the manager's own certificate.
func (m *Manager) openIdentity(ctx context.Context) (err error) {
	if m.ca, err = pki.Open(m.cfg.path("pki"), m.cfg.Clock); err != nil {
		return err
	}
	m.joins = &pki.Joins{Clock: m.cfg.Clock, Store: joinStore{m}, CA: m.ca.Fingerprint()}
	path := m.cfg.path("pki/manager.pem")
	m.identity, err = pki.LoadCredential(path)
	if err == nil && m.covers(m.identity.Leaf()) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	key, err := pki.NewKey()
	if err != nil {
		return err
	}
	chain, err := m.ca.Issue(key.Public(), m.ownGrant())
	if err != nil {
		return err
	}
	m.identity, err = pki.SaveCredential(path, key, chain)
	return err
}

// covers reports whether a certificate is good for some time and for all names by which the manager is reached.
func (m *Manager) covers(cert *x509.Certificate) bool {
	if m.cfg.Clock.Now().Add(24 * time.Hour).After(cert.NotAfter) {
		return false
	}
	for _, name := range m.names() {
		if cert.VerifyHostname(name) != nil {
			return false
		}
	}
	return true
}

func (m *Manager) ownGrant() pki.Grant {
	g := pki.Grant{Identity: pki.Identity{Role: pki.RoleManager, Name: "manager", UID: m.cluster.Meta.Uid}, IPs: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}}
	for _, n := range m.names() {
		if ip := net.ParseIP(n); ip != nil {
			g.IPs = append(g.IPs, ip)
		} else {
			g.DNSNames = append(g.DNSNames, n)
		}
	}
	return g
}

// names are the addresses and host names by which the manager is reached, without ports.
func (m *Manager) names() []string {
	if len(m.cfg.Advertise) > 0 {
		var list []string
		for _, a := range m.cfg.Advertise {
			if host, _, err := net.SplitHostPort(a); err == nil {
				a = host
			}
			list = append(list, strings.ToLower(a))
		}
		return list
	}
	host, _, _ := net.SplitHostPort(m.cfg.Listen)
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		return []string{host}
	}
	var list []string
	addrs, _ := net.InterfaceAddrs() // none is a machine without a network: only the socket then
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			list = append(list, n.IP.String())
		}
	}
	return list
}

// renewOwn gives the manager itself a fresh certificate.
func (m *Manager) renewOwn(_ context.Context, csr []byte) ([]*x509.Certificate, error) {
	key, err := pki.RequestKey(csr)
	if err != nil {
		return nil, err
	}
	return m.ca.Issue(key, m.ownGrant())
}

// TLSConfig is the TLS side of the manager's listener.
func (m *Manager) TLSConfig() (*tls.Config, error) {
	return pki.ServerConfig(pki.ServerOptions{Credential: m.identity, Trust: m.ca.Trust(), Admit: m.Admit})
}

// CAPEM is the CA's certificate in PEM: what a remote CLI needs to trust.
func (m *Manager) CAPEM() []byte { return m.ca.Trust().PEM() }

// joinStore keeps join tokens.
type joinStore struct{ m *Manager }

func joinOf(r pki.JoinRecord) *v1.Join {
	j := &v1.Join{
		Meta: &v1.Meta{Name: r.ID, CreateTime: stamp(r.Created)}, SecretHash: r.SecretHash, ExpireTime: stamp(r.Expires),
		CreatedBy: r.CreatedBy, Site: r.Site, Host: r.Name,
	}
	if c := r.Claim; c != nil {
		j.Claim = &v1.JoinClaim{Host: c.Name, Uid: c.UID, KeyHash: c.KeyHash, Time: stamp(c.At)}
	}
	return j
}

func (s joinStore) CreateJoin(ctx context.Context, r pki.JoinRecord) error {
	return s.m.joinKeys.coll.Create(ctx, joinOf(r))
}

func (s joinStore) GetJoin(ctx context.Context, id string) (pki.JoinRecord, int64, error) {
	j, err := s.m.joinKeys.coll.Get(ctx, id)
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrInvalid) {
		return pki.JoinRecord{}, 0, pki.ErrJoinNotFound
	}
	if err != nil {
		return pki.JoinRecord{}, 0, err
	}
	r := pki.JoinRecord{
		ID: j.Meta.Name, SecretHash: j.SecretHash, Created: j.Meta.CreateTime.AsTime(), Expires: j.ExpireTime.AsTime(),
		CreatedBy: j.CreatedBy, Site: j.Site, Name: j.Host,
	}
	if c := j.Claim; c != nil {
		r.Claim = &pki.JoinClaim{Name: c.Host, UID: c.Uid, KeyHash: c.KeyHash, At: c.Time.AsTime()}
	}
	return r, j.Meta.Revision, nil
}

func (s joinStore) UpdateJoin(ctx context.Context, r pki.JoinRecord, revision int64) error {
	j := joinOf(r)
	j.Meta.Revision = revision
	err := s.m.joinKeys.coll.Update(ctx, j)
	if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrNotFound) {
		return pki.ErrJoinConflict
	}
	return err
}

// storeOptions say which etcd holds the state.
func (c *Config) storeOptions() (store.Options, error) {
	o := store.Options{Logger: c.Logger}
	if len(c.Etcd) == 0 {
		o.Dir = c.path("etcd")
		return o, nil
	}
	o.Endpoints = c.Etcd
	if c.EtcdCA+c.EtcdCert+c.EtcdKey == "" {
		return o, nil
	}
	pem, err := os.ReadFile(c.EtcdCA)
	if err != nil {
		return o, fmt.Errorf("CA of etcd: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return o, fmt.Errorf("CA of etcd: %s holds no certificate", c.EtcdCA)
	}
	o.TLS = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}
	if c.EtcdCert != "" {
		cert, err := tls.LoadX509KeyPair(c.EtcdCert, c.EtcdKey)
		if err != nil {
			return o, fmt.Errorf("client certificate for etcd: %w", err)
		}
		o.TLS.Certificates = []tls.Certificate{cert}
	}
	return o, nil
}

// claimOfMAC is the name of the reservation of an address; a name has no colons.
func claimOfMAC(mac string) string { return strings.ReplaceAll(mac, ":", "-") }

func macOfClaim(name string) string { return strings.ReplaceAll(name, "-", ":") }
