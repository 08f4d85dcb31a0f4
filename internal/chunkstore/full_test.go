package chunkstore_test

import (
	"errors"
	"testing"
	"time"

	"drover/internal/blob"
	cs "drover/internal/chunkstore"
)

// TestFullDisk fills the storage. The backup that does not fit fails and says why, nothing else is harmed, and what is forgotten makes room again.
func TestFullDisk(t *testing.T) {
	for s := seed(t); s < seed(t)+20; s++ {
		w := newWorld(t.Context(), t, s)
		r := w.mustOpen()
		for range 3 {
			if err := w.backup(r, "web"); err != nil {
				t.Fatal(err)
			}
		}
		// What one more backup needs is more than there is.
		w.fs.SetCapacity(1)
		d, err := blob.OpenDir(w.fs, where)
		if err != nil {
			t.Fatal(err)
		}
		used := int64(0)
		for i, err := range d.List(t.Context(), "", "") {
			if err != nil {
				t.Fatal(err)
			}
			used += i.Size
		}
		w.fs.SetCapacity(used + 20_000)
		for i := 0; ; i++ {
			err = w.backup(r, "db")
			if err != nil {
				break
			}
			if i > 2000 {
				t.Fatal("the storage does not fill up")
			}
		}
		if !errors.Is(err, blob.ErrFull) {
			t.Fatalf("seed %d: a backup to a full storage: %v", s, err)
		}
		l := w.living()
		if err := w.forget(r, l[1:]...); err != nil {
			t.Fatalf("seed %d: forget on a full storage: %v", s, err)
		}
		if _, err := r.Collect(w.ctx, cs.CollectOptions{Dead: time.Nanosecond}); err != nil {
			t.Fatalf("seed %d: collect on a full storage: %v", s, err)
		}
		if err := r.Refresh(w.ctx); err != nil {
			t.Fatal(err)
		}
		if _, free, _, err := d.Space(t.Context()); err != nil || free < 20_000 {
			t.Fatalf("seed %d: after forgetting %d points %d bytes are free, %v", s, len(l)-1, free, err)
		}
		w.verify(r)
		_ = r.Close()
	}
}
