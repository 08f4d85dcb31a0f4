package manager

import (
	"context"
	"errors"
	"slices"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"
	"drover/internal/store"

	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// The kinds whose whole life is a record: sites, hosts' specs, datastores.

// createSimple checks and stores an object whose status nobody but hosts or nothing at all makes.
func createSimple[T Object](ctx context.Context, m *Manager, r *Registry[T], obj T, validateOnly bool, prepare func(T), checks ...func(T) error) (T, error) {
	if err := needMeta(r.kind, obj); err != nil {
		return r.zero, err
	}
	ctx, done, err := m.exclusive(ctx)
	if err != nil {
		return r.zero, err
	}
	defer done()
	obj = clone(obj)
	prepare(obj)
	for _, check := range checks {
		if err := check(obj); err != nil {
			return r.zero, err
		}
	}
	if validateOnly {
		if _, ok := r.cache.Get(obj.GetMeta().Name); ok {
			return r.zero, r.translate(store.ErrExists, obj.GetMeta().Name)
		}
		return r.seen(obj), nil
	}
	return r.create(ctx, m.store, obj)
}

func updateSimple[T Object](ctx context.Context, m *Manager, r *Registry[T], patch T, mask *fieldmaskpb.FieldMask, validateOnly bool, checks ...func(old, obj T) error) (T, error) {
	if err := needMeta(r.kind, patch); err != nil {
		return r.zero, err
	}
	ctx, done, err := m.exclusive(ctx)
	if err != nil {
		return r.zero, err
	}
	defer done()
	change := func(obj T) error {
		old := clone(obj)
		if err := merge(r.kind, obj, patch, mask); err != nil {
			return err
		}
		for _, check := range checks {
			if err := check(old, obj); err != nil {
				return err
			}
		}
		return nil
	}
	if !validateOnly {
		return r.mutate(ctx, patch.GetMeta().Name, change)
	}
	obj, err := r.lookup(patch.GetMeta().Name)
	if err != nil {
		return r.zero, err
	}
	obj = clone(obj)
	if err := change(obj); err != nil && !errors.Is(err, errSame) {
		return r.zero, err
	}
	return r.seen(obj), nil
}

func ignoreOld[T Object](check func(T) error) func(_, obj T) error {
	return func(_, obj T) error { return check(obj) }
}

// deleteSimple deletes what nothing depends on. The caller has made sure that nothing comes to depend on it meanwhile.
func deleteSimple[T Object](ctx context.Context, r *Registry[T], name string, revision int64, users func(T) []string) (T, error) {
	obj, err := r.lookup(name)
	if err != nil {
		return r.zero, err
	}
	if err := atRevision(r.kind, obj.GetMeta(), revision); err != nil {
		return r.zero, err
	}
	if list := users(obj); len(list) > 0 {
		return r.zero, &resource.Error{Code: resource.Precondition, Kind: r.kind, Name: name, Reason: "IN_USE", Message: "is used by " + strings.Join(list, ", "), Remedy: "delete or change them first"}
	}
	return r.seen(obj), r.remove(ctx, name, obj.GetMeta().Revision)
}

// CreateSite stores a site.
func (m *Manager) CreateSite(ctx context.Context, s *v1.Site, validateOnly bool) (*v1.Site, error) {
	return createSimple(ctx, m, m.Sites, s, validateOnly, func(s *v1.Site) {
		if s.Spec == nil {
			s.Spec = &v1.SiteSpec{}
		}
		s.Status = nil
	}, resource.CheckSite)
}

// UpdateSite changes a site.
func (m *Manager) UpdateSite(ctx context.Context, s *v1.Site, mask *fieldmaskpb.FieldMask, validateOnly bool) (*v1.Site, error) {
	return updateSimple(ctx, m, m.Sites, s, mask, validateOnly, ignoreOld(resource.CheckSite))
}

// DeleteSite deletes a site without hosts.
func (m *Manager) DeleteSite(ctx context.Context, name string, revision int64) (*v1.Site, error) {
	ctx, done, err := m.exclusive(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return deleteSimple(ctx, m.Sites, name, revision, func(*v1.Site) (users []string) {
		hosts, _ := m.Hosts.cache.List()
		for _, h := range hosts {
			if h.Spec.Site == name {
				users = append(users, "host "+h.Meta.Name)
			}
		}
		nets, _ := m.Networks.cache.List()
		for _, n := range nets {
			if _, vlan := n.Spec.GetPhysical().GetSiteVlans()[name]; vlan || slices.Contains(n.Spec.GetSites(), name) {
				users = append(users, "network "+n.Meta.Name)
			}
		}
		return users
	})
}

// UpdateHost changes what may be changed of a host: all but its site while it holds VMs.
func (m *Manager) UpdateHost(ctx context.Context, h *v1.Host, mask *fieldmaskpb.FieldMask, validateOnly bool) (*v1.Host, error) {
	return updateSimple(ctx, m, m.Hosts, h, mask, validateOnly, ignoreOld(resource.CheckHost), m.checkTeams, func(old, h *v1.Host) error {
		f := resource.FaultsOf(resource.KindHost, h.Meta.Name)
		m.Sites.exists(f, "spec.site", h.Spec.Site)
		if old.Spec.Site != h.Spec.Site && m.Hosts.seen(old).Status.Vms > 0 {
			f.Add("spec.site", "HAS_VMS", "a host that holds VMs stays in its site")
		}
		return f.Err()
	})
}

// CreateDatastore stores a datastore; its host is told, and says whether it is ready.
func (m *Manager) CreateDatastore(ctx context.Context, d *v1.Datastore, validateOnly bool) (*v1.Datastore, error) {
	return createSimple(ctx, m, m.Datastores, d, validateOnly, func(d *v1.Datastore) {
		if d.Spec == nil {
			d.Spec = &v1.DatastoreSpec{}
		}
		d.Status = nil
	}, resource.CheckDatastore, func(d *v1.Datastore) error {
		f := resource.FaultsOf(resource.KindDatastore, d.Meta.Name)
		m.Hosts.exists(f, "spec.host", d.Spec.Host)
		if h, _ := m.Hosts.cache.Get(d.Spec.Host); h.GetStatus().GetRepositoriesOnly() {
			f.Add("spec.host", "NO_VMS_HERE", "host %q serves repositories and runs no VMs", d.Spec.Host)
		}
		all, _ := m.Datastores.cache.List()
		for _, x := range all {
			if x.Spec.Host == d.Spec.Host && x.Spec.Path == d.Spec.Path && x.Meta.Name != d.Meta.Name {
				f.Add("spec.path", "PATH_TAKEN", "is datastore %q already", x.Meta.Name)
			}
		}
		return f.Err()
	})
}

// UpdateDatastore changes a datastore, but for where it is.
func (m *Manager) UpdateDatastore(ctx context.Context, d *v1.Datastore, mask *fieldmaskpb.FieldMask, validateOnly bool) (*v1.Datastore, error) {
	return updateSimple(ctx, m, m.Datastores, d, mask, validateOnly, ignoreOld(resource.CheckDatastore), func(old, d *v1.Datastore) error {
		f := resource.FaultsOf(resource.KindDatastore, d.Meta.Name)
		if old.Spec.Host != d.Spec.Host {
			f.Add("spec.host", "FIELD_IMMUTABLE", "never changes after creation")
		}
		if old.Spec.Path != d.Spec.Path {
			f.Add("spec.path", "FIELD_IMMUTABLE", "never changes after creation")
		}
		return f.Err()
	})
}

// DeleteDatastore forgets a datastore without disks; its directory is left as it is.
func (m *Manager) DeleteDatastore(ctx context.Context, name string, revision int64) (*v1.Datastore, error) {
	ctx, done, err := m.exclusive(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return deleteSimple(ctx, m.Datastores, name, revision, func(*v1.Datastore) (users []string) {
		vms, _ := m.VMs.cache.List()
		for _, vm := range vms {
			if slices.ContainsFunc(vm.Spec.Disks, func(d *v1.DiskSpec) bool { return d.Datastore == name }) {
				users = append(users, "vm "+vm.Meta.Name)
			}
		}
		return users
	})
}
