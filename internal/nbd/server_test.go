package nbd

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// ram is an export in memory.
type ram struct {
	mu   sync.Mutex
	b    []byte
	wait chan struct{} // if set, reads wait until it is closed
	fail error
}

func (r *ram) Size() int64 { return int64(len(r.b)) }

func (r *ram) ReadAt(ctx context.Context, p []byte, off int64) error {
	if r.wait != nil {
		select {
		case <-r.wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if r.fail != nil {
		return r.fail
	}
	copy(p, r.b[off:])
	return nil
}

func (r *ram) WriteAt(_ context.Context, p []byte, off int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	copy(r.b[off:], p)
	return nil
}

func (r *ram) Zero(_ context.Context, off, n int64, _ bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.b[off:][:n])
	return nil
}
func (r *ram) Trim(context.Context, int64, int64) error { return nil }
func (r *ram) Flush(context.Context) error              { return nil }
func (r *ram) Contexts() []string                       { return []string{Allocation, DirtyBitmap + "x"} }

// Extents: of Allocation by MiB; of the bitmap every second 64 KiB is dirty, at most 100 at once.
func (r *ram) Extents(_ context.Context, name string, off, n int64) ([]Extent, error) {
	var out []Extent
	unit := int64(1 << 20)
	if name != Allocation {
		unit = 64 << 10
	}
	for at := off / unit * unit; at < off+n && len(out) < 100; at += unit {
		x := Extent{Offset: max(at, off), Flags: uint32(at / unit % 2)}
		x.Length = min(at+unit, r.Size()) - x.Offset
		if name == Allocation {
			x.Flags = 0
			if isZero(r.b[at:min(at+unit, r.Size())]) {
				x.Flags = Hole | Zero
			}
		}
		out = appendExtent(out, x)
	}
	return out, nil
}

// serve serves exports by name on a unix socket, or what listen says.
func serve(t testing.TB, l net.Listener, o ServerOptions, exports map[string]Export) (open *atomic.Int32) {
	t.Helper()
	open = new(atomic.Int32)
	o.Lookup = func(_ context.Context, name string, _ Peer) (Export, func(), error) {
		x := exports[name]
		if x == nil {
			return nil, nil, ErrNoExport
		}
		open.Add(1)
		return x, func() { open.Add(-1) }, nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	end := make(chan error)
	go func() { end <- NewServer(o).Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-end; err != nil {
			t.Error(err)
		}
		if n := open.Load(); n != 0 {
			t.Errorf("%d exports were not released", n)
		}
	})
	return open
}

func unixListener(t testing.TB) (net.Listener, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	return l, path
}

func TestServerAndClient(t *testing.T) {
	l, path := unixListener(t)
	want := sparse(t, filepath.Join(t.TempDir(), "raw"), 32)
	open := serve(t, l, ServerOptions{InFlight: 4, Memory: 1}, map[string]Export{"a": ReadOnly(&ram{b: want}), "w": &ram{b: make([]byte, 5<<20+17)}})
	c := dialTest(t, path, Options{Export: "a", Contexts: []string{Allocation, DirtyBitmap + "x"}, Connections: 3})
	if !c.ReadOnly() || c.Connections() != 3 || open.Load() != 3 {
		t.Fatalf("read-only %v, %d connections, %d open", c.ReadOnly(), c.Connections(), open.Load())
	}
	checkRead(t, c, want)
	all, err := c.Status(t.Context(), 70<<10, 30<<20)
	if err != nil {
		t.Fatal(err)
	}
	if x := all[DirtyBitmap+"x"]; len(x) != 481 || x[0] != (Extent{70 << 10, 58 << 10, Dirty}) || x[480].Offset+x[480].Length != 30<<20+70<<10 {
		t.Fatalf("%d extents: %v", len(x), x[:3])
	}
	if x := all[Allocation]; len(x) != 31 {
		t.Fatalf("%v", x)
	}
	for _, err := range []error{c.WriteAt(t.Context(), []byte("x"), 0), c.Zero(t.Context(), 0, 1, true)} {
		if e := Errno(0); !errors.As(err, &e) {
			t.Fatalf("a write to what is read-only: %v", err)
		}
	}
	w := dialTest(t, path, Options{Export: "w"})
	p := bytes.Repeat([]byte("drover"), 500_000)
	for _, err := range []error{w.WriteAt(t.Context(), p, 1<<20+3), w.Zero(t.Context(), 2<<20, 1000, false), w.Trim(t.Context(), 0, 10), w.Flush(t.Context())} {
		if err != nil {
			t.Fatal(err)
		}
	}
	is := make([]byte, 5<<20+17)
	copy(is[1<<20+3:], p)
	clear(is[2<<20:][:1000])
	checkRead(t, w, is)
}

// TestServerErrors: what a peer is told when an export fails.
func TestServerErrors(t *testing.T) {
	l, path := unixListener(t)
	serve(t, l, ServerOptions{}, map[string]Export{
		"bad":  &ram{b: make([]byte, 1<<20), fail: errors.New("the pack 7 is damaged")},
		"full": &ram{b: make([]byte, 1<<20), fail: ENOSPC},
	})
	for name, want := range map[string]Errno{"bad": EIO, "full": ENOSPC} {
		c := dialTest(t, path, Options{Export: name})
		var e *Error
		if err := c.ReadAt(t.Context(), make([]byte, 10), 5); !errors.As(err, &e) || e.Errno != want || e.Op != "read" {
			t.Fatalf("%s: %v", name, err)
		}
		if name == "bad" && !strings.Contains(e.Message, "pack 7") {
			t.Fatalf("%q", e.Message)
		}
	}
	if _, err := Dial(t.Context(), "unix", path, Options{Export: "no"}); !errors.Is(err, ErrNoExport) {
		t.Fatalf("%v", err)
	}
}

// TestServerPeers: other people's clients read and write what we serve.
func TestServerPeers(t *testing.T) {
	l, path := unixListener(t)
	dir := t.TempDir()
	want := sparse(t, filepath.Join(dir, "raw"), 32)
	w := &ram{b: make([]byte, 4<<20)}
	serve(t, l, ServerOptions{}, map[string]Export{"a": ReadOnly(&ram{b: want}), "w": w})
	uri := "nbd+unix:///a?socket=" + path
	t.Run("qemu-img", func(t *testing.T) {
		out := filepath.Join(dir, "out")
		run(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", uri, out)
		same(t, out, want)
		var m []struct{ Start, Length int64 }
		j := run(t, "qemu-img", "map", "--output=json", "-f", "raw", uri)
		if err := json.Unmarshal([]byte(j), &m); err != nil || len(m) != 32 {
			t.Fatalf("%v %s", err, j)
		}
	})
	t.Run("qemu-io", func(t *testing.T) {
		run(t, "qemu-io", "-f", "raw", "-c", "write -P 9 1000 70000", "-c", "write -z 2000 100", "-c", "discard 1M 1M", "-c", "flush",
			"-c", "read -P 9 1000 1000", "-c", "read -P 0 2000 100", "nbd+unix:///w?socket="+path)
		if w.b[1000] != 9 || w.b[2000] != 0 || w.b[71000] != 0 {
			t.Fatal("what was written is not there")
		}
	})
	t.Run("nbdcopy", func(t *testing.T) {
		out := filepath.Join(dir, "copy")
		run(t, "nbdcopy", uri, out)
		same(t, out, want)
	})
	t.Run("nbdinfo", func(t *testing.T) {
		out := run(t, "nbdinfo", "--json", uri)
		for _, s := range []string{`"can_multi_conn": true`, `"is_read_only": true`, `"base:allocation"`, `"qemu:dirty-bitmap:x"`, `"export-size": 33554432`} {
			if !strings.Contains(out, s) {
				t.Errorf("no %s in %s", s, out)
			}
		}
		m := run(t, "nbdinfo", "--map=qemu:dirty-bitmap:x", uri)
		if strings.Count(m, "\n") != 512 {
			t.Errorf("%d lines", strings.Count(m, "\n"))
		}
	})
	t.Run("nbdkit", func(t *testing.T) {
		sock := filepath.Join(dir, "kit")
		start(t, "nbdkit", "-f", "-U", sock, "nbd", "uri="+uri)
		listening(t, sock)
		checkRead(t, dialTest(t, sock, Options{}), want)
	})
}

func same(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%s: %d bytes, not those of the export: %v", path, len(got), err)
	}
}

// certificates makes a CA, a server's and a client's certificate, also as files as libnbd and QEMU want them.
func certificates(t *testing.T) (server, client *tls.Config, dir string) {
	t.Helper()
	dir = t.TempDir()
	pool := x509.NewCertPool()
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	caKey := key()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	make := func(tmpl *x509.Certificate, k *ecdsa.PrivateKey, name string) tls.Certificate {
		der, err := x509.CreateCertificate(rand.Reader, tmpl, ca, &k.PublicKey, caKey)
		if err != nil {
			t.Fatal(err)
		}
		kb, _ := x509.MarshalPKCS8PrivateKey(k)
		os.WriteFile(filepath.Join(dir, name+"-cert.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
		os.WriteFile(filepath.Join(dir, name+"-key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kb}), 0o600)
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}
	}
	c := make(ca, caKey, "ca")
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(leaf)
	use := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	s := make(&x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "server"}, NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"}, ExtKeyUsage: use}, key(), "server")
	u := make(&x509.Certificate{SerialNumber: big.NewInt(3), NotAfter: time.Now().Add(time.Hour), Subject: pkix.Name{CommonName: "client"}, ExtKeyUsage: use}, key(), "client")
	server = &tls.Config{Certificates: []tls.Certificate{s}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12}
	client = &tls.Config{Certificates: []tls.Certificate{u}, RootCAs: pool, ServerName: "localhost"}
	return server, client, dir
}

func TestTLS(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, client, dir := certificates(t)
	want := sparse(t, filepath.Join(dir, "raw"), 8)
	serve(t, l, ServerOptions{TLS: server}, map[string]Export{"a": ReadOnly(&ram{b: want})})
	addr := l.Addr().String()
	c, err := Dial(t.Context(), "tcp", addr, Options{Export: "a", TLS: client, Contexts: []string{Allocation}, Connections: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	checkRead(t, c, want)
	if _, err := Dial(t.Context(), "tcp", addr, Options{Export: "a"}); err == nil || errors.Is(err, ErrNoExport) {
		t.Fatalf("without TLS: %v", err)
	}
	other := client.Clone()
	other.Certificates = nil
	if _, err := Dial(t.Context(), "tcp", addr, Options{Export: "a", TLS: other}); err == nil {
		t.Fatal("without a certificate")
	}
	_, port, _ := net.SplitHostPort(addr)
	out := filepath.Join(dir, "out")
	run(t, "nbdcopy", "nbds://localhost:"+port+"/a?tls-certificates="+dir, out)
	same(t, out, want)
	run(t, "qemu-img", "convert", "--object", "tls-creds-x509,id=t,endpoint=client,dir="+dir, "--image-opts",
		"driver=nbd,host=127.0.0.1,port="+port+",export=a,tls-creds=t", "-O", "raw", out)
	same(t, out, want)
	if err := NewServer(ServerOptions{}).Serve(t.Context(), anywhere{l}); err == nil || !strings.Contains(err.Error(), "TLS") {
		t.Fatalf("in the clear on a network: %v", err)
	}
}

// anywhere is a listener on all addresses, as it says.
type anywhere struct{ net.Listener }

func (anywhere) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4zero} }
func (anywhere) Close() error   { return nil }

// TestServerTurnsAway: too many peers, and those that do not get on.
func TestServerTurnsAway(t *testing.T) {
	l, path := unixListener(t)
	serve(t, l, ServerOptions{Connections: 1, Handshake: 200 * time.Millisecond, Stall: 200 * time.Millisecond}, map[string]Export{"": &ram{b: make([]byte, 64<<20)}})
	slow, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	io.ReadFull(slow, make([]byte, 18))
	if _, err := Dial(t.Context(), "unix", path, Options{}); err == nil {
		t.Fatal("a second peer was let in")
	}
	slow.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := slow.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("a peer that says nothing keeps its connection: %v", err)
	}
	// One that asks and does not take the answer.
	deadline := time.Now().Add(5 * time.Second)
	var c *Client
	for c == nil && time.Now().Before(deadline) {
		c, _ = Dial(t.Context(), "unix", path, Options{})
	}
	if c == nil {
		t.Fatal("the place was not given back")
	}
	c.Close()
	raw := enter(t, path)
	defer raw.Close()
	for range 8 {
		raw.Write(rawRequest(cmdRead, 0, 32<<20))
	}
	time.Sleep(time.Second)
	raw.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := io.Copy(io.Discard, raw); n >= 8*32<<20 || err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("a peer that stalled got all %d bytes: %v", n, err)
	}
}

// TestServerEnds: Serve ends also when exports hang.
func TestServerEnds(t *testing.T) {
	l, path := unixListener(t)
	x := &ram{b: make([]byte, 1<<20), wait: make(chan struct{})}
	serve(t, l, ServerOptions{}, map[string]Export{"": x})
	c := dialTest(t, path, Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := c.ReadAt(ctx, make([]byte, 10), 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}

// wide repeats an export up to a size.
type wide struct {
	x    *ram
	size int64
}

func (w wide) Size() int64 { return w.size }
func (w wide) ReadAt(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		at := off % w.x.Size()
		n := min(int64(len(p)), w.x.Size()-at)
		if err := w.x.ReadAt(ctx, p[:n], at); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}
