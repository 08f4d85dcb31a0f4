package vault_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	v1 "drover/api/drover/v1"
	"drover/internal/backup/vault"
	"drover/internal/blob"
	"drover/internal/blob/blobtest"
)

// TestS3 has a vault on a real S3 server: the secret is told once, and stays through new specs and restarts.
func TestS3(t *testing.T) {
	o := blobtest.StartServer(t).Bucket(t, "backups", false)
	w := newWorld(t, vault.Options{})
	w.stop()
	w.o.Storage = nil // the vault opens what the spec says
	w.start()
	spec := func(secret string, quota int64) *v1.RepositorySpec {
		return &v1.RepositorySpec{Location: "s3://backups/main", QuotaBytes: quota,
			S3: &v1.S3Spec{Endpoint: o.Endpoint, Region: o.Region, AccessKey: o.AccessKey, SecretKey: secret, Insecure: true}}
	}
	w.create("r", spec(o.SecretKey, 0))
	point := func() {
		t.Helper()
		if _, err := backUp(t.Context(), w.repository("r", "h", "vm"), make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	point()
	for _, s := range []*v1.RepositorySpec{spec("", 1<<30), spec("", 2<<30)} {
		if _, err := w.v.Client().Open(t.Context(), &v1.VaultOpenRequest{Repository: "r", Spec: s}); err != nil {
			t.Fatalf("a spec without the secret: %v", err)
		}
	}
	// Another region is another connection: the secret is still there.
	moved := spec("", 0)
	moved.S3.Region = ""
	if _, err := w.v.Client().Open(t.Context(), &v1.VaultOpenRequest{Repository: "r", Spec: moved}); err != nil {
		t.Fatalf("a new connection without the secret: %v", err)
	}
	w.stop()
	w.start()
	point()
	st, err := w.v.Client().Status(t.Context(), &v1.VaultStatusRequest{Repository: "r"})
	if err != nil || st.GetStatus().GetPoints() != 2 || st.GetStatus().GetPhase() != v1.RepositoryPhase_REPOSITORY_PHASE_READY {
		t.Errorf("after a restart: %v, %v", st, err)
	}
}

// replacing is a server that does not know If-None-Match once the repository is made.
type replacing struct {
	blob.Store
	on bool
}

func (r *replacing) Put(ctx context.Context, name string, data []byte) error {
	err := r.Store.Put(ctx, name, data)
	if r.on && errors.Is(err, blob.ErrExists) {
		return nil
	}
	return err
}

// A server that replaces objects lets two writers believe that each has won: nothing is written to it.
func TestStorageReplaces(t *testing.T) {
	st := &replacing{Store: blob.NewMemory()}
	w := newWorld(t, vault.Options{Storage: func(context.Context, *v1.RepositorySpec) (blob.Store, error) { return st, nil }})
	spec := &v1.RepositorySpec{Location: "s3://backups/main"}
	w.create("r", spec)
	st.on = true
	w.stop()
	w.start()
	_, err := w.v.Client().Open(t.Context(), &v1.VaultOpenRequest{Repository: "r", Spec: spec})
	if err == nil || !strings.Contains(err.Error(), "If-None-Match") {
		t.Errorf("opened on a server that replaces objects: %v", err)
	}
	spec.ReadOnly = true
	if _, err := w.v.Client().Open(t.Context(), &v1.VaultOpenRequest{Repository: "r", Spec: spec}); err != nil {
		t.Errorf("to read only: %v", err)
	}
}
