package manager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/resource"
	"drover/internal/task"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"
)

// resolvePoint is the full name of "REPOSITORY/ID", "REPOSITORY/VM" or "VM": of the latter two the newest whole point.
func (m *Manager) resolvePoint(name string) (string, error) {
	if _, ok := m.points.view.Get(name); ok {
		return name, nil
	}
	repo, vm, two := strings.Cut(name, "/")
	if !two {
		repo, vm = "", name
	}
	found, damaged := "", ""
	for _, p := range m.points.of(repo, "") {
		if p.Status.Vm != vm && p.Status.VmUid != vm {
			continue
		}
		if damaged = p.Meta.Name; len(p.Status.Damage) == 0 {
			found = p.Meta.Name
		}
	}
	switch {
	case found != "":
		return found, nil
	case damaged != "":
		return "", &resource.Error{Code: resource.Precondition, Kind: resource.KindPoint, Name: name, Reason: "POINT_DAMAGED", Message: "all restore points of it are damaged", Remedy: "name one to restore what can be read of it: " + damaged}
	}
	return "", &resource.Error{Code: resource.NotFound, Kind: resource.KindPoint, Name: name, Reason: "NOT_FOUND", Message: "there is no restore point of that name, and none of such a VM", Remedy: "see: drover backup list"}
}

// definition is the VM in a point's description.
func definition(p *backup.Point) (*v1.VM, error) {
	vm := &v1.VM{}
	if len(p.Definition) == 0 {
		return nil, &resource.Error{Code: resource.Precondition, Kind: resource.KindPoint, Name: p.ID, Reason: "NO_DEFINITION", Message: "holds no definition of its VM, so only its disks can be restored"}
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(p.Definition, vm); err != nil {
		return nil, fmt.Errorf("definition in restore point %s: %w", p.ID, err)
	}
	if vm.Meta == nil {
		vm.Meta = &v1.Meta{Name: p.VM}
	}
	if vm.Spec == nil {
		vm.Spec = &v1.VMSpec{}
	}
	return vm, nil
}

// imagesOf are the kernel images and CD-ROMs that a definition needs and the library has, with their sums.
func (m *Manager) imagesOf(vm *v1.VM) map[string]string {
	sums := map[string]string{}
	add := func(name string) {
		if i, ok := m.Images.cache.Get(name); ok && i.GetStatus().GetSha256() != "" {
			sums[name] = i.Status.Sha256
		}
	}
	add(vm.Spec.KernelImage)
	for _, c := range vm.Spec.Cdroms {
		add(c.Image)
	}
	return sums
}

// restored is the VM that a restore under another name makes: off, with blank disks of the point's sizes.
func (m *Manager) restored(p *v1.RestorePoint, full *backup.Point, req *v1.RestoreRequest) (*v1.VM, error) {
	def, err := definition(full)
	if err != nil {
		return nil, err
	}
	s := def.Spec
	s.Power, s.StopGrace, s.CloneFrom, s.Template = v1.Power_POWER_OFF, nil, nil, false
	size := map[string]int64{}
	for _, d := range p.Status.Disks {
		size[d.Name] = d.SizeBytes
	}
	var disks []*v1.DiskSpec
	for _, d := range s.Disks {
		if size[d.Name] == 0 || len(req.Disks) > 0 && !slices.Contains(req.Disks, d.Name) {
			continue
		}
		d.Image, d.Datastore, d.SizeBytes = "", req.Datastore, size[d.Name]
		delete(size, d.Name)
		disks = append(disks, d)
	}
	s.Disks = disks
	s.Cdroms = slices.DeleteFunc(s.Cdroms, func(c *v1.CDROMSpec) bool {
		_, have := m.Images.cache.Get(c.Image)
		return c.Image != "" && !have
	})
	var nics []*v1.NICSpec
	for _, n := range s.Nics {
		if to, ok := req.Networks[n.Name]; ok {
			if to == "" {
				n.LinkDown = true // it stays, as the guest knows it, with its cable out
			} else {
				n.Network = to
			}
		}
		if !req.KeepMacs {
			n.Mac = ""
		}
		nics = append(nics, n)
	}
	s.Nics = nics
	if s.Placement != nil {
		s.Placement = &v1.PlacementSpec{Site: s.Placement.Site, HostLabels: s.Placement.HostLabels}
	}
	if req.Placement != nil {
		s.Placement = req.Placement
	}
	return &v1.VM{Meta: &v1.Meta{Name: req.Name, Labels: def.Meta.Labels, Annotations: def.Meta.Annotations}, Spec: s}, nil
}

// RestorePoint begins a restore. What can be checked is checked before there is a task.
func (m *Manager) RestorePoint(ctx context.Context, req *v1.RestoreRequest) (*v1.Task, error) {
	name, err := m.resolvePoint(req.Point)
	if err != nil {
		return nil, err
	}
	p, repo, err := m.point(name)
	if err != nil {
		return nil, err
	}
	if _, err := m.readyRepository(repo.Meta.Name, false); err != nil {
		return nil, err
	}
	req = clone(req)
	bad := func(reason, field, msg string) error {
		return &resource.Error{Code: resource.Invalid, Kind: resource.KindPoint, Name: name, Field: field, Reason: reason, Message: msg}
	}
	for _, d := range req.Disks {
		if !slices.ContainsFunc(p.Status.Disks, func(x *v1.PointDisk) bool { return x.Name == d }) {
			return nil, bad("DISK_UNKNOWN", "disks", fmt.Sprintf("has no disk %q", d))
		}
	}
	switch {
	case req.Name != "" && req.Vm != "":
		return nil, bad("RESTORE_INVALID", "vm", "disks are added to a VM that is there, or a new VM is made, not both")
	case req.Memory && !p.Status.Memory:
		return nil, bad("NO_MEMORY", "memory", "holds no memory")
	case req.Memory && (req.Vm != "" || len(req.Disks) > 0):
		return nil, bad("RESTORE_INVALID", "memory", "memory is restored with all of its disks only")
	case req.Vm != "" && (req.Instant || req.Start):
		return nil, bad("RESTORE_INVALID", "vm", "disks that are added to a VM are whole before it starts")
	}
	if req.Instant {
		req.Start = true
	}
	target := req.Name
	switch {
	case req.Name != "":
		full, err := m.openPoint(ctx, repo, p.Status.Id)
		if err != nil {
			return nil, err
		}
		vm, err := m.restored(p, full, req)
		if err != nil {
			return nil, err
		}
		if _, err := m.createVM(ctx, vm, true, ""); err != nil {
			return nil, err
		}
	case req.Vm != "":
		target = req.Vm
		if err := m.canTake(req.Vm, false); err != nil {
			return nil, err
		}
	default:
		if target, err = m.inPlace(p, req); err != nil {
			return nil, err
		}
		if err := m.canTake(target, req.Force); err != nil {
			return nil, err
		}
	}
	return m.submitWith(ctx, taskRestore, resource.KindVM, target, &v1.RestoreArguments{Request: req, Point: name})
}

// inPlace is the VM that a point is of, if its disks can be put back.
func (m *Manager) inPlace(p *v1.RestorePoint, req *v1.RestoreRequest) (string, error) {
	all, _ := m.VMs.cache.List()
	i := slices.IndexFunc(all, func(vm *v1.VM) bool { return vm.Meta.Uid == p.Status.VmUid })
	if i < 0 {
		return "", &resource.Error{Code: resource.Precondition, Kind: resource.KindVM, Name: p.Status.Vm, Reason: "VM_GONE", Message: "does not exist any more, so there is no place to restore in", Remedy: "restore it as a new VM: --name " + p.Status.Vm}
	}
	vm := all[i]
	for _, d := range p.Status.Disks {
		if len(req.Disks) > 0 && !slices.Contains(req.Disks, d.Name) {
			continue
		}
		have := diskOf(vm, d.Name)
		switch {
		case have == nil:
			return "", &resource.Error{Code: resource.Precondition, Kind: resource.KindVM, Name: vm.Meta.Name, Reason: "DISK_GONE", Message: fmt.Sprintf("has no disk %q any more", d.Name), Remedy: "restore the others by name, or as a new VM, or add the disk to the VM: --disks " + d.Name + " --vm " + vm.Meta.Name}
		case have.SizeBytes != 0 && have.SizeBytes < d.SizeBytes:
			return "", &resource.Error{Code: resource.Precondition, Kind: resource.KindVM, Name: vm.Meta.Name, Reason: "DISK_TOO_SMALL", Message: fmt.Sprintf("disk %q has %d bytes, in the restore point it has %d", d.Name, have.SizeBytes, d.SizeBytes), Remedy: "restore as a new VM"}
		}
	}
	return vm.Meta.Name, nil
}

// canTake says whether a VM can have its disks changed from outside.
func (m *Manager) canTake(name string, force bool) error {
	vm, err := m.VMs.lookup(name)
	if err != nil {
		return err
	}
	bad := func(reason, msg, remedy string) error {
		return &resource.Error{Code: resource.Precondition, Kind: resource.KindVM, Name: name, Reason: reason, Message: msg, Remedy: remedy}
	}
	switch {
	case vm.Meta.DeleteTime != nil:
		return bad("DELETING", "is being deleted", "")
	case vm.GetStatus().GetOwner() == "":
		return bad("NO_OWNER", "no host holds it", "restore it as a new VM")
	case vm.Spec.Template:
		return bad("IS_TEMPLATE", "is a template, which never changes", "")
	case !force && (vm.Spec.Power != v1.Power_POWER_OFF || isUp(vm.GetStatus().GetPhase())):
		return bad("VM_NOT_OFF", "is not off", "stop it: drover vm stop "+name+"; or restore with --force, which cuts its power")
	case len(m.clonesOf(name, "")) > 0:
		return hasClones(resource.KindVM, name, m.clonesOf(name, ""))
	}
	return nil
}

func (m *Manager) doRestore(ctx context.Context, r *task.Run) error {
	var args v1.RestoreArguments
	if err := arguments(r, &args); err != nil {
		return err
	}
	req, name := args.Request, r.Task.Spec.Target
	p, repo, err := m.point(args.Point)
	if err != nil {
		return err
	}
	disks, err := m.takeVM(ctx, r, p, repo, req)
	if err != nil {
		return err
	}
	err = r.Step(ctx, "restore from "+args.Point, func(ctx context.Context) error {
		return m.fill(ctx, r, repo, p, req, disks)
	})
	if err != nil {
		return err
	}
	how := "restored"
	if req.Instant {
		how = "restored while it ran"
	}
	if err := m.finishRestore(ctx, r, name, req); err != nil {
		return err
	}
	m.event(v1.Severity_SEVERITY_INFO, resource.KindVM, name, "VM_RESTORED", how+" from "+args.Point+", "+p.Status.Time.AsTime().Format(time.RFC3339))
	return nil
}

// takeVM makes the VM, or takes the one that is there, so that it is off and the task's alone. It returns which disk goes where.
func (m *Manager) takeVM(ctx context.Context, r *task.Run, p *v1.RestorePoint, repo *v1.Repository, req *v1.RestoreRequest) ([]*v1.NodeRestoreDisk, error) {
	name := r.Task.Spec.Target
	if req.Name != "" {
		err := r.Step(ctx, "make the VM", func(ctx context.Context) error {
			if vm, err := m.VMs.lookup(name); err == nil && vm.GetStatus().GetBusy() == r.Task.Meta.Name {
				return nil // an earlier run came as far as this
			}
			full, err := m.openPoint(ctx, repo, p.Status.Id)
			if err != nil {
				return err
			}
			vm, err := m.restored(p, full, req)
			if err != nil {
				return err
			}
			_, err = m.createVM(ctx, vm, false, r.Task.Meta.Name)
			return err
		})
		if err != nil {
			return nil, err
		}
		if err := r.SetNote(ctx, "made", "yes"); err != nil {
			return nil, err
		}
	}
	names := req.Disks
	if len(names) == 0 {
		for _, d := range p.Status.Disks {
			names = append(names, d.Name)
		}
	}
	var disks []*v1.NodeRestoreDisk
	for _, n := range names {
		disks = append(disks, &v1.NodeRestoreDisk{From: n, To: n})
	}
	if req.Vm != "" {
		if err := m.addDisks(ctx, r, p, req, disks); err != nil {
			return nil, err
		}
	}
	if _, err := m.claimVM(ctx, name, r.Task.Meta.Name); err != nil {
		return nil, err
	}
	if r.Note("ready") != "" {
		return disks, nil // it runs already, from the repository
	}
	if req.Force {
		err := m.setPower(ctx, name, r.Task.Meta.Name, v1.Power_POWER_OFF)
		if err != nil {
			return nil, err
		}
	}
	return disks, m.awaitOff(ctx, name)
}

// addDisks gives a VM blank disks for those of a point; one whose name is taken gets another. The names are noted, so that it is done once.
func (m *Manager) addDisks(ctx context.Context, r *task.Run, p *v1.RestorePoint, req *v1.RestoreRequest, disks []*v1.NodeRestoreDisk) error {
	return r.Step(ctx, "add the disks", func(ctx context.Context) error {
		for _, d := range disks {
			d.To = cmp.Or(r.Note("disk."+d.From), d.To)
		}
		own, done, err := m.exclusive(ctx)
		if err != nil {
			return err
		}
		defer done()
		vm, err := m.changeVM(own, req.Vm, false, func(vm *v1.VM) error {
			for _, d := range disks {
				if r.Note("disk."+d.From) != "" && diskOf(vm, d.To) != nil {
					continue // an earlier run added it
				}
				to := d.From
				for i := 1; diskOf(vm, to) != nil; i++ {
					to = fmt.Sprintf("%s-r%d", d.From[:min(len(d.From), 56)], i)
				}
				d.To = to
				size := int64(0)
				for _, x := range p.Status.Disks {
					if x.Name == d.From {
						size = x.SizeBytes
					}
				}
				vm.Spec.Disks = append(vm.Spec.Disks, &v1.DiskSpec{Name: to, SizeBytes: size, Datastore: req.Datastore})
			}
			return nil
		})
		if err != nil && !errors.Is(err, errSame) {
			return err
		}
		for _, d := range disks {
			if diskOf(vm, d.To) == nil {
				return fmt.Errorf("disk %s was not added", d.To)
			}
			if err := r.SetNote(own, "disk."+d.From, d.To); err != nil {
				return err
			}
		}
		return nil
	})
}

// setPower changes the wish of a VM that a task has to itself.
func (m *Manager) setPower(ctx context.Context, name, taskName string, to v1.Power) error {
	ctx, done, err := m.exclusive(ctx)
	if err != nil {
		return err
	}
	defer done()
	_, err = m.VMs.mutate(ctx, name, func(vm *v1.VM) error { return m.wishPower(vm, taskName, to) })
	return err
}

func (m *Manager) wishPower(vm *v1.VM, taskName string, to v1.Power) error {
	if vm.GetStatus().GetBusy() != taskName {
		return &resource.Error{Code: resource.Conflict, Kind: resource.KindVM, Name: vm.Meta.Name, Reason: "VM_BUSY", Message: "was taken from the task"}
	}
	if vm.Spec.Power == to {
		return errSame
	}
	vm.Spec.Power, vm.Spec.StopGrace = to, nil
	vm.Meta.Generation++
	if to == v1.Power_POWER_OFF {
		vm.Spec.StopGrace = durationpb.New(0)
		return nil
	}
	return m.admit(vm)
}

// awaitOff waits until a VM is off with all its disks made.
func (m *Manager) awaitOff(ctx context.Context, name string) error {
	sub := m.VMs.cache.Subscribe(m.VMs.cache.Revision())
	for {
		vm, err := m.VMs.lookup(name)
		if err != nil {
			return err
		}
		if vm.GetStatus().GetObservedGeneration() >= vm.Meta.Generation {
			switch vm.Status.Phase {
			case v1.VMPhase_VM_PHASE_OFF, v1.VMPhase_VM_PHASE_CRASHED:
				return nil
			case v1.VMPhase_VM_PHASE_FAILED:
				if vm.GetStatus().GetBusy() != "" && len(vm.Status.Disks) == 0 {
					return &resource.Error{Code: resource.Precondition, Kind: resource.KindVM, Name: name, Reason: "VM_FAILED", Message: vm.Status.Message}
				}
				return nil // it can't start as it is, which a restore may mend
			}
		}
		if _, err := sub.Next(ctx); err != nil {
			return context.Cause(ctx)
		}
	}
}

// Waits between tries of an instant restore whose VM runs already: it must not be given up.
const (
	againMin = 2 * time.Second
	againMax = time.Minute
)

// fill has the host fill the disks. When the VM runs from the repository already, whatever is cut is begun again until it is whole or cancelled.
func (m *Manager) fill(ctx context.Context, r *task.Run, repo *v1.Repository, p *v1.RestorePoint, req *v1.RestoreRequest, disks []*v1.NodeRestoreDisk) error {
	for wait := againMin; ; wait = min(2*wait, againMax) {
		err := m.fillOnce(ctx, r, repo, p, req, disks)
		if err == nil || ctx.Err() != nil || r.Note("ready") == "" {
			return err
		}
		switch resource.CodeOf(err) {
		case resource.NotFound, resource.Invalid, resource.Precondition:
			return err
		}
		r.Log("the restore was cut, and goes on: %v", err)
		select {
		case <-m.cfg.Clock.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (m *Manager) fillOnce(ctx context.Context, r *task.Run, repo *v1.Repository, p *v1.RestorePoint, req *v1.RestoreRequest, disks []*v1.NodeRestoreDisk) error {
	vm, node, err := m.At(r.Task.Spec.Target)
	if err != nil {
		return err
	}
	t, release, err := m.target(ctx, repo, m.hostUID(vm.Status.Owner), p, req.BandwidthLimit)
	if err != nil {
		return err
	}
	defer release()
	st, err := node.Restore(ctx, &v1.NodeRestoreRequest{
		Operation: r.Task.Meta.Name, Vm: vm.Meta.Name, Uid: vm.Meta.Uid, Epoch: vm.Status.Epoch, Source: t, Point: p.Status.Id, Disks: disks,
		Instant: req.Instant, Files: req.Vm == "" && len(req.Disks) == 0, Memory: req.Memory, BandwidthLimit: req.BandwidthLimit,
	})
	if err != nil {
		return atHost(vm, err)
	}
	defer st.Close()
	done, step := false, ""
	for st.Receive() {
		x := clone(st.Msg())
		tell(ctx, r, &step, x)
		if x.Ready && r.Note("ready") == "" {
			if err := r.SetNote(ctx, "ready", "yes"); err != nil {
				return err
			}
			if err := m.startReady(ctx, r, vm.Meta.Name); err != nil {
				return err
			}
		}
		done = done || x.Done
	}
	if err := st.Err(); err != nil {
		return atHost(vm, err)
	}
	if !done {
		return fmt.Errorf("host %s ended the restore without a result", vm.Status.Owner)
	}
	return nil
}

// startReady starts a VM whose disks can be read from the repository.
func (m *Manager) startReady(ctx context.Context, r *task.Run, name string) error {
	err := m.setPower(ctx, name, r.Task.Meta.Name, v1.Power_POWER_ON)
	if err == nil {
		r.Log("the VM starts; its disks fill while it runs")
		m.event(v1.Severity_SEVERITY_INFO, resource.KindVM, name, "VM_INSTANT", "runs from the repository while its disks fill")
		return nil
	}
	if resource.CodeOf(err) == resource.Exhausted {
		r.Log("the VM can't start yet: %v", err) // its disks fill all the same
		return nil
	}
	return err
}

func (m *Manager) finishRestore(ctx context.Context, r *task.Run, name string, req *v1.RestoreRequest) error {
	own, done, err := m.exclusive(ctx)
	if err != nil {
		return err
	}
	defer done()
	start := (req.Start || req.Memory) && !req.Instant
	err = m.releaseVM(own, name, r.Task.Meta.Name, func(vm *v1.VM) error {
		if req.Vm == "" {
			vm.Status.CurrentSnapshot = "" // the disks descend from no snapshot any more
		}
		if !start || vm.Spec.Power == v1.Power_POWER_ON {
			return nil
		}
		vm.Spec.Power, vm.Spec.StopGrace = v1.Power_POWER_ON, nil
		vm.Meta.Generation++
		return m.admit(vm)
	})
	if start && resource.CodeOf(err) == resource.Exhausted {
		return errors.Join(m.releaseVM(own, name, r.Task.Meta.Name, nil), fmt.Errorf("the VM is restored, but can't be started: %w", err))
	}
	return err
}

// undoRestore deletes a VM that was made for the restore and never ran; another keeps the disks that it had, but for those that were whole.
func (m *Manager) undoRestore(ctx context.Context, r *task.Run) error {
	name := r.Task.Spec.Target
	m.event(v1.Severity_SEVERITY_ERROR, resource.KindVM, name, "RESTORE_FAILED", failure(r))
	vm, err := m.VMs.lookup(name)
	if err != nil {
		return nil
	}
	if vm.GetStatus().GetBusy() != r.Task.Meta.Name {
		return nil
	}
	if r.Note("made") == "" || r.Note("ready") != "" {
		return m.release(ctx, r)
	}
	_, err = m.DeleteVM(ctx, name, 0, true)
	return errors.Join(err, m.release(ctx, r))
}
