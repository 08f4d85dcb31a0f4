package host

import (
	"context"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/backup/remote"
)

// vault is the repository that the manager has named for one operation. close ends its connections.
func (a *agent) vault(ctx context.Context, t *v1.VaultTarget) (r backup.Repository, closer func(), err error) {
	if a.cfg.Vault != nil {
		return a.cfg.Vault(ctx, t)
	}
	at := t.GetVault()
	client, closer, err := remote.Dial(at, a.id.credential, a.id.trust)
	if err != nil {
		return nil, nil, err
	}
	return remote.New(remote.Options{Client: client, Repository: at.GetRepository(), Grant: at.GetGrant(), Clock: a.clk, Log: a.log}), closer, nil
}
