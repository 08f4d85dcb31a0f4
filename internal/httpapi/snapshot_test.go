package httpapi

import (
	"errors"
	"strings"
	"testing"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"
)

func (r *rig) snapshot(t *testing.T, name string) *v1.Snapshot {
	t.Helper()
	s, err := r.snapshots().Create(t.Context(), &v1.CreateSnapshotRequest{Snapshot: &v1.Snapshot{Meta: &v1.Meta{Name: name}}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (r *rig) getSnapshot(t *testing.T, name string) *v1.Snapshot {
	t.Helper()
	s, err := r.snapshots().Get(t.Context(), &v1.GetRequest{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A tree of snapshots grows, is gone back in, and shrinks; the manager is restarted in the middle of each operation.
func TestSnapshotsAcrossRestarts(t *testing.T) {
	r := start(t)
	h := r.join(t, "h1")
	r.vm(t, "a")
	r.await(t, "a", "off", isPhase(v1.VMPhase_VM_PHASE_OFF))

	// through runs an operation, cuts it off at the host, restarts the manager, and lets it end.
	through := func(what string, begin func() string) {
		t.Helper()
		h.set(func() { h.hold = make(chan struct{}) })
		task := begin()
		r.await(t, "a", "busy", func(vm *v1.VM) bool { return vm.GetStatus().GetBusy() == task })
		if _, err := r.vms().Start(t.Context(), &v1.StartVMRequest{Name: "a"}); reasonOf(err) != "VM_BUSY" {
			t.Errorf("%s: start meanwhile: %v", what, err)
		}
		r.stop()
		r = startIn(t, r.dir, r.address)
		h.set(func() { close(h.hold); h.hold = nil })
		if got := r.awaitTask(t, task); got.Status.State != v1.TaskState_TASK_STATE_SUCCEEDED {
			t.Fatalf("%s: %v", what, got.Status)
		}
		r.await(t, "a", "free", func(vm *v1.VM) bool { return vm.GetStatus().GetBusy() == "" })
	}
	through("create s1", func() string { return r.snapshot(t, "a/s1").Status.Task })
	through("create s2", func() string { return r.snapshot(t, "a/s2").Status.Task })
	if s := r.getSnapshot(t, "a/s2"); s.Status.Parent != "a/s1" || !s.Status.Current || s.Status.Phase != v1.SnapshotPhase_SNAPSHOT_PHASE_READY {
		t.Errorf("s2: %v", s.Status)
	}
	// Changed after the snapshot, and back with it.
	if _, err := r.vms().Update(t.Context(), &v1.UpdateVMRequest{Vm: &v1.VM{Meta: &v1.Meta{Name: "a"}, Spec: &v1.VMSpec{Cpus: 3}}, Mask: mask("spec.cpus")}); err != nil {
		t.Fatal(err)
	}
	through("revert to s1", func() string {
		task, err := r.snapshots().Revert(t.Context(), &v1.RevertRequest{Name: "a/s1"})
		if err != nil {
			t.Fatal(err)
		}
		return task.Meta.Name
	})
	vm, _ := r.vms().Get(t.Context(), &v1.GetRequest{Name: "a"})
	if vm.Spec.Cpus != 1 || vm.Status.CurrentSnapshot != "a/s1" {
		t.Errorf("after the revert: %d CPUs, at %s", vm.Spec.Cpus, vm.Status.CurrentSnapshot)
	}
	through("delete s1", func() string {
		s, err := r.snapshots().Delete(t.Context(), &v1.DeleteRequest{Name: "a/s1"})
		if err != nil {
			t.Fatal(err)
		}
		if stored := r.getSnapshot(t, "a/s1"); stored.Status.Task != s.Status.Task || s.Status.Task == "" {
			t.Errorf("its task is %q, stored %q", s.Status.Task, stored.Status.Task)
		}
		return s.Status.Task
	})
	if s := r.getSnapshot(t, "a/s2"); s.Status.Parent != "" {
		t.Errorf("s2 stands on %q", s.Status.Parent)
	}
	for _, op := range []string{"create a/s1", "create a/s2", "revert a/s1", "delete a/s1"} {
		if n := h.did(op); n != 1 {
			t.Errorf("%s was done %d times at the host", op, n)
		}
	}
}

// A snapshot that fails says why and holds nothing up; one that is cancelled is undone.
func TestSnapshotFailures(t *testing.T) {
	r := start(t)
	h := r.join(t, "h1")
	r.vm(t, "a")
	r.await(t, "a", "off", isPhase(v1.VMPhase_VM_PHASE_OFF))
	h.set(func() {
		h.fail = &resource.Error{Code: resource.Exhausted, Kind: "datastore", Name: "ds", Reason: "NO_SPACE", Message: "is full"}
	})
	task := r.awaitTask(t, r.snapshot(t, "a/s1").Status.Task)
	if task.Status.State != v1.TaskState_TASK_STATE_FAILED || !strings.Contains(task.Status.Message, "is full") {
		t.Errorf("task: %v", task.Status)
	}
	if s := r.getSnapshot(t, "a/s1"); s.Status.Phase != v1.SnapshotPhase_SNAPSHOT_PHASE_FAILED || !strings.Contains(s.Status.Message, "is full") {
		t.Errorf("snapshot: %v", s.Status)
	}
	h.set(func() { h.fail, h.hold = nil, make(chan struct{}) })
	s := r.snapshot(t, "a/s2")
	r.await(t, "a", "busy", func(vm *v1.VM) bool { return vm.GetStatus().GetBusy() != "" })
	waits := r.snapshot(t, "a/s3") // behind the first one, for the same VM
	for _, x := range []*v1.Snapshot{waits, s} {
		if x == s {
			h.set(func() { close(h.hold); h.hold = make(chan struct{}); close(h.hold); h.hold = nil })
		}
		_, err := r.tasks().Cancel(t.Context(), &v1.CancelTaskRequest{Name: x.Status.Task})
		if err != nil && reasonOf(err) != "TASK_ENDED" {
			t.Fatal(err)
		}
		if got := r.awaitTask(t, x.Status.Task); x == waits && got.Status.State != v1.TaskState_TASK_STATE_CANCELLED {
			t.Errorf("cancelled: %v", got.Status)
		}
	}
	r.await(t, "a", "free", func(vm *v1.VM) bool { return vm.GetStatus().GetBusy() == "" })
	if n := h.did("create a/s3"); n != 0 {
		t.Errorf("the one that waited was done %d times", n)
	}
	// Its log has the whole story, ending included.
	st, err := r.tasks().Log(t.Context(), &v1.TaskLogRequest{Name: task.Meta.Name, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	var lines []string
	for st.Receive() {
		lines = append(lines, st.Msg().Line)
	}
	if all := strings.Join(lines, "\n"); st.Err() != nil || !strings.Contains(all, "take it") || !strings.HasPrefix(lines[len(lines)-1], "failed: ") {
		t.Errorf("log: %v\n%s", st.Err(), all)
	}
	if err := errors.Join(st.Err()); err != nil {
		t.Error(err)
	}
}
