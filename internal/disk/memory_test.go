package disk

import (
	"errors"
	"io"
	"testing"
)

func TestSnapshotMemory(t *testing.T) {
	s := openStore(t, t.TempDir())
	ctx := t.Context()
	must(t, s.CreateDisk(ctx, "a", "root", Spec{Size: 4 * block}))
	must(t, s.BeginSnapshot(ctx, "a", "s1"))
	for _, text := range []string{"first try", "memory"} {
		f, err := s.CreateMemory(ctx, "a", "s1")
		must(t, err)
		_, err = io.WriteString(f, text)
		must(t, errors.Join(err, f.Close()))
	}
	if _, err := s.OpenMemory("a", "s1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("memory of an unfinished snapshot: %v", err)
	}
	if err := s.Snapshot(ctx, "a", "s2"); !errors.Is(err, ErrBusy) {
		t.Errorf("a snapshot while another is under way: %v", err)
	}
	must(t, s.FinishSnapshot(ctx, "a", "s1"))
	f, err := s.OpenMemory("a", "s1")
	must(t, err)
	defer f.Close()
	if b, err := io.ReadAll(f); err != nil || string(b) != "memory" {
		t.Errorf("memory %q, %v", b, err)
	}
	if n := fileCount(t, s, "a"); n != 4 { // manifest, two layers, memory
		t.Errorf("%d files", n)
	}
	if _, err := s.DeleteSnapshot(ctx, "a", "s1", false); err != nil {
		t.Fatal(err)
	}
	must(t, s.Compact(ctx, "a"))
	if n := fileCount(t, s, "a"); n != 2 {
		t.Errorf("%d files after the snapshot went", n)
	}
}

func TestOneProcessAtATime(t *testing.T) {
	dir := t.TempDir()
	openStore(t, dir)
	if _, err := Open(dir, Options{}); err == nil {
		t.Error("the datastore was opened twice")
	}
}

func TestChainHasALimit(t *testing.T) {
	s := openStore(t, t.TempDir())
	ctx := t.Context()
	must(t, s.CreateDisk(ctx, "a", "root", Spec{Size: 4 * block}))
	var err error
	n := 0
	for ; err == nil && n < 2*MaxDepth; n++ {
		err = s.Snapshot(ctx, "a", "s"+string(rune('a'+n/26))+string(rune('a'+n%26)))
	}
	if !errors.Is(err, ErrInvalid) || n != MaxDepth {
		t.Errorf("snapshot %d: %v", n, err)
	}
	if c := fileCount(t, s, "a"); c != MaxDepth+1 {
		t.Errorf("%d files: the refused overlay was left", c)
	}
}
