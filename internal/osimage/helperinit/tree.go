package main

import (
	"errors"
	"io"
	"os"
	"path"
	"sort"
	"syscall"

	"drover/internal/osimage/helperinit/wire"
)

// listing is the directory that was listed last, so that its pages need not read it again.
type listing struct {
	volume, path string
	names        []string
}

const readBuffer = 512 << 10

func entryOf(name string, st *syscall.Stat_t) wire.Entry {
	e := wire.Entry{Name: name, Kind: wire.Special, Mode: st.Mode, UID: st.Uid, GID: st.Gid, Size: uint64(max(st.Size, 0)),
		Seconds: st.Mtim.Sec, Nanos: uint32(st.Mtim.Nsec), Links: uint32(st.Nlink)}
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		e.Kind = wire.Directory
	case syscall.S_IFREG:
		e.Kind = wire.File
	case syscall.S_IFLNK:
		e.Kind = wire.Symlink
	}
	return e
}

// names gives a directory's names, sorted.
func (m *machine) names(volume, p string, dir *os.File) ([]string, error) {
	m.listMu.Lock()
	defer m.listMu.Unlock()
	if m.listed.volume == volume && m.listed.path == p && m.listed.names != nil {
		return m.listed.names, nil
	}
	m.listed = listing{}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	sort.Strings(names)
	m.listed = listing{volume, p, names}
	return names, nil
}

func (p *port) list(q wire.List) error {
	if q.Limit < 1 || q.Limit > wire.MaxLimit {
		return fail(wire.BadRequest, "a list of %d", q.Limit)
	}
	root, err := p.m.open(q.Volume)
	if err != nil {
		return err
	}
	dir, err := openIn(root, q.Path, syscall.O_RDONLY|syscall.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := p.m.names(q.Volume, q.Path, dir)
	if err != nil {
		return err
	}
	from := sort.Search(len(names), func(i int) bool { return names[i] > q.After })
	for _, n := range names[from:min(len(names), from+int(q.Limit))] {
		var st syscall.Stat_t
		e := wire.Entry{Name: n, Kind: wire.Special}
		// What cannot be read is shown without its properties.
		if err := fstatat(int(dir.Fd()), n, &st); err == nil {
			e = entryOf(n, &st)
			if e.Kind == wire.Symlink {
				e.Target, _ = readlinkat(int(dir.Fd()), n)
			}
		}
		if p.cancelled.Load() {
			return errCancelled
		}
		if err := p.send(wire.TypeEntry, e.Append(nil)); err != nil {
			return err
		}
	}
	return nil
}

func (p *port) stat(q wire.Stat) error {
	root, err := p.m.open(q.Volume)
	if err != nil {
		return err
	}
	flags := oPath
	if !q.Follow {
		flags |= syscall.O_NOFOLLOW
	}
	f, err := openIn(root, q.Path, flags)
	if err != nil {
		return err
	}
	defer f.Close()
	e, err := entryOfFile(q.Path, f)
	if err != nil {
		return err
	}
	return p.send(wire.TypeEntry, e.Append(nil))
}

func entryOfFile(name string, f *os.File) (wire.Entry, error) {
	var st syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
		return wire.Entry{}, err
	}
	base := path.Base(path.Clean("/" + name))
	if base == "/" {
		base = "root"
	}
	e := entryOf(base, &st)
	if e.Kind == wire.Symlink {
		var err error
		if e.Target, err = readlinkat(int(f.Fd()), ""); err != nil {
			return e, err
		}
	}
	return e, nil
}

func (p *port) read(q wire.Read) error {
	root, err := p.m.open(q.Volume)
	if err != nil {
		return err
	}
	f, err := openIn(root, q.Path, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY)
	if err != nil {
		return err
	}
	defer f.Close()
	e, err := entryOfFile(q.Path, f)
	if err != nil {
		return err
	}
	if e.Kind != wire.File {
		return fail(wire.WrongType, "is not a regular file")
	}
	if err := p.send(wire.TypeEntry, e.Append(nil)); err != nil {
		return err
	}
	parts, err := dataParts(f, int64(e.Size))
	if err != nil {
		return err
	}
	at := int64(0)
	for _, d := range append(parts, part{int64(e.Size), 0}) {
		if d.off > at {
			if err := p.send(wire.TypeHole, wire.Hole(uint64(d.off-at))); err != nil {
				return err
			}
		}
		if err := p.copyData(f, d); err != nil {
			return err
		}
		at = d.off + d.n
	}
	return nil
}

// part of a file that has data.
type part struct{ off, n int64 }

// dataParts tells where a file has data. A file that has as many blocks as it needs is not asked.
func dataParts(f *os.File, size int64) ([]part, error) {
	var st syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	whole := []part{{0, size}}
	if size == 0 {
		return nil, nil
	}
	if st.Blocks*512 >= size || size < 64<<10 {
		return whole, nil
	}
	var out []part
	for at := int64(0); at < size; {
		d, err := syscall.Seek(int(f.Fd()), at, seekData)
		if errors.Is(err, syscall.ENXIO) {
			break
		}
		if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EOPNOTSUPP) {
			return whole, nil
		}
		if err != nil {
			return nil, err
		}
		h, err := syscall.Seek(int(f.Fd()), d, seekHole)
		if err != nil {
			return nil, err
		}
		h = min(h, size)
		if d < at || h <= d || len(out) > 1<<20 {
			return nil, syscall.EIO
		}
		out = append(out, part{d, h - d})
		at = h
	}
	return out, nil
}

// copyData sends a part of a file, past the buffer: a frame is one write.
func (p *port) copyData(f *os.File, d part) error {
	if d.n == 0 {
		return nil
	}
	const head = 9
	buf := make([]byte, head+min(readBuffer, d.n))
	for d.n > 0 {
		if p.cancelled.Load() {
			return errCancelled
		}
		b := buf[head : head+min(int64(len(buf)-head), d.n)]
		n, err := f.ReadAt(b, d.off)
		if n == 0 {
			if err == nil || errors.Is(err, io.EOF) {
				err = syscall.EIO
			}
			return err
		}
		wire.AppendHead(buf[:0], wire.TypeData, p.id, n)
		if err := p.out.Flush(); err != nil {
			return err
		}
		if _, err := p.Write(buf[:head+n]); err != nil {
			return err
		}
		d.off, d.n = d.off+int64(n), d.n-int64(n)
	}
	return nil
}
