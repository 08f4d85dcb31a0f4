package manager

import (
	"context"
	"errors"
	"net/http"
	"time"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/backup/policy"
	"drover/internal/backup/vault"
	"drover/internal/pki"
	"drover/internal/resource"
	"drover/internal/rpc"

	"connectrpc.com/connect"
)

// vault is the service behind a repository, as the manager calls it.
func (m *Manager) vault(r *v1.Repository) (droverv1connect.VaultServiceClient, error) {
	if r.Spec.Host == "" {
		return m.own.client, nil
	}
	n, err := m.nodes.node(r.Spec.Host)
	if err != nil {
		return nil, err
	}
	return n.vault, nil
}

// vaultAddress is where hosts find a repository; the grant is the caller's to add.
func (m *Manager) vaultAddress(r *v1.Repository) (*v1.VaultAddress, error) {
	a := &v1.VaultAddress{Repository: r.Meta.Name, Role: string(pki.RoleManager), Uid: m.cluster.Meta.Uid}
	if r.Spec.Host == "" {
		if list := m.addresses(); len(list) > 0 {
			a.Address = list[0]
		}
		return a, nil
	}
	h, err := m.Hosts.lookup(r.Spec.Host)
	if err != nil {
		return nil, err
	}
	a.Role, a.Uid, a.Host, a.Address = string(pki.RoleHost), h.Meta.Uid, h.Meta.Name, h.GetStatus().GetAddress()
	return a, nil
}

// atVault puts an error that came from a vault, or from not reaching it, into words.
func atVault(r *v1.Repository, err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	err = rpc.FromError(err)
	if rpc.Detail(err) != nil {
		return err
	}
	where := "the manager"
	if r.Spec.Host != "" {
		where = "host " + r.Spec.Host
	}
	code := resource.CodeOf(err)
	if code == resource.Unavailable {
		return &resource.Error{Code: code, Kind: resource.KindRepository, Name: r.Meta.Name, Reason: "VAULT_UNREACHABLE", Message: where + ", which serves it, can't be reached: " + err.Error(), Err: err}
	}
	return &resource.Error{Code: code, Kind: resource.KindRepository, Name: r.Meta.Name, Reason: "VAULT_FAILED", Message: err.Error(), Err: err}
}

// ownVaults are the repositories that the manager's process serves: to hosts by a handler, to the manager itself inside the process.
type ownVaults struct {
	vaults *vault.Vaults
	client droverv1connect.VaultServiceClient
}

func (m *Manager) openVaults(ctx context.Context) error {
	v, err := vault.New(context.WithoutCancel(ctx), vault.Options{
		StateDir: m.cfg.path("vaults"), CacheDir: m.cfg.path("vault-cache"), Clock: m.cfg.Clock, Log: m.log, Version: m.cfg.Version, Admit: m.Admit, Dial: m.dialVault,
		InWindow: func(window string, t time.Time) (bool, error) {
			w, err := policy.ParseWindow(window)
			return err == nil && w.Contains(t.In(m.cfg.Zone)), err
		},
	})
	if err != nil {
		return err
	}
	m.own = &ownVaults{vaults: v, client: v.Client()}
	return nil
}

// reopenVaults opens what the manager served before a restart, by the keys and secrets that it keeps. What can't be opened is tried again with each look at it.
func (m *Manager) reopenVaults(ctx context.Context) error {
	if err := m.own.vaults.Reopen(ctx); err != nil && ctx.Err() == nil {
		m.log.Warn("manager: open repositories again", "err", err)
	}
	return nil
}

// VaultHandler serves hosts what the manager's own repositories hold.
func (m *Manager) VaultHandler(interceptors ...connect.Interceptor) (string, http.Handler) {
	return m.own.vaults.Handler(interceptors...)
}

// dialVault reaches another vault, to copy from it.
func (m *Manager) dialVault(a *v1.VaultAddress) (droverv1connect.VaultServiceClient, func(), error) {
	if a.Role == string(pki.RoleManager) {
		return m.own.client, func() {}, nil
	}
	n, err := m.nodes.node(a.Host)
	if err != nil {
		return nil, nil, err
	}
	if n.uid != a.Uid {
		return nil, nil, &resource.Error{Code: resource.Unavailable, Kind: resource.KindHost, Name: a.Host, Reason: "HOST_REMOVED", Message: "is another machine than it was"}
	}
	return n.vault, func() {}, nil
}
