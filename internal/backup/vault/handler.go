package vault

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/pki"
	"drover/internal/rpc"
)

const (
	// maxMessage is the largest that a host may send; requestsEach of one host are read and carried out at once.
	maxMessage   = maxBytes + 1<<20
	requestsEach = 24
)

// service has the calls under the names that they have in the API.
type service struct{ *Vaults }

func (s service) Close(ctx context.Context, req *v1.VaultCloseRequest) (*v1.VaultCloseResponse, error) {
	return s.closeRepository(ctx, req)
}

// Handler serves VaultService, to be mounted on a server of mutual TLS. interceptors may be nil.
func (v *Vaults) Handler(interceptors ...connect.Interceptor) (path string, h http.Handler) {
	opts := append(rpc.HandlerOptions(append([]connect.Interceptor{rpc.Errors(v.o.Log)}, interceptors...)...), connect.WithReadMaxBytes(maxMessage),
		// Blocks are compressed already.
		connect.WithCompression("gzip", nil, nil))
	path, inner := droverv1connect.NewVaultServiceHandler(service{v}, opts...)
	return path, &gate{v: v, next: inner, places: map[string]chan struct{}{}}
}

// gate tells who calls, and bounds what one host can make us hold in memory.
type gate struct {
	v    *Vaults
	next http.Handler

	mu     sync.Mutex
	places map[string]chan struct{} // by host
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	if _, err := peerOf(ctx); err != nil {
		if r.TLS == nil {
			http.Error(w, "mutual TLS is needed", http.StatusUnauthorized)
			return
		}
		who, err := pki.FromState(*r.TLS)
		if err == nil && g.v.o.Clock.Now().After(r.TLS.VerifiedChains[0][0].NotAfter) {
			// The handshake looked at this; a connection can outlive its certificate.
			err = errors.New("its certificate has expired")
		}
		if err == nil && g.v.o.Admit != nil {
			err = g.v.o.Admit(who)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		ctx = WithPeer(ctx, who)
		if who.Role == pki.RoleHost {
			place := g.place(who.UID)
			select {
			case place <- struct{}{}:
				defer func() { <-place }()
			case <-ctx.Done():
				return
			}
		}
	}
	g.next.ServeHTTP(w, r.WithContext(ctx))
}

func (g *gate) place(uid string) chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.places[uid]
	if c == nil {
		c = make(chan struct{}, requestsEach)
		g.places[uid] = c
	}
	return c
}

// Client calls these vaults from inside the process, as the manager. It has no connection to close.
func (v *Vaults) Client() droverv1connect.VaultServiceClient {
	_, h := v.Handler()
	return droverv1connect.NewVaultServiceClient(&http.Client{Transport: inside{h}}, "http://vault", rpc.ClientOptions()...)
}

// inside carries requests to a handler of this process.
type inside struct{ h http.Handler }

func (t inside) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(WithPeer(r.Context(), pki.Identity{Role: pki.RoleManager, Name: "manager"}))
	body, out := io.Pipe()
	w := &answer{header: http.Header{}, out: out, ready: make(chan struct{})}
	in := r.Clone(ctx)
	in.RequestURI = r.URL.RequestURI()
	in.Proto, in.ProtoMajor, in.ProtoMinor = "HTTP/2.0", 2, 0
	if in.Body == nil {
		in.Body = http.NoBody
	}
	// It ends when the handler does, which cancel makes it do when the reader has gone.
	go func() {
		defer in.Body.Close()
		t.h.ServeHTTP(w, in)
		w.WriteHeader(http.StatusOK)
		_ = out.Close()
	}()
	select {
	case <-w.ready:
	case <-r.Context().Done():
		cancel()
		_ = body.CloseWithError(r.Context().Err())
		return nil, r.Context().Err()
	}
	return &http.Response{StatusCode: w.code, Status: http.StatusText(w.code), Header: w.sent, Body: &ending{body, cancel}, ContentLength: -1,
		Proto: "HTTP/2.0", ProtoMajor: 2, Request: r}, nil
}

// ending cancels the call when its answer is read or given up.
type ending struct {
	*io.PipeReader
	cancel context.CancelFunc
}

func (e *ending) Close() error {
	e.cancel()
	return e.PipeReader.Close()
}

type answer struct {
	header http.Header
	out    *io.PipeWriter
	ready  chan struct{}
	once   sync.Once
	code   int
	sent   http.Header
}

func (a *answer) Header() http.Header { return a.header }
func (a *answer) Flush()              { a.WriteHeader(http.StatusOK) }

func (a *answer) WriteHeader(code int) {
	a.once.Do(func() {
		a.code, a.sent = code, a.header.Clone()
		close(a.ready)
	})
}

func (a *answer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.out.Write(p)
}

// ServerHTTP2 are settings for the server that the handler is mounted on: large frames, and room for a whole message in flight, without which a link
// of some latency is never filled.
func ServerHTTP2() *http.HTTP2Config {
	return &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second, MaxConcurrentStreams: 250, MaxReadFrameSize: 1 << 20,
		MaxReceiveBufferPerConnection: 32 << 20, MaxReceiveBufferPerStream: 8 << 20}
}
