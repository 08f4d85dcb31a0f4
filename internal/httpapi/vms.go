package httpapi

import (
	"context"
	"slices"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/auth"
	"drover/internal/manager"
	"drover/internal/resource"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
)

type vms struct{ m *manager.Manager }

func (s vms) Get(ctx context.Context, req *v1.GetRequest) (*v1.VM, error) {
	vm, err := s.m.VMs.Get(req.Name)
	if err != nil || trusted(ctx) {
		return vm, err
	}
	return withoutUserData(vm), nil
}

func (s vms) List(ctx context.Context, req *v1.ListRequest) (*v1.VMList, error) {
	if err := unasked(ctx, req.Filter, req.OrderBy); err != nil {
		return nil, err
	}
	l, err := s.m.VMs.List(req)
	if err != nil {
		return nil, err
	}
	if !trusted(ctx) {
		l.Items = slices.Clone(l.Items)
		for i, vm := range l.Items {
			l.Items[i] = withoutUserData(vm)
		}
	}
	return &v1.VMList{Vms: l.Items, NextPageToken: l.Next, Total: l.Total, Revision: l.Revision}, nil
}

func (s vms) Watch(ctx context.Context, req *v1.WatchRequest, st *connect.ServerStream[v1.VMChange]) error {
	if err := unasked(ctx, req.Filter); err != nil {
		return err
	}
	all := trusted(ctx)
	return s.m.VMs.Watch(ctx, req, func(kind v1.ChangeKind, x *v1.VM, rev int64) error {
		if !all {
			x = withoutUserData(x)
		}
		return st.Send(&v1.VMChange{Kind: kind, Vm: shown(x), Revision: rev})
	})
}

// leftOut stands for a VM's user data where it is not told.
const leftOut = "(left out)"

// trusted says whether the caller is told VMs' user data, which has passwords and keys in it more often than not: those who may change
// VMs. Who may only look, or has a token that may only read, is told that there is some.
func trusted(ctx context.Context) bool { return may(ctx, auth.VerbUpdate, resource.KindVM) == nil }

func withoutUserData(vm *v1.VM) *v1.VM {
	if vm.GetSpec().GetCloudInit().GetUserData() == "" {
		return vm
	}
	vm = proto.CloneOf(vm)
	vm.Spec.CloudInit.UserData = leftOut
	return vm
}

// unasked refuses to filter or order by what the caller is not told: the answer would tell.
func unasked(ctx context.Context, queries ...string) error {
	letters := func(r rune) rune {
		if r >= 'a' && r <= 'z' {
			return r
		}
		return -1
	}
	for _, q := range queries {
		// The field has two names, user_data and userData, and names can be quoted.
		if strings.Contains(strings.Map(letters, strings.ToLower(q)), "userdata") && !trusted(ctx) {
			return &resource.Error{Code: resource.Denied, Kind: resource.KindVM, Field: "spec.cloud_init.user_data", Reason: "PERMISSION_DENIED", Message: "who may not change VMs can't ask for their user data"}
		}
	}
	return nil
}

// complete refuses what withoutUserData has left behind: written back, it would become the user data.
func complete(vm *v1.VM) error {
	if vm.GetSpec().GetCloudInit().GetUserData() == leftOut {
		return &resource.Error{Code: resource.Invalid, Kind: resource.KindVM, Name: vm.GetMeta().GetName(), Field: "spec.cloud_init.user_data", Reason: "USER_DATA_LEFT_OUT", Message: "was left out of what you were told", Remedy: "get the VM as somebody who may change VMs"}
	}
	return nil
}

func (s vms) Create(ctx context.Context, req *v1.CreateVMRequest) (*v1.VM, error) {
	if err := complete(req.Vm); err != nil {
		return nil, err
	}
	return s.m.CreateVM(ctx, req.Vm, req.ValidateOnly)
}

func (s vms) Update(ctx context.Context, req *v1.UpdateVMRequest) (*v1.VM, error) {
	if err := complete(req.Vm); err != nil {
		return nil, err
	}
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
