package manager

import (
	"context"
	"errors"
	"net/http"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/pki"
	"drover/internal/resource"
	"drover/internal/rpc"
)

// vault is the service behind a repository, as the manager calls it.
func (m *Manager) vault(r *v1.Repository) (droverv1connect.VaultServiceClient, error) {
	if r.Spec.Host == "" {
		if m.own == nil {
			return nil, &resource.Error{Code: resource.Unavailable, Kind: resource.KindRepository, Name: r.Meta.Name, Reason: "VAULT_UNAVAILABLE", Message: "this manager serves no repositories"}
		}
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

// ownVault serves the manager's own repositories: to hosts by its handler, to the manager by its client, which goes through memory.
type ownVault struct {
	handler http.Handler
	path    string
	client  droverv1connect.VaultServiceClient
	close   func() error
}

// VaultHandler serves hosts what the manager's own repositories hold; "" if it serves none.
func (m *Manager) VaultHandler() (string, http.Handler) {
	if m.own == nil {
		return "", nil
	}
	return m.own.path, m.own.handler
}
