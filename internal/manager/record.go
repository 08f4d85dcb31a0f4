package manager

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/backup/policy"
	"drover/internal/resource"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// newPoint is the id of a point that is to be made.
func newPoint() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func recordName(policyName, vmUID string) string { return policyName + "/" + vmUID }

// ending is how a run of a policy for one VM ended.
type ending struct {
	err         error
	cancelled   bool
	took        time.Duration
	read, added int64
	point       string
}

// recordEnd notes how a run ended. Only the task that the record names ends it; a second call does nothing.
func (m *Manager) recordEnd(ctx context.Context, name, taskName string, e ending) error {
	now := m.cfg.Clock.Now()
	final := false
	var done *v1.BackupRecord
	rec, err := m.records.mutate(ctx, name, func(rec *v1.BackupRecord) error {
		done = nil
		if rec.Task != taskName {
			return errSame
		}
		rec.Task, rec.LastEnd = "", stamp(now)
		done = rec
		if e.err == nil {
			rec.Failures, rec.Error, rec.RetryTime = 0, "", nil
			rec.LastSuccess, rec.Duration, rec.ReadBytes, rec.AddedBytes = stamp(now), durationpb.New(e.took), e.read, e.added
			final = true
			return nil
		}
		p, err := m.Policies.lookup(rec.Policy)
		if err != nil {
			return nil //nolint:nilerr // the policy is gone, and the record goes soon
		}
		pp := m.policyPlan(p)
		rec.Failures++
		rec.Error = e.err.Error()
		rec.RetryTime = stamp(now.Add(pp.Delay(int(rec.Failures))))
		if e.cancelled {
			rec.Failures = max(rec.Failures, int32(pp.Retries)+1) // who cancelled it doesn't want it tried again
		}
		final = int(rec.Failures) > pp.Retries
		return nil
	})
	if resource.CodeOf(err) == resource.NotFound && err != nil {
		return nil // the policy was deleted meanwhile
	}
	if err != nil || done == nil || !final {
		return err
	}
	if e.err != nil {
		m.event(v1.Severity_SEVERITY_ERROR, resource.KindPolicy, rec.Policy, "BACKUP_GIVEN_UP", "VM "+rec.Vm+": "+e.err.Error())
	}
	return m.countRun(ctx, rec, e)
}

// countRun adds one VM's end to its policy's run.
func (m *Manager) countRun(ctx context.Context, rec *v1.BackupRecord, e ending) error {
	_, err := m.Policies.mutate(ctx, rec.Policy, func(p *v1.BackupPolicy) error {
		run := m.runOf(p)
		if e.err == nil {
			run.Succeeded++
		} else {
			run.Failed++
		}
		run.ReadBytes += e.read
		run.AddedBytes += e.added
		return nil
	})
	if resource.CodeOf(err) == resource.NotFound {
		return nil
	}
	return err
}

// runOf is the run of a policy that is under way, begun if there is none.
func (m *Manager) runOf(p *v1.BackupPolicy) *v1.PolicyRun {
	if p.Status == nil {
		p.Status = &v1.BackupPolicyStatus{}
	}
	if p.Status.Run == nil {
		p.Status.Run = &v1.PolicyRun{StartTime: stamp(m.cfg.Clock.Now())}
	}
	return p.Status.Run
}

// copyEnd notes how a copy ended.
func (m *Manager) copyEnd(ctx context.Context, record, repository, taskName string, failed error) error {
	if record == "" {
		return nil
	}
	name, _, _ := strings.Cut(record, "/")
	defer m.backups.added(name)
	now := m.cfg.Clock.Now()
	_, err := m.records.mutate(ctx, record, func(rec *v1.BackupRecord) error {
		c := copyOf(rec, repository)
		if c.Task != taskName {
			return errSame
		}
		c.Task, c.Error = "", ""
		if failed == nil {
			c.Failures, c.RetryTime = 0, nil
			return nil
		}
		c.Failures++
		c.Error = failed.Error()
		d := policy.Policy{RetryDelay: resource.DefaultRetryDelay}
		if p, err := m.Policies.lookup(rec.Policy); err == nil {
			d = m.policyPlan(p)
		}
		c.RetryTime = stamp(now.Add(d.Delay(int(c.Failures))))
		return nil
	})
	if resource.CodeOf(err) == resource.NotFound {
		return nil
	}
	return err
}

// copyOf is the part of a record about one copy, made if it isn't there.
func copyOf(rec *v1.BackupRecord, repository string) *v1.CopyRecord {
	for _, c := range rec.Copies {
		if c.Repository == repository {
			return c
		}
	}
	c := &v1.CopyRecord{Repository: repository}
	rec.Copies = append(rec.Copies, c)
	return c
}

// cover makes the record of a VM that came under a policy.
func (m *Manager) cover(ctx context.Context, p *v1.BackupPolicy, vm *v1.VM) (*v1.BackupRecord, error) {
	rec := &v1.BackupRecord{Meta: &v1.Meta{Name: recordName(p.Meta.Name, vm.Meta.Uid)}, Policy: p.Meta.Name, Vm: vm.Meta.Name, VmUid: vm.Meta.Uid, Covered: stamp(m.cfg.Clock.Now())}
	rec, err := m.records.create(ctx, m.store, rec)
	if resource.CodeOf(err) == resource.Exists {
		return m.records.lookup(recordName(p.Meta.Name, vm.Meta.Uid))
	}
	return rec, err
}

// policyPlan is a policy as the planner sees it.
func (m *Manager) policyPlan(p *v1.BackupPolicy) policy.Policy {
	s := p.Spec
	return policy.Policy{
		Name: p.Meta.Name, Zone: m.zone(s.TimeZone), Schedules: schedules(s.Schedules...), RPO: s.Rpo.AsDuration(), Windows: windows(s.Windows),
		Priority: int(s.Priority), Retries: int(s.Retries), RetryDelay: s.RetryDelay.AsDuration(), Parallel: int(s.Parallel), PerHost: int(s.ParallelPerHost),
		Repository: s.Repository, CatchUp: s.CatchUp.AsDuration(), Paused: s.Paused, Up: m.start,
	}
}

// standing is a VM as the planner sees it.
func (m *Manager) standing(rec *v1.BackupRecord, vm *v1.VM, repository string) policy.VM {
	x := policy.VM{
		Name: vm.Meta.Name, UID: vm.Meta.Uid, Host: vm.GetStatus().GetOwner(), Covered: at(rec.GetCovered()), Slot: at(rec.GetSlot()), Failures: int(rec.GetFailures()),
		Retry: at(rec.GetRetryTime()), Running: rec.GetTask() != "", Wanted: at(rec.GetWanted()), Expected: rec.GetReadBytes(),
	}
	for _, d := range vm.Spec.Disks {
		if d.Datastore != "" {
			x.Datastores = append(x.Datastores, d.Datastore)
		}
	}
	x.Point = m.newest(repository, vm.Meta.Uid)
	if t := at(rec.GetLastSuccess()); t.After(x.Point) {
		x.Point = t // what was just made may not have been read yet
	}
	return x
}

// newest is the time of the newest whole point of a VM in a repository, or with "" in any; zero if there is none.
func (m *Manager) newest(repository, vmUID string) (t time.Time) {
	for _, p := range m.points.of(repository, vmUID) {
		if len(p.Status.Damage) == 0 {
			t = p.Status.Time.AsTime()
		}
	}
	return t
}

// at is a time that may not be set.
func at(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

// forgetRecord drops what is known of a VM under a policy.
func (m *Manager) forgetRecord(ctx context.Context, rec *v1.BackupRecord) error {
	rev, err := m.records.coll.Delete(ctx, rec.Meta.Name, rec.Meta.Revision)
	if err != nil {
		if err = m.records.translate(err, rec.Meta.Name); resource.CodeOf(err) == resource.NotFound || resource.CodeOf(err) == resource.Conflict {
			return nil
		}
		return err
	}
	return m.records.cache.WaitRevision(ctx, rev)
}
