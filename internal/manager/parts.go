package manager

import (
	"context"
	"slices"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"
	"drover/internal/store"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// Parts shows the disks or NICs of all VMs as resources of their own. They are kept in the VMs: revision, generation and
// times are the VM's.
type Parts[T Object] struct {
	m    *Manager
	kind resource.Kind
	zero T
	// of makes the parts of a VM, in their order.
	of func(*v1.VM) []T
	// put sets a part in the VM's spec, new or not; cut takes it out.
	put func(vm *v1.VM, part string, obj T)
	cut func(vm *v1.VM, part string)
}

func (m *Manager) openParts() error {
	m.Disks = &Parts[*v1.Disk]{m: m, kind: resource.KindDisk, of: disksOf,
		put: func(vm *v1.VM, part string, d *v1.Disk) {
			spec := clone(d.Spec)
			spec.Name = part
			if old := diskOf(vm, part); old != nil {
				proto.Reset(old)
				proto.Merge(old, spec)
				return
			}
			vm.Spec.Disks = append(vm.Spec.Disks, spec)
		},
		cut: func(vm *v1.VM, part string) {
			vm.Spec.Disks = slices.DeleteFunc(vm.Spec.Disks, func(d *v1.DiskSpec) bool { return d.Name == part })
		},
	}
	m.NICs = &Parts[*v1.NIC]{m: m, kind: resource.KindNIC, of: nicsOf,
		put: func(vm *v1.VM, part string, n *v1.NIC) {
			spec := clone(n.Spec)
			spec.Name = part
			if old := nicOf(vm, part); old != nil {
				proto.Reset(old)
				proto.Merge(old, spec)
				return
			}
			vm.Spec.Nics = append(vm.Spec.Nics, spec)
		},
		cut: func(vm *v1.VM, part string) {
			vm.Spec.Nics = slices.DeleteFunc(vm.Spec.Nics, func(n *v1.NICSpec) bool { return n.Name == part })
		},
	}
	return nil
}

func partMeta(vm *v1.VM, part string) *v1.Meta {
	m := clone(vm.Meta)
	m.Name, m.Uid, m.Annotations = m.Name+"/"+part, m.Uid+"/"+part, nil
	return m
}

func disksOf(vm *v1.VM) []*v1.Disk {
	var list []*v1.Disk
	for _, spec := range vm.Spec.GetDisks() {
		d := &v1.Disk{Meta: partMeta(vm, spec.Name), Spec: spec, Status: &v1.DiskStatus{Name: spec.Name}}
		for _, s := range vm.GetStatus().GetDisks() {
			if s.Name == spec.Name {
				d.Status = s
			}
		}
		list = append(list, d)
	}
	return list
}

func nicsOf(vm *v1.VM) []*v1.NIC {
	var list []*v1.NIC
	for _, spec := range vm.Spec.GetNics() {
		n := &v1.NIC{Meta: partMeta(vm, spec.Name), Spec: spec, Status: &v1.NICStatus{Name: spec.Name}}
		for _, s := range vm.GetStatus().GetNics() {
			if s.Name == spec.Name {
				n.Status = s
			}
		}
		list = append(list, n)
	}
	return list
}

func (p *Parts[T]) split(name string) (vm, part string, err error) {
	vm, part, ok := resource.Part(name)
	if !ok {
		return "", "", &resource.Error{Code: resource.Invalid, Kind: p.kind, Name: name, Field: "meta.name", Reason: "NAME_INVALID", Message: "must be VM/" + strings.ToUpper(p.kind)}
	}
	return vm, part, nil
}

// has reports whether a part has a spec.
func (p *Parts[T]) has(obj T) bool {
	m := obj.ProtoReflect()
	return m.Has(m.Descriptor().Fields().ByName("spec"))
}

func (p *Parts[T]) find(vm *v1.VM, name string) (T, bool) {
	for _, x := range p.of(vm) {
		if x.GetMeta().Name == name {
			return x, true
		}
	}
	return p.zero, false
}

// Get returns the part named "VM/PART".
func (p *Parts[T]) Get(name string) (T, error) {
	vmName, _, err := p.split(name)
	if err != nil {
		return p.zero, err
	}
	vm, err := p.m.VMs.lookup(vmName)
	if err != nil {
		return p.zero, err
	}
	if x, ok := p.find(vm, name); ok {
		return x, nil
	}
	return p.zero, notFound(p.kind, name)
}

// List filters, orders and pages.
func (p *Parts[T]) List(req *v1.ListRequest) (*Listing[T], error) {
	vms, rev := p.m.VMs.cache.List()
	var all []T
	for _, vm := range vms {
		all = append(all, p.of(vm)...)
	}
	return list(p.kind, p.zero, all, rev, req)
}

// Watch is Registry.Watch for parts.
func (p *Parts[T]) Watch(ctx context.Context, req *v1.WatchRequest, send func(v1.ChangeKind, T, int64) error) error {
	match, err := matcher(p.kind, p.zero, req.GetFilter())
	if err != nil {
		return err
	}
	matching := func(vm *v1.VM) map[string]T {
		found := map[string]T{}
		if vm == nil {
			return found
		}
		for _, x := range p.of(vm) {
			if match(x) {
				found[x.GetMeta().Name] = x
			}
		}
		return found
	}
	from, err := reachable(ctx, p.m.VMs.cache, req.GetFromRevision())
	if err != nil {
		return err
	}
	sub := p.m.VMs.cache.Subscribe(from)
	quiet := req.GetFromRevision() == 0
	for {
		events, err := sub.Next(ctx)
		if err != nil {
			return err
		}
		for _, e := range events {
			switch e.Type {
			case store.Reset:
				if !quiet {
					err = send(v1.ChangeKind_CHANGE_KIND_RESET, p.zero, e.Revision)
				}
				quiet = false
			case store.Synced:
				err = send(v1.ChangeKind_CHANGE_KIND_SYNCED, p.zero, e.Revision)
			case store.Put, store.Delete:
				err = sendParts(matching(e.Old), matching(e.Object), e.Revision, send)
			}
			if err != nil {
				return err
			}
		}
	}
}

func sendParts[T Object](was, is map[string]T, rev int64, send func(v1.ChangeKind, T, int64) error) error {
	for name, old := range was {
		if _, ok := is[name]; !ok {
			if err := send(v1.ChangeKind_CHANGE_KIND_DELETED, old, rev); err != nil {
				return err
			}
		}
	}
	for name, x := range is {
		kind := v1.ChangeKind_CHANGE_KIND_ADDED
		if old, ok := was[name]; ok {
			if sameBut(old, x) {
				continue
			}
			kind = v1.ChangeKind_CHANGE_KIND_MODIFIED
		}
		if err := send(kind, x, rev); err != nil {
			return err
		}
	}
	return nil
}

// sameBut reports whether two states of a part differ in nothing but the counters of their VM.
func sameBut[T Object](a, b T) bool {
	a, b = proto.CloneOf(a), proto.CloneOf(b)
	for _, m := range []*v1.Meta{a.GetMeta(), b.GetMeta()} {
		m.Revision, m.Generation, m.UpdateTime = 0, 0, nil
	}
	return proto.Equal(a, b)
}

// Create adds a part to its VM.
func (p *Parts[T]) Create(ctx context.Context, obj T, validateOnly bool) (T, error) {
	if err := needMeta(p.kind, obj); err != nil {
		return p.zero, err
	}
	name := obj.GetMeta().Name
	vmName, part, err := p.split(name)
	if err != nil {
		return p.zero, err
	}
	if !p.has(obj) {
		return p.zero, &resource.Error{Code: resource.Invalid, Kind: p.kind, Name: name, Field: "spec", Reason: "SPEC_MISSING", Message: "says what it is, and is missing"}
	}
	ctx, done, err := p.m.exclusive(ctx)
	if err != nil {
		return p.zero, err
	}
	defer done()
	vm, err := p.m.changeVM(ctx, vmName, validateOnly, func(vm *v1.VM) error {
		if _, ok := p.find(vm, name); ok {
			return &resource.Error{Code: resource.Exists, Kind: p.kind, Name: name, Reason: "NAME_TAKEN", Message: "the VM has one of that name", Remedy: "choose another name"}
		}
		p.put(vm, part, obj)
		return nil
	})
	if err != nil {
		return p.zero, err
	}
	x, _ := p.find(vm, name)
	return x, nil
}

// Update changes a part.
func (p *Parts[T]) Update(ctx context.Context, patch T, mask *fieldmaskpb.FieldMask, validateOnly bool) (T, error) {
	if err := needMeta(p.kind, patch); err != nil {
		return p.zero, err
	}
	name := patch.GetMeta().Name
	vmName, part, err := p.split(name)
	if err != nil {
		return p.zero, err
	}
	for _, path := range mask.GetPaths() {
		if path != "spec" && !strings.HasPrefix(path, "spec.") {
			return p.zero, &resource.Error{Code: resource.Invalid, Kind: p.kind, Name: name, Field: path, Reason: "FIELD_READ_ONLY", Message: "can't be changed here", Remedy: "labels and annotations are the VM's"}
		}
	}
	if len(mask.GetPaths()) == 0 {
		mask = &fieldmaskpb.FieldMask{Paths: []string{"spec"}}
	}
	ctx, done, err := p.m.exclusive(ctx)
	if err != nil {
		return p.zero, err
	}
	defer done()
	vm, err := p.m.changeVM(ctx, vmName, validateOnly, func(vm *v1.VM) error {
		x, ok := p.find(vm, name)
		if !ok {
			return notFound(p.kind, name)
		}
		x = proto.CloneOf(x)
		if err := merge(p.kind, x, patch, mask); err != nil {
			return err
		}
		p.put(vm, part, x)
		return nil
	})
	if err != nil {
		return p.zero, err
	}
	x, _ := p.find(vm, name)
	return x, nil
}

// Delete takes a part out of its VM; a disk's data goes with it.
func (p *Parts[T]) Delete(ctx context.Context, name string, revision int64) (T, error) {
	vmName, part, err := p.split(name)
	if err != nil {
		return p.zero, err
	}
	var gone T
	_, err = p.m.changeVM(ctx, vmName, false, func(vm *v1.VM) error {
		x, ok := p.find(vm, name)
		if !ok {
			return notFound(p.kind, name)
		}
		if err := atRevision(p.kind, vm.Meta, revision); err != nil {
			return err
		}
		gone = proto.CloneOf(x)
		p.cut(vm, part)
		return nil
	})
	return gone, err
}
