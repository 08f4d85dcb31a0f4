package host

import (
	"context"
	"crypto/subtle"
	"fmt"
	"net"
	"sync"

	"drover/internal/nbd"
	"drover/internal/pki"
)

// lending serves disks over NBD with TLS to whoever has the secret name of one. The listener is opened when it is first needed, and
// closed with the agent.
type lending struct {
	mu      sync.Mutex
	exports map[string]nbd.Export // by secret name
	at      string                // HOST:PORT for others; empty: not open yet
}

// address opens the listener, if it isn't, and tells where others reach it.
func (l *lending) address(a *agent) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at != "" {
		return l.at, nil
	}
	conf, err := pki.ServerConfig(pki.ServerOptions{Credential: a.id.credential, Trust: a.id.trust})
	if err != nil {
		return "", err
	}
	// Programs of others have no name for us but the address; and they speak neither HTTP.
	conf.NextProtos = nil
	listener, err := net.Listen("tcp", a.cfg.ListenNBD)
	if err != nil {
		return "", fmt.Errorf("listen for programs that read disks over NBD: %w; another port can be given by --listen-nbd", err)
	}
	host, _, err := net.SplitHostPort(a.address)
	if err != nil {
		host = a.address
	}
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		return "", err
	}
	l.at = net.JoinHostPort(host, port)
	srv := nbd.NewServer(nbd.ServerOptions{TLS: conf, Lookup: l.lookup, Log: a.log})
	a.actors.Go(func() {
		if err := srv.Serve(a.life, listener); err != nil {
			a.log.Error("disks are not served over NBD any more", "err", err)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.at = ""
	})
	return l.at, nil
}

func (l *lending) put(name string, x nbd.Export) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.exports == nil {
		l.exports = map[string]nbd.Export{}
	}
	l.exports[name] = x
}

func (l *lending) drop(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.exports, name)
}

// lookup compares with all names, so that the time that it takes tells nothing.
func (l *lending) lookup(_ context.Context, name string, _ nbd.Peer) (nbd.Export, func(), error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var found nbd.Export
	for secret, x := range l.exports {
		if constantTime(secret, name) {
			found = x
		}
	}
	if found == nil {
		return nil, nil, nbd.ErrNoExport
	}
	return found, func() {}, nil
}

// lentExport is a disk of a point.
type lentExport struct{ src *diskSource }

func (x lentExport) Size() int64 { return x.src.Size() }
func (x lentExport) ReadAt(ctx context.Context, p []byte, off int64) error {
	return x.src.ReadAt(ctx, p, off)
}
func (x lentExport) Contexts() []string { return []string{nbd.Allocation} }
func (x lentExport) Extents(ctx context.Context, _ string, off, n int64) ([]nbd.Extent, error) {
	list, err := x.src.Extents(ctx, off, min(n, sourceWindow))
	if err != nil {
		return nil, err
	}
	var out []nbd.Extent
	for _, e := range list {
		flags := uint32(0)
		if e.Zero {
			flags = nbd.Hole | nbd.Zero
		}
		out = append(out, nbd.Extent{Offset: e.Offset, Length: e.Length, Flags: flags})
	}
	return out, nil
}

// importExport is a disk that is written to.
type importExport struct{ lentExport }

func (x importExport) WriteAt(ctx context.Context, p []byte, off int64) error {
	return x.src.point.WriteAt(ctx, p, off)
}
func (x importExport) Zero(ctx context.Context, off, n int64, punch bool) error {
	return x.src.point.Zero(ctx, off, n, punch)
}
func (x importExport) Trim(ctx context.Context, off, n int64) error {
	return x.src.point.Trim(ctx, off, n)
}
func (x importExport) Flush(ctx context.Context) error { return x.src.point.Flush(ctx) }

// constantTime tells whether two secrets are the same.
func constantTime(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
