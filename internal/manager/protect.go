package manager

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/backup/policy"
	"drover/internal/resource"
	"drover/internal/task"
)

// coverage are the policies that cover each VM, by its uid, the one that counts first: the highest priority, then the first by name.
func (m *Manager) coverage() map[string][]*v1.BackupPolicy {
	by := map[string][]*v1.BackupPolicy{}
	all, _ := m.Policies.cache.List()
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b *v1.BackupPolicy) int {
		return cmp.Or(cmp.Compare(b.Spec.Priority, a.Spec.Priority), strings.Compare(a.Meta.Name, b.Meta.Name))
	})
	for _, p := range all {
		for _, vm := range m.covered(p.Spec) {
			by[vm.Meta.Uid] = append(by[vm.Meta.Uid], p)
		}
	}
	return by
}

// policyOf is the policy that counts for a VM, or the named one if it covers the VM; nil if there is none.
func (m *Manager) policyOf(vm *v1.VM, name string) *v1.BackupPolicy {
	for _, p := range m.coverage()[vm.Meta.Uid] {
		if name == "" || p.Meta.Name == name {
			return p
		}
	}
	return nil
}

// protect says how a VM stands.
func (m *Manager) protect(vm *v1.VM, p *v1.BackupPolicy, now time.Time) *v1.Protection {
	out := &v1.Protection{Vm: vm.Meta.Name, State: v1.ProtectionState_PROTECTION_STATE_UNCOVERED}
	f := policy.Facts{}
	for _, x := range m.points.of("", vm.Meta.Uid) {
		out.Points++
		if len(x.Status.Damage) == 0 {
			f.Newest = x.Status.Time.AsTime()
		}
		if t := x.Status.Test; t != nil && (out.LastTest == nil || t.Time.AsTime().After(out.LastTest.AsTime())) {
			out.LastTest, out.LastTestPassed = t.Time, t.Passed
		}
	}
	if !f.Newest.IsZero() {
		out.LastPoint = stamp(f.Newest)
	}
	if p == nil {
		out.Message = "no policy covers it"
		return out
	}
	out.Policy = p.Meta.Name
	rec, ok := m.records.cache.Get(recordName(p.Meta.Name, vm.Meta.Uid))
	if !ok {
		rec = &v1.BackupRecord{Covered: stamp(now)}
	}
	f.TestFailed = out.LastTest != nil && !out.LastTestPassed
	f.Covered, f.Running, f.Failures, f.Error = at(rec.Covered), rec.Task != "", int(rec.Failures), rec.Error
	plan := m.policyPlan(p)
	state, why := plan.Judge(f, now)
	out.State, out.Message, out.LastError = v1.ProtectionState(int(v1.ProtectionState_PROTECTION_STATE_PROTECTED)+int(state)), why, rec.Error
	standing := m.standing(rec, vm, p.Spec.Repository)
	standing.Running = false
	if run, ok := plan.Next(standing, now); ok {
		out.NextRun = stamp(run.At)
	}
	if r, err := m.Repositories.lookup(p.Spec.Repository); err != nil {
		out.Message = join(out.Message, "repository "+p.Spec.Repository+" does not exist any more")
	} else if phase := r.GetStatus().GetPhase(); phase != v1.RepositoryPhase_REPOSITORY_PHASE_READY {
		out.Message = join(out.Message, "repository "+p.Spec.Repository+" is "+resource.Word(phase))
	}
	return out
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// Protection tells how the VMs stand that a filter matches.
func (m *Manager) Protection(filter string) (*v1.ProtectionList, error) {
	match, err := matcher(resource.KindVM, &v1.VM{}, filter)
	if err != nil {
		return nil, err
	}
	now, cov := m.cfg.Clock.Now(), m.coverage()
	out := &v1.ProtectionList{}
	all, _ := m.VMs.cache.List()
	for _, vm := range all {
		if vm.Meta.DeleteTime != nil || !match(vm) {
			continue
		}
		var p *v1.BackupPolicy
		if list := cov[vm.Meta.Uid]; len(list) > 0 {
			p = list[0]
		}
		out.Vms = append(out.Vms, m.protect(vm, p, now))
	}
	return out, nil
}

// showPolicy adds how the VMs of a policy stand, and when it runs next.
func (m *Manager) showPolicy(p *v1.BackupPolicy) {
	if p.Status == nil {
		p.Status = &v1.BackupPolicyStatus{}
	}
	st := p.Status
	st.ObservedGeneration = p.Meta.Generation
	if m.points == nil || m.records == nil {
		return // it is only being opened
	}
	now := m.cfg.Clock.Now()
	var waits []string
	for _, vm := range m.covered(p.Spec) {
		st.Vms++
		x := m.protect(vm, p, now)
		switch x.State {
		case v1.ProtectionState_PROTECTION_STATE_PROTECTED:
			st.Protected++
		case v1.ProtectionState_PROTECTION_STATE_LATE:
			st.Late++
		case v1.ProtectionState_PROTECTION_STATE_AT_RISK:
			st.AtRisk++
		}
		if x.NextRun != nil && (st.NextRun == nil || x.NextRun.AsTime().Before(st.NextRun.AsTime())) {
			st.NextRun = x.NextRun
		}
		if x.LastError != "" && len(waits) < 3 {
			waits = append(waits, vm.Meta.Name+": "+x.LastError)
		}
	}
	st.Message = strings.Join(waits, "; ")
	switch r, err := m.Repositories.lookup(p.Spec.Repository); {
	case err != nil:
		st.Conditions = append(st.Conditions, &v1.Condition{Type: "REPOSITORY_MISSING", Status: true, Reason: "REPOSITORY_MISSING", Message: "repository " + p.Spec.Repository + " does not exist any more"})
	case r.GetStatus().GetPhase() != v1.RepositoryPhase_REPOSITORY_PHASE_READY:
		st.Conditions = append(st.Conditions, &v1.Condition{Type: "REPOSITORY_NOT_READY", Status: true, Reason: "REPOSITORY_NOT_READY", Message: "repository " + p.Spec.Repository + " is " + resource.Word(r.GetStatus().GetPhase()) + ": " + r.GetStatus().GetMessage()})
	}
	if p.Spec.Notify != nil {
		p.Spec.Notify.WebhookSecret = ""
	}
}

// RunPolicy begins a task that backs up all that a policy covers now.
func (m *Manager) RunPolicy(ctx context.Context, name string) (*v1.Task, error) {
	p, err := m.Policies.lookup(name)
	if err != nil {
		return nil, err
	}
	if _, err := m.readyRepository(p.Spec.Repository, true); err != nil {
		return nil, err
	}
	if len(m.covered(p.Spec)) == 0 {
		return nil, &resource.Error{Code: resource.Precondition, Kind: resource.KindPolicy, Name: name, Reason: "COVERS_NOTHING", Message: "covers no VM", Remedy: "see what it selects: drover policy preview " + name}
	}
	return m.submitWith(ctx, taskRun, resource.KindPolicy, name, &v1.GetRequest{Name: name})
}

// doRunPolicy asks for a backup of each VM and waits until each has ended. The scheduler begins them, within the same bounds as others.
func (m *Manager) doRunPolicy(ctx context.Context, r *task.Run) error {
	name := r.Task.Spec.Target
	asked := r.Task.Meta.CreateTime.AsTime()
	err := r.Step(ctx, "ask for backups", func(ctx context.Context) error {
		p, err := m.Policies.lookup(name)
		if err != nil {
			return err
		}
		for _, vm := range m.covered(p.Spec) {
			if len(vm.Spec.Disks) == 0 {
				continue
			}
			rec := recordName(name, vm.Meta.Uid)
			if _, ok := m.records.cache.Get(rec); !ok {
				if _, err := m.cover(ctx, p, vm); err != nil {
					return err
				}
			}
			if _, err := m.records.mutate(ctx, rec, func(rec *v1.BackupRecord) error {
				if !at(rec.Slot).Before(asked) || rec.Task != "" {
					return errSame // one runs already
				}
				rec.Wanted = stamp(asked)
				return nil
			}); err != nil {
				return err
			}
		}
		m.backups.wake()
		return nil
	})
	if err != nil {
		return err
	}
	sub := m.records.cache.Subscribe(m.records.cache.Revision())
	for {
		done, open, failed, faults := m.runState(name, asked)
		if total := done + open; total > 0 {
			r.Progress(ctx, float64(done)/float64(total))
		}
		if open == 0 {
			if failed > 0 {
				return &resource.Error{Code: resource.Precondition, Kind: resource.KindPolicy, Name: name, Reason: "BACKUPS_FAILED", Message: fmt.Sprintf("%d of %d backups failed: %s", failed, done, strings.Join(faults, "; "))}
			}
			r.Log("%d VMs were backed up", done)
			return nil
		}
		if _, err := sub.Next(ctx); err != nil {
			return context.Cause(ctx)
		}
	}
}

// runState counts the VMs of a policy by how far what was asked for at a time is.
func (m *Manager) runState(name string, asked time.Time) (done, open, failed int, faults []string) {
	p, ok := m.Policies.cache.Get(name)
	if !ok {
		return 0, 0, 0, nil
	}
	all, _ := m.records.cache.List()
	for _, rec := range all {
		switch {
		case rec.Policy != name:
		case rec.Task != "" || rec.Wanted != nil || rec.Failures > 0 && rec.Failures <= p.Spec.Retries && !at(rec.LastEnd).Before(asked):
			open++
		case rec.Failures > 0 && !at(rec.LastEnd).Before(asked):
			failed++
			done++
			if len(faults) < 5 {
				faults = append(faults, rec.Vm+": "+rec.Error)
			}
		case !at(rec.LastEnd).Before(asked):
			done++
		}
	}
	return done, open, failed, faults
}

// BackupCounts are for metrics.
type BackupCounts struct {
	Repositories []*v1.Repository
	States       map[string]int
	VMs          []*v1.Protection
	Records      []*v1.BackupRecord
}

// CountBackups counts what metrics tell of backups.
func (m *Manager) CountBackups() BackupCounts {
	out := BackupCounts{States: map[string]int{}}
	out.Repositories, _ = m.Repositories.cache.List()
	out.Records, _ = m.records.cache.List()
	list, err := m.Protection("")
	if err != nil {
		return out
	}
	out.VMs = list.Vms
	for _, x := range list.Vms {
		out.States[resource.Word(x.State)]++
	}
	return out
}
