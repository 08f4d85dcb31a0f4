package httpapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"drover/api/drover/v1/droverv1connect"
	"drover/internal/auth"
	"drover/internal/backup/vault"
	"drover/internal/manager"
	"drover/internal/rpc"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"
)

// Server serves one manager.
type Server struct {
	m       *manager.Manager
	log     *slog.Logger
	handler http.Handler
	metrics *metrics
	// stopping is closed when Serve is told to end: streams end then. requests are those that are being answered.
	stopping chan struct{}
	requests sync.WaitGroup
}

// Run opens a manager, serves it until ctx ends, and closes it. ready is called when both listeners answer.
func Run(ctx context.Context, cfg manager.Config, ready func(*manager.Manager)) (err error) {
	m, err := manager.Open(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	s := New(m)
	g, gctx := errgroup.WithContext(ctx)
	// The manager runs until nothing is served any more: what is being answered still needs it.
	own, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	up := make(chan struct{})
	g.Go(func() error { return m.Run(own, func() { close(up) }) })
	g.Go(func() error {
		defer stop()
		select {
		case <-up:
		case <-gctx.Done():
			return nil
		}
		return s.Serve(gctx, func() {
			if ready != nil {
				ready(m)
			}
		})
	})
	return g.Wait()
}

// New makes the server of a manager.
func New(m *manager.Manager) *Server {
	s := &Server{m: m, log: m.Logger(), metrics: newMetrics(m), stopping: make(chan struct{})}
	s.handler = s.routes()
	return s
}

// Handler is everything that is served, for any listener whose connections identify callers.
func (s *Server) Handler() http.Handler { return s.handler }

// The order of interceptors, outermost first: errors are put into words last, so that the others see them as they are; calls
// are timed with all that is done for them; what is refused is written down, too.
func (s *Server) routes() http.Handler {
	opts := connect.WithHandlerOptions(rpc.HandlerOptions(rpc.Errors(s.log), s.metrics, ending{s.stopping}, auditor{s}, guard{})...)
	mux := http.NewServeMux()
	for _, h := range []func() (string, http.Handler){
		func() (string, http.Handler) { return droverv1connect.NewSiteServiceHandler(sites{s.m}, opts) },
		func() (string, http.Handler) { return droverv1connect.NewHostServiceHandler(hosts{s.m}, opts) },
		func() (string, http.Handler) {
			return droverv1connect.NewDatastoreServiceHandler(datastores{s.m}, opts)
		},
		func() (string, http.Handler) { return droverv1connect.NewNetworkServiceHandler(networks{s.m}, opts) },
		func() (string, http.Handler) { return droverv1connect.NewImageServiceHandler(images{s.m}, opts) },
		func() (string, http.Handler) { return droverv1connect.NewVMServiceHandler(vms{s.m}, opts) },
		func() (string, http.Handler) { return droverv1connect.NewDiskServiceHandler(disks{s.m}, opts) },
		func() (string, http.Handler) { return droverv1connect.NewNICServiceHandler(nics{s.m}, opts) },
		func() (string, http.Handler) {
			return droverv1connect.NewPortProfileServiceHandler(portProfiles{s.m}, opts)
		},
		func() (string, http.Handler) { return droverv1connect.NewPortServiceHandler(ports{s.m}, opts) },
		func() (string, http.Handler) { return droverv1connect.NewSwitchServiceHandler(switches{s.m}, opts) },
		func() (string, http.Handler) {
			return droverv1connect.NewSnapshotServiceHandler(snapshots{s.m}, opts)
		},
		func() (string, http.Handler) {
			return droverv1connect.NewRepositoryServiceHandler(repositories{s.m}, opts)
		},
		func() (string, http.Handler) {
			return droverv1connect.NewBackupPolicyServiceHandler(policies{s.m}, opts)
		},
		func() (string, http.Handler) {
			return droverv1connect.NewBackupServiceHandler(restorePoints{s.m}, opts)
		},
		func() (string, http.Handler) {
			return droverv1connect.NewProtectionServiceHandler(protection{s.m}, opts)
		},
		func() (string, http.Handler) { return droverv1connect.NewTaskServiceHandler(tasks{s.m}, opts) },
		func() (string, http.Handler) { return droverv1connect.NewEventServiceHandler(events{s.m}, opts) },
		func() (string, http.Handler) { return droverv1connect.NewAuditServiceHandler(audits{s.m}, opts) },
		func() (string, http.Handler) {
			return droverv1connect.NewMetricServiceHandler(measurements{s.m}, opts)
		},
		func() (string, http.Handler) { return droverv1connect.NewAuthServiceHandler(people{s.m}, opts) },
		func() (string, http.Handler) { return droverv1connect.NewManagerServiceHandler(install{s.m}, opts) },
		func() (string, http.Handler) { return droverv1connect.NewAgentServiceHandler(agents{s.m}, opts) },
	} {
		mux.Handle(h())
	}
	mux.Handle(s.m.VaultHandler(s.metrics, ending{s.stopping}, guard{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /metrics", s.serveMetrics)
	mux.HandleFunc("GET /metrics/hosts/{host}", s.serveHostMetrics)
	mux.HandleFunc("GET /images/{sha256}", s.serveImage)
	mux.HandleFunc("HEAD /upload/images/{name}", s.uploaded)
	mux.HandleFunc("PUT /upload/images/{name}", s.whileServing(s.upload))
	mux.HandleFunc("GET /ws/vnc/{vm}", s.whileServing(s.vnc))
	return s.identify(mux)
}

// Bounds on slow or silent clients. Streams live as long as they like once their request is read.
const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 5 * time.Minute
	// drainTime is what calls that are being answered get to end when the server does.
	drainTime = 2 * time.Second
)

// Serve listens on the Unix socket and on TCP until ctx ends; then streams end, calls get a moment, and it returns when no handler
// runs any more. Call it once.
func (s *Server) Serve(ctx context.Context, ready func()) error {
	cfg := s.m.Config()
	socket, err := listenUnix(cfg.Socket)
	if err != nil {
		return err
	}
	defer socket.Close()
	tcp, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen on %s: %w; another manager may be running, or choose another address with --listen", cfg.Listen, err)
	}
	defer tcp.Close()
	tlsConfig, err := s.m.TLSConfig()
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	local := s.server(true)
	local.ConnContext = auth.ConnContext
	remote := s.server(false)
	remote.TLSConfig = tlsConfig
	g.Go(func() error { return served(local.Serve(socket)) })
	g.Go(func() error { return served(remote.ServeTLS(tcp, "", "")) })
	g.Go(func() error {
		<-gctx.Done()
		close(s.stopping)
		end, stop := context.WithTimeout(context.WithoutCancel(gctx), drainTime)
		defer stop()
		var both sync.WaitGroup
		for _, srv := range []*http.Server{local, remote} {
			both.Go(func() {
				if err := srv.Shutdown(end); err != nil {
					srv.Close() // which ends the contexts of its requests
				}
			})
		}
		both.Wait()
		s.requests.Wait()
		return nil
	})
	s.log.Info("api: listening", "socket", cfg.Socket, "address", tcp.Addr().String())
	ready()
	return g.Wait()
}

func (s *Server) server(unencrypted bool) *http.Server {
	return &http.Server{
		Handler: s.counted(), ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, Protocols: rpc.ServerProtocols(unencrypted), HTTP2: vault.ServerHTTP2(),
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), MaxHeaderBytes: 64 << 10,
	}
}

// counted is the handler, with its requests counted.
func (s *Server) counted() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		defer s.requests.Done()
		s.handler.ServeHTTP(w, r)
	})
}

func served(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// listenUnix makes the socket; one that a killed manager left is replaced, one that answers is not.
func listenUnix(path string) (net.Listener, error) {
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("socket %s: another manager answers there", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	// Anybody may connect; who may do something is decided by peer credentials. The state directory above it is private, so
	// only a socket elsewhere is reached by others at all.
	if err := os.Chmod(path, 0o666); err != nil {
		l.Close()
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return l, nil
}
