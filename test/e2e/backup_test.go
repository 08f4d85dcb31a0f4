package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/lab"
	"drover/internal/osimage"

	"google.golang.org/protobuf/types/known/durationpb"
)

// dataSize is the size of a guest's data disk in these tests.
const dataSize = 192 << 20

// withData is a tiny guest with a blank data disk.
func withData(image, host string) *v1.VMSpec {
	s := guest(image)
	s.Placement = &v1.PlacementSpec{Host: host}
	s.Disks = []*v1.DiskSpec{{Name: "data", SizeBytes: dataSize}}
	return s
}

// written is what the tiny guest tells of a part of a disk.
type written struct {
	OK     bool
	Offset int64 // where it differs first
}

// disk has a guest write or verify a pattern on its first disk.
func (r *rig) disk(vm, verb string, offset, size int64, seed int) written {
	r.t.Helper()
	w := inside[written](r, vm, fmt.Sprintf("/disk/%s?dev=vda&offset=%d&size=%d&seed=%d", verb, offset, size, seed))
	return w
}

func (r *rig) pattern(vm string, offset, size int64, seed int) {
	r.t.Helper()
	r.disk(vm, "write", offset, size, seed)
	r.holds(vm, offset, size, seed)
}

// holds checks that a guest reads a pattern from its disk.
func (r *rig) holds(vm string, offset, size int64, seed int) {
	r.t.Helper()
	if w := r.disk(vm, "verify", offset, size, seed); !w.OK {
		r.t.Fatalf("VM %s at %d: not pattern %d: %+v", vm, offset, seed, w)
	}
}

// done waits for a task, and returns it.
func (r *rig) done(t *v1.Task, err error) *v1.Task {
	r.t.Helper()
	r.must(err)
	began := time.Now()
	if err := r.AwaitTask(r.wait(), t.GetMeta().GetName()); err != nil {
		r.t.Fatalf("task %s of %s: %v", t.GetSpec().GetKind(), t.GetSpec().GetTarget(), err)
	}
	r.t.Logf("%s of %s took %v", t.GetSpec().GetKind(), t.GetSpec().GetTarget(), time.Since(began).Round(time.Millisecond))
	t, err = r.API.Task.Get(r.ctx, &v1.GetRequest{Name: t.GetMeta().GetName()})
	r.must(err)
	return t
}

// repository makes one in the lab's own directory.
func (r *rig) repository(name, host string, spec *v1.RepositorySpec) (recovery string) {
	r.t.Helper()
	spec.Host = host
	if spec.Location == "" {
		spec.Location = filepath.Join(r.DataDir(), "repository-"+name)
	}
	made, err := r.API.Repository.Create(r.ctx, &v1.CreateRepositoryRequest{
		Repository: &v1.Repository{Meta: &v1.Meta{Name: name}, Spec: spec}, Passphrase: "correct horse battery",
	})
	r.must(err)
	r.eventually(func() error {
		got, err := r.API.Repository.Get(r.ctx, &v1.GetRequest{Name: name})
		if err == nil && got.GetStatus().GetPhase() != v1.RepositoryPhase_REPOSITORY_PHASE_READY {
			err = fmt.Errorf("repository %s is %v: %s", name, got.GetStatus().GetPhase(), got.GetStatus().GetMessage())
		}
		return err
	})
	return made.GetRecoveryKey()
}

// points are a VM's restore points in a repository, oldest first.
func (r *rig) points(repository, vm string) []*v1.RestorePoint {
	r.t.Helper()
	l, err := r.API.Backup.List(r.ctx, &v1.ListRequest{Filter: fmt.Sprintf("status.repository = %q AND status.vm = %q", repository, vm), OrderBy: "status.time"})
	r.must(err)
	return l.GetPoints()
}

// backup makes a point and returns it.
func (r *rig) backup(vm, repository string) *v1.RestorePoint {
	r.t.Helper()
	before := len(r.points(repository, vm))
	r.done(r.API.Backup.Create(r.ctx, &v1.CreateBackupRequest{Vm: vm, Repository: repository}))
	var all []*v1.RestorePoint
	r.eventually(func() error {
		if all = r.points(repository, vm); len(all) <= before {
			return fmt.Errorf("%d points of %s in %s, as before", len(all), vm, repository)
		}
		return nil
	})
	p := all[len(all)-1]
	st := p.GetStatus()
	r.t.Logf("point of %s: %s, read %d, lacked %d, stored %d, full: %q", vm, st.GetConsistency(), st.GetReadBytes(), st.GetLackedBytes(), st.GetAddedBytes(), st.GetFullRead())
	return p
}

// program is the program under test with arguments.
func program(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, drover[0], append(slices.Clone(drover[1:]), args...)...)
}

// helper has the image that restores of files need.
func (r *rig) helper() {
	r.t.Helper()
	res, err := osimage.BuildHelper(r.ctx, osimage.Helper{}, osimage.Options{})
	r.must(err)
	r.must(r.PutImage(r.wait(), "helper", res.Path))
}

// TestBackup takes a running guest through its life in a repository: full and incremental points, a second copy, whole restores, an instant one while its
// vault is killed, and the same without a manager.
func TestBackup(t *testing.T) {
	r := newRig(t, lab.FleetConfig{Config: lab.Config{Sites: []lab.Site{
		{Name: "east", Hosts: []lab.Host{{Name: "east-1"}}}, {Name: "west", Hosts: []lab.Host{{Name: "west-1"}}},
	}}})
	image := r.tiny(false)
	recovery := r.repository("main", "", &v1.RepositorySpec{})
	r.repository("offsite", "west-1", &v1.RepositorySpec{})

	r.create("db", withData(image, "east-1"))
	r.running("db")
	r.pattern("db", 0, 48<<20, 1)
	first := r.backup("db", "main")
	if st := first.GetStatus(); st.GetReadBytes() < 48<<20 || st.GetAddedBytes() == 0 {
		t.Errorf("the first point read %d bytes and stored %d", st.GetReadBytes(), st.GetAddedBytes())
	}

	// What changes alone is read from now on.
	r.pattern("db", 8<<20, 2<<20, 2)
	second := r.backup("db", "main")
	if st := second.GetStatus(); st.GetFullRead() != "" || st.GetReadBytes() > 8<<20 {
		t.Errorf("the second point read %d bytes (%q); 2 MiB had changed", st.GetReadBytes(), st.GetFullRead())
	}

	// Another guest with the same content costs next to nothing.
	r.create("twin", withData(image, "east-1"))
	r.running("twin")
	r.pattern("twin", 0, 48<<20, 1)
	if st := r.backup("twin", "main").GetStatus(); st.GetAddedBytes() > 1<<20 {
		t.Errorf("a point of the same content stored %d bytes", st.GetAddedBytes())
	}
	r.stop("twin", true)

	// A second copy in the other site.
	r.done(r.API.Backup.Copy(r.ctx, &v1.CopyPointsRequest{From: "main", Vm: "db", To: "offsite"}))
	r.eventually(func() error {
		if n := len(r.points("offsite", "db")); n != 2 {
			return fmt.Errorf("%d points of db in offsite", n)
		}
		return nil
	})

	// As a new VM, from the first point of the copy, on the other host.
	r.done(r.API.Backup.Restore(r.ctx, &v1.RestoreRequest{
		Point: "offsite/" + first.GetStatus().GetId(), Name: "db-old", Start: true, Placement: &v1.PlacementSpec{Host: "west-1"},
	}))
	r.running("db-old")
	r.holds("db-old", 0, 48<<20, 1)
	r.delete("db-old")

	// In place, after the guest was wrecked.
	r.disk("db", "write", 0, 48<<20, 66)
	r.stop("db", true)
	r.done(r.API.Backup.Restore(r.ctx, &v1.RestoreRequest{Point: second.GetMeta().GetName(), Start: true}))
	r.running("db")
	r.holds("db", 0, 8<<20, 1)
	r.holds("db", 8<<20, 2<<20, 2)
	r.holds("db", 10<<20, 38<<20, 1)

	r.withoutManager(second, recovery)

	// What is deleted is gone, and its space comes back.
	for _, p := range r.points("main", "twin") {
		_, err := r.API.Backup.Delete(r.ctx, &v1.DeleteRequest{Name: p.GetMeta().GetName()})
		r.must(err)
	}
	r.done(r.API.Repository.Collect(r.ctx, &v1.RepositoryActionRequest{Name: "main"}))
	r.done(r.API.Repository.Scrub(r.ctx, &v1.ScrubRepositoryRequest{Name: "main"}))
	r.delete("db", "twin")
	r.nothing()
}

// TestInstantRestore starts a VM out of the repository of another host, kills that host's agent while blocks are still to come, and looks whether all is
// right when it is back.
func TestInstantRestore(t *testing.T) {
	r := newRig(t, lab.FleetConfig{Config: lab.Config{Sites: []lab.Site{
		{Name: "east", Hosts: []lab.Host{{Name: "east-1"}}}, {Name: "west", Hosts: []lab.Host{{Name: "west-1"}}},
	}}})
	image := r.tiny(false)
	r.repository("offsite", "west-1", &v1.RepositorySpec{})
	r.create("db", withData(image, "east-1"))
	r.running("db")
	r.pattern("db", 0, 48<<20, 1)
	r.pattern("db", 8<<20, 2<<20, 2)
	p := r.backup("db", "offsite")
	r.delete("db")
	began := time.Now()
	task, err := r.API.Backup.Restore(r.ctx, &v1.RestoreRequest{
		Point: "offsite/" + p.GetStatus().GetId(), Name: "quick", Instant: true, Start: true, Placement: &v1.PlacementSpec{Host: "east-1"}, BandwidthLimit: 6 << 20,
	})
	r.must(err)
	r.running("quick")
	r.t.Logf("instant restore: running after %v", time.Since(began).Round(time.Millisecond))
	r.holds("quick", 8<<20, 2<<20, 2)
	r.pattern("quick", 100<<20, 1<<20, 9)
	r.must(r.Kill(r.wait(), "west-1"))
	r.disk("quick", "write", 101<<20, 1<<20, 10) // what is written needs no repository
	r.must(r.Revive(r.wait(), "west-1"))
	r.must(r.AwaitHosts(r.wait()))
	r.done(task, nil)
	r.holds("quick", 0, 8<<20, 1)
	r.holds("quick", 10<<20, 38<<20, 1)
	r.holds("quick", 100<<20, 1<<20, 9)
	r.holds("quick", 101<<20, 1<<20, 10)
	// It lives on its datastore alone now.
	r.stop("quick", true)
	r.start("quick")
	r.holds("quick", 0, 8<<20, 1)
	r.delete("quick")
	r.nothing()
}

// withoutManager restores by the binary and the recovery key alone.
func (r *rig) withoutManager(p *v1.RestorePoint, recovery string) {
	r.t.Helper()
	dir := r.t.TempDir()
	cmd := program(r.ctx, "repository", "restore", filepath.Join(r.DataDir(), "repository-main"), p.GetStatus().GetId(), "--to", dir, "--verify")
	cmd.Env = append(os.Environ(), "DROVER_PASSPHRASE="+recovery, "DROVER_CACHE="+r.t.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil {
		r.t.Fatalf("restore without a manager: %v: %s", err, out)
	}
	if fi, err := os.Stat(filepath.Join(dir, "data.raw")); err != nil || fi.Size() != dataSize {
		r.t.Errorf("the restored disk: %v, %v", fi, err)
	}
	var vm struct{ Meta struct{ Name string } }
	b, err := os.ReadFile(filepath.Join(dir, "db.json"))
	r.must(err)
	if err := json.Unmarshal(b, &vm); err != nil || vm.Meta.Name != "db" {
		r.t.Errorf("the definition says %s (%v)", b, err)
	}
}

// TestBackupPolicy has a policy cover what comes, test what it makes, and tell how VMs stand.
func TestBackupPolicy(t *testing.T) {
	r := newRig(t, small("east-1"))
	image := r.tiny(false)
	r.repository("main", "east-1", &v1.RepositorySpec{})
	_, err := r.API.Policy.Create(r.ctx, &v1.CreateBackupPolicyRequest{Policy: &v1.BackupPolicy{Meta: &v1.Meta{Name: "gold"}, Spec: &v1.BackupPolicySpec{
		Select: &v1.PolicySelector{Filter: `meta.labels.tier = "gold"`}, Rpo: durationpb.New(time.Hour), Repository: "main",
		Retention: &v1.Retention{Last: 1}, Test: &v1.PolicyTest{Share: 1, Check: &v1.BootCheck{Agent: true}},
	}}})
	r.must(err)
	spec := withData(image, "east-1")
	_, err = r.API.VM.Create(r.ctx, &v1.CreateVMRequest{Vm: &v1.VM{Meta: &v1.Meta{Name: "new", Labels: map[string]string{"tier": "gold"}}, Spec: spec}})
	r.must(err)
	r.running("new")
	var last string
	r.eventually(func() error {
		l, err := r.API.Backup.Protection(r.ctx, &v1.ListProtectionRequest{})
		if err != nil {
			return err
		}
		for _, p := range l.GetVms() {
			last = p.String()
			if p.GetVm() == "new" && p.GetState() == v1.ProtectionState_PROTECTION_STATE_PROTECTED && p.GetLastTestPassed() {
				return nil
			}
		}
		return fmt.Errorf("a new VM that the policy covers stands so: %s", last)
	})
	preview, err := r.API.Policy.Preview(r.ctx, &v1.PreviewPolicyRequest{Name: "gold", Horizon: durationpb.New(3 * time.Hour)})
	r.must(err)
	if len(preview.GetRuns()) == 0 || len(preview.GetPrunes()) == 0 {
		t.Errorf("the preview says %v", preview)
	}
	// Retention keeps the last one.
	r.done(r.API.Policy.Run(r.ctx, &v1.GetRequest{Name: "gold"}))
	r.eventually(func() error {
		if n := len(r.points("main", "new")); n != 1 {
			return fmt.Errorf("%d points are left of a retention of one", n)
		}
		return nil
	})
	shot, err := r.API.Backup.Get(r.ctx, &v1.GetRequest{Name: "main/new"})
	r.must(err)
	t.Logf("test of the newest point: %v", shot.GetStatus().GetTest().GetChecks())
	r.delete("new")
	r.nothing()
}

// TestFiles fetches files out of a restore point whose disk has a file system.
func TestFiles(t *testing.T) {
	r := newRig(t, small("east-1"))
	image := r.tiny(false)
	r.helper()
	tree := t.TempDir()
	r.must(os.MkdirAll(filepath.Join(tree, "etc", "deep"), 0o755))
	r.must(os.WriteFile(filepath.Join(tree, "etc", "hosts"), []byte("127.0.0.1 localhost\n"), 0o644))
	r.must(os.WriteFile(filepath.Join(tree, "etc", "deep", "big"), []byte(strings.Repeat("0123456789abcdef", 1<<16)), 0o600))
	r.must(os.Symlink("hosts", filepath.Join(tree, "etc", "link")))
	raw := filepath.Join(t.TempDir(), "files.raw")
	if out, err := exec.CommandContext(r.ctx, "mke2fs", "-q", "-t", "ext4", "-d", tree, "-L", "stuff", raw, "64M").CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	r.must(r.PutImage(r.wait(), "files", raw))
	r.repository("main", "", &v1.RepositorySpec{})
	spec := guest(image)
	spec.Disks = []*v1.DiskSpec{{Name: "files", Image: "files"}}
	r.create("fs", spec)
	r.running("fs")
	r.backup("fs", "main")

	began := time.Now()
	volumes, err := r.API.Backup.Browse(r.wait(), &v1.BrowseRequest{Point: "main/fs"})
	r.must(err)
	t.Logf("first listing after %v: %v", time.Since(began).Round(time.Millisecond), volumes)
	if len(volumes.GetEntries()) != 1 || volumes.GetEntries()[0].GetFilesystem() != "ext4" || volumes.GetEntries()[0].GetLabel() != "stuff" {
		t.Fatalf("volumes: %v", volumes)
	}
	root := volumes.GetEntries()[0].GetName()
	socket := r.Socket()
	run := func(args ...string) string {
		t.Helper()
		out, err := program(r.wait(), append([]string{"--socket", socket}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("drover %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	if said := run("backup", "files", "fs", root+":/etc"); !strings.Contains(said, "hosts") || !strings.Contains(said, "link -> hosts") {
		t.Errorf("the listing:\n%s", said)
	}
	out := t.TempDir()
	run("backup", "get", "fs", root+":/etc", "--output", out)
	got, err := os.ReadFile(filepath.Join(out, "etc", "deep", "big"))
	want, _ := os.ReadFile(filepath.Join(tree, "etc", "deep", "big"))
	if err != nil || string(got) != string(want) {
		t.Errorf("what was fetched: %d bytes, %v; want %d", len(got), err, len(want))
	}
	r.delete("fs")
	r.nothing()
}

// TestForeignClients reads a VM's disk by programs of others, through the data protection API, and writes one back.
func TestForeignClients(t *testing.T) {
	r := newRig(t, small("east-1"))
	image := r.tiny(false)
	r.create("app", withData(image, "east-1"))
	r.running("app")
	r.pattern("app", 0, 16<<20, 3)
	p, err := r.API.Protection.CreatePoint(r.ctx, &v1.CreateProtectionPointRequest{Vm: "app"})
	r.must(err)
	tls := t.TempDir()
	r.must(os.WriteFile(filepath.Join(tls, "ca-cert.pem"), []byte(p.GetCa()), 0o644))
	d := p.GetDisks()[0]
	uri := d.GetUri() + "?tls-certificates=" + url.QueryEscape(tls)
	foreign := func(name string, args ...string) string {
		t.Helper()
		out, err := r.Exec(r.wait(), r.Router("east"), name, args...)
		if err != nil {
			t.Fatalf("%s %v: %v: %s", name, args, err, out)
		}
		return string(out)
	}
	if said := foreign("nbdinfo", "--size", uri); strings.TrimSpace(said) != fmt.Sprint(dataSize) {
		t.Errorf("nbdinfo says size %s", said)
	}
	if said := foreign("nbdinfo", "--map", uri); !strings.Contains(said, "hole") || !strings.Contains(said, "data") {
		t.Errorf("nbdinfo --map says\n%s", said)
	}
	// The guest writes on; the point stays what it was.
	r.pattern("app", 4<<20, 1<<20, 4)
	copied := filepath.Join(t.TempDir(), "copy.raw")
	foreign("nbdcopy", uri, copied)
	next, err := r.API.Protection.CreatePoint(r.ctx, &v1.CreateProtectionPointRequest{Vm: "app"})
	r.must(err)
	changed, err := r.API.Protection.Changed(r.ctx, &v1.ChangedExtentsRequest{Point: next.GetName(), Disk: "data", Since: d.GetChangeId()})
	r.must(err)
	var bytes int64
	for _, e := range changed.GetExtents() {
		bytes += e.GetLength()
		if e.GetOffset() < 4<<20-(64<<10) || e.GetOffset()+e.GetLength() > 5<<20+(64<<10) {
			t.Errorf("changed is said to be [%d, %d)", e.GetOffset(), e.GetOffset()+e.GetLength())
		}
	}
	if bytes < 1<<20 {
		t.Errorf("%d bytes are said to have changed; 1 MiB has", bytes)
	}
	for _, name := range []string{p.GetName(), next.GetName()} {
		_, err := r.API.Protection.Release(r.ctx, &v1.ReleaseRequest{Name: name})
		r.must(err)
	}
	if out, err := r.Exec(r.wait(), r.Router("east"), "nbdinfo", "--size", uri); err == nil {
		t.Errorf("the address of a released point still says %s", out)
	}
	// The way in: the copy into the disk of another VM.
	spec := withData(image, "east-1")
	spec.Power = v1.Power_POWER_OFF
	r.create("back", spec)
	r.await("back", lab.Phase(v1.VMPhase_VM_PHASE_OFF))
	in, err := r.API.Protection.OpenImport(r.ctx, &v1.OpenImportRequest{Vm: "back", Disk: "data"})
	r.must(err)
	foreign("nbdcopy", copied, in.GetUri()+"?tls-certificates="+url.QueryEscape(tls))
	_, err = r.API.Protection.Release(r.ctx, &v1.ReleaseRequest{Name: in.GetName()})
	r.must(err)
	r.start("back")
	r.holds("back", 0, 16<<20, 3)
	r.delete("app", "back")
	r.nothing()
}
