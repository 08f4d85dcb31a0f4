package manager

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/resource"
	"drover/internal/rpc"
	"drover/internal/store"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// pointView are the restore points of all repositories as their vaults told them last. Nothing of it is stored: the repositories are the truth.
type pointView struct {
	m    *Manager
	view *store.Cache[*v1.RestorePoint]
	kick chan struct{}

	mu  sync.Mutex
	rev int64
	// repos is by name.
	repos map[string]*repoView
	// byVM has the points of each VM by its uid, oldest first. The lists are never changed, only replaced.
	byVM map[string][]*v1.RestorePoint
}

// repoView is what is remembered of one repository.
type repoView struct {
	uid      string
	grant    string // the manager's own, to read points with
	revision int64  // of the vault's log, when the points were read; 0: not told
	read     time.Time
	polling  bool
	told     int64             // generation of the spec that the vault has
	damage   map[string]string // by point, as the last scrub found
	missed   int               // polls that failed in a row
}

func newPointView(m *Manager) *pointView {
	rev := m.cfg.Clock.Now().UnixMilli() // grows also over restarts
	return &pointView{m: m, view: store.NewMemory[*v1.RestorePoint](0, rev), kick: make(chan struct{}, 1), rev: rev, repos: map[string]*repoView{}}
}

const (
	// pollEvery is how often vaults are asked how they are.
	pollEvery = 10 * time.Second
	// pollTime bounds one asking.
	pollTime = 30 * time.Second
	// rereadEvery is how often points are read of a vault that does not tell its revision.
	rereadEvery = time.Minute
	// missedPolls in a row make a repository unreachable.
	missedPolls = 2
)

// wake has the vaults asked now.
func (v *pointView) wake() {
	select {
	case v.kick <- struct{}{}:
	default:
	}
}

// run asks all vaults again and again until ctx ends. A vault that does not answer holds up no other.
func (v *pointView) run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		all, _ := v.m.Repositories.cache.List()
		for _, r := range all {
			if !v.begin(r) {
				continue
			}
			wg.Go(func() {
				defer v.end(r.Meta.Name)
				pctx, stop := context.WithTimeout(ctx, pollTime)
				defer stop()
				if err := v.poll(pctx, r); err != nil && ctx.Err() == nil {
					v.m.log.Debug("manager: ask a vault", "repository", r.Meta.Name, "err", err)
				}
			})
		}
		v.prune(all)
		select {
		case <-ctx.Done():
			return nil
		case <-v.kick:
		case <-v.m.cfg.Clock.After(pollEvery):
		}
	}
}

func (v *pointView) begin(r *v1.Repository) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	x := v.repos[r.Meta.Name]
	if x == nil || x.uid != r.Meta.Uid {
		x = &repoView{uid: r.Meta.Uid}
		v.repos[r.Meta.Name] = x
	}
	if x.polling {
		return false
	}
	x.polling = true
	return true
}

func (v *pointView) end(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if x := v.repos[name]; x != nil {
		x.polling = false
	}
}

// get is a copy of what is remembered of a repository.
func (v *pointView) get(name string) repoView {
	v.mu.Lock()
	defer v.mu.Unlock()
	if x := v.repos[name]; x != nil {
		return *x
	}
	return repoView{}
}

func (v *pointView) set(name string, change func(*repoView)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if x := v.repos[name]; x != nil {
		change(x)
	}
}

// prune drops the points of repositories that are no more.
func (v *pointView) prune(all []*v1.Repository) {
	have := map[string]bool{}
	for _, r := range all {
		have[r.Meta.Name] = true
	}
	v.mu.Lock()
	var gone []string
	for name := range v.repos {
		if !have[name] {
			gone = append(gone, name)
		}
	}
	v.mu.Unlock()
	for _, name := range gone {
		v.drop(name)
	}
}

// drop forgets a repository's points here.
func (v *pointView) drop(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.repos, name)
	v.feed(name, nil)
}

// feed makes list the points of a repository. v.mu is held.
func (v *pointView) feed(repository string, list []*v1.RestorePoint) {
	v.rev++
	is := map[string]*v1.RestorePoint{}
	for _, p := range list {
		is[p.Meta.Name] = p
	}
	var events []store.Event[*v1.RestorePoint]
	have, _ := v.view.List()
	for _, p := range have {
		if p.Status.Repository == repository && is[p.Meta.Name] == nil {
			events = append(events, store.Event[*v1.RestorePoint]{Type: store.Delete, Name: p.Meta.Name, Revision: v.rev})
		}
	}
	for _, name := range sorted(is) {
		p := is[name]
		was, had := v.view.Get(name)
		if had {
			p.Meta.Revision = was.Meta.Revision
			p.Meta.Generation = was.Meta.Generation
			if was.Spec.Keep != p.Spec.Keep {
				p.Meta.Generation++
			}
			if proto.Equal(was, p) {
				continue
			}
		}
		p.Meta.Revision = v.rev
		events = append(events, store.Event[*v1.RestorePoint]{Type: store.Put, Name: name, Object: p, Revision: v.rev})
	}
	feed(v.view, events, v.rev)
	if len(events) == 0 {
		return
	}
	v.byVM = map[string][]*v1.RestorePoint{}
	all, _ := v.view.List()
	for _, p := range all {
		v.byVM[p.Status.VmUid] = append(v.byVM[p.Status.VmUid], p)
	}
	for _, list := range v.byVM {
		byTime(list)
	}
}

func byTime(list []*v1.RestorePoint) {
	slices.SortStableFunc(list, func(a, b *v1.RestorePoint) int { return a.Status.Time.AsTime().Compare(b.Status.Time.AsTime()) })
}

// poll asks one vault how it is and, if they may have changed, for its points.
func (v *pointView) poll(ctx context.Context, r *v1.Repository) error {
	name := r.Meta.Name
	st, rev, err := v.status(ctx, r)
	if err == nil {
		if derr := v.m.disarm(ctx, r); derr != nil {
			v.m.log.Warn("manager: take back what a removed host was granted", "repository", name, "err", derr)
		}
		if gerr := v.m.regrant(ctx, r); gerr != nil {
			v.m.log.Warn("manager: give a vault its grants again", "repository", name, "err", gerr)
		}
	}
	if err == nil && !usablePhase(st.Phase) {
		return v.keep(context.WithoutCancel(ctx), r, st)
	}
	if err == nil {
		x := v.get(name)
		now := v.m.cfg.Clock.Now()
		if x.read.IsZero() || rev != 0 && rev != x.revision || rev == 0 && now.Sub(x.read) >= rereadEvery || int32(v.count(name)) != st.Points {
			if err = v.reread(ctx, r, st); err == nil {
				v.set(name, func(x *repoView) { x.revision, x.read, x.missed = rev, now, 0 })
			}
		} else {
			v.set(name, func(x *repoView) { x.missed = 0 })
		}
	}
	if err != nil {
		if ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled) {
			return err
		}
		v.set(name, func(x *repoView) { x.missed++ })
		if v.get(name).missed < missedPolls && r.GetStatus().GetPhase() == v1.RepositoryPhase_REPOSITORY_PHASE_READY {
			return err
		}
		st = clone(r.GetStatus())
		if st == nil {
			st = &v1.RepositoryStatus{}
		}
		st.Phase, st.Message = phaseOf(err), err.Error()
	}
	return errors.Join(err, v.keep(context.WithoutCancel(ctx), r, st))
}

// phaseOf is what an error of a vault makes of its repository.
func phaseOf(err error) v1.RepositoryPhase {
	switch resource.CodeOf(err) {
	case resource.Denied, resource.Anonymous: // KEY_WRONG
		return v1.RepositoryPhase_REPOSITORY_PHASE_LOCKED
	case resource.Invalid, resource.Unimplemented:
		return v1.RepositoryPhase_REPOSITORY_PHASE_FAILED
	}
	return v1.RepositoryPhase_REPOSITORY_PHASE_UNREACHABLE
}

// status asks a vault; one that was restarted opens the repository again first.
func (v *pointView) status(ctx context.Context, r *v1.Repository) (*v1.RepositoryStatus, int64, error) {
	c, err := v.m.vault(r)
	if err != nil {
		return nil, 0, err
	}
	if v.get(r.Meta.Name).told == r.Meta.Generation {
		res, err := c.Status(ctx, &v1.VaultStatusRequest{Repository: r.Meta.Name})
		if err == nil && usablePhase(res.Status.GetPhase()) {
			return statusOf(res.Status), res.Revision, nil
		}
		if err != nil {
			if err = atVault(r, err); resource.CodeOf(err) != resource.NotFound && reasonOf(err) != "VAULT_CLOSED" {
				return nil, 0, err
			}
		}
	}
	// It is not open there, or its storage is away: opening tries again.
	if _, err := v.m.openVault(ctx, r, "", false); err != nil {
		return nil, 0, err
	}
	v.set(r.Meta.Name, func(x *repoView) { x.told, x.grant = r.Meta.Generation, "" })
	res, err := c.Status(ctx, &v1.VaultStatusRequest{Repository: r.Meta.Name})
	if err != nil {
		return nil, 0, atVault(r, err)
	}
	return statusOf(res.Status), res.Revision, nil
}

// reasonOf is the reason of an error, of here or from afar.
func reasonOf(err error) string {
	var e *resource.Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return rpc.Detail(err).GetReason()
}

// usablePhase reports whether a repository can be read.
func usablePhase(p v1.RepositoryPhase) bool {
	switch p {
	case v1.RepositoryPhase_REPOSITORY_PHASE_UNREACHABLE, v1.RepositoryPhase_REPOSITORY_PHASE_LOCKED, v1.RepositoryPhase_REPOSITORY_PHASE_FAILED:
		return false
	}
	return true
}

func statusOf(st *v1.RepositoryStatus) *v1.RepositoryStatus {
	if st == nil {
		st = &v1.RepositoryStatus{}
	}
	if st.Phase <= v1.RepositoryPhase_REPOSITORY_PHASE_PENDING {
		st.Phase = v1.RepositoryPhase_REPOSITORY_PHASE_READY
	}
	return st
}

// keep stores a repository's status if it says something new, and tells when its phase has changed.
func (v *pointView) keep(ctx context.Context, r *v1.Repository, st *v1.RepositoryStatus) error {
	before := r.GetStatus().GetPhase()
	_, err := v.m.Repositories.mutate(ctx, r.Meta.Name, func(x *v1.Repository) error {
		if x.Meta.Uid != r.Meta.Uid {
			return errSame
		}
		was := clone(x.Status)
		if x.Status == nil {
			was = &v1.RepositoryStatus{}
		}
		now := clone(st)
		if now.LastCollect == nil {
			now.LastCollect = was.LastCollect // a vault that was restarted doesn't know
		}
		if now.LastScrub == nil {
			now.LastScrub = was.LastScrub
		}
		now.ObservedGeneration = max(was.ObservedGeneration, r.Meta.Generation)
		if sameRepository(was, now) {
			return errSame
		}
		before, x.Status = was.Phase, now
		return nil
	})
	if err != nil {
		if resource.CodeOf(err) == resource.NotFound {
			return nil
		}
		return err
	}
	if before == st.Phase || before == v1.RepositoryPhase_REPOSITORY_PHASE_UNSPECIFIED {
		return nil
	}
	word := resource.Word(st.Phase)
	if st.Phase == v1.RepositoryPhase_REPOSITORY_PHASE_READY {
		v.m.event(v1.Severity_SEVERITY_INFO, resource.KindRepository, r.Meta.Name, "REPOSITORY_READY", "is ready again")
		return nil
	}
	v.m.event(v1.Severity_SEVERITY_ERROR, resource.KindRepository, r.Meta.Name, "REPOSITORY_"+strings.ToUpper(word), cmp.Or(st.Message, "is "+word))
	return nil
}

// sameRepository reports whether two differ in nothing but how much room the storage has left, by less than one per cent.
func sameRepository(a, b *v1.RepositoryStatus) bool {
	if d := a.FreeBytes - b.FreeBytes; d != 0 && max(d, -d) < a.CapacityBytes/100 {
		b = clone(b)
		b.FreeBytes = a.FreeBytes
	}
	return proto.Equal(a, b)
}

func (v *pointView) count(repository string) int { return len(v.of(repository, "")) }

// of are the points of a repository, or with vm of one VM in it, oldest first. With repository "" those of all.
func (v *pointView) of(repository, vmUID string) []*v1.RestorePoint {
	var list []*v1.RestorePoint
	all, _ := v.view.List()
	if vmUID != "" {
		v.mu.Lock()
		all = v.byVM[vmUID]
		v.mu.Unlock()
	}
	for _, p := range all {
		if repository == "" || p.Status.Repository == repository {
			list = append(list, p)
		}
	}
	if vmUID == "" {
		byTime(list)
	}
	return list
}

// reread reads all points of a repository.
func (v *pointView) reread(ctx context.Context, r *v1.Repository, st *v1.RepositoryStatus) error {
	var list []*v1.RestorePoint
	affected := map[string]bool{}
	for _, a := range st.GetAffected() {
		affected[a[strings.LastIndexByte(a, '/')+1:]] = true
	}
	damage := v.get(r.Meta.Name).damage
	err := v.withGrant(ctx, r, func(grant string) error {
		list = nil
		return v.m.vaultPoints(ctx, r, grant, "", func(p *backup.Point, kept bool) {
			x := pointOf(r.Meta.Name, p, kept)
			if why := damage[p.ID]; why != "" {
				x.Status.Damage = []string{why}
			} else if affected[p.ID] {
				x.Status.Damage = []string{"its repository has damaged packs that it needs"}
			}
			list = append(list, x)
		})
	})
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if x := v.repos[r.Meta.Name]; x == nil || x.uid != r.Meta.Uid {
		return nil // it was let go meanwhile
	}
	v.feed(r.Meta.Name, list)
	return nil
}

// refresh reads the points of one repository now, so that what was just done is seen.
func (v *pointView) refresh(ctx context.Context, r *v1.Repository) error {
	v.mu.Lock()
	if v.repos[r.Meta.Name] == nil {
		v.repos[r.Meta.Name] = &repoView{uid: r.Meta.Uid}
	}
	v.mu.Unlock()
	return v.reread(ctx, r, r.GetStatus())
}

// withGrant does f with the manager's own grant at a repository; one that the vault doesn't know any more is given anew.
func (v *pointView) withGrant(ctx context.Context, r *v1.Repository, f func(grant string) error) error {
	grant := v.get(r.Meta.Name).grant
	if grant != "" {
		err := f(grant)
		switch resource.CodeOf(err) {
		case resource.Denied, resource.NotFound, resource.Anonymous:
		default:
			return err
		}
	}
	grant, err := v.m.grant(ctx, r, &v1.VaultGrantRequest{Read: true})
	if err != nil {
		return err
	}
	v.set(r.Meta.Name, func(x *repoView) { x.grant = grant })
	return f(grant)
}

// vaultPoints reads the points of a repository, of one VM if vmUID is not empty.
func (m *Manager) vaultPoints(ctx context.Context, r *v1.Repository, grant, vmUID string, each func(p *backup.Point, kept bool)) error {
	c, err := m.vault(r)
	if err != nil {
		return err
	}
	st, err := c.Points(ctx, &v1.VaultPointsRequest{Repository: r.Meta.Name, Grant: grant, VmUid: vmUID})
	if err != nil {
		return atVault(r, err)
	}
	defer st.Close()
	for st.Receive() {
		for _, b := range st.Msg().Points {
			var p backup.Point
			if err := json.Unmarshal(b, &p); err != nil {
				return fmt.Errorf("repository %s: a restore point can't be read: %w", r.Meta.Name, err)
			}
			each(&p, slices.Contains(st.Msg().Kept, p.ID))
		}
	}
	return atVault(r, st.Err())
}

// Labels by which the manager finds again what it noted of a point.
const (
	labelPolicy   = "policy"
	labelDuration = "duration"
	labelTest     = "test."
	labelTestTime = "test.time"
	labelPassed   = "test.passed"
	labelChecks   = "test.checks"
	labelBoot     = "test.boot"
	fileShot      = "screenshot.png"
)

// pointOf is a restore point as callers see it.
func pointOf(repository string, p *backup.Point, kept bool) *v1.RestorePoint {
	x := &v1.RestorePoint{
		Meta: &v1.Meta{Name: repository + "/" + p.ID, Uid: p.ID, Generation: 1, CreateTime: stamp(p.Time), UpdateTime: stamp(p.Time)},
		Spec: &v1.RestorePointSpec{Keep: kept},
		Status: &v1.RestorePointStatus{
			Repository: repository, Id: p.ID, Vm: p.VM, VmUid: p.VMUID, Time: stamp(p.Time), Consistency: p.Consistency, Memory: p.Memory != "",
			Policy: p.Labels[labelPolicy], FullRead: p.Full, LogicalBytes: p.Logical, ReadBytes: p.Read, LackedBytes: p.Lacked, AddedBytes: p.Added,
		},
	}
	for _, d := range p.Disks {
		if d.Name != p.Memory {
			x.Status.Disks = append(x.Status.Disks, &v1.PointDisk{Name: d.Name, SizeBytes: d.Size})
		}
	}
	if d, err := time.ParseDuration(p.Labels[labelDuration]); err == nil {
		x.Status.Duration = durationpb.New(d)
	}
	for k, val := range p.Labels {
		if k != labelPolicy && k != labelDuration && !strings.HasPrefix(k, labelTest) {
			if x.Meta.Labels == nil {
				x.Meta.Labels = map[string]string{}
			}
			x.Meta.Labels[k] = val
		}
	}
	if at, err := time.Parse(time.RFC3339, p.Labels[labelTestTime]); err == nil {
		x.Status.Test = &v1.PointTest{Time: stamp(at), Passed: p.Labels[labelPassed] == "true"}
		if c := p.Labels[labelChecks]; c != "" {
			x.Status.Test.Checks = strings.Split(c, "\n")
		}
		if d, err := time.ParseDuration(p.Labels[labelBoot]); err == nil {
			x.Status.Test.BootTime = durationpb.New(d)
		}
	}
	return x
}

// point finds a restore point by name and its repository with it.
func (m *Manager) point(name string) (*v1.RestorePoint, *v1.Repository, error) {
	p, err := m.Points.lookup(name)
	if err != nil {
		return nil, nil, err
	}
	r, err := m.Repositories.lookup(p.Status.Repository)
	return p, r, err
}

// Point is a restore point, with the screenshot of its test; of REPOSITORY/VM or VM the newest.
func (m *Manager) Point(ctx context.Context, name string) (*v1.RestorePoint, error) {
	name, err := m.resolvePoint(name)
	if err != nil {
		return nil, err
	}
	p, r, err := m.point(name)
	if err != nil {
		return nil, err
	}
	if p.Status.Test == nil {
		return p, nil
	}
	full, err := m.openPoint(ctx, r, p.Status.Id)
	if err != nil {
		m.log.Debug("manager: read a point's screenshot", "point", name, "err", err)
		return p, nil // the point itself is known
	}
	p = clone(p)
	p.Status.Test.Screenshot = full.Files[fileShot]
	return p, nil
}

// openPoint reads a point's description, with its files.
func (m *Manager) openPoint(ctx context.Context, r *v1.Repository, id string) (p *backup.Point, err error) {
	c, err := m.vault(r)
	if err != nil {
		return nil, err
	}
	err = m.points.withGrant(ctx, r, func(grant string) error {
		res, err := c.OpenPoint(ctx, &v1.VaultOpenPointRequest{Repository: r.Meta.Name, Grant: grant, Point: id})
		if err != nil {
			return atVault(r, err)
		}
		p = &backup.Point{}
		err = json.Unmarshal(res.Point, p)
		if p.Files == nil {
			p.Files = map[string][]byte{}
		}
		maps.Copy(p.Files, res.Files)
		_, eerr := c.End(context.WithoutCancel(ctx), &v1.VaultEndRequest{Session: res.Session})
		return errors.Join(err, atVault(r, eerr))
	})
	return p, err
}

// UpdatePoint changes whether a point is kept.
func (m *Manager) UpdatePoint(ctx context.Context, patch *v1.RestorePoint, mask *fieldmaskpb.FieldMask) (*v1.RestorePoint, error) {
	if err := needMeta(resource.KindPoint, patch); err != nil {
		return nil, err
	}
	name, err := m.resolvePoint(patch.Meta.Name)
	if err != nil {
		return nil, err
	}
	p, r, err := m.point(name)
	if err != nil {
		return nil, err
	}
	x := clone(p)
	if paths := mask.GetPaths(); len(paths) == 0 {
		mask = &fieldmaskpb.FieldMask{Paths: []string{"spec.keep"}}
	} else if slices.ContainsFunc(paths, func(s string) bool { return s != "spec" && s != "spec.keep" }) {
		return nil, &resource.Error{Code: resource.Invalid, Kind: resource.KindPoint, Name: p.Meta.Name, Field: paths[0], Reason: "FIELD_READ_ONLY", Message: "of a restore point only spec.keep changes"}
	}
	if patch.Spec == nil {
		patch = clone(patch)
		patch.Spec = &v1.RestorePointSpec{}
	}
	if err := merge(resource.KindPoint, x, patch, mask); errors.Is(err, errSame) {
		return p, nil
	} else if err != nil {
		return nil, err
	}
	c, err := m.vault(r)
	if err != nil {
		return nil, err
	}
	if _, err := c.Keep(ctx, &v1.VaultKeepRequest{Repository: r.Meta.Name, Point: p.Status.Id, Keep: x.Spec.Keep}); err != nil {
		return nil, atVault(r, err)
	}
	if err := m.points.refresh(ctx, r); err != nil {
		return nil, err
	}
	return m.Points.lookup(p.Meta.Name)
}

// DeletePoint forgets a point; collection reclaims what it alone held.
func (m *Manager) DeletePoint(ctx context.Context, name string, revision int64, force bool) (*v1.RestorePoint, error) {
	p, r, err := m.point(name)
	if err != nil {
		return nil, err
	}
	if err := atRevision(resource.KindPoint, p.Meta, revision); err != nil {
		return nil, err
	}
	if p.Spec.Keep && !force {
		return nil, &resource.Error{Code: resource.Precondition, Kind: resource.KindPoint, Name: name, Reason: "POINT_KEPT", Message: "is kept", Remedy: "release it first, or delete it with force"}
	}
	if err := m.forget(ctx, r, "deleted", p); err != nil {
		return nil, err
	}
	m.event(v1.Severity_SEVERITY_INFO, resource.KindPoint, name, "POINT_DELETED", "of VM "+p.Status.Vm+", "+p.Status.Time.AsTime().Format(time.RFC3339))
	return p, nil
}

// forget has a vault forget points. Kept ones are released first: whoever calls has said so.
func (m *Manager) forget(ctx context.Context, r *v1.Repository, reason string, points ...*v1.RestorePoint) error {
	c, err := m.vault(r)
	if err != nil {
		return err
	}
	req := &v1.VaultForgetRequest{Repository: r.Meta.Name, Reason: reason}
	for _, p := range points {
		if p.Spec.Keep {
			if _, err := c.Keep(ctx, &v1.VaultKeepRequest{Repository: r.Meta.Name, Point: p.Status.Id}); err != nil {
				return atVault(r, err)
			}
		}
		req.Points = append(req.Points, p.Status.Id)
	}
	if _, err := c.Forget(ctx, req); err != nil {
		return atVault(r, err)
	}
	return m.points.refresh(ctx, r)
}
