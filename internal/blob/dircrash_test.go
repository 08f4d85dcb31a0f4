package blob_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"drover/internal/blob"
	"drover/internal/blob/blobtest"
	"drover/internal/vfs"
	"drover/internal/vfs/faultfs"
)

const repo = "/srv/repository"

func TestDirConformsOnFaultFS(t *testing.T) {
	blobtest.Run(t, blobtest.Options{Open: func(t *testing.T) (blob.Store, func() blob.Store) {
		f := faultfs.New()
		return openDir(t, f, repo), func() blob.Store { return openDir(t, f, repo) }
	}})
}

func content(name string) []byte { return bytes.Repeat([]byte(name), 700) }

type fate string

const (
	stored   fate = "stored"
	deleting fate = "deleting"
	deleted  fate = "deleted"
	gone     fate = "gone" // deleted before a later Put was acknowledged
)

// workload puts and deletes, and calls done with what was acknowledged. It stops at the first error.
func workload(ctx context.Context, st blob.Store, done func(what fate, name string)) error {
	for i := range 6 {
		name := fmt.Sprintf("data/0%d/p%d", i%3, i)
		w, err := st.Create(ctx, name)
		if err != nil {
			return err
		}
		p := content(name)
		for len(p) > 0 && err == nil {
			n := min(len(p), 3000)
			_, err = w.Write(p[:n])
			p = p[n:]
		}
		if err == nil {
			err = w.Commit()
		}
		w.Abort()
		if err != nil {
			return err
		}
		done(stored, name)
		log := fmt.Sprintf("log/%d", i)
		if err := st.Put(ctx, log, content(log)); err != nil {
			return err
		}
		done(stored, log)
		if i%2 == 1 {
			done(deleting, name)
			if err := st.Delete(ctx, name); err != nil {
				return err
			}
			done(deleted, name)
		}
	}
	return nil
}

// TestDirCrash ends the machine at each operation. What was acknowledged is there and whole, what was not is whole or absent, the
// next process works on, and sweeps.
func TestDirCrash(t *testing.T) {
	ctx := t.Context()
	whole := faultfs.New()
	if err := workload(ctx, openDir(t, whole, repo), func(fate, string) {}); err != nil {
		t.Fatal(err)
	}
	for at := int64(1); at <= whole.Ops(); at++ {
		for seed := range uint64(12) {
			f := faultfs.New()
			f.CrashAt(at)
			acked := map[string]fate{}
			d, err := blob.OpenDir(f, repo)
			if err != nil {
				t.Fatal(err)
			}
			err = workload(ctx, d, func(what fate, name string) {
				if acked[name] = what; what == stored {
					for n, w := range acked {
						if w == deleted {
							acked[n] = gone
						}
					}
				}
			})
			if !errors.Is(err, faultfs.ErrCrashed) {
				// The last operations are of sweeping alone, whose failures nobody needs to hear of.
				if err == nil && at > whole.Ops()-2 {
					continue
				}
				t.Fatalf("crash at %d: %v", at, err)
			}
			again := openDir(t, f.Crash(seed), repo)
			there := map[string]bool{}
			for i, err := range again.List(ctx, "", "") {
				if err != nil {
					t.Fatal(err)
				}
				there[i.Name] = true
				if p, err := again.Get(ctx, i.Name, 1<<20); err != nil || !bytes.Equal(p, content(i.Name)) {
					t.Fatalf("crash at %d, seed %d: %s has %d bytes, %v", at, seed, i.Name, len(p), err)
				}
			}
			for name, what := range acked {
				if what == stored && !there[name] {
					t.Fatalf("crash at %d, seed %d: %s was acknowledged and is gone", at, seed, name)
				}
				if what == gone && there[name] {
					t.Fatalf("crash at %d, seed %d: %s was deleted before a Put and is back", at, seed, name)
				}
			}
			if err := again.Put(ctx, "after", []byte("x")); err != nil {
				t.Fatal(err)
			}
			if left := tmpFiles(t, again); len(left) != 1 {
				t.Fatalf("crash at %d, seed %d: left under tmp: %v", at, seed, left)
			}
		}
	}
}

func tmpFiles(t *testing.T, d *blob.Dir) []string {
	t.Helper()
	names, err := d.Leftovers()
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestDirSeenIsDurable: an object that another process can read stays, also if its writer died before it synced the name.
func TestDirSeenIsDurable(t *testing.T) {
	ctx := t.Context()
	for _, how := range []string{"get", "exists", "swept"} {
		for seed := range uint64(30) {
			f := faultfs.New()
			f.Intercept(func(o faultfs.Op) faultfs.Fault {
				if o.Kind == faultfs.SyncDir && strings.HasSuffix(o.Path, "/log") || o.Kind == faultfs.Remove && how != "get" {
					return faultfs.Fault{Err: unix.EIO}
				}
				return faultfs.Fault{}
			})
			writer := openDir(t, f, repo)
			if err := writer.Put(ctx, "log/1", []byte("x")); !errors.Is(err, unix.EIO) {
				t.Fatalf("Put without its sync: %v", err)
			}
			f.Intercept(nil)
			reader := openDir(t, f, repo)
			switch how {
			case "get":
				if _, err := reader.Get(ctx, "log/1", 10); err != nil {
					t.Fatal(err)
				}
			case "exists":
				if err := reader.Put(ctx, "log/1", []byte("y")); !errors.Is(err, blob.ErrExists) {
					t.Fatal(err)
				}
			case "swept":
				writer.Close()
				if err := reader.Put(ctx, "data/aa/1", []byte("y")); err != nil {
					t.Fatal(err)
				}
				if _, err := reader.Get(ctx, "log/1", 10); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := openDir(t, f.Crash(seed), repo).Get(ctx, "log/1", 10); err != nil {
				t.Fatalf("%s, seed %d: what was seen is gone: %v", how, seed, err)
			}
		}
	}
}

// TestDirLostReply: a link whose answer was lost on the way from an NFS server, and whose repetition finds the name taken, has succeeded.
func TestDirLostReply(t *testing.T) {
	for _, errno := range []error{unix.EEXIST, unix.EIO} {
		f := faultfs.New()
		f.Intercept(func(o faultfs.Op) faultfs.Fault {
			if o.Kind == faultfs.Link {
				return faultfs.Fault{Err: errno, Done: true}
			}
			return faultfs.Fault{}
		})
		d := openDir(t, f, repo)
		if err := d.Put(t.Context(), "config", []byte("mine")); err != nil {
			t.Errorf("%v: %v", errno, err)
		}
		if err := d.Put(t.Context(), "config", []byte("yours")); !errors.Is(err, blob.ErrExists) && errno == unix.EEXIST {
			t.Errorf("a name that is another's: %v", err)
		}
	}
}

// TestDirFaults fails each operation once: the caller is told, or the object is there.
func TestDirFaults(t *testing.T) {
	ctx := t.Context()
	for _, errno := range []unix.Errno{unix.EIO, unix.ENOSPC, unix.EROFS} {
		for at := 1; ; at++ {
			f := faultfs.New()
			n, hit := 0, faultfs.Op{}
			f.Intercept(func(o faultfs.Op) faultfs.Fault {
				if n++; n == at {
					hit = o
					return faultfs.Fault{Err: errno}
				}
				return faultfs.Fault{}
			})
			acked := map[string]fate{}
			d := openDir(t, f, repo)
			err := workload(ctx, d, func(what fate, name string) { acked[name] = what })
			f.Intercept(nil)
			if hit.Kind == "" {
				break
			}
			if err == nil && hit.Kind != faultfs.Remove && hit.Kind != faultfs.ReadDir && hit.Kind != faultfs.Stat {
				t.Fatalf("%s of %s failed and nobody was told", hit.Kind, hit.Path)
			}
			if err != nil && !errors.Is(err, errno) {
				t.Fatalf("%s of %s: %v", hit.Kind, hit.Path, err)
			}
			if err != nil && errno == unix.ENOSPC && !errors.Is(err, blob.ErrFull) || err != nil && errno == unix.EROFS && !errors.Is(err, blob.ErrReadOnly) {
				t.Fatalf("%s of %s: %v has the wrong kind", hit.Kind, hit.Path, err)
			}
			for name, what := range acked {
				if p, err := d.Get(ctx, name, 1<<20); what == stored && (err != nil || !bytes.Equal(p, content(name))) {
					t.Fatalf("%s of %s failed: %s was acknowledged: %v", hit.Kind, hit.Path, name, err)
				}
			}
		}
	}
}

func TestDirFull(t *testing.T) {
	f := faultfs.New()
	f.SetCapacity(5000)
	d := openDir(t, f, repo)
	if err := d.Put(t.Context(), "a", make([]byte, 4000)); err != nil {
		t.Fatal(err)
	}
	if err := d.Put(t.Context(), "b", make([]byte, 4000)); !errors.Is(err, blob.ErrFull) {
		t.Fatalf("a full disk: %v", err)
	}
	if _, free, ok, err := d.Space(t.Context()); !ok || err != nil || free != 1000 {
		t.Errorf("%d free, %v, %v: what did not fit was not removed", free, ok, err)
	}
	// The last of it is for small objects, which say what may go.
	w, err := d.Create(t.Context(), "c")
	if err != nil {
		t.Fatal(err)
	}
	if _, err = w.Write(make([]byte, 950)); err == nil {
		err = w.Commit()
	}
	w.Abort()
	if !errors.Is(err, blob.ErrFull) {
		t.Errorf("a large object took the last room: %v", err)
	}
	if err := d.Put(t.Context(), "b", make([]byte, 1000)); err != nil {
		t.Error(err)
	}
}

// TestDirSweep: what a living process writes stays, what a dead one left goes.
func TestDirSweep(t *testing.T) {
	ctx, path := t.Context(), t.TempDir()
	dead := openDir(t, vfs.OS{}, path)
	left, err := dead.Create(ctx, "data/aa/left")
	if err != nil {
		t.Fatal(err)
	}
	defer left.Abort()
	alive := openDir(t, vfs.OS{}, path)
	w, err := alive.Create(ctx, "data/aa/1")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+"/tmp/foreign", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dead.Close() // its lock goes as it would with the process
	other := openDir(t, vfs.OS{}, path)
	if err := other.Put(ctx, "log/1", []byte("x")); err != nil {
		t.Fatal(err)
	}
	names, err := other.Leftovers()
	if err != nil || len(names) != 3 || slices.ContainsFunc(names, func(n string) bool { return strings.Contains(n, "left") }) {
		t.Errorf("under tmp: %v, %v; want two locks and one file that is being written", names, err)
	}
	if _, err := w.Write([]byte("1")); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
}

// TestDirHostile: who may write to the directory leads the store nowhere.
func TestDirHostile(t *testing.T) {
	ctx, path, out := t.Context(), t.TempDir(), t.TempDir()
	if err := errors.Join(os.WriteFile(out+"/secret", []byte("secret"), 0o600), os.Symlink(out+"/secret", path+"/config"), os.Symlink(out, path+"/data"), os.Mkdir(path+"/log", 0o700),
		unix.Mkfifo(path+"/log/1", 0o600)); err != nil {
		t.Fatal(err)
	}
	d := openDir(t, vfs.OS{}, path)
	for _, name := range []string{"config", "data/secret", "log/1", "log"} {
		if p, err := d.Get(ctx, name, 100); err == nil {
			t.Errorf("Get of %s: %q", name, p)
		}
	}
	if err := d.Put(ctx, "data/new", []byte("x")); err == nil {
		t.Error("Put by way of a symbolic link succeeded")
	}
	if err := d.Put(ctx, "config", []byte("x")); !errors.Is(err, blob.ErrExists) {
		t.Errorf("Put over a symbolic link: %v", err)
	}
	for i, err := range d.List(ctx, "", "") {
		t.Errorf("lists %v, %v", i, err)
	}
	if err := errors.Join(d.Delete(ctx, "config"), d.Delete(ctx, "data/secret")); err == nil {
		t.Error("Delete by way of a symbolic link succeeded")
	}
	if _, err := os.Stat(out + "/secret"); err != nil {
		t.Error(err)
	}
}

// TestDirUnmounted: a directory that is not there is empty, and reading does not make it.
func TestDirUnmounted(t *testing.T) {
	path := t.TempDir() + "/mnt"
	d := openDir(t, vfs.OS{}, path)
	if _, err := d.Get(t.Context(), "config", 10); !errors.Is(err, blob.ErrNotFound) {
		t.Error(err)
	}
	for i, err := range d.List(t.Context(), "", "") {
		t.Error(i, err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("reading made the directory: %v", err)
	}
	if err := d.Put(t.Context(), "config", []byte("x")); err != nil {
		t.Error(err)
	}
}

// TestDirManyOpen reads more objects than are kept open, while they are deleted.
func TestDirManyOpen(t *testing.T) {
	d := openDir(t, faultfs.New(), repo)
	for i := range 400 {
		if err := d.Put(t.Context(), fmt.Sprintf("data/aa/%d", i), []byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error, 4)
	for range 4 {
		go func() {
			for i := range 400 {
				p := make([]byte, 1)
				err := d.ReadAt(t.Context(), fmt.Sprintf("data/aa/%d", i), p, 0)
				if err != nil && !errors.Is(err, blob.ErrNotFound) || err == nil && p[0] != byte(i) {
					done <- fmt.Errorf("object %d: %v, %w", i, p, err)
					return
				}
			}
			done <- nil
		}()
	}
	for i := 0; i < 400; i += 3 {
		if err := d.Delete(t.Context(), fmt.Sprintf("data/aa/%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if n := d.OpenFiles(); n > 128 {
		t.Errorf("%d files are open", n)
	}
}
