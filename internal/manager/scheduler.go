package manager

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/auth"
	"drover/internal/backup/policy"
	"drover/internal/resource"
	"drover/internal/store"
	"drover/internal/task"

	"google.golang.org/protobuf/proto"
)

// scheduler makes the runs of policies: backups, copies, tests, pruning, and the keeping of repositories. What it must not forget is in records: a run is noted
// there, with the name of its task, before the task is made.
type scheduler struct {
	m    *Manager
	kick chan struct{}
	gate gate
	// Below: the loop's own.
	pruned map[string]time.Time // last pruning, by policy
	tried  map[string]time.Time // last collection and scrub that was begun, by "KIND/REPOSITORY"

	mu    sync.Mutex
	prune map[string]bool // policies with new points
}

func newScheduler(m *Manager) *scheduler {
	return &scheduler{m: m, kick: make(chan struct{}, 1), pruned: map[string]time.Time{}, tried: map[string]time.Time{}, prune: map[string]bool{}}
}

const (
	// scheduleEvery is how often the scheduler looks at the clock.
	scheduleEvery = 5 * time.Second
	// pruneEvery is how often points are pruned though none was added.
	pruneEvery = time.Hour
	// tendEvery is the least time between two tries to collect or scrub.
	tendEvery = time.Hour
	// Backups on one host, and of disks in one datastore, at a time, whatever their policies.
	hostRuns      = 4
	datastoreRuns = 4
)

// added notes that a policy has new points.
func (s *scheduler) added(policyName string) {
	s.mu.Lock()
	s.prune[policyName] = true
	s.mu.Unlock()
	s.wake()
}

// takeAdded reports whether a policy has new points, and forgets it.
func (s *scheduler) takeAdded(policyName string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.prune[policyName]
	delete(s.prune, policyName)
	return was
}

func (s *scheduler) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

func (m *Manager) wakeScheduler() { m.backups.wake() }

func (s *scheduler) run(ctx context.Context) error {
	for {
		s.tick(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-s.kick:
		case <-s.m.cfg.Clock.After(scheduleEvery):
		}
	}
}

// tick looks at everything once. What fails is tried again at the next tick.
func (s *scheduler) tick(ctx context.Context) {
	s.m.browsing.sweep(s.m.cfg.Clock.Now())
	for _, part := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"settle runs", s.settle}, {"begin backups", s.begin}, {"begin copies", s.copies}, {"end runs", s.finish}, {"prune", s.pruneAll}, {"tend repositories", s.tend},
	} {
		if err := part.do(ctx); err != nil && ctx.Err() == nil {
			s.m.log.Warn("manager: schedule", "what", part.what, "err", err)
		}
	}
}

// settle drops records of VMs that are covered no more, and mends those whose task is not there or has ended without saying so.
func (s *scheduler) settle(ctx context.Context) error {
	m := s.m
	covered := map[string]bool{}
	policies, _ := m.Policies.cache.List()
	for _, p := range policies {
		for _, vm := range m.covered(p.Spec) {
			name := recordName(p.Meta.Name, vm.Meta.Uid)
			covered[name] = true
			rec, ok := m.records.cache.Get(name)
			if !ok {
				if _, err := m.cover(ctx, p, vm); err != nil {
					return err
				}
			} else if rec.Vm != vm.Meta.Name {
				if _, err := m.records.mutate(ctx, name, func(rec *v1.BackupRecord) error { rec.Vm = vm.Meta.Name; return nil }); err != nil {
					return err
				}
			}
		}
	}
	all, _ := m.records.cache.List()
	var errs []error
	for _, rec := range all {
		if rec.Task != "" {
			errs = append(errs, s.mend(ctx, rec, rec.Task))
		}
		for _, c := range rec.Copies {
			if c.Task != "" {
				errs = append(errs, s.mendCopy(ctx, rec, c))
			}
		}
		if !covered[rec.Meta.Name] && rec.Task == "" {
			errs = append(errs, m.forgetRecord(ctx, rec))
		}
	}
	return errors.Join(errs...)
}

// gone says how a task ended that did not note it; nil while it lives.
func (s *scheduler) gone(ctx context.Context, name string) (lost, ended bool, why error, err error) {
	t, err := s.m.Tasks.coll.Get(ctx, name)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return true, false, nil, nil
	case err != nil:
		return false, false, nil, err
	case !task.Ended(t):
		return false, false, nil, nil
	case t.Status.State == v1.TaskState_TASK_STATE_SUCCEEDED:
		return false, true, nil, nil
	}
	return false, true, errors.New(t.Status.Message), nil
}

// mend begins the task of a run that was noted and never made: the manager was killed between.
func (s *scheduler) mend(ctx context.Context, rec *v1.BackupRecord, name string) error {
	if t, ok := s.m.Tasks.cache.Get(name); ok && !task.Ended(t) {
		return nil
	}
	lost, ended, why, err := s.gone(ctx, name)
	switch {
	case err != nil:
		return err
	case ended:
		return s.m.recordEnd(ctx, rec.Meta.Name, name, ending{err: why})
	case lost:
		p, err := s.m.Policies.lookup(rec.Policy)
		if err != nil {
			return s.m.recordEnd(ctx, rec.Meta.Name, name, ending{err: err})
		}
		return s.submit(ctx, p, rec)
	}
	return nil
}

func (s *scheduler) mendCopy(ctx context.Context, rec *v1.BackupRecord, c *v1.CopyRecord) error {
	if t, ok := s.m.Tasks.cache.Get(c.Task); ok && !task.Ended(t) {
		return nil
	}
	lost, ended, why, err := s.gone(ctx, c.Task)
	if err != nil || !lost && !ended {
		return err
	}
	if lost {
		why = errors.New("was never begun")
	}
	return s.m.copyEnd(ctx, rec.Meta.Name, c.Repository, c.Task, why)
}

// usable are the repositories that take backups now.
func (s *scheduler) usable(name string) bool {
	_, err := s.m.readyRepository(name, true)
	return err == nil && !s.m.points.get(name).read.IsZero()
}

// load counts the backups that run.
func (s *scheduler) load() *policy.Load {
	l := &policy.Load{}
	all, _ := s.m.Tasks.cache.List()
	for _, t := range all {
		if t.Spec.Kind != taskBackup || task.Ended(t) {
			continue
		}
		var args v1.BackupArguments
		if proto.Unmarshal(t.Spec.Arguments, &args) != nil {
			continue
		}
		a := policy.Active{VM: args.GetRequest().GetVm(), Repository: args.GetRequest().GetRepository()}
		if args.Record != "" {
			a.Policy, _, _ = strings.Cut(args.Record, "/")
		}
		if vm, ok := s.m.VMs.cache.Get(a.VM); ok {
			a.Host = vm.GetStatus().GetOwner()
			for _, d := range vm.Spec.Disks {
				a.Datastores = append(a.Datastores, d.Datastore)
			}
		}
		l.Add(a)
	}
	return l
}

// begin starts the backups that are due, within all bounds.
func (s *scheduler) begin(ctx context.Context) error {
	m := s.m
	now := m.cfg.Clock.Now()
	var due []policy.Candidate
	bounds := policy.Bounds{Host: hostRuns, Datastore: datastoreRuns, Repository: map[string]int{}}
	policies, _ := m.Policies.cache.List()
	for _, p := range policies {
		repo, ok := m.Repositories.cache.Get(p.Spec.Repository)
		if !ok || !s.usable(p.Spec.Repository) {
			continue // it is late then, and said so; the run begins when the repository is back
		}
		bounds.Repository[p.Spec.Repository] = int(repo.Spec.Parallel)
		plan := m.policyPlan(p)
		for _, vm := range m.covered(p.Spec) {
			rec, ok := m.records.cache.Get(recordName(p.Meta.Name, vm.Meta.Uid))
			if !ok || len(vm.Spec.Disks) == 0 {
				continue
			}
			standing := m.standing(rec, vm, p.Spec.Repository)
			if run, ok := plan.Next(standing, now); ok && !run.At.After(now) {
				due = append(due, policy.Candidate{Policy: &plan, VM: standing, Run: run})
			}
		}
	}
	if len(due) == 0 {
		return nil
	}
	start, _ := policy.Plan(due, s.load(), bounds, now)
	var errs []error
	for _, c := range start {
		errs = append(errs, s.start(ctx, c))
	}
	return errors.Join(errs...)
}

// start notes a run, and then begins its task.
func (s *scheduler) start(ctx context.Context, c policy.Candidate) error {
	m := s.m
	name := recordName(c.Policy.Name, c.VM.UID)
	uid := resource.NewUID()
	rec, err := m.records.mutate(ctx, name, func(rec *v1.BackupRecord) error {
		if rec.Task != "" || !at(rec.Slot).Equal(c.VM.Slot) {
			return errSame // somebody was quicker
		}
		if at(rec.Slot).Before(c.Run.Slot) {
			rec.Failures, rec.RetryTime, rec.Error = 0, nil, ""
		}
		rec.Slot, rec.Reason, rec.Task, rec.Wanted = stamp(c.Run.Slot), c.Run.Reason, uid, nil
		return nil
	})
	if err != nil || rec.Task != uid {
		return err
	}
	p, err := m.Policies.lookup(c.Policy.Name)
	if err != nil {
		return err
	}
	if rec.Failures == 0 {
		if _, err := m.Policies.mutate(ctx, p.Meta.Name, func(p *v1.BackupPolicy) error {
			m.runOf(p).Vms++
			p.Status.LastRun = stamp(m.cfg.Clock.Now())
			return nil
		}); err != nil {
			m.log.Warn("manager: count a policy's run", "policy", p.Meta.Name, "err", err)
		}
	}
	return s.submit(ctx, p, rec)
}

// submit makes the task that a record names.
func (s *scheduler) submit(ctx context.Context, p *v1.BackupPolicy, rec *v1.BackupRecord) error {
	m := s.m
	args := &v1.BackupArguments{
		Request: &v1.CreateBackupRequest{Vm: rec.Vm, Repository: p.Spec.Repository, Quiesce: p.Spec.Quiesce, Memory: p.Spec.Memory, Policy: p.Meta.Name},
		Point:   newPoint(), Record: rec.Meta.Name, AuditShare: max(p.Spec.AuditShare, 0), BandwidthLimit: p.Spec.BandwidthLimit, Slot: rec.Slot,
	}
	if vm, err := m.VMs.lookup(rec.Vm); err == nil && args.Request.Memory && !isUp(vm.GetStatus().GetPhase()) {
		args.Request.Memory = false // it has none now
	}
	b, err := proto.Marshal(args)
	if err != nil {
		return err
	}
	by := auth.SystemPrincipal("policy " + p.Meta.Name)
	t, err := m.tasks.SubmitAs(ctx, rec.Task, &v1.TaskSpec{Kind: taskBackup, TargetKind: resource.KindVM, Target: rec.Vm, Principal: by.String(), Arguments: b})
	if errors.Is(err, store.ErrExists) {
		return nil
	}
	if err != nil {
		return err
	}
	return m.Tasks.cache.WaitRevision(ctx, t.Meta.Revision)
}

// finish ends the runs of policies in which nothing is under way or to be tried again, and has people told.
func (s *scheduler) finish(ctx context.Context) error {
	m := s.m
	busy := map[string]bool{}
	all, _ := m.records.cache.List()
	for _, rec := range all {
		p, ok := m.Policies.cache.Get(rec.Policy)
		if !ok {
			continue
		}
		if rec.Task != "" || rec.Failures > 0 && int(rec.Failures) <= int(p.Spec.Retries) && !p.Spec.Paused {
			busy[rec.Policy] = true
		}
	}
	policies, _ := m.Policies.cache.List()
	var errs []error
	for _, p := range policies {
		run := p.GetStatus().GetRun()
		if run == nil || busy[p.Meta.Name] {
			continue
		}
		done := clone(run)
		done.EndTime = stamp(m.cfg.Clock.Now())
		// The task that tells people is made first: twice told is better than never.
		if err := m.tellRun(ctx, p, done); err != nil {
			errs = append(errs, err)
			continue
		}
		_, err := m.Policies.mutate(ctx, p.Meta.Name, func(p *v1.BackupPolicy) error {
			if p.GetStatus().GetRun() == nil {
				return errSame
			}
			p.Status.Run, p.Status.Last = nil, done
			return nil
		})
		errs = append(errs, err)
		s.added(p.Meta.Name)
		errs = append(errs, s.tests(ctx, p, run.StartTime.AsTime()))
	}
	return errors.Join(errs...)
}

// tests begins boot tests of a share of the points that a run has made.
func (s *scheduler) tests(ctx context.Context, p *v1.BackupPolicy, since time.Time) error {
	t := p.Spec.Test
	if t.GetShare() <= 0 {
		return nil
	}
	var list []*v1.RestorePoint
	for _, x := range s.m.points.of(p.Spec.Repository, "") {
		if x.Status.Policy == p.Meta.Name && !x.Status.Time.AsTime().Before(since.Add(-time.Minute)) && x.Status.Test == nil && len(x.Status.Damage) == 0 {
			list = append(list, x)
		}
	}
	slices.SortFunc(list, func(a, b *v1.RestorePoint) int { return strings.Compare(a.Status.Id, b.Status.Id) })
	n := int(t.Share*float64(len(list)) + 0.999999)
	var errs []error
	for _, x := range list[:min(n, len(list))] {
		_, err := s.m.submitWith(auth.WithPrincipal(ctx, auth.SystemPrincipal("policy "+p.Meta.Name)), taskTest, resource.KindPoint, x.Meta.Name, &v1.TestPointRequest{Point: x.Meta.Name, Check: t.Check})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// tend collects and scrubs repositories when it is time.
func (s *scheduler) tend(ctx context.Context) error {
	m := s.m
	now := m.cfg.Clock.Now().In(m.cfg.Zone)
	var errs []error
	all, _ := m.Repositories.cache.List()
	for _, r := range all {
		if _, err := m.readyRepository(r.Meta.Name, false); err != nil {
			continue
		}
		for _, w := range []struct {
			kind, expr string
			last       time.Time
			share      float64
		}{
			{taskCollect, r.Spec.CollectSchedule, at(r.GetStatus().GetLastCollect()), 0},
			{taskScrub, r.Spec.ScrubSchedule, at(r.GetStatus().GetLastScrub()), r.Spec.ScrubShare},
		} {
			since := w.last
			if made := r.Meta.CreateTime.AsTime(); since.Before(made) {
				since = made
			}
			slot, _ := policy.Last(schedules(w.expr), since.In(now.Location()), now)
			key := w.kind + "/" + r.Meta.Name
			if slot.IsZero() || now.Sub(s.tried[key]) < tendEvery || s.working(w.kind, r.Meta.Name) {
				continue
			}
			s.tried[key] = now
			_, err := m.submitWith(auth.WithPrincipal(ctx, auth.SystemPrincipal("repositories")), w.kind, resource.KindRepository, r.Meta.Name, &v1.VaultWorkRequest{Repository: r.Meta.Name, Share: w.share})
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// working reports whether a task of a kind is at an object.
func (s *scheduler) working(kind, target string) bool {
	all, _ := s.m.Tasks.cache.List()
	return slices.ContainsFunc(all, func(t *v1.Task) bool {
		return t.Spec.Kind == kind && t.Spec.Target == target && !task.Ended(t)
	})
}
