package manager

import (
	"context"
	"errors"
	"sync"

	v1 "drover/api/drover/v1"
)

// heldGrants are the grants of operations that go on. A vault that is started anew has forgotten them, and gets them again when it is asked how it is. The
// zero value is ready.
type heldGrants struct {
	mu sync.Mutex
	by map[string]*v1.VaultGrantRequest // by grant
}

func (h *heldGrants) add(req *v1.VaultGrantRequest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.by == nil {
		h.by = map[string]*v1.VaultGrantRequest{}
	}
	h.by[req.GetGrant()] = clone(req)
}

func (h *heldGrants) drop(grant string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.by, grant)
}

func (h *heldGrants) of(repository string) []*v1.VaultGrantRequest {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []*v1.VaultGrantRequest
	for _, req := range h.by {
		if req.GetRepository() == repository {
			out = append(out, req)
		}
	}
	return out
}

// regrant gives a vault the grants of operations that go on. One that has them still is none the wiser.
func (m *Manager) regrant(ctx context.Context, r *v1.Repository) error {
	list := m.held.of(r.Meta.Name)
	if len(list) == 0 {
		return nil
	}
	c, err := m.vault(r)
	if err != nil {
		return err
	}
	hosts := map[string]bool{"": true} // the manager itself
	all, _ := m.Hosts.cache.List()
	for _, h := range all {
		hosts[h.Meta.Uid] = true
	}
	var errs []error
	for _, req := range list {
		if !hosts[req.GetHostUid()] {
			m.held.drop(req.GetGrant()) // of a host that was removed
			continue
		}
		_, err := c.Grant(ctx, req)
		errs = append(errs, atVault(r, err))
	}
	return errors.Join(errs...)
}
