package disk

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
)

// Snapshot is one node of a VM's tree of snapshots.
type Snapshot struct {
	Name    string
	Parent  string   // the snapshot it was taken on; "" for none
	Disks   []string // in order
	Memory  bool     // it has a memory file
	Pending bool     // begun, not finished: Finish or Abort it
	Current bool     // the VM's disks descend from it
}

// Snapshots lists a VM's snapshots by name.
func (s *Store) Snapshots(vm string) ([]Snapshot, error) {
	m, err := s.manifest(vm)
	if err != nil {
		return nil, err
	}
	var out []Snapshot
	for _, name := range slices.Sorted(maps.Keys(m.Snapshots)) {
		sn := m.Snapshots[name]
		out = append(out, Snapshot{Name: name, Parent: sn.Parent, Disks: slices.Sorted(maps.Keys(sn.Disks)),
			Memory: sn.Memory != "", Pending: sn.Pending, Current: m.Current == name})
	}
	return out, nil
}

// Disks maps a VM's disks to their active layers.
func (s *Store) Disks(vm string) (map[string]Layer, error) {
	m, err := s.manifest(vm)
	if err != nil {
		return nil, err
	}
	out := make(map[string]Layer)
	for d, id := range m.Disks {
		l := m.Layers[id]
		out[d] = Layer{VM: vm, ID: id, File: vmDir(vm) + "/" + l.File, Format: l.Format, Size: l.Size, Active: true}
	}
	return out, nil
}

// Snapshot freezes all disks of a VM that is off.
func (s *Store) Snapshot(ctx context.Context, vm, snap string) error {
	return s.snapshot(ctx, vm, snap, false)
}

// BeginSnapshot freezes all disks of a running VM: new overlays become active in the manifest, before QEMU is told.
// The agent then switches QEMU to the new active layers (Chain) in one transaction and calls FinishSnapshot, or, if
// QEMU refused, AbortSnapshot. An agent that was killed between looks at QEMU's graph and does the same. If QEMU is gone too,
// FinishSnapshot is right for the disks' content; the snapshot itself is then as of the VM's end.
func (s *Store) BeginSnapshot(ctx context.Context, vm, snap string) error {
	return s.snapshot(ctx, vm, snap, true)
}

func (s *Store) snapshot(ctx context.Context, vm, snap string, pending bool) (err error) {
	if err := checkID("snapshot", snap); err != nil {
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
	if m.Snapshots[snap] != nil {
		return fmt.Errorf("snapshot %s of VM %s: %w", snap, vm, ErrExists)
	}
	if err := m.settled(); err != nil {
		return err
	}
	defer s.undo(vm, &err)
	sn := &snapshot{Parent: m.Current, Disks: map[string]string{}, Pending: pending}
	for d, id := range m.Disks {
		sn.Disks[d] = id
		if m.Disks[d], err = s.overlay(m, m.Layers[id].Size, &ref{Layer: id}); err != nil {
			return err
		}
	}
	m.Snapshots[snap], m.Current = sn, snap
	return s.save(m)
}

// settled refuses while something that QEMU takes part in is half done, or a disk is not all here.
func (m *manifest) settled() error {
	for _, l := range m.Layers {
		if l.Parent != nil && l.Parent.Remote != "" {
			return fmt.Errorf("vm %s: %w: it is being restored, and not all of its disks is here yet", m.VM, ErrBusy)
		}
	}
	return m.quiet()
}

// quiet is settled without regard to remote bases.
func (m *manifest) quiet() error {
	for name, sn := range m.Snapshots {
		if sn.Pending {
			return fmt.Errorf("vm %s: %w: the snapshot %s is under way", m.VM, ErrBusy, name)
		}
	}
	for id, l := range m.Layers {
		if l.Merging != "" {
			return fmt.Errorf("vm %s: %w: the layer %s is being merged", m.VM, ErrBusy, id)
		}
	}
	return nil
}

// FinishSnapshot ends what BeginSnapshot began, after QEMU writes to the new layers. It may be repeated.
func (s *Store) FinishSnapshot(ctx context.Context, vm, snap string) error {
	leave, err := s.begin(ctx, vm)
	if err != nil {
		return err
	}
	defer leave()
	m, sn, err := s.find(vm, snap)
	if err != nil || !sn.Pending {
		return err
	}
	sn.Pending = false
	return s.save(m)
}

// AbortSnapshot undoes BeginSnapshot: only while QEMU (or nobody) still writes to the old layers.
func (s *Store) AbortSnapshot(ctx context.Context, vm, snap string) error {
	leave, err := s.begin(ctx, vm)
	if err != nil {
		return err
	}
	defer leave()
	m, sn, err := s.find(vm, snap)
	if err != nil {
		return err
	}
	if !sn.Pending {
		return fmt.Errorf("snapshot %s of VM %s: %w: it is finished; delete it instead", snap, vm, ErrInvalid)
	}
	for d, id := range sn.Disks {
		m.Disks[d] = id
	}
	m.Current = sn.Parent
	delete(m.Snapshots, snap)
	return s.settle(ctx, m)
}

func (s *Store) find(vm, snap string) (*manifest, *snapshot, error) {
	m, err := s.manifest(vm)
	if err != nil {
		return nil, nil, err
	}
	sn := m.Snapshots[snap]
	if sn == nil {
		return nil, nil, fmt.Errorf("snapshot %.80q of VM %s: %w", snap, vm, ErrNotFound)
	}
	return m, sn, nil
}

// Revert puts the disks back to a snapshot, while the VM is off: what was written since is dropped unless another snapshot
// holds it. Disks that the snapshot doesn't know stay as they are; those deleted since come back.
func (s *Store) Revert(ctx context.Context, vm, snap string) (err error) {
	leave, err := s.begin(ctx, vm)
	if err != nil {
		return err
	}
	defer leave()
	m, sn, err := s.find(vm, snap)
	if err != nil {
		return err
	}
	if err := m.settled(); err != nil {
		return err
	}
	defer s.undo(vm, &err)
	for d, id := range sn.Disks {
		if m.Disks[d], err = s.overlay(m, m.Layers[id].Size, &ref{Layer: id}); err != nil {
			return err
		}
	}
	m.Current = snap
	return s.settle(ctx, m)
}

// DeleteSnapshot forgets a snapshot and drops the files that only it held. Layers that now have one user left are returned
// as merges to do, soon or later: the disks are right without. It is refused while linked clones stand on the
// snapshot, naming them.
func (s *Store) DeleteSnapshot(ctx context.Context, vm, snap string, running bool) ([]Merge, error) {
	leave, err := s.begin(ctx, vm)
	if err != nil {
		return nil, err
	}
	defer leave()
	m, sn, err := s.find(vm, snap)
	if err != nil {
		return nil, err
	}
	if sn.Pending {
		return nil, fmt.Errorf("snapshot %s of VM %s: %w: it is under way; finish or abort it", snap, vm, ErrBusy)
	}
	if err := s.cross.enter(ctx); err != nil {
		return nil, err
	}
	outside, err := s.outside(vm)
	s.cross.leave()
	if err != nil {
		return nil, err
	}
	held := make(map[string][]string)
	for _, id := range sn.Disks {
		if u := outside[id]; len(u) > 0 {
			held[id] = u
		}
	}
	if u := users(held); len(u) > 0 {
		return nil, &InUseError{What: fmt.Sprintf("snapshot %s of VM %s", snap, vm), Users: u}
	}
	for _, other := range m.Snapshots {
		if other.Parent == snap {
			other.Parent = sn.Parent
		}
	}
	if m.Current == snap {
		m.Current = sn.Parent
	}
	delete(m.Snapshots, snap)
	// No clone of this snapshot can come between: LinkedClone waits at this VM's gate.
	if err := s.settle(ctx, m); err != nil {
		return nil, err
	}
	return s.merges(m, running)
}

// CreateMemory makes the file that a snapshot's memory goes to. The caller closes it; calling again starts it anew.
func (s *Store) CreateMemory(ctx context.Context, vm, snap string) (_ *os.File, err error) {
	leave, err := s.begin(ctx, vm)
	if err != nil {
		return nil, err
	}
	defer leave()
	m, sn, err := s.find(vm, snap)
	if err != nil {
		return nil, err
	}
	defer s.undo(vm, &err)
	sn.Memory = newID() + ".mem"
	f, err := s.root.OpenFile(vmDir(vm)+"/"+sn.Memory, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make the memory file of snapshot %s: %w", snap, err)
	}
	if err := errors.Join(s.save(m), s.drop(m)); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// OpenMemory opens a snapshot's memory for reading.
func (s *Store) OpenMemory(vm, snap string) (*os.File, error) {
	_, sn, err := s.find(vm, snap)
	if err != nil {
		return nil, err
	}
	if sn.Memory == "" || sn.Pending {
		return nil, fmt.Errorf("snapshot %s of VM %s has no memory: %w", snap, vm, ErrNotFound)
	}
	return s.root.Open(vmDir(vm) + "/" + sn.Memory)
}
