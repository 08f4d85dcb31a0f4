package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"
	"drover/internal/store"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// WatchFor streams what a host should know and run: its own record, its datastores, the networks and images, then its VMs;
// SYNCED; then changes. A VM that is no longer the host's is DELETED.
func (m *Manager) WatchFor(ctx context.Context, host string, send func(*v1.AgentChange) error) error {
	feed := &agentFeed{m: m, host: host, send: send, mine: map[string]bool{}, told: map[string]int64{}}
	hosts, stores, nets := m.Hosts.cache.Subscribe(0), m.Datastores.cache.Subscribe(0), m.Networks.cache.Subscribe(0)
	images, vms := m.Images.cache.Subscribe(0), m.VMs.cache.Subscribe(0)
	steps := make(chan func() error)
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	// One goroutine for each kind waits; what it gets is sent by this one, so that the stream has one writer. The first
	// batch of each is sent here, in the order that hosts rely on.
	for _, first := range []func() error{
		batch(ctx, hosts, feed.host_), batch(ctx, stores, feed.datastore), batch(ctx, nets, feed.network), batch(ctx, images, feed.image), batch(ctx, vms, feed.vm),
	} {
		if err := first(); err != nil {
			return err
		}
	}
	if err := send(&v1.AgentChange{Kind: v1.ChangeKind_CHANGE_KIND_SYNCED}); err != nil {
		return err
	}
	go follow(ctx, stop, hosts, steps, feed.host_)
	go follow(ctx, stop, stores, steps, feed.datastore)
	go follow(ctx, stop, nets, steps, feed.network)
	go follow(ctx, stop, images, steps, feed.image)
	go follow(ctx, stop, vms, steps, feed.vm)
	for {
		select {
		case step := <-steps:
			if err := step(); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func batch[T proto.Message](ctx context.Context, sub *store.Subscription[T], each func(store.Event[T]) error) func() error {
	return func() error {
		events, err := sub.Next(ctx)
		if err != nil {
			return err
		}
		for _, e := range events {
			if e.Type == store.Reset {
				continue // the first state; nothing was sent before
			}
			if err := each(e); err != nil {
				return err
			}
		}
		return nil
	}
}

// follow hands batches of one kind over to the writer until ctx ends. Its owner is WatchFor, whose stop ends it.
func follow[T proto.Message](ctx context.Context, stop context.CancelCauseFunc, sub *store.Subscription[T], steps chan<- func() error, each func(store.Event[T]) error) {
	for {
		events, err := sub.Next(ctx)
		if err != nil {
			stop(err)
			return
		}
		step := func() error {
			for _, e := range events {
				if err := each(e); err != nil {
					return err
				}
			}
			return nil
		}
		select {
		case steps <- step:
		case <-ctx.Done():
			return
		}
	}
}

// errRestart ends a host's stream when history was lost; the host comes again and gets the whole state.
var errRestart = &resource.Error{Code: resource.Unavailable, Reason: "WATCH_LOST", Message: "the stream fell behind", Remedy: "watch again"}

// agentFeed turns changes of resources into what one host is told.
type agentFeed struct {
	m    *Manager
	host string
	send func(*v1.AgentChange) error
	mine map[string]bool  // VMs that the host was told of
	told map[string]int64 // revisions of the images and networks that it was told of, "KIND/NAME"
}

func changeOf[T proto.Message](e store.Event[T]) (v1.ChangeKind, T, error) {
	switch {
	case e.Type == store.Reset:
		return 0, e.Object, errRestart
	case e.Type == store.Delete:
		return v1.ChangeKind_CHANGE_KIND_DELETED, e.Old, nil
	case e.Type == store.Put && e.Old.ProtoReflect().IsValid():
		return v1.ChangeKind_CHANGE_KIND_MODIFIED, e.Object, nil
	case e.Type == store.Put:
		return v1.ChangeKind_CHANGE_KIND_ADDED, e.Object, nil
	}
	return v1.ChangeKind_CHANGE_KIND_UNSPECIFIED, e.Object, nil
}

func (f *agentFeed) host_(e store.Event[*v1.Host]) error {
	kind, h, err := changeOf(e)
	if err != nil || kind == 0 || h.Meta.Name != f.host {
		return err
	}
	if kind == v1.ChangeKind_CHANGE_KIND_DELETED {
		return &resource.Error{Code: resource.Denied, Kind: resource.KindHost, Name: f.host, Reason: "HOST_REMOVED", Message: "was removed from this installation"}
	}
	return f.send(&v1.AgentChange{Kind: kind, Object: &v1.AgentChange_Host{Host: h}})
}

func (f *agentFeed) datastore(e store.Event[*v1.Datastore]) error {
	kind, d, err := changeOf(e)
	if err != nil || kind == 0 || d.Spec.Host != f.host {
		return err
	}
	return f.send(&v1.AgentChange{Kind: kind, Object: &v1.AgentChange_Datastore{Datastore: d}})
}

func (f *agentFeed) network(e store.Event[*v1.Network]) error {
	kind, n, err := changeOf(e)
	if err != nil || kind == 0 {
		return err
	}
	f.note(resource.KindNetwork, n.Meta)
	return f.send(&v1.AgentChange{Kind: kind, Object: &v1.AgentChange_Network{Network: n}})
}

func (f *agentFeed) image(e store.Event[*v1.Image]) error {
	kind, i, err := changeOf(e)
	if err != nil || kind == 0 {
		return err
	}
	f.note(resource.KindImage, i.Meta)
	return f.send(&v1.AgentChange{Kind: kind, Object: &v1.AgentChange_Image{Image: i}})
}

func (f *agentFeed) note(kind resource.Kind, m *v1.Meta) { f.told[kind+"/"+m.Name] = m.Revision }

func (f *agentFeed) behind(kind resource.Kind, m *v1.Meta) bool {
	return f.told[kind+"/"+m.Name] < m.Revision
}

// ahead sends what a VM needs, if its own stream has not come to it yet: kinds are followed apart from each other.
func (f *agentFeed) ahead(vm *v1.VM) error {
	for _, name := range imagesOf(vm.Spec) {
		if i, ok := f.m.Images.cache.Get(name); ok && f.behind(resource.KindImage, i.Meta) {
			if err := f.image(store.Event[*v1.Image]{Type: store.Put, Object: i}); err != nil {
				return err
			}
		}
	}
	for _, nic := range vm.Spec.GetNics() {
		if n, ok := f.m.Networks.cache.Get(nic.Network); ok && f.behind(resource.KindNetwork, n.Meta) {
			if err := f.network(store.Event[*v1.Network]{Type: store.Put, Object: n}); err != nil {
				return err
			}
		}
	}
	return nil
}

// imagesOf are the names of the images that a VM is made of.
func imagesOf(s *v1.VMSpec) []string {
	var names []string
	add := func(name string) {
		if name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	add(s.GetKernelImage())
	for _, d := range s.GetDisks() {
		add(d.Image)
	}
	for _, c := range s.GetCdroms() {
		add(c.Image)
	}
	return names
}

func (f *agentFeed) vm(e store.Event[*v1.VM]) error {
	kind, vm, err := changeOf(e)
	if err != nil || kind == 0 {
		return err
	}
	name := vm.Meta.Name
	here := kind != v1.ChangeKind_CHANGE_KIND_DELETED && vm.GetStatus().GetOwner() == f.host
	was := f.mine[name]
	switch {
	case here && was:
		kind = v1.ChangeKind_CHANGE_KIND_MODIFIED
	case here:
		kind, f.mine[name] = v1.ChangeKind_CHANGE_KIND_ADDED, true
	case was:
		kind = v1.ChangeKind_CHANGE_KIND_DELETED
		delete(f.mine, name)
	default:
		return nil
	}
	// A host's own report comes back as a change of status; it is no news for it. A deletion counts as a generation.
	if kind == v1.ChangeKind_CHANGE_KIND_MODIFIED && e.Old.ProtoReflect().IsValid() && e.Old.Meta.Generation == vm.Meta.Generation && e.Old.GetStatus().GetEpoch() == vm.Status.Epoch {
		return nil
	}
	if here {
		if err := f.ahead(vm); err != nil {
			return err
		}
	}
	return f.send(&v1.AgentChange{Kind: kind, Object: &v1.AgentChange_Vm{Vm: vm}})
}

// Report takes in what a host tells.
func (m *Manager) Report(ctx context.Context, host *v1.Host, req *v1.ReportRequest) (*v1.ReportResponse, error) {
	name := host.Meta.Name
	m.heard.note(name, m.cfg.Clock.Now())
	if err := m.reportHost(ctx, name, req.Host); err != nil {
		return nil, err
	}
	for _, d := range req.Datastores {
		// A datastore that can't be taken must not keep the rest from being heard.
		if err := m.reportDatastore(ctx, name, d); err != nil && resource.CodeOf(err) != resource.Invalid && resource.CodeOf(err) != resource.Exists {
			return nil, err
		} else if _, again := m.refused.LoadOrStore(name+"/"+d.Name, true); err != nil && !again {
			m.event(v1.Severity_SEVERITY_ERROR, resource.KindHost, name, "DATASTORE_REFUSED", err.Error())
		} else if err == nil {
			m.refused.Delete(name + "/" + d.Name)
		}
	}
	res := &v1.ReportResponse{Interval: durationpb.New(m.cfg.HostTimeout / 3)}
	for _, r := range req.Vms {
		err := m.reportVM(ctx, name, r)
		switch {
		case errors.Is(err, errStale):
			res.Stale = append(res.Stale, r.Name)
		case err != nil:
			return nil, err
		}
	}
	for _, e := range req.Events {
		e.Host, e.Id = name, 0
		if !e.Time.IsValid() || e.Time.AsTime().After(m.cfg.Clock.Now()) {
			e.Time = stamp(m.cfg.Clock.Now())
		}
		m.record(e)
	}
	m.sample(name, req.Samples)
	return res, nil
}

func (m *Manager) reportHost(ctx context.Context, name string, st *v1.HostStatus) error {
	cur, err := m.Hosts.lookup(name)
	if err != nil {
		return err
	}
	back := cur.GetStatus().GetPhase() != v1.HostPhase_HOST_PHASE_READY
	if st == nil {
		if !back {
			return nil
		}
		st = cur.Status
	}
	st = clone(st)
	st.Phase, st.LastHeartbeat = v1.HostPhase_HOST_PHASE_READY, nil
	st.CpusAllocated, st.MemoryAllocatedBytes, st.Vms, st.VmsRunning = 0, 0, 0, 0
	if proto.Equal(st, cur.Status) {
		return nil
	}
	_, err = m.Hosts.mutate(ctx, name, func(h *v1.Host) error {
		h.Status = st
		return nil
	})
	if err == nil && back {
		m.event(v1.Severity_SEVERITY_INFO, resource.KindHost, name, "HOST_READY", "is heard")
	}
	return err
}

func (m *Manager) reportDatastore(ctx context.Context, host string, r *v1.DatastoreReport) error {
	cur, ok := m.Datastores.cache.Get(r.Name)
	if !ok {
		if r.Path == "" {
			return nil // was deleted meanwhile
		}
		d := &v1.Datastore{Meta: &v1.Meta{Name: r.Name}, Spec: &v1.DatastoreSpec{Host: host, Path: r.Path}, Status: r.Status}
		if err := resource.CheckDatastore(d); err != nil {
			return err
		}
		_, err := m.Datastores.create(ctx, m.store, d)
		return err
	}
	if cur.Spec.Host != host {
		return &resource.Error{Code: resource.Exists, Kind: resource.KindDatastore, Name: r.Name, Reason: "NAME_TAKEN",
			Message: fmt.Sprintf("belongs to host %q", cur.Spec.Host), Remedy: "give the datastore of host " + host + " another name"}
	}
	if proto.Equal(cur.Status, r.Status) {
		return nil
	}
	_, err := m.Datastores.mutate(ctx, r.Name, func(d *v1.Datastore) error {
		d.Status = r.Status
		return nil
	})
	return err
}

// errStale marks a report of a VM that isn't the host's in that epoch.
var errStale = errors.New("stale report")

// reportVM takes in what the owner of a VM observes.
func (m *Manager) reportVM(ctx context.Context, host string, r *v1.VMReport) error {
	owns := func(vm *v1.VM) bool {
		return vm.Meta.Uid == r.Uid && vm.GetStatus().GetOwner() == host && vm.Status.Epoch == r.Epoch
	}
	cur, ok := m.VMs.cache.Get(r.Name)
	if !ok || !owns(cur) {
		// The copy may be behind: what counts is the store. That it doesn't answer does not make a report stale.
		var err error
		cur, err = m.VMs.coll.Get(ctx, r.Name)
		switch {
		case errors.Is(err, store.ErrUnavailable):
			return m.VMs.translate(err, r.Name)
		case err != nil || !owns(cur):
			return errStale
		}
	}
	if r.Gone {
		return m.reportGone(ctx, host, r.Name, owns)
	}
	apply := func(vm *v1.VM) error {
		if !owns(vm) {
			return errStale
		}
		before := clone(vm)
		mergeStatus(vm, r.Status)
		// A guest that shut itself down stays off, unless someone has asked for something else since.
		if r.GuestOff && vm.Meta.Generation == r.Status.GetObservedGeneration() && vm.Spec.Power != v1.Power_POWER_OFF {
			vm.Spec.Power, vm.Spec.StopGrace = v1.Power_POWER_OFF, nil
			vm.Meta.Generation++
		}
		if proto.Equal(before, vm) {
			return errSame
		}
		return nil
	}
	if err := apply(clone(cur)); errors.Is(err, errSame) {
		return nil
	}
	_, err := m.VMs.mutate(ctx, r.Name, apply)
	if resource.CodeOf(err) == resource.NotFound && err != nil {
		return errStale
	}
	return err
}

// reportGone takes in that the owner of a VM holds nothing of it any more.
func (m *Manager) reportGone(ctx context.Context, host, name string, owns func(*v1.VM) bool) error {
	for range changeTries {
		vm, err := m.VMs.coll.Get(ctx, name)
		if errors.Is(err, store.ErrNotFound) || err == nil && !owns(vm) {
			return errStale // gone from here, too, and perhaps made anew
		}
		if err != nil {
			return m.VMs.translate(err, name)
		}
		if vm.Meta.DeleteTime == nil {
			return m.lost(ctx, host, name, owns)
		}
		if err := m.forgetVM(ctx, vm); resource.CodeOf(err) != resource.Conflict {
			return err
		}
	}
	return m.VMs.translate(store.ErrConflict, name)
}

// lost marks a VM that its host has lost without being told to delete it.
func (m *Manager) lost(ctx context.Context, host, name string, owns func(*v1.VM) bool) error {
	message := "host " + host + " holds nothing of it any more"
	news := false
	_, err := m.VMs.mutate(ctx, name, func(vm *v1.VM) error {
		if !owns(vm) {
			return errStale
		}
		if news = vm.Status.Phase != v1.VMPhase_VM_PHASE_FAILED || vm.Status.Message != message; !news {
			return errSame
		}
		vm.Status.Phase, vm.Status.Message, vm.Status.PhaseTime = v1.VMPhase_VM_PHASE_FAILED, message, stamp(m.cfg.Clock.Now())
		return nil
	})
	if err == nil && news {
		m.event(v1.Severity_SEVERITY_ERROR, resource.KindVM, name, "VM_LOST", message)
	}
	return err
}

// mergeStatus takes a host's report, but for what the manager alone decides.
func mergeStatus(vm *v1.VM, st *v1.VMStatus) {
	was := vm.Status
	if st == nil {
		return
	}
	st = clone(st)
	st.Owner, st.Epoch, st.Site, st.Busy, st.CurrentSnapshot = was.Owner, was.Epoch, was.Site, was.Busy, was.CurrentSnapshot
	if st.PhaseTime == nil {
		st.PhaseTime = was.PhaseTime
	}
	st.ObservedGeneration = min(st.ObservedGeneration, vm.Meta.Generation)
	if vm.Meta.DeleteTime != nil {
		st.Phase = v1.VMPhase_VM_PHASE_DELETING
	}
	vm.Status = st
}
