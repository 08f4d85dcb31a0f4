package manager

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	v1 "drover/api/drover/v1"
)

// Secrets of policies are kept beside the state, not in it: who may read the state or a backup of it reads none.

func (m *Manager) secretPath(p *v1.BackupPolicy) string {
	return filepath.Join(m.cfg.path("secrets"), "policy-"+p.Meta.Uid)
}

// keepSecret keeps the secret that signs a policy's webhooks; "" changes nothing.
func (m *Manager) keepSecret(p *v1.BackupPolicy, secret string) error {
	if secret == "" {
		return nil
	}
	dir := m.cfg.path("secrets")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("keep the webhook's secret: %w", err)
	}
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return fmt.Errorf("keep the webhook's secret: %w", err)
	}
	_, err = f.WriteString(secret)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), m.secretPath(p))
	}
	if err != nil {
		return fmt.Errorf("keep the webhook's secret: %w", errors.Join(err, removeIfThere(f.Name())))
	}
	return nil
}

// secret is what signs a policy's webhooks; "" if nothing does.
func (m *Manager) secret(p *v1.BackupPolicy) (string, error) {
	b, err := os.ReadFile(m.secretPath(p))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(b), err
}

func (m *Manager) dropSecret(p *v1.BackupPolicy) {
	if err := removeIfThere(m.secretPath(p)); err != nil {
		m.log.Warn("manager: drop a webhook's secret", "policy", p.Meta.Name, "err", err)
	}
}
