package manager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/auth"
	"drover/internal/disk/library"
	"drover/internal/history"
	"drover/internal/pki"
	"drover/internal/resource"
	"drover/internal/store"
	"drover/internal/task"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
)

// Kinds that only the manager sees.
const (
	kindJoin    resource.Kind = "join"
	kindCluster resource.Kind = "cluster"
	kindMAC     resource.Kind = "mac"
	kindRecord  resource.Kind = "backup-record"
)

// Manager is the role. Its exported methods are the domain behind the API and are safe for concurrent use.
type Manager struct {
	cfg   Config
	log   *slog.Logger
	start time.Time

	store     *store.Store
	history   *history.DB
	ca        *pki.CA
	identity  *pki.Credential
	joins     *pki.Joins
	auth      *auth.Service
	tasks     *task.Engine
	images    *library.Library
	nodes     *nodes
	events    *hub[*v1.Event]
	taskLines *hub[taskLine]
	heard     *heartbeats
	pending   chan any // records for the history
	refused   sync.Map // datastores of hosts that can't be taken, "HOST/NAME", so that each is told of once

	Sites      *Registry[*v1.Site]
	Hosts      *Registry[*v1.Host]
	Datastores *Registry[*v1.Datastore]
	Networks   *Registry[*v1.Network]
	Profiles   *Registry[*v1.PortProfile]
	Images     *Registry[*v1.Image]
	VMs        *Registry[*v1.VM]
	Disks      *Parts[*v1.Disk]
	NICs       *Parts[*v1.NIC]
	Ports      *Registry[*v1.Port] // read from the board, never written
	Snapshots  *Registry[*v1.Snapshot]
	Tasks      *Registry[*v1.Task]
	Users      *Registry[*v1.User]
	Tokens     *Registry[*v1.Token]

	Repositories *Registry[*v1.Repository]
	Policies     *Registry[*v1.BackupPolicy]
	Points       *Registry[*v1.RestorePoint] // read from their vaults, never written
	records      *Registry[*v1.BackupRecord]
	points       *pointView
	backups      *scheduler
	browsing     browsers
	removed      removedHosts
	held         heldGrants
	own          *ownVaults
	macs         *Registry[*v1.MACClaim]
	joinKeys     *Registry[*v1.Join]
	clusters     *store.Collection[*v1.Cluster]
	cluster      *v1.Cluster // as it was at the start: what never changes
	board        *board

	// admission is held over "look at what is used, then give it away"; taken by exclusive.
	admission sync.Mutex

	// imports is held while the task of an import is made, so that an image has one; taken after admission.
	imports sync.Mutex

	// FirstPassword is the administrator's, when this start made one; shown once.
	FirstPassword string
}

// Open brings up the manager's state. Close must be called, also when Run was not.
func Open(ctx context.Context, cfg Config) (m *Manager, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("manager: state directory: %w", err)
	}
	m = &Manager{cfg: cfg, log: cfg.Logger, start: cfg.Clock.Now(), events: newHub[*v1.Event](), taskLines: newHub[taskLine](), heard: newHeartbeats()}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	opts, err := cfg.storeOptions()
	if err != nil {
		return nil, err
	}
	if m.store, err = store.Open(ctx, opts); err != nil {
		return nil, fmt.Errorf("manager: %w", err)
	}
	if err := m.openRegistries(ctx); err != nil {
		return nil, fmt.Errorf("manager: %w", err)
	}
	if err := m.openHistory(ctx); err != nil {
		return nil, fmt.Errorf("manager: %w", err)
	}
	if err := m.openImages(); err != nil {
		return nil, fmt.Errorf("manager: %w", err)
	}
	if err := m.openIdentity(ctx); err != nil {
		return nil, fmt.Errorf("manager: %w", err)
	}
	m.openAuth()
	m.nodes = newNodes(m)
	if err := m.openVaults(ctx); err != nil {
		return nil, fmt.Errorf("manager: %w", err)
	}
	m.board = newBoard(m)
	m.Ports = &Registry[*v1.Port]{kind: resource.KindPort, cache: m.board.view, clk: cfg.Clock, zero: (*v1.Port)(nil).ProtoReflect().New().Interface().(*v1.Port)}
	m.points = newPointView(m)
	m.Points = &Registry[*v1.RestorePoint]{kind: resource.KindPoint, cache: m.points.view, clk: cfg.Clock, zero: (*v1.RestorePoint)(nil).ProtoReflect().New().Interface().(*v1.RestorePoint)}
	m.backups = newScheduler(m)
	m.tasks = task.New(task.Config{Store: m.Tasks.coll, Handlers: m.handlers(), Clock: cfg.Clock, Logger: m.log, Log: m.taskLog})
	return m, nil
}

func (m *Manager) openRegistries(ctx context.Context) error {
	c := m.cfg.Clock
	return errors.Join(
		open(ctx, &m.Sites, m, resource.KindSite, m.showSite),
		open(ctx, &m.Hosts, m, resource.KindHost, m.showHost),
		open(ctx, &m.Datastores, m, resource.KindDatastore, nil),
		open(ctx, &m.Networks, m, resource.KindNetwork, m.showNetwork),
		open(ctx, &m.Profiles, m, resource.KindProfile, m.showProfile),
		open(ctx, &m.Images, m, resource.KindImage, m.showImage),
		open(ctx, &m.VMs, m, resource.KindVM, nil),
		open(ctx, &m.Snapshots, m, resource.KindSnapshot, m.showSnapshot),
		open(ctx, &m.Tasks, m, resource.KindTask, nil),
		open(ctx, &m.Users, m, resource.KindUser, func(u *v1.User) { u.Spec.PasswordHash = "" }),
		open(ctx, &m.Tokens, m, resource.KindToken, func(t *v1.Token) { t.Spec.SecretHash = nil }),
		open(ctx, &m.Repositories, m, resource.KindRepository, nil),
		open(ctx, &m.Policies, m, resource.KindPolicy, m.showPolicy),
		open(ctx, &m.records, m, kindRecord, nil),
		open(ctx, &m.macs, m, kindMAC, nil),
		open(ctx, &m.joinKeys, m, kindJoin, nil),
		m.openCluster(ctx, c.Now()),
		m.openParts(),
	)
}

func open[T Object](ctx context.Context, to **Registry[T], m *Manager, kind resource.Kind, show func(T)) error {
	r, err := newRegistry(m.store, kind, m.cfg.Clock, show)
	if err != nil {
		return err
	}
	if _, err := r.coll.MigrateAll(ctx); err != nil {
		return err
	}
	*to = r
	return nil
}

// Run serves until ctx ends: copies of the state, tasks, controllers. What they have to tell the history is written before it
// returns.
func (m *Manager) Run(ctx context.Context, ready func()) error {
	history, stop := context.WithCancel(context.WithoutCancel(ctx))
	written := make(chan struct{})
	go func() {
		defer close(written)
		m.writeHistory(history)
	}()
	defer func() {
		stop()
		<-written
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	for _, run := range []func(context.Context) error{
		m.Sites.cache.Run, m.Hosts.cache.Run, m.Datastores.cache.Run, m.Networks.cache.Run, m.Profiles.cache.Run, m.Images.cache.Run, m.VMs.cache.Run,
		m.Snapshots.cache.Run, m.Tasks.cache.Run, m.Users.cache.Run, m.Tokens.cache.Run, m.macs.cache.Run, m.joinKeys.cache.Run,
		m.Repositories.cache.Run, m.Policies.cache.Run, m.records.cache.Run,
	} {
		g.Go(func() error { return run(ctx) })
	}
	for _, wait := range []func(context.Context, int64) error{
		m.Sites.cache.WaitRevision, m.Hosts.cache.WaitRevision, m.Datastores.cache.WaitRevision, m.Networks.cache.WaitRevision,
		m.Profiles.cache.WaitRevision, m.Images.cache.WaitRevision, m.VMs.cache.WaitRevision, m.Snapshots.cache.WaitRevision, m.Tasks.cache.WaitRevision,
		m.Users.cache.WaitRevision, m.Tokens.cache.WaitRevision, m.macs.cache.WaitRevision, m.joinKeys.cache.WaitRevision,
		m.Repositories.cache.WaitRevision, m.Policies.cache.WaitRevision, m.records.cache.WaitRevision,
	} {
		if err := wait(ctx, 1); err != nil {
			return ended(g, cancel, err)
		}
	}
	for _, begin := range []func(context.Context) error{m.firstUser, m.openProfiles, m.openNetworks, m.checkImages, m.sweepFiles} {
		if err := begin(ctx); err != nil {
			return ended(g, cancel, err)
		}
	}
	g.Go(func() error { return m.board.run(ctx) })
	if err := m.board.wait(ctx); err != nil {
		return ended(g, cancel, err)
	}
	g.Go(func() error { return m.reopenVaults(ctx) })
	g.Go(func() error { return m.points.run(ctx) })
	g.Go(func() error { return m.tasks.Run(ctx) })
	g.Go(func() error { return m.backups.run(ctx) })
	g.Go(func() error { return m.watchHosts(ctx) })
	g.Go(func() error { return m.collectGarbage(ctx) })
	g.Go(func() error { return m.identity.Keep(ctx, m.cfg.Clock, m.log, m.renewOwn) })
	g.Go(func() error { return m.sweepTokens(ctx) })
	if ready != nil {
		ready()
	}
	<-ctx.Done()
	return ended(g, cancel, nil)
}

// ended stops what Run has started and waits for it. That it was told to stop is no error.
func ended(g *errgroup.Group, cancel context.CancelFunc, err error) error {
	cancel()
	err = cmp.Or(g.Wait(), err)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// exclusive takes admission for a change that is decided by what is given away already. What has begun then is seen to its end,
// whether the caller waits for it or not: else the copies in memory would be behind when the next one decides. The caller calls
// done.
func (m *Manager) exclusive(ctx context.Context) (_ context.Context, done func(), err error) {
	m.admission.Lock()
	if err := ctx.Err(); err != nil {
		m.admission.Unlock()
		return ctx, func() {}, err
	}
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), exclusiveTime)
	return ctx, func() {
		stop()
		m.admission.Unlock()
	}, nil
}

// exclusiveTime bounds one exclusive change; the store gives up a write earlier than that.
const exclusiveTime = 15 * time.Second

// Close gives back what Open took.
func (m *Manager) Close() error {
	var errs []error
	if m.own != nil {
		errs = append(errs, m.own.vaults.Close())
	}
	if m.nodes != nil {
		m.nodes.close()
	}
	if m.images != nil {
		errs = append(errs, m.images.Close())
	}
	if m.history != nil {
		errs = append(errs, m.history.Close())
	}
	if m.store != nil {
		errs = append(errs, m.store.Close())
	}
	return errors.Join(errs...)
}

// Info tells what this installation is.
func (m *Manager) Info() *v1.Info {
	state := "embedded"
	if len(m.cfg.Etcd) > 0 {
		state = fmt.Sprint(m.cfg.Etcd)
	}
	return &v1.Info{
		Version: m.cfg.Version, StartTime: stamp(m.start), ClusterUid: m.cluster.Meta.Uid, CaFingerprint: m.ca.Fingerprint().String(),
		State: state, Hosts: int32(m.Hosts.cache.Len()), Vms: int32(m.VMs.cache.Len()),
	}
}

const clusterName = "cluster"

// openCluster finds the record of this installation, or makes it.
func (m *Manager) openCluster(ctx context.Context, now time.Time) error {
	coll, err := store.NewCollection(m.store, store.Kind[*v1.Cluster]{Name: kindCluster})
	if err != nil {
		return err
	}
	fresh := &v1.Cluster{Meta: &v1.Meta{Name: clusterName, Uid: resource.NewUID(), Generation: 1, CreateTime: stamp(now)}}
	if err := coll.Create(ctx, fresh); err != nil && !errors.Is(err, store.ErrExists) {
		return err
	}
	m.clusters = coll
	m.cluster, err = coll.Get(ctx, clusterName)
	return err
}

// clone is a copy that may be changed.
func clone[T proto.Message](m T) T { return proto.CloneOf(m) }
