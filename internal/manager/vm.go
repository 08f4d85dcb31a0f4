package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/placement"
	"drover/internal/resource"
	"drover/internal/store"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// CreateVM checks a VM, finds a host for it, and gives it to that host.
func (m *Manager) CreateVM(ctx context.Context, vm *v1.VM, validateOnly bool) (*v1.VM, error) {
	return m.createVM(ctx, vm, validateOnly, "")
}

// createVM makes a VM, which with busy belongs to that task alone from the beginning.
func (m *Manager) createVM(ctx context.Context, vm *v1.VM, validateOnly bool, busy string) (*v1.VM, error) {
	if err := needMeta(resource.KindVM, vm); err != nil {
		return nil, err
	}
	ctx, done, err := m.exclusive(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	vm = clone(vm)
	vm.Status = nil
	if vm.Spec == nil {
		vm.Spec = &v1.VMSpec{}
	}
	vm.Spec.StopGrace = nil // Stop's alone
	pin, err := m.cloneInto(vm)
	if err != nil {
		return nil, err
	}
	m.giveMACs(vm.Spec)
	resource.DefaultVM(vm, m.bootImage(vm.Spec))
	if err := resource.CheckVM(vm); err != nil {
		return nil, err
	}
	if err := m.checkReferences(vm, nil); err != nil {
		return nil, err
	}
	if _, ok := m.VMs.cache.Get(vm.Meta.Name); ok {
		return nil, m.VMs.translate(store.ErrExists, vm.Meta.Name)
	}
	if err := m.place(vm, pin); err != nil {
		return nil, err
	}
	vm.Status.Busy = busy
	claims, err := m.claimMACs(ctx, nil, vm)
	if err != nil {
		return nil, err
	}
	if validateOnly {
		return unmade(vm), m.freeMACs(ctx, vm)
	}
	made, err := m.VMs.create(ctx, m.store, vm, claims...)
	if err != nil {
		return nil, err
	}
	m.event(v1.Severity_SEVERITY_INFO, resource.KindVM, vm.Meta.Name, "VM_CREATED", "placed on host "+made.Status.Owner)
	return made, nil
}

// bootImage is the image that says what a VM is, if one does.
func (m *Manager) bootImage(s *v1.VMSpec) *v1.Image {
	name := s.KernelImage
	for _, d := range s.Disks {
		if name == "" {
			name = d.Image
		}
	}
	img, _ := m.Images.cache.Get(name)
	return img
}

func diskOf(vm *v1.VM, name string) *v1.DiskSpec {
	for _, d := range vm.GetSpec().GetDisks() {
		if d.Name == name {
			return d
		}
	}
	return nil
}

func nicOf(vm *v1.VM, name string) *v1.NICSpec {
	for _, n := range vm.GetSpec().GetNics() {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// unmade takes away what only a VM that is stored has.
func unmade(vm *v1.VM) *v1.VM {
	vm.Meta.Uid, vm.Meta.Generation, vm.Meta.Revision = "", 0, 0
	vm.Meta.CreateTime, vm.Meta.UpdateTime, vm.Meta.DeleteTime = nil, nil, nil
	return vm
}

// changeTries bounds how often a change is repeated because someone else was faster.
const changeTries = 16

// changeVM changes a VM's spec, labels or annotations. change gets a copy to alter; what it makes is checked as a whole. Nothing is
// changed while a task has the VM to itself.
func (m *Manager) changeVM(ctx context.Context, name string, validateOnly bool, change func(vm *v1.VM) error) (*v1.VM, error) {
	for range changeTries {
		old, err := m.VMs.coll.Get(ctx, name)
		if err != nil {
			return nil, m.VMs.translate(err, name)
		}
		vm, err := m.changed(old, change)
		if errors.Is(err, errSame) {
			return vm, nil
		}
		if err != nil {
			return nil, err
		}
		if validateOnly {
			return vm, m.freeMACs(ctx, vm)
		}
		claims, err := m.claimMACs(ctx, old, vm)
		if err != nil {
			return nil, err
		}
		rev, err := m.store.Txn(ctx, append([]store.Op{m.VMs.coll.UpdateOp(vm)}, claims...)...)
		if err == nil {
			return vm, m.VMs.cache.WaitRevision(ctx, rev)
		}
		if !errors.Is(err, store.ErrConflict) {
			return nil, m.VMs.translate(err, name)
		}
	}
	return nil, m.VMs.translate(store.ErrConflict, name)
}

func (m *Manager) changed(old *v1.VM, change func(vm *v1.VM) error) (*v1.VM, error) {
	name := old.Meta.Name
	if old.Meta.DeleteTime != nil {
		return nil, &resource.Error{Code: resource.Precondition, Kind: resource.KindVM, Name: name, Reason: "DELETING", Message: "is being deleted"}
	}
	vm := clone(old)
	if err := change(vm); err != nil {
		return vm, err
	}
	keepGiven(old.Spec, vm.Spec)
	m.giveMACs(vm.Spec)
	resource.DefaultVM(vm, m.bootImage(vm.Spec))
	if proto.Equal(vm, old) {
		return vm, errSame
	}
	if busy := old.GetStatus().GetBusy(); busy != "" {
		return nil, &resource.Error{Code: resource.Precondition, Kind: resource.KindVM, Name: name, Reason: "VM_BUSY", Message: "task " + busy + " has it to itself", Remedy: "wait: drover task wait " + busy}
	}
	if err := resource.CheckVM(vm); err != nil {
		return nil, err
	}
	if err := checkVMChange(old, vm); err != nil {
		return nil, err
	}
	if old.Spec.Template && !vm.Spec.Template {
		if clones := m.clonesOf(name, ""); len(clones) > 0 {
			return nil, hasClones(resource.KindVM, name, clones)
		}
	}
	if err := m.checkReferences(vm, old); err != nil {
		return nil, err
	}
	if err := m.placeNewDisks(old, vm); err != nil {
		return nil, err
	}
	if !proto.Equal(vm.Spec, old.Spec) {
		vm.Meta.Generation = old.Meta.Generation + 1
	}
	vm.Meta.UpdateTime = stamp(m.cfg.Clock.Now())
	return vm, nil
}

// UpdateVM merges what mask names.
func (m *Manager) UpdateVM(ctx context.Context, patch *v1.VM, mask *fieldmaskpb.FieldMask, validateOnly bool) (*v1.VM, error) {
	if err := needMeta(resource.KindVM, patch); err != nil {
		return nil, err
	}
	ctx, done, err := m.exclusive(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return m.changeVM(ctx, patch.Meta.Name, validateOnly, func(vm *v1.VM) error {
		was := clone(vm.Spec)
		if err := merge(resource.KindVM, vm, clone(patch), mask); err != nil {
			return err
		}
		keepGiven(was, vm.Spec)
		if vm.Spec.StopGrace == nil && vm.Spec.Power == was.Power {
			vm.Spec.StopGrace = was.StopGrace // Stop's, which is still under way
		}
		if vm.Spec.Power != v1.Power_POWER_OFF && (was.Power == v1.Power_POWER_OFF || vm.Spec.MemoryBytes > was.MemoryBytes || vm.Spec.Cpus > was.Cpus) {
			return m.admit(vm)
		}
		return nil
	})
}

// isUp reports whether QEMU runs in a phase, or may.
func isUp(p v1.VMPhase) bool {
	switch p {
	case v1.VMPhase_VM_PHASE_STARTING, v1.VMPhase_VM_PHASE_RUNNING, v1.VMPhase_VM_PHASE_PAUSED, v1.VMPhase_VM_PHASE_STOPPING, v1.VMPhase_VM_PHASE_IO_ERROR:
		return true
	}
	return false
}

// isDown reports whether a VM is off, or failed, and its host has heard the latest wish: one that is on its way isn't wished for again.
func isDown(vm *v1.VM) bool {
	switch vm.GetStatus().GetPhase() {
	case v1.VMPhase_VM_PHASE_OFF, v1.VMPhase_VM_PHASE_CRASHED, v1.VMPhase_VM_PHASE_FAILED:
		return vm.Status.ObservedGeneration >= vm.Meta.Generation
	}
	return false
}

// StartVM asks for power, and again if the last start failed.
func (m *Manager) StartVM(ctx context.Context, name string) (*v1.VM, error) {
	ctx, done, err := m.exclusive(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return m.changeVM(ctx, name, false, func(vm *v1.VM) error {
		if vm.Spec.Template {
			return &resource.Error{Code: resource.Precondition, Kind: resource.KindVM, Name: name, Reason: "IS_TEMPLATE", Message: "is a template, which never runs", Remedy: "clone it: drover vm clone " + name + " NEW"}
		}
		again := vm.Spec.Power == v1.Power_POWER_ON && isDown(vm)
		if vm.Spec.Power == v1.Power_POWER_ON && !again {
			return errSame
		}
		vm.Spec.Power, vm.Spec.StopGrace = v1.Power_POWER_ON, nil
		if again {
			vm.Meta.Generation++ // the host tries again for a generation that it has not tried yet
			vm.Meta.UpdateTime = stamp(m.cfg.Clock.Now())
		}
		return m.admit(vm)
	})
}

// StopVM asks for an end, within grace if that isn't nil.
func (m *Manager) StopVM(ctx context.Context, name string, force bool, grace *durationpb.Duration) (*v1.VM, error) {
	if force {
		grace = durationpb.New(0)
	}
	if d := grace.AsDuration(); d < 0 || d > time.Hour {
		return nil, &resource.Error{Code: resource.Invalid, Kind: resource.KindVM, Name: name, Field: "timeout", Reason: "OUT_OF_RANGE", Message: fmt.Sprintf("%v; must be 0 to 1h", d)}
	}
	return m.changeVM(ctx, name, false, func(vm *v1.VM) error {
		vm.Spec.Power, vm.Spec.StopGrace = v1.Power_POWER_OFF, grace
		return nil
	})
}

// PauseVM stops the guest's processors, or lets them go on.
func (m *Manager) PauseVM(ctx context.Context, name string, pause bool) (*v1.VM, error) {
	return m.changeVM(ctx, name, false, func(vm *v1.VM) error {
		if vm.Spec.Power == v1.Power_POWER_OFF {
			return &resource.Error{Code: resource.Precondition, Kind: resource.KindVM, Name: name, Reason: "VM_OFF", Message: "is off", Remedy: "start it: drover vm start " + name}
		}
		vm.Spec.Power = v1.Power_POWER_ON
		if pause {
			vm.Spec.Power = v1.Power_POWER_PAUSED
		}
		return nil
	})
}

// DeleteVM marks a VM; its host takes it down and then the record goes. A VM that runs needs force. One that linked clones stand on is
// never deleted.
func (m *Manager) DeleteVM(ctx context.Context, name string, revision int64, force bool) (*v1.VM, error) {
	ctx, done, err := m.exclusive(ctx) // no clone may be made of it meanwhile
	if err != nil {
		return nil, err
	}
	defer done()
	if clones := m.clonesOf(name, ""); len(clones) > 0 {
		return nil, hasClones(resource.KindVM, name, clones)
	}
	vm, err := m.VMs.mutate(ctx, name, func(vm *v1.VM) error {
		if err := atRevision(resource.KindVM, vm.Meta, revision); err != nil {
			return err
		}
		if vm.Meta.DeleteTime != nil {
			return errSame
		}
		held := vm.GetStatus().GetOwner() != "" // without a host nothing of it runs
		if held && vm.GetStatus().GetBusy() != "" && !force {
			return &resource.Error{Code: resource.Precondition, Kind: resource.KindVM, Name: name, Reason: "VM_BUSY", Message: "task " + vm.Status.Busy + " has it to itself", Remedy: "wait for it, or delete with force"}
		}
		if held && (vm.Spec.Power != v1.Power_POWER_OFF || isUp(vm.GetStatus().GetPhase())) && !force {
			return &resource.Error{Code: resource.Precondition, Kind: resource.KindVM, Name: name, Reason: "VM_NOT_OFF", Message: "is not off", Remedy: "stop it first: drover vm stop " + name + "; or delete it as it runs: --force"}
		}
		vm.Meta.DeleteTime = stamp(m.cfg.Clock.Now())
		vm.Meta.Generation++
		vm.Spec.Power, vm.Spec.StopGrace = v1.Power_POWER_OFF, durationpb.New(0)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if vm.GetStatus().GetOwner() == "" {
		return vm, m.forgetVM(ctx, vm)
	}
	return vm, nil
}

func hasClones(kind resource.Kind, name string, clones []string) error {
	return &resource.Error{Code: resource.Precondition, Kind: kind, Name: name, Reason: "HAS_CLONES", Message: fmt.Sprintf("linked clones stand on it: %v", clones), Remedy: "delete them first"}
}

// forgetVM removes the record of a VM of which nothing is left, with its snapshots and addresses.
func (m *Manager) forgetVM(ctx context.Context, vm *v1.VM) error {
	claims, err := m.claimMACs(ctx, vm, nil)
	if err != nil {
		return err
	}
	rev, err := m.store.Txn(ctx, append([]store.Op{m.VMs.coll.DeleteOp(vm.Meta.Name, vm.Meta.Revision)}, claims...)...)
	if err != nil {
		return m.VMs.translate(err, vm.Meta.Name)
	}
	if err := m.VMs.cache.WaitRevision(ctx, rev); err != nil {
		return err
	}
	for _, s := range m.snapshotsOf(vm.Meta.Name) {
		if err := m.Snapshots.remove(ctx, s.Meta.Name, s.Meta.Revision); err != nil && resource.CodeOf(err) != resource.NotFound {
			return err
		}
	}
	m.event(v1.Severity_SEVERITY_INFO, resource.KindVM, vm.Meta.Name, "VM_DELETED", "nothing is left of it")
	return nil
}

// admit says whether a VM's owner has the memory to run it.
func (m *Manager) admit(vm *v1.VM) error {
	host, ok := m.Hosts.cache.Get(vm.GetStatus().GetOwner())
	if !ok {
		return &resource.Error{Code: resource.Precondition, Kind: resource.KindVM, Name: vm.Meta.Name, Reason: "NO_OWNER", Message: "no host holds it: its host was removed", Remedy: "delete it, or restore it from a backup"}
	}
	others := slices.DeleteFunc(m.residents()[host.Meta.Name], func(x *v1.VM) bool { return x.Meta.Name == vm.Meta.Name })
	r := placement.Request{Name: vm.Meta.Name, CPUs: int64(vm.Spec.Cpus), MemoryMiB: vm.Spec.MemoryBytes >> 20}
	result, err := placement.Place([]placement.Host{m.room(host, others)}, r, placement.Options{CPUOvercommit: 1})
	if err != nil {
		return err
	}
	if _, ok := result.Best(); !ok {
		return &resource.Error{Code: resource.Exhausted, Kind: resource.KindVM, Name: vm.Meta.Name, Reason: "NO_ROOM", Message: "can't run where its disks are: " + placement.Explain(result.Rejected), Remedy: "stop another VM there, or give this one less"}
	}
	return nil
}
