package faultfs_test

import (
	"bytes"
	"errors"
	"io/fs"
	"testing"

	"golang.org/x/sys/unix"

	"drover/internal/vfs"
	"drover/internal/vfs/faultfs"
)

func open(t *testing.T, f *faultfs.FS) vfs.Root {
	t.Helper()
	r, err := f.OpenRoot("/srv/repository", true)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func create(t *testing.T, r vfs.Root, name string, p []byte) vfs.File {
	t.Helper()
	h, err := r.Create(name)
	if err == nil {
		_, err = h.WriteAt(p, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func read(r vfs.Root, name string) ([]byte, error) {
	h, err := r.Open(name)
	if err != nil {
		return nil, err
	}
	st, err := h.Stat()
	if err != nil {
		return nil, err
	}
	p := make([]byte, st.Size)
	_, err = h.ReadAt(p, 0)
	return p, err
}

// TestSyncedSurvives: for each seed what is synced is there, and over all seeds each fate of what is not has been seen.
func TestSyncedSurvives(t *testing.T) {
	content := bytes.Repeat([]byte("drover"), 1000)
	seen := map[string]bool{}
	for seed := range uint64(500) {
		f := faultfs.New()
		r := open(t, f)
		h := create(t, r, "safe", content)
		if err := errors.Join(h.Sync(), r.SyncDir("."), r.Remove("safe"), r.Link("none", "x")); !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		create(t, r, "unsynced", content)
		if err := errors.Join(create(t, r, "nameless", content).Sync(), r.Mkdir("dir")); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(create(t, r, "dir/synced", content).Sync(), r.SyncDir("dir")); err != nil {
			t.Fatal(err)
		}
		after := open(t, f.Crash(seed))
		if _, err := r.Stat("unsynced"); !errors.Is(err, faultfs.ErrCrashed) {
			t.Fatalf("an operation after the crash: %v", err)
		}
		switch p, err := read(after, "safe"); {
		case errors.Is(err, fs.ErrNotExist):
			seen["deletion survives"] = true
		case err != nil || !bytes.Equal(p, content):
			t.Fatalf("seed %d: synced bytes: %d, %v", seed, len(p), err)
		default:
			seen["deletion undone"] = true
		}
		switch p, err := read(after, "unsynced"); {
		case errors.Is(err, fs.ErrNotExist):
			seen["name lost"] = true
		case err != nil:
			t.Fatal(err)
		case len(p) == 0:
			seen["bytes lost"] = true
		case bytes.Equal(p, content):
			seen["unsynced whole"] = true
		case len(p) < len(content):
			seen["cut"] = true
		default:
			seen["zeros"] = true
		}
		if p, err := read(after, "nameless"); err == nil && !bytes.Equal(p, content) {
			t.Fatalf("seed %d: a synced file whose name survived has other bytes", seed)
		}
		switch p, err := read(after, "dir/synced"); {
		case errors.Is(err, fs.ErrNotExist):
			if _, err := after.Stat("dir"); err == nil {
				t.Fatalf("seed %d: the directory survived without the name that was synced in it", seed)
			}
			seen["directory lost"] = true
		case err != nil || !bytes.Equal(p, content):
			t.Fatal("synced in a directory", err)
		default:
			seen["directory survives"] = true
		}
	}
	for _, want := range []string{"deletion survives", "deletion undone", "name lost", "bytes lost", "unsynced whole", "cut", "zeros", "directory lost", "directory survives"} {
		if !seen[want] {
			t.Errorf("in 500 seeds never: %s", want)
		}
	}
}

func TestLinksAndLocks(t *testing.T) {
	f := faultfs.New()
	r := open(t, f)
	create(t, r, "a", []byte("x"))
	if err := r.Link("a", "b"); err != nil {
		t.Fatal(err)
	}
	if err := r.Link("a", "b"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Link to a name that is taken: %v", err)
	}
	if st, err := r.Stat("b"); err != nil || st.Links != 2 {
		t.Errorf("two names: %+v, %v", st, err)
	}
	l, err := r.Lock("lock")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Lock("lock"); !errors.Is(err, vfs.ErrLocked) {
		t.Errorf("a second lock: %v", err)
	}
	l.Close()
	if _, err := r.Lock("lock"); err != nil {
		t.Errorf("a lock that was let go: %v", err)
	}
	for _, name := range []string{"../x", "/x", "a/../b", ".."} {
		if _, err := r.Open(name); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open of %q: %v", name, err)
		}
	}
}

func TestFaults(t *testing.T) {
	f := faultfs.New()
	r := open(t, f)
	f.SetCapacity(10)
	h, err := r.Create("a")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := h.WriteAt(make([]byte, 12), 0); n != 10 || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a write to a full disk: %d, %v", n, err)
	}
	if err := r.Remove("a"); err != nil {
		t.Fatal(err)
	}
	if _, free, _ := r.Space(); free != 10 {
		t.Errorf("after Remove %d bytes are free, want 10", free)
	}
	f.Intercept(func(o faultfs.Op) faultfs.Fault {
		if o.Kind == faultfs.Mkdir {
			return faultfs.Fault{Err: unix.EIO, Done: true}
		}
		return faultfs.Fault{}
	})
	if err := r.Mkdir("d"); !errors.Is(err, unix.EIO) {
		t.Errorf("intercepted: %v", err)
	}
	if _, err := r.Stat("d"); err != nil {
		t.Errorf("done without an answer: %v", err)
	}
	f.CrashAt(2)
	if err := r.Mkdir("e"); !errors.Is(err, unix.EIO) || f.Crashed() {
		t.Errorf("before the crash: %v", err)
	}
	if err := r.Mkdir("g"); !errors.Is(err, faultfs.ErrCrashed) || !f.Crashed() {
		t.Errorf("the crash: %v", err)
	}
}
