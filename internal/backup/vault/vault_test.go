package vault_test

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/backup"
	"drover/internal/backup/remote"
	"drover/internal/backup/vault"
	"drover/internal/blob"
	"drover/internal/clock"
	"drover/internal/pki"
	"drover/internal/rpc"
)

// world is a CA, a vault on the loopback, and whoever calls it.
type world struct {
	t      testing.TB
	dir    string
	ca     *pki.CA
	o      vault.Options
	stores map[string]blob.Store // by location

	v      *vault.Vaults
	server *http.Server
	addr   string
	http2  *http.HTTP2Config
	// Of repositories that create makes. Empty: they are quicker to make.
	passphrase string
}

func newWorld(t testing.TB, o vault.Options) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), o: o, http2: vault.ServerHTTP2(), stores: map[string]blob.Store{}}
	var err error
	if w.ca, err = pki.Open(filepath.Join(w.dir, "ca"), clock.Real()); err != nil {
		t.Fatal(err)
	}
	w.o.StateDir, w.o.CacheDir, w.o.Clock = filepath.Join(w.dir, "state"), filepath.Join(w.dir, "cache"), clock.Real()
	if w.o.Storage == nil {
		w.o.Storage = func(_ context.Context, s *v1.RepositorySpec) (blob.Store, error) {
			if st := w.stores[s.GetLocation()]; st != nil {
				return st, nil
			}
			return blob.Open(s.GetLocation(), blob.S3Options{})
		}
	}
	w.start()
	t.Cleanup(w.stop)
	return w
}

func (w *world) start() {
	w.t.Helper()
	var err error
	if w.v, err = vault.New(context.Background(), w.o); err != nil {
		w.t.Fatal(err)
	}
	if err := w.v.Reopen(context.Background()); err != nil {
		w.t.Fatal(err)
	}
	conf, err := pki.ServerConfig(pki.ServerOptions{Credential: w.credential(pki.Identity{Role: pki.RoleManager, Name: "m", UID: "m1"}), Trust: w.ca.Trust(), RequireClient: true})
	if err != nil {
		w.t.Fatal(err)
	}
	addr := w.addr
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		w.t.Fatal(err)
	}
	w.addr = l.Addr().String()
	mux := http.NewServeMux()
	mux.Handle(w.v.Handler())
	w.server = &http.Server{Handler: mux, TLSConfig: conf, Protocols: rpc.ServerProtocols(false), HTTP2: w.http2}
	go func(s *http.Server) { _ = s.ServeTLS(l, "", "") }(w.server)
}

func (w *world) stop() {
	if w.server == nil {
		return
	}
	_ = w.server.Close()
	w.server = nil
	if err := w.v.Close(); err != nil {
		w.t.Error("close the vault:", err)
	}
}

func (w *world) credential(id pki.Identity) *pki.Credential {
	w.t.Helper()
	key, err := pki.NewKey()
	if err != nil {
		w.t.Fatal(err)
	}
	chain, err := w.ca.Issue(key.Public(), pki.Grant{Identity: id})
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := pki.SaveCredential(filepath.Join(w.t.TempDir(), "credential"), key, chain)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// as is a client with the certificate of a host.
func (w *world) as(uid string) droverv1connect.VaultServiceClient {
	w.t.Helper()
	c, closer, err := remote.Dial(&v1.VaultAddress{Address: w.addr, Role: "manager"}, w.credential(pki.Identity{Role: pki.RoleHost, Name: uid, UID: uid}), w.ca.Trust())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(closer)
	return c
}

// create makes a repository in memory.
func (w *world) create(name string, spec *v1.RepositorySpec) string {
	w.t.Helper()
	if spec == nil {
		spec = &v1.RepositorySpec{}
	}
	if spec.Location == "" {
		spec.Location = "memory:" + name
		w.stores[spec.Location] = blob.NewMemory()
	}
	res, err := w.v.Client().Open(w.t.Context(), &v1.VaultOpenRequest{Repository: name, Spec: spec, Create: true, Passphrase: w.passphrase})
	if err != nil {
		w.t.Fatal("create:", err)
	}
	return res.GetRecoveryKey()
}

func (w *world) grant(req *v1.VaultGrantRequest) string {
	w.t.Helper()
	var b [32]byte
	_, _ = rand.Read(b[:])
	req.Grant = hex.EncodeToString(b[:])
	if _, err := w.v.Client().Grant(w.t.Context(), req); err != nil {
		w.t.Fatal("grant:", err)
	}
	return req.Grant
}

// repository is what a host with a grant for all of a repository has.
func (w *world) repository(name, host, vm string) *remote.Repository {
	w.t.Helper()
	g := w.grant(&v1.VaultGrantRequest{Repository: name, HostUid: host, VmUid: vm, Read: true, Write: true})
	return remote.New(remote.Options{Client: w.as(host), Repository: name, Grant: g, Retry: 20 * time.Second})
}

func reasonOf(err error) string {
	if err == nil {
		return ""
	}
	return rpc.Detail(rpc.FromError(err)).GetReason()
}

func want(t *testing.T, err error, reason string) {
	t.Helper()
	if got := reasonOf(err); got != reason || err == nil {
		t.Errorf("want %s, got %q: %v", reason, got, err)
	}
}

// relay passes connections on to the vault, counts what goes through, and can cut them all.
type relay struct {
	l     net.Listener
	bytes atomic.Int64

	mu    sync.Mutex
	conns map[net.Conn]bool
}

func (w *world) relay() *relay {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	r := &relay{l: l, conns: map[net.Conn]bool{}}
	target := w.addr
	var all sync.WaitGroup
	all.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", target)
			if err != nil {
				_ = in.Close()
				continue
			}
			r.mu.Lock()
			r.conns[in], r.conns[out] = true, true
			r.mu.Unlock()
			for _, p := range [][2]net.Conn{{in, out}, {out, in}} {
				all.Go(func() {
					_, _ = io.Copy(struct{ io.Writer }{counter{p[0], &r.bytes}}, p[1])
					_ = p[0].Close()
				})
			}
		}
	})
	w.t.Cleanup(func() {
		_ = l.Close()
		r.cut()
		all.Wait()
	})
	return r
}

type counter struct {
	io.Writer
	n *atomic.Int64
}

func (c counter) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.n.Add(int64(n))
	return n, err
}

// cut breaks all connections; new ones work.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		_ = c.Close()
		delete(r.conns, c)
	}
}

// through is a client by way of a relay.
func (w *world) through(r *relay, uid string) droverv1connect.VaultServiceClient {
	w.t.Helper()
	c, closer, err := remote.Dial(&v1.VaultAddress{Address: r.l.Addr().String(), Role: "manager"}, w.credential(pki.Identity{Role: pki.RoleHost, Name: uid, UID: uid}), w.ca.Trust())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(closer)
	return c
}

// counted is a client, and what it sent and got, in bytes.
func (w *world) counted(uid string) (droverv1connect.VaultServiceClient, func() int64) {
	r := w.relay()
	return w.through(r, uid), r.bytes.Load
}

var _ backup.Repository = (*remote.Repository)(nil)

// told is what a handler's error is for the other side.
func told(err error) error {
	return rpc.Error(context.Background(), slog.New(slog.DiscardHandler), err)
}
