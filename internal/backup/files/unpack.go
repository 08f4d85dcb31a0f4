package files

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// UnpackOptions are for Unpack.
type UnpackOptions struct {
	// Owners gives files their owners, and keeps setuid and setgid bits; it takes root. Devices are made with it, and left out without.
	Owners bool
	// Replace takes files away that are in the way.
	Replace bool
}

// Unpacked counts what Unpack made, and names what it left out.
type Unpacked struct {
	Files, Bytes int64
	Skipped      []string // at most 100, as shown
}

// Unpack takes a tar archive apart below dir, which exists. A name that is absolute, has "..", or leads through a symlink ends it with an error;
// nothing is ever written outside of dir. Extended attributes are left out.
func Unpack(ctx context.Context, r io.Reader, dir string, o UnpackOptions) (Unpacked, error) {
	var u Unpacked
	root, err := os.OpenRoot(dir)
	if err != nil {
		return u, err
	}
	defer root.Close()
	x := &unpacker{root: root, o: o, u: &u}
	t := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return u, err
		}
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return u, x.settle()
		}
		if err == nil {
			err = x.member(t, h)
		}
		if err != nil {
			name := ""
			if h != nil {
				name = Show(h.Name) + ": "
			}
			return u, fmt.Errorf("unpack %s%w", name, err)
		}
	}
}

type unpacker struct {
	root *os.Root
	o    UnpackOptions
	u    *Unpacked
	dirs []dirTime // directories whose times and modes are set last
}

type dirTime struct {
	name string
	mode fs.FileMode
	time time.Time
}

// maxDirs bounds the memory for directories; those beyond keep the time of unpacking.
const maxDirs = 1 << 20

func (x *unpacker) member(t *tar.Reader, h *tar.Header) error {
	name := strings.TrimSuffix(h.Name, "/")
	if !filepath.IsLocal(name) || path.Clean(name) != name || strings.Contains(name, "\x00") {
		return errors.New("a name that leaves the directory")
	}
	if err := x.parents(path.Dir(name)); err != nil {
		return err
	}
	mode := fs.FileMode(h.Mode & 0o777)
	if x.o.Replace && h.Typeflag != tar.TypeDir {
		if err := x.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := x.directory(name); err != nil {
			return err
		}
		if len(x.dirs) < maxDirs {
			x.dirs = append(x.dirs, dirTime{name, mode, h.ModTime})
		}
		return x.owner(name, h)
	case tar.TypeReg:
		if err := x.file(t, name, h); err != nil {
			return err
		}
		return x.root.Chtimes(name, h.ModTime, h.ModTime)
	case tar.TypeSymlink:
		if err := x.root.Symlink(h.Linkname, name); err != nil {
			return err
		}
		x.u.Files++
		return x.owner(name, h)
	case tar.TypeLink:
		if !filepath.IsLocal(h.Linkname) {
			return errors.New("a link that leaves the directory")
		}
		if st, err := x.root.Lstat(h.Linkname); err != nil || !st.Mode().IsRegular() {
			return errors.Join(errors.New("a link to what is no file"), err)
		}
		x.u.Files++
		return x.root.Link(h.Linkname, name)
	}
	if len(x.u.Skipped) < 100 {
		x.u.Skipped = append(x.u.Skipped, Show(name))
	}
	return nil
}

// parents makes the directories above a member. A symlink among them is refused: the archive put it there to be written through.
func (x *unpacker) parents(dir string) error {
	if dir == "." {
		return nil
	}
	st, err := x.root.Lstat(dir)
	switch {
	case err == nil && st.IsDir():
		// The parents of a directory may still be links within the root.
		return x.above(dir)
	case err == nil:
		return fmt.Errorf("%s is not a directory", Show(dir))
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := x.parents(path.Dir(dir)); err != nil {
		return err
	}
	return x.root.Mkdir(dir, 0o755)
}

func (x *unpacker) above(dir string) error {
	for d := path.Dir(dir); d != "."; d = path.Dir(d) {
		if st, err := x.root.Lstat(d); err != nil || !st.IsDir() {
			return errors.Join(fmt.Errorf("%s is not a directory", Show(d)), err)
		}
	}
	return nil
}

func (x *unpacker) directory(name string) error {
	err := x.root.Mkdir(name, 0o700)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if st, err := x.root.Lstat(name); err != nil || !st.IsDir() {
		return errors.Join(errors.New("is there and not a directory"), err)
	}
	return nil
}

func (x *unpacker) file(t *tar.Reader, name string, h *tar.Header) error {
	f, err := x.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	n, err := copySparse(f, t)
	x.u.Files++
	x.u.Bytes += n
	if err == nil && n != h.Size {
		err = io.ErrUnexpectedEOF
	}
	mode := fs.FileMode(h.Mode & 0o777)
	if x.o.Owners {
		err = errors.Join(err, f.Chown(h.Uid, h.Gid))
		mode = h.FileInfo().Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
	}
	return errors.Join(err, f.Chmod(mode), f.Close())
}

// copySparse leaves holes where there are zeros.
func copySparse(f *os.File, r io.Reader) (int64, error) {
	buf, zeros := make([]byte, 64<<10), make([]byte, 64<<10)
	var at int64
	for {
		n, err := io.ReadFull(r, buf)
		if n > 0 && string(buf[:n]) != string(zeros[:n]) {
			if _, err := f.WriteAt(buf[:n], at); err != nil {
				return at, err
			}
		}
		at += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && n < len(buf) && endOf(r) {
			return at, f.Truncate(at)
		}
		if err != nil {
			return at, err
		}
	}
}

// endOf tells an end of the member from a cut archive, which io.ReadFull does not.
func endOf(r io.Reader) bool {
	var b [1]byte
	n, err := r.Read(b[:])
	return n == 0 && errors.Is(err, io.EOF)
}

func (x *unpacker) owner(name string, h *tar.Header) error {
	if !x.o.Owners {
		return nil
	}
	return x.root.Lchown(name, h.Uid, h.Gid)
}

// settle gives directories their modes and times, the deepest first.
func (x *unpacker) settle() error {
	for i := len(x.dirs) - 1; i >= 0; i-- {
		d := x.dirs[i]
		if st, err := x.root.Lstat(d.name); err != nil || !st.IsDir() {
			return errors.Join(fmt.Errorf("unpack %s: is no directory any more", Show(d.name)), err)
		}
		if err := errors.Join(x.root.Chtimes(d.name, d.time, d.time), x.root.Chmod(d.name, d.mode)); err != nil {
			return fmt.Errorf("unpack %s: %w", Show(d.name), err)
		}
	}
	return nil
}
