package host

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/pki"
)

// Files of the identity, in the state directory.
const (
	credentialFile = "host.pem"      // key and certificate
	trustFile      = "ca.pem"        // whom the host believes
	identityFile   = "identity.json" // what the manager called it
	enrolKeyFile   = "enrol.key"     // the key of an enrolment that is under way
)

// identity is who this host is in the installation.
type identity struct {
	Host    string `json:"host"`
	UID     string `json:"uid"`
	Site    string `json:"site"`
	Manager string `json:"manager"`

	credential *pki.Credential
	trust      *pki.Trust
}

// errNotJoined says that there is neither a certificate nor a token.
var errNotJoined = errors.New("this machine has not joined: give the manager's token by --join (make one with `drover host token`)")

// loadIdentity returns fs.ErrNotExist when the machine has not enrolled.
func loadIdentity(dir string) (*identity, error) {
	cred, err := pki.LoadCredential(filepath.Join(dir, credentialFile))
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(dir, trustFile))
	if err != nil {
		return nil, err
	}
	trust, err := pki.ParseTrust(text)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, trustFile), err)
	}
	id := &identity{credential: cred, trust: trust}
	if err := readJSON(filepath.Join(dir, identityFile), id); err != nil {
		return nil, err
	}
	who, err := cred.Identity()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, credentialFile), err)
	}
	id.Host, id.UID = who.Name, who.UID
	return id, nil
}

// join loads the identity, or enrols with the token. It tries until ctx ends, unless the manager refuses.
func (a *agent) join(ctx context.Context, address func(manager string) string) (*identity, error) {
	id, err := loadIdentity(a.cfg.StateDir)
	if err == nil {
		if a.cfg.Manager != "" && a.cfg.Manager != id.Manager {
			id.Manager = a.cfg.Manager
			err = writeJSON(filepath.Join(a.cfg.StateDir, identityFile), id)
		}
		return id, err
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("load the host's identity: %w", err)
	}
	if a.cfg.JoinToken == "" {
		return nil, errNotJoined
	}
	token, err := pki.ParseJoinToken(a.cfg.JoinToken)
	if err != nil {
		return nil, err
	}
	managers := token.Addresses
	if a.cfg.Manager != "" {
		managers = []string{a.cfg.Manager}
	}
	if len(managers) == 0 {
		return nil, errors.New("the join token names no manager: give its address by --manager")
	}
	key, err := enrolKey(filepath.Join(a.cfg.StateDir, enrolKeyFile))
	if err != nil {
		return nil, fmt.Errorf("make the host's key: %w", err)
	}
	wait := backoff{min: 200 * time.Millisecond, max: 10 * time.Second}
	for {
		for _, m := range managers {
			id, err := a.enrol(ctx, token, m, address(m), key)
			if err == nil {
				return id, nil
			}
			switch connect.CodeOf(err) {
			case connect.CodePermissionDenied, connect.CodeUnauthenticated, connect.CodeInvalidArgument,
				connect.CodeAlreadyExists, connect.CodeNotFound, connect.CodeFailedPrecondition:
				return nil, err
			}
			a.log.Warn("enrolment failed, trying again", "manager", m, "err", err)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-a.clk.After(wait.next()):
		}
	}
}

func (a *agent) enrol(ctx context.Context, token pki.JoinToken, manager, address string, key crypto.Signer) (*identity, error) {
	hostname := a.cfg.Hostname
	if hostname == "" {
		var err error
		if hostname, err = os.Hostname(); err != nil {
			return nil, err
		}
	}
	csr, err := pki.NewRequest(key, hostname)
	if err != nil {
		return nil, err
	}
	tr := transport(pki.PinnedConfig(token.CA))
	defer tr.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	client := droverv1connect.NewAgentServiceClient(&http.Client{Transport: tr}, "https://"+manager)
	res, err := client.Enroll(ctx, &v1.EnrollRequest{Token: token.Text(), Csr: csr, Hostname: hostname, Address: address})
	if err != nil {
		return nil, fmt.Errorf("enrol at manager %s: %w", manager, err)
	}
	roots, err := pki.DecodeCertificates(res.GetCa())
	if err != nil {
		return nil, fmt.Errorf("enrol at manager %s: its CA: %w", manager, err)
	}
	var pinned []*x509.Certificate
	for _, r := range roots {
		if pki.FingerprintOf(r).Equal(token.CA) {
			pinned = append(pinned, r)
		}
	}
	if pinned == nil {
		return nil, fmt.Errorf("enrol at manager %s: %w", manager,
			connect.NewError(connect.CodePermissionDenied, errors.New("the CA that it sent is not the token's")))
	}
	chain, err := pki.DecodeCertificates(res.GetCertificate())
	if err != nil {
		return nil, fmt.Errorf("enrol at manager %s: our certificate: %w", manager, err)
	}
	dir := a.cfg.StateDir
	id := &identity{Host: res.GetHost(), UID: res.GetHostUid(), Site: res.GetSite(), Manager: manager, trust: pki.NewTrust(pinned...)}
	if err := writeFile(filepath.Join(dir, trustFile), id.trust.PEM(), 0o600); err != nil {
		return nil, err
	}
	if err := writeJSON(filepath.Join(dir, identityFile), id); err != nil {
		return nil, err
	}
	// The credential is written last: with it the host has joined.
	if id.credential, err = pki.SaveCredential(filepath.Join(dir, credentialFile), key, chain); err != nil {
		return nil, err
	}
	if err := os.Remove(filepath.Join(dir, enrolKeyFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	a.log.Info("joined", "host", id.Host, "uid", id.UID, "site", id.Site, "manager", manager)
	return id, nil
}

// enrolKey keeps one key for all tries, since the token lets in one key only and an answer may get lost.
func enrolKey(path string) (crypto.Signer, error) {
	text, err := os.ReadFile(path)
	if err == nil {
		block, _ := pem.Decode(text)
		if block == nil {
			return nil, fmt.Errorf("read %s: no PEM in it; remove it", path)
		}
		k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		signer, ok := k.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("read %s: not a signing key; remove it", path)
		}
		return signer, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, err := pki.NewKey()
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, writeFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

// transport speaks HTTP/2 and notices within half a minute that the other end is gone without a word.
func transport(conf *tls.Config) *http.Transport {
	return &http.Transport{
		TLSClientConfig:     conf,
		ForceAttemptHTTP2:   true,
		TLSHandshakeTimeout: 10 * time.Second,
		IdleConnTimeout:     5 * time.Minute,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 15 * time.Second},
	}
}

// dialManager makes the clients for the manager under the host's own certificate.
func (a *agent) dialManager() error {
	conf, err := pki.ClientConfig(pki.ClientOptions{
		Credential: a.id.credential, Trust: a.id.trust, Peer: pki.Identity{Role: pki.RoleManager},
	})
	if err != nil {
		return err
	}
	a.http = &http.Client{Transport: transport(conf)}
	a.manager = droverv1connect.NewAgentServiceClient(a.http, "https://"+a.id.Manager)
	return nil
}

// keepCertificate renews the certificate until ctx ends.
func (a *agent) keepCertificate(ctx context.Context) {
	err := a.id.credential.Keep(ctx, a.clk, a.log, func(ctx context.Context, csr []byte) ([]*x509.Certificate, error) {
		res, err := a.manager.Renew(ctx, &v1.RenewRequest{Csr: csr})
		if err != nil {
			return nil, fmt.Errorf("renew the host's certificate: %w", err)
		}
		return pki.DecodeCertificates(res.GetCertificate())
	})
	if err != nil && ctx.Err() == nil {
		a.log.Error("the host's certificate is not renewed any more", "err", err)
	}
}
