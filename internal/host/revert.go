package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/proto"

	v1 "drover/api/drover/v1"
	"drover/internal/disk"
	"drover/internal/qemu"
	"drover/internal/resource"
)

// revert takes the VM back to a snapshot. What is to be done is written down first. Until QEMU has ended, a failure or a
// kill means that it never was: a revert that comes true later would throw away what the guest has written since. From
// then on the VM does nothing else until it is carried through, by this agent or the next, from the start, which leads to
// the same.
func (m *machine) revert(ctx context.Context, req *v1.NodeSnapshotRequest, step func(string)) error {
	if err := m.wholeDisks(); err != nil {
		return err
	}
	stores, err := m.storesInUse()
	if err != nil {
		return err
	}
	e := entry{Operation: req.GetOperation(), Kind: kindRevert, Snapshot: req.GetSnapshot(), Memory: req.GetMemory(), Generation: req.GetGeneration()}
	if e.Spec, err = proto.Marshal(req.GetSpec()); err != nil {
		return err
	}
	found, _, err := m.hasSnapshot(stores, req.GetSnapshot())
	if err != nil {
		return err
	}
	if !found {
		return &resource.Error{Code: resource.NotFound, Kind: resource.KindSnapshot, Name: m.name() + "/" + req.GetSnapshot(),
			Reason: "NOT_FOUND", Message: "is not on this host"}
	}
	if e, err = m.beginOperation(e); err != nil || e.Done {
		return err
	}
	step("stopping the VM")
	if err := m.goBack(ctx, e); err != nil {
		return fmt.Errorf("revert VM %s to snapshot %s: %w", m.name(), e.Snapshot, errors.Join(err, m.leaveRevert(e.Operation)))
	}
	return nil
}

// leaveRevert decides what a revert that failed is: one that never was, or one to be carried through.
func (m *machine) leaveRevert(operation string) error {
	j, err := m.journal()
	if err != nil {
		m.undone = true // nobody can tell
		return err
	}
	for _, e := range j.Entries {
		if e.Operation == operation && e.Going {
			m.undone = true
			return nil
		}
	}
	return m.dropOperation(operation)
}

// settledRevert refuses what must not be done to disks that are half-way back.
func (m *machine) settledRevert() error {
	if m.undone {
		return m.precondition("REVERT_UNDONE", "is half-way back to a snapshot: "+m.problem, "wait until that succeeds, or revert to another snapshot")
	}
	return nil
}

// goBack carries a revert out, or through.
func (m *machine) goBack(ctx context.Context, e entry) error {
	spec := new(v1.VMSpec)
	if err := proto.Unmarshal(e.Spec, spec); err != nil {
		return err
	}
	r, err := readSnapRecord(m.snapPath(e.Snapshot))
	if err != nil {
		return err
	}
	if err := m.kill(ctx, "it goes back to snapshot "+e.Snapshot); err != nil {
		return err
	}
	if m.local.Run != nil {
		if err := m.clean(ctx); err != nil {
			return err
		}
	}
	if err := m.commitOperation(e.Operation); err != nil {
		return err
	}
	paths := map[string]bool{}
	for _, made := range r.Made {
		paths[made.Path] = true
	}
	for path := range paths {
		st, err := m.a.stores.at(path)
		if err != nil {
			return err
		}
		if err := st.Revert(ctx, m.uid, e.Snapshot); err != nil {
			return err
		}
	}
	if err := m.restoreVars(e.Snapshot); err != nil {
		return err
	}
	maps.Copy(m.local.Made, r.Made)
	m.local.Places, m.local.Halt = r.Places, nil
	m.local.Snapshot, m.local.Compact = m.name()+"/"+e.Snapshot, true
	m.local.GenerationID = resource.NewUID()
	m.local.Restore = ""
	if e.Memory && spec.GetPower() == v1.Power_POWER_ON {
		m.local.Restore = e.Snapshot
	}
	m.local.LeastGeneration = e.Generation
	m.mu.Lock()
	if m.vm.GetMeta().GetGeneration() < e.Generation || e.Generation == 0 {
		m.vm = clone(m.vm)
		m.vm.Spec, m.vm.Meta.Generation = spec, max(e.Generation, m.vm.GetMeta().GetGeneration())
	}
	m.least = e.Generation
	vm := m.vm
	m.mu.Unlock()
	if err := errors.Join(saveVM(m.dir, vm), m.save()); err != nil {
		return err
	}
	if err := m.endRevert(e.Operation); err != nil {
		return err
	}
	m.undone = false
	return nil
}

func (m *machine) restoreVars(snap string) error {
	vars, err := os.ReadFile(m.snapVarsPath(snap))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(m.dir, firmwareVars), vars, 0o600)
}

// mendOperations carries through a revert that was cut off, and forgets one that had changed nothing. Until it succeeds
// the VM is undone.
func (m *machine) mendOperations(ctx context.Context) error {
	j, err := m.journal()
	if err != nil {
		m.undone = true
		return err
	}
	last := entry{}
	for _, e := range j.Entries {
		switch {
		case e.Kind != kindRevert || e.Done:
		case e.Going:
			last = e
		default:
			if err := m.dropOperation(e.Operation); err != nil {
				return err
			}
		}
	}
	if m.undone = last.Going; !m.undone {
		return nil
	}
	if err := m.goBack(ctx, last); err != nil {
		return fmt.Errorf("revert to snapshot %s, which was cut off: %w", last.Snapshot, err)
	}
	return nil
}

// incoming has a start take its memory from the snapshot that the VM was taken back to. The machine must then be the one
// that the memory belongs to, with the disks of now.
func (m *machine) incoming(spec *qemu.Spec, attach *qemu.Attach) (func(), error) {
	none := func() {}
	if m.local.Restore == "" {
		return none, nil
	}
	r, memory, err := m.savedMachine()
	if err != nil {
		return none, err
	}
	if r.QEMU == nil {
		return none, fmt.Errorf("snapshot %s has no memory", m.local.Restore)
	}
	if r.QEMU.Accel != spec.Accel {
		return none, fmt.Errorf("the memory of snapshot %s was saved under %s, and this host runs guests under %s now: stop the VM and start it to boot it anew",
			m.local.Restore, r.QEMU.Accel, spec.Accel)
	}
	file, err := memory()
	if err != nil {
		return none, err
	}
	was := *r.QEMU
	was.Disks, was.Memory.Path, was.Incoming, was.GenerationID = spec.Disks, spec.Memory.Path, true, spec.GenerationID
	*spec, attach.Incoming = was, file
	return func() { file.Close() }, nil
}

func (m *machine) openMemory(snap string) (*os.File, error) {
	stores, err := m.storesInUse()
	if err != nil {
		return nil, err
	}
	for _, st := range stores {
		f, err := st.OpenMemory(m.uid, snap)
		if err == nil || !errors.Is(err, disk.ErrNotFound) {
			return f, err
		}
	}
	return nil, fmt.Errorf("memory of snapshot %s: %w", snap, disk.ErrNotFound)
}
