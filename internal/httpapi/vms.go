package httpapi

import (
	"context"

	v1 "drover/api/drover/v1"
	"drover/internal/manager"

	"connectrpc.com/connect"
)

type vms struct{ m *manager.Manager }

func (s vms) Get(_ context.Context, req *v1.GetRequest) (*v1.VM, error) { return s.m.VMs.Get(req.Name) }

func (s vms) List(_ context.Context, req *v1.ListRequest) (*v1.VMList, error) {
	l, err := s.m.VMs.List(req)
	if err != nil {
		return nil, err
	}
	return &v1.VMList{Vms: l.Items, NextPageToken: l.Next, Total: l.Total, Revision: l.Revision}, nil
}

func (s vms) Watch(ctx context.Context, req *v1.WatchRequest, st *connect.ServerStream[v1.VMChange]) error {
	return s.m.VMs.Watch(ctx, req, func(kind v1.ChangeKind, x *v1.VM, rev int64) error {
		return st.Send(&v1.VMChange{Kind: kind, Vm: shown(x), Revision: rev})
	})
}

func (s vms) Create(ctx context.Context, req *v1.CreateVMRequest) (*v1.VM, error) {
	return s.m.CreateVM(ctx, req.Vm, req.ValidateOnly)
}

func (s vms) Update(ctx context.Context, req *v1.UpdateVMRequest) (*v1.VM, error) {
	return s.m.UpdateVM(ctx, req.Vm, req.Mask, req.ValidateOnly)
}

func (s vms) Delete(ctx context.Context, req *v1.DeleteRequest) (*v1.VM, error) {
	return s.m.DeleteVM(ctx, req.Name, req.Revision, req.Force)
}

func (s vms) Start(ctx context.Context, req *v1.StartVMRequest) (*v1.VM, error) {
	return s.m.StartVM(ctx, req.Name)
}

func (s vms) Stop(ctx context.Context, req *v1.StopVMRequest) (*v1.VM, error) {
	return s.m.StopVM(ctx, req.Name, req.Force, req.Timeout)
}

func (s vms) Reset(ctx context.Context, req *v1.VMActionRequest) (*v1.VM, error) {
	return s.m.ResetVM(ctx, req.Name)
}

func (s vms) Pause(ctx context.Context, req *v1.VMActionRequest) (*v1.VM, error) {
	return s.m.PauseVM(ctx, req.Name, true)
}

func (s vms) Resume(ctx context.Context, req *v1.VMActionRequest) (*v1.VM, error) {
	return s.m.PauseVM(ctx, req.Name, false)
}

func (s vms) Clone(ctx context.Context, req *v1.CloneVMRequest) (*v1.VM, error) {
	return s.m.CloneVM(ctx, req)
}

func (s vms) Exec(ctx context.Context, req *v1.ExecRequest) (*v1.ExecResponse, error) {
	return s.m.Exec(ctx, req)
}

func (s vms) Screenshot(ctx context.Context, req *v1.VMActionRequest) (*v1.ScreenshotResponse, error) {
	return s.m.Screenshot(ctx, req.Name)
}

type snapshots struct{ m *manager.Manager }

func (s snapshots) Get(_ context.Context, req *v1.GetRequest) (*v1.Snapshot, error) {
	return s.m.Snapshots.Get(req.Name)
}

func (s snapshots) List(_ context.Context, req *v1.ListRequest) (*v1.SnapshotList, error) {
	l, err := s.m.Snapshots.List(req)
	if err != nil {
		return nil, err
	}
	return &v1.SnapshotList{Snapshots: l.Items, NextPageToken: l.Next, Total: l.Total, Revision: l.Revision}, nil
}

func (s snapshots) Watch(ctx context.Context, req *v1.WatchRequest, st *connect.ServerStream[v1.SnapshotChange]) error {
	return s.m.Snapshots.Watch(ctx, req, func(kind v1.ChangeKind, x *v1.Snapshot, rev int64) error {
		return st.Send(&v1.SnapshotChange{Kind: kind, Snapshot: shown(x), Revision: rev})
	})
}

func (s snapshots) Create(ctx context.Context, req *v1.CreateSnapshotRequest) (*v1.Snapshot, error) {
	return s.m.CreateSnapshot(ctx, req.Snapshot, req.ValidateOnly)
}

func (s snapshots) Delete(ctx context.Context, req *v1.DeleteRequest) (*v1.Snapshot, error) {
	return s.m.DeleteSnapshot(ctx, req.Name, req.Revision)
}

func (s snapshots) Revert(ctx context.Context, req *v1.RevertRequest) (*v1.Task, error) {
	return s.m.RevertSnapshot(ctx, req.Name)
}

type tasks struct{ m *manager.Manager }

func (s tasks) Get(_ context.Context, req *v1.GetRequest) (*v1.Task, error) {
	return s.m.Tasks.Get(req.Name)
}

func (s tasks) List(_ context.Context, req *v1.ListRequest) (*v1.TaskList, error) {
	l, err := s.m.Tasks.List(req)
	if err != nil {
		return nil, err
	}
	return &v1.TaskList{Tasks: l.Items, NextPageToken: l.Next, Total: l.Total, Revision: l.Revision}, nil
}

func (s tasks) Watch(ctx context.Context, req *v1.WatchRequest, st *connect.ServerStream[v1.TaskChange]) error {
	return s.m.Tasks.Watch(ctx, req, func(kind v1.ChangeKind, x *v1.Task, rev int64) error {
		return st.Send(&v1.TaskChange{Kind: kind, Task: shown(x), Revision: rev})
	})
}

func (s tasks) Cancel(ctx context.Context, req *v1.CancelTaskRequest) (*v1.Task, error) {
	return s.m.CancelTask(ctx, req.Name)
}

func (s tasks) Log(ctx context.Context, req *v1.TaskLogRequest, st *connect.ServerStream[v1.TaskLogLine]) error {
	return s.m.TaskLog(ctx, req.Name, req.Follow, st.Send)
}
