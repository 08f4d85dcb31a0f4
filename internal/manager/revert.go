package manager

import (
	"context"
	"errors"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/resource"
	"drover/internal/store"
	"drover/internal/task"

	"google.golang.org/protobuf/proto"
)

// RevertSnapshot begins a task that takes a VM back.
func (m *Manager) RevertSnapshot(ctx context.Context, name string) (*v1.Task, error) {
	if err := m.readySnapshot(name); err != nil {
		return nil, err
	}
	if err := m.roomToRevert(name); err != nil {
		return nil, err
	}
	return m.submit(ctx, taskSnapshotRevert, resource.KindSnapshot, name)
}

// roomToRevert says whether a VM that is off has the room to run, if its snapshot's memory makes it run.
func (m *Manager) roomToRevert(name string) error {
	vmName, _, _ := resource.Part(name)
	vm, err := m.VMs.lookup(vmName)
	if err != nil {
		return err
	}
	snap, err := m.Snapshots.lookup(name)
	if err != nil || !snap.Spec.Memory || vm.Spec.Power != v1.Power_POWER_OFF {
		return err
	}
	vm = clone(vm)
	if err := proto.Unmarshal(snap.Status.VmSpec, vm.Spec); err != nil {
		return err
	}
	return m.admit(vm)
}

func (m *Manager) readySnapshot(name string) error {
	s, err := m.Snapshots.lookup(name)
	if err != nil {
		return err
	}
	if s.GetStatus().GetPhase() != v1.SnapshotPhase_SNAPSHOT_PHASE_READY {
		return &resource.Error{Code: resource.Precondition, Kind: resource.KindSnapshot, Name: name, Reason: "SNAPSHOT_NOT_READY", Message: "is not ready: " + s.GetStatus().GetMessage()}
	}
	return nil
}

func (m *Manager) doRevert(ctx context.Context, r *task.Run) error {
	name := r.Task.Spec.Target
	vmName, _, _ := resource.Part(name)
	snap, err := m.Snapshots.lookup(name)
	if err != nil {
		return err
	}
	vm, err := m.claimVM(ctx, vmName, r.Task.Meta.Name)
	if err != nil {
		return err
	}
	spec := &v1.VMSpec{}
	if err := proto.Unmarshal(snap.Status.VmSpec, spec); err != nil {
		return err
	}
	spec.Power, spec.StopGrace = v1.Power_POWER_OFF, nil
	if snap.Spec.Memory {
		spec.Power = v1.Power_POWER_ON
	}
	if err := m.freeMACs(ctx, &v1.VM{Meta: vm.Meta, Spec: spec}); err != nil {
		return err // before the host goes back, not after
	}
	if err := m.checkNICs(vmName, spec); err != nil {
		return err
	}
	next := vm.Meta.Generation + 1
	err = r.Step(ctx, "go back", func(ctx context.Context) error {
		if err := r.SetNote(ctx, noteAsked, vm.Status.Owner); err != nil {
			return err
		}
		_, err := m.atNode(ctx, r, vm, &v1.NodeSnapshotRequest{Memory: snap.Spec.Memory, Spec: spec, Generation: next}, droverv1connect.NodeServiceClient.RevertSnapshot)
		return err
	})
	if err != nil {
		return err
	}
	return m.reverted(ctx, r, vmName, name, spec)
}

// noteAsked is the host that was asked to go back.
const noteAsked = "asked"

// undoRevert lets go of the VM. Its host may have come too far to turn round: it then goes on, and takes specs for older than the
// revert that are not above the generation that it was told. So the spec of now, which still counts, gets one.
func (m *Manager) undoRevert(ctx context.Context, r *task.Run) error {
	vm, _, _ := resource.Part(r.Task.Spec.Target)
	return m.releaseVM(ctx, vm, r.Task.Meta.Name, func(vm *v1.VM) error {
		if r.Note(noteAsked) != "" {
			vm.Meta.Generation += 2
		}
		return nil
	})
}

// reverted notes that a VM's host has taken it back.
func (m *Manager) reverted(ctx context.Context, r *task.Run, vmName, name string, spec *v1.VMSpec) error {
	for range changeTries {
		old, err := m.VMs.coll.Get(ctx, vmName)
		if err != nil {
			return m.VMs.translate(err, vmName)
		}
		if old.GetStatus().GetBusy() != r.Task.Meta.Name {
			return nil // an earlier run finished it
		}
		fresh := clone(old)
		// The host ignores what is older than the generation that it was told; a report may have counted one meanwhile.
		fresh.Spec, fresh.Meta.Generation = spec, old.Meta.Generation+1
		fresh.Status.Busy, fresh.Status.CurrentSnapshot = "", name
		if old.Meta.DeleteTime != nil {
			spec.Power = v1.Power_POWER_OFF
		}
		claims, err := m.claimMACs(ctx, old, fresh)
		if err != nil {
			return err
		}
		rev, err := m.store.Txn(ctx, append(claims, m.VMs.coll.UpdateOp(fresh))...)
		if errors.Is(err, store.ErrConflict) {
			continue // a report came between
		}
		if err != nil {
			return m.VMs.translate(err, vmName)
		}
		m.event(v1.Severity_SEVERITY_INFO, resource.KindVM, vmName, "VM_REVERTED", "to snapshot "+name)
		return m.VMs.cache.WaitRevision(ctx, rev)
	}
	return m.VMs.translate(store.ErrConflict, vmName)
}
