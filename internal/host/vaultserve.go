package host

import (
	"context"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/backup/policy"
	"drover/internal/backup/remote"
	"drover/internal/backup/vault"
	"drover/internal/pki"
)

// openVaults makes the service of the repositories that this host serves. The manager says which those are; what was open before is opened again
// at once, without it.
func (a *agent) openVaults(ctx context.Context) (*vault.Vaults, error) {
	v, err := vault.New(context.WithoutCancel(ctx), vault.Options{
		StateDir: filepath.Join(a.cfg.StateDir, "vaults"), CacheDir: filepath.Join(a.cfg.StateDir, "vault-cache"), Clock: a.clk, Log: a.log, Version: a.cfg.Version,
		Dial: func(at *v1.VaultAddress) (droverv1connect.VaultServiceClient, func(), error) {
			return remote.Dial(at, a.id.credential, a.id.trust)
		},
		InWindow: func(window string, t time.Time) (bool, error) {
			w, err := policy.ParseWindow(window)
			return err == nil && w.Contains(t), err
		},
	})
	if err != nil {
		return nil, err
	}
	a.actors.Go(func() {
		if err := v.Reopen(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("repositories not opened again", "err", err)
		}
	})
	return v, nil
}

// onlyVault lets other hosts ask for what is in repositories and for nothing else. The vault asks for their grants.
func onlyVault(path string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, err := pki.FromState(*r.TLS) // a certificate is required of all who connect
		if err != nil || who.Role != pki.RoleManager && !strings.HasPrefix(r.URL.Path, path) {
			http.Error(w, "only the manager may ask for this", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}
