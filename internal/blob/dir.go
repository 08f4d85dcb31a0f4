package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"path"
	"sort"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"drover/internal/vfs"
)

// Dir keeps objects in a directory: on a disk of this machine, or on NFS. It is a [Store] and an io.Closer.
//
// An object is written to a file under tmp, synced, linked to its name, and the directory synced. Only then does its name under
// tmp go: so whoever meets an object with two names syncs the directory before believing in it, and nobody acts upon an
// object that a power failure could still take away.
type Dir struct {
	fsys  vfs.FS
	path  string
	files *files

	mu     sync.Mutex
	root   vfs.Root // nil until the directory is there
	holder *holder  // nil until something is written
	// durable has the directories whose names are known to be so in all directories above.
	durable map[string]bool
	// unlinked has the directories that lost names since they were last synced.
	unlinked map[string]bool
}

const (
	tmpDir = "tmp"
	// writeSize is how much goes to the file system at once.
	writeSize = 1 << 20
	// flushSize is how much may be written before the disk is set to work on it.
	flushSize = 8 << 20
)

// OpenDir uses the directory at path. It need not be there: then it is empty, and made by the first write.
func OpenDir(fsys vfs.FS, path string) (*Dir, error) {
	d := &Dir{fsys: fsys, path: path, durable: map[string]bool{".": true}, unlinked: map[string]bool{}}
	d.files = newFiles(openFiles)
	if _, err := d.open(false); err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	return d, nil
}

// open returns the root, opened when first needed.
func (d *Dir) open(create bool) (vfs.Root, error) {
	d.mu.Lock()
	root := d.root
	d.mu.Unlock()
	if root != nil {
		return root, nil
	}
	root, err := d.fsys.OpenRoot(d.path, create)
	if err != nil {
		return nil, mapError(fmt.Errorf("open directory %s: %w", d.path, err))
	}
	d.mu.Lock()
	if d.root != nil {
		d.mu.Unlock()
		root.Close()
		return d.root, nil
	}
	d.root = root
	d.mu.Unlock()
	return root, nil
}

func (d *Dir) String() string { return d.path }

// Close lets go of files and of the directory.
func (d *Dir) Close() error {
	d.mu.Lock()
	root, h := d.root, d.holder
	d.root, d.holder = nil, nil
	d.mu.Unlock()
	d.files.close()
	if root == nil {
		return nil
	}
	if h != nil {
		h.release(root)
	}
	return root.Close()
}

// Put implements [Store].
func (d *Dir) Put(ctx context.Context, name string, data []byte) error {
	w, err := d.create(ctx, name)
	if err != nil {
		return err
	}
	w.small = true
	defer w.Abort()
	if _, err := w.Write(data); err != nil {
		return err
	}
	return w.Commit()
}

// Create implements [Store].
func (d *Dir) Create(ctx context.Context, name string) (Writer, error) {
	w, err := d.create(ctx, name)
	if err != nil {
		return nil, err
	}
	return w, nil
}

func (d *Dir) create(ctx context.Context, name string) (*dirWriter, error) {
	if err := begin(ctx, name); err != nil {
		return nil, err
	}
	root, err := d.open(true)
	if err != nil {
		return nil, err
	}
	h, err := d.hold(root)
	if err != nil {
		return nil, err
	}
	tmp := h.next(name)
	f, err := root.Create(tmp)
	if err != nil {
		return nil, d.fail("write", name, err)
	}
	return &dirWriter{d: d, root: root, ctx: ctx, name: name, tmp: tmp, f: f}, nil
}

// ReadAt implements [Store].
func (d *Dir) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if err := begin(ctx, name); err != nil {
		return err
	}
	return d.read(name, func(f vfs.File, _ int64) error {
		n, err := f.ReadAt(p, off)
		if n == len(p) {
			return nil
		}
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	})
}

// Get implements [Store].
func (d *Dir) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	if err := begin(ctx, name); err != nil {
		return nil, err
	}
	var p []byte
	err := d.read(name, func(f vfs.File, size int64) error {
		if size > limit {
			return tooLong(name, size, limit)
		}
		p = make([]byte, size)
		n, err := f.ReadAt(p, 0)
		if n == len(p) {
			return nil
		}
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	})
	return p, err
}

// Size implements [Store].
func (d *Dir) Size(ctx context.Context, name string) (int64, error) {
	if err := begin(ctx, name); err != nil {
		return 0, err
	}
	var n int64
	err := d.read(name, func(_ vfs.File, size int64) error { n = size; return nil })
	return n, err
}

// read calls f with an open object. A file whose handle an NFS server has forgotten is opened anew, once.
func (d *Dir) read(name string, f func(f vfs.File, size int64) error) error {
	root, err := d.open(false)
	if err != nil {
		return d.fail("read", name, err)
	}
	for again := false; ; again = true {
		c, err := d.files.get(name, func() (vfs.File, int64, error) { return openDurable(root, name) })
		if err == nil {
			err = f(c.f, c.size)
			d.files.put(c)
		}
		if errors.Is(err, unix.ESTALE) && !again {
			d.files.drop(name)
			continue
		}
		return d.fail("read", name, err)
	}
}

// openDurable opens an object that no crash can take away any more.
func openDurable(root vfs.Root, name string) (vfs.File, int64, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err == nil && st.Links > 1 {
		// Its writer has not come to syncing the name, or died before. A store that is mounted read-only has no such writer.
		if err = vfs.MkdirAll(readOnlyMkdir{root}, path.Dir(name)); err == nil {
			err = root.SyncDir(path.Dir(name))
		}
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, st.Size, nil
}

// readOnlyMkdir makes [vfs.MkdirAll] sync what is there.
type readOnlyMkdir struct{ vfs.Root }

func (readOnlyMkdir) Mkdir(string) error { return nil }

// Delete implements [Store]. A crash may bring the object back until the next Put.
func (d *Dir) Delete(ctx context.Context, name string) error {
	if err := begin(ctx, name); err != nil {
		return err
	}
	root, err := d.open(false)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	d.files.drop(name)
	d.mu.Lock()
	d.unlinked[path.Dir(name)] = true
	d.mu.Unlock()
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EISDIR) {
		return d.fail("delete", name, err)
	}
	return nil
}

// List implements [Store].
func (d *Dir) List(ctx context.Context, prefix, after string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		root, err := d.open(false)
		if errors.Is(err, ErrNotFound) {
			return
		}
		if err != nil {
			yield(Info{}, err)
			return
		}
		d.list(ctx, root, ".", prefix, after, yield)
	}
}

// list walks one directory in the order of whole names: a directory sorts as if its name ended with a slash.
func (d *Dir) list(ctx context.Context, root vfs.Root, dir, prefix, after string, yield func(Info, error) bool) bool {
	entries, err := root.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	if err != nil {
		return yield(Info{}, d.fail("list", dir, err))
	}
	keys := make([]string, 0, len(entries))
	for _, e := range entries {
		key := path.Join(dir, e.Name)
		switch {
		case key == tmpDir || !ValidName(key):
			continue
		case e.Type.IsDir():
			key += "/"
			if !strings.HasPrefix(prefix, key) && !strings.HasPrefix(key, prefix) || key < after && !strings.HasPrefix(after, key) {
				continue
			}
		case e.Type != 0:
			continue
		case !strings.HasPrefix(key, prefix) || key <= after:
			continue
		}
		keys = append(keys, key)
	}
	sort.Strings(keys)
	for _, key := range keys {
		if err := ctx.Err(); err != nil {
			return yield(Info{}, err)
		}
		if sub, ok := strings.CutSuffix(key, "/"); ok {
			if !d.list(ctx, root, sub, prefix, after, yield) {
				return false
			}
			continue
		}
		st, err := root.Stat(key)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return yield(Info{}, d.fail("list", key, err))
		}
		if !yield(Info{Name: key, Size: st.Size}, nil) {
			return false
		}
	}
	return true
}

// Space implements [Store].
func (d *Dir) Space(context.Context) (total, free int64, ok bool, err error) {
	root, err := d.open(false)
	if err != nil {
		return 0, 0, false, err
	}
	total, free, err = root.Space()
	return total, free, err == nil, d.fail("ask for the space of", "", err)
}

func (d *Dir) fail(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return mapError(fmt.Errorf("%s %s: %w", op, path.Join(d.path, name), err))
}

// mapError adds the error of this package that callers branch on.
func mapError(err error) error {
	has := func(targets ...error) bool {
		for _, t := range targets {
			if errors.Is(err, t) {
				return true
			}
		}
		return false
	}
	switch {
	case has(ErrExists, ErrNotFound, ErrReadOnly, ErrFull):
		return err
	case has(fs.ErrNotExist, unix.ENOTDIR, unix.EISDIR):
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case has(fs.ErrExist):
		return fmt.Errorf("%w: %w", ErrExists, err)
	case has(unix.ENOSPC, unix.EDQUOT, unix.EFBIG):
		return fmt.Errorf("%w: %w", ErrFull, err)
	case has(unix.EROFS, unix.EACCES, unix.EPERM):
		return fmt.Errorf("%w: %w", ErrReadOnly, err)
	}
	return err
}
