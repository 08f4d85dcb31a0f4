package host_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	v1 "drover/api/drover/v1"
	"drover/internal/hostnet"
)

// qemuPIDs finds the QEMUs of a bench.
func (b *bench) qemuPIDs() []int {
	b.t.Helper()
	var found []int
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		text, err := os.ReadFile(p)
		if err != nil || !strings.Contains(string(text), b.shm()) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p)))
		if err != nil {
			b.t.Fatal(err)
		}
		found = append(found, pid)
	}
	return found
}

// qemuPID is the one QEMU of a bench.
func (b *bench) qemuPID() int {
	b.t.Helper()
	pids := b.qemuPIDs()
	if len(pids) != 1 {
		b.t.Fatalf("QEMUs that run: %v, want one", pids)
	}
	return pids[0]
}

func TestAgentKilled(t *testing.T) {
	b := newBench(t)
	b.tiny()
	kill := b.spawn()
	spec := tinySpec()
	spec.Nics = []*v1.NICSpec{{Name: "eth0", Network: "lan"}}
	uid := b.vm("web", spec)
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_RUNNING)
	b.console(uid, "drover-tiny: ready", boot)
	pid := b.qemuPID()
	kill()

	// While no agent is there, QEMU goes on; what is left of things that nobody knows is swept by the next agent.
	n, err := hostnet.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	taps, err := n.Owned(hostnet.MarkNIC)
	if err != nil || len(taps) != 1 {
		t.Fatalf("TAPs of a running VM: %v %v", taps, err)
	}
	tag, _, _ := strings.Cut(taps[0].Mark.ID, "/")
	stray := hostnet.TAP{Name: "dtstray", Mark: hostnet.Mark{Kind: hostnet.MarkNIC, ID: tag + "/none/eth0"}}
	foreign := hostnet.TAP{Name: "dtforeign", Mark: hostnet.Mark{Kind: hostnet.MarkNIC, ID: "other/none/eth0"}}
	for _, tap := range []hostnet.TAP{stray, foreign} {
		if err := n.EnsureTAP(nil, tap); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = n.Delete(foreign.Name, foreign.Mark) })
	if err := os.MkdirAll(filepath.Join(b.dir, "run/vms/none"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.shm(), "none"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	b.status, b.hostSt = map[string]*v1.VMReport{}, nil
	b.mu.Unlock()

	b.spawn()
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_RUNNING)
	if now := b.qemuPID(); now != pid {
		t.Errorf("QEMU is process %d after the agent came back, it was %d", now, pid)
	}
	if _, err := n.Link(stray.Name); err == nil {
		t.Error("a TAP without a VM was not swept")
	}
	if _, err := n.Link(foreign.Name); err != nil {
		t.Errorf("another agent's TAP was swept: %v", err)
	}
	for _, path := range []string{filepath.Join(b.dir, "run/vms/none"), filepath.Join(b.shm(), "none")} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s was not swept", path)
		}
	}
	if err := n.Delete(foreign.Name, foreign.Mark); err != nil {
		t.Error(err)
	}
	// It is not only seen but held: it hears the power button.
	b.power(uid, v1.Power_POWER_OFF)
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_OFF)
}

func TestWithoutManager(t *testing.T) {
	b := newBench(t)
	b.tiny()
	kill := b.spawn()
	uid := b.vm("web", tinySpec())
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_RUNNING)
	b.fakeManager.stop()
	kill()
	if err := syscall.Kill(b.qemuPID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	// The next agent has only its copy of what it was told.
	b.spawn()
	deadline := time.Now().Add(boot)
	dir := filepath.Join(b.dir, "run/vms", uid)
	for !b.listens(filepath.Join(dir, "qmp.sock")) {
		if time.Now().After(deadline) {
			t.Fatal("without a manager the VM was not started again")
		}
		waitForFile(t, dir)
	}
	b.mu.Lock()
	b.status = map[string]*v1.VMReport{}
	b.mu.Unlock()
	b.listen(b.addr)
	r := b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_RUNNING)
	if r.GetStatus().GetRestarts() != 1 {
		t.Errorf("restarts: %d, want 1", r.GetStatus().GetRestarts())
	}
	b.mu.Lock()
	enrols := b.enrols
	b.mu.Unlock()
	if enrols != 1 {
		t.Errorf("the host enrolled %d times", enrols)
	}
}

// listens reports whether QEMU's state says a process that lives.
func (b *bench) listens(path string) bool {
	if _, err := os.Stat(path); err != nil {
		return false
	}
	return len(b.qemuPIDs()) > 0
}

// waitForFile waits until something changes in a directory, or its parent while it is not there, or a second.
func waitForFile(t *testing.T, dir string) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if _, err := unix.InotifyAddWatch(fd, d, unix.IN_CREATE|unix.IN_MOVED_TO); err == nil {
			break
		}
	}
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 1000); err != nil && err != unix.EINTR {
		t.Fatal(err)
	}
}

func TestQEMUKilled(t *testing.T) {
	b := newBench(t)
	b.tiny()
	b.start()
	uid := b.vm("web", tinySpec())
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_RUNNING)
	pid := b.qemuPID()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.await(uid, "running again", boot, func(r *v1.VMReport) bool {
		return r.GetStatus().GetRestarts() == 1 && r.GetStatus().GetPhase() == v1.VMPhase_VM_PHASE_RUNNING
	})
	b.awaitEvent("VM_CRASHED", 5*time.Second)
	if now := b.qemuPID(); now == pid {
		t.Error("the killed QEMU still runs")
	}
	b.edit(uid, func(vm *v1.VM) { vm.Spec.RestartPolicy = v1.RestartPolicy_RESTART_POLICY_NEVER })
	b.await(uid, "generation 2", boot, func(r *v1.VMReport) bool { return r.GetStatus().GetObservedGeneration() == 2 })
	if err := syscall.Kill(b.qemuPID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_CRASHED)
	// Asked for anew, it runs anew.
	b.edit(uid, func(*v1.VM) {})
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_RUNNING)
}

func TestGuestShutsDown(t *testing.T) {
	b := newBench(t)
	b.tiny()
	b.start()
	uid := b.vm("web", tinySpec())
	b.await(uid, "the guest agent", boot, func(r *v1.VMReport) bool { return r.GetStatus().GetGuest().GetAgent() })
	ctx, cancel := context.WithTimeout(t.Context(), boot)
	defer cancel()
	// The guest decides by itself: nobody but it knows that it will.
	b.shutdownInGuest(ctx, uid)
	b.await(uid, "guest off", boot, func(r *v1.VMReport) bool { return r.GetGuestOff() })
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_OFF)
	b.mu.Lock()
	power := b.vms[uid].Spec.Power
	b.mu.Unlock()
	if power != v1.Power_POWER_OFF {
		t.Errorf("the manager still has power %s", power)
	}
}

// shutdownInGuest has the guest switch itself off.
func (b *bench) shutdownInGuest(ctx context.Context, uid string) {
	b.t.Helper()
	_, err := b.node(b.hostAddress()).Exec(ctx, &v1.NodeExecRequest{Uid: uid, Epoch: 1, Exec: &v1.ExecRequest{Path: "/bin/busybox", Args: []string{"poweroff", "-f"}}})
	b.t.Logf("exec poweroff: %v", err)
}

func TestNotHeldAnyMore(t *testing.T) {
	b := newBench(t)
	b.tiny()
	b.start()
	spec := tinySpec()
	spec.Disks = []*v1.DiskSpec{{Name: "data", SizeBytes: 64 << 20}}
	uid := b.vm("web", spec)
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_RUNNING)
	// Given to another host: it must not run here, and its data must stay.
	b.mu.Lock()
	vm := b.vms[uid]
	delete(b.vms, uid)
	b.bump()
	b.mu.Unlock()
	b.await(uid, "stopped", boot, func(r *v1.VMReport) bool {
		return r.GetStatus().GetPhase() == v1.VMPhase_VM_PHASE_OFF && len(r.GetStatus().GetConditions()) > 0
	})
	disks, _ := filepath.Glob(filepath.Join(b.dir, "state/datastore/vms", uid, "*.qcow2"))
	if len(disks) != 1 {
		t.Errorf("the data of a VM that went away: %v", disks)
	}
	// It comes back in a later epoch, and runs.
	b.mu.Lock()
	vm.Status.Epoch = 3
	b.vms[uid] = vm
	b.bump()
	b.mu.Unlock()
	b.await(uid, "running in epoch 3", boot, func(r *v1.VMReport) bool {
		return r.GetEpoch() == 3 && r.GetStatus().GetPhase() == v1.VMPhase_VM_PHASE_RUNNING
	})
	// Calls with another epoch are refused.
	if _, err := b.node(b.hostAddress()).Reset(t.Context(), &v1.NodeVMRequest{Operation: "op1", Uid: uid, Epoch: 1}); err == nil {
		t.Error("a call with an old epoch was taken")
	}
	if _, err := b.node(b.hostAddress()).Reset(t.Context(), &v1.NodeVMRequest{Operation: "op2", Uid: uid, Epoch: 3}); err != nil {
		t.Errorf("reset: %v", err)
	}
}

// An uplink with the machine's own address is not taken: the switch would cut the machine off.
func TestUplinkInUse(t *testing.T) {
	b := newBench(t)
	b.tiny()
	n, err := hostnet.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	mark := hostnet.Mark{Kind: "test", ID: "far"}
	if err := n.EnsureVeth(nil, n, hostnet.Veth{A: "dtup0", B: "dtfar0", MarkA: mark, MarkB: mark}); err != nil {
		t.Fatal(err)
	}
	b.afterwards = func() {
		if err := n.Delete("dtfar0", mark); err != nil {
			t.Error(err)
		}
	}
	if err := n.EnsureAddress(nil, "dtup0", netip.MustParsePrefix("10.77.0.1/24")); err != nil {
		t.Fatal(err)
	}
	b.put(network("wan", 3, &v1.NetworkSpec{Physical: &v1.PhysicalSegment{}}))
	b.uplinks = []string{"dtup0"}
	b.start()
	b.until("two networks and one that can't be reached", boot, func() string { return fmt.Sprint(b.hostSt) }, func() bool {
		st := b.hostSt
		return len(st.GetNetworks()) == 2 && len(st.GetConditions()) == 1 && st.GetConditions()[0].GetType() == "UPLINK_IN_USE"
	})
	spec := tinySpec()
	spec.Nics = []*v1.NICSpec{{Name: "eth0", Network: "wan"}}
	uid := b.vm("web", spec)
	b.await(uid, "a reason", boot, func(r *v1.VMReport) bool { return strings.Contains(r.GetStatus().GetMessage(), "10.77.0.1") })
	// When the address is gone it goes by itself.
	if err := n.RemoveAddress("dtup0", netip.MustParsePrefix("10.77.0.1/24")); err != nil {
		t.Fatal(err)
	}
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_RUNNING)
	b.until("the uplink in use", boot, func() string { return fmt.Sprint(b.hostSt) }, func() bool {
		i := slices.IndexFunc(b.hostSt.GetUplinks(), func(u *v1.Uplink) bool { return u.GetName() == "dtup0" })
		return i >= 0 && b.hostSt.GetUplinks()[i].GetTeam() == "default" && len(b.hostSt.GetNetworks()) == 3 && len(b.hostSt.GetConditions()) == 0
	})
}
