package vfs

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// OS is the machine's file system.
type OS struct{}

// OpenRoot implements [FS]. The path itself may hold symbolic links: it is the operator's.
func (OS) OpenRoot(name string, create bool) (Root, error) {
	if create {
		if err := mkdirAll(name); err != nil {
			return nil, err
		}
	}
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	return &osRoot{dir: f}, nil
}

func mkdirAll(name string) error {
	if st, err := os.Stat(name); err == nil {
		if !st.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: name, Err: unix.ENOTDIR}
		}
		return nil
	}
	parent := filepath.Dir(name)
	if err := mkdirAll(parent); err != nil {
		return err
	}
	if err := os.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	d, err := os.Open(parent)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

type osRoot struct{ dir *os.File }

func (r *osRoot) fail(op, name string, err error) error {
	return &fs.PathError{Op: op, Path: filepath.Join(r.dir.Name(), name), Err: err}
}

// open resolves below the root without symbolic links (openat2, Linux 5.6).
func (r *osRoot) open(op, name string, flags int) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	if flags&unix.O_CREAT != 0 {
		how.Mode = 0o600
	}
	for {
		fd, err := unix.Openat2(int(r.dir.Fd()), name, &how)
		switch {
		case err == unix.EINTR || err == unix.EAGAIN: // EAGAIN: something was renamed on the way
			continue
		case err != nil:
			return nil, r.fail(op, name, err)
		}
		return os.NewFile(uintptr(fd), filepath.Join(r.dir.Name(), name)), nil
	}
}

// at calls f with the directory that holds name, and its last element.
func (r *osRoot) at(op, name string, f func(dir int, base string) error) error {
	d, err := r.open(op, path.Dir(name), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := f(int(d.Fd()), path.Base(name)); err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			return err
		}
		return r.fail(op, name, err)
	}
	return nil
}

func (r *osRoot) Create(name string) (File, error) {
	f, err := r.open("create", name, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (r *osRoot) Open(name string) (File, error) {
	f, err := r.open("open", name, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = r.fail("open", name, unix.EISDIR)
		if !st.IsDir() {
			err = r.fail("open", name, errors.New("not a regular file"))
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return osFile{f}, nil
}

// Lock opens for writing, which NFS asks for.
func (r *osRoot) Lock(name string) (io.Closer, error) {
	for {
		f, err := r.open("lock", name, unix.O_CREAT|unix.O_RDWR|unix.O_NONBLOCK)
		if err != nil {
			return nil, err
		}
		var st unix.Stat_t
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			err = unix.Fstat(int(f.Fd()), &st)
		}
		switch {
		case err == nil && st.Nlink > 0:
			return f, nil
		case err == nil: // whoever had the lock before has removed the file
			f.Close()
		case err == unix.EWOULDBLOCK:
			f.Close()
			return nil, r.fail("lock", name, ErrLocked)
		default:
			f.Close()
			return nil, r.fail("lock", name, err)
		}
	}
}

func (r *osRoot) Link(old, new string) error {
	return r.at("link", old, func(from int, oldBase string) error {
		return r.at("link", new, func(to int, newBase string) error {
			return unix.Linkat(from, oldBase, to, newBase, 0)
		})
	})
}

func (r *osRoot) Remove(name string) error {
	return r.at("remove", name, func(dir int, base string) error { return unix.Unlinkat(dir, base, 0) })
}

func (r *osRoot) Mkdir(name string) error {
	return r.at("mkdir", name, func(dir int, base string) error { return unix.Mkdirat(dir, base, 0o700) })
}

func (r *osRoot) SyncDir(name string) error {
	d, err := r.open("sync", name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (r *osRoot) ReadDir(name string) ([]Entry, error) {
	d, err := r.open("readdir", name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	list, err := d.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	out := make([]Entry, len(list))
	for i, e := range list {
		out[i] = Entry{Name: e.Name(), Type: e.Type()}
	}
	return out, nil
}

func (r *osRoot) Stat(name string) (Info, error) {
	var st unix.Stat_t
	err := r.at("stat", name, func(dir int, base string) error {
		return unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	})
	return info(&st), err
}

func (r *osRoot) Space() (total, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(r.dir.Fd()), &st); err != nil {
		return 0, 0, r.fail("statfs", ".", err)
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil
}

func (r *osRoot) Close() error { return r.dir.Close() }

type osFile struct{ *os.File }

func (f osFile) Flush(off, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}

func (f osFile) Stat() (Info, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return Info{}, &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return info(&st), nil
}

func info(st *unix.Stat_t) Info {
	i := Info{Size: st.Size, Links: uint64(st.Nlink), Dev: st.Dev, Ino: st.Ino}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		i.Type = fs.ModeDir
	case unix.S_IFREG:
	case unix.S_IFLNK:
		i.Type = fs.ModeSymlink
	default:
		i.Type = fs.ModeIrregular
	}
	return i
}
