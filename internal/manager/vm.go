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
	if err := needMeta(resource.KindVM, vm); err != nil {
		return nil, err
	}
	vm = clone(vm)
	vm.Status = nil
	if vm.Spec == nil {
		vm.Spec = &v1.VMSpec{}
	}
	pin, err := m.cloneInto(vm)
	if err != nil {
		return nil, err
	}
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
	m.admission.Lock()
	defer m.admission.Unlock()
	if err := m.place(vm, pin); err != nil {
		return nil, err
	}
	if validateOnly {
		return vm, nil
	}
	vm.Meta.Uid = ""
	made, err := m.VMs.create(ctx, m.store, vm, m.claimMACs(nil, vm)...)
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

// checkReferences says whether everything that a VM names is there and fit for it. old is the VM before a change, or nil: what
// it names already isn't asked for again.
func (m *Manager) checkReferences(vm, old *v1.VM) error {
	f := resource.FaultsOf(resource.KindVM, vm.Meta.Name)
	s := vm.Spec
	image := func(field, name string, kind v1.ImageKind) {
		img, ok := m.Images.exists(f, field, name)
		switch {
		case !ok:
		case img.GetStatus().GetPhase() != v1.ImagePhase_IMAGE_PHASE_READY:
			f.Add(field, "IMAGE_NOT_READY", "image %q is not ready (%s %s)", name, phaseName(img.GetStatus().GetPhase()), img.GetStatus().GetMessage())
		case img.Spec.Kind != kind:
			f.Add(field, "IMAGE_KIND", "image %q is of kind %s, here %s is needed", name, kindName(img.Spec.Kind), kindName(kind))
		}
	}
	for _, d := range s.Disks {
		at := "spec.disks[" + d.Name + "]"
		was := diskOf(old, d.Name)
		if d.Image != "" && was == nil && s.CloneFrom == nil {
			image(at+".image", d.Image, v1.ImageKind_IMAGE_KIND_DISK)
			if img, ok := m.Images.cache.Get(d.Image); ok && d.SizeBytes != 0 && d.SizeBytes < img.GetStatus().GetVirtualSizeBytes() {
				f.Add(at+".size_bytes", "OUT_OF_RANGE", "%d is smaller than its image %q with %d; leave it out or make it larger", d.SizeBytes, d.Image, img.Status.VirtualSizeBytes)
			}
		}
		if d.Datastore != "" && was == nil {
			m.Datastores.exists(f, at+".datastore", d.Datastore)
		}
	}
	for _, c := range s.Cdroms {
		if c.Image != "" && !slices.ContainsFunc(old.GetSpec().GetCdroms(), func(o *v1.CDROMSpec) bool { return o.Image == c.Image }) {
			image("spec.cdroms["+c.Name+"].image", c.Image, v1.ImageKind_IMAGE_KIND_ISO)
		}
	}
	if s.KernelImage != "" && s.KernelImage != old.GetSpec().GetKernelImage() {
		image("spec.kernel_image", s.KernelImage, v1.ImageKind_IMAGE_KIND_KERNEL)
	}
	for _, n := range s.Nics {
		m.Networks.exists(f, "spec.nics["+n.Name+"].network", n.Network)
	}
	if p := s.Placement; p != nil {
		if p.Site != "" {
			m.Sites.exists(f, "spec.placement.site", p.Site)
		}
		if p.Host != "" {
			m.Hosts.exists(f, "spec.placement.host", p.Host)
		}
	}
	return f.Err()
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

// claimMACs are the changes to the reservations of MAC addresses when old becomes vm; either may be nil.
func (m *Manager) claimMACs(old, vm *v1.VM) []store.Op {
	var ops []store.Op
	had, has := map[string]bool{}, map[string]bool{}
	for _, n := range old.GetSpec().GetNics() {
		had[n.Mac] = true
	}
	for _, n := range vm.GetSpec().GetNics() {
		has[n.Mac] = true
		if !had[n.Mac] {
			had[n.Mac] = true
			ops = append(ops, m.macs.coll.CreateOp(&v1.MACClaim{Meta: &v1.Meta{Name: claimOfMAC(n.Mac), Uid: resource.NewUID()}, Vm: vm.Meta.Name}))
		}
	}
	for _, n := range old.GetSpec().GetNics() {
		if claim, ok := m.macs.cache.Get(claimOfMAC(n.Mac)); ok && !has[n.Mac] && claim.Vm == old.Meta.Name {
			ops = append(ops, m.macs.coll.DeleteOp(claim.Meta.Name, claim.Meta.Revision))
		}
	}
	return ops
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
		if errors.Is(err, errSame) || err == nil && validateOnly {
			return vm, nil
		}
		if err != nil {
			return nil, err
		}
		rev, err := m.store.Txn(ctx, append([]store.Op{m.VMs.coll.UpdateOp(vm)}, m.claimMACs(old, vm)...)...)
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
	m.admission.Lock()
	defer m.admission.Unlock()
	return m.changeVM(ctx, patch.Meta.Name, validateOnly, func(vm *v1.VM) error {
		was := vm.Spec.Power
		size := vm.Spec.MemoryBytes
		if err := merge(resource.KindVM, vm, clone(patch), mask); err != nil {
			return err
		}
		if vm.Spec.Power != v1.Power_POWER_OFF && (was == v1.Power_POWER_OFF || vm.Spec.MemoryBytes > size) {
			return m.admit(vm)
		}
		return nil
	})
}

// checkVMChange says what of a change can't be made, at least not now.
func checkVMChange(old, vm *v1.VM) error {
	f := resource.FaultsOf(resource.KindVM, vm.Meta.Name)
	off := old.Spec.Power == v1.Power_POWER_OFF && !isUp(old.GetStatus().GetPhase())
	a, b := old.Spec, vm.Spec
	fixed := func(field string, same bool) {
		if !same {
			f.Add(field, "FIELD_IMMUTABLE", "never changes after creation")
		}
	}
	whenOff := func(field string, same bool) {
		if !same && !off {
			f.Add(field, "VM_NOT_OFF", "only changes while the VM is off; stop it first")
		}
	}
	fixed("spec.clone_from", proto.Equal(a.CloneFrom, b.CloneFrom))
	fixed("spec.hardware.version", a.Hardware.GetVersion() == b.Hardware.GetVersion())
	whenOff("spec.hardware", proto.Equal(a.Hardware, b.Hardware))
	whenOff("spec.template", a.Template == b.Template)
	whenOff("spec.kernel_image", a.KernelImage == b.KernelImage)
	for _, d := range b.Disks {
		was := diskOf(old, d.Name)
		if was == nil {
			continue
		}
		at := "spec.disks[" + d.Name + "]"
		fixed(at+".image", was.Image == d.Image)
		fixed(at+".datastore", was.Datastore == d.Datastore)
		fixed(at+".format", was.Format == d.Format)
		whenOff(at+".bus", was.Bus == d.Bus)
		whenOff(at+".read_only", was.ReadOnly == d.ReadOnly)
		if now := max(was.SizeBytes, diskSize(old, d.Name)); d.SizeBytes != was.SizeBytes && d.SizeBytes < now {
			f.Add(at+".size_bytes", "OUT_OF_RANGE", "%d is less than its %d bytes now; disks only grow", d.SizeBytes, now)
		}
	}
	for _, n := range b.Nics {
		if was := nicOf(old, n.Name); was != nil {
			whenOff("spec.nics["+n.Name+"].adapter", was.Adapter == n.Adapter)
			whenOff("spec.nics["+n.Name+"].mac", was.Mac == n.Mac)
		}
	}
	if h := b.Placement.GetHost(); h != "" && h != a.Placement.GetHost() && h != old.GetStatus().GetOwner() {
		f.Add("spec.placement.host", "CANNOT_MOVE", "the VM and its disks are on host %q; this version can't move them", old.GetStatus().GetOwner())
	}
	return f.Err()
}

func diskSize(vm *v1.VM, name string) int64 {
	for _, d := range vm.GetStatus().GetDisks() {
		if d.Name == name {
			return d.SizeBytes
		}
	}
	return 0
}

// isUp reports whether QEMU runs in a phase, or may.
func isUp(p v1.VMPhase) bool {
	switch p {
	case v1.VMPhase_VM_PHASE_STARTING, v1.VMPhase_VM_PHASE_RUNNING, v1.VMPhase_VM_PHASE_PAUSED, v1.VMPhase_VM_PHASE_STOPPING, v1.VMPhase_VM_PHASE_IO_ERROR:
		return true
	}
	return false
}

// StartVM asks for power, and again if the last start failed.
func (m *Manager) StartVM(ctx context.Context, name string) (*v1.VM, error) {
	m.admission.Lock()
	defer m.admission.Unlock()
	return m.changeVM(ctx, name, false, func(vm *v1.VM) error {
		if vm.Spec.Template {
			return &resource.Error{Code: resource.Precondition, Kind: resource.KindVM, Name: name, Reason: "IS_TEMPLATE", Message: "is a template, which never runs", Remedy: "clone it: drover vm clone " + name + " NEW"}
		}
		again := vm.Spec.Power == v1.Power_POWER_ON && !isUp(vm.GetStatus().GetPhase())
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
	m.admission.Lock() // no clone may be made of it meanwhile
	defer m.admission.Unlock()
	if clones := m.clonesOf(name, ""); len(clones) > 0 {
		return nil, &resource.Error{Code: resource.Precondition, Kind: resource.KindVM, Name: name, Reason: "HAS_CLONES", Message: fmt.Sprintf("linked clones stand on it: %v", clones), Remedy: "delete them first"}
	}
	vm, err := m.VMs.mutate(ctx, name, func(vm *v1.VM) error {
		if err := atRevision(resource.KindVM, vm.Meta, revision); err != nil {
			return err
		}
		if vm.Meta.DeleteTime != nil {
			return errSame
		}
		if vm.GetStatus().GetBusy() != "" && !force {
			return &resource.Error{Code: resource.Precondition, Kind: resource.KindVM, Name: name, Reason: "VM_BUSY", Message: "task " + vm.Status.Busy + " has it to itself", Remedy: "wait for it, or delete with force"}
		}
		if (vm.Spec.Power != v1.Power_POWER_OFF || isUp(vm.GetStatus().GetPhase())) && !force {
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

// forgetVM removes the record of a VM of which nothing is left, with its snapshots and addresses.
func (m *Manager) forgetVM(ctx context.Context, vm *v1.VM) error {
	ops := append([]store.Op{m.VMs.coll.DeleteOp(vm.Meta.Name, vm.Meta.Revision)}, m.claimMACs(vm, nil)...)
	rev, err := m.store.Txn(ctx, ops...)
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
	r := placement.Request{Name: vm.Meta.Name, CPUs: int64(vm.Spec.Cpus), MemoryMiB: vm.Spec.MemoryBytes >> 20}
	result, err := placement.Place([]placement.Host{m.room(host)}, r, placement.Options{CPUOvercommit: 1})
	if err != nil {
		return err
	}
	if _, ok := result.Best(); !ok {
		return &resource.Error{Code: resource.Exhausted, Kind: resource.KindVM, Name: vm.Meta.Name, Reason: "NO_ROOM", Message: "can't run where its disks are: " + placement.Explain(result.Rejected), Remedy: "stop another VM there, or give this one less"}
	}
	return nil
}
