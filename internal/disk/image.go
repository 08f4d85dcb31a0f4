package disk

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Fetch writes an image's bytes from offset on to w.
type Fetch func(ctx context.Context, offset int64, w io.Writer) error

// EnsureImage has the image ("SHA256.qcow2" or "SHA256.iso") in the cache, fetching it if it isn't there. What was
// fetched is checked by its name and inspected. A cut fetch goes on where it was, also after a restart.
func (s *Store) EnsureImage(ctx context.Context, name string, fetch Fetch) error {
	if !imagePattern.MatchString(name) {
		return fmt.Errorf("image %.100q: %w: want SHA256.qcow2 or SHA256.iso", name, ErrInvalid)
	}
	leave, err := s.begin(ctx, "image "+name)
	if err != nil {
		return err
	}
	defer leave()
	if _, err := s.root.Lstat("images/" + name); err == nil {
		return nil
	}
	part := "tmp/" + name + ".part"
	f, err := s.root.OpenFile(part, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("fetch image %s: %w", name, err)
	}
	defer f.Close()
	for {
		at, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			return err
		}
		if err := fetch(ctx, at, f); err != nil {
			return fmt.Errorf("fetch image %s: %w", name, err)
		}
		err = checkImage(f, name)
		if err == nil {
			break
		}
		// A power cut can leave holes in what was fetched before: once more from the start.
		if terr := f.Truncate(0); terr != nil {
			return errors.Join(err, terr)
		}
		if at == 0 || !errors.Is(err, ErrChecksum) {
			return errors.Join(fmt.Errorf("fetch image %s: %w", name, err), s.root.Remove(part))
		}
	}
	if err := s.opt.Box.Share(f, false); err != nil {
		return err
	}
	if err := f.Chmod(0o440); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	s.step("image fetched")
	if err := s.root.Rename(part, "images/"+name); err != nil {
		return fmt.Errorf("fetch image %s: %w", name, err)
	}
	return s.syncDir("images")
}

func checkImage(f *os.File, name string) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	want, kind, _ := strings.Cut(name, ".")
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		return fmt.Errorf("%w: the bytes have SHA-256 %s", ErrChecksum, got)
	}
	_, err := inspectFile(f, kind)
	return err
}

// OpenImage opens a cached image for reading.
func (s *Store) OpenImage(name string) (*os.File, error) {
	if !imagePattern.MatchString(name) {
		return nil, fmt.Errorf("image %.100q: %w: want SHA256.qcow2 or SHA256.iso", name, ErrInvalid)
	}
	f, err := s.root.OpenFile("images/"+name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("image %s isn't in the datastore: %w", name, ErrNotFound)
	}
	return f, err
}

func (s *Store) openImage(name string) (*os.File, int64, error) {
	f, err := s.OpenImage(name)
	if err != nil {
		return nil, 0, err
	}
	info, err := inspectFile(f, "qcow2")
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("image %s: %w", name, err)
	}
	return f, info.VirtualSize, nil
}

// Images lists the cached images and the VMs whose disks stand on them.
func (s *Store) Images() (map[string][]string, error) {
	entries, err := s.list("images")
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	out := make(map[string][]string)
	for _, e := range entries {
		if imagePattern.MatchString(e.Name()) {
			out[e.Name()] = nil
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for vm, m := range s.vms {
		held := make(map[string]bool)
		for _, l := range m.Layers {
			if l.Parent != nil && l.Parent.Image != "" && !held[l.Parent.Image] {
				held[l.Parent.Image] = true
				out[l.Parent.Image] = append(out[l.Parent.Image], "vm "+vm)
			}
		}
	}
	return out, nil
}

// DeleteImage removes an image from the cache. It is refused while disks stand on it, naming them.
func (s *Store) DeleteImage(ctx context.Context, name string) error {
	if !imagePattern.MatchString(name) {
		return fmt.Errorf("image %.100q: %w: want SHA256.qcow2 or SHA256.iso", name, ErrInvalid)
	}
	if err := s.cross.enter(ctx); err != nil {
		return err
	}
	defer s.cross.leave()
	if _, err := s.outside(""); err != nil {
		return err
	}
	images, err := s.Images()
	if err != nil {
		return err
	}
	if u := images[name]; len(u) > 0 {
		return &InUseError{What: "image " + name, Users: users(map[string][]string{"": u})}
	}
	if err := s.root.Remove("images/" + name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete image %s: %w", name, err)
	}
	return s.syncDir("images")
}
