package host_test

import (
	"bytes"
	"context"
	"errors"
	"image/png"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/pki"
	"drover/internal/rpc"
)

// sh runs a shell script in the guest.
func (b *bench) sh(uid string, epoch int64, script string) string {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), boot)
	defer cancel()
	res, err := b.node(b.hostAddress()).Exec(ctx, &v1.NodeExecRequest{Uid: uid, Epoch: epoch, Exec: &v1.ExecRequest{
		Path: "/bin/busybox", Args: []string{"sh", "-c", script},
	}})
	if err != nil {
		b.t.Fatalf("in the guest: %s: %v", script, err)
	}
	if res.GetExitCode() != 0 {
		b.t.Fatalf("in the guest: %s: exit %d: %s%s", script, res.GetExitCode(), res.GetStdout(), res.GetStderr())
	}
	return strings.TrimSpace(string(res.GetStdout()))
}

// up starts a VM and waits for its guest agent.
func (b *bench) up(name string, spec *v1.VMSpec) string {
	b.t.Helper()
	uid := b.vm(name, spec)
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_RUNNING)
	b.await(uid, "the guest agent", boot, func(r *v1.VMReport) bool { return r.GetStatus().GetGuest().GetAgent() })
	return uid
}

func (b *bench) awaitGeneration(uid string) *v1.VMReport {
	b.t.Helper()
	b.mu.Lock()
	want := b.vms[uid].Meta.Generation
	b.mu.Unlock()
	return b.await(uid, "the new generation, changed", boot, func(r *v1.VMReport) bool {
		st := r.GetStatus()
		if st.GetObservedGeneration() != want || st.GetMessage() != "" {
			return false
		}
		for _, d := range st.GetDisks() {
			if !d.GetAttached() {
				return false
			}
		}
		for _, n := range st.GetNics() {
			if !n.GetAttached() {
				return false
			}
		}
		return true
	})
}

func TestHotChanges(t *testing.T) {
	b := newBench(t)
	b.tiny()
	b.start()
	spec := tinySpec()
	spec.Disks = []*v1.DiskSpec{{Name: "one", SizeBytes: 64 << 20}}
	spec.MaxCpus = 2
	uid := b.up("web", spec)
	if got := b.sh(uid, 1, "cat /sys/block/vda/size"); got != "131072" {
		t.Errorf("first disk has %s sectors, want 131072", got)
	}

	b.edit(uid, func(vm *v1.VM) {
		vm.Spec.Disks = append(vm.Spec.Disks, &v1.DiskSpec{Name: "two", SizeBytes: 32 << 20, Format: v1.DiskFormat_DISK_FORMAT_RAW})
		vm.Spec.Nics = append(vm.Spec.Nics, &v1.NICSpec{Name: "eth0", Network: "lan", Mac: "52:54:00:00:00:01"})
		vm.Spec.Cpus = 2
	})
	r := b.awaitGeneration(uid)
	if len(r.GetStatus().GetRestartRequired()) > 0 {
		t.Errorf("needs a restart: %v", r.GetStatus().GetRestartRequired())
	}
	// The guest takes a moment for each of these; if it never comes, the call has a deadline.
	b.sh(uid, 1, "until grep -qx 65536 /sys/block/vdb/size; do sleep 0.2; done")
	b.sh(uid, 1, "until grep -q 52:54:00:00:00:01 /sys/class/net/*/address; do sleep 0.2; done")

	b.edit(uid, func(vm *v1.VM) {
		vm.Spec.Disks[0].SizeBytes = 96 << 20
		vm.Spec.Nics[0].LinkDown = true
		vm.Spec.Nics[0].Network = "dmz"
		vm.Spec.KernelCmdline = "quiet"
		vm.Spec.MemoryBytes = 96 << 20
	})
	r = b.awaitGeneration(uid)
	if got := r.GetStatus().GetRestartRequired(); len(got) != 1 || got[0] != "spec.kernel_cmdline" {
		t.Errorf("restart required: %v, want only the kernel's command line", got)
	}
	b.sh(uid, 1, "until grep -qx 196608 /sys/block/vda/size; do sleep 0.2; done")
	b.sh(uid, 1, "for n in /sys/class/net/e*; do ip link set ${n##*/} up; until grep -qx 0 $n/carrier; do sleep 0.2; done; done")

	b.edit(uid, func(vm *v1.VM) { vm.Spec.Disks, vm.Spec.Nics = vm.Spec.Disks[:1], nil })
	b.awaitGeneration(uid)
	b.until("disk and NIC to go", boot, b.eventText, func() bool {
		raws, _ := filepath.Glob(filepath.Join(b.dir, "state/datastore/vms", uid, "*.raw"))
		return len(raws) == 0
	})
	if got := b.sh(uid, 1, "ls /sys/block"); strings.Contains(got, "vdb") {
		t.Errorf("the removed disk is still in the guest: %s", got)
	}
	// What waited for a restart is there after one.
	b.power(uid, v1.Power_POWER_OFF, 0)
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_OFF)
	b.power(uid, v1.Power_POWER_ON)
	b.await(uid, "nothing to restart for", boot, func(r *v1.VMReport) bool {
		return r.GetStatus().GetPhase() == v1.VMPhase_VM_PHASE_RUNNING && len(r.GetStatus().GetRestartRequired()) == 0
	})
}

func TestPauseScreenshotMetrics(t *testing.T) {
	b := newBench(t)
	b.tiny()
	b.start()
	spec := tinySpec()
	spec.Nics = []*v1.NICSpec{{Name: "eth0", Network: "lan"}}
	uid := b.up("web", spec)
	b.power(uid, v1.Power_POWER_PAUSED)
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_PAUSED)
	b.power(uid, v1.Power_POWER_ON)
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_RUNNING)
	shot, err := b.node(b.hostAddress()).Screenshot(t.Context(), &v1.NodeVMRequest{Uid: uid, Epoch: 1})
	if err != nil {
		t.Fatal(err)
	}
	if img, err := png.Decode(bytes.NewReader(shot.GetPng())); err != nil || img.Bounds().Dx() < 640 {
		t.Errorf("screenshot: %v %v", img.Bounds(), err)
	}
	b.until("samples", boot, b.eventText, func() bool {
		have := map[string]bool{}
		for _, s := range b.samples {
			if s.GetValue() > 0 && s.GetName() == "web" || s.GetKind() == "host" {
				have[s.GetMetric()] = true
			}
		}
		return have["cpu_seconds_total"] && have["memory_resident_bytes"] && have["network_transmit_bytes_total"] && have["cpu_load"]
	})
	text := b.metrics()
	for _, want := range []string{`drover_vm_cpu_seconds_total{vm="web"}`, `drover_host_vms{phase="running"} 1`, "process_resident_memory_bytes"} {
		if !strings.Contains(text, want) {
			t.Errorf("/metrics has no %s", want)
		}
	}
	b.vnc(uid)
}

// metrics reads /metrics as the manager.
func (b *bench) metrics() string {
	b.t.Helper()
	conf, err := pki.ClientConfig(pki.ClientOptions{
		Credential: b.cred, Trust: b.ca.Trust(), Peer: pki.Identity{Role: pki.RoleHost, Name: b.host, UID: b.uid},
	})
	if err != nil {
		b.t.Fatal(err)
	}
	c := rpc.TLSClient(conf)
	defer c.CloseIdleConnections()
	res, err := c.Get("https://" + b.hostAddress() + "/metrics")
	if err != nil {
		b.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		b.t.Fatalf("/metrics: %s %v", res.Status, err)
	}
	return string(text)
}

// vnc connects to the screen and reads the server's greeting (RFC 6143, 7.1.1).
func (b *bench) vnc(uid string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), boot)
	defer cancel()
	stream, err := b.node(b.hostAddress()).Attach(ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	defer stream.CloseRequest()
	if err := stream.Send(&v1.AttachInput{Uid: uid, Channel: v1.Channel_CHANNEL_VNC}); err != nil {
		b.t.Fatal(err)
	}
	out, err := stream.Receive()
	if err != nil || !strings.HasPrefix(string(out.GetData()), "RFB 003.") {
		b.t.Errorf("VNC says %q, %v", out.GetData(), err)
	}
}

func TestStrangersAreRefused(t *testing.T) {
	b := newBench(t)
	b.start()
	addr := b.hostAddress()
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	// Another host has a certificate of the same CA, and is still not the manager.
	chain, err := b.ca.Issue(key.Public(), pki.Grant{Identity: pki.Identity{Role: pki.RoleHost, Name: "h2", UID: "22222222-2222-4222-8222-222222222222"}})
	if err != nil {
		t.Fatal(err)
	}
	cred, err := pki.SaveCredential(filepath.Join(b.dir, "h2.pem"), key, chain)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]*pki.Credential{"another host": cred, "nobody": nil} {
		conf, err := pki.ClientConfig(pki.ClientOptions{Credential: c, Trust: b.ca.Trust(), Peer: pki.Identity{Role: pki.RoleHost, Name: b.host, UID: b.uid}})
		if err != nil {
			t.Fatal(err)
		}
		hc := rpc.TLSClient(conf)
		_, err = droverv1connect.NewNodeServiceClient(hc, "https://"+addr).Reset(t.Context(), &v1.NodeVMRequest{Uid: "x"})
		hc.CloseIdleConnections()
		if code := connect.CodeOf(err); err == nil || code == connect.CodeNotFound {
			t.Errorf("%s was let in: %v", name, err)
		}
	}
	conn, err := net.Dial("unix", filepath.Join(b.dir, "run/host.sock"))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

// snapshot makes one of the snapshot calls and follows it to the end.
func (b *bench) snapshot(what string, req *v1.NodeSnapshotRequest) (*v1.NodeProgress, error) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 2*time.Minute)
	defer cancel()
	return b.try(ctx, what, req)
}

func (b *bench) try(ctx context.Context, what string, req *v1.NodeSnapshotRequest) (*v1.NodeProgress, error) {
	node := b.node(b.hostAddress())
	call := map[string]func(context.Context, *v1.NodeSnapshotRequest) (*connect.ServerStreamForClient[v1.NodeProgress], error){
		"create": node.CreateSnapshot, "revert": node.RevertSnapshot, "delete": node.DeleteSnapshot,
	}[what]
	stream, err := call(ctx, req)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var last *v1.NodeProgress
	for stream.Receive() {
		last = stream.Msg()
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	if !last.GetDone() {
		return nil, errors.New("the last message is not done")
	}
	return proto.CloneOf(last), nil
}

func TestSnapshots(t *testing.T) {
	b := newBench(t)
	b.tiny()
	b.start()
	spec := tinySpec()
	spec.Disks = []*v1.DiskSpec{{Name: "one", SizeBytes: 64 << 20}}
	uid := b.up("web", spec)
	write := func(word string) {
		b.sh(uid, 1, "echo "+word+" | dd of=/dev/vda bs=512 conv=notrunc,sync 2>/dev/null; sync")
	}
	read := func() string {
		return b.sh(uid, 1, "echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vda bs=16 count=1 2>/dev/null | head -n 1")
	}
	ask := func(what, op, snap string, change ...func(*v1.NodeSnapshotRequest)) *v1.NodeProgress {
		t.Helper()
		req := &v1.NodeSnapshotRequest{Operation: op, Vm: "web", Uid: uid, Epoch: 1, Snapshot: snap}
		for _, c := range change {
			c(req)
		}
		p, err := b.snapshot(what, req)
		if err != nil {
			t.Fatalf("%s %s: %v", what, snap, err)
		}
		return p
	}
	memory := func(r *v1.NodeSnapshotRequest) { r.Memory = true }

	write("first")
	b.sh(uid, 1, "echo alive > /tmp/mark")
	p := ask("create", "op-1", "s1", memory, func(r *v1.NodeSnapshotRequest) { r.Quiesce = true })
	if p.GetMemorySizeBytes() < 1<<20 {
		t.Errorf("memory image of %d bytes", p.GetMemorySizeBytes())
	}
	if again := ask("create", "op-1", "s1", memory); again.GetMemorySizeBytes() != p.GetMemorySizeBytes() {
		t.Errorf("the same operation again gives another result: %d, %d", again.GetMemorySizeBytes(), p.GetMemorySizeBytes())
	}
	if _, err := b.snapshot("create", &v1.NodeSnapshotRequest{Operation: "op-2", Uid: uid, Epoch: 1, Snapshot: "s1"}); connect.CodeOf(err) != connect.CodeAlreadyExists {
		t.Errorf("another operation with a taken name: %v", err)
	}
	write("second")
	b.sh(uid, 1, "rm /tmp/mark")
	ask("create", "op-3", "s2")
	write("third")
	if got := read(); got != "third" {
		t.Fatalf("the disk says %q", got)
	}

	back := func(op, snap string, mem bool) {
		t.Helper()
		b.mu.Lock()
		vm := b.vms[uid]
		next := vm.Meta.Generation + 1
		spec := proto.CloneOf(vm.Spec)
		b.mu.Unlock()
		spec.Power = v1.Power_POWER_ON
		ask("revert", op, snap, func(r *v1.NodeSnapshotRequest) { r.Memory, r.Spec, r.Generation = mem, spec, next })
		b.mu.Lock()
		vm.Spec, vm.Meta.Generation = spec, next
		b.bump()
		b.mu.Unlock()
		b.await(uid, "running again", boot, func(r *v1.VMReport) bool {
			st := r.GetStatus()
			return st.GetPhase() == v1.VMPhase_VM_PHASE_RUNNING && st.GetObservedGeneration() == next && st.GetGuest().GetAgent() && st.GetCurrentSnapshot() == "web/"+snap
		})
	}
	back("op-4", "s2", false)
	if got := read(); got != "second" {
		t.Errorf("after going back to s2 the disk says %q, want second", got)
	}
	back("op-5", "s1", true)
	if got := b.sh(uid, 1, "cat /tmp/mark"); got != "alive" {
		t.Errorf("after going back with memory the mark says %q", got)
	}
	if got := read(); got != "first" {
		t.Errorf("after going back to s1 the disk says %q, want first", got)
	}

	// Deleting one in the middle merges what it kept apart, and changes nothing for the guest.
	write("fourth")
	ask("create", "op-6", "s3")
	write("fifth")
	ask("delete", "op-7", "s2")
	ask("delete", "op-8", "s1")
	if got := read(); got != "fifth" {
		t.Errorf("after deletes the disk says %q, want fifth", got)
	}
	ask("delete", "op-9", "s3")
	b.power(uid, v1.Power_POWER_OFF)
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_OFF)
	b.await(uid, "one layer", boot, func(r *v1.VMReport) bool { return len(r.GetStatus().GetDisks()[0].GetLayers()) == 1 })
	b.power(uid, v1.Power_POWER_ON)
	b.await(uid, "the guest agent", boot, func(r *v1.VMReport) bool { return r.GetStatus().GetGuest().GetAgent() })
	if got := read(); got != "fifth" {
		t.Errorf("after merges the disk says %q, want fifth", got)
	}
}

func TestDiskFull(t *testing.T) {
	b := newBench(t)
	small := filepath.Join(b.dir, "small")
	if err := os.Mkdir(small, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", small, "tmpfs", 0, "size=24m"); err != nil {
		t.Fatal(err)
	}
	unmount := func() {
		if b.stop != nil {
			b.stop()
		}
		_ = unix.Unmount(small, 0)
	}
	b.tiny()
	ballast := filepath.Join(small, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 12<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	b.afterwards = unmount
	b.start()
	spec := tinySpec()
	spec.Disks = []*v1.DiskSpec{{Name: "one", SizeBytes: 64 << 20, Datastore: "small"}}
	uid := b.up("web", spec)
	// The write goes on in the background: it cannot end before there is room.
	b.sh(uid, 1, "(dd if=/dev/urandom of=/dev/vda bs=1M count=16 conv=fsync && echo written > /tmp/done) >/dev/null 2>&1 &")
	r := b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_IO_ERROR)
	if r.GetStatus().GetMessage() == "" || len(r.GetStatus().GetConditions()) == 0 {
		t.Errorf("a stop by a disk error says nothing: %v", r.GetStatus())
	}
	b.awaitEvent("VM_IO_ERROR", 10*time.Second)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_RUNNING)
	if got := b.sh(uid, 1, "while [ ! -e /tmp/done ]; do sleep 1; done; cat /tmp/done"); got != "written" {
		t.Errorf("the write that was held up ended with %q", got)
	}
}
