package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/clock"
	"drover/internal/hostnet"
)

// agent is the role, composed.
type agent struct {
	cfg     Config
	log     *slog.Logger
	clk     clock.Clock
	boot    string
	id      *identity
	address string // where the manager reaches us
	http    *http.Client
	manager droverv1connect.AgentServiceClient
	net     *hostnet.Net

	facts    facts
	accel    accelerator
	load     load
	world    *world
	events   *events
	reporter *reporter
	stores   *stores
	fabric   *fabric
	gate     *gate
	flights  flights
	lending  lending
	pruning  chan struct{} // look for images that nobody needs
	anew     chan struct{} // ask the watch to begin anew

	// life is the context of the actors: it ends with the agent.
	life   context.Context
	actors sync.WaitGroup

	mu       sync.Mutex
	machines map[string]*machine // by uid
	arrived  chan struct{}       // closed, and made anew, when a VM is added
	users    map[uint32]string   // numeric users of VMs, and whose
}

// Run is the role: it serves until ctx ends, and then leaves the VMs running.
func Run(ctx context.Context, cfg Config) (err error) {
	if err := cfg.Validate(); err != nil {
		return err
	}
	dirs := map[string]fs.FileMode{cfg.StateDir: 0o700, cfg.RunDir: 0o711, cfg.ShmDir: 0o711}
	if cfg.RepositoriesOnly {
		delete(dirs, cfg.ShmDir)
	}
	for dir, mode := range dirs {
		if err := os.MkdirAll(dir, mode); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	lock, err := lockDir(cfg.StateDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	a := &agent{
		cfg: cfg, log: cfg.Log, clk: cfg.Clock, reporter: newReporter(), events: &events{clk: cfg.Clock},
		anew: make(chan struct{}, 1), pruning: make(chan struct{}, 1), machines: map[string]*machine{}, arrived: make(chan struct{}), facts: readFacts(cfg.ShmDir),
	}
	if a.boot = cfg.BootID; a.boot == "" {
		a.boot, err = bootID()
	}
	if err != nil {
		return fmt.Errorf("which boot this is: %w", err)
	}
	if cfg.RepositoriesOnly {
		if err := a.noVMs(); err != nil {
			return err
		}
	} else {
		if a.net, err = hostnet.Current(); err != nil {
			return err
		}
		defer a.net.Close()
	}
	if a.world, err = loadWorld(cfg.StateDir); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen for the manager: %w", err)
	}
	defer listener.Close()
	return a.run(ctx, listener)
}

func (a *agent) run(ctx context.Context, listener net.Listener) (err error) {
	probed := make(chan error, 1)
	go func() { probed <- a.probe(ctx) }()
	a.id, err = a.join(ctx, func(manager string) string { return a.advertise(manager, listener) })
	if perr := <-probed; err == nil {
		err = perr
	}
	if err != nil {
		return err
	}
	a.address = a.advertise(a.id.Manager, listener)
	if err := a.dialManager(); err != nil {
		return err
	}
	defer a.http.CloseIdleConnections()
	a.log = a.log.With("host", a.id.Host)
	if a.cfg.RepositoriesOnly {
		return a.runRepositories(ctx, listener)
	}
	if a.stores, err = openStores(a); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.stores.close()) }()

	if a.fabric, err = newFabric(a); err != nil {
		return fmt.Errorf("the switch: %w", err)
	}
	// The switch's part ends after the actors, which take their ports back when they are cut off.
	switched, endSwitch := context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		endSwitch()
		err = errors.Join(err, a.fabric.close())
	}()
	life, end := context.WithCancel(ctx)
	defer end()
	a.life = life
	if err := a.recover(life, switched); err != nil {
		return err
	}
	servers, err := a.serve(life, listener)
	if err != nil {
		return err
	}
	var parts sync.WaitGroup
	for _, part := range []func(context.Context){a.watch, a.report, a.keepCertificate, a.sample, a.prune} {
		parts.Go(func() { part(life) })
	}
	a.log.Info("host agent is up", "listen", listener.Addr().String(), "advertise", a.address, "accelerator", a.accel.name, "vms", len(a.all()))
	select {
	case <-ctx.Done():
	case err = <-servers.failed:
		err = fmt.Errorf("serve: %w", err)
	}
	end()
	servers.close()
	parts.Wait()
	a.actors.Wait()
	for _, m := range a.all() {
		m.close()
	}
	return err
}

// advertise is the address that the manager should call.
func (a *agent) advertise(manager string, l net.Listener) string {
	if a.cfg.Advertise != "" {
		return a.cfg.Advertise
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return ""
	}
	if tcp, ok := l.Addr().(*net.TCPAddr); ok && !tcp.IP.IsUnspecified() {
		return net.JoinHostPort(tcp.IP.String(), port)
	}
	// Connecting a datagram socket sends nothing; it only picks the local address of the way there.
	c, err := net.Dial("udp", manager)
	if err != nil {
		return ""
	}
	defer c.Close()
	host, _, err := net.SplitHostPort(c.LocalAddr().String())
	if err != nil {
		return ""
	}
	return net.JoinHostPort(host, port)
}

// adoptAtOnce bounds how many QEMUs are taken over at a time.
const adoptAtOnce = 8

// recover takes up what an earlier agent left: records, running QEMUs. What belongs to no record is swept.
func (a *agent) recover(ctx, switched context.Context) error {
	if err := os.MkdirAll(filepath.Join(a.cfg.StateDir, "vms"), 0o700); err != nil {
		return err
	}
	uids, err := a.records()
	if err != nil {
		return fmt.Errorf("read the VMs' records: %w", err)
	}
	rebooted := map[string]int32{}
	for _, uid := range uids {
		dir, err := a.vmDir(uid)
		if err != nil {
			return err
		}
		vm, l, err := loadRecord(dir)
		if errors.Is(err, fs.ErrNotExist) {
			// The record of a VM is written first: without it nothing else was made.
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		m, err := a.newMachine(vm, l)
		if err != nil {
			return err
		}
		if l.Boot != a.boot && m.wantsToRun() {
			rebooted[uid] = vm.GetSpec().GetStartOrder()
		}
		a.machines[uid] = m
	}
	a.fabric.begin(switched, a.pluggedPorts())
	a.gate = newGate(a.clk.Now(), rebooted)
	var adopting sync.WaitGroup
	slots := make(chan struct{}, adoptAtOnce)
	for _, m := range a.machines {
		slots <- struct{}{}
		adopting.Go(func() {
			defer func() { <-slots }()
			m.adopt(ctx)
		})
	}
	adopting.Wait()
	if err := a.sweep(ctx); err != nil {
		a.log.Warn("not everything that was left over could be removed", "err", err)
	}
	for _, m := range a.machines {
		a.start(m)
	}
	return nil
}

func (a *agent) start(m *machine) { a.actors.Go(func() { m.run(a.life) }) }

// takeVM hands a VM's desired state to its actor, which is made if need be.
func (a *agent) takeVM(vm *v1.VM, deleted bool) error {
	uid := vm.GetMeta().GetUid()
	if _, err := a.vmDir(uid); err != nil || !label.MatchString(vm.GetMeta().GetName()) {
		a.log.Error("the manager told of a VM without a usable name and uid", "vm", vm.GetMeta().GetName(), "uid", uid, "err", err)
		return nil
	}
	held := !deleted && vm.GetStatus().GetOwner() == a.id.Host
	a.mu.Lock()
	m := a.machines[uid]
	a.mu.Unlock()
	if m == nil {
		if !held {
			return nil
		}
		if vm.GetMeta().GetDeleteTime() != nil {
			// Nothing of it is here; the manager only has to hear so.
			a.log.Info("a VM to be deleted was never here", "vm", vm.GetMeta().GetName())
		}
		var err error
		if m, err = a.newMachine(vm, &local{Version: 1, Boot: a.boot}); err != nil {
			return err
		}
		m.want(vm, true)
		a.mu.Lock()
		a.machines[uid] = m
		close(a.arrived)
		a.arrived = make(chan struct{})
		a.mu.Unlock()
		a.start(m)
		return nil
	}
	m.want(vm, held)
	return nil
}

// keepMachines tells every actor that a whole list did not name that it holds its VM no more.
func (a *agent) keepMachines(seen map[string]bool) {
	for _, m := range a.all() {
		if !seen["vm/"+m.uid] {
			m.disown()
		}
	}
}

func (a *agent) machine(uid string) *machine {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.machines[uid]
}

// arrivalTime is how long a call waits for a VM that the manager has given to this host, but that the watch hasn't brought yet.
const arrivalTime = 3 * time.Second

// expect is machine, and waits for one that may be about to arrive; nil if it does not.
func (a *agent) expect(ctx context.Context, uid string) *machine {
	late := a.clk.NewTimer(arrivalTime)
	defer late.Stop()
	for {
		a.mu.Lock()
		m, arrived := a.machines[uid], a.arrived
		a.mu.Unlock()
		if m != nil {
			return m
		}
		select {
		case <-arrived:
		case <-late.C:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// named finds a VM that is here by name; of two that had the name, the one that is held.
func (a *agent) named(name string) *machine {
	var found *machine
	for _, m := range a.all() {
		if m.name() == name && (found == nil || m.isHeld()) {
			found = m
		}
	}
	return found
}

func (a *agent) all() []*machine {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Collect(maps.Values(a.machines))
}

// wakeWaiting makes every actor look again: something that it may have waited for has come.
func (a *agent) wakeWaiting() {
	for _, m := range a.all() {
		m.poke()
	}
}

// forget ends a machine of which nothing is left, once the manager knows.
func (a *agent) forget(uid string) {
	m := a.machine(uid)
	if m == nil || !m.finish() {
		return
	}
	a.mu.Lock()
	delete(a.machines, uid)
	a.mu.Unlock()
}
