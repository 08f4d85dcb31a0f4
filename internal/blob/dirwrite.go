package blob

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"sync/atomic"

	"drover/internal/vfs"
)

// dirWriter writes one object.
type dirWriter struct {
	d    *Dir
	root vfs.Root
	ctx  context.Context // of the whole writing
	name string
	tmp  string
	f    vfs.File // nil when done
	// unsynced: the object has its name, and keeps the one under tmp, which tells readers to sync.
	unsynced bool

	buf     []byte
	off     int64 // what is in the file
	flushed int64
	checked int64 // where the room was looked at
	small   bool  // it may take the last room
	err     error
}

func (w *dirWriter) Write(p []byte) (int, error) {
	if err := w.usable(); err != nil {
		return 0, err
	}
	n := len(p)
	for len(p) > 0 {
		if len(w.buf) == 0 && len(p) >= writeSize {
			if err := w.write(p); err != nil {
				return 0, err
			}
			break
		}
		if w.buf == nil {
			w.buf = make([]byte, 0, max(4096, min(writeSize, len(p))))
		}
		k := min(len(p), writeSize-len(w.buf))
		w.buf = append(w.buf, p[:k]...)
		p = p[k:]
		if len(w.buf) == writeSize {
			if err := w.drain(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

func (w *dirWriter) usable() error {
	if w.f == nil {
		return errEnded
	}
	if w.err == nil && w.ctx.Err() != nil {
		w.err = w.ctx.Err()
	}
	return w.err
}

func (w *dirWriter) drain() error {
	if len(w.buf) == 0 {
		return nil
	}
	err := w.write(w.buf)
	w.buf = w.buf[:0]
	return err
}

// reserve is room that large objects leave: on a storage that is full to the last byte nothing could be forgotten, as that is written down.
// Of a small file system it is a fiftieth.
const reserve = 64 << 20

// room fails if a large object comes too near to the end of the storage.
func (w *dirWriter) room(n int) error {
	if w.small || w.off > 0 && w.off < w.checked+flushSize {
		return nil
	}
	w.checked = w.off
	total, free, err := w.root.Space()
	if err == nil && free-int64(n) < min(reserve, total/50) {
		return fmt.Errorf("write %s: %w: %d of %d bytes are free, and the last are kept for what frees others", path.Join(w.d.path, w.name), ErrFull, free, total)
	}
	return nil
}

func (w *dirWriter) write(p []byte) error {
	if err := w.room(len(p)); err != nil {
		w.err = err
		return err
	}
	n, err := w.f.WriteAt(p, w.off)
	w.off += int64(n)
	if err != nil {
		w.err = w.d.fail("write", w.name, err)
		return w.err
	}
	if w.off-w.flushed >= flushSize {
		w.f.Flush(w.flushed, w.off-w.flushed)
		w.flushed = w.off
	}
	return nil
}

// Commit implements [Writer].
func (w *dirWriter) Commit() error {
	if err := w.usable(); err != nil {
		return err
	}
	defer w.Abort()
	if err := w.drain(); err != nil {
		return err
	}
	if err := w.f.Sync(); err != nil {
		return w.d.fail("sync", w.name, err)
	}
	if err := w.d.syncUnlinked(w.root); err != nil {
		return err
	}
	dir := path.Dir(w.name)
	if err := w.d.ensure(w.root, dir); err != nil {
		return w.d.fail("write", w.name, err)
	}
	err := w.root.Link(w.tmp, w.name)
	if errors.Is(err, fs.ErrNotExist) { // somebody has removed the empty directory
		w.d.mu.Lock()
		delete(w.d.durable, dir)
		w.d.mu.Unlock()
		if err := w.d.ensure(w.root, dir); err != nil {
			return w.d.fail("write", w.name, err)
		}
		err = w.root.Link(w.tmp, w.name)
	}
	if err != nil && w.linked() {
		err = nil // NFS: the answer was lost, and a repeated request found the name taken
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return w.d.fail("write", w.name, err)
	}
	// Also a name that was taken is made durable before anybody is told so.
	if serr := w.root.SyncDir(dir); serr != nil {
		w.unsynced = err == nil
		return w.d.fail("sync", w.name, serr)
	}
	return w.d.fail("write", w.name, err)
}

// linked reports whether the name is this writer's file.
func (w *dirWriter) linked() bool {
	at, err := w.root.Stat(w.name)
	if err != nil {
		return false
	}
	mine, err := w.f.Stat()
	return err == nil && at.Same(mine)
}

// Abort implements [Writer].
func (w *dirWriter) Abort() {
	if w.f == nil {
		return
	}
	w.f.Close()
	w.f, w.buf = nil, nil
	if w.unsynced {
		return
	}
	_ = w.root.Remove(w.tmp) // what stays is swept when the next process comes
}

// ensure makes a directory and its names durable, once for each.
func (d *Dir) ensure(root vfs.Root, dir string) error {
	d.mu.Lock()
	done := d.durable[dir]
	d.mu.Unlock()
	if done {
		return nil
	}
	if err := vfs.MkdirAll(root, dir); err != nil {
		return err
	}
	d.mu.Lock()
	d.durable[dir] = true
	d.mu.Unlock()
	return nil
}

// syncUnlinked makes deletions durable.
func (d *Dir) syncUnlinked(root vfs.Root) error {
	d.mu.Lock()
	var dirs []string
	for dir := range d.unlinked {
		dirs = append(dirs, dir)
	}
	clear(d.unlinked)
	d.mu.Unlock()
	for i, dir := range dirs {
		if err := root.SyncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			d.mu.Lock()
			for _, dir := range dirs[i:] {
				d.unlinked[dir] = true
			}
			d.mu.Unlock()
			return d.fail("sync", dir, err)
		}
	}
	return nil
}

// holder owns names under tmp: HOLDER is a locked file for as long as the process lives, HOLDER,N,NAME are its files.
// Whoever can take the lock knows that they are left over.
type holder struct {
	id   string
	lock io.Closer
	n    atomic.Int64
}

// next returns a name under tmp, which says what the file is to become.
func (h *holder) next(name string) string {
	return tmpDir + "/" + h.id + "," + strconv.FormatInt(h.n.Add(1), 10) + "," + strings.ReplaceAll(name, "/", ",")
}

func (h *holder) release(root vfs.Root) {
	_ = root.Remove(tmpDir + "/" + h.id)
	h.lock.Close()
}

// hold makes this store's holder at its first write, and sweeps what others left.
func (d *Dir) hold(root vfs.Root) (*holder, error) {
	d.mu.Lock()
	h := d.holder
	d.mu.Unlock()
	if h != nil {
		return h, nil
	}
	if err := root.Mkdir(tmpDir); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, d.fail("make", tmpDir, err)
	}
	for {
		var id [8]byte
		rand.Read(id[:])
		h = &holder{id: hex.EncodeToString(id[:])}
		var err error
		h.lock, err = root.Lock(tmpDir + "/" + h.id)
		if err == nil {
			break
		}
		if !errors.Is(err, vfs.ErrLocked) { // else one who sweeps was quicker to lock what was just made
			return nil, d.fail("lock", tmpDir, err)
		}
	}
	d.mu.Lock()
	if other := d.holder; other != nil {
		d.mu.Unlock()
		h.release(root)
		return other, nil
	}
	d.holder = h
	d.mu.Unlock()
	sweep(root, h.id)
	return h, nil
}

// sweep removes files under tmp whose writers are gone. What it cannot remove waits for the next.
func sweep(root vfs.Root, self string) {
	entries, err := root.ReadDir(tmpDir)
	if err != nil {
		return
	}
	left := map[string][]string{}
	for _, e := range entries {
		id, _, _ := strings.Cut(e.Name, ",")
		if id != self && e.Type == 0 {
			left[id] = append(left[id], e.Name)
		}
	}
	for id, names := range left {
		lock, err := root.Lock(tmpDir + "/" + id)
		if err != nil {
			continue
		}
		ok := true
		for _, name := range names {
			if name != id {
				ok = sweepFile(root, name) && ok
			}
		}
		if ok {
			_ = root.Remove(tmpDir + "/" + id)
		}
		lock.Close()
	}
}

// sweepFile removes one. If its object has its name already, that is made durable first: see [Dir].
func sweepFile(root vfs.Root, name string) bool {
	file := tmpDir + "/" + name
	st, err := root.Stat(file)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	if parts := strings.Split(name, ","); st.Links > 1 && len(parts) > 2 {
		dir := path.Dir(path.Join(parts[2:]...))
		if err := vfs.MkdirAll(readOnlyMkdir{root}, dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false
		}
		if err := root.SyncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	return root.Remove(file) == nil
}
