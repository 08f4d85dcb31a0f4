package chunkstore_test

import (
	"errors"
	"testing"
	"time"

	"drover/internal/blob"
	cs "drover/internal/chunkstore"
	"drover/internal/chunkstore/ledger"
)

// TestLostLog takes entries of the log away. Nobody may take what came after them for garbage.
func TestLostLog(t *testing.T) {
	ctx := t.Context()
	for _, all := range []bool{false, true} {
		w := newWorld(ctx, t, 1)
		r := w.mustOpen()
		for range 3 {
			if err := w.backup(r, "web"); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		d, err := blob.OpenDir(w.fs, where)
		if err != nil {
			t.Fatal(err)
		}
		objects := func(prefix string) (names []string) {
			for i, err := range d.List(ctx, prefix, "") {
				if err != nil {
					t.Fatal(err)
				}
				names = append(names, i.Name)
			}
			return names
		}
		lost := objects("log/")
		if !all {
			lost = lost[2:3]
		}
		for _, name := range append(lost, objects("checkpoint/")...) {
			if err := d.Delete(ctx, name); err != nil {
				t.Fatal(err)
			}
		}
		before := len(objects("data/"))
		r, err = w.open()
		if err == nil {
			_, err = r.Collect(ctx, cs.CollectOptions{Dead: time.Nanosecond})
		}
		if !errors.Is(err, ledger.ErrMissing) {
			t.Errorf("all %t: a repository whose log lost entries was collected: %v", all, err)
		}
		if after := len(objects("data/")); after != before {
			t.Errorf("all %t: of %d packs %d are left", all, before, after)
		}
	}
}
