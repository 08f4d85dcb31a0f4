package manager

import (
	"context"
	"sync"

	v1 "drover/api/drover/v1"
)

// removedHosts are those that were removed since the start, with the repositories whose vaults have taken back what they had been granted. Vaults that do
// not answer are told when they do.
type removedHosts struct {
	mu   sync.Mutex
	told map[string]map[string]bool // by the host's uid: uids of repositories
}

func (h *removedHosts) add(uid string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.told == nil {
		h.told = map[string]map[string]bool{}
	}
	h.told[uid] = map[string]bool{}
}

// untold are the hosts that a repository's vault has not heard of.
func (h *removedHosts) untold(repository string) (list []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for uid, told := range h.told {
		if !told[repository] {
			list = append(list, uid)
		}
	}
	return list
}

func (h *removedHosts) tell(uid, repository string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.told[uid][repository] = true
}

// disarm takes back, at one repository, all that removed hosts have been granted.
func (m *Manager) disarm(ctx context.Context, r *v1.Repository) error {
	for _, uid := range m.removed.untold(r.Meta.Uid) {
		c, err := m.vault(r)
		if err == nil {
			_, err = c.Grant(ctx, &v1.VaultGrantRequest{Repository: r.Meta.Name, HostUid: uid, Revoke: true})
		}
		if err != nil {
			return atVault(r, err)
		}
		m.removed.tell(uid, r.Meta.Uid)
	}
	return nil
}
