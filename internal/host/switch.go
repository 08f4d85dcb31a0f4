package host

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/clock"
	"drover/internal/hostnet"
	"drover/internal/vswitch"
	"drover/internal/vswitch/compile"
	"drover/internal/vswitch/table"
	"drover/internal/vswitch/team"
)

// fabric is this host's part of the distributed switch. One goroutine, run, has all of it but shown: others ask it by do. What the manager says, what
// ports there are and how the links stand is compiled into tables, which the datapath takes; whatever changes makes it compile again.
type fabric struct {
	a    *agent
	log  *slog.Logger
	clk  clock.Clock
	dir  string // STATE/switch
	pins string // of the datapath, in a bpffs

	calls chan *call
	wake  chan struct{}
	links chan hostnet.LinkChange
	heard chan func() // what the rings bring
	ended chan struct{}
	parts sync.WaitGroup // ring readers, link watch, saving

	dp      *vswitch.Datapath
	broken  string           // why there is no datapath, or why it did not take the last tables
	failed  map[uint32]error // why it did not take single ports' rows, by device
	retry   backoff
	rested  time.Time // until then a guest's news don't make it compile again
	book    *slotBook
	ports   map[string]*nicPort // by key
	regs    registry
	uplinks map[string]*uplink
	teams   map[string]*team.Team
	configs []team.Config // as last read
	vxlan   compile.Overlay
	overlay overlayFacts
	result  *compile.Result
	foreign []string
	saving  chan struct{}   // full while registrations are being written
	life    context.Context // ends when the actors have ended
	index   map[uint32]*nicPort
	senses
	voice
	ciphers
	extras

	mu    sync.Mutex
	shown shown
	news  map[string]bool // ports with news for the manager
}

// settle is how long changes are collected before the tables are compiled: what the manager sends together goes in together.
const settle = 20 * time.Millisecond

// restFactor is how many times as long as compiling took nothing is compiled after it: guests that join and leave groups all the time, or lease and release, must not
// keep a processor busy. With 10,000 registrations that is still a fraction of a second.
const restFactor = 2

// look is how often what nobody tells of is looked at: addresses of NICs, foreign programs, the way to other hosts; and what failed is tried again.
const look = 5 * time.Second

func newFabric(a *agent) (*fabric, error) {
	f := &fabric{
		a: a, log: a.log, clk: a.clk, dir: filepath.Join(a.cfg.StateDir, "switch"),
		calls: make(chan *call), wake: make(chan struct{}, 1), links: make(chan hostnet.LinkChange, 64), heard: make(chan func(), 256), ended: make(chan struct{}),
		ports: map[string]*nicPort{}, uplinks: map[string]*uplink{}, teams: map[string]*team.Team{}, saving: make(chan struct{}, 1), news: map[string]bool{},
		retry: backoff{min: time.Second, max: time.Minute}, shown: shown{ports: map[string]*v1.PortReport{}, uplinks: map[string]*v1.Uplink{}},
	}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	if f.book, err = openBook(f.dir, a.boot); err != nil {
		f.log.Warn("the ports' counters begin anew", "err", err)
	}
	if f.regs, err = loadRegistry(f.dir); err != nil {
		f.log.Warn("registrations are not known until the manager tells them", "err", err)
	}
	return f, nil
}

// do has the fabric's goroutine do something, and waits for it.
func (f *fabric) do(ctx context.Context, do func(context.Context) error) error {
	c := &call{ctx: ctx, do: do, done: make(chan error, 1)}
	select {
	case f.calls <- c:
		return <-c.done
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-f.ended:
		return errEnded
	}
}

// changed says that the manager has said something else.
func (f *fabric) changed() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// register takes registrations. It returns when they are in force, so that the manager's stream is not read faster than they are taken.
func (f *fabric) register(ctx context.Context, m *v1.Registrations) error {
	return f.do(ctx, func(ctx context.Context) error {
		steps, whole, errs := f.regs.take(m)
		if err := errors.Join(errs...); err != nil {
			f.log.Error("registrations that make no sense are left out", "err", err)
		}
		if f.dp == nil || m.GetMore() {
			return nil
		}
		if whole || f.result == nil {
			f.changed()
			return nil
		}
		if err := f.registerNow(ctx, steps); err != nil {
			f.log.Error("registrations are not in the datapath; it is tried again", "err", err)
			f.changed()
		}
		return nil
	})
}

func (f *fabric) registerNow(ctx context.Context, steps []compile.Step) error {
	t, view := f.result.Tables, f.result.View
	ch := view.Registered(t, steps)
	if err := f.dp.Register(ctx, ch.Set, ch.Remove, ch.Bind, ch.Unbind); err != nil {
		return err
	}
	maps.Copy(t.FDB, ch.Set)
	for _, k := range ch.Remove {
		delete(t.FDB, k)
	}
	maps.Copy(t.Bindings, ch.Bind)
	for _, k := range ch.Unbind {
		delete(t.Bindings, k)
	}
	again := false
	hop := func(key table.FDBKey, r *compile.Registration, n int) {
		if r == nil {
			return
		}
		if h, ok := view.Hop(key, *r); ok {
			before := f.result.Hops[h]
			f.result.Hops[h] = before + n
			again = again || before == 0 || before+n == 0
		}
	}
	for _, s := range steps {
		hop(s.Key, s.Old, -1)
		hop(s.Key, s.New, 1)
		if e, ok := t.FDB[s.Key]; ok && e.Place == table.PlaceLocal && s.New != nil && s.New.Host != f.a.id.Host {
			again = true // somebody else has what one of our ports has
		}
	}
	if again {
		f.changed()
	}
	st := f.status()
	f.mu.Lock()
	f.shown.status = st
	f.mu.Unlock()
	return nil
}

// run is the fabric's goroutine.
func (f *fabric) run(ctx context.Context) {
	defer close(f.ended)
	compileAt, lookAt, sampleAt, dueAt := f.clk.NewTimer(time.Hour), f.clk.NewTimer(look), f.clk.NewTimer(f.a.cfg.SampleInterval), f.clk.NewTimer(0)
	defer dueAt.Stop()
	defer compileAt.Stop()
	defer lookAt.Stop()
	defer sampleAt.Stop()
	var compiles time.Time // zero: nothing is to be compiled
	soon := func(after time.Duration) {
		if at := f.clk.Now().Add(after); compiles.IsZero() || at.Before(compiles) { // what failed and waits for its next try holds up no news
			compiles = at
			compileAt.Reset(after)
		}
	}
	defer f.save()
	for {
		select {
		case <-ctx.Done():
			return
		case c := <-f.calls:
			c.done <- c.do(c.ctx)
		case <-f.wake:
			soon(max(settle, f.rested.Sub(f.clk.Now())))
		case l := <-f.links:
			if f.linkChanged(ctx, l) {
				f.rebuildLogged(ctx)
			}
		case news := <-f.heard:
			news()
		case <-compileAt.C:
			compiles = time.Time{}
			if f.dp != nil {
				f.ensureTunnel(ctx)
			}
			if !f.rebuildLogged(ctx) {
				soon(f.retry.next())
			}
		case <-lookAt.C:
			lookAt.Reset(f.lookAgain(ctx))
		case <-dueAt.C:
		case <-sampleAt.C:
			sampleAt.Reset(f.a.cfg.SampleInterval)
			f.count()
			f.show()
			f.newCounts()
			f.saveSoon()
		}
		dueAt.Reset(f.due())
	}
}

// lookAgain looks at what nobody tells of, and says when to look the next time.
func (f *fabric) lookAgain(ctx context.Context) time.Duration {
	if f.dp == nil {
		if err := f.open(ctx); err != nil {
			return f.retry.next()
		}
		f.retry.reset()
		return look
	}
	changed := f.refreshUplinks(ctx)
	changed = f.ensureOverlay() || changed
	changed = f.ensureTunnel(ctx) || changed
	if changed || f.broken != "" || len(f.failed) > 0 {
		f.rebuildLogged(ctx)
	}
	f.lookForForeign()
	return look
}

// rebuildLogged is rebuild for when there is nobody to hear of a failure but people.
func (f *fabric) rebuildLogged(ctx context.Context) bool {
	if f.dp == nil {
		return true
	}
	if err := f.rebuild(ctx); err != nil && ctx.Err() == nil {
		f.log.Error("the switch is not as wanted; it is tried again", "err", err)
		return false
	}
	f.retry.reset()
	return true
}

// rebuild compiles everything and brings the datapath to it.
func (f *fabric) rebuild(ctx context.Context) error {
	if f.dp == nil {
		return notYet("this host has no switch: %s", f.broken)
	}
	began := f.clk.Now()
	if f.readTeams() {
		f.refreshUplinks(ctx)
	}
	f.configureTeams()
	f.configureBeacons()
	f.index = map[uint32]*nicPort{}
	for _, p := range f.ports {
		f.index[p.ifindex] = p
	}
	r := compile.Compile(f.input())
	f.result = r
	err := f.dp.Apply(ctx, r.Tables)
	f.broken = ""
	ports, rest := sortErrors(err)
	if f.failed = ports; rest != nil {
		f.broken = rest.Error()
	}
	if f.configureGroups(r) {
		f.changed()
	}
	f.announceMoved()
	f.applyExtras()
	f.show()
	now := f.clk.Now()
	f.rested = now.Add(restFactor * now.Sub(began))
	return err
}

// resumeAnnounced takes ports for announced that were there before: they did not move.
func (f *fabric) resumeAnnounced() {
	f.spoke = map[string]uint32{}
	for _, p := range f.ports {
		if row, ok := f.result.Tables.Ports[p.ifindex]; ok {
			f.spoke[p.key()] = f.result.Tables.Teams[row.Team].Bucket[row.Bucket]
		}
	}
}

// input collects what the tables depend on.
func (f *fabric) input() compile.Input {
	in := compile.Input{Host: f.a.id.Host, Site: f.a.id.Site, Overlay: f.vxlan, Registrations: f.regs.all, Profiles: map[string]compile.Profile{}}
	networks := map[string]*v1.Network{}
	w := f.a.world
	w.mu.Lock()
	for name, n := range w.networks {
		networks[name] = n
		in.Networks = append(in.Networks, n)
	}
	for name, p := range w.profiles {
		in.Profiles[name] = compile.Profile{Effective: p.GetStatus().GetEffective(), Generation: p.GetMeta().GetGeneration()}
	}
	in.Peers = slices.Collect(maps.Values(w.peers))
	w.mu.Unlock()
	rows, routers, leases := f.groupRows(), f.routerPorts(), f.leases.ByPort()
	for _, p := range f.sorted() {
		x := f.compilePort(p, networks)
		x.Leases = f.compileLeases(leases[p.key()])
		x.Groups, x.Routers = rows[p.ifindex], routers[p.ifindex]
		in.Ports = append(in.Ports, x)
	}
	in.Uplinks, in.Teams = f.compileUplinks()
	return in
}

func (f *fabric) sorted() []*nicPort {
	return slices.SortedFunc(maps.Values(f.ports), func(a, b *nicPort) int { return cmp.Compare(a.key(), b.key()) })
}

// count takes the datapath's counters into the book.
func (f *fabric) count() {
	if f.dp == nil {
		return
	}
	have, err := f.dp.Counters(f.book.slots())
	if err != nil {
		f.log.Warn("no counters of ports", "err", err)
		return
	}
	f.book.count(have)
}

// save writes what has to outlive the agent.
func (f *fabric) save() {
	f.count()
	if err := f.book.save(); err != nil {
		f.log.Error("the ports' counters are not on disk", "err", err)
	}
	f.parts.Wait()
	if f.regs.dirty {
		all, revision := f.regs.snapshot()
		if err := saveRegistry(f.dir, all, revision); err != nil {
			f.log.Error("the registrations are not on disk", "err", err)
		}
	}
}

// saveSoon writes what changed beside the fabric's goroutine: a hundred thousand registrations take their time.
func (f *fabric) saveSoon() {
	f.book.forget(func(name string) bool { return !f.a.holds(name) })
	forgot := false
	if f.dp != nil {
		for _, l := range f.leases.All() {
			if !f.a.holds(l.Port) {
				forgot = f.leases.Forget(l.Port) || forgot
			}
		}
	}
	if forgot {
		f.leasesChanged()
	}
	if err := f.book.save(); err != nil {
		f.log.Error("the ports' counters are not on disk", "err", err)
	}
	if !f.regs.dirty {
		return
	}
	select {
	case f.saving <- struct{}{}:
	default:
		return
	}
	all, revision := f.regs.snapshot()
	f.parts.Go(func() {
		defer func() { <-f.saving }()
		if err := saveRegistry(f.dir, all, revision); err != nil {
			f.log.Error("the registrations are not on disk", "err", err)
		}
	})
}
