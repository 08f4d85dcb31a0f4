package host_test

import (
	"context"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	v1 "drover/api/drover/v1"
)

// diskImage publishes a qcow2 that begins with a word.
func (b *bench) diskImage(name, word string) string {
	b.t.Helper()
	raw, path := filepath.Join(b.dir, name+".raw"), filepath.Join(b.dir, name+".qcow2")
	data := make([]byte, 8<<20)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	copy(data, word+"\n")
	if err := os.WriteFile(raw, data, 0o600); err != nil {
		b.t.Fatal(err)
	}
	if out, err := exec.Command("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path).CombinedOutput(); err != nil {
		b.t.Fatalf("%v: %s", err, out)
	}
	b.image(name, path, v1.ImageKind_IMAGE_KIND_DISK)
	return path
}

const readWord = "dd if=/dev/vda bs=16 count=1 2>/dev/null | head -n 1"

func writeWord(word string) string {
	return "echo " + word + " | dd of=/dev/vda bs=512 conv=notrunc,sync 2>/dev/null; sync; echo 3 > /proc/sys/vm/drop_caches"
}

func TestImagesAndClones(t *testing.T) {
	b := newBench(t)
	b.tiny()
	path := b.diskImage("base", "image")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	b.cut(info.Size() / 2)
	b.start()
	spec := tinySpec()
	spec.Disks = []*v1.DiskSpec{{Name: "root", Image: "base", SizeBytes: 16 << 20}}
	source := b.up("source", spec)
	if got := b.sh(source, 1, readWord); got != "image" {
		t.Errorf("a disk from an image begins with %q", got)
	}
	b.mu.Lock()
	ranges := append([]string(nil), b.ranges...)
	b.mu.Unlock()
	if want := "bytes=" + strconv.FormatInt(info.Size()/2, 10) + "-"; len(ranges) != 2 || ranges[1] != want {
		t.Errorf("a download that was cut: asked for %q, want the whole and then %s", ranges, want)
	}
	b.sh(source, 1, writeWord("source"))

	// A full clone of a running VM cannot be; of one that is off it can.
	clone := func(name string, from *v1.CloneSource) string {
		s := tinySpec()
		s.Disks = []*v1.DiskSpec{{Name: "root", SizeBytes: 16 << 20}}
		s.CloneFrom = from
		return b.vm(name, s)
	}
	full := clone("full", &v1.CloneSource{Vm: "source"})
	b.await(full, "a reason why not", boot, func(r *v1.VMReport) bool { return strings.Contains(r.GetStatus().GetMessage(), "it runs") })
	b.power(source, v1.Power_POWER_OFF)
	b.awaitPhase(source, boot, v1.VMPhase_VM_PHASE_OFF)
	b.edit(full, func(*v1.VM) {})
	b.await(full, "the guest agent", boot, func(r *v1.VMReport) bool { return r.GetStatus().GetGuest().GetAgent() })
	if got := b.sh(full, 1, readWord); got != "source" {
		t.Errorf("a full clone begins with %q", got)
	}

	b.edit(source, func(vm *v1.VM) { vm.Spec.Template = true })
	linked := clone("linked", &v1.CloneSource{Vm: "source", Linked: true})
	b.await(linked, "the guest agent", boot, func(r *v1.VMReport) bool { return r.GetStatus().GetGuest().GetAgent() })
	if got := b.sh(linked, 1, readWord); got != "source" {
		t.Errorf("a linked clone begins with %q", got)
	}
	b.sh(linked, 1, writeWord("clone"))
	if got := b.sh(full, 1, readWord); got != "source" {
		t.Errorf("the full clone now begins with %q", got)
	}
	// The template cannot go while a linked clone stands on it, and says so; then it can.
	b.remove(source)
	b.await(source, "a reason why not", boot, func(r *v1.VMReport) bool { return strings.Contains(r.GetStatus().GetMessage(), "in use") })
	if got := b.sh(linked, 1, readWord); got != "clone" {
		t.Errorf("the linked clone now begins with %q", got)
	}
}

// cut ends the first download of a disk image after some bytes.
func (b *bench) cut(after int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cutAfter = after
}

// cutWriter ends the connection when its bytes are used up.
type cutWriter struct {
	http.ResponseWriter
	left int64
}

func (c *cutWriter) Write(p []byte) (int, error) {
	if int64(len(p)) > c.left {
		p = p[:c.left]
		if _, err := c.ResponseWriter.Write(p); err != nil {
			return 0, err
		}
		_ = http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= int64(len(p))
	return c.ResponseWriter.Write(p)
}

// An image whose bytes are not what the manager says is never used.
func TestImageThatLies(t *testing.T) {
	b := newBench(t)
	b.tiny()
	path := b.diskImage("base", "image")
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("changed"), 1<<20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	b.start()
	spec := tinySpec()
	spec.Disks = []*v1.DiskSpec{{Name: "root", Image: "base"}}
	uid := b.vm("web", spec)
	r := b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_FAILED)
	if !strings.Contains(r.GetStatus().GetMessage(), "SHA-256") {
		t.Errorf("says only %q", r.GetStatus().GetMessage())
	}
	if left, _ := filepath.Glob(filepath.Join(b.dir, "state/datastore/images/*")); len(left) > 0 {
		t.Errorf("in the cache: %v", left)
	}
}

func TestReboot(t *testing.T) {
	b := newBench(t)
	b.tiny()
	b.bootID = "boot-1"
	b.start()
	first, second := tinySpec(), tinySpec()
	first.StartOrder, second.StartOrder = 1, 2
	late := b.vm("late", second)
	early := b.vm("early", first)
	for _, uid := range []string{early, late} {
		b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_RUNNING)
	}
	b.stop()
	// The machine goes down: QEMUs, memory and sockets are gone, and the manager is not there when it comes up.
	for _, pid := range b.qemuPIDs() {
		p, err := os.FindProcess(pid)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(filepath.Join(b.dir, "run")); err != nil {
		t.Fatal(err)
	}
	b.fakeManager.stop()
	b.mu.Lock()
	b.status, b.events = map[string]*v1.VMReport{}, nil
	b.mu.Unlock()
	b.bootID = "boot-2"
	b.start()
	b.until("both started", boot, b.eventText, func() bool {
		if len(b.qemuPIDs()) < 2 {
			go func() { time.Sleep(200 * time.Millisecond); b.mu.Lock(); b.bump(); b.mu.Unlock() }()
			return false
		}
		return true
	})
	b.listen(b.addr)
	for _, uid := range []string{early, late} {
		r := b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_RUNNING)
		if n := r.GetStatus().GetRestarts(); n != 0 {
			t.Errorf("a reboot counts as %d crashes", n)
		}
	}
	b.awaitEvent("VM_STARTED", boot)
	b.mu.Lock()
	defer b.mu.Unlock()
	var order []string
	for _, e := range b.events {
		if e.GetReason() == "VM_STARTED" {
			order = append(order, e.GetName())
		}
	}
	if strings.Join(order, ",") != "early,late" {
		t.Errorf("after a reboot they started in the order %v", order)
	}
}

// Killed at any moment of a snapshot, a revert or a delete, the next agent leaves the VM as before or after, and the
// manager's second asking ends well.
func TestAgentKilledInSnapshots(t *testing.T) {
	b := newBench(t)
	b.tiny()
	kill := b.spawn()
	spec := tinySpec()
	spec.Disks = []*v1.DiskSpec{{Name: "root", SizeBytes: 32 << 20}}
	uid := b.up("web", spec)
	b.sh(uid, 1, writeWord("kept"))
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for i := range 4 {
		for _, what := range []string{"create", "revert", "delete"} {
			req := &v1.NodeSnapshotRequest{Operation: what + strconv.Itoa(i), Uid: uid, Epoch: 1, Snapshot: "s" + strconv.Itoa(i), Memory: i%2 == 0}
			if what == "revert" {
				b.mu.Lock()
				req.Spec, req.Generation = proto.CloneOf(b.vms[uid].Spec), b.vms[uid].Meta.Generation+1
				b.mu.Unlock()
			}
			b.killDuring(kill, what, req, time.Duration(rnd.Int64N(int64(400*time.Millisecond))))
			b.mu.Lock()
			b.hostSt, b.status = nil, map[string]*v1.VMReport{}
			b.mu.Unlock()
			kill = b.spawn()
			b.await(uid, "heard again", boot, func(*v1.VMReport) bool { return true })
			if _, err := b.snapshot(what, req); err != nil {
				t.Fatalf("%s again after a kill: %v", what, err)
			}
			if what == "revert" {
				b.mu.Lock()
				b.vms[uid].Meta.Generation = req.Generation
				b.bump()
				b.mu.Unlock()
			}
			want := req.Generation
			b.await(uid, "running, guest agent", boot, func(r *v1.VMReport) bool {
				st := r.GetStatus()
				return st.GetPhase() == v1.VMPhase_VM_PHASE_RUNNING && st.GetGuest().GetAgent() && st.GetObservedGeneration() >= want
			})
			if got := b.sh(uid, 1, readWord); got != "kept" {
				t.Fatalf("after a kill in %s %d the disk begins with %q", what, i, got)
			}
		}
	}
	if n := len(b.qemuPIDs()); n != 1 {
		t.Errorf("%d QEMUs run", n)
	}
}

// killDuring begins a call and kills the agent some time later.
func (b *bench) killDuring(kill func(), what string, req *v1.NodeSnapshotRequest, after time.Duration) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	defer cancel()
	ended := make(chan struct{})
	b.hostAddress()
	go func() {
		defer close(ended)
		_, _ = b.try(ctx, what, req)
	}()
	select {
	case <-ended:
	case <-time.After(after):
	}
	kill()
	cancel()
	<-ended
}

func TestUEFIAndMicroVM(t *testing.T) {
	b := newBench(t)
	b.tiny()
	b.start()
	uefi := tinySpec()
	uefi.Hardware = &v1.Hardware{Firmware: v1.Firmware_FIRMWARE_UEFI}
	uefi.MemoryBytes = 256 << 20
	micro := tinySpec()
	micro.Hardware = &v1.Hardware{Machine: v1.MachineKind_MACHINE_KIND_MICROVM}
	micro.CloudInit = &v1.CloudInit{Enabled: true, Hostname: "seeded"}
	micro.Nics = []*v1.NICSpec{{Name: "eth0", Network: "lan", Addresses: []string{"10.9.8.7/24"}}}
	small := b.vm("small", micro)
	b.awaitPhase(small, boot, v1.VMPhase_VM_PHASE_RUNNING)
	r := b.await(small, "hostname and address from the seed", boot, func(r *v1.VMReport) bool {
		g := r.GetStatus().GetGuest()
		return g.GetHostname() == "seeded" && strings.Contains(strings.Join(g.GetAddresses(), " "), "10.9.8.7")
	})
	if nics := r.GetStatus().GetNics(); len(nics) != 1 || len(nics[0].GetAddresses()) == 0 {
		t.Errorf("the NIC's addresses: %v", nics)
	}
	big := b.vm("big", uefi)
	b.awaitPhase(big, boot, v1.VMPhase_VM_PHASE_RUNNING)
	if _, err := os.Stat(filepath.Join(b.dir, "state/vms", big, "efivars.fd")); err != nil {
		t.Error(err)
	}
}

func TestImagesThatNobodyNeedsGo(t *testing.T) {
	b := newBench(t)
	b.tiny()
	b.diskImage("base", "image")
	b.start()
	spec := tinySpec()
	spec.Power = v1.Power_POWER_OFF
	spec.Disks = []*v1.DiskSpec{{Name: "root", Image: "base"}}
	uid := b.vm("web", spec)
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_OFF)
	cached := func() int {
		got, _ := filepath.Glob(filepath.Join(b.dir, "state/datastore/images/*"))
		return len(got)
	}
	b.forgetImage("base")
	b.edit(uid, func(*v1.VM) {})
	b.await(uid, "the next word", boot, func(r *v1.VMReport) bool { return r.GetStatus().GetObservedGeneration() == 2 })
	if cached() != 1 {
		t.Fatal("an image went that a disk stands on")
	}
	b.remove(uid)
	b.until("the VM to go", boot, b.eventText, func() bool { return len(b.vms) == 0 })
	b.forgetImage("base") // once more: now nothing stands on it
	b.until("the cached image to go", boot, b.eventText, func() bool { return cached() == 0 })
}

// forgetImage tells the host that an image is deleted.
func (b *bench) forgetImage(name string) {
	b.put(&v1.AgentChange{Kind: v1.ChangeKind_CHANGE_KIND_DELETED, Object: &v1.AgentChange_Image{Image: &v1.Image{Meta: &v1.Meta{Name: name}}}})
}
