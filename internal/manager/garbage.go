package manager

import (
	"context"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"
	"drover/internal/task"
)

// garbageEvery is how often what was cut off half-way is looked for.
const garbageEvery = 30 * time.Second

// collectGarbage finishes what a killed manager, or one without its store, left half done.
func (m *Manager) collectGarbage(ctx context.Context) error {
	for {
		m.sweep(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-m.cfg.Clock.After(garbageEvery):
		}
	}
}

func (m *Manager) sweep(ctx context.Context) {
	for _, part := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"VMs", m.sweepVMs}, {"snapshots", m.sweepSnapshots}, {"images", m.sweepImports}, {"datastores", m.sweepDatastores}, {"join tokens", m.sweepJoins},
	} {
		if err := part.do(ctx); err != nil && ctx.Err() == nil {
			m.log.Warn("manager: sweep", "what", part.what, "err", err)
		}
	}
}

// live reports whether a task has not ended.
func (m *Manager) live(ctx context.Context, name string) bool {
	t, err := m.Tasks.coll.Get(ctx, name)
	return err != nil && resource.CodeOf(m.Tasks.translate(err, name)) != resource.NotFound || err == nil && !task.Ended(t)
}

// worked reports whether a task that has not ended is about an object.
func (m *Manager) worked(kind resource.Kind, name string) bool {
	all, _ := m.Tasks.cache.List()
	for _, t := range all {
		if t.Spec.TargetKind == kind && t.Spec.Target == name && !task.Ended(t) {
			return true
		}
	}
	return false
}

// sweepVMs takes VMs from hosts that are no more and from tasks that have ended, and finishes deletions.
func (m *Manager) sweepVMs(ctx context.Context) error {
	ctx, done, err := m.exclusive(ctx)
	if err != nil {
		return err
	}
	defer done()
	vms, _ := m.VMs.cache.List()
	for _, vm := range vms {
		owner, busy := vm.GetStatus().GetOwner(), vm.GetStatus().GetBusy()
		if _, ok := m.Hosts.cache.Get(owner); owner != "" && !ok {
			if err := m.disown(ctx, vm.Meta.Name, owner); err != nil {
				return err
			}
			continue
		}
		if busy != "" && !m.live(ctx, busy) {
			if err := m.releaseVM(ctx, vm.Meta.Name, busy, nil); err != nil {
				return err
			}
		}
		if vm.Meta.DeleteTime != nil && owner == "" {
			if err := m.forgetVM(ctx, vm); err != nil && resource.CodeOf(err) != resource.Conflict && resource.CodeOf(err) != resource.NotFound {
				return err
			}
		}
	}
	return nil
}

// disown takes a VM from a host that is no more. One that was being deleted is gone with it.
func (m *Manager) disown(ctx context.Context, name, host string) error {
	vm, err := m.VMs.mutate(ctx, name, func(vm *v1.VM) error {
		if vm.GetStatus().GetOwner() != host {
			return errSame
		}
		vm.Status.Owner, vm.Status.Epoch = "", vm.Status.Epoch+1
		vm.Status.Phase, vm.Status.Message = v1.VMPhase_VM_PHASE_FAILED, "host "+host+", which held it and its disks, was removed"
		vm.Status.PhaseTime = stamp(m.cfg.Clock.Now())
		return nil
	})
	if err == nil && vm.Meta.DeleteTime != nil && vm.Status.Owner == "" {
		err = m.forgetVM(ctx, vm)
	}
	if resource.CodeOf(err) == resource.NotFound {
		return nil
	}
	return err
}

// sweepSnapshots drops those whose VM is gone, and ends waiting for tasks that were never begun.
func (m *Manager) sweepSnapshots(ctx context.Context) error {
	ctx, done, err := m.exclusive(ctx)
	if err != nil {
		return err
	}
	defer done()
	snaps, _ := m.Snapshots.cache.List()
	for _, s := range snaps {
		name := s.Meta.Name
		vm, _, _ := resource.Part(name)
		_, has := m.VMs.cache.Get(vm)
		phase := s.GetStatus().GetPhase()
		switch {
		case !has:
			err = m.Snapshots.remove(ctx, name, s.Meta.Revision)
		case (phase == v1.SnapshotPhase_SNAPSHOT_PHASE_CREATING || phase == v1.SnapshotPhase_SNAPSHOT_PHASE_DELETING) && !m.worked(resource.KindSnapshot, name):
			_, err = m.Snapshots.mutate(ctx, name, func(s *v1.Snapshot) error {
				s.Status.Phase, s.Status.Message = v1.SnapshotPhase_SNAPSHOT_PHASE_FAILED, "the manager was stopped before it began; delete it"
				return nil
			})
		}
		if err != nil && resource.CodeOf(err) != resource.NotFound && resource.CodeOf(err) != resource.Conflict {
			return err
		}
	}
	return nil
}

// sweepImports begins imports anew whose task was never begun.
func (m *Manager) sweepImports(ctx context.Context) error {
	ctx, done, err := m.exclusive(ctx)
	if err != nil {
		return err
	}
	defer done()
	images, _ := m.Images.cache.List()
	for _, i := range images {
		if i.GetStatus().GetPhase() == v1.ImagePhase_IMAGE_PHASE_IMPORTING && !m.worked(resource.KindImage, i.Meta.Name) {
			if _, err := m.importImage(ctx, i.Meta.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// sweepDatastores drops those whose host is gone: its last report may have come while it was removed.
func (m *Manager) sweepDatastores(ctx context.Context) error {
	ctx, done, err := m.exclusive(ctx)
	if err != nil {
		return err
	}
	defer done()
	stores, _ := m.Datastores.cache.List()
	for _, d := range stores {
		if _, ok := m.Hosts.cache.Get(d.Spec.Host); ok {
			continue
		}
		if err := m.Datastores.remove(ctx, d.Meta.Name, d.Meta.Revision); err != nil && resource.CodeOf(err) != resource.NotFound && resource.CodeOf(err) != resource.Conflict {
			return err
		}
	}
	return nil
}

// keptJoins is how long the record of a join token is kept after its end.
const keptJoins = 24 * time.Hour

func (m *Manager) sweepJoins(ctx context.Context) error {
	return m.dropJoins(ctx, func(j *v1.Join) bool {
		return m.cfg.Clock.Now().After(j.ExpireTime.AsTime().Add(keptJoins))
	})
}

func (m *Manager) dropJoins(ctx context.Context, drop func(*v1.Join) bool) error {
	all, _ := m.joinKeys.cache.List()
	for _, j := range all {
		if !drop(j) {
			continue
		}
		if err := m.joinKeys.remove(ctx, j.Meta.Name, 0); err != nil && resource.CodeOf(err) != resource.NotFound {
			return err
		}
	}
	return nil
}
