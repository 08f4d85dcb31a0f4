package manager

import (
	"context"
	"fmt"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"

	"google.golang.org/protobuf/types/known/durationpb"
)

// The data protection API: a host does it all, the manager says who may and where.

// Lifetimes of points and imports for other tools.
const (
	defaultLifetime = 24 * time.Hour
	longestLifetime = 7 * 24 * time.Hour
)

func lifetime(vm string, d *durationpb.Duration) (*durationpb.Duration, error) {
	x := d.AsDuration()
	if d == nil || x == 0 {
		return durationpb.New(defaultLifetime), nil
	}
	if x < time.Minute || x > longestLifetime {
		return nil, &resource.Error{Code: resource.Invalid, Kind: resource.KindVM, Name: vm, Field: "lifetime", Reason: "OUT_OF_RANGE", Message: fmt.Sprintf("%v; must be 1m to %v", x, longestLifetime)}
	}
	return durationpb.New(x), nil
}

// nodePoint is what every call about a point says.
func nodePoint(vm *v1.VM) *v1.NodePointRequest {
	return &v1.NodePointRequest{Operation: resource.NewUID(), Vm: vm.Meta.Name, Uid: vm.Meta.Uid, Epoch: vm.Status.Epoch}
}

// partOf splits "VM/ID" of a point or an import.
func partOf(name string) (vm, id string, err error) {
	vm, id, ok := strings.Cut(name, "/")
	if !ok || !resource.ValidName(vm) || id == "" || len(id) > 64 {
		return "", "", &resource.Error{Code: resource.Invalid, Kind: resource.KindVM, Name: name, Field: "name", Reason: "NAME_INVALID", Message: "must be VM/ID"}
	}
	return vm, id, nil
}

// CreateProtectionPoint makes a consistent point of a VM that other tools read.
func (m *Manager) CreateProtectionPoint(ctx context.Context, req *v1.CreateProtectionPointRequest) (*v1.ProtectionPoint, error) {
	vm, node, err := m.At(req.Vm)
	if err != nil {
		return nil, err
	}
	ask := nodePoint(vm)
	ask.Quiesce = req.Quiesce
	if ask.Lifetime, err = lifetime(req.Vm, req.Lifetime); err != nil {
		return nil, err
	}
	res, err := node.CreatePoint(ctx, ask)
	if err != nil {
		return nil, atHost(vm, err)
	}
	p := res.GetPoint()
	if p == nil {
		return nil, fmt.Errorf("host %s made no point", vm.Status.Owner)
	}
	p.Name, p.Ca = vm.Meta.Name+"/"+p.Id, string(m.CAPEM())
	if p.Vm == nil {
		p.Vm = definitionOf(vm)
	}
	m.event(v1.Severity_SEVERITY_INFO, resource.KindVM, vm.Meta.Name, "POINT_OPENED", "for other tools, until "+p.ExpireTime.AsTime().Format(time.RFC3339))
	return p, nil
}

// ChangedExtents tells what changed since an earlier point.
func (m *Manager) ChangedExtents(ctx context.Context, req *v1.ChangedExtentsRequest) (*v1.ChangedExtentsResponse, error) {
	name, id, err := partOf(req.Point)
	if err != nil {
		return nil, err
	}
	vm, node, err := m.At(name)
	if err != nil {
		return nil, err
	}
	ask := nodePoint(vm)
	ask.Id, ask.Disk, ask.Since, ask.Offset, ask.Limit = id, req.Disk, req.Since, req.Offset, req.Limit
	res, err := node.ChangedExtents(ctx, ask)
	if err != nil {
		return nil, atHost(vm, err)
	}
	if res.GetChanged() == nil {
		return &v1.ChangedExtentsResponse{}, nil
	}
	return res.Changed, nil
}

// OpenImport makes a disk of a VM that is off writable for other tools.
func (m *Manager) OpenImport(ctx context.Context, req *v1.OpenImportRequest) (*v1.Import, error) {
	vm, node, err := m.At(req.Vm)
	if err != nil {
		return nil, err
	}
	if vm.Spec.Power != v1.Power_POWER_OFF || isUp(vm.GetStatus().GetPhase()) {
		return nil, &resource.Error{Code: resource.Precondition, Kind: resource.KindVM, Name: req.Vm, Reason: "VM_NOT_OFF", Message: "is not off, so its disk can't be written from outside", Remedy: "stop it first: drover vm stop " + req.Vm}
	}
	if diskOf(vm, req.Disk) == nil {
		return nil, &resource.Error{Code: resource.NotFound, Kind: resource.KindDisk, Name: req.Vm + "/" + req.Disk, Reason: "NOT_FOUND", Message: "does not exist"}
	}
	ask := nodePoint(vm)
	ask.Disk, ask.Import = req.Disk, true
	if ask.Lifetime, err = lifetime(req.Vm, req.Lifetime); err != nil {
		return nil, err
	}
	res, err := node.OpenImport(ctx, ask)
	if err != nil {
		return nil, atHost(vm, err)
	}
	i := res.GetImport()
	if i == nil {
		return nil, fmt.Errorf("host %s opened nothing", vm.Status.Owner)
	}
	if !strings.HasPrefix(i.Name, vm.Meta.Name+"/") {
		i.Name = vm.Meta.Name + "/" + i.Name
	}
	i.Ca = string(m.CAPEM())
	return i, nil
}

// ReleaseProtection ends a point or an import.
func (m *Manager) ReleaseProtection(ctx context.Context, req *v1.ReleaseRequest) (*v1.ReleaseResponse, error) {
	name, id, err := partOf(req.Name)
	if err != nil {
		return nil, err
	}
	vm, node, err := m.At(name)
	if err != nil {
		return nil, err
	}
	ask := nodePoint(vm)
	ask.Id = id
	if _, err := node.ReleasePoint(ctx, ask); err != nil {
		return nil, atHost(vm, err)
	}
	return &v1.ReleaseResponse{}, nil
}

// definitionOf is a VM as it goes into a restore point: what people wrote, not how it was just then.
func definitionOf(vm *v1.VM) *v1.VM {
	d := clone(vm)
	d.Status = nil
	d.Meta.Revision = 0
	d.Spec.StopGrace = nil
	return d
}
