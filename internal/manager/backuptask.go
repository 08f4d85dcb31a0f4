package manager

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/auth"
	"drover/internal/backup"
	"drover/internal/resource"
	"drover/internal/rpc"
	"drover/internal/task"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Kinds of tasks of backup and recovery.
const (
	taskBackup  = "backup.create"
	taskRestore = "backup.restore"
	taskCopy    = "backup.copy"
	taskTest    = "backup.test"
	taskCollect = "repository.collect"
	taskScrub   = "repository.scrub"
	taskRun     = "policy.run"
	taskNotify  = "policy.notify"
)

func (m *Manager) backupHandlers() map[string]task.Handler {
	return map[string]task.Handler{
		taskBackup:  {Do: m.doBackup, Undo: m.undoBackup},
		taskRestore: {Do: m.doRestore, Undo: m.undoRestore},
		taskCopy:    {Do: m.doCopy, Undo: m.undoCopy},
		taskTest:    {Do: m.doTest},
		taskCollect: {Do: m.doCollect},
		taskScrub:   {Do: m.doScrub},
		taskRun:     {Do: m.doRunPolicy},
		taskNotify:  {Do: m.doNotify},
	}
}

// submitWith is submit with arguments.
func (m *Manager) submitWith(ctx context.Context, kind, targetKind, target string, args proto.Message) (*v1.Task, error) {
	b, err := proto.Marshal(args)
	if err != nil {
		return nil, err
	}
	by, _ := auth.FromContext(ctx)
	t, err := m.tasks.Submit(ctx, &v1.TaskSpec{Kind: kind, TargetKind: targetKind, Target: target, Principal: by.String(), Arguments: b})
	if err != nil {
		return nil, m.Tasks.translate(err, "")
	}
	return t, m.Tasks.cache.WaitRevision(ctx, t.Meta.Revision)
}

// arguments reads a task's into to.
func arguments(r *task.Run, to proto.Message) error {
	if err := proto.Unmarshal(r.Task.Spec.Arguments, to); err != nil {
		return fmt.Errorf("arguments of the task: %w", err)
	}
	return nil
}

// readyRepository is a repository that can be used now.
func (m *Manager) readyRepository(name string, write bool) (*v1.Repository, error) {
	r, err := m.Repositories.lookup(name)
	if err != nil {
		return nil, err
	}
	switch phase := r.GetStatus().GetPhase(); phase {
	case v1.RepositoryPhase_REPOSITORY_PHASE_READY, v1.RepositoryPhase_REPOSITORY_PHASE_DAMAGED:
	default:
		return nil, &resource.Error{Code: resource.Unavailable, Kind: resource.KindRepository, Name: name, Reason: "REPOSITORY_NOT_READY", Message: "is " + resource.Word(phase) + ": " + r.GetStatus().GetMessage()}
	}
	if write && r.Spec.ReadOnly {
		return nil, &resource.Error{Code: resource.Precondition, Kind: resource.KindRepository, Name: name, Reason: "REPOSITORY_READ_ONLY", Message: "takes no new points: it is read only"}
	}
	return r, nil
}

// CreateBackup backs up a VM now.
func (m *Manager) CreateBackup(ctx context.Context, req *v1.CreateBackupRequest) (*v1.Task, error) {
	vm, err := m.VMs.lookup(req.Vm)
	if err != nil {
		return nil, err
	}
	req = clone(req)
	args := &v1.BackupArguments{Request: req, Point: newPoint()}
	if p := m.policyOf(vm, req.Policy); p != nil {
		req.Repository = cmp.Or(req.Repository, p.Spec.Repository)
		args.BandwidthLimit, args.AuditShare = p.Spec.BandwidthLimit, max(p.Spec.AuditShare, 0)
		if req.Quiesce == v1.Quiesce_QUIESCE_UNSPECIFIED {
			req.Quiesce = p.Spec.Quiesce
		}
	} else if req.Policy != "" {
		return nil, &resource.Error{Code: resource.Precondition, Kind: resource.KindPolicy, Name: req.Policy, Reason: "NOT_COVERED", Message: "does not cover VM " + req.Vm}
	}
	if req.Repository == "" {
		return nil, &resource.Error{Code: resource.Invalid, Kind: resource.KindVM, Name: req.Vm, Field: "repository", Reason: "REPOSITORY_MISSING", Message: "no policy covers the VM, so a repository must be named"}
	}
	if _, err := m.readyRepository(req.Repository, true); err != nil {
		return nil, err
	}
	if err := m.canBackUp(vm, req.Memory, req.Quiesce); err != nil {
		return nil, err
	}
	return m.submitWith(ctx, taskBackup, resource.KindVM, req.Vm, args)
}

// canBackUp says whether a VM can be backed up at all.
func (m *Manager) canBackUp(vm *v1.VM, memory bool, q v1.Quiesce) error {
	bad := func(reason, msg string) error {
		return &resource.Error{Code: resource.Precondition, Kind: resource.KindVM, Name: vm.Meta.Name, Reason: reason, Message: msg}
	}
	switch {
	case vm.Meta.DeleteTime != nil:
		return bad("DELETING", "is being deleted")
	case vm.GetStatus().GetOwner() == "":
		return bad("NO_OWNER", "no host holds it")
	case len(vm.Spec.Disks) == 0:
		return bad("NO_DISKS", "has no disks, so there is nothing to back up")
	case memory && vm.GetStatus().GetPhase() != v1.VMPhase_VM_PHASE_RUNNING && vm.GetStatus().GetPhase() != v1.VMPhase_VM_PHASE_PAUSED:
		return bad("VM_NOT_RUNNING", "has no memory to keep: it doesn't run")
	case q == v1.Quiesce_QUIESCE_REQUIRE && isUp(vm.GetStatus().GetPhase()) && !vm.GetStatus().GetGuest().GetAgent():
		return bad("NO_GUEST_AGENT", "its guest agent doesn't answer, so nothing can be frozen")
	}
	return nil
}

// progress passes on what a stream tells, at most.
type progress interface {
	GetProgress() float64
	GetStep() string
}

func tell(ctx context.Context, r *task.Run, last *string, p progress) {
	if p.GetProgress() > 0 {
		r.Progress(ctx, p.GetProgress())
	}
	if s := p.GetStep(); s != "" && s != *last {
		*last = s
		r.Log("%s", s)
	}
}

// parentOf is the newest whole point of a VM in a repository; "" if there is none.
func (m *Manager) parentOf(r *v1.Repository, vmUID string) string {
	id := ""
	for _, p := range m.points.of(r.Meta.Name, vmUID) {
		if len(p.Status.Damage) == 0 {
			id = p.Status.Id
		}
	}
	return id
}

func (m *Manager) doBackup(ctx context.Context, r *task.Run) (err error) {
	var args v1.BackupArguments
	if err := arguments(r, &args); err != nil {
		return err
	}
	req := args.Request
	repo, err := m.readyRepository(req.Repository, true)
	if err != nil {
		return err
	}
	leave, err := m.backups.gate.enter(ctx, repo.Meta.Name, int(cmp.Or(repo.Spec.Parallel, resource.DefaultParallel)), func() { r.Log("waits: repository %s takes no more at a time", repo.Meta.Name) })
	if err != nil {
		return err
	}
	defer leave()
	begin := m.cfg.Clock.Now()
	var point *backup.Point
	err = r.Step(ctx, "back up to "+repo.Meta.Name, func(ctx context.Context) error {
		point, err = m.backUp(ctx, r, repo, &args)
		return err
	})
	if err != nil {
		return err
	}
	took := m.cfg.Clock.Now().Sub(begin)
	// What follows is noted beside the point; the point is safe without.
	if point != nil {
		labels := map[string]string{labelDuration: took.Round(time.Millisecond).String()}
		c, err := m.vault(repo)
		if err == nil {
			_, err = c.Keep(ctx, &v1.VaultKeepRequest{Repository: repo.Meta.Name, Point: point.ID, Keep: req.Keep, Labels: labels})
		}
		if err != nil && req.Keep {
			return fmt.Errorf("the point is made, but could not be marked as kept: %w", atVault(repo, err))
		}
		if err != nil {
			r.Log("note how long it took: %v", err)
		}
	} else {
		point = &backup.Point{ID: args.Point}
	}
	if err := m.points.refresh(ctx, repo); err != nil {
		r.Log("read the points again: %v", err) // the next poll does
	}
	name := repo.Meta.Name + "/" + args.Point
	m.event(v1.Severity_SEVERITY_INFO, resource.KindVM, req.Vm, "BACKUP_DONE", fmt.Sprintf("restore point %s, %d MiB read, %d MiB added, in %v", name, point.Read>>20, point.Added>>20, took.Round(100*time.Millisecond)))
	if args.Record == "" {
		return nil
	}
	m.backups.wake()
	return m.recordEnd(ctx, args.Record, r.Task.Meta.Name, ending{took: took, read: point.Read, added: point.Added, point: name})
}

// backUp has the VM's host write a point. A point that an earlier try made is found there.
func (m *Manager) backUp(ctx context.Context, r *task.Run, repo *v1.Repository, args *v1.BackupArguments) (*backup.Point, error) {
	req := args.Request
	vm, node, err := m.At(req.Vm)
	if err != nil {
		return nil, err
	}
	if err := m.canBackUp(vm, req.Memory, req.Quiesce); err != nil {
		return nil, err
	}
	def, labels := definitionOf(vm), map[string]string{}
	if req.Policy != "" {
		labels[labelPolicy] = req.Policy
	}
	// The vault has it from us: what a host says of a VM is not what is restored one day.
	grant := &v1.VaultGrantRequest{HostUid: m.hostUID(vm.Status.Owner), VmUid: vm.Meta.Uid, Read: true, Write: true, Point: args.Point, Vm: vm.Meta.Name, Labels: labels}
	if grant.Definition, err = protojson.Marshal(def); err != nil {
		return nil, err
	}
	t, release, err := m.targetOf(ctx, repo, grant, args.BandwidthLimit)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := m.points.refresh(ctx, repo); err != nil {
		return nil, err
	}
	ask := &v1.NodeBackupRequest{
		Operation: r.Task.Meta.Name, Vm: vm.Meta.Name, Uid: vm.Meta.Uid, Epoch: vm.Status.Epoch, Target: t, Point: args.Point, Quiesce: req.Quiesce,
		Memory: req.Memory, Full: req.Full, AuditShare: args.AuditShare, BandwidthLimit: args.BandwidthLimit, Definition: def, Labels: labels,
	}
	if !req.Full {
		ask.Parent = m.parentOf(repo, vm.Meta.Uid)
		if ask.Parent == args.Point {
			ask.Parent = ""
		}
	}
	st, err := node.Backup(ctx, ask)
	if err != nil {
		return nil, atHost(vm, err)
	}
	defer st.Close()
	var last *v1.NodeBackupProgress
	step := ""
	for st.Receive() {
		last = clone(st.Msg())
		tell(ctx, r, &step, last)
	}
	if err := st.Err(); err != nil {
		return nil, atHost(vm, err)
	}
	if !last.GetDone() || len(last.Point) == 0 {
		return nil, fmt.Errorf("host %s ended the backup without a result", vm.Status.Owner)
	}
	p := &backup.Point{}
	if err := json.Unmarshal(last.Point, p); err != nil {
		return nil, fmt.Errorf("host %s: its restore point can't be read: %w", vm.Status.Owner, err)
	}
	if p.ID != args.Point {
		return nil, fmt.Errorf("host %s made restore point %q, asked for was %q", vm.Status.Owner, p.ID, args.Point)
	}
	if p.Full != "" {
		r.Log("all was read: %s", p.Full)
	}
	return p, nil
}

// hostUID is a host's; "" if it is gone.
func (m *Manager) hostUID(name string) string {
	h, _ := m.Hosts.cache.Get(name)
	return h.GetMeta().GetUid()
}

func (m *Manager) undoBackup(ctx context.Context, r *task.Run) error {
	var args v1.BackupArguments
	if err := arguments(r, &args); err != nil {
		return err
	}
	m.event(v1.Severity_SEVERITY_ERROR, resource.KindVM, args.Request.GetVm(), "BACKUP_FAILED", failure(r))
	if args.Record == "" {
		return nil
	}
	m.backups.wake()
	return m.recordEnd(ctx, args.Record, r.Task.Meta.Name, ending{err: r.Failure(), cancelled: errors.Is(r.Failure(), task.ErrCancelled)})
}

// CollectRepository reclaims space now.
func (m *Manager) CollectRepository(ctx context.Context, name string) (*v1.Task, error) {
	if _, err := m.readyRepository(name, false); err != nil {
		return nil, err
	}
	return m.submitWith(ctx, taskCollect, resource.KindRepository, name, &v1.VaultWorkRequest{Repository: name})
}

// ScrubRepository reads packs and checks them.
func (m *Manager) ScrubRepository(ctx context.Context, req *v1.ScrubRepositoryRequest) (*v1.Task, error) {
	if !(req.Share >= 0 && req.Share <= 1) {
		return nil, &resource.Error{Code: resource.Invalid, Kind: resource.KindRepository, Name: req.Name, Field: "share", Reason: "OUT_OF_RANGE", Message: fmt.Sprintf("%v; must be 0 to 1, 0 means all", req.Share)}
	}
	if _, err := m.readyRepository(req.Name, false); err != nil {
		return nil, err
	}
	return m.submitWith(ctx, taskScrub, resource.KindRepository, req.Name, &v1.VaultWorkRequest{Repository: req.Name, Share: req.Share})
}

// vaultStream is what a vault sends while it works.
type vaultStream interface {
	Receive() bool
	Msg() *v1.VaultProgress
	Err() error
	Close() error
}

// atWork follows a vault's work to its end.
func (m *Manager) atWork(ctx context.Context, r *task.Run, repo *v1.Repository, st vaultStream, err error) (*v1.VaultProgress, error) {
	if err != nil {
		return nil, atVault(repo, err)
	}
	defer st.Close()
	var last *v1.VaultProgress
	step := ""
	for st.Receive() {
		last = clone(st.Msg())
		tell(ctx, r, &step, last)
	}
	if err := st.Err(); err != nil {
		return nil, atVault(repo, err)
	}
	if !last.GetDone() {
		return nil, fmt.Errorf("repository %s ended the work without a result", repo.Meta.Name)
	}
	return last, nil
}

func (m *Manager) doCollect(ctx context.Context, r *task.Run) error {
	var req v1.VaultWorkRequest
	if err := arguments(r, &req); err != nil {
		return err
	}
	repo, err := m.readyRepository(r.Task.Spec.Target, false)
	if err != nil {
		return err
	}
	c, err := m.vault(repo)
	if err != nil {
		return err
	}
	st, err := c.Collect(ctx, &req)
	last, err := m.atWork(ctx, r, repo, st, err)
	m.points.wake()
	if err != nil {
		return err
	}
	r.Log("%d MiB were freed", last.Freed>>20)
	m.event(v1.Severity_SEVERITY_INFO, resource.KindRepository, repo.Meta.Name, "REPOSITORY_COLLECTED", fmt.Sprintf("%d MiB were freed", last.Freed>>20))
	return nil
}

func (m *Manager) doScrub(ctx context.Context, r *task.Run) error {
	var req v1.VaultWorkRequest
	if err := arguments(r, &req); err != nil {
		return err
	}
	repo, err := m.readyRepository(r.Task.Spec.Target, false)
	if err != nil {
		return err
	}
	for _, name := range repo.Spec.Mirrors {
		a, release, err := m.mirror(ctx, repo, name)
		if err != nil {
			r.Log("mirror %s can't be used: %v", name, err)
			continue
		}
		defer release()
		req.Mirrors = append(req.Mirrors, a)
	}
	c, err := m.vault(repo)
	if err != nil {
		return err
	}
	st, err := c.Scrub(ctx, &req)
	last, err := m.atWork(ctx, r, repo, st, err)
	if err != nil {
		m.points.wake()
		return err
	}
	m.points.set(repo.Meta.Name, func(x *repoView) { x.damage, x.read = last.Affected, time.Time{} })
	m.points.wake()
	r.Log("%d MiB read, %d packs repaired, %d damaged", last.Bytes>>20, len(last.RepairedPacks), len(last.DamagedPacks))
	if n := len(last.RepairedPacks); n > 0 {
		m.event(v1.Severity_SEVERITY_WARNING, resource.KindRepository, repo.Meta.Name, "REPOSITORY_REPAIRED", fmt.Sprintf("%d packs had rotted and were repaired", n))
	}
	if n := len(last.DamagedPacks); n > 0 {
		m.event(v1.Severity_SEVERITY_ERROR, resource.KindRepository, repo.Meta.Name, "REPOSITORY_DAMAGED", fmt.Sprintf("%d packs are damaged and could not be repaired; %d restore points are affected", n, len(last.Affected)))
		return &resource.Error{Code: resource.Precondition, Kind: resource.KindRepository, Name: repo.Meta.Name, Reason: "REPOSITORY_DAMAGED", Message: fmt.Sprintf("%d packs are damaged and could not be repaired; %d restore points are affected", n, len(last.Affected)),
			Remedy: "see: drover repository show " + repo.Meta.Name + "; back the VMs up anew, or name a mirror that has the points"}
	}
	return nil
}

// mirror lets the machine that serves repo read all of another repository.
func (m *Manager) mirror(ctx context.Context, repo *v1.Repository, from string) (*v1.VaultAddress, func(), error) {
	src, err := m.readyRepository(from, false)
	if err != nil {
		return nil, nil, err
	}
	t, release, err := m.targetOf(ctx, src, &v1.VaultGrantRequest{HostUid: m.hostUID(repo.Spec.Host), Read: true}, 0)
	return t.GetVault(), release, err
}

// CopyPoints copies points to another repository, only what is missing there.
func (m *Manager) CopyPoints(ctx context.Context, req *v1.CopyPointsRequest) (*v1.Task, error) {
	req = clone(req)
	if _, err := m.readyRepository(req.To, true); err != nil {
		return nil, err
	}
	if len(req.Points) > 0 && req.From == "" {
		req.From, _, _ = resource.PointName(req.Points[0])
	}
	bad := func(reason, field, msg string) error {
		return &resource.Error{Code: resource.Invalid, Kind: resource.KindRepository, Name: req.To, Field: field, Reason: reason, Message: msg}
	}
	if _, err := m.readyRepository(req.From, false); err != nil {
		return nil, err
	}
	if req.From == req.To {
		return nil, bad("COPY_INVALID", "to", "is where the points are")
	}
	for _, p := range req.Points {
		if repo, _, _ := resource.PointName(p); repo != req.From {
			return nil, bad("COPY_INVALID", "points", p+" is not in repository "+req.From)
		}
		if _, err := m.Points.lookup(p); err != nil {
			return nil, err
		}
	}
	if len(req.Points) == 0 && req.Vm == "" {
		return nil, bad("COPY_INVALID", "points", "either points or a VM must be named")
	}
	return m.submitWith(ctx, taskCopy, resource.KindRepository, req.To, &v1.CopyArguments{Request: req})
}

// toCopy are the ids of the points that a request names and that are not there yet, oldest first.
func (m *Manager) toCopy(req *v1.CopyPointsRequest) (ids []string) {
	want := map[string]bool{}
	for _, p := range req.Points {
		want[p] = true
	}
	for _, p := range m.points.of(req.From, "") {
		if len(want) > 0 && !want[p.Meta.Name] || len(want) == 0 && p.Status.Vm != req.Vm && p.Status.VmUid != req.Vm {
			continue
		}
		if _, there := m.points.view.Get(req.To + "/" + p.Status.Id); !there {
			ids = append(ids, p.Status.Id)
		}
	}
	return ids
}

func (m *Manager) doCopy(ctx context.Context, r *task.Run) error {
	var args v1.CopyArguments
	if err := arguments(r, &args); err != nil {
		return err
	}
	req := args.Request
	to, err := m.readyRepository(req.To, true)
	if err != nil {
		return err
	}
	if err := m.points.refresh(ctx, to); err != nil {
		return err
	}
	ids := m.toCopy(req)
	if len(ids) == 0 {
		r.Log("all of them are there")
		return m.copyEnd(ctx, args.Record, req.To, r.Task.Meta.Name, nil)
	}
	from, release, err := m.mirror(ctx, to, req.From)
	if err != nil {
		return err
	}
	defer release()
	c, err := m.vault(to)
	if err != nil {
		return err
	}
	r.Log("%d points from %s", len(ids), req.From)
	st, err := c.Copy(ctx, &v1.VaultCopyRequest{Repository: req.To, From: from, Points: ids, BandwidthLimit: req.BandwidthLimit})
	last, err := m.atWork(ctx, r, to, st, err)
	if err != nil {
		return err
	}
	r.Log("%d MiB were copied", last.Bytes>>20)
	if err := m.points.refresh(ctx, to); err != nil {
		r.Log("read the points again: %v", err)
	}
	m.event(v1.Severity_SEVERITY_INFO, resource.KindRepository, req.To, "POINTS_COPIED", fmt.Sprintf("%d points from %s, %d MiB", len(ids), req.From, last.Bytes>>20))
	return m.copyEnd(ctx, args.Record, req.To, r.Task.Meta.Name, nil)
}

func (m *Manager) undoCopy(ctx context.Context, r *task.Run) error {
	var args v1.CopyArguments
	if err := arguments(r, &args); err != nil {
		return err
	}
	m.event(v1.Severity_SEVERITY_ERROR, resource.KindRepository, r.Task.Spec.Target, "COPY_FAILED", failure(r))
	return m.copyEnd(ctx, args.Record, r.Task.Spec.Target, r.Task.Meta.Name, r.Failure())
}

// TestPoint boots a restore point in isolation and checks it.
func (m *Manager) TestPoint(ctx context.Context, req *v1.TestPointRequest) (*v1.Task, error) {
	name, err := m.resolvePoint(req.Point)
	if err != nil {
		return nil, err
	}
	req = clone(req)
	req.Point = name
	if err := resource.CheckBoot(name, req.Check); err != nil {
		return nil, err
	}
	if req.Host != "" {
		if _, err := m.Hosts.lookup(req.Host); err != nil {
			return nil, err
		}
	}
	return m.submitWith(ctx, taskTest, resource.KindPoint, name, req)
}

func (m *Manager) doTest(ctx context.Context, r *task.Run) error {
	var req v1.TestPointRequest
	if err := arguments(r, &req); err != nil {
		return err
	}
	p, repo, err := m.point(req.Point)
	if err != nil {
		return err
	}
	var host *v1.Host
	if req.Host != "" {
		host, err = m.Hosts.lookup(req.Host)
	} else {
		host, err = m.helperHost(repo, p)
	}
	if err != nil {
		return err
	}
	full, err := m.openPoint(ctx, repo, p.Status.Id)
	if err != nil {
		return err
	}
	def, err := definition(full)
	if err != nil {
		return err
	}
	t, release, err := m.target(ctx, repo, host.Meta.Uid, p, 0)
	if err != nil {
		return err
	}
	defer release()
	node, err := m.nodes.of(host.Meta.Name)
	if err != nil {
		return err
	}
	ask := &v1.NodeTestRequest{Operation: r.Task.Meta.Name, Source: t, Point: p.Status.Id, Check: req.Check, Images: m.imagesOf(def)}
	if ask.Check == nil {
		ask.Check = &v1.BootCheck{Agent: true}
	}
	r.Log("on host %s", host.Meta.Name)
	st, err := node.TestPoint(ctx, ask)
	if err != nil {
		return atNode(host.Meta.Name, err)
	}
	defer st.Close()
	var last *v1.NodeTestProgress
	for st.Receive() {
		last = clone(st.Msg())
		if last.Step != "" {
			r.Log("%s", last.Step)
		}
	}
	if err := st.Err(); err != nil {
		return atNode(host.Meta.Name, err)
	}
	if !last.GetDone() || last.Result == nil {
		return fmt.Errorf("host %s ended the test without a result", host.Meta.Name)
	}
	return m.keepTest(ctx, repo, p, last.Result)
}

// keepTest keeps the result of a boot test with the point.
func (m *Manager) keepTest(ctx context.Context, repo *v1.Repository, p *v1.RestorePoint, res *v1.PointTest) error {
	at := m.cfg.Clock.Now()
	if res.Time.IsValid() {
		at = res.Time.AsTime()
	}
	checks := ""
	for i, c := range res.Checks {
		if i > 0 {
			checks += "\n"
		}
		checks += c
	}
	req := &v1.VaultKeepRequest{Repository: repo.Meta.Name, Point: p.Status.Id, Keep: p.Spec.Keep, Labels: map[string]string{
		labelTestTime: at.UTC().Format(time.RFC3339), labelPassed: fmt.Sprint(res.Passed), labelChecks: checks, labelBoot: res.BootTime.AsDuration().String(),
	}}
	if len(res.Screenshot) > 0 {
		req.Files = map[string][]byte{fileShot: res.Screenshot}
	}
	c, err := m.vault(repo)
	if err != nil {
		return err
	}
	if _, err := c.Keep(ctx, req); err != nil {
		return atVault(repo, err)
	}
	if err := m.points.refresh(ctx, repo); err != nil {
		return err
	}
	if res.Passed {
		m.event(v1.Severity_SEVERITY_INFO, resource.KindPoint, p.Meta.Name, "TEST_PASSED", "VM "+p.Status.Vm+" booted in "+res.BootTime.AsDuration().Round(100*time.Millisecond).String())
		return nil
	}
	m.event(v1.Severity_SEVERITY_ERROR, resource.KindPoint, p.Meta.Name, "TEST_FAILED", "VM "+p.Status.Vm+": "+checks)
	return &resource.Error{Code: resource.Precondition, Kind: resource.KindPoint, Name: p.Meta.Name, Reason: "TEST_FAILED", Message: "did not pass its boot test: " + checks, Remedy: "its screenshot is kept with it: drover backup show " + p.Meta.Name}
}

// atNode puts an error of a host that is about no VM into words.
func atNode(host string, err error) error {
	err = rpc.FromError(err)
	if err == nil || rpc.Detail(err) != nil {
		return err
	}
	code := resource.CodeOf(err)
	e := &resource.Error{Code: code, Kind: resource.KindHost, Name: host, Reason: "HOST_FAILED", Message: err.Error(), Err: err}
	if code == resource.Unavailable {
		e.Reason, e.Message = "HOST_UNREACHABLE", "can't be reached: "+err.Error()
	}
	return e
}
