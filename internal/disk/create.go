package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"drover/internal/disk/sandbox"
)

// Spec says what a new disk is made of.
type Spec struct {
	Size   int64  // bytes; 0 with an image: the image's
	Image  string // "SHA256.qcow2" in the cache; "" for a blank disk
	Copy   bool   // with an image: a copy of its own, not an overlay
	Format string // "qcow2" (default) or "raw" (blank or copy)
}

// CreateDisk adds a disk to a VM; the first one makes the VM's directory.
func (s *Store) CreateDisk(ctx context.Context, vm, disk string, spec Spec) (err error) {
	if err := errors.Join(checkID("vm", vm), checkID("disk", disk)); err != nil {
		return err
	}
	if spec.Format == "" {
		spec.Format = "qcow2"
	}
	switch {
	case spec.Format != "qcow2" && spec.Format != "raw":
		return fmt.Errorf("disk format %.40q: %w: qcow2 or raw", spec.Format, ErrInvalid)
	case spec.Format == "raw" && spec.Image != "" && !spec.Copy:
		return fmt.Errorf("disk %s: %w: an overlay on an image is qcow2; ask for a copy", disk, ErrInvalid)
	case spec.Image == "" || spec.Size != 0:
		if err := checkSize(spec.Size); err != nil {
			return err
		}
	}
	leave, err := s.begin(ctx, vm)
	if err != nil {
		return err
	}
	defer leave()
	m, err := s.manifest(vm)
	if errors.Is(err, ErrNotFound) {
		m, err = newManifest(vm), nil
	}
	if err != nil {
		return err
	}
	if m.Disks[disk] != "" {
		return fmt.Errorf("disk %s of VM %s: %w", disk, vm, ErrExists)
	}
	defer s.undo(vm, &err)
	if spec.Image == "" {
		fill := func(f *os.File) error { return writeBlank(f, spec.Size) }
		if spec.Format == "raw" {
			fill = func(f *os.File) error { return f.Truncate(spec.Size) }
		}
		id, file, err := s.newLayer(vm, spec.Format, fill)
		if err != nil {
			return err
		}
		m.Layers[id] = &layer{File: file, Format: spec.Format, Size: spec.Size}
		m.Disks[disk] = id
		return s.save(m)
	}
	return s.fromImage(ctx, m, disk, spec)
}

func (s *Store) fromImage(ctx context.Context, m *manifest, disk string, spec Spec) error {
	// The image must not be pruned until the manifest holds it.
	if err := s.cross.enter(ctx); err != nil {
		return err
	}
	f, size, err := s.openImage(spec.Image)
	if err != nil {
		s.cross.leave()
		return err
	}
	defer f.Close()
	if spec.Size == 0 {
		spec.Size = size
	}
	if spec.Size < size {
		s.cross.leave()
		return fmt.Errorf("disk %s: %w: the image has %d bytes, the disk only %d", disk, ErrInvalid, size, spec.Size)
	}
	if !spec.Copy {
		defer s.cross.leave()
		id, err := s.overlay(m, spec.Size, &ref{Image: spec.Image})
		if err != nil {
			return err
		}
		m.Disks[disk] = id
		return s.save(m)
	}
	s.cross.leave() // the open descriptor is enough for a copy
	id, file, err := s.newLayer(m.VM, spec.Format, func(out *os.File) error {
		if spec.Format == "raw" {
			if err := s.qemuImg(ctx, spec.Size, []*os.File{f, out}, "convert", "-O", "raw", (&sandbox.Node{Format: "qcow2"}).Filename(), sandbox.FD(1)); err != nil {
				return err
			}
			return out.Truncate(spec.Size)
		}
		if err := copyFile(ctx, out, f); err != nil || spec.Size == size {
			return err
		}
		return s.resize(ctx, out, "qcow2", spec.Size)
	})
	if err != nil {
		return err
	}
	m.Layers[id] = &layer{File: file, Format: spec.Format, Size: spec.Size}
	m.Disks[disk] = id
	return s.save(m)
}

func (s *Store) resize(ctx context.Context, f *os.File, format string, size int64) error {
	if format == "raw" {
		return f.Truncate(size)
	}
	return s.qemuImg(ctx, size, []*os.File{f}, "resize", "-q", (&sandbox.Node{Format: format}).Filename(), fmt.Sprint(size))
}

// copyFile clones by reference where the file system can, else copies data and leaves holes.
func copyFile(ctx context.Context, out, in *os.File) error {
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) == nil {
		return nil
	}
	st, err := in.Stat()
	if err != nil {
		return err
	}
	for at := int64(0); at < st.Size(); {
		data, err := in.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // only a hole is left
		}
		if err != nil {
			return err
		}
		end, err := in.Seek(data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		for at = data; at < end; {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			n := min(end-at, 16<<20)
			if _, err := io.Copy(io.NewOffsetWriter(out, at), io.NewSectionReader(in, at, n)); err != nil {
				return err
			}
			at += n
		}
	}
	return out.Truncate(st.Size())
}

// Grow makes a disk larger while the VM is off. Growing to the size it has does nothing; shrinking is refused.
func (s *Store) Grow(ctx context.Context, vm, disk string, size int64) error {
	return s.grow(ctx, vm, disk, size, true)
}

// Grown records that QEMU has grown the active layer (block_resize).
func (s *Store) Grown(ctx context.Context, vm, disk string, size int64) error {
	return s.grow(ctx, vm, disk, size, false)
}

func (s *Store) grow(ctx context.Context, vm, disk string, size int64, offline bool) error {
	if err := checkSize(size); err != nil {
		return err
	}
	leave, err := s.begin(ctx, vm)
	if err != nil {
		return err
	}
	defer leave()
	m, err := s.manifest(vm)
	if err != nil {
		return err
	}
	l := m.Layers[m.Disks[disk]]
	if l == nil {
		return fmt.Errorf("disk %.80q of VM %s: %w", disk, vm, ErrNotFound)
	}
	if size < l.Size {
		return fmt.Errorf("disk %s of VM %s: %w: it has %d bytes and can't shrink to %d", disk, vm, ErrInvalid, l.Size, size)
	}
	if offline {
		f, err := s.OpenLayer(Layer{VM: vm, ID: m.Disks[disk], File: vmDir(vm) + "/" + l.File}, true)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := inspectFile(f, l.Format)
		if err != nil {
			return fmt.Errorf("grow disk %s of VM %s: %w", disk, vm, err)
		}
		if info.VirtualSize > size {
			// Grown before, and killed before it was written down.
			size = info.VirtualSize
		}
		if info.VirtualSize < size {
			if err := s.resize(ctx, f, l.Format, size); err != nil {
				return fmt.Errorf("grow disk %s of VM %s: %w", disk, vm, err)
			}
		}
		s.step("resized")
		if err := f.Sync(); err != nil {
			return err
		}
	}
	if l.Size == size {
		return nil
	}
	l.Size = size
	return s.save(m)
}

// DeleteDisk takes a disk away. Layers that snapshots or clones hold stay until those go.
func (s *Store) DeleteDisk(ctx context.Context, vm, disk string) error {
	leave, err := s.begin(ctx, vm)
	if err != nil {
		return err
	}
	defer leave()
	m, err := s.manifest(vm)
	if err != nil {
		return err
	}
	if m.Disks[disk] == "" {
		return fmt.Errorf("disk %.80q of VM %s: %w", disk, vm, ErrNotFound)
	}
	delete(m.Disks, disk)
	return s.settle(ctx, m)
}

// settle drops what the changed manifest no longer reaches: first from the manifest, then from the disk.
func (s *Store) settle(ctx context.Context, m *manifest) error {
	if err := s.cross.enter(ctx); err != nil {
		return err
	}
	defer s.cross.leave()
	outside, err := s.outside(m.VM)
	if err != nil {
		return err
	}
	m.collect(outside)
	if err := s.save(m); err != nil {
		return err
	}
	return s.drop(m)
}

// DeleteVM removes all disks and snapshots of a VM. It is refused while clones hold layers, naming them.
// Deleting what isn't there is no error.
func (s *Store) DeleteVM(ctx context.Context, vm string) error {
	leave, err := s.begin(ctx, vm)
	if err != nil {
		return err
	}
	defer leave()
	if _, err := s.manifest(vm); errors.Is(err, ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	if err := s.cross.enter(ctx); err != nil {
		return err
	}
	defer s.cross.leave()
	outside, err := s.outside(vm)
	if err != nil {
		return err
	}
	if users := users(outside); len(users) > 0 {
		return &InUseError{What: "vm " + vm, Users: users}
	}
	s.step("before delete")
	// The manifest goes first: without it the rest is an orphan.
	if err := s.root.Remove(vmDir(vm) + "/" + manifestName); err != nil {
		return fmt.Errorf("delete VM %s: %w", vm, err)
	}
	s.mu.Lock()
	delete(s.vms, vm)
	s.mu.Unlock()
	if err := s.syncDir(vmDir(vm)); err != nil {
		return err
	}
	s.step("manifest deleted")
	if err := s.root.RemoveAll(vmDir(vm)); err != nil {
		return fmt.Errorf("delete VM %s: %w", vm, err)
	}
	return s.syncDir("vms")
}

func users(held map[string][]string) []string {
	var all []string
	for _, u := range held {
		all = append(all, u...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}
