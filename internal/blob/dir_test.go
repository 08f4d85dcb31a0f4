package blob_test

import (
	"testing"

	"drover/internal/blob"
	"drover/internal/blob/blobtest"
	"drover/internal/vfs"
)

func openDir(t *testing.T, fsys vfs.FS, path string) *blob.Dir {
	t.Helper()
	d, err := blob.OpenDir(fsys, path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestDirConforms(t *testing.T) {
	blobtest.Run(t, blobtest.Options{Open: func(t *testing.T) (blob.Store, func() blob.Store) {
		path := t.TempDir() + "/sub/repository"
		return openDir(t, vfs.OS{}, path), func() blob.Store { return openDir(t, vfs.OS{}, path) }
	}})
}

func TestMemoryConforms(t *testing.T) {
	blobtest.Run(t, blobtest.Options{Open: func(t *testing.T) (blob.Store, func() blob.Store) {
		m := blob.NewMemory()
		return m, func() blob.Store { return m }
	}})
}
