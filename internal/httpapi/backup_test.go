package httpapi

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/auth"
	"drover/internal/resource"
	"drover/internal/rpc"

	"google.golang.org/protobuf/types/known/durationpb"
)

// A VM is backed up through a real vault, and comes back under another name, in place, in part, and into another VM.
func TestPointsAndRestores(t *testing.T) {
	r := start(t)
	h := r.join(t, "h1")
	r.repository(t, "main")
	vm := r.vm(t, "a")
	r.await(t, "a", "off", isPhase(v1.VMPhase_VM_PHASE_OFF))
	first := bytes.Clone(h.disk(vm.Meta.Uid, "root", 1<<20))
	p1 := r.backUp(t, "a", "main")
	h.write(vm.Meta.Uid, "root", 300_000, []byte("changed"))
	second := bytes.Clone(h.disk(vm.Meta.Uid, "root", 1<<20))
	p2 := r.backUp(t, "a", "main")
	if p2.Status.AddedBytes >= p1.Status.AddedBytes || p2.Status.ReadBytes == 0 || p1.Status.Consistency != "crash" || len(p1.Status.Disks) != 1 {
		t.Errorf("points: %v\n%v", p1.Status, p2.Status)
	}

	task, err := r.backups().Restore(t.Context(), &v1.RestoreRequest{Point: p1.Meta.Name, Name: "b"})
	r.done(t, task, err)
	b, err := r.vms().Get(t.Context(), &v1.GetRequest{Name: "b"})
	if err != nil || b.Status.Busy != "" || b.Spec.Nics[0].Mac == vm.Spec.Nics[0].Mac || !bytes.Equal(h.disk(b.Meta.Uid, "root", 1<<20), first) {
		t.Errorf("restored as new: %v, %v", b, err)
	}
	// The newest, by the VM's name, at once.
	task, err = r.backups().Restore(t.Context(), &v1.RestoreRequest{Point: "a", Name: "c", Instant: true})
	r.done(t, task, err)
	c := r.await(t, "c", "running", isPhase(v1.VMPhase_VM_PHASE_RUNNING))
	if !bytes.Equal(h.disk(c.Meta.Uid, "root", 1<<20), second) {
		t.Error("restored at once: it has other bytes")
	}
	// In place: a VM that runs needs force.
	if _, err := r.vms().Start(t.Context(), &v1.StartVMRequest{Name: "a"}); err != nil {
		t.Fatal(err)
	}
	r.await(t, "a", "running", isPhase(v1.VMPhase_VM_PHASE_RUNNING))
	if _, err := r.backups().Restore(t.Context(), &v1.RestoreRequest{Point: p1.Meta.Name}); reasonOf(err) != "VM_NOT_OFF" {
		t.Errorf("in place of a VM that runs: %v", err)
	}
	task, err = r.backups().Restore(t.Context(), &v1.RestoreRequest{Point: p1.Meta.Name, Force: true, Start: true})
	r.done(t, task, err)
	r.await(t, "a", "running", isPhase(v1.VMPhase_VM_PHASE_RUNNING))
	if !bytes.Equal(h.disk(vm.Meta.Uid, "root", 1<<20), first) {
		t.Error("restored in place: it has other bytes")
	}
	// One disk, into another VM.
	task, err = r.backups().Restore(t.Context(), &v1.RestoreRequest{Point: p2.Meta.Name, Disks: []string{"root"}, Vm: "b"})
	r.done(t, task, err)
	if b, _ = r.vms().Get(t.Context(), &v1.GetRequest{Name: "b"}); len(b.Spec.Disks) != 2 || b.Spec.Disks[1].Name != "root-r1" || !bytes.Equal(h.disk(b.Meta.Uid, "root-r1", 1<<20), second) {
		t.Errorf("a disk added: %v", b.Spec.Disks)
	}
	// A restore that fails leaves no half VM.
	h.set(func() { h.fail = &resource.Error{Code: resource.Exhausted, Reason: "NO_SPACE", Message: "is full"} })
	task, err = r.backups().Restore(t.Context(), &v1.RestoreRequest{Point: p1.Meta.Name, Name: "d"})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.awaitTask(t, task.Meta.Name); got.Status.State != v1.TaskState_TASK_STATE_FAILED {
		t.Errorf("restore to a full host: %v", got.Status)
	}
	r.await(t, "d", "gone", isGone)
	h.set(func() { h.fail = nil })

	// A test's result is kept with the point, its picture too.
	task, err = r.backups().Test(t.Context(), &v1.TestPointRequest{Point: p2.Meta.Name})
	r.done(t, task, err)
	got, err := r.backups().Get(t.Context(), &v1.GetRequest{Name: p2.Meta.Name})
	if err != nil || !got.Status.GetTest().GetPassed() || len(got.Status.Test.Screenshot) == 0 || len(got.Status.Test.Checks) != 1 {
		t.Errorf("test: %v, %v", got.GetStatus().GetTest(), err)
	}
	// Kept points stay until they are let go.
	keep, err := r.backups().Update(t.Context(), &v1.UpdateRestorePointRequest{Point: &v1.RestorePoint{Meta: &v1.Meta{Name: p1.Meta.Name}, Spec: &v1.RestorePointSpec{Keep: true}}})
	if err != nil || !keep.Spec.Keep {
		t.Fatalf("keep: %v, %v", keep, err)
	}
	if _, err := r.backups().Delete(t.Context(), &v1.DeleteRequest{Name: p1.Meta.Name}); reasonOf(err) != "POINT_KEPT" {
		t.Errorf("delete a kept point: %v", err)
	}
	if _, err := r.backups().Delete(t.Context(), &v1.DeleteRequest{Name: p1.Meta.Name, Force: true}); err != nil {
		t.Error(err)
	}
	if _, err := r.backups().Get(t.Context(), &v1.GetRequest{Name: p1.Meta.Name}); errorOf(err) != resource.NotFound {
		t.Errorf("a deleted point: %v", err)
	}
	task, err = r.repositories().Collect(t.Context(), &v1.RepositoryActionRequest{Name: "main"})
	r.done(t, task, err)
	task, err = r.repositories().Scrub(t.Context(), &v1.ScrubRepositoryRequest{Name: "main"})
	r.done(t, task, err)
	// Copies go on where this repository ends.
	r.repository(t, "second")
	task, err = r.backups().Copy(t.Context(), &v1.CopyPointsRequest{From: "main", Vm: "a", To: "second"})
	r.done(t, task, err)
	if l, err := r.backups().List(t.Context(), &v1.ListRequest{Filter: `status.repository = "second"`}); err != nil || len(l.Points) != 1 || l.Points[0].Status.Id != p2.Status.Id {
		t.Errorf("copied: %v, %v", l, err)
	}
}

// Nothing secret of a repository is in the store, in answers, or in the audit log; it opens by itself after a restart.
func TestRepositoryAcrossRestart(t *testing.T) {
	r := start(t)
	h := r.join(t, "h1")
	r.repository(t, "main")
	vm := r.vm(t, "a")
	r.await(t, "a", "off", isPhase(v1.VMPhase_VM_PHASE_OFF))
	p := r.backUp(t, "a", "main")
	r.stop()
	r = startIn(t, r.dir, r.address)
	deadline := time.Now().Add(20 * time.Second)
	for {
		if l, err := r.backups().List(t.Context(), &v1.ListRequest{}); err == nil && len(l.Points) == 1 && l.Points[0].Meta.Name == p.Meta.Name {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("points after the restart: %v, %v", l, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	h.write(vm.Meta.Uid, "root", 0, []byte("x"))
	r.backUp(t, "a", "main")
	if _, err := r.repositories().Create(t.Context(), &v1.CreateRepositoryRequest{Repository: &v1.Repository{Meta: &v1.Meta{Name: "short"}, Spec: &v1.RepositorySpec{Location: t.TempDir() + "/x"}}, Passphrase: "short"}); reasonOf(err) != "PASSPHRASE_INVALID" {
		t.Errorf("a short passphrase: %v", err)
	}
	// The key is lost where it is served: it says so, and takes it again.
	r.stop()
	if err := os.Remove(filepath.Join(r.dir, "vaults", "main.key")); err != nil {
		t.Fatal(err)
	}
	r = startIn(t, r.dir, r.address)
	main := r.awaitRepository(t, "main", v1.RepositoryPhase_REPOSITORY_PHASE_LOCKED)
	attach := &v1.CreateRepositoryRequest{Repository: &v1.Repository{Meta: &v1.Meta{Name: "main"}, Spec: &v1.RepositorySpec{Location: main.Spec.Location}}, Passphrase: "another passphrase", Attach: true}
	if _, err := r.repositories().Create(t.Context(), attach); errorOf(err) != resource.Denied {
		t.Errorf("unlock with a wrong passphrase: %v", err)
	}
	attach.Passphrase = "a long passphrase"
	if _, err := r.repositories().Create(t.Context(), attach); err != nil {
		t.Errorf("unlock: %v", err)
	}
	r.awaitRepository(t, "main", v1.RepositoryPhase_REPOSITORY_PHASE_READY)
	r.stop()
	_ = filepath.Walk(r.dir, func(path string, st os.FileInfo, err error) error {
		if err != nil || st.IsDir() || strings.Contains(path, "/vaults/") {
			return nil
		}
		b, _ := os.ReadFile(path)
		if bytes.Contains(b, []byte("a long passphrase")) {
			t.Errorf("the passphrase is in %s", path)
		}
		return nil
	})
}

// awaitRepository waits until a repository is in a phase.
func (r *rig) awaitRepository(t *testing.T, name string, phase v1.RepositoryPhase) *v1.Repository {
	t.Helper()
	deadline := time.Now().Add(25 * time.Second)
	for {
		x, err := r.repositories().Get(t.Context(), &v1.GetRequest{Name: name})
		if err == nil && x.GetStatus().GetPhase() == phase {
			return x
		}
		if time.Now().After(deadline) {
			t.Fatalf("repository %s is not %s: %v, %v", name, phase, x.GetStatus(), err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Who may do what.
func TestBackupRoles(t *testing.T) {
	for _, c := range []struct {
		call  string
		roles string
	}{
		{"RepositoryService/List", "viewer operator admin"}, {"RepositoryService/Create", "admin"}, {"RepositoryService/Delete", "admin"}, {"RepositoryService/Rekey", "admin"},
		{"RepositoryService/Collect", "operator admin"}, {"BackupPolicyService/Create", "admin"}, {"BackupPolicyService/Update", "admin"}, {"BackupPolicyService/Preview", "viewer operator admin"},
		{"BackupPolicyService/Run", "operator admin"}, {"BackupService/List", "viewer operator admin"}, {"BackupService/Protection", "viewer operator admin"},
		{"BackupService/Create", "operator admin"}, {"BackupService/Restore", "operator admin"}, {"BackupService/Delete", "admin"}, {"BackupService/Browse", "operator admin"},
		{"BackupService/Download", "operator admin"}, {"ProtectionService/CreatePoint", "operator admin"}, {"ProtectionService/Changed", "operator admin"},
		{"VaultService/Send", ""}, {"VaultService/Points", ""},
	} {
		var got []string
		for _, role := range []string{"viewer", "operator", "admin"} {
			if roleMay(role, c.call) {
				got = append(got, role)
			}
		}
		if strings.Join(got, " ") != c.roles {
			t.Errorf("%s: %v, want %s", c.call, got, c.roles)
		}
	}
}

func (r *rig) policy(t *testing.T, p *v1.BackupPolicy) *v1.BackupPolicy {
	t.Helper()
	made, err := r.policies().Create(t.Context(), &v1.CreateBackupPolicyRequest{Policy: p})
	if err != nil {
		t.Fatalf("create policy: %v", err)
	}
	return made
}

// awaitPolicy waits until a policy is as wanted.
func (r *rig) awaitPolicy(t *testing.T, name, what string, fits func(*v1.BackupPolicy) bool) *v1.BackupPolicy {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		p, err := r.policies().Get(t.Context(), &v1.GetRequest{Name: name})
		if err == nil && fits(p) {
			return p
		}
		if time.Now().After(deadline) {
			t.Fatalf("policy %s is not %s: %v, %v", name, what, p, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// A policy covers new VMs at once, keeps its RPO, tells how VMs stand, copies, tests and prunes; a manager that is restarted in the middle neither forgets a run nor
// does it twice.
func TestPolicy(t *testing.T) {
	r := start(t)
	h := r.join(t, "h1")
	r.repository(t, "main")
	r.repository(t, "away")
	h.beat(t)
	prod := func(vm *v1.VM) { vm.Meta.Labels = map[string]string{"env": "prod"} }
	r.vm(t, "a", prod)
	r.vm(t, "b")
	r.await(t, "a", "off", isPhase(v1.VMPhase_VM_PHASE_OFF))
	h.set(func() { h.hold = make(chan struct{}) })
	bad := &v1.BackupPolicy{Meta: &v1.Meta{Name: "gold"}, Spec: &v1.BackupPolicySpec{Select: &v1.PolicySelector{Filter: `meta.labels.env = "prod"`}, Schedules: []string{"sometimes"}, Repository: "main"}}
	if _, err := r.policies().Create(t.Context(), &v1.CreateBackupPolicyRequest{Policy: bad}); reasonOf(err) != "SCHEDULE_INVALID" {
		t.Errorf("a bad schedule: %v", err)
	}
	gold := &v1.BackupPolicy{Meta: &v1.Meta{Name: "gold"}, Spec: &v1.BackupPolicySpec{
		Select: &v1.PolicySelector{Filter: `meta.labels.env = "prod"`}, Rpo: durationpb.New(time.Hour), Repository: "main", Copies: []*v1.PolicyCopy{{Repository: "away"}},
		Retention: &v1.Retention{Last: 2}, Test: &v1.PolicyTest{Share: 1},
	}}
	r.policy(t, gold)
	// It runs at once, for there is no point; the manager is restarted meanwhile.
	r.awaitPolicy(t, "gold", "running", func(p *v1.BackupPolicy) bool { return p.GetStatus().GetRun().GetVms() == 1 })
	r.stop()
	r = startIn(t, r.dir, r.address)
	h.set(func() { close(h.hold); h.hold = nil })
	p := r.awaitPolicy(t, "gold", "done", func(p *v1.BackupPolicy) bool { return p.GetStatus().GetLast() != nil })
	if p.Status.Last.Succeeded != 1 || p.Status.Last.Failed != 0 || p.Status.Protected != 1 || p.Status.Vms != 1 || p.Status.NextRun == nil {
		t.Errorf("status: %v", p.Status)
	}
	h.mu.Lock()
	if h.points != 1 {
		t.Errorf("%d points were made, want 1", h.points)
	}
	h.mu.Unlock()
	prot, err := r.backups().Protection(t.Context(), &v1.ListProtectionRequest{})
	if err != nil || len(prot.Vms) != 2 || prot.Vms[0].State != v1.ProtectionState_PROTECTION_STATE_PROTECTED || prot.Vms[1].State != v1.ProtectionState_PROTECTION_STATE_UNCOVERED {
		t.Errorf("protection: %v, %v", prot, err)
	}
	// A new VM is covered at once.
	r.vm(t, "c", prod)
	r.awaitPolicy(t, "gold", "covering c", func(p *v1.BackupPolicy) bool { return p.Status.Vms == 2 && p.Status.Protected == 2 })
	// By hand, three times: retention keeps the last two of each VM, here and there.
	for range 3 {
		task, err := r.policies().Run(t.Context(), &v1.GetRequest{Name: "gold"})
		r.done(t, task, err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		count, tested := map[string]int{}, 0
		l, err := r.backups().List(t.Context(), &v1.ListRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range l.Points {
			count[x.Status.Repository+"/"+x.Status.Vm]++
			if x.Status.Test.GetPassed() {
				tested++
			}
		}
		if fmt.Sprint(count) == "map[away/a:2 away/c:2 main/a:2 main/c:2]" && tested >= 2 {
			break
		}
		if time.Now().After(deadline) {
			tasks, _ := r.tasks().List(t.Context(), &v1.ListRequest{})
			for _, x := range tasks.GetTasks() {
				t.Logf("%s of %s: %v", x.Spec.Kind, x.Spec.Target, x.Status)
			}
			t.Fatalf("points: %v, %d tested", count, tested)
		}
		time.Sleep(100 * time.Millisecond)
	}
	pre, err := r.policies().Preview(t.Context(), &v1.PreviewPolicyRequest{Name: "gold", Horizon: durationpb.New(2 * time.Hour)})
	if err != nil || len(pre.Runs) != 4 || len(pre.Prunes) != 8 || len(pre.Uncovered) != 1 || pre.Uncovered[0] != "b" {
		t.Errorf("preview: %v, %v", pre, err)
	}
}

// A backup that fails is tried again after its delay, given up in the end, and told.
func TestPolicyRetries(t *testing.T) {
	r := start(t)
	h := r.join(t, "h1")
	r.repository(t, "main")
	r.vm(t, "a")
	r.await(t, "a", "off", isPhase(v1.VMPhase_VM_PHASE_OFF))
	h.set(func() {
		h.fail = &resource.Error{Code: resource.Unavailable, Reason: "BROKEN", Message: "is broken"}
	})
	r.policy(t, &v1.BackupPolicy{Meta: &v1.Meta{Name: "gold"}, Spec: &v1.BackupPolicySpec{
		Select: &v1.PolicySelector{All: true}, Rpo: durationpb.New(time.Hour), Repository: "main", Retries: 1, RetryDelay: durationpb.New(time.Second),
	}})
	p := r.awaitPolicy(t, "gold", "given up", func(p *v1.BackupPolicy) bool { return p.GetStatus().GetLast() != nil })
	if p.Status.Last.Failed != 1 || p.Status.Last.Succeeded != 0 || p.Status.AtRisk != 1 || !strings.Contains(p.Status.Message, "is broken") {
		t.Errorf("status: %v", p.Status)
	}
	l, err := r.tasks().List(t.Context(), &v1.ListRequest{Filter: `spec.kind = "backup.create"`})
	if err != nil || len(l.Tasks) != 2 {
		t.Errorf("%d tries, %v", len(l.GetTasks()), err)
	}
}

// roleMay asks what permit asks.
func roleMay(role, name string) bool {
	ctx := auth.WithPrincipal(context.Background(), auth.Principal{Kind: auth.KindUser, Name: "u", Roles: []auth.Grant{{Role: auth.Role(role)}}, Scopes: []auth.Scope{auth.ScopeAdmin}})
	return permit(ctx, "/drover.v1."+name) == nil
}

// A repository on a host takes backups of another host's VMs, and copies go between it and the manager's both ways. Metrics tell of all.
func TestRepositoryOnHost(t *testing.T) {
	r := start(t)
	h1, h2 := r.join(t, "h1"), r.join(t, "h2")
	_ = h1
	r.repository(t, "far", func(x *v1.Repository) { x.Spec.Host = "h1" })
	r.repository(t, "near")
	vm := r.vm(t, "a", func(vm *v1.VM) { vm.Spec.Placement = &v1.PlacementSpec{Host: "h2"} })
	r.await(t, "a", "off", isPhase(v1.VMPhase_VM_PHASE_OFF))
	want := bytes.Clone(h2.disk(vm.Meta.Uid, "root", 1<<20))
	r.backUp(t, "a", "far")
	task, err := r.backups().Copy(t.Context(), &v1.CopyPointsRequest{From: "far", Vm: "a", To: "near"})
	r.done(t, task, err)
	h2.write(vm.Meta.Uid, "root", 0, []byte("changed"))
	r.backUp(t, "a", "near")
	task, err = r.backups().Copy(t.Context(), &v1.CopyPointsRequest{From: "near", Vm: "a", To: "far"})
	r.done(t, task, err)
	if l, err := r.backups().List(t.Context(), &v1.ListRequest{}); err != nil || len(l.Points) != 4 {
		t.Fatalf("points: %v, %v", l, err)
	}
	l, _ := r.backups().List(t.Context(), &v1.ListRequest{Filter: `status.repository = "far"`, OrderBy: "status.time"})
	task, err = r.backups().Restore(t.Context(), &v1.RestoreRequest{Point: l.Points[0].Meta.Name, Name: "b", Placement: &v1.PlacementSpec{Host: "h2"}})
	r.done(t, task, err)
	b, _ := r.vms().Get(t.Context(), &v1.GetRequest{Name: "b"})
	if !bytes.Equal(h2.disk(b.Meta.Uid, "root", 1<<20), want) {
		t.Error("restored from the host's repository: it has other bytes")
	}
	res, err := rpc.UnixClient(r.socket).Get(base + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []string{`drover_repository_phase{phase="ready",repository="far"} 1`, `drover_protection_state{state="uncovered"} 2`, `drover_backup_last_point_timestamp_seconds{vm="a"}`} {
		if !strings.Contains(string(text), w) {
			t.Errorf("metrics lack %s", w)
		}
	}
}
