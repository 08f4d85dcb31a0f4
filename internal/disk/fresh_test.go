package disk

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// fill writes random parts from several goroutines into a fresh disk and into memory.
func fill(t *testing.T, d *Fresh) []byte {
	t.Helper()
	want := make([]byte, d.Size())
	const part = 192 << 10 // not whole in clusters
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 1))
			for at := int64(w) * part; at < d.Size(); at += 4 * part {
				if r.IntN(3) == 0 {
					continue
				}
				n := min(int64(r.IntN(part))/512*512+512, d.Size()-at)
				for i := range n {
					want[at+i] = byte(r.Uint32()) | 1
				}
				if err := d.WriteAt(t.Context(), want[at:at+n], at); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	return want
}

func TestFresh(t *testing.T) {
	for _, format := range []string{"qcow2", "raw"} {
		for _, size := range []int64{512, 100 << 10, 40<<20 + 512, 600 << 20} {
			s := openStore(t, t.TempDir())
			d, err := s.NewFresh(size, format)
			must(t, err)
			want := fill(t, d)
			must(t, d.Zero(t.Context(), 256, min(size-256, 100_000)))
			clear(want[256 : 256+min(size-256, 100_000)])
			got := make([]byte, size)
			must(t, d.ReadAt(t.Context(), got, 0))
			if !bytes.Equal(got, want) {
				t.Fatalf("%s of %d bytes: read back other bytes", format, size)
			}
			must(t, d.Flush(t.Context()))
			path, raw := filepath.Join(s.root.Name(), d.path), filepath.Join(t.TempDir(), "raw")
			if format == "qcow2" {
				run(t, "qemu-img", "check", "-f", "qcow2", path)
			}
			run(t, "qemu-img", "convert", "-f", format, "-O", "raw", path, raw)
			got, err = os.ReadFile(raw)
			must(t, err)
			if !bytes.Equal(got, want) {
				t.Fatalf("%s of %d bytes: qemu-img reads other bytes", format, size)
			}
			must(t, d.Discard())
			if left, _ := os.ReadDir(filepath.Join(s.root.Name(), "tmp")); len(left) > 0 {
				t.Fatalf("left: %v", left)
			}
		}
	}
}

func replaceRoot(ctx context.Context, s *Store) error {
	d, err := s.NewFresh(8*block, "qcow2")
	if err != nil {
		return err
	}
	if err := d.WriteAt(ctx, bytes.Repeat([]byte{99}, block), 6*block); err != nil {
		return err
	}
	return s.Replace(ctx, "a", map[string]*Fresh{"root": d})
}

func TestReplaceRemote(t *testing.T) {
	s := openStore(t, t.TempDir())
	ctx := t.Context()
	must(t, s.CreateDisk(ctx, "a", "root", Spec{Size: 8 * block}))
	write(t, s, "a", "root", 1, 11)
	must(t, s.Snapshot(ctx, "a", "s1"))
	if err := s.ReplaceRemote(ctx, "a", map[string]Remote{"other": {ID: "0123456789abcdef", Size: 8 * block}}); !errors.Is(err, ErrNotFound) {
		t.Fatalf("a disk that is not there: %v", err)
	}
	must(t, s.ReplaceRemote(ctx, "a", map[string]Remote{"root": {ID: "0123456789abcdef", Size: 8 * block}}))
	// It survives a restart.
	dir := s.root.Name()
	s.Close()
	s = openStore(t, dir)
	chain, err := s.Chain("a", "root")
	must(t, err)
	if len(chain) != 2 || !chain[1].Remote || chain[1].ID != "0123456789abcdef" || !chain[0].Active {
		t.Fatalf("%+v", chain)
	}
	if _, err := s.OpenLayer(chain[1], false); !errors.Is(err, ErrBusy) {
		t.Fatalf("a remote base was opened: %v", err)
	}
	for what, err := range map[string]error{
		"snapshot": s.Snapshot(ctx, "a", "s2"), "revert": s.Revert(ctx, "a", "s1"),
		"clone": s.LinkedClone(ctx, "a", "s1", "c"), "full clone": s.FullClone(ctx, "a", "", "c"),
	} {
		if !errors.Is(err, ErrBusy) {
			t.Errorf("%s while a disk is not all here: %v", what, err)
		}
	}
	if got := frozen(t, s, "a", "s1", "root"); got[1] != 11 {
		t.Fatalf("the snapshot has %v", got)
	}
	must(t, s.DropRemote(ctx, "a", "root"))
	must(t, s.DropRemote(ctx, "a", "root"))
	if id, err := s.RemoteOf("a", "root"); id != "" || err != nil {
		t.Fatalf("%q %v", id, err)
	}
	must(t, s.Snapshot(ctx, "a", "s2"))
}
