package httpapi

import (
	"context"

	v1 "drover/api/drover/v1"
	"drover/internal/manager"

	"connectrpc.com/connect"
)

type repositories struct{ m *manager.Manager }

func (s repositories) Get(_ context.Context, req *v1.GetRequest) (*v1.Repository, error) {
	return s.m.Repositories.Get(req.Name)
}

func (s repositories) List(_ context.Context, req *v1.ListRequest) (*v1.RepositoryList, error) {
	l, err := s.m.Repositories.List(req)
	if err != nil {
		return nil, err
	}
	return &v1.RepositoryList{Repositories: l.Items, NextPageToken: l.Next, Total: l.Total, Revision: l.Revision}, nil
}

func (s repositories) Watch(ctx context.Context, req *v1.WatchRequest, st *connect.ServerStream[v1.RepositoryChange]) error {
	return s.m.Repositories.Watch(ctx, req, func(kind v1.ChangeKind, x *v1.Repository, rev int64) error {
		return st.Send(&v1.RepositoryChange{Kind: kind, Repository: shown(x), Revision: rev})
	})
}

func (s repositories) Create(ctx context.Context, req *v1.CreateRepositoryRequest) (*v1.CreateRepositoryResponse, error) {
	return s.m.CreateRepository(ctx, req)
}

func (s repositories) Update(ctx context.Context, req *v1.UpdateRepositoryRequest) (*v1.Repository, error) {
	return s.m.UpdateRepository(ctx, req.Repository, req.Mask, req.ValidateOnly)
}

func (s repositories) Delete(ctx context.Context, req *v1.DeleteRequest) (*v1.Repository, error) {
	return s.m.DeleteRepository(ctx, req.Name, req.Revision, req.Force)
}

func (s repositories) Collect(ctx context.Context, req *v1.RepositoryActionRequest) (*v1.Task, error) {
	return s.m.CollectRepository(ctx, req.Name)
}

func (s repositories) Scrub(ctx context.Context, req *v1.ScrubRepositoryRequest) (*v1.Task, error) {
	return s.m.ScrubRepository(ctx, req)
}

func (s repositories) Rekey(ctx context.Context, req *v1.RekeyRepositoryRequest) (*v1.Repository, error) {
	return s.m.RekeyRepository(ctx, req)
}

type policies struct{ m *manager.Manager }

func (s policies) Get(_ context.Context, req *v1.GetRequest) (*v1.BackupPolicy, error) {
	return s.m.Policies.Get(req.Name)
}

func (s policies) List(_ context.Context, req *v1.ListRequest) (*v1.BackupPolicyList, error) {
	l, err := s.m.Policies.List(req)
	if err != nil {
		return nil, err
	}
	return &v1.BackupPolicyList{Policies: l.Items, NextPageToken: l.Next, Total: l.Total, Revision: l.Revision}, nil
}

func (s policies) Watch(ctx context.Context, req *v1.WatchRequest, st *connect.ServerStream[v1.BackupPolicyChange]) error {
	return s.m.Policies.Watch(ctx, req, func(kind v1.ChangeKind, x *v1.BackupPolicy, rev int64) error {
		return st.Send(&v1.BackupPolicyChange{Kind: kind, Policy: shown(x), Revision: rev})
	})
}

func (s policies) Create(ctx context.Context, req *v1.CreateBackupPolicyRequest) (*v1.BackupPolicy, error) {
	return s.m.CreatePolicy(ctx, req.Policy, req.ValidateOnly)
}

func (s policies) Update(ctx context.Context, req *v1.UpdateBackupPolicyRequest) (*v1.BackupPolicy, error) {
	return s.m.UpdatePolicy(ctx, req.Policy, req.Mask, req.ValidateOnly)
}

func (s policies) Delete(ctx context.Context, req *v1.DeleteRequest) (*v1.BackupPolicy, error) {
	return s.m.DeletePolicy(ctx, req.Name, req.Revision)
}

func (s policies) Preview(ctx context.Context, req *v1.PreviewPolicyRequest) (*v1.PolicyPreview, error) {
	return s.m.PreviewPolicy(ctx, req)
}

func (s policies) Run(ctx context.Context, req *v1.GetRequest) (*v1.Task, error) {
	return s.m.RunPolicy(ctx, req.Name)
}

type restorePoints struct{ m *manager.Manager }

func (s restorePoints) Get(ctx context.Context, req *v1.GetRequest) (*v1.RestorePoint, error) {
	return s.m.Point(ctx, req.Name)
}

func (s restorePoints) List(_ context.Context, req *v1.ListRequest) (*v1.RestorePointList, error) {
	l, err := s.m.Points.List(req)
	if err != nil {
		return nil, err
	}
	return &v1.RestorePointList{Points: l.Items, NextPageToken: l.Next, Total: l.Total, Revision: l.Revision}, nil
}

func (s restorePoints) Watch(ctx context.Context, req *v1.WatchRequest, st *connect.ServerStream[v1.RestorePointChange]) error {
	return s.m.Points.Watch(ctx, req, func(kind v1.ChangeKind, x *v1.RestorePoint, rev int64) error {
		return st.Send(&v1.RestorePointChange{Kind: kind, Point: shown(x), Revision: rev})
	})
}

func (s restorePoints) Create(ctx context.Context, req *v1.CreateBackupRequest) (*v1.Task, error) {
	return s.m.CreateBackup(ctx, req)
}

func (s restorePoints) Update(ctx context.Context, req *v1.UpdateRestorePointRequest) (*v1.RestorePoint, error) {
	return s.m.UpdatePoint(ctx, req.Point, req.Mask)
}

func (s restorePoints) Delete(ctx context.Context, req *v1.DeleteRequest) (*v1.RestorePoint, error) {
	return s.m.DeletePoint(ctx, req.Name, req.Revision, req.Force)
}

func (s restorePoints) Copy(ctx context.Context, req *v1.CopyPointsRequest) (*v1.Task, error) {
	return s.m.CopyPoints(ctx, req)
}

func (s restorePoints) Restore(ctx context.Context, req *v1.RestoreRequest) (*v1.Task, error) {
	return s.m.RestorePoint(ctx, req)
}

func (s restorePoints) Test(ctx context.Context, req *v1.TestPointRequest) (*v1.Task, error) {
	return s.m.TestPoint(ctx, req)
}

func (s restorePoints) Browse(ctx context.Context, req *v1.BrowseRequest) (*v1.BrowseResponse, error) {
	return s.m.BrowsePoint(ctx, req)
}

func (s restorePoints) Download(ctx context.Context, req *v1.DownloadRequest, st *connect.ServerStream[v1.DownloadResponse]) error {
	return s.m.DownloadFiles(ctx, req, st.Send)
}

func (s restorePoints) Protection(_ context.Context, req *v1.ListProtectionRequest) (*v1.ProtectionList, error) {
	return s.m.Protection(req.Filter)
}

type protection struct{ m *manager.Manager }

func (s protection) CreatePoint(ctx context.Context, req *v1.CreateProtectionPointRequest) (*v1.ProtectionPoint, error) {
	return s.m.CreateProtectionPoint(ctx, req)
}

func (s protection) Changed(ctx context.Context, req *v1.ChangedExtentsRequest) (*v1.ChangedExtentsResponse, error) {
	return s.m.ChangedExtents(ctx, req)
}

func (s protection) OpenImport(ctx context.Context, req *v1.OpenImportRequest) (*v1.Import, error) {
	return s.m.OpenImport(ctx, req)
}

func (s protection) Release(ctx context.Context, req *v1.ReleaseRequest) (*v1.ReleaseResponse, error) {
	return s.m.ReleaseProtection(ctx, req)
}
