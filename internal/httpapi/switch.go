package httpapi

import (
	"context"

	v1 "drover/api/drover/v1"
	"drover/internal/manager"

	"connectrpc.com/connect"
)

type portProfiles struct{ m *manager.Manager }

func (s portProfiles) Get(_ context.Context, req *v1.GetRequest) (*v1.PortProfile, error) {
	return s.m.Profiles.Get(req.Name)
}

func (s portProfiles) List(_ context.Context, req *v1.ListRequest) (*v1.PortProfileList, error) {
	l, err := s.m.Profiles.List(req)
	if err != nil {
		return nil, err
	}
	return &v1.PortProfileList{Profiles: l.Items, NextPageToken: l.Next, Total: l.Total, Revision: l.Revision}, nil
}

func (s portProfiles) Watch(ctx context.Context, req *v1.WatchRequest, st *connect.ServerStream[v1.PortProfileChange]) error {
	return s.m.Profiles.Watch(ctx, req, func(kind v1.ChangeKind, x *v1.PortProfile, rev int64) error {
		return st.Send(&v1.PortProfileChange{Kind: kind, Profile: shown(x), Revision: rev})
	})
}

func (s portProfiles) Create(ctx context.Context, req *v1.CreatePortProfileRequest) (*v1.PortProfile, error) {
	return s.m.CreateProfile(ctx, req.Profile, req.ValidateOnly)
}

func (s portProfiles) Update(ctx context.Context, req *v1.UpdatePortProfileRequest) (*v1.PortProfile, error) {
	return s.m.UpdateProfile(ctx, req.Profile, req.Mask, req.ValidateOnly)
}

func (s portProfiles) Delete(ctx context.Context, req *v1.DeleteRequest) (*v1.PortProfile, error) {
	return s.m.DeleteProfile(ctx, req.Name, req.Revision)
}

func (s portProfiles) Preview(_ context.Context, req *v1.PreviewPortProfileRequest) (*v1.PreviewPortProfileResponse, error) {
	return s.m.PreviewProfile(req)
}

type ports struct{ m *manager.Manager }

func (s ports) Get(_ context.Context, req *v1.GetRequest) (*v1.Port, error) {
	return s.m.Ports.Get(req.Name)
}

func (s ports) List(_ context.Context, req *v1.ListRequest) (*v1.PortList, error) {
	l, err := s.m.Ports.List(req)
	if err != nil {
		return nil, err
	}
	return &v1.PortList{Ports: l.Items, NextPageToken: l.Next, Total: l.Total, Revision: l.Revision}, nil
}

func (s ports) Watch(ctx context.Context, req *v1.WatchRequest, st *connect.ServerStream[v1.PortChange]) error {
	return s.m.Ports.Watch(ctx, req, func(kind v1.ChangeKind, x *v1.Port, rev int64) error {
		return st.Send(&v1.PortChange{Kind: kind, Port: shown(x), Revision: rev})
	})
}

func (s ports) Capture(ctx context.Context, req *v1.CapturePortRequest, st *connect.ServerStream[v1.CapturePortResponse]) error {
	return s.m.Capture(ctx, req, st.Send)
}

func (s ports) Trace(ctx context.Context, req *v1.TracePortRequest) (*v1.TracePortResponse, error) {
	return s.m.Trace(ctx, req)
}

type switches struct{ m *manager.Manager }

func (s switches) Show(context.Context, *v1.ShowSwitchRequest) (*v1.SwitchView, error) {
	return s.m.ShowSwitch(), nil
}

func (s switches) Table(ctx context.Context, req *v1.SwitchTableRequest, st *connect.ServerStream[v1.SwitchTableResponse]) error {
	return s.m.SwitchTable(ctx, req, st.Send)
}
