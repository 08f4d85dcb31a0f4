package e2e

import (
	"strconv"
	"strings"
	"testing"

	v1 "drover/api/drover/v1"
	"drover/internal/lab"

	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

func (r *rig) snapshot(name string, memory bool) {
	r.t.Helper()
	s, err := r.API.Snapshot.Create(r.ctx, &v1.CreateSnapshotRequest{Snapshot: &v1.Snapshot{Meta: &v1.Meta{Name: name}, Spec: &v1.SnapshotSpec{Memory: memory}}})
	r.must(err)
	r.task(s.GetStatus().GetTask())
	if s, err = r.API.Snapshot.Get(r.ctx, &v1.GetRequest{Name: name}); err != nil || s.GetStatus().GetPhase() != v1.SnapshotPhase_SNAPSHOT_PHASE_READY {
		r.t.Fatalf("snapshot %s: %v %v", name, s.GetStatus(), err)
	}
}

// task waits for a task's good end.
func (r *rig) task(name string) {
	r.t.Helper()
	r.must(r.AwaitTask(r.wait(), name))
}

func (r *rig) revert(name string) {
	r.t.Helper()
	task, err := r.API.Snapshot.Revert(r.ctx, &v1.RevertRequest{Name: name})
	r.must(err)
	r.task(task.GetMeta().GetName())
}

func (r *rig) drop(name string) {
	r.t.Helper()
	s, err := r.API.Snapshot.Delete(r.ctx, &v1.DeleteRequest{Name: name})
	r.must(err)
	r.task(s.GetStatus().GetTask())
}

// tree is a VM's snapshots as "name<parent", the current one with a star.
func (r *rig) tree(vm string) string {
	r.t.Helper()
	list, err := r.API.Snapshot.List(r.ctx, &v1.ListRequest{})
	r.must(err)
	var out []string
	for _, s := range list.GetSnapshots() {
		if owner, name, _ := strings.Cut(s.GetMeta().GetName(), "/"); owner == vm {
			_, parent, _ := strings.Cut(s.GetStatus().GetParent(), "/")
			if s.GetStatus().GetCurrent() {
				name += "*"
			}
			out = append(out, name+"<"+parent)
		}
	}
	return strings.Join(out, " ")
}

func (r *rig) counter(url string) int {
	r.t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(r.ask("east", url+"/counter")))
	r.must(err)
	return n
}

// Snapshots of a running guest, with memory and without: a tree, back and forth in it, and deletions from its middle.
func TestSnapshots(t *testing.T) {
	t.Parallel()
	r := newRig(t, small("east-1"))
	spec := guest(r.tiny(false))
	spec.Disks = []*v1.DiskSpec{{Name: "root", SizeBytes: 64 << 20}}
	r.create("web", spec)
	url := r.ready("web")
	const part = "dev=vda&size=1048576&seed="
	r.block("write", url, part+"1")
	r.counter(url)
	r.snapshot("web/one", true)
	r.block("write", url, part+"2")
	for range 5 {
		r.counter(url)
	}
	r.snapshot("web/two", true)
	r.block("write", url, part+"3")

	r.revert("web/one")
	r.running("web")
	r.block("verify", url, part+"1")
	if n := r.counter(url); n != 2 {
		t.Errorf("the guest counts %d after going back to when it had counted 1", n)
	}
	r.block("write", url, part+"4")
	r.snapshot("web/three", false)
	if got, want := r.tree("web"), "one< three*<one two<one"; got != want {
		t.Errorf("the tree is %q, want %q", got, want)
	}
	r.revert("web/two")
	r.running("web")
	r.block("verify", url, part+"2")
	if n := r.counter(url); n != 7 {
		t.Errorf("the guest counts %d after going back to when it had counted 6", n)
	}
	// Without memory it is off, and begins anew from its disk.
	r.revert("web/three")
	r.await("web", lab.Phase(v1.VMPhase_VM_PHASE_OFF))
	r.start("web")
	r.ready("web")
	r.block("verify", url, part+"4")
	if n := r.counter(url); n != 1 {
		t.Errorf("the guest counts %d after a fresh start", n)
	}
	// What stands on a deleted snapshot stays whole, while the guest runs and when it is off.
	r.drop("web/one")
	if got, want := r.tree("web"), "three*< two<"; got != want {
		t.Errorf("the tree is %q, want %q", got, want)
	}
	r.drop("web/three")
	r.block("verify", url, part+"4")
	r.revert("web/two")
	r.running("web")
	r.block("verify", url, part+"2")
	r.stop("web", true)
	r.drop("web/two")
	r.start("web")
	r.ready("web")
	r.block("verify", url, part+"2")
	r.nothing()
}

// Linked clones share a template's layers, and nothing that they write.
func TestTemplateAndClones(t *testing.T) {
	t.Parallel()
	r := newRig(t, small("east-1"))
	spec := guest(r.tiny(false))
	spec.Disks = []*v1.DiskSpec{{Name: "root", SizeBytes: 64 << 20}}
	r.create("golden", spec)
	url := r.ready("golden")
	r.block("write", url, "dev=vda&size=8388608&seed=9")
	r.stop("golden", false)
	_, err := r.API.VM.Update(t.Context(), &v1.UpdateVMRequest{Vm: &v1.VM{Meta: &v1.Meta{Name: "golden"}, Spec: &v1.VMSpec{Template: true}},
		Mask: &fieldmaskpb.FieldMask{Paths: []string{"spec.template"}}})
	r.must(err)
	r.await("golden", lab.Phase(v1.VMPhase_VM_PHASE_OFF))
	if _, err := r.API.VM.Start(t.Context(), &v1.StartVMRequest{Name: "golden"}); err == nil {
		t.Error("a template was started")
	}
	macs := map[string]bool{r.get("golden").GetSpec().GetNics()[0].GetMac(): true}
	for _, c := range []struct {
		name   string
		linked bool
	}{{"c1", true}, {"c2", true}, {"c3", false}} {
		vm, err := r.API.VM.Clone(t.Context(), &v1.CloneVMRequest{Source: &v1.CloneSource{Vm: "golden", Linked: c.linked}, Name: c.name, Start: true})
		r.must(err)
		if mac := vm.GetSpec().GetNics()[0].GetMac(); macs[mac] {
			t.Errorf("clone %s has the MAC %s of another VM", c.name, mac)
		} else {
			macs[mac] = true
		}
	}
	for i, name := range []string{"c1", "c2", "c3"} {
		url := r.ready(name)
		r.block("verify", url, "dev=vda&size=8388608&seed=9")
		r.block("write", url, "dev=vda&size=1048576&seed="+strconv.Itoa(10+i))
	}
	for i, name := range []string{"c1", "c2", "c3"} {
		url := r.ready(name)
		r.block("verify", url, "dev=vda&size=1048576&seed="+strconv.Itoa(10+i))
		r.block("verify", url, "dev=vda&offset=1048576&size=7340032&seed=9")
	}
	if _, err := r.API.VM.Delete(t.Context(), &v1.DeleteRequest{Name: "golden", Force: true}); err == nil {
		t.Error("a template was deleted from under its linked clones")
	}
	// A clone of a snapshot of a VM that goes on.
	r.snapshot("c3/base", false)
	_, err = r.API.VM.Clone(t.Context(), &v1.CloneVMRequest{Source: &v1.CloneSource{Vm: "c3", Snapshot: "c3/base", Linked: true}, Name: "c4", Start: true})
	r.must(err)
	r.block("verify", r.ready("c4"), "dev=vda&size=1048576&seed=12")
	r.delete("c4", "c1", "c2")
	r.delete("c3", "golden")
	r.nothing()
}
