package vfs_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"drover/internal/vfs"
)

func open(t *testing.T) (vfs.Root, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "a", "b")
	r, err := vfs.OS{}.OpenRoot(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r, dir
}

func TestRootMissing(t *testing.T) {
	if _, err := (vfs.OS{}).OpenRoot(t.TempDir()+"/none", false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a root that is not there: %v", err)
	}
}

func TestFiles(t *testing.T) {
	r, dir := open(t)
	if err := vfs.MkdirAll(r, "x/y"); err != nil {
		t.Fatal(err)
	}
	f, err := r.Create("x/y/f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("hello"), 3); err != nil {
		t.Fatal(err)
	}
	f.Flush(0, 8)
	if err := errors.Join(f.Sync(), r.Link("x/y/f", "x/g"), r.SyncDir("x/y"), r.SyncDir(".")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Create("x/g"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create of a name that is taken: %v", err)
	}
	if err := r.Link("x/y/f", "x/g"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Link to a name that is taken: %v", err)
	}
	if err := r.Link("x/y/f", "none/g"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Link into a directory that is not there: %v", err)
	}
	a, err1 := f.Stat()
	b, err2 := r.Stat("x/g")
	if err := errors.Join(err1, err2); err != nil || !a.Same(b) || b.Links != 2 || b.Size != 8 || b.Type != 0 {
		t.Errorf("two names of a file: %+v, %+v, %v", a, b, err)
	}
	if err := r.Remove("x/y"); err == nil {
		t.Error("a directory was removed")
	}
	if err := r.Remove("x/y/f"); err != nil {
		t.Error(err)
	}
	if list, err := r.ReadDir("x"); err != nil || len(list) != 2 {
		t.Errorf("x holds %v, %v", list, err)
	}
	if p, err := os.ReadFile(dir + "/x/g"); err != nil || string(p) != "\x00\x00\x00hello" {
		t.Errorf("read %q, %v", p, err)
	}
	if total, free, err := r.Space(); err != nil || free <= 0 || total < free {
		t.Errorf("space: %d, %d, %v", total, free, err)
	}
}

func TestNothingLeadsOut(t *testing.T) {
	r, dir := open(t)
	if err := os.WriteFile(filepath.Dir(dir)+"/secret", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Symlink("../secret", dir+"/out"), os.Symlink("/etc", dir+"/etc"), os.Mkdir(dir+"/real", 0o700), os.Symlink("real", dir+"/in"),
		os.WriteFile(dir+"/real/f", nil, 0o600), unix.Mkfifo(dir+"/pipe", 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"../secret", "out", "etc/passwd", "in/f", "/etc/passwd", "pipe", "real"} {
		if _, err := r.Open(name); err == nil {
			t.Errorf("Open of %q succeeded", name)
		}
	}
	for _, name := range []string{"../new", "etc/new", "in/new", "out"} {
		if _, err := r.Create(name); err == nil {
			t.Errorf("Create of %q succeeded", name)
		}
		if err := r.Link("real/f", name); err == nil {
			t.Errorf("Link to %q succeeded", name)
		}
		if err := r.Mkdir(name); err == nil {
			t.Errorf("Mkdir of %q succeeded", name)
		}
	}
	for _, name := range []string{"../secret", "in/f"} {
		if err := r.Remove(name); err == nil {
			t.Errorf("Remove of %q succeeded", name)
		}
	}
	if st, err := r.Stat("in"); err != nil || st.Type != fs.ModeSymlink {
		t.Errorf("Stat of a link: %+v, %v", st, err)
	}
}

func TestLock(t *testing.T) {
	r, _ := open(t)
	l, err := r.Lock("l")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Lock("l"); !errors.Is(err, vfs.ErrLocked) {
		t.Errorf("a second lock: %v", err)
	}
	if err := errors.Join(r.Remove("l"), l.Close()); err != nil {
		t.Fatal(err)
	}
	l, err = r.Lock("l")
	if err != nil {
		t.Fatalf("a lock that was let go: %v", err)
	}
	l.Close()
}
