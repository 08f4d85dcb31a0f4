package manager

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"
	"drover/internal/store"
)

// world is a manager with hosts, a network and VMs put straight into its store.
type world struct {
	m *Manager
}

func newWorld(t testing.TB, hosts, vms int) *world {
	t.Helper()
	dir := t.TempDir()
	m, err := Open(t.Context(), Config{StateDir: dir, Listen: "127.0.0.1:0", Socket: filepath.Join(dir, "s"), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	put := func(ops []store.Op) {
		for part := range slices.Chunk(ops, 100) {
			if _, err := m.store.Txn(t.Context(), part...); err != nil {
				t.Fatal(err)
			}
		}
	}
	ops := []store.Op{
		m.Sites.coll.CreateOp(&v1.Site{Meta: &v1.Meta{Name: "s1"}, Spec: &v1.SiteSpec{}}),
		m.Networks.coll.CreateOp(&v1.Network{Meta: &v1.Meta{Name: "net1"}, Spec: &v1.NetworkSpec{}, Status: &v1.NetworkStatus{Vni: 5, Mtu: 1430}}),
	}
	for i := range hosts {
		ops = append(ops, m.Hosts.coll.CreateOp(&v1.Host{Meta: &v1.Meta{Name: hostName(i), Uid: resource.NewUID()}, Spec: &v1.HostSpec{Site: "s1"}, Status: &v1.HostStatus{}}))
	}
	for i := range vms {
		ops = append(ops, m.VMs.coll.CreateOp(&v1.VM{
			Meta:   &v1.Meta{Name: vmName(i), Uid: resource.NewUID(), Generation: 1},
			Spec:   &v1.VMSpec{Nics: []*v1.NICSpec{{Name: "n0", Network: "net1", Mac: macOf(i), Addresses: []string{fmt.Sprintf("10.%d.%d.%d/8", i>>16, i>>8&255, i&255)}}}},
			Status: &v1.VMStatus{Owner: hostName(i % max(hosts, 1)), Epoch: 1, Site: "s1"},
		}))
	}
	put(ops)
	ctx, stop := context.WithCancel(context.Background())
	up, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- m.Run(ctx, func() { close(up) }) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	select {
	case <-up:
	case err := <-done:
		done <- nil
		t.Fatal(err)
	case <-time.After(time.Minute):
		t.Fatal("the manager did not come up within a minute")
	}
	return &world{m: m}
}

func hostName(i int) string { return fmt.Sprintf("h%d", i) }
func vmName(i int) string   { return fmt.Sprintf("vm%05d", i) }
func macOf(i int) string {
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", i*31>>16&255, i*31>>8&255, i*31&255)
}

// hearers are hosts that note when they are told of registrations.
type hearers struct {
	mu      sync.Mutex
	told    []map[string]*v1.Registration // by MAC
	largest int                           // of the messages, in registrations
	news    chan struct{}
	synced  sync.WaitGroup
	took    []time.Duration // from the call to the whole first batch
}

func (w *world) hear(t testing.TB, hosts int) *hearers {
	t.Helper()
	x := &hearers{told: make([]map[string]*v1.Registration, hosts), took: make([]time.Duration, hosts), news: make(chan struct{}, 1)}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	t.Cleanup(func() { stop(); wg.Wait() })
	x.synced.Add(hosts)
	for i := range hosts {
		x.told[i] = map[string]*v1.Registration{}
		begin := time.Now()
		wg.Go(func() {
			err := w.m.WatchFor(ctx, hostName(i), func(c *v1.AgentChange) error {
				if c.Kind == v1.ChangeKind_CHANGE_KIND_SYNCED {
					x.synced.Done()
				}
				b := c.GetRegistrations()
				if b == nil {
					return nil
				}
				x.mu.Lock()
				defer x.mu.Unlock()
				if len(b.Set) > x.largest {
					x.largest = len(b.Set)
				}
				for _, r := range b.Set {
					x.told[i][r.Mac] = r
				}
				if b.Full && !b.More {
					x.took[i] = time.Since(begin)
				}
				select {
				case x.news <- struct{}{}:
				default:
				}
				return nil
			})
			if ctx.Err() == nil {
				t.Errorf("watch of %s: %v", hostName(i), err)
			}
		})
	}
	x.synced.Wait()
	return x
}

// until waits until every host knows an address of a MAC.
func (x *hearers) until(t testing.TB, mac, address string) {
	t.Helper()
	end := time.NewTimer(10 * time.Second)
	defer end.Stop()
	for {
		x.mu.Lock()
		n := 0
		for _, m := range x.told {
			if slices.Contains(m[mac].GetAddresses(), address) {
				n++
			}
		}
		x.mu.Unlock()
		if n == len(x.told) {
			return
		}
		select {
		case <-x.news:
		case <-end.C:
			t.Fatalf("%d of %d hosts know that %s has %s", n, len(x.told), mac, address)
		}
	}
}

func (w *world) lease(i, n int) string {
	address := fmt.Sprintf("10.200.%d.%d", n>>8&255, n&255)
	vm, _ := w.m.VMs.cache.Get(vmName(i))
	w.m.reportPorts(vm.Status.Owner, []*v1.PortReport{{
		Name: vmName(i) + "/n0", Uid: vm.Meta.Uid, Epoch: 1, Status: &v1.PortStatus{Bindings: []*v1.Binding{{Address: address, Source: bindingDHCP}}},
	}}, false)
	return address
}

// 10,000 registrations are pushed to a host within a second, and a change reaches ten hosts within 100 ms: half of the changes, so that a
// busy machine does not fail the test.
func TestRegistrationsAreQuick(t *testing.T) {
	const hosts, vms = 10, 10_000
	w := newWorld(t, hosts, vms)
	x := w.hear(t, hosts)
	x.mu.Lock()
	for i := range hosts {
		if len(x.told[i]) != vms {
			t.Errorf("host %d knows %d registrations of %d", i, len(x.told[i]), vms)
		}
	}
	first := slices.Min(x.took)
	x.mu.Unlock()
	if first > slack*time.Second {
		t.Errorf("the first batch took %v", first)
	}
	var took []time.Duration
	for n := range 21 {
		begin := time.Now()
		x.until(t, macOf(n*97), w.lease(n*97, n))
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	t.Logf("first batch of %d: %v; a change to %d hosts: %v, at most %v", vms, first, hosts, took[len(took)/2], took[len(took)-1])
	if took[len(took)/2] > slack*100*time.Millisecond {
		t.Errorf("a change took %v", took[len(took)/2])
	}
	if x.largest != vms {
		t.Errorf("the largest message had %d registrations", x.largest)
	}
	// A profile's change reaches all ports.
	begin, views := time.Now(), w.m.board.view.Subscribe(w.m.board.view.Revision())
	e, _ := profiles{m: w.m}.effective(resource.DefaultProfile)
	if e.Guards.Arp != v1.Toggle_TOGGLE_OFF {
		t.Errorf("default: %v", e)
	}
	if _, err := w.m.CreateProfile(t.Context(), &v1.PortProfile{Meta: &v1.Meta{Name: "p"}}, false); err != nil {
		t.Fatal(err)
	}
	if _, err := w.m.UpdateNetwork(t.Context(), &v1.Network{Meta: &v1.Meta{Name: "net1"}, Spec: &v1.NetworkSpec{Profile: "p"}}, nil, false); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	for left := vms; left > 0; {
		events, err := views.Next(ctx)
		if err != nil {
			t.Fatalf("%d ports did not get the network's profile: %v", left, err)
		}
		for _, e := range events {
			if e.Type == store.Put && e.Object.Spec.Profile == "p" {
				left--
			}
		}
	}
	t.Logf("another profile for %d ports: %v", vms, time.Since(begin))
}

// A batch that does not fit one message is told in several, and only the last ends it.
func TestBatchesAreSplit(t *testing.T) {
	var sent []*v1.Registrations
	f := &agentFeed{send: func(c *v1.AgentChange) error {
		sent = append(sent, c.GetRegistrations())
		return nil
	}}
	long := make([]string, 64)
	for i := range long {
		long[i] = fmt.Sprintf("2001:db8:aaaa:bbbb:cccc:dddd:eeee:%x", i)
	}
	b := &v1.Registrations{Full: true, Removed: []string{"x"}}
	for i := range 3000 {
		b.Set = append(b.Set, &v1.Registration{Mac: macOf(i), Addresses: long})
	}
	if err := f.sendRegistrations(b); err != nil {
		t.Fatal(err)
	}
	n := 0
	for i, part := range sent {
		last := i == len(sent)-1
		if part.More == last || !part.Full || (len(part.Removed) == 1) != last {
			t.Errorf("message %d of %d: more %v, removed %v", i, len(sent), part.More, part.Removed)
		}
		n += len(part.Set)
	}
	if len(sent) < 2 || n != 3000 {
		t.Errorf("%d messages with %d registrations", len(sent), n)
	}
}

// BenchmarkChange is one change among 10,000 registrations until ten hosts know it.
func BenchmarkChange(b *testing.B) {
	const hosts, vms = 10, 10_000
	w := newWorld(b, hosts, vms)
	x := w.hear(b, hosts)
	n := 0
	for b.Loop() {
		i := n * 97 % vms
		x.until(b, macOf(i), w.lease(i, n))
		n++
	}
}

// Leases that have ended are no addresses any more, whether the host says so or not.
func TestLeasesEnd(t *testing.T) {
	w := newWorld(t, 1, 1)
	b := w.m.board
	vm, _ := w.m.VMs.cache.Get(vmName(0))
	end := time.Now().Add(50 * time.Millisecond)
	w.m.reportPorts(hostName(0), []*v1.PortReport{{Name: vmName(0) + "/n0", Uid: vm.Meta.Uid, Epoch: 1, Status: &v1.PortStatus{
		Bindings: []*v1.Binding{{Address: "10.9.9.9", Source: bindingDHCP, ExpireTime: stamp(end)}, {Address: "10.9.9.8", Source: bindingDHCP, Mac: "nonsense"}, {Address: "10.9.9.7", Source: "assigned"}},
	}}}, false)
	addresses := func() []string {
		r, _ := b.regs.Get(registrationKey(5, macOf(0)))
		return r.GetAddresses()
	}
	if got := addresses(); !slices.Equal(got, []string{"10.0.0.0", "10.9.9.9", "10.9.9.8"}) {
		t.Fatalf("registered: %v", got)
	}
	<-time.After(time.Until(end))
	b.expire()
	if got := addresses(); !slices.Equal(got, []string{"10.0.0.0", "10.9.9.8"}) {
		t.Errorf("after the lease's end: %v", got)
	}
}

// A VM that moves keeps what is its port's own; one that is made anew under its name starts with nothing.
func TestPortsMoveWithTheirVMs(t *testing.T) {
	w := newWorld(t, 2, 1)
	m, name := w.m, vmName(0)
	vm, _ := m.VMs.cache.Get(name)
	report := func(host, uid string, epoch int64, device string) {
		m.reportPorts(host, []*v1.PortReport{{Name: name + "/n0", Uid: uid, Epoch: epoch, Status: &v1.PortStatus{
			Device: device, Active: true, Counters: &v1.PortCounters{InPackets: 7}, Bindings: []*v1.Binding{{Address: "10.9.9.9", Source: bindingDHCP}},
		}}}, false)
	}
	see := func(what, host, device string, bindings int) {
		t.Helper()
		views := m.board.view.Subscribe(0)
		ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
		defer stop()
		for {
			events, err := views.Next(ctx)
			if err != nil {
				p, _ := m.board.view.Get(name + "/n0")
				t.Fatalf("%s: %v", what, p)
			}
			for _, e := range events {
				if st := e.Object.GetStatus(); e.Type == store.Put && st.Host == host && st.Device == device && len(st.Bindings) == bindings {
					return
				}
			}
		}
	}
	report(hostName(0), vm.Meta.Uid, 1, "tap0")
	see("at first", hostName(0), "tap0", 2)
	if _, err := m.VMs.mutate(t.Context(), name, func(vm *v1.VM) error {
		vm.Status.Owner, vm.Status.Epoch = hostName(1), 2
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	see("moved", hostName(1), "", 2)
	report(hostName(0), vm.Meta.Uid, 1, "tap0") // late
	report(hostName(0), vm.Meta.Uid, 2, "tap0") // lies
	report(hostName(1), "other", 2, "tap1")
	see("still moved", hostName(1), "", 2)
	report(hostName(1), vm.Meta.Uid, 2, "tap1")
	see("there", hostName(1), "tap1", 2)
	if err := m.VMs.remove(t.Context(), name, 0); err != nil {
		t.Fatal(err)
	}
	fresh := clone(vm)
	fresh.Meta = &v1.Meta{Name: name}
	if _, err := m.VMs.create(t.Context(), m.store, fresh); err != nil {
		t.Fatal(err)
	}
	see("made anew", hostName(0), "", 1)
}
