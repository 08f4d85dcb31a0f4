package httpapi

import (
	"context"

	v1 "drover/api/drover/v1"
	"drover/internal/manager"

	"connectrpc.com/connect"
)

// The services of the kinds are thin: what they do is the manager's.

// shown is nil for the empty object of a change that has none.
func shown[T manager.Object](x T) T {
	if x.GetMeta() == nil {
		var none T
		return none
	}
	return x
}

type sites struct{ m *manager.Manager }

func (s sites) Get(_ context.Context, req *v1.GetRequest) (*v1.Site, error) {
	return s.m.Sites.Get(req.Name)
}

func (s sites) List(_ context.Context, req *v1.ListRequest) (*v1.SiteList, error) {
	l, err := s.m.Sites.List(req)
	if err != nil {
		return nil, err
	}
	return &v1.SiteList{Sites: l.Items, NextPageToken: l.Next, Total: l.Total, Revision: l.Revision}, nil
}

func (s sites) Watch(ctx context.Context, req *v1.WatchRequest, st *connect.ServerStream[v1.SiteChange]) error {
	return s.m.Sites.Watch(ctx, req, func(kind v1.ChangeKind, x *v1.Site, rev int64) error {
		return st.Send(&v1.SiteChange{Kind: kind, Site: shown(x), Revision: rev})
	})
}

func (s sites) Create(ctx context.Context, req *v1.CreateSiteRequest) (*v1.Site, error) {
	return s.m.CreateSite(ctx, req.Site, req.ValidateOnly)
}

func (s sites) Update(ctx context.Context, req *v1.UpdateSiteRequest) (*v1.Site, error) {
	return s.m.UpdateSite(ctx, req.Site, req.Mask, req.ValidateOnly)
}

func (s sites) Delete(ctx context.Context, req *v1.DeleteRequest) (*v1.Site, error) {
	return s.m.DeleteSite(ctx, req.Name, req.Revision)
}

type hosts struct{ m *manager.Manager }

func (s hosts) Get(_ context.Context, req *v1.GetRequest) (*v1.Host, error) {
	return s.m.Hosts.Get(req.Name)
}

func (s hosts) List(_ context.Context, req *v1.ListRequest) (*v1.HostList, error) {
	l, err := s.m.Hosts.List(req)
	if err != nil {
		return nil, err
	}
	return &v1.HostList{Hosts: l.Items, NextPageToken: l.Next, Total: l.Total, Revision: l.Revision}, nil
}

func (s hosts) Watch(ctx context.Context, req *v1.WatchRequest, st *connect.ServerStream[v1.HostChange]) error {
	return s.m.Hosts.Watch(ctx, req, func(kind v1.ChangeKind, x *v1.Host, rev int64) error {
		return st.Send(&v1.HostChange{Kind: kind, Host: shown(x), Revision: rev})
	})
}

func (s hosts) Update(ctx context.Context, req *v1.UpdateHostRequest) (*v1.Host, error) {
	return s.m.UpdateHost(ctx, req.Host, req.Mask, req.ValidateOnly)
}

func (s hosts) Delete(ctx context.Context, req *v1.DeleteRequest) (*v1.Host, error) {
	return s.m.DeleteHost(ctx, req.Name, req.Revision, req.Force)
}

func (s hosts) CreateJoinToken(ctx context.Context, req *v1.CreateJoinTokenRequest) (*v1.JoinToken, error) {
	return s.m.CreateJoinToken(ctx, req)
}

type datastores struct{ m *manager.Manager }

func (s datastores) Get(_ context.Context, req *v1.GetRequest) (*v1.Datastore, error) {
	return s.m.Datastores.Get(req.Name)
}

func (s datastores) List(_ context.Context, req *v1.ListRequest) (*v1.DatastoreList, error) {
	l, err := s.m.Datastores.List(req)
	if err != nil {
		return nil, err
	}
	return &v1.DatastoreList{Datastores: l.Items, NextPageToken: l.Next, Total: l.Total, Revision: l.Revision}, nil
}

func (s datastores) Watch(ctx context.Context, req *v1.WatchRequest, st *connect.ServerStream[v1.DatastoreChange]) error {
	return s.m.Datastores.Watch(ctx, req, func(kind v1.ChangeKind, x *v1.Datastore, rev int64) error {
		return st.Send(&v1.DatastoreChange{Kind: kind, Datastore: shown(x), Revision: rev})
	})
}

func (s datastores) Create(ctx context.Context, req *v1.CreateDatastoreRequest) (*v1.Datastore, error) {
	return s.m.CreateDatastore(ctx, req.Datastore, req.ValidateOnly)
}

func (s datastores) Update(ctx context.Context, req *v1.UpdateDatastoreRequest) (*v1.Datastore, error) {
	return s.m.UpdateDatastore(ctx, req.Datastore, req.Mask, req.ValidateOnly)
}

func (s datastores) Delete(ctx context.Context, req *v1.DeleteRequest) (*v1.Datastore, error) {
	return s.m.DeleteDatastore(ctx, req.Name, req.Revision)
}

type networks struct{ m *manager.Manager }

func (s networks) Get(_ context.Context, req *v1.GetRequest) (*v1.Network, error) {
	return s.m.Networks.Get(req.Name)
}

func (s networks) List(_ context.Context, req *v1.ListRequest) (*v1.NetworkList, error) {
	l, err := s.m.Networks.List(req)
	if err != nil {
		return nil, err
	}
	return &v1.NetworkList{Networks: l.Items, NextPageToken: l.Next, Total: l.Total, Revision: l.Revision}, nil
}

func (s networks) Watch(ctx context.Context, req *v1.WatchRequest, st *connect.ServerStream[v1.NetworkChange]) error {
	return s.m.Networks.Watch(ctx, req, func(kind v1.ChangeKind, x *v1.Network, rev int64) error {
		return st.Send(&v1.NetworkChange{Kind: kind, Network: shown(x), Revision: rev})
	})
}

func (s networks) Create(ctx context.Context, req *v1.CreateNetworkRequest) (*v1.Network, error) {
	return s.m.CreateNetwork(ctx, req.Network, req.ValidateOnly)
}

func (s networks) Update(ctx context.Context, req *v1.UpdateNetworkRequest) (*v1.Network, error) {
	return s.m.UpdateNetwork(ctx, req.Network, req.Mask, req.ValidateOnly)
}

func (s networks) Delete(ctx context.Context, req *v1.DeleteRequest) (*v1.Network, error) {
	return s.m.DeleteNetwork(ctx, req.Name, req.Revision)
}

type images struct{ m *manager.Manager }

func (s images) Get(_ context.Context, req *v1.GetRequest) (*v1.Image, error) {
	return s.m.Images.Get(req.Name)
}

func (s images) List(_ context.Context, req *v1.ListRequest) (*v1.ImageList, error) {
	l, err := s.m.Images.List(req)
	if err != nil {
		return nil, err
	}
	return &v1.ImageList{Images: l.Items, NextPageToken: l.Next, Total: l.Total, Revision: l.Revision}, nil
}

func (s images) Watch(ctx context.Context, req *v1.WatchRequest, st *connect.ServerStream[v1.ImageChange]) error {
	return s.m.Images.Watch(ctx, req, func(kind v1.ChangeKind, x *v1.Image, rev int64) error {
		return st.Send(&v1.ImageChange{Kind: kind, Image: shown(x), Revision: rev})
	})
}

func (s images) Create(ctx context.Context, req *v1.CreateImageRequest) (*v1.Image, error) {
	return s.m.CreateImage(ctx, req.Image, req.ValidateOnly)
}

func (s images) Update(ctx context.Context, req *v1.UpdateImageRequest) (*v1.Image, error) {
	return s.m.UpdateImage(ctx, req.Image, req.Mask, req.ValidateOnly)
}

func (s images) Delete(ctx context.Context, req *v1.DeleteRequest) (*v1.Image, error) {
	return s.m.DeleteImage(ctx, req.Name, req.Revision, req.Force)
}

func (s images) ListOperatingSystems(context.Context, *v1.ListOperatingSystemsRequest) (*v1.OperatingSystemList, error) {
	return s.m.OperatingSystems(), nil
}

type disks struct{ m *manager.Manager }

func (s disks) Get(_ context.Context, req *v1.GetRequest) (*v1.Disk, error) {
	return s.m.Disks.Get(req.Name)
}

func (s disks) List(_ context.Context, req *v1.ListRequest) (*v1.DiskList, error) {
	l, err := s.m.Disks.List(req)
	if err != nil {
		return nil, err
	}
	return &v1.DiskList{Disks: l.Items, NextPageToken: l.Next, Total: l.Total, Revision: l.Revision}, nil
}

func (s disks) Watch(ctx context.Context, req *v1.WatchRequest, st *connect.ServerStream[v1.DiskChange]) error {
	return s.m.Disks.Watch(ctx, req, func(kind v1.ChangeKind, x *v1.Disk, rev int64) error {
		return st.Send(&v1.DiskChange{Kind: kind, Disk: shown(x), Revision: rev})
	})
}

func (s disks) Create(ctx context.Context, req *v1.CreateDiskRequest) (*v1.Disk, error) {
	return s.m.Disks.Create(ctx, req.Disk, req.ValidateOnly)
}

func (s disks) Update(ctx context.Context, req *v1.UpdateDiskRequest) (*v1.Disk, error) {
	return s.m.Disks.Update(ctx, req.Disk, req.Mask, req.ValidateOnly)
}

func (s disks) Delete(ctx context.Context, req *v1.DeleteRequest) (*v1.Disk, error) {
	return s.m.Disks.Delete(ctx, req.Name, req.Revision)
}

type nics struct{ m *manager.Manager }

func (s nics) Get(_ context.Context, req *v1.GetRequest) (*v1.NIC, error) {
	return s.m.NICs.Get(req.Name)
}

func (s nics) List(_ context.Context, req *v1.ListRequest) (*v1.NICList, error) {
	l, err := s.m.NICs.List(req)
	if err != nil {
		return nil, err
	}
	return &v1.NICList{Nics: l.Items, NextPageToken: l.Next, Total: l.Total, Revision: l.Revision}, nil
}

func (s nics) Watch(ctx context.Context, req *v1.WatchRequest, st *connect.ServerStream[v1.NICChange]) error {
	return s.m.NICs.Watch(ctx, req, func(kind v1.ChangeKind, x *v1.NIC, rev int64) error {
		return st.Send(&v1.NICChange{Kind: kind, Nic: shown(x), Revision: rev})
	})
}

func (s nics) Create(ctx context.Context, req *v1.CreateNICRequest) (*v1.NIC, error) {
	return s.m.NICs.Create(ctx, req.Nic, req.ValidateOnly)
}

func (s nics) Update(ctx context.Context, req *v1.UpdateNICRequest) (*v1.NIC, error) {
	return s.m.NICs.Update(ctx, req.Nic, req.Mask, req.ValidateOnly)
}

func (s nics) Delete(ctx context.Context, req *v1.DeleteRequest) (*v1.NIC, error) {
	return s.m.NICs.Delete(ctx, req.Name, req.Revision)
}
