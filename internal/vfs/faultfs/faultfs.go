package faultfs

import (
	"errors"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"drover/internal/vfs"
)

// ErrCrashed is the error of each operation after the crash.
var ErrCrashed = errors.New("the machine has crashed")

// Kind says what an operation does.
type Kind string

// Kinds of operations. The first group changes something, and is what CrashAt counts.
const (
	Create  Kind = "create"
	Write   Kind = "write"
	Sync    Kind = "sync"
	Link    Kind = "link"
	Remove  Kind = "remove"
	Mkdir   Kind = "mkdir"
	SyncDir Kind = "syncdir"

	Open    Kind = "open"
	Read    Kind = "read"
	ReadDir Kind = "readdir"
	Stat    Kind = "stat"
	Lock    Kind = "lock"
)

func (k Kind) changes() bool {
	switch k {
	case Open, Read, ReadDir, Stat, Lock:
		return false
	}
	return true
}

// Op is an operation that is about to happen.
type Op struct {
	Kind Kind
	// Path is absolute.
	Path string
	// N counts the operations of the whole file system that change something, from 1; 0 for others.
	N int64
}

// Fault is what happens to an operation.
type Fault struct {
	// Err is returned, if set.
	Err error
	// Done performs the operation all the same: its answer alone is lost.
	Done bool
}

// FS is a file system in memory. Its methods are for concurrent use.
type FS struct {
	mu        sync.Mutex
	root      *node
	nextIno   uint64
	n         int64
	crashAt   int64
	crashed   bool
	intercept func(Op) Fault
	capacity  int64 // 0: no limit
	used      int64
}

// node is a file or a directory.
type node struct {
	ino   uint64
	links uint64

	// Of a directory: what is seen, and for names that changed since the last sync all that they were, beginning with what is durable.
	dir     bool
	entries map[string]*node
	history map[string][]*node

	// Of a file: what is seen, what is durable, and where they differ.
	data, durable []byte
	dirty         []extent
	locked        bool
}

type extent struct{ off, end int64 }

// New returns an empty file system.
func New() *FS {
	f := &FS{}
	f.root = f.newDir()
	return f
}

func (f *FS) newNode() *node {
	f.nextIno++
	return &node{ino: f.nextIno}
}

func (f *FS) newDir() *node {
	n := f.newNode()
	n.dir, n.entries, n.history, n.links = true, map[string]*node{}, map[string][]*node{}, 1
	return n
}

// CrashAt makes the n-th operation from now that changes something the last: it fails, and is done or not as the seed of [FS.Crash] says.
// 0: none is.
func (f *FS) CrashAt(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.crashAt = f.n + n
}

// Intercept asks decide about each operation. nil ends it.
func (f *FS) Intercept(decide func(Op) Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.intercept = decide
}

// Ops is how many operations have changed something.
func (f *FS) Ops() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n
}

// Crashed reports whether the operation of CrashAt has come.
func (f *FS) Crashed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.crashed
}

// SetCapacity limits the bytes of all files; 0: no limit.
func (f *FS) SetCapacity(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.capacity = n
}

// do performs one operation under the lock.
func (f *FS) do(kind Kind, name string, op func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.doLocked(kind, name, op)
}

func (f *FS) doLocked(kind Kind, name string, op func() error) error {
	fail := func(err error) error {
		if err == nil || err == io.EOF {
			return err
		}
		return &fs.PathError{Op: string(kind), Path: name, Err: err}
	}
	if f.crashed {
		return fail(ErrCrashed)
	}
	o := Op{Kind: kind, Path: name}
	if kind.changes() {
		f.n++
		o.N = f.n
		if f.n == f.crashAt {
			// Seen by nobody any more, it is pending like all that is not synced; a sync that was cut short made nothing durable for sure.
			if kind != Sync && kind != SyncDir {
				_ = op()
			}
			f.crashed = true
			return fail(ErrCrashed)
		}
	}
	if f.intercept != nil {
		if fault := f.intercept(o); fault.Err != nil {
			if fault.Done {
				_ = op()
			}
			return fail(fault.Err)
		}
	}
	return fail(op())
}

// walk finds a node by its absolute path.
func (f *FS) walk(name string) (*node, error) {
	n := f.root
	for e := range strings.SplitSeq(strings.Trim(name, "/"), "/") {
		if e == "" {
			continue
		}
		if !n.dir {
			return nil, unix.ENOTDIR
		}
		if n = n.entries[e]; n == nil {
			return nil, unix.ENOENT
		}
	}
	return n, nil
}

func (f *FS) walkDir(name string) (*node, error) {
	n, err := f.walk(name)
	if err == nil && !n.dir {
		err = unix.ENOTDIR
	}
	return n, err
}

// set changes a name in a directory; nil removes it.
func (d *node) set(name string, to *node) {
	if d.history[name] == nil {
		d.history[name] = []*node{d.entries[name]}
	}
	d.history[name] = append(d.history[name], to)
	if to == nil {
		delete(d.entries, name)
	} else {
		d.entries[name] = to
	}
}

// OpenRoot implements vfs.FS.
func (f *FS) OpenRoot(name string, create bool) (vfs.Root, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.crashed {
		return nil, ErrCrashed
	}
	name = path.Clean("/" + name)
	if create {
		at := f.root
		for e := range strings.SplitSeq(strings.Trim(name, "/"), "/") {
			if at.entries[e] == nil && e != "" {
				at.entries[e] = f.newDir()
			}
			if e != "" {
				delete(at.history, e)
				at = at.entries[e]
			}
		}
	}
	if _, err := f.walkDir(name); err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return &root{fs: f, path: name}, nil
}

type root struct {
	fs   *FS
	path string
}

func (r *root) abs(name string) (string, error) {
	if name != path.Clean(name) || path.IsAbs(name) || name == ".." || strings.HasPrefix(name, "../") {
		return "", unix.EXDEV
	}
	return path.Join(r.path, name), nil
}

// do performs an operation on a path below the root.
func (r *root) do(kind Kind, name string, op func(abs string) error) error {
	abs, err := r.abs(name)
	if err != nil {
		return &fs.PathError{Op: string(kind), Path: name, Err: err}
	}
	return r.fs.do(kind, abs, func() error { return op(abs) })
}

func (r *root) Create(name string) (vfs.File, error) {
	var h *file
	err := r.do(Create, name, func(abs string) error {
		d, err := r.fs.walkDir(path.Dir(abs))
		if err != nil {
			return err
		}
		if d.entries[path.Base(abs)] != nil {
			return unix.EEXIST
		}
		n := r.fs.newNode()
		n.links = 1
		d.set(path.Base(abs), n)
		h = &file{fs: r.fs, node: n, path: abs, write: true}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

func (r *root) Open(name string) (vfs.File, error) {
	var h *file
	err := r.do(Open, name, func(abs string) error {
		n, err := r.fs.walk(abs)
		if err == nil && n.dir {
			err = unix.EISDIR
		}
		h = &file{fs: r.fs, node: n, path: abs}
		return err
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

// unlocker lets go of a lock. After a crash nobody has one.
type unlocker struct {
	fs   *FS
	node *node
}

func (u *unlocker) Close() error {
	u.fs.mu.Lock()
	defer u.fs.mu.Unlock()
	u.node.locked = false
	return nil
}

func (r *root) Lock(name string) (io.Closer, error) {
	var u *unlocker
	err := r.do(Lock, name, func(abs string) error {
		d, err := r.fs.walkDir(path.Dir(abs))
		if err != nil {
			return err
		}
		n := d.entries[path.Base(abs)]
		if n == nil {
			n = r.fs.newNode()
			n.links = 1
			d.set(path.Base(abs), n)
		}
		if n.locked {
			return vfs.ErrLocked
		}
		n.locked = true
		u = &unlocker{fs: r.fs, node: n}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return u, nil
}

func (r *root) Link(old, new string) error {
	from, err := r.abs(old)
	if err != nil {
		return err
	}
	return r.do(Link, new, func(to string) error {
		n, err := r.fs.walk(from)
		if err != nil {
			return err
		}
		d, err := r.fs.walkDir(path.Dir(to))
		if err != nil {
			return err
		}
		if n.dir {
			return unix.EPERM
		}
		if d.entries[path.Base(to)] != nil {
			return unix.EEXIST
		}
		d.set(path.Base(to), n)
		n.links++
		return nil
	})
}

func (r *root) Remove(name string) error {
	return r.do(Remove, name, func(abs string) error {
		d, err := r.fs.walkDir(path.Dir(abs))
		if err != nil {
			return err
		}
		n := d.entries[path.Base(abs)]
		switch {
		case n == nil:
			return unix.ENOENT
		case n.dir:
			return unix.EISDIR
		}
		d.set(path.Base(abs), nil)
		if n.links--; n.links == 0 {
			r.fs.used -= int64(len(n.data))
		}
		return nil
	})
}

func (r *root) Mkdir(name string) error {
	return r.do(Mkdir, name, func(abs string) error {
		d, err := r.fs.walkDir(path.Dir(abs))
		if err != nil {
			return err
		}
		if d.entries[path.Base(abs)] != nil {
			return unix.EEXIST
		}
		d.set(path.Base(abs), r.fs.newDir())
		return nil
	})
}

func (r *root) SyncDir(name string) error {
	return r.do(SyncDir, name, func(abs string) error {
		d, err := r.fs.walkDir(abs)
		if err == nil {
			clear(d.history)
		}
		return err
	})
}

func (r *root) ReadDir(name string) ([]vfs.Entry, error) {
	var out []vfs.Entry
	err := r.do(ReadDir, name, func(abs string) error {
		d, err := r.fs.walkDir(abs)
		if err != nil {
			return err
		}
		for name, n := range d.entries {
			out = append(out, vfs.Entry{Name: name, Type: n.mode()})
		}
		// Not in order, so that nobody relies on one, but the same each time.
		slices.SortFunc(out, func(a, b vfs.Entry) int { return strings.Compare(b.Name, a.Name) })
		return nil
	})
	return out, err
}

func (n *node) mode() fs.FileMode {
	if n.dir {
		return fs.ModeDir
	}
	return 0
}

func (n *node) info() vfs.Info {
	return vfs.Info{Size: int64(len(n.data)), Type: n.mode(), Links: n.links, Dev: 1, Ino: n.ino}
}

func (r *root) Stat(name string) (i vfs.Info, err error) {
	err = r.do(Stat, name, func(abs string) error {
		n, err := r.fs.walk(abs)
		if err == nil {
			i = n.info()
		}
		return err
	})
	return i, err
}

func (r *root) Space() (total, free int64, err error) {
	r.fs.mu.Lock()
	defer r.fs.mu.Unlock()
	if r.fs.capacity == 0 {
		return 1 << 50, 1 << 50, nil
	}
	return r.fs.capacity, max(0, r.fs.capacity-r.fs.used), nil
}

func (r *root) Close() error { return nil }

type file struct {
	fs    *FS
	node  *node
	path  string
	write bool
}

func (h *file) ReadAt(p []byte, off int64) (n int, err error) {
	err = h.fs.do(Read, h.path, func() error {
		if off < 0 {
			return unix.EINVAL
		}
		if off < int64(len(h.node.data)) {
			n = copy(p, h.node.data[off:])
		}
		if n < len(p) {
			return io.EOF
		}
		return nil
	})
	return n, err
}

func (h *file) WriteAt(p []byte, off int64) (n int, err error) {
	err = h.fs.do(Write, h.path, func() error {
		if !h.write {
			return unix.EBADF
		}
		full := error(nil)
		if grow := off + int64(len(p)) - int64(len(h.node.data)); grow > 0 {
			if over := h.fs.used + grow - h.fs.capacity; h.fs.capacity > 0 && over > 0 {
				full = unix.ENOSPC
				p = p[:max(0, int64(len(p))-over)]
				grow = off + int64(len(p)) - int64(len(h.node.data))
			}
			if grow > 0 {
				h.node.data = append(h.node.data, make([]byte, grow)...)
				h.fs.used += grow
			}
		}
		if len(p) > 0 {
			n = copy(h.node.data[off:], p)
			h.node.dirty = append(h.node.dirty, extent{off, off + int64(n)})
		}
		return full
	})
	return n, err
}

func (h *file) Sync() error {
	return h.fs.do(Sync, h.path, func() error {
		if len(h.node.dirty) > 0 {
			h.node.durable = slices.Clone(h.node.data)
			h.node.dirty = nil
		}
		return nil
	})
}

func (h *file) Flush(int64, int64) {}

func (h *file) Stat() (i vfs.Info, err error) {
	err = h.fs.do(Stat, h.path, func() error { i = h.node.info(); return nil })
	return i, err
}

func (h *file) Close() error { return nil }
