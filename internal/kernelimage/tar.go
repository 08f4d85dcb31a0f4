package kernelimage

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Content is what goes into an image. Write fills the manifest's sizes and hashes.
type Content struct {
	Manifest Manifest
	Cmdline  string
	Kernel   []byte
	Initrd   []byte
}

// Write writes an image. The same content gives the same bytes.
func Write(w io.Writer, c Content) error {
	m := c.Manifest
	m.Format, m.Version = Format, Version
	m.Kernel, m.Initrd = describe(c.Kernel), describe(c.Initrd)
	if err := m.Validate(); err != nil {
		return err
	}
	if err := checkCmdline(c.Cmdline); err != nil {
		return err
	}
	js, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	for _, f := range []struct {
		name string
		data []byte
	}{{"image.json", append(js, '\n')}, {"cmdline", []byte(c.Cmdline + "\n")}, {"kernel", c.Kernel}, {"initrd", c.Initrd}} {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Size: int64(len(f.data)), Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
		if err := t.WriteHeader(h); err != nil {
			return fmt.Errorf("write %s: %w", f.name, err)
		}
		if _, err := t.Write(f.data); err != nil {
			return fmt.Errorf("write %s: %w", f.name, err)
		}
	}
	return t.Close()
}

func describe(b []byte) File {
	h := sha256.Sum256(b)
	return File{Size: int64(len(b)), SHA256: hex.EncodeToString(h[:])}
}

// reader walks the members, which have one order.
type reader struct{ t *tar.Reader }

func (r reader) next(name string, limit int64) (int64, error) {
	h, err := r.t.Next()
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("the file ends early")
		}
		return 0, fmt.Errorf("%w: %s: %w", ErrInvalid, name, err)
	}
	if h.Name != name || h.Typeflag != tar.TypeReg {
		return 0, fmt.Errorf("%w: found %q where the file %q must stand", ErrInvalid, h.Name, name)
	}
	if h.Size > limit {
		return 0, fmt.Errorf("%w: %s has %d bytes, at most %d", ErrInvalid, name, h.Size, limit)
	}
	return h.Size, nil
}

func (r reader) small(name string, limit int64) ([]byte, error) {
	if _, err := r.next(name, limit); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r.t)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, name, err)
	}
	return b, nil
}

func (r reader) head() (*Manifest, string, error) {
	b, err := r.small("image.json", MaxManifest)
	if err != nil {
		return nil, "", err
	}
	m, err := parseManifest(b)
	if err != nil {
		return nil, "", err
	}
	if b, err = r.small("cmdline", MaxCmdline+1); err != nil {
		return nil, "", err
	}
	cmdline := strings.TrimSuffix(string(b), "\n")
	return m, cmdline, checkCmdline(cmdline)
}

// ReadManifest reads the start of an image: its manifest and command line. It is how to tell a kernel image from other files;
// the kernel and the initramfs are not looked at.
func ReadManifest(r io.Reader) (*Manifest, string, error) {
	return reader{tar.NewReader(r)}.head()
}

// Extracted is an image on disk.
type Extracted struct {
	Manifest       *Manifest
	Cmdline        string
	Kernel, Initrd string // paths
}

// Extract checks an image and writes its kernel and initrd into dir, which must exist. If it fails, neither is there.
func Extract(ctx context.Context, r io.Reader, dir string) (_ *Extracted, err error) {
	tr := reader{tar.NewReader(r)}
	m, cmdline, err := tr.head()
	if err != nil {
		return nil, err
	}
	x := &Extracted{Manifest: m, Cmdline: cmdline, Kernel: filepath.Join(dir, "kernel"), Initrd: filepath.Join(dir, "initrd")}
	var made []string
	defer func() {
		if err != nil {
			for _, p := range made {
				os.Remove(p)
			}
		}
	}()
	for _, f := range []struct {
		name, path string
		want       File
	}{{"kernel", x.Kernel, m.Kernel}, {"initrd", x.Initrd, m.Initrd}} {
		size, err := tr.next(f.name, f.want.Size)
		if err != nil {
			return nil, err
		}
		if size != f.want.Size {
			return nil, fmt.Errorf("%w: %s has %d bytes, image.json says %d", ErrInvalid, f.name, size, f.want.Size)
		}
		out, err := os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return nil, fmt.Errorf("extract kernel image: %w", err)
		}
		made = append(made, f.path)
		sum := sha256.New()
		_, err = io.Copy(io.MultiWriter(out, sum), ctxReader{ctx, tr.t})
		if err = errors.Join(err, out.Close()); err != nil {
			if ctx.Err() == nil && errors.Is(err, io.ErrUnexpectedEOF) {
				err = fmt.Errorf("%w: the file ends early", ErrInvalid)
			}
			return nil, fmt.Errorf("extract %s: %w", f.name, err)
		}
		if got := hex.EncodeToString(sum.Sum(nil)); got != f.want.SHA256 {
			return nil, fmt.Errorf("%w: %s: SHA-256 is %s, image.json says %s", ErrInvalid, f.name, got, f.want.SHA256)
		}
	}
	if h, e := tr.t.Next(); e == nil {
		return nil, fmt.Errorf("%w: unexpected member %q", ErrInvalid, h.Name)
	} else if !errors.Is(e, io.EOF) {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, e)
	}
	return x, nil
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}
