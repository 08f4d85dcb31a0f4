package manager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/auth"
	"drover/internal/resource"
	"drover/internal/store"
	"drover/internal/task"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
)

// Kinds of tasks.
const (
	taskSnapshotCreate = "snapshot.create"
	taskSnapshotRevert = "snapshot.revert"
	taskSnapshotDelete = "snapshot.delete"
	taskImageImport    = "image.import"
)

func (m *Manager) handlers() map[string]task.Handler {
	h := map[string]task.Handler{
		taskSnapshotCreate: {Do: m.doSnapshot, Undo: m.undoSnapshot},
		taskSnapshotRevert: {Do: m.doRevert, Undo: m.undoRevert},
		taskSnapshotDelete: {Do: m.doDeleteSnapshot, Undo: m.undoDeleteSnapshot},
		taskImageImport:    {Do: m.doImport, Undo: m.undoImport},
	}
	maps.Copy(h, m.backupHandlers())
	return h
}

// submit begins a task for whoever asks.
func (m *Manager) submit(ctx context.Context, kind, targetKind, target string) (*v1.Task, error) {
	by, _ := auth.FromContext(ctx)
	t, err := m.tasks.Submit(ctx, &v1.TaskSpec{Kind: kind, TargetKind: targetKind, Target: target, Principal: by.String()})
	if err != nil {
		return nil, m.Tasks.translate(err, "")
	}
	return t, m.Tasks.cache.WaitRevision(ctx, t.Meta.Revision)
}

// CancelTask asks a task to stop and undo.
func (m *Manager) CancelTask(ctx context.Context, name string) (*v1.Task, error) {
	if _, err := m.Tasks.lookup(name); err != nil {
		return nil, err
	}
	t, err := m.tasks.Cancel(ctx, name)
	if err != nil {
		return nil, m.Tasks.translate(err, name)
	}
	return t, m.Tasks.cache.WaitRevision(ctx, t.Meta.Revision)
}

func (m *Manager) snapshotsOf(vm string) []*v1.Snapshot {
	var list []*v1.Snapshot
	all, _ := m.Snapshots.cache.List()
	for _, s := range all {
		if strings.HasPrefix(s.Meta.Name, vm+"/") {
			list = append(list, s)
		}
	}
	return list
}

// claimVM gives a VM to a task alone, when the one before is done with it. A task that was cut off finds that it has it already.
func (m *Manager) claimVM(ctx context.Context, name, taskName string) (*v1.VM, error) {
	sub := m.VMs.cache.Subscribe(m.VMs.cache.Revision())
	for {
		vm, err := m.tryClaim(ctx, name, taskName)
		if !errors.Is(err, errBusy) {
			return vm, err
		}
		if _, err := sub.Next(ctx); err != nil {
			return nil, context.Cause(ctx)
		}
	}
}

var errBusy = errors.New("another task has the VM to itself")

func (m *Manager) tryClaim(ctx context.Context, name, taskName string) (*v1.VM, error) {
	return m.VMs.mutate(ctx, name, func(vm *v1.VM) error {
		switch {
		case vm.Meta.DeleteTime != nil:
			return &resource.Error{Code: resource.Precondition, Kind: resource.KindVM, Name: name, Reason: "DELETING", Message: "is being deleted"}
		case vm.GetStatus().GetOwner() == "":
			return &resource.Error{Code: resource.Precondition, Kind: resource.KindVM, Name: name, Reason: "NO_OWNER", Message: "no host holds it"}
		case vm.Status.Busy == taskName:
			return errSame
		case vm.Status.Busy != "":
			return errBusy
		}
		vm.Status.Busy = taskName
		return nil
	})
}

// releaseVM ends claimVM. change may alter the VM at the same time; nil changes nothing else.
func (m *Manager) releaseVM(ctx context.Context, name, taskName string, change func(*v1.VM) error) error {
	_, err := m.VMs.mutate(ctx, name, func(vm *v1.VM) error {
		if vm.GetStatus().GetBusy() != taskName {
			return errSame
		}
		vm.Status.Busy = ""
		if change != nil {
			return change(vm)
		}
		return nil
	})
	if resource.CodeOf(err) == resource.NotFound {
		return nil
	}
	return err
}

func (m *Manager) release(ctx context.Context, r *task.Run) error {
	vm, _, _ := resource.Part(r.Task.Spec.Target)
	return m.releaseVM(ctx, vm, r.Task.Meta.Name, nil)
}

// CreateSnapshot stores the wish and begins a task that takes it.
func (m *Manager) CreateSnapshot(ctx context.Context, s *v1.Snapshot, validateOnly bool) (*v1.Snapshot, error) {
	if err := needMeta(resource.KindSnapshot, s); err != nil {
		return nil, err
	}
	s = clone(s)
	if s.Spec == nil {
		s.Spec = &v1.SnapshotSpec{}
	}
	if err := resource.CheckSnapshot(s); err != nil {
		return nil, err
	}
	ctx, done, err := m.exclusive(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	name, _, _ := resource.Part(s.Meta.Name)
	vm, err := m.VMs.lookup(name)
	if err != nil {
		return nil, err
	}
	bad := func(reason, msg, remedy string) error {
		return &resource.Error{Code: resource.Precondition, Kind: resource.KindVM, Name: name, Reason: reason, Message: msg, Remedy: remedy}
	}
	if _, taken := m.Snapshots.cache.Get(s.Meta.Name); taken {
		return nil, m.Snapshots.translate(store.ErrExists, s.Meta.Name)
	}
	switch {
	case vm.Meta.DeleteTime != nil:
		return nil, bad("DELETING", "is being deleted", "")
	case vm.GetStatus().GetOwner() == "":
		return nil, bad("NO_OWNER", "no host holds it", "")
	case vm.Spec.Template:
		return nil, bad("IS_TEMPLATE", "is a template, which never changes", "")
	case len(vm.Spec.Disks) == 0:
		return nil, bad("NO_DISKS", "has no disks, so there is nothing to snapshot", "add one: drover vm disk add "+name+" data 1G")
	case s.Spec.Memory && vm.GetStatus().GetPhase() != v1.VMPhase_VM_PHASE_RUNNING && vm.GetStatus().GetPhase() != v1.VMPhase_VM_PHASE_PAUSED:
		return nil, bad("VM_NOT_RUNNING", "has no memory to keep: it doesn't run", "leave memory out")
	case s.Spec.Quiesce && !vm.GetStatus().GetGuest().GetAgent():
		return nil, bad("NO_GUEST_AGENT", "its guest agent doesn't answer, so nothing can be frozen", "leave quiesce out, or start qemu-guest-agent in the guest")
	case len(m.snapshotsOf(name)) >= 64:
		return nil, bad("TOO_MANY", "has 64 snapshots", "delete some: each makes the disks slower")
	}
	s.Status = &v1.SnapshotStatus{Phase: v1.SnapshotPhase_SNAPSHOT_PHASE_CREATING}
	if validateOnly {
		return s, nil
	}
	made, err := m.Snapshots.create(ctx, m.store, s)
	if err != nil {
		return nil, err
	}
	t, err := m.submit(ctx, taskSnapshotCreate, resource.KindSnapshot, made.Meta.Name)
	if err != nil {
		return nil, errors.Join(err, m.Snapshots.remove(ctx, made.Meta.Name, 0))
	}
	return m.Snapshots.mutate(ctx, made.Meta.Name, func(s *v1.Snapshot) error {
		s.Status.Task = t.Meta.Name
		return nil
	})
}

// stream is what a host sends while it works on a snapshot.
type stream func(droverv1connect.NodeServiceClient, context.Context, *v1.NodeSnapshotRequest) (*connect.ServerStreamForClient[v1.NodeProgress], error)

// atNode has a VM's host do something to a snapshot and follows it. The task's name is the operation's ID: a second call does it no second time.
func (m *Manager) atNode(ctx context.Context, r *task.Run, vm *v1.VM, req *v1.NodeSnapshotRequest, call stream) (*v1.NodeProgress, error) {
	node, err := m.nodes.of(vm.Status.Owner)
	if err != nil {
		return nil, err
	}
	_, snap, _ := resource.Part(r.Task.Spec.Target)
	req.Operation = cmp.Or(req.Operation, r.Task.Meta.Name)
	req.Vm, req.Uid, req.Epoch, req.Snapshot = vm.Meta.Name, vm.Meta.Uid, vm.Status.Epoch, snap
	st, err := call(node, ctx, req)
	if err != nil {
		return nil, atHost(vm, err)
	}
	defer st.Close()
	var last *v1.NodeProgress
	for st.Receive() {
		last = clone(st.Msg())
		r.Progress(ctx, last.Progress)
		if last.Step != "" {
			r.Log("%s", last.Step)
		}
	}
	if err := st.Err(); err != nil {
		return nil, atHost(vm, err)
	}
	if !last.GetDone() {
		return nil, fmt.Errorf("host %s ended the operation without a result", vm.Status.Owner)
	}
	return last, nil
}

func (m *Manager) doSnapshot(ctx context.Context, r *task.Run) error {
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
	// What the disks belong to is the spec as it is now that nobody else can change it.
	err = r.Step(ctx, "note what the VM is", func(ctx context.Context) error {
		spec, err := proto.MarshalOptions{Deterministic: true}.Marshal(vm.Spec)
		if err != nil {
			return err
		}
		_, err = m.Snapshots.mutate(ctx, name, func(s *v1.Snapshot) error {
			s.Status.VmSpec = spec
			return nil
		})
		return err
	})
	if err != nil {
		return err
	}
	var size int64
	err = r.Step(ctx, "take it", func(ctx context.Context) error {
		last, err := m.atNode(ctx, r, vm, &v1.NodeSnapshotRequest{Memory: snap.Spec.Memory, Quiesce: snap.Spec.Quiesce}, droverv1connect.NodeServiceClient.CreateSnapshot)
		if err != nil {
			return err
		}
		size = last.MemorySizeBytes
		return r.SetNote(ctx, "memory", strconv.FormatInt(size, 10))
	})
	if err != nil {
		return err
	}
	size, _ = strconv.ParseInt(r.Note("memory"), 10, 64)
	parent := vm.Status.CurrentSnapshot
	if parent == name {
		parent = snap.Status.Parent // an earlier run came as far as this
	}
	_, err = m.Snapshots.mutate(ctx, name, func(s *v1.Snapshot) error {
		s.Status.Phase, s.Status.Message, s.Status.Parent, s.Status.MemorySizeBytes = v1.SnapshotPhase_SNAPSHOT_PHASE_READY, "", parent, size
		s.Status.TakenTime = stamp(m.cfg.Clock.Now())
		return nil
	})
	if err != nil {
		return err
	}
	return m.releaseVM(ctx, vmName, r.Task.Meta.Name, func(vm *v1.VM) error {
		vm.Status.CurrentSnapshot = name
		return nil
	})
}

// undoSnapshot leaves a failed snapshot behind for people to read why, and nothing on the host.
func (m *Manager) undoSnapshot(ctx context.Context, r *task.Run) error {
	name := r.Task.Spec.Target
	vmName, _, _ := resource.Part(name)
	var errs []error
	if vm, err := m.VMs.lookup(vmName); err == nil && vm.GetStatus().GetBusy() == r.Task.Meta.Name {
		undo := &v1.NodeSnapshotRequest{Operation: r.Task.Meta.Name + "-undo"}
		_, err := m.atNode(ctx, r, vm, undo, droverv1connect.NodeServiceClient.DeleteSnapshot)
		if err != nil && resource.CodeOf(err) != resource.NotFound {
			errs = append(errs, err)
		}
	}
	_, err := m.Snapshots.mutate(ctx, name, func(s *v1.Snapshot) error {
		s.Status.Phase, s.Status.Message = v1.SnapshotPhase_SNAPSHOT_PHASE_FAILED, failure(r)
		return nil
	})
	if resource.CodeOf(err) != resource.NotFound {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, m.release(ctx, r))...)
}

// DeleteSnapshot begins a task that removes one.
func (m *Manager) DeleteSnapshot(ctx context.Context, name string, revision int64) (*v1.Snapshot, error) {
	ctx, done, err := m.exclusive(ctx) // no clone may be made of it meanwhile
	if err != nil {
		return nil, err
	}
	defer done()
	vm, _, _ := resource.Part(name)
	_, err = m.Snapshots.mutate(ctx, name, func(s *v1.Snapshot) error {
		if err := atRevision(resource.KindSnapshot, s.Meta, revision); err != nil {
			return err
		}
		if s.Status.Phase == v1.SnapshotPhase_SNAPSHOT_PHASE_CREATING || s.Status.Phase == v1.SnapshotPhase_SNAPSHOT_PHASE_DELETING {
			return &resource.Error{Code: resource.Precondition, Kind: resource.KindSnapshot, Name: name, Reason: "SNAPSHOT_BUSY", Message: "task " + s.Status.Task + " is at it", Remedy: "wait: drover task wait " + s.Status.Task}
		}
		if clones := m.clonesOf(vm, name); len(clones) > 0 {
			return hasClones(resource.KindSnapshot, name, clones)
		}
		s.Status.Phase, s.Status.Task = v1.SnapshotPhase_SNAPSHOT_PHASE_DELETING, ""
		return nil
	})
	if err != nil {
		return nil, err
	}
	t, err := m.submit(ctx, taskSnapshotDelete, resource.KindSnapshot, name)
	if err != nil {
		return nil, err
	}
	return m.Snapshots.mutate(ctx, name, func(s *v1.Snapshot) error {
		if s.Status.Phase != v1.SnapshotPhase_SNAPSHOT_PHASE_DELETING {
			return errSame // the task was quicker
		}
		s.Status.Task = t.Meta.Name
		return nil
	})
}

func (m *Manager) doDeleteSnapshot(ctx context.Context, r *task.Run) error {
	name := r.Task.Spec.Target
	vmName, _, _ := resource.Part(name)
	snap, err := m.Snapshots.lookup(name)
	if resource.CodeOf(err) == resource.NotFound && err != nil {
		return m.release(ctx, r) // an earlier run removed it
	}
	if err != nil {
		return err
	}
	vm, err := m.claimVM(ctx, vmName, r.Task.Meta.Name)
	if err != nil {
		return err
	}
	err = r.Step(ctx, "merge what it holds", func(ctx context.Context) error {
		_, err := m.atNode(ctx, r, vm, &v1.NodeSnapshotRequest{}, droverv1connect.NodeServiceClient.DeleteSnapshot)
		if err != nil && resource.CodeOf(err) == resource.NotFound {
			return nil // it failed when it was made; the host has nothing of it
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, child := range m.snapshotsOf(vmName) {
		if child.GetStatus().GetParent() != name {
			continue
		}
		if _, err := m.Snapshots.mutate(ctx, child.Meta.Name, func(s *v1.Snapshot) error {
			s.Status.Parent = snap.Status.Parent
			return nil
		}); err != nil {
			return err
		}
	}
	err = m.releaseVM(ctx, vmName, r.Task.Meta.Name, func(vm *v1.VM) error {
		if vm.Status.CurrentSnapshot == name {
			vm.Status.CurrentSnapshot = snap.Status.Parent
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := m.Snapshots.remove(ctx, name, 0); err != nil && resource.CodeOf(err) != resource.NotFound {
		return err
	}
	return nil
}

// undoDeleteSnapshot: what the host has merged stays merged; the snapshot can be deleted again.
func (m *Manager) undoDeleteSnapshot(ctx context.Context, r *task.Run) error {
	_, err := m.Snapshots.mutate(ctx, r.Task.Spec.Target, func(s *v1.Snapshot) error {
		s.Status.Phase, s.Status.Message = v1.SnapshotPhase_SNAPSHOT_PHASE_FAILED, "could not be deleted: "+failure(r)+", then delete it again"
		return nil
	})
	if resource.CodeOf(err) == resource.NotFound {
		err = nil
	}
	return errors.Join(err, m.release(ctx, r))
}
