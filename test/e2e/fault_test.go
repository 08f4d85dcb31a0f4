package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/lab"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// The manager is killed: guests go on, and when it is back everything can be changed.
func TestManagerKilled(t *testing.T) {
	t.Parallel()
	r := newRig(t, small("east-1"))
	r.create("web", guest(r.tiny(false)))
	url := r.ready("web")
	pid := r.pid(r.get("web"))
	r.must(r.Kill(r.wait(), "manager"))
	body, err := r.Get(r.wait(), r.Router("east"), url+"/counter")
	r.must(err)
	if strings.TrimSpace(body) != "1" {
		t.Errorf("the guest counts %q", body)
	}
	began := time.Now()
	r.must(r.Revive(r.wait(), "manager"))
	t.Logf("the manager is back after %v", time.Since(began).Round(time.Millisecond))
	vm := r.running("web")
	if r.pid(vm) != pid {
		t.Error("the guest was started again")
	}
	nic := &v1.NIC{Meta: &v1.Meta{Name: "web/second"}, Spec: &v1.NICSpec{Network: lab.NetworkName}}
	_, err = r.API.NIC.Create(t.Context(), &v1.CreateNICRequest{Nic: nic})
	r.must(err)
	_, err = r.Address(r.wait(), r.running("web"), "second")
	r.must(err)
	r.stop("web", false)
	r.nothing()
}

// The agent is killed: its VMs go on, the manager says that the host is gone, and the next agent takes over what runs.
func TestAgentKilled(t *testing.T) {
	t.Parallel()
	r := newRig(t, small("east-1"))
	r.create("web", guest(r.tiny(false)))
	url := r.ready("web")
	pid := r.pid(r.get("web"))
	r.must(r.Kill(r.wait(), "east-1"))
	r.must(r.AwaitHost(r.wait(), "east-1", v1.HostPhase_HOST_PHASE_UNREACHABLE))
	r.ask("east", url+"/counter")
	// Asked for while nobody is there to do it; done when somebody is.
	_, err := r.API.Disk.Create(t.Context(), &v1.CreateDiskRequest{Disk: &v1.Disk{Meta: &v1.Meta{Name: "web/data"}, Spec: &v1.DiskSpec{SizeBytes: 32 << 20}}})
	r.must(err)
	r.must(r.Revive(r.wait(), "east-1"))
	r.must(r.AwaitHost(r.wait(), "east-1", v1.HostPhase_HOST_PHASE_READY))
	vm := r.running("web")
	if now := r.pid(vm); now != pid {
		t.Errorf("QEMU is process %d, was %d", now, pid)
	}
	r.until(url, "a disk", func(d map[string]struct{ Size int64 }) bool { return d["vda"].Size == 32<<20 })
	r.sees("web", "drover-tiny: ready") // the console's ring is kept
	r.stop("web", false)
	r.nothing()
}

// QEMU is killed: the VM starts again, or stays off where its policy says so.
func TestQEMUKilled(t *testing.T) {
	t.Parallel()
	r := newRig(t, small("east-1"))
	r.create("web", guest(r.tiny(false)))
	r.ready("web")
	vm := r.get("web")
	r.must(r.KillQEMU(r.wait(), vm.GetMeta().GetUid()))
	r.await("web", func(vm *v1.VM) bool {
		return vm.GetStatus().GetRestarts() == 1 && vm.GetStatus().GetPhase() == v1.VMPhase_VM_PHASE_RUNNING
	})
	r.ready("web")
	if e := r.events("web"); !strings.Contains(e, "VM_CRASHED") {
		t.Errorf("events: %s", e)
	}
	_, err := r.API.VM.Update(t.Context(), &v1.UpdateVMRequest{Vm: &v1.VM{Meta: &v1.Meta{Name: "web"}, Spec: &v1.VMSpec{RestartPolicy: v1.RestartPolicy_RESTART_POLICY_NEVER}},
		Mask: &fieldmaskpb.FieldMask{Paths: []string{"spec.restart_policy"}}})
	r.must(err)
	r.running("web")
	r.must(r.KillQEMU(r.wait(), vm.GetMeta().GetUid()))
	r.await("web", lab.Phase(v1.VMPhase_VM_PHASE_CRASHED))
	r.start("web")
	r.ready("web")
	r.nothing()
}

// A host loses power: when it is back, its VMs start in their order, and their disks are as they were.
func TestHostReboots(t *testing.T) {
	t.Parallel()
	r := newRig(t, small("east-1"))
	image := r.tiny(false)
	for i, name := range []string{"third", "second", "first"} {
		spec := guest(image)
		spec.StartOrder = int32(3 - i)
		spec.Disks = []*v1.DiskSpec{{Name: "root", SizeBytes: 16 << 20}}
		r.create(name, spec)
	}
	off := guest(image)
	off.Power = v1.Power_POWER_OFF
	r.create("off", off)
	for _, name := range []string{"first", "second", "third"} {
		r.block("write", r.ready(name), "dev=vda&size=1048576&seed=5")
	}
	r.must(r.Crash(r.wait(), "east-1"))
	if left, err := r.QEMUs(); err != nil || len(left) > 0 {
		t.Fatalf("after the power cut there are %v %v", left, err)
	}
	r.must(r.AwaitHost(r.wait(), "east-1", v1.HostPhase_HOST_PHASE_UNREACHABLE))
	r.must(r.Revive(r.wait(), "east-1"))
	r.must(r.AwaitHost(r.wait(), "east-1", v1.HostPhase_HOST_PHASE_READY))
	var before time.Time
	for _, name := range []string{"first", "second", "third"} {
		vm := r.running(name)
		if at := vm.GetStatus().GetStartTime().AsTime(); at.Before(before) {
			t.Errorf("%s was started at %v, before the one that it follows at %v", name, at, before)
		} else {
			before = at
		}
		r.block("verify", r.ready(name), "dev=vda&size=1048576&seed=5")
	}
	if vm := r.get("off"); vm.GetStatus().GetPhase() != v1.VMPhase_VM_PHASE_OFF {
		t.Errorf("a VM that was off is %v", vm.GetStatus().GetPhase())
	}
	r.nothing()
}

// A datastore runs full: the VM says so and waits, and goes on by itself when there is room.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "full")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=128m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	c := small("east-1")
	c.Datastores = map[string]map[string]string{"east-1": {"cramped": dir}}
	r := newRig(t, c)
	spec := guest(r.tiny(false))
	spec.Disks = []*v1.DiskSpec{{Name: "root", SizeBytes: 32 << 20, Datastore: "cramped"}}
	r.create("web", spec)
	url := r.ready("web")
	var room unix.Statfs_t
	r.must(unix.Statfs(dir, &room))
	ballast := filepath.Join(dir, "ballast")
	r.must(os.WriteFile(ballast, make([]byte, int64(room.Bavail)*room.Bsize-(8<<20)), 0o600))
	wrote := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	go func() {
		_, err := r.Get(ctx, r.Router("east"), url+"/disk/write?dev=vda&seed=7")
		wrote <- err
	}()
	vm := r.await("web", lab.Phase(v1.VMPhase_VM_PHASE_IO_ERROR))
	if !strings.Contains(vm.GetStatus().GetMessage(), "disk") {
		t.Errorf("it says %q", vm.GetStatus().GetMessage())
	}
	r.must(os.Remove(ballast))
	r.running("web")
	r.must(<-wrote)
	r.block("verify", url, "dev=vda&seed=7")
	if e := r.events("web"); !strings.Contains(e, "VM_IO_ERROR") || !strings.Contains(e, "VM_IO_RESUMED") {
		t.Errorf("events: %s", e)
	}
	r.nothing()
}
