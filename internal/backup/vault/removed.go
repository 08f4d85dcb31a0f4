package vault

import "context"

// revokeHost takes back all grants of a host at a repository: it was removed from the installation. Its certificate is good until it ends, and opens nothing.
func (v *Vaults) revokeHost(ctx context.Context, repository, host string) error {
	v.mu.Lock()
	var keys []secret
	for k, g := range v.grants {
		if g.repository == repository && g.host == host {
			keys = append(keys, k)
		}
	}
	v.mu.Unlock()
	for _, k := range keys {
		if err := v.revoke(ctx, k); err != nil {
			return err
		}
	}
	return nil
}
