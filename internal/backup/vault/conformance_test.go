package vault_test

import (
	"testing"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/backup/backuptest"
	"drover/internal/backup/vault"
)

func TestConformance(t *testing.T) {
	for name, spec := range map[string]*v1.RepositorySpec{
		"default": {},
		"plain":   {Format: &v1.RepositoryFormat{Unencrypted: true, Sha256: true, BlockSize: 4096}},
		"large":   {Format: &v1.RepositoryFormat{BlockSize: 4 << 20}},
	} {
		t.Run(name, func(t *testing.T) {
			backuptest.Run(t, func(t *testing.T) backup.Repository {
				w := newWorld(t, vault.Options{})
				spec.Location = ""
				w.create("r", spec)
				return w.repository("r", "host1", "")
			})
		})
	}
}
