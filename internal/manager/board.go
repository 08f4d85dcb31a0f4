package manager

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"
	"drover/internal/store"

	"google.golang.org/protobuf/proto"
)

// board is the switch as the manager knows it: its ports, and who has which MAC and which addresses. It is worked out of VMs,
// networks and profiles, and of what hosts report of their ports; nothing of it is stored. A change is worked out for the ports
// that it is about alone.
type board struct {
	m *Manager
	// view are the ports as callers see them; regs the registrations as hosts are told, by "VNI/MAC".
	view *store.Cache[*v1.Port]
	regs *store.Cache[*v1.Registration]
	// built is closed when all that was there at the start is in, settled when also the hosts have said what they know.
	built, settled chan struct{}

	mu sync.Mutex
	// ports are by "VM/NIC"; those of a VM are also in ofVM.
	ports map[string]*boardPort
	ofVM  map[string][]string
	// holders are the ports that want a registration. The one that has it is first.
	holders map[string][]holder
	// addresses are the ports that say they have an address, by "VNI/ADDRESS". The one that has it is first.
	addresses map[string][]claim
	// unheard are the hosts that have not reported their ports since the start.
	unheard map[string]bool
	rev     int64
}

// boardPort is what is remembered of a port.
type boardPort struct {
	network, profile string
	trunk            bool  // it may be on any network
	chain            int64 // the generation of its profile's chain
	host             string
	wants            map[string]*v1.Registration
	claims           map[string]bool // addresses, as in board.addresses: whether they are assigned
	// status is as its host told; uid and epoch say of which VM, and of which time.
	status *v1.PortStatus
	uid    string
	epoch  int64
}

// holder is a port that wants a registration.
type holder struct {
	port string
	reg  *v1.Registration
	// own: it is the MAC of the NIC. Such a one goes before those that were granted.
	own bool
}

func newBoard(m *Manager) *board {
	rev := m.cfg.Clock.Now().UnixMilli() // grows also over restarts
	return &board{
		m: m, rev: rev, view: store.NewMemory[*v1.Port](0, rev), regs: store.NewMemory[*v1.Registration](boardRing, rev),
		built: make(chan struct{}), settled: make(chan struct{}),
		ports: map[string]*boardPort{}, ofVM: map[string][]string{}, holders: map[string][]holder{}, addresses: map[string][]claim{}, unheard: map[string]bool{},
	}
}

const (
	// boardRing is how many changes of registrations a host may lag before it gets all of them again.
	boardRing = 8192
	// expireEvery is how often leases that have ended are looked for.
	expireEvery = 10 * time.Second
)

// wait returns when what was there at the start is in.
func (b *board) wait(ctx context.Context) error {
	select {
	case <-b.built:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run keeps the board until ctx ends.
func (b *board) run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop(nil)
	// What is there now is worked out by begin; from then on the events say what to look at again.
	nets, profs, vms := after(b.m.Networks), after(b.m.Profiles), after(b.m.VMs)
	steps := make(chan func() error)
	wg.Go(func() { follow(ctx, stop, nets, steps, orAll(b.rebuild, b.network)) })
	wg.Go(func() { follow(ctx, stop, profs, steps, orAll(b.rebuild, b.profileChanged)) })
	wg.Go(func() { follow(ctx, stop, vms, steps, orAll(b.rebuild, b.vm)) })
	b.begin()
	grace, tick := b.m.cfg.Clock.NewTimer(b.m.cfg.HostTimeout), b.m.cfg.Clock.NewTimer(expireEvery)
	defer grace.Stop()
	defer tick.Stop()
	for {
		select {
		case step := <-steps:
			if err := step(); err != nil {
				return err
			}
		case <-grace.C:
			b.settle("")
		case <-tick.C:
			b.expire()
			tick.Reset(expireEvery)
		case <-ctx.Done():
			return nil
		}
	}
}

// after follows a kind from what is in memory now on.
func after[T Object](r *Registry[T]) *store.Subscription[T] {
	return r.cache.Subscribe(r.cache.Revision())
}

// orAll calls each for single changes, and all instead where changes were lost.
func orAll[T proto.Message](all func(), each func(store.Event[T])) func(store.Event[T]) error {
	resetting := false
	return func(e store.Event[T]) error {
		switch e.Type {
		case store.Reset:
			resetting = true
		case store.Synced:
			resetting = false
			all()
		case store.Put, store.Delete:
			if !resetting {
				each(e)
			}
		}
		return nil
	}
}

// begin works out everything.
func (b *board) begin() {
	hosts, _ := b.m.Hosts.cache.List()
	b.mu.Lock()
	for _, h := range hosts {
		if h.GetStatus().GetPhase() == v1.HostPhase_HOST_PHASE_READY {
			b.unheard[h.Meta.Name] = true
		}
	}
	all := len(b.unheard) == 0
	b.mu.Unlock()
	b.rebuild()
	if all {
		b.settle("")
	}
	close(b.built)
}

// settle notes that a host has told all of its ports, or with "" that no longer is waited for those that have not.
func (b *board) settle(host string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.unheard, host)
	if host == "" {
		clear(b.unheard)
	}
	if len(b.unheard) > 0 {
		return
	}
	select {
	case <-b.settled:
	default:
		close(b.settled)
	}
}

// rebuild works out all ports, those that are known and those that should be.
func (b *board) rebuild() {
	b.mu.Lock()
	defer b.mu.Unlock()
	var names []string
	for name := range b.ofVM {
		names = append(names, b.portsOf(name)...)
	}
	vms, _ := b.m.VMs.cache.List()
	for _, vm := range vms {
		names = append(names, b.portsOf(vm.Meta.Name)...)
	}
	slices.Sort(names)
	b.refresh(slices.Compact(names))
}

// vm, network and profileChanged are told of changes. They look at what is there now, not at the event: the board may be ahead of it.
func (b *board) vm(e store.Event[*v1.VM]) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refresh(b.portsOf(e.Name))
}

func (b *board) network(e store.Event[*v1.Network]) {
	b.again(func(p *boardPort) bool { return p.network == e.Name || p.trunk })
}

func (b *board) profileChanged(e store.Event[*v1.PortProfile]) {
	if e.Type == store.Put && e.Old != nil && e.Old.Meta.Generation == e.Object.Meta.Generation {
		return
	}
	heirs := profiles{m: b.m}.heirs(e.Name)
	b.again(func(p *boardPort) bool { return heirs[p.profile] })
}

func (b *board) again(which func(*boardPort) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refresh(b.where(which))
}

// where are the names of ports. b.mu is held.
func (b *board) where(which func(*boardPort) bool) []string {
	var names []string
	for name, p := range b.ports {
		if which(p) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// portsOf are a VM's ports, those that it had and those that it has. b.mu is held.
func (b *board) portsOf(name string) []string {
	names := slices.Clone(b.ofVM[name])
	vm, _ := b.m.VMs.cache.Get(name)
	for _, nic := range vm.GetSpec().GetNics() {
		if port := name + "/" + nic.Name; !slices.Contains(names, port) {
			names = append(names, port)
		}
	}
	return names
}

// expire looks again at ports with leases that have ended.
func (b *board) expire() {
	now := b.m.cfg.Clock.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refresh(b.where(func(p *boardPort) bool {
		return slices.ContainsFunc(p.status.GetBindings(), func(x *v1.Binding) bool { return expired(x, now) })
	}))
}

func expired(x *v1.Binding, now time.Time) bool {
	return x.ExpireTime != nil && !now.Before(x.ExpireTime.AsTime())
}

// refresh works the named ports out anew and tells what has changed. b.mu is held.
func (b *board) refresh(names []string) {
	touched, looks := map[string]bool{}, map[string]bool{}
	inForce := b.inForce()
	for i := 0; i < len(names); i++ {
		looks[names[i]] = true
		names = append(names, b.refreshOne(names[i], inForce, touched)...) // ends: what a port claims does not depend on others
	}
	b.rev++
	var regs []store.Event[*v1.Registration]
	for _, key := range sorted(touched) {
		was, had := b.regs.Get(key)
		list := b.holders[key]
		for _, h := range list {
			looks[h.port] = true // who has it, and who can't
		}
		switch {
		case len(list) == 0:
			delete(b.holders, key)
			if had {
				regs = append(regs, store.Event[*v1.Registration]{Type: store.Delete, Name: key, Revision: b.rev})
			}
		case !had || !proto.Equal(was, list[0].reg):
			regs = append(regs, store.Event[*v1.Registration]{Type: store.Put, Name: key, Object: list[0].reg, Revision: b.rev})
		}
	}
	var views []store.Event[*v1.Port]
	for _, name := range sorted(looks) {
		was, had := b.view.Get(name)
		is := b.show(name, inForce)
		switch {
		case is == nil && had:
			views = append(views, store.Event[*v1.Port]{Type: store.Delete, Name: name, Revision: b.rev})
		case is != nil && (!had || !sameBut(was, is)):
			is.Meta.Revision = b.rev
			views = append(views, store.Event[*v1.Port]{Type: store.Put, Name: name, Object: is, Revision: b.rev})
		}
	}
	feed(b.regs, regs, b.rev)
	feed(b.view, views, b.rev)
}

// many is how many objects at once an empty cache gets as its first state.
const many = 1000

// feed gives changes to a cache. Many to an empty one are its first state, which it sorts once and not at each; followers get the whole state then.
func feed[T proto.Message](c *store.Cache[T], events []store.Event[T], rev int64) {
	if c.Len() == 0 && len(events) >= many {
		events = append([]store.Event[T]{{Type: store.Reset, Revision: rev}}, events...)
		events = append(events, store.Event[T]{Type: store.Synced, Revision: rev})
	}
	c.Feed(events)
}

// force is a profile with what it inherits.
type force struct {
	effective  *v1.PortProfileSpec
	generation int64
}

// inForce works profiles out once for many ports.
func (b *board) inForce() func(profile string) force {
	known := map[string]force{}
	return func(name string) force {
		x, ok := known[name]
		if !ok {
			x.effective, x.generation = profiles{m: b.m}.effective(name)
			known[name] = x
		}
		return x
	}
}

// refreshOne works out what a port wants to be registered, and notes which registrations that touches. It returns ports that got or lost an address by it.
// b.mu is held.
func (b *board) refreshOne(name string, inForce func(string) force, touched map[string]bool) (others []string) {
	vmName, part, _ := resource.Part(name)
	vm, _ := b.m.VMs.cache.Get(vmName)
	nic := nicOf(vm, part)
	p := b.ports[name]
	if nic == nil {
		if p != nil {
			b.want(name, p, nil, touched)
			others = b.claim(name, p, 0, nil)
			delete(b.ports, name)
			if b.ofVM[vmName] = slices.DeleteFunc(b.ofVM[vmName], func(s string) bool { return s == name }); len(b.ofVM[vmName]) == 0 {
				delete(b.ofVM, vmName)
			}
		}
		return others
	}
	if p == nil {
		p = &boardPort{}
		b.ports[name] = p
		b.ofVM[vmName] = append(b.ofVM[vmName], name)
	}
	if p.uid != "" && p.uid != vm.Meta.Uid {
		p.status, p.uid = nil, "" // another VM of that name
	}
	if p.status != nil && p.epoch != vm.GetStatus().GetEpoch() {
		p.status = left(p.status) // the VM has moved: what is the port's own goes with it
		p.epoch = vm.GetStatus().GetEpoch()
	}
	net, _ := b.m.Networks.cache.Get(nic.Network)
	p.network, p.profile, p.host = nic.Network, profileOf(nic, net), vm.GetStatus().GetOwner()
	x := inForce(p.profile)
	p.chain, p.trunk = x.generation, len(x.effective.GetTrunk().GetVlans()) > 0
	bound := b.bindings(p.status, nic, x.effective)
	if p.host == "" {
		bound = nil // it is nowhere
	}
	others = b.claim(name, p, net.GetStatus().GetVni(), bound)
	b.want(name, p, b.registrations(name, p, vm.GetStatus().GetSite(), nic, net, x.effective, bound), touched)
	return others
}

// left is what stays of a port's status when its device is gone.
func left(st *v1.PortStatus) *v1.PortStatus {
	return &v1.PortStatus{Counters: st.Counters, Bindings: st.Bindings, Macs: st.Macs, UpdateTime: st.UpdateTime}
}

// want sets what a port wants to be registered. b.mu is held.
func (b *board) want(name string, p *boardPort, is map[string]*v1.Registration, touched map[string]bool) {
	for key := range p.wants {
		if is[key] == nil {
			b.holders[key] = slices.DeleteFunc(b.holders[key], func(h holder) bool { return h.port == name })
			touched[key] = true
		}
	}
	for key, reg := range is {
		if was := p.wants[key]; was != nil && proto.Equal(was, reg) {
			is[key] = was
			continue
		}
		b.hold(key, holder{name, reg, key == ownKey(b.m, name, reg)})
		touched[key] = true
	}
	p.wants = is
}

// hold puts a port among those that want a registration. The MAC of a NIC goes first; then who had it, but the MAC of a virtual router
// goes to who has come last: it moves. b.mu is held.
func (b *board) hold(key string, h holder) {
	list := b.holders[key]
	i := slices.IndexFunc(list, func(x holder) bool { return x.port == h.port })
	switch {
	case i >= 0:
		list[i] = h
	case h.own:
		list = slices.Insert(list, 0, h)
	case resource.VirtualMAC(h.reg.Mac) && (len(list) == 0 || !list[0].own):
		list = slices.Insert(list, 0, h)
	default:
		list = append(list, h)
	}
	b.holders[key] = list
}

// ownKey is the key of the registration of a port's own MAC.
func ownKey(m *Manager, name string, reg *v1.Registration) string {
	vmName, part, _ := resource.Part(name)
	vm, _ := m.VMs.cache.Get(vmName)
	return registrationKey(reg.Vni, nicOf(vm, part).GetMac())
}

func registrationKey(vni int32, mac string) string { return fmt.Sprintf("%d/%s", vni, mac) }
