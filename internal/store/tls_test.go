package store

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"

	"drover/internal/store/storetest"
)

// authority is a CA for one test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	dir  string
}

func write(t *testing.T, file, kind string, der []byte) string {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// issue makes a key and a certificate for 127.0.0.1 and gives their files; the first one is the CA's own.
func (a *authority) issue(t *testing.T, name string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: a.cert == nil, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if a.cert == nil {
		a.cert, a.key = tmpl, k
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &k.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if name == "ca" {
		if a.cert, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
	}
	kd, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return write(t, filepath.Join(a.dir, name+".crt"), "CERTIFICATE", der), write(t, filepath.Join(a.dir, name+".key"), "EC PRIVATE KEY", kd)
}

func TestExternalClusterOverMutualTLS(t *testing.T) {
	ctx, ports := testContext(t), storetest.FreePorts(t, 2)
	ca := &authority{dir: t.TempDir()}
	caFile, _ := ca.issue(t, "ca")
	srvCert, srvKey := ca.issue(t, "server")
	cliCert, cliKey := ca.issue(t, "client")

	c := embed.NewConfig()
	client := url.URL{Scheme: "https", Host: fmt.Sprintf("127.0.0.1:%d", ports[0])}
	peer := url.URL{Scheme: "http", Host: fmt.Sprintf("127.0.0.1:%d", ports[1])}
	c.Name, c.Dir, c.InitialCluster, c.UnsafeNoFsync = "m", t.TempDir(), "m="+peer.String(), true
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	c.ClientTLSInfo = transport.TLSInfo{CertFile: srvCert, KeyFile: srvKey, TrustedCAFile: caFile, ClientCertAuth: true}
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(newZap(testLog(t), slog.LevelError+1))
	e, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	<-e.Server.ReadyNotify()

	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	pair, err := tls.LoadX509KeyPair(cliCert, cliKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]*tls.Config{
		"no certificate": {RootCAs: pool},
		"unknown server": {Certificates: []tls.Certificate{pair}, RootCAs: x509.NewCertPool()},
	} {
		short, cancel := context.WithTimeout(ctx, time.Second)
		_, err := Open(short, Options{Endpoints: []string{client.String()}, TLS: cfg, Logger: testLog(t)})
		cancel()
		if err == nil {
			t.Errorf("%s: let in", name)
		} else {
			wantErr(t, err, ErrUnavailable)
		}
	}
	s, err := Open(ctx, Options{Endpoints: []string{client.String()}, TLS: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}, Logger: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	create(t, vmsOf(t, s), newVM("a", 1))
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
