package disk

import (
	"context"
	"fmt"
	"regexp"
)

// remotePattern is what a remote base is called.
var remotePattern = regexp.MustCompile(`^[0-9a-f]{16}$`)

// Remote is a disk's new base that is elsewhere, and read over the network until the disk has all of it.
type Remote struct {
	ID   string // 16 hexadecimal digits, unique in the VM
	Size int64  // of the disk, bytes
}

// Replace gives a VM that is off new disks in place of those of the same names, all at one moment. What they had goes,
// unless a snapshot or clone holds it. The fresh disks belong to the VM then, or, after an error, still to the caller.
func (s *Store) Replace(ctx context.Context, vm string, disks map[string]*Fresh) (err error) {
	for name, d := range disks {
		if err := d.Flush(ctx); err != nil {
			return fmt.Errorf("disk %s of VM %s: %w", name, vm, err)
		}
	}
	return s.replace(ctx, vm, func(m *manifest) error {
		for name, d := range disks {
			if err := s.opt.Box.Share(d.f, true); err != nil {
				return err
			}
			id, file := newID(), newID()+"."+d.format
			// A second name, so that after an error the first is still there.
			if err := s.link(d.path, vmDir(vm)+"/"+file); err != nil {
				return fmt.Errorf("disk %s of VM %s: %w", name, vm, err)
			}
			m.Layers[id] = &layer{File: file, Format: d.format, Size: d.size}
			if err := m.swap(name, id); err != nil {
				return err
			}
		}
		s.step("linked")
		return s.syncDir(vmDir(vm))
	}, func() {
		for _, d := range disks {
			if err := d.Discard(); err != nil {
				s.opt.Log.Warn("datastore: a file in tmp stays until the next start", "file", d.path, "error", err)
			}
		}
	})
}

// ReplaceRemote is Replace with empty layers over remote bases: what was not written yet is read from there. Until
// DropRemote, nothing but QEMU can read the disks: no snapshot, clone or merge is made of them.
func (s *Store) ReplaceRemote(ctx context.Context, vm string, disks map[string]Remote) error {
	for name, r := range disks {
		if !remotePattern.MatchString(r.ID) {
			return fmt.Errorf("disk %s of VM %s: base %.40q: %w", name, vm, r.ID, ErrInvalid)
		}
		if err := checkSize(r.Size); err != nil {
			return err
		}
	}
	return s.replace(ctx, vm, func(m *manifest) error {
		for name, r := range disks {
			id, err := s.overlay(m, r.Size, &ref{Remote: r.ID})
			if err != nil {
				return err
			}
			if err := m.swap(name, id); err != nil {
				return err
			}
		}
		return nil
	}, func() {})
}

func (s *Store) replace(ctx context.Context, vm string, change func(*manifest) error, then func()) (err error) {
	leave, err := s.begin(ctx, vm)
	if err != nil {
		return err
	}
	defer leave()
	m, err := s.manifest(vm)
	if err != nil {
		return err
	}
	// Remote bases may be replaced: that is how a restore that cannot go on is given up for another.
	if err := m.quiet(); err != nil {
		return err
	}
	defer s.undo(vm, &err)
	if err := change(m); err != nil {
		return err
	}
	if err := s.settle(ctx, m); err != nil {
		return err
	}
	then()
	return nil
}

// swap has a disk be another layer, and what it was be nobody's.
func (m *manifest) swap(disk, id string) error {
	if m.Disks[disk] == "" {
		return fmt.Errorf("disk %.80q of VM %s: %w", disk, m.VM, ErrNotFound)
	}
	m.Disks[disk] = id
	return nil
}

// link gives a file of the datastore a second name.
func (s *Store) link(from, to string) error { return s.root.Link(from, to) }

// DropRemote writes down that a disk has all of its remote base. Asked again, it does nothing.
func (s *Store) DropRemote(ctx context.Context, vm, disk string) error {
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
	if l.Parent == nil || l.Parent.Remote == "" {
		return nil
	}
	l.Parent = nil
	return s.save(m)
}

// RemoteOf is the id of the remote base that a disk still needs; "" if it needs none.
func (s *Store) RemoteOf(vm, disk string) (string, error) {
	chain, err := s.Chain(vm, disk)
	if err != nil {
		return "", err
	}
	if l := chain[len(chain)-1]; l.Remote {
		return l.ID, nil
	}
	return "", nil
}
