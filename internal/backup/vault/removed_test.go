package vault_test

import (
	"testing"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/backup/vault"
)

// A host that was removed from the installation has a certificate still, and nothing to do with it: what it has begun ends.
func TestRemovedHost(t *testing.T) {
	w := newWorld(t, vault.Options{})
	w.create("r", nil)
	gone, stays := w.repository("r", "h1", "vm"), w.repository("r", "h2", "vm")
	s, err := gone.Begin(t.Context(), backup.SessionOptions{VMUID: "vm"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.as("h1").Grant(t.Context(), &v1.VaultGrantRequest{Repository: "r", HostUid: "h2", Revoke: true}); reasonOf(err) != "MANAGER_ONLY" {
		t.Errorf("a host takes another's grants: %v", err)
	}
	if _, err := w.v.Client().Grant(t.Context(), &v1.VaultGrantRequest{Repository: "r", HostUid: "h1", Revoke: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Disk(t.Context(), backup.DiskOptions{Name: "d", Size: 1 << 20}); err == nil {
		t.Error("its session goes on")
	}
	if _, err := gone.Points(t.Context(), "vm"); err == nil {
		t.Error("it still reads")
	}
	if _, err := stays.Points(t.Context(), "vm"); err != nil {
		t.Errorf("another host: %v", err)
	}
}
