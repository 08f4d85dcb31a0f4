package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"drover/api/drover/v1/droverv1connect"
	"drover/internal/backup/vault"
	"drover/internal/pki"
	"drover/internal/rpc"
)

// servers are the host's own API and the local socket.
type servers struct {
	failed chan error
	list   []*http.Server
	ended  sync.WaitGroup
	life   context.CancelFunc
	vaults io.Closer
}

// socketName is the local socket for `drover host status`, in the run directory.
const socketName = "host.sock"

// SocketPath is where an agent with this run directory answers local questions.
func SocketPath(runDir string) string { return filepath.Join(runDir, socketName) }

func (a *agent) serve(ctx context.Context, l net.Listener) (*servers, error) {
	conf, err := pki.ServerConfig(pki.ServerOptions{
		Credential: a.id.credential, Trust: a.id.trust, RequireClient: true,
		Admit: func(who pki.Identity) error {
			if who.Role != pki.RoleManager && who.Role != pki.RoleHost {
				return fmt.Errorf("only the manager and hosts may call a host, not %s", who)
			}
			return nil // what hosts may ask for, onlyVault says
		},
	})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	if !a.cfg.RepositoriesOnly {
		mux.Handle(droverv1connect.NewNodeServiceHandler(&node{a: a}, rpc.HandlerOptions(rpc.Errors(a.log))...))
	}
	mux.Handle("GET /metrics", a.metricsHandler())
	vaults, err := a.openVaults(ctx)
	if err != nil {
		return nil, err
	}
	vaultPath, vaultHandler := vaults.Handler()
	mux.Handle(vaultPath, vaultHandler)

	socket := SocketPath(a.cfg.RunDir)
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(err, vaults.Close())
	}
	local, err := net.Listen("unix", socket)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen for local questions: %w", err), vaults.Close())
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return nil, errors.Join(err, local.Close(), vaults.Close())
	}
	localMux := http.NewServeMux()
	localMux.HandleFunc("GET /status", a.localStatus)
	localMux.Handle("GET /metrics", a.metricsHandler())

	ctx, end := context.WithCancel(ctx)
	s := &servers{failed: make(chan error, 2), life: end}
	start := func(h http.Handler, run func(*http.Server) error, protocols *http.Protocols) {
		srv := &http.Server{
			Handler: h, Protocols: protocols, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 5 * time.Minute,
			BaseContext: func(net.Listener) context.Context { return ctx },
			HTTP2:       vault.ServerHTTP2(),
		}
		s.list = append(s.list, srv)
		s.ended.Go(func() {
			if err := run(srv); !errors.Is(err, http.ErrServerClosed) {
				s.failed <- err
			}
		})
	}
	s.vaults = vaults
	start(onlyVault(vaultPath, mux), func(srv *http.Server) error {
		srv.TLSConfig = conf
		return srv.ServeTLS(l, "", "")
	}, rpc.ServerProtocols(false))
	start(localMux, func(srv *http.Server) error { return srv.Serve(local) }, rpc.ServerProtocols(true))
	return s, nil
}

func (s *servers) close() {
	s.life()
	for _, srv := range s.list {
		_ = srv.Close()
	}
	s.ended.Wait()
	_ = s.vaults.Close() // what could not be ended is ended by the next collection
}

// Status is what the local socket answers to GET /status.
type Status struct {
	Host    json.RawMessage   `json:"host"` // a HostStatus
	Name    string            `json:"name"`
	Site    string            `json:"site"`
	Manager string            `json:"manager"`
	VMs     []json.RawMessage `json:"vms"` // VMReports
}

func (a *agent) localStatus(w http.ResponseWriter, _ *http.Request) {
	out := Status{Name: a.id.Host, Site: a.id.Site, Manager: a.id.Manager}
	marshal := protojson.MarshalOptions{UseProtoNames: true}
	var err error
	if out.Host, err = marshal.Marshal(a.hostStatus()); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	for _, m := range a.all() {
		b, err := marshal.Marshal(m.report())
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		out.VMs = append(out.VMs, b)
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(out); err != nil {
		a.log.Debug("status not delivered", "err", err)
	}
}
