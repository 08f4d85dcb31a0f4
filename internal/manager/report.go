package manager

import (
	"context"
	"errors"
	"fmt"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"
	"drover/internal/store"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

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
	m.reportPorts(name, req.Ports, req.Full)
	for _, e := range req.Events[:min(len(req.Events), mostEvents)] {
		m.record(m.hostEvent(name, e))
	}
	m.sample(name, req.Samples)
	return res, nil
}

// Bounds of what one report adds to the events.
const (
	mostEvents   = 1000
	longestEvent = 4 << 10 // bytes of its message
)

// hostEvent is an event as a host may tell it: of itself, of the VMs that it holds and their ports, and of those that are gone. What it says of others is
// told as its own word.
func (m *Manager) hostEvent(host string, e *v1.Event) *v1.Event {
	e.Host, e.Id = host, 0
	if !e.Time.IsValid() || e.Time.AsTime().After(m.cfg.Clock.Now()) {
		e.Time = stamp(m.cfg.Clock.Now())
	}
	short := func(s string, n int) string { return strings.ToValidUTF8(s[:min(len(s), n)], "") }
	e.Kind, e.Name, e.Reason, e.Message = short(e.Kind, 64), short(e.Name, 130), short(e.Reason, 64), short(e.Message, longestEvent)
	own := e.Kind == resource.KindHost && e.Name == host
	if e.Kind == resource.KindVM {
		vm, there := m.VMs.cache.Get(e.Name)
		own = !there || vm.GetStatus().GetOwner() == host
	}
	if e.Kind == resource.KindPort {
		vmName, _, _ := strings.Cut(e.Name, "/")
		vm, there := m.VMs.cache.Get(vmName)
		own = !there || vm.GetStatus().GetOwner() == host
	}
	if !own {
		e.Message = e.Kind + " " + e.Name + ": " + e.Message
		e.Kind, e.Name = resource.KindHost, host
	}
	return e
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
	} else {
		m.heard.load(name, st)
	}
	st = clone(st)
	st.Phase, st.LastHeartbeat = v1.HostPhase_HOST_PHASE_READY, nil
	st.CpusAllocated, st.MemoryAllocatedBytes, st.Vms, st.VmsRunning = 0, 0, 0, 0
	st.CpuLoad, st.MemoryFreeBytes = 0, 0
	withoutMoving(st)
	keepReach(cur.Status, st)
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
	if sameStore(cur.Status, r.Status) {
		return nil
	}
	_, err := m.Datastores.mutate(ctx, r.Name, func(d *v1.Datastore) error {
		d.Status = r.Status
		return nil
	})
	return err
}

// sameStore reports whether a datastore's status has no news worth a write: its free room changes all the time.
func sameStore(was, is *v1.DatastoreStatus) bool {
	if d := was.GetFreeBytes() - is.GetFreeBytes(); was == nil || max(d, -d) > is.GetCapacityBytes()/100 {
		return false
	}
	was, is = clone(was), clone(is)
	was.FreeBytes, is.FreeBytes = 0, 0
	return proto.Equal(was, is)
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
			// A task that has the VM may have told the host of the next generation, with another spec: this must not become
			// that one. The host keeps the guest off without being told so.
			if vm.Status.Busy == "" {
				vm.Meta.Generation++
			}
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
	// A revert tells the host of the next generation before it is stored here. What the host says of it then is not said
	// again, so it must not get lost.
	limit := vm.Meta.Generation
	if was.GetBusy() != "" {
		limit++
	}
	st.ObservedGeneration = min(st.ObservedGeneration, limit)
	if vm.Meta.DeleteTime != nil {
		st.Phase = v1.VMPhase_VM_PHASE_DELETING
	}
	vm.Status = st
}
