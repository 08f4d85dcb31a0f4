package manager

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"
)

// grant lets somebody do something at a repository, and returns the secret of it. Grants live in the vault's memory.
func (m *Manager) grant(ctx context.Context, r *v1.Repository, req *v1.VaultGrantRequest) (string, error) {
	c, err := m.vault(r)
	if err != nil {
		return "", err
	}
	var b [32]byte
	rand.Read(b[:])
	req.Repository, req.Grant = r.Meta.Name, base64.RawURLEncoding.EncodeToString(b[:])
	_, err = c.Grant(ctx, req)
	if err = atVault(r, err); reasonOf(err) == "VAULT_CLOSED" || resource.CodeOf(err) == resource.NotFound {
		// Who serves it was restarted, and nobody has asked since.
		if _, err = m.openVault(ctx, r, "", false); err == nil {
			_, err = c.Grant(ctx, req)
			err = atVault(r, err)
		}
	}
	if err != nil {
		return "", err
	}
	m.held.add(req)
	return req.Grant, nil
}

// revokeTime bounds taking a grant back.
const revokeTime = 10 * time.Second

// revoke takes a grant back. A vault that doesn't answer has it until it ends.
func (m *Manager) revoke(ctx context.Context, r *v1.Repository, grant string) {
	m.held.drop(grant)
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), revokeTime)
	defer stop()
	c, err := m.vault(r)
	if err == nil {
		_, err = c.Grant(ctx, &v1.VaultGrantRequest{Repository: r.Meta.Name, Grant: grant, Revoke: true})
	}
	if err != nil {
		m.log.Warn("manager: take a grant back", "repository", r.Meta.Name, "err", err)
	}
}

// targetTime is how long a host may use a target; the grant is taken back earlier, when the operation ends.
const targetTime = 7 * 24 * time.Hour

// target lets a host read one restore point.
func (m *Manager) target(ctx context.Context, r *v1.Repository, hostUID string, p *v1.RestorePoint, limit int64) (_ *v1.VaultTarget, release func(), err error) {
	return m.targetOf(ctx, r, &v1.VaultGrantRequest{HostUid: hostUID, VmUid: p.Status.VmUid, Point: p.Status.Id, Read: true}, limit)
}

// targetOf lets a host reach a repository for one operation. The caller calls release when it has ended.
func (m *Manager) targetOf(ctx context.Context, r *v1.Repository, req *v1.VaultGrantRequest, limit int64) (_ *v1.VaultTarget, release func(), err error) {
	a, err := m.vaultAddress(r)
	if err != nil {
		return nil, nil, err
	}
	a.Grant, err = m.grant(ctx, r, req)
	if err != nil {
		return nil, nil, err
	}
	t := &v1.VaultTarget{Vault: a, BandwidthLimit: limit, ExpireTime: stamp(m.cfg.Clock.Now().Add(targetTime))}
	return t, func() { m.revoke(ctx, r, a.Grant) }, nil
}
