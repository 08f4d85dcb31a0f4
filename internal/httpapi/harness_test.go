package httpapi

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"drover/api/drover/v1/droverv1connect"
	"drover/internal/manager"
	"drover/internal/rpc"
)

// rig is a real manager: embedded etcd, both listeners.
type rig struct {
	m        *manager.Manager
	dir      string
	socket   string
	address  string
	password string
	stop     func()
}

// freeAddress is a loopback address that nothing listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func start(t *testing.T) *rig {
	t.Helper()
	return startIn(t, t.TempDir(), freeAddress(t))
}

func startIn(t *testing.T, dir, address string) *rig {
	t.Helper()
	return startAt(t, dir, address, filepath.Join(dir, "m.sock"))
}

func startAt(t testing.TB, dir, address, socket string, etcd ...string) *rig {
	t.Helper()
	r := &rig{dir: dir, address: address, socket: socket}
	ctx, stop := context.WithCancel(context.Background())
	up, done := make(chan *manager.Manager, 1), make(chan error, 1)
	go func() {
		done <- Run(ctx, manager.Config{
			StateDir: dir, Listen: address, Socket: r.socket, Version: "test", HostTimeout: 2 * time.Second, Etcd: etcd,
			Logger: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn})),
		}, func(m *manager.Manager) { up <- m })
	}()
	ended := false
	r.stop = func() {
		if ended {
			return
		}
		ended = true
		stop()
		if err := <-done; err != nil {
			t.Errorf("manager: %v", err)
		}
	}
	t.Cleanup(r.stop)
	select {
	case r.m = <-up:
		r.password = r.m.FirstPassword
	case err := <-done:
		ended = true
		t.Fatalf("manager did not start: %v", err)
	case <-time.After(time.Minute):
		t.Fatal("manager did not start within a minute")
	}
	return r
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	if w.t.Context().Err() == nil { // the log of the end comes after the test's own
		w.t.Logf("%s", b)
	}
	return len(b), nil
}

const base = "http://drover"

func (r *rig) vms() droverv1connect.VMServiceClient {
	return droverv1connect.NewVMServiceClient(rpc.UnixClient(r.socket), base, rpc.ClientOptions()...)
}

func (r *rig) sites() droverv1connect.SiteServiceClient {
	return droverv1connect.NewSiteServiceClient(rpc.UnixClient(r.socket), base, rpc.ClientOptions()...)
}

func (r *rig) hosts() droverv1connect.HostServiceClient {
	return droverv1connect.NewHostServiceClient(rpc.UnixClient(r.socket), base, rpc.ClientOptions()...)
}
