package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/auth"
	"drover/internal/backup/policy"
	"drover/internal/resource"

	"google.golang.org/protobuf/proto"
)

func retention(r *v1.Retention) policy.Retention {
	return policy.Retention{
		Last: int(r.GetLast()), Hourly: int(r.GetHourly()), Daily: int(r.GetDaily()), Weekly: int(r.GetWeekly()), Monthly: int(r.GetMonthly()), Yearly: int(r.GetYearly()),
		Within: r.GetWithin().AsDuration(),
	}
}

// place is a repository that a policy writes to, and how long points are kept there.
type place struct {
	repository string
	keep       policy.Retention
}

func placesOf(s *v1.BackupPolicySpec) []place {
	list := []place{{s.Repository, retention(s.Retention)}}
	for _, c := range s.Copies {
		list = append(list, place{c.Repository, retention(resource.CopyRetention(s, c))})
	}
	return list
}

// pointsOf are the points that a policy made, by VM, in one repository. Others are not the policy's to prune.
func (m *Manager) pointsOf(policyName, repository string) map[string][]*v1.RestorePoint {
	by := map[string][]*v1.RestorePoint{}
	for _, p := range m.points.of(repository, "") {
		if p.Status.Policy == policyName {
			by[p.Status.VmUid] = append(by[p.Status.VmUid], p)
		}
	}
	return by
}

func asPoints(list []*v1.RestorePoint) (out []policy.Point) {
	for _, p := range list {
		out = append(out, policy.Point{ID: p.Status.Id, Time: p.Status.Time.AsTime(), Keep: p.Spec.Keep, Damaged: len(p.Status.Damage) > 0})
	}
	return out
}

// lives reports whether there is a VM with this uid.
func (m *Manager) lives(uid string) bool {
	all, _ := m.VMs.cache.List()
	return slices.ContainsFunc(all, func(vm *v1.VM) bool { return vm.Meta.Uid == uid })
}

// pruneAll prunes what policies with new points keep no longer, and from time to time what others do.
func (s *scheduler) pruneAll(ctx context.Context) error {
	now := s.m.cfg.Clock.Now()
	policies, _ := s.m.Policies.cache.List()
	var errs []error
	for _, p := range policies {
		name := p.Meta.Name
		if last, was := s.pruned[name]; !s.takeAdded(name) && was && now.Sub(last) < pruneEvery {
			continue
		}
		s.pruned[name] = now
		errs = append(errs, s.prunePolicy(ctx, p, now.In(s.m.zone(p.Spec.TimeZone))))
	}
	return errors.Join(errs...)
}

// mostPruned bounds what one pruning of one place forgets; the rest goes at the next.
const mostPruned = 1000

func (s *scheduler) prunePolicy(ctx context.Context, p *v1.BackupPolicy, now time.Time) error {
	m := s.m
	var errs []error
	for i, at := range placesOf(p.Spec) {
		repo, err := m.readyRepository(at.repository, false)
		if err != nil || repo.Spec.ReadOnly || m.points.get(at.repository).read.IsZero() {
			continue
		}
		var gone []*v1.RestorePoint
		for uid, list := range m.pointsOf(p.Meta.Name, at.repository) {
			drop := map[string]bool{}
			for _, v := range at.keep.Choose(asPoints(list), now, m.lives(uid)) {
				drop[v.ID] = !v.Kept
			}
			for _, x := range list {
				if drop[x.Status.Id] && !(i == 0 && s.awaited(p, x)) {
					gone = append(gone, x)
				}
			}
		}
		if len(gone) == 0 {
			continue
		}
		gone = gone[:min(len(gone), mostPruned)]
		if err := m.forget(ctx, repo, "retention of policy "+p.Meta.Name, gone...); err != nil {
			errs = append(errs, err)
			continue
		}
		m.event(v1.Severity_SEVERITY_INFO, resource.KindPolicy, p.Meta.Name, "POINTS_PRUNED", fmt.Sprintf("%d in repository %s", len(gone), at.repository))
	}
	return errors.Join(errs...)
}

// awaited reports whether a point is still to be copied: it is the newest of its VM and some copy lacks it.
func (s *scheduler) awaited(p *v1.BackupPolicy, x *v1.RestorePoint) bool {
	if len(p.Spec.Copies) == 0 || !s.m.newest(p.Spec.Repository, x.Status.VmUid).Equal(x.Status.Time.AsTime()) {
		return false
	}
	return slices.ContainsFunc(p.Spec.Copies, func(c *v1.PolicyCopy) bool {
		_, there := s.m.points.view.Get(c.Repository + "/" + x.Status.Id)
		return !there
	})
}

// copies begins the copies of points that other repositories lack.
func (s *scheduler) copies(ctx context.Context) error {
	m := s.m
	now := m.cfg.Clock.Now()
	var errs []error
	running := map[string]int{}
	records, _ := m.records.cache.List()
	for _, rec := range records {
		for _, c := range rec.Copies {
			if c.Task != "" {
				running[c.Repository]++
			}
		}
	}
	for _, rec := range records {
		p, ok := m.Policies.cache.Get(rec.Policy)
		if !ok || p.Spec.Paused || !s.usable(p.Spec.Repository) {
			continue
		}
		for _, c := range p.Spec.Copies {
			to, ok := m.Repositories.cache.Get(c.Repository)
			if !ok || !s.usable(c.Repository) || running[c.Repository] >= int(max(to.Spec.Parallel, 1)) {
				continue
			}
			begun, err := s.copy(ctx, p, rec, c, now)
			if begun {
				running[c.Repository]++
			}
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// lacking are the points of a VM that a copy should have and lacks: those newer than its newest, and that its retention would keep.
func (m *Manager) lacking(p *v1.BackupPolicy, c *v1.PolicyCopy, vmUID string, now time.Time) (names []string) {
	have := m.pointsOf(p.Meta.Name, c.Repository)[vmUID]
	all := asPoints(have)
	var fresh []*v1.RestorePoint
	for _, x := range m.pointsOf(p.Meta.Name, p.Spec.Repository)[vmUID] {
		if _, there := m.points.view.Get(c.Repository + "/" + x.Status.Id); there || len(x.Status.Damage) > 0 {
			continue
		}
		if n := len(have); n > 0 && !x.Status.Time.AsTime().After(have[n-1].Status.Time.AsTime()) {
			continue
		}
		fresh = append(fresh, x)
	}
	kept := map[string]bool{}
	for _, v := range retention(resource.CopyRetention(p.Spec, c)).Choose(append(all, asPoints(fresh)...), now.In(m.zone(p.Spec.TimeZone)), true) {
		kept[v.ID] = v.Kept
	}
	for _, x := range fresh {
		if kept[x.Status.Id] {
			names = append(names, x.Meta.Name)
		}
	}
	return names
}

// copy begins one copy if it is due.
func (s *scheduler) copy(ctx context.Context, p *v1.BackupPolicy, rec *v1.BackupRecord, c *v1.PolicyCopy, now time.Time) (begun bool, err error) {
	m := s.m
	have := clone(rec)
	state := copyOf(have, c.Repository)
	if state.Task != "" || state.Failures > 0 && now.Before(at(state.RetryTime)) {
		return false, nil
	}
	slot := now
	if len(c.Schedules) > 0 && state.Failures == 0 {
		since := at(state.Slot)
		if since.IsZero() {
			since = at(rec.Covered)
		}
		zone := m.zone(p.Spec.TimeZone)
		if slot, _ = policy.Last(schedules(c.Schedules...), since.In(zone), now.In(zone)); slot.IsZero() {
			return false, nil
		}
	}
	names := m.lacking(p, c, rec.VmUid, now)
	if len(names) == 0 {
		return false, nil
	}
	uid := resource.NewUID()
	got, err := m.records.mutate(ctx, rec.Meta.Name, func(rec *v1.BackupRecord) error {
		x := copyOf(rec, c.Repository)
		if x.Task != "" {
			return errSame
		}
		x.Task, x.Slot = uid, stamp(slot)
		return nil
	})
	if err != nil || copyOf(got, c.Repository).Task != uid {
		return false, err
	}
	b, err := proto.Marshal(&v1.CopyArguments{Record: rec.Meta.Name, Request: &v1.CopyPointsRequest{Points: names, From: p.Spec.Repository, To: c.Repository, BandwidthLimit: c.BandwidthLimit}})
	if err != nil {
		return false, err
	}
	by := auth.SystemPrincipal("policy " + p.Meta.Name)
	t, err := m.tasks.SubmitAs(ctx, uid, &v1.TaskSpec{Kind: taskCopy, TargetKind: resource.KindRepository, Target: c.Repository, Principal: by.String(), Arguments: b})
	if err != nil {
		return true, err
	}
	return true, m.Tasks.cache.WaitRevision(ctx, t.Meta.Revision)
}

// PreviewPolicy tells what a policy will do if nothing changes: one that exists, or one that is only thought of.
func (m *Manager) PreviewPolicy(_ context.Context, req *v1.PreviewPolicyRequest) (*v1.PolicyPreview, error) {
	p := req.Policy
	if p == nil {
		have, err := m.Policies.lookup(req.Name)
		if err != nil {
			return nil, err
		}
		p = have
	} else {
		p = clone(p)
		if p.Meta == nil {
			p.Meta = &v1.Meta{}
		}
		if p.Meta.Name == "" {
			p.Meta.Name = "preview"
		}
		if p.Spec == nil {
			p.Spec = &v1.BackupPolicySpec{}
		}
		resource.DefaultPolicy(p)
		if err := m.checkPolicy(p); err != nil {
			return nil, err
		}
	}
	horizon := req.Horizon.AsDuration()
	if horizon == 0 {
		horizon = 24 * time.Hour
	}
	if horizon < 0 || horizon > 366*24*time.Hour {
		return nil, &resource.Error{Code: resource.Invalid, Kind: resource.KindPolicy, Name: p.Meta.Name, Field: "horizon", Reason: "OUT_OF_RANGE", Message: "must be up to a year"}
	}
	return m.preview(p, horizon), nil
}

// mostPlanned bounds a preview.
const mostPlanned = 10_000

func (m *Manager) preview(p *v1.BackupPolicy, horizon time.Duration) *v1.PolicyPreview {
	now := m.cfg.Clock.Now()
	zone := m.zone(p.Spec.TimeZone)
	plan := m.policyPlan(p)
	out := &v1.PolicyPreview{}
	runs := map[string][]policy.Run{} // by VM uid
	names := map[string]string{}
	for _, vm := range m.covered(p.Spec) {
		out.Vms = append(out.Vms, vm.Meta.Name)
		rec, ok := m.records.cache.Get(recordName(p.Meta.Name, vm.Meta.Uid))
		if !ok {
			rec = &v1.BackupRecord{Covered: stamp(now)}
		}
		names[vm.Meta.Uid] = vm.Meta.Name
		runs[vm.Meta.Uid] = plan.Runs(m.standing(rec, vm, p.Spec.Repository), now, now.Add(horizon))
		for _, r := range runs[vm.Meta.Uid] {
			out.Runs = append(out.Runs, &v1.PlannedRun{Time: stamp(r.At), Vm: vm.Meta.Name, Repository: p.Spec.Repository, Reason: r.Reason, ExpectedBytes: rec.ReadBytes})
		}
	}
	slices.SortStableFunc(out.Runs, func(a, b *v1.PlannedRun) int {
		if c := a.Time.AsTime().Compare(b.Time.AsTime()); c != 0 {
			return c
		}
		return strings.Compare(a.Vm, b.Vm)
	})
	out.Runs = out.Runs[:min(len(out.Runs), mostPlanned)]
	for _, at := range placesOf(p.Spec) {
		for uid, list := range m.pointsOf(p.Meta.Name, at.repository) {
			out.Prunes = append(out.Prunes, m.plannedPrunes(at, list, runs[uid], now, now.Add(horizon), zone, m.lives(uid))...)
		}
	}
	slices.SortStableFunc(out.Prunes, func(a, b *v1.PlannedPrune) int {
		if c := strings.Compare(a.Vm, b.Vm); c != 0 {
			return c
		}
		if c := b.PointTime.AsTime().Compare(a.PointTime.AsTime()); c != 0 {
			return c
		}
		return strings.Compare(a.Point, b.Point)
	})
	out.Prunes = out.Prunes[:min(len(out.Prunes), mostPlanned)]
	cov := m.coverage()
	vms, _ := m.VMs.cache.List()
	for _, vm := range vms {
		if len(cov[vm.Meta.Uid]) == 0 && names[vm.Meta.Uid] == "" && vm.Meta.DeleteTime == nil {
			out.Uncovered = append(out.Uncovered, vm.Meta.Name)
		}
	}
	return out
}

// mostPreviewed bounds the runs after which pruning is foreseen.
const mostPreviewed = 400

// plannedPrunes foresees what becomes of the points that are there when runs add theirs.
func (m *Manager) plannedPrunes(at place, list []*v1.RestorePoint, runs []policy.Run, now, until time.Time, zone *time.Location, lives bool) []*v1.PlannedPrune {
	have := asPoints(list)
	by := map[string]*v1.PlannedPrune{}
	var out []*v1.PlannedPrune
	for _, x := range list {
		pp := &v1.PlannedPrune{Point: x.Meta.Name, Vm: x.Status.Vm, PointTime: x.Status.Time, Kept: true}
		by[x.Status.Id] = pp
		out = append(out, pp)
	}
	look := func(t time.Time) {
		var left []policy.Point
		for _, v := range at.keep.Choose(have, t.In(zone), lives) {
			if v.Kept {
				left = append(left, v.Point)
			}
			if pp := by[v.ID]; pp != nil {
				if pp.Kept, pp.Reason = v.Kept, v.Reason; !v.Kept {
					pp.Time = stamp(t)
				}
			}
		}
		have = left
	}
	look(now)
	for i, r := range runs {
		if i >= mostPreviewed {
			break
		}
		have = append(have, policy.Point{ID: fmt.Sprint("run ", i), Time: r.At})
		look(r.At)
	}
	look(until)
	return out
}
