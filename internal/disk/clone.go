package disk

import (
	"context"
	"errors"
	"fmt"
	"os"

	"drover/internal/disk/sandbox"
)

// LinkedClone makes the disks of a new VM as overlays on a snapshot of another. While the clone lives, the snapshot can't be deleted.
func (s *Store) LinkedClone(ctx context.Context, from, snap, to string) error {
	return s.cloneInto(ctx, from, to, func(src, dst *manifest) error {
		sn, err := src.snapshotToRead(snap)
		if err != nil {
			return err
		}
		if err := s.cross.enter(ctx); err != nil {
			return err
		}
		defer s.cross.leave()
		for d, id := range sn.Disks {
			if dst.Disks[d], err = s.overlay(dst, src.Layers[id].Size, &ref{VM: from, Layer: id}); err != nil {
				return err
			}
		}
		return s.save(dst)
	})
}

// FullClone copies the disks of a VM, as of a snapshot or, with snap "", as they are (the VM must be off), into
// independent ones.
func (s *Store) FullClone(ctx context.Context, from, snap, to string) error {
	return s.cloneInto(ctx, from, to, func(src, dst *manifest) error {
		disks := src.Disks
		if snap != "" {
			sn, err := src.snapshotToRead(snap)
			if err != nil {
				return err
			}
			disks = sn.Disks
		} else if err := src.settled(); err != nil {
			return err
		}
		for d, id := range disks {
			size := src.Layers[id].Size
			chain, err := s.chain(src, id)
			if err != nil {
				return err
			}
			k, err := s.stack(chain)
			if err != nil {
				return err
			}
			nid, file, err := s.newLayer(to, "qcow2", func(f *os.File) error {
				return s.qemuImg(ctx, size, append(k.files, f), "convert", "-O", "qcow2",
					"-o", "cluster_size=65536,compat=1.1,lazy_refcounts=off", k.top.Filename(), sandbox.FD(len(k.files)))
			})
			k.close()
			if err != nil {
				return fmt.Errorf("clone disk %s of VM %s: %w", d, from, err)
			}
			dst.Layers[nid] = &layer{File: file, Format: "qcow2", Size: size}
			dst.Disks[d] = nid
		}
		return s.save(dst)
	})
}

func (m *manifest) snapshotToRead(snap string) (*snapshot, error) {
	sn := m.Snapshots[snap]
	if sn == nil {
		return nil, fmt.Errorf("snapshot %.80q of VM %s: %w", snap, m.VM, ErrNotFound)
	}
	return sn, m.settled()
}

// cloneInto holds both VMs and checks that to is new; on failure nothing of it remains.
func (s *Store) cloneInto(ctx context.Context, from, to string, do func(src, dst *manifest) error) (err error) {
	if err := errors.Join(checkID("vm", from), checkID("vm", to)); err != nil {
		return err
	}
	leave, err := s.begin(ctx, from, to)
	if err != nil {
		return err
	}
	defer leave()
	src, err := s.manifest(from)
	if err != nil {
		return err
	}
	if _, err := s.manifest(to); err == nil {
		return fmt.Errorf("vm %s: %w in this datastore", to, ErrExists)
	} else if !errors.Is(err, ErrNotFound) {
		return err
	}
	defer s.undo(to, &err)
	return do(src, newManifest(to))
}
