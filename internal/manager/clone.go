package manager

import (
	"context"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"

	"google.golang.org/protobuf/proto"
)

// pin ties a new VM to where the disks that it starts from are.
type pin struct {
	host string
}

// CloneVM makes a VM from another's state, as it is or as it was at a snapshot.
func (m *Manager) CloneVM(ctx context.Context, req *v1.CloneVMRequest) (*v1.VM, error) {
	vm := &v1.VM{Meta: &v1.Meta{Name: req.Name, Labels: req.Labels}, Spec: &v1.VMSpec{CloneFrom: req.Source, Template: req.Template, Power: v1.Power_POWER_OFF}}
	if req.Source == nil {
		return nil, &resource.Error{Code: resource.Invalid, Kind: resource.KindVM, Name: req.Name, Field: "source", Reason: "SOURCE_MISSING", Message: "a clone needs a source VM"}
	}
	if req.Start {
		vm.Spec.Power = v1.Power_POWER_ON
	}
	return m.CreateVM(ctx, vm, false)
}

// cloneInto completes a VM that is to be a clone from its source, and says where it must go. A VM that isn't one comes back as it is.
func (m *Manager) cloneInto(vm *v1.VM) (*pin, error) {
	from := vm.Spec.CloneFrom
	if from == nil {
		return nil, nil
	}
	src, err := m.VMs.lookup(from.Vm)
	if err != nil {
		return nil, err
	}
	bad := func(reason, msg, remedy string) error {
		return &resource.Error{Code: resource.Precondition, Kind: resource.KindVM, Name: from.Vm, Reason: reason, Message: msg, Remedy: remedy}
	}
	spec := src.Spec
	switch {
	case src.Meta.DeleteTime != nil:
		return nil, bad("DELETING", "is being deleted", "")
	case src.GetStatus().GetOwner() == "":
		return nil, bad("NO_OWNER", "no host holds its disks", "")
	case from.Snapshot != "":
		snap, err := m.Snapshots.lookup(from.Snapshot)
		if err != nil {
			return nil, err
		}
		if snap.GetStatus().GetPhase() != v1.SnapshotPhase_SNAPSHOT_PHASE_READY {
			return nil, &resource.Error{Code: resource.Precondition, Kind: resource.KindSnapshot, Name: from.Snapshot, Reason: "SNAPSHOT_NOT_READY", Message: "is not ready"}
		}
		spec = &v1.VMSpec{}
		if err := proto.Unmarshal(snap.Status.VmSpec, spec); err != nil {
			return nil, err
		}
	case from.Linked && !spec.Template:
		return nil, bad("NOT_A_TEMPLATE", "a linked clone shares layers that never change, and this VM's present state does", "name a snapshot of it, or make it a template: drover vm template "+from.Vm)
	case !spec.Template && (spec.Power != v1.Power_POWER_OFF || isUp(src.GetStatus().GetPhase())):
		return nil, bad("VM_NOT_OFF", "is not off, so its present state can't be copied", "stop it, or clone a snapshot of it")
	case src.GetStatus().GetPhase() == v1.VMPhase_VM_PHASE_PENDING || src.GetStatus().GetPhase() == v1.VMPhase_VM_PHASE_PROVISIONING:
		return nil, bad("VM_NOT_READY", "its disks are still being made", "wait until it is off")
	}
	given := vm.Spec
	if h := given.Placement.GetHost(); h != "" && h != src.Status.Owner {
		return nil, bad("CANNOT_MOVE", "its disks are on host "+src.Status.Owner+", and this version can't clone them to host "+h, "leave the host out")
	}
	vm.Spec = clone(spec)
	vm.Spec.CloneFrom, vm.Spec.Template, vm.Spec.Power, vm.Spec.StopGrace = from, given.Template, given.Power, nil
	overlay(vm.Spec, given)
	if len(given.Nics) == 0 {
		for _, n := range vm.Spec.Nics {
			n.Mac = "" // the source's are the source's
		}
	}
	return &pin{host: src.Status.Owner}, nil
}

// overlay takes what was said of a clone over what its source has.
func overlay(spec, given *v1.VMSpec) {
	if given.Cpus != 0 {
		spec.Cpus = given.Cpus
	}
	if given.MaxCpus != 0 {
		spec.MaxCpus = given.MaxCpus
	}
	if given.MemoryBytes != 0 {
		spec.MemoryBytes = given.MemoryBytes
	}
	if given.MaxMemoryBytes != 0 {
		spec.MaxMemoryBytes = given.MaxMemoryBytes
	}
	if given.Description != "" {
		spec.Description = given.Description
	}
	if given.CloudInit != nil {
		spec.CloudInit = given.CloudInit
	}
	if len(given.Nics) > 0 {
		spec.Nics = given.Nics
	}
	switch {
	case given.Placement != nil:
		spec.Placement = given.Placement
	case spec.Placement != nil:
		// A clone begins where its source's disks are, so it can't keep away from its source.
		spec.Placement = clone(spec.Placement)
		spec.Placement.AntiAffinityGroup = ""
	}
}

// clonesOf are the linked clones that stand on a VM's snapshot, or with snapshot "" on anything of the VM.
func (m *Manager) clonesOf(vm, snapshot string) []string {
	var names []string
	all, _ := m.VMs.cache.List()
	for _, x := range all {
		if c := x.Spec.CloneFrom; c.GetLinked() && c.Vm == vm && (snapshot == "" || c.Snapshot == snapshot) {
			names = append(names, x.Meta.Name)
		}
	}
	return names
}
