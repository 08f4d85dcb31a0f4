package backup_test

import (
	"bytes"
	"context"
	"testing"

	"drover/internal/backup"
	"drover/internal/backup/backuptest"
	"drover/internal/blob"
	"drover/internal/chunkstore"
)

func chunks(t testing.TB, o chunkstore.CreateOptions) *chunkstore.Repository {
	t.Helper()
	r, _, err := chunkstore.Create(t.Context(), blob.NewMemory(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func TestLocal(t *testing.T) {
	for name, o := range map[string]chunkstore.CreateOptions{
		"encrypted": {}, "plain": {Unencrypted: true}, "sha256": {Hash: "sha256"}, "4k": {BlockSize: 4096}, "1m": {BlockSize: 1 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			backuptest.Run(t, func(t *testing.T) backup.Repository { return backup.NewLocal(chunks(t, o)) })
		})
	}
}

func TestAttached(t *testing.T) {
	ctx := context.Background()
	l := backup.NewLocal(chunks(t, chunkstore.CreateOptions{}))
	p := backuptest.Write(t, l, "vm", backuptest.Image(1, 1<<20))
	for _, data := range [][]byte{[]byte("first"), bytes.Repeat([]byte("second"), 300_000)} {
		if err := l.Attach(ctx, p.ID, "screenshot.png", data); err != nil {
			t.Fatal(err)
		}
		r, err := l.OpenLocal(ctx, p.ID)
		if err != nil {
			t.Fatal(err)
		}
		files, err := r.Files(ctx)
		if err != nil || len(files) != 1 || !bytes.Equal(files["screenshot.png"], data) {
			t.Errorf("%d files, %v", len(files), err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := l.Points(ctx, ""); err != nil || len(list) != 1 {
		t.Errorf("%d points, %v", len(list), err)
	}
	if err := l.Forget(ctx, "test", p.ID); err != nil {
		t.Fatal(err)
	}
	if n := len(l.Chunks().Points()); n != 0 {
		t.Errorf("%d points are left", n)
	}
}
