package manager

import (
	"context"
	"slices"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"
	"drover/internal/store"

	"google.golang.org/protobuf/proto"
)

// WatchFor streams what a host should know and run: its own record and the other hosts as peers, its datastores, the networks, port
// profiles and images, the registrations of the switch, then its VMs; SYNCED; then changes. A VM that is no longer the host's is DELETED.
func (m *Manager) WatchFor(ctx context.Context, host string, send func(*v1.AgentChange) error) error {
	feed := &agentFeed{m: m, host: host, send: send, mine: map[string]bool{}, told: map[string]int64{}, peers: map[string]*v1.Peer{}, chains: map[string]int64{}}
	hosts, stores, nets := m.Hosts.cache.Subscribe(0), m.Datastores.cache.Subscribe(0), m.Networks.cache.Subscribe(0)
	profs, images, vms, regs := m.Profiles.cache.Subscribe(0), m.Images.cache.Subscribe(0), m.VMs.cache.Subscribe(0), m.board.regs.Subscribe(0)
	steps := make(chan func() error)
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	// One goroutine for each kind waits; what it gets is sent by this one, so that the stream has one writer. The first
	// batch of each is sent here, in the order that hosts rely on.
	for _, first := range []func() error{
		batch(ctx, hosts, feed.host_), batch(ctx, stores, feed.datastore), batch(ctx, nets, feed.network), batch(ctx, profs, feed.profile),
		batch(ctx, images, feed.image), batches(ctx, regs, feed.registrations), batch(ctx, vms, feed.vm),
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
	go follow(ctx, stop, profs, steps, feed.profile)
	go follow(ctx, stop, images, steps, feed.image)
	go followBatches(ctx, stop, regs, steps, feed.registrations)
	go follow(ctx, stop, vms, steps, feed.vm)
	settled := m.board.settled
	if feed.complete {
		settled = nil
	}
	for {
		select {
		case step := <-steps:
			if err := step(); err != nil {
				return err
			}
		case <-settled:
			settled = nil
			if err := feed.allRegistrations(); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func batch[T proto.Message](ctx context.Context, sub *store.Subscription[T], each func(store.Event[T]) error) func() error {
	return batches(ctx, sub, func(events []store.Event[T]) error {
		for _, e := range events {
			if e.Type == store.Reset {
				continue // the first state; nothing was sent before
			}
			if err := each(e); err != nil {
				return err
			}
		}
		return nil
	})
}

func batches[T proto.Message](ctx context.Context, sub *store.Subscription[T], all func([]store.Event[T]) error) func() error {
	return func() error {
		events, err := sub.Next(ctx)
		if err != nil {
			return err
		}
		return all(events)
	}
}

// follow hands changes of one kind over to the writer until ctx ends. Its owner is WatchFor, whose stop ends it.
func follow[T proto.Message](ctx context.Context, stop context.CancelCauseFunc, sub *store.Subscription[T], steps chan<- func() error, each func(store.Event[T]) error) {
	followBatches(ctx, stop, sub, steps, func(events []store.Event[T]) error {
		for _, e := range events {
			if err := each(e); err != nil {
				return err
			}
		}
		return nil
	})
}

// followBatches is follow for who looks at all changes of a batch together.
func followBatches[T proto.Message](ctx context.Context, stop context.CancelCauseFunc, sub *store.Subscription[T], steps chan<- func() error, all func([]store.Event[T]) error) {
	for {
		events, err := sub.Next(ctx)
		if err != nil {
			stop(err)
			return
		}
		select {
		case steps <- func() error { return all(events) }:
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
	// site is the host's; peers and chains are what it was told of the other hosts, and of which generation of profiles.
	site   string
	peers  map[string]*v1.Peer
	chains map[string]int64
	// complete: it was told of all registrations as such.
	complete bool
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
	if err != nil || kind == 0 {
		return err
	}
	if h.Meta.Name != f.host {
		return f.peer(kind, h)
	}
	if kind == v1.ChangeKind_CHANGE_KIND_DELETED {
		return &resource.Error{Code: resource.Denied, Kind: resource.KindHost, Name: f.host, Reason: "HOST_REMOVED", Message: "was removed from this installation"}
	}
	moved := f.site != "" && f.site != h.Spec.GetSite()
	f.site = h.Spec.GetSite()
	if err := f.send(&v1.AgentChange{Kind: kind, Object: &v1.AgentChange_Host{Host: h}}); err != nil || !moved {
		return err
	}
	return f.allRegistrations()
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
	if err := f.send(&v1.AgentChange{Kind: kind, Object: &v1.AgentChange_Network{Network: n}}); err != nil {
		return err
	}
	if old := e.Old; kind == v1.ChangeKind_CHANGE_KIND_MODIFIED && f.complete && resource.Spans(old.Spec, f.site) != resource.Spans(n.Spec, f.site) {
		return f.allRegistrations()
	}
	return nil
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
		n, _ := f.m.Networks.cache.Get(nic.Network)
		if err := f.chain(profileOf(nic, n)); err != nil {
			return err
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
	if kind == v1.ChangeKind_CHANGE_KIND_MODIFIED && e.Old.ProtoReflect().IsValid() && e.Old.Meta.Uid == vm.Meta.Uid && e.Old.Meta.Generation == vm.Meta.Generation && e.Old.GetStatus().GetEpoch() == vm.Status.Epoch {
		return nil
	}
	if here {
		if err := f.ahead(vm); err != nil {
			return err
		}
	}
	return f.send(&v1.AgentChange{Kind: kind, Object: &v1.AgentChange_Vm{Vm: vm}})
}
