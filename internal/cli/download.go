package cli

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/table"

	"connectrpc.com/connect"
)

// download is a stream of pieces as a reader. raw is known after the first Read.
type download struct {
	stream *connect.ServerStreamForClient[v1.DownloadResponse]
	rest   []byte
	begun  bool
	raw    bool
	size   int64
}

func (d *download) begin() error {
	if d.begun {
		return nil
	}
	d.begun = true
	if !d.stream.Receive() {
		if err := d.stream.Err(); err != nil {
			return err
		}
		return io.ErrUnexpectedEOF
	}
	d.raw, d.size, d.rest = d.stream.Msg().GetRaw(), d.stream.Msg().GetSize(), d.stream.Msg().GetData()
	return nil
}

func (d *download) Read(p []byte) (int, error) {
	if err := d.begin(); err != nil {
		return 0, err
	}
	for len(d.rest) == 0 {
		if !d.stream.Receive() {
			if err := d.stream.Err(); err != nil && !errors.Is(err, io.EOF) {
				return 0, err
			}
			return 0, io.EOF
		}
		d.rest = d.stream.Msg().GetData()
	}
	n := copy(p, d.rest)
	d.rest = d.rest[n:]
	return n, nil
}

// receiveFiles writes a download to a directory, or as it is to standard output. base is the name of a single file.
func (a *App) receiveFiles(d *download, dir string, asTar bool, base string) error {
	if err := d.begin(); err != nil {
		return err
	}
	if asTar {
		_, err := io.Copy(a.Out, d)
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if d.raw {
		if _, after, ok := strings.Cut(base, ":"); ok {
			base = after
		}
		n, err := writeRestored(root, base, 0o644, d)
		if err != nil {
			return err
		}
		if d.size != 0 && n != d.size {
			return fmt.Errorf("%s: %d of %d bytes arrived", base, n, d.size)
		}
		a.say("%s/%s", strings.TrimRight(dir, "/"), base)
		return nil
	}
	count, skipped, err := unpack(root, tar.NewReader(d))
	if err != nil {
		return err
	}
	a.say("%d files and directories in %s", count, dir)
	if skipped > 0 {
		a.say("%d left out: devices, sockets, links that lead outside; --tar has them all", skipped)
	}
	return nil
}

// unpack writes an archive below root and nowhere else, whatever its names say.
func unpack(root *os.Root, t *tar.Reader) (count, skipped int, err error) {
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return count, skipped, nil
		}
		if err != nil {
			return count, skipped, fmt.Errorf("the archive that was sent: %w", err)
		}
		name := path.Clean(strings.TrimLeft(h.Name, "/"))
		if !fs.ValidPath(name) {
			skipped++
			continue
		}
		if dir := path.Dir(name); dir != "." {
			if err := root.MkdirAll(dir, 0o755); err != nil {
				return count, skipped, fmt.Errorf("%s: %w", table.Clean(name), err)
			}
		}
		mode := fs.FileMode(h.Mode) & 0o777
		switch h.Typeflag {
		case tar.TypeDir:
			if err := root.MkdirAll(name, 0o755); err != nil {
				return count, skipped, fmt.Errorf("%s: %w", table.Clean(name), err)
			}
		case tar.TypeReg:
			if _, err := writeRestored(root, name, mode, t); err != nil {
				return count, skipped, err
			}
		case tar.TypeSymlink:
			_ = root.Remove(name)
			if err := root.Symlink(h.Linkname, name); err != nil {
				return count, skipped, fmt.Errorf("%s: %w", table.Clean(name), err)
			}
		case tar.TypeLink:
			_ = root.Remove(name)
			if err := root.Link(path.Clean(strings.TrimLeft(h.Linkname, "/")), name); err != nil {
				skipped++
				continue
			}
		default:
			skipped++
			continue
		}
		count++
	}
}

func writeRestored(root *os.Root, name string, mode fs.FileMode, from io.Reader) (int64, error) {
	_ = root.Remove(name) // a link there is replaced, never followed
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode|0o200)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", table.Clean(name), err)
	}
	n, err := io.Copy(f, from)
	if err = errors.Join(err, f.Close()); err != nil {
		return n, fmt.Errorf("%s: %w", table.Clean(name), err)
	}
	return n, nil
}
