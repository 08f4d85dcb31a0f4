package qmp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// realQEMU starts a QEMU whose monitor listens on the returned path. It listens
// before QEMU runs, so that connecting needs no retries.
func realQEMU(t *testing.T, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qmp")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	cmd := exec.Command("qemu-system-x86_64", append([]string{
		"-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-S",
		"-chardev", "socket,id=qmp,fd=3,server=on,wait=off", "-mon", "chardev=qmp,mode=control",
	}, args...)...)
	cmd.ExtraFiles = []*os.File{f}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err = cmd.Start()
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("qemu: %s", stderr.String())
		}
	})
	return path
}

func dial(t *testing.T, path string) *Client {
	t.Helper()
	c, err := Dial(testContext(t), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// must fails the test on any of the errors.
func must(t *testing.T, errs ...error) {
	t.Helper()
	for i, err := range errs {
		if err != nil {
			t.Fatalf("step %d: %v", i+1, err)
		}
	}
}

func TestQEMUSchema(t *testing.T) {
	c := dial(t, realQEMU(t, "-machine", "none"))
	ctx := testContext(t)
	if !c.Greeting().Version.AtLeast(7, 2) {
		t.Errorf("QEMU %s", c.Greeting().Version)
	}
	s, err := c.Schema(ctx)
	must(t, err)
	for name, got := range map[string]bool{
		"command":         s.HasCommand("blockdev-add"),
		"event":           s.HasEvent(EventDeviceDeleted),
		"union variant":   s.HasArg("blockdev-add", "lazy-refcounts"),
		"nested":          s.HasArg("blockdev-add", "cache", "direct"),
		"through arrays":  s.HasArg("transaction", "actions", "data", "overlay"),
		"enum in array":   s.HasValue("migrate-set-capabilities", "multifd", "capabilities", "capability"),
		"no such command": !s.HasCommand("fly"),
		"no such event":   !s.HasEvent("blockdev-add"),
		"no such arg":     !s.HasArg("blockdev-add", "cache", "fly"),
		"no such value":   !s.HasValue("migrate-set-capabilities", "fly", "capabilities", "capability"),
	} {
		if !got {
			t.Errorf("wrong about: %s", name)
		}
	}
	for _, d := range []struct {
		driver, prop string
		want         bool
	}{{"virtio-net-pci", "mac", true}, {"virtio-net-pci", "wings", false}, {"no-such-device", "mac", false}} {
		if got, err := c.HasDeviceProperty(ctx, d.driver, d.prop); err != nil || got != d.want {
			t.Errorf("%s.%s: %v, %v", d.driver, d.prop, got, err)
		}
	}
	machines, err := c.QueryMachines(ctx)
	if err != nil || len(machines) < 2 {
		t.Errorf("machines: %v, %v", machines, err)
	}
}

func TestQEMUEveryEventNameExists(t *testing.T) {
	c := dial(t, realQEMU(t, "-machine", "none"))
	s, err := c.Schema(testContext(t))
	must(t, err)
	for _, e := range []string{
		EventShutdown, EventReset, EventStop, EventResume, EventPowerdown, EventSuspend, EventWakeup, EventBlockIOError,
		EventBlockJobCompleted, EventBlockJobCancelled, EventBlockJobError, EventBlockJobReady, EventBlockJobPending,
		EventBlockExportDeleted, EventJobStatusChange, EventDeviceDeleted, EventDeviceUnplugGuestError, EventDeviceTrayMoved,
		EventMigration, EventMigrationPass, EventGuestPanicked, EventRTCChange, EventNICRXFilterChanged, EventBalloonChange,
		EventVSerialChange, EventWatchdog,
	} {
		if !s.HasEvent(e) {
			t.Errorf("this QEMU has no %s", e)
		}
	}
}

func TestQEMUConcurrentCommands(t *testing.T) {
	c := dial(t, realQEMU(t, "-machine", "none"))
	ctx := testContext(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			sub := c.Subscribe(1)
			defer sub.Close()
			for j := range 20 {
				short, cancel := context.WithTimeout(ctx, time.Duration(j)*20*time.Microsecond)
				_, err := c.QueryVersion(short)
				cancel()
				if err != nil && !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("short: %v", err)
				}
				var path string
				name := fmt.Sprintf("/objects/none-%d-%d", i, j)
				if err := c.QOMGet(ctx, name, "type", &path); !IsClass(err, ClassDeviceNotFound) {
					t.Errorf("qom-get: %v", err)
				}
				if i == 0 && j%10 == 0 {
					if _, err := c.Schema(ctx); err != nil {
						t.Errorf("schema: %v", err)
					}
				}
			}
		})
	}
	wg.Wait()
}

func TestQEMULifecycle(t *testing.T) {
	path := realQEMU(t, "-machine", "q35", "-m", "32", "-smp", "1,maxcpus=2", "-device", "virtio-balloon-pci")
	c := dial(t, path)
	ctx := testContext(t)
	st, err := c.QueryStatus(ctx)
	must(t, err)
	if st.Running || st.Status != "prelaunch" {
		t.Fatalf("status %+v", st)
	}
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := Dial(short, path, Options{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a second client: %v", err)
	}
	must(t, c.Close())
	c = dial(t, path) // adopted again
	sub := c.Subscribe(0, EventResume, EventStop, EventReset, EventShutdown)
	must(t, c.Cont(ctx), c.Stop(ctx), c.SystemReset(ctx))
	for _, want := range []string{EventResume, EventStop} {
		if e := next(t, sub); e.Name != want {
			t.Fatalf("event %s, want %s", e.Name, want)
		}
	}
	if cpus, err := c.QueryCPUsFast(ctx); err != nil || len(cpus) != 1 || cpus[0].ThreadID == 0 {
		t.Errorf("cpus: %+v, %v", cpus, err)
	}
	if hot, err := c.QueryHotpluggableCPUs(ctx); err != nil || len(hot) != 2 || (hot[0].QOMPath == "") == (hot[1].QOMPath == "") {
		t.Errorf("hotpluggable: %+v, %v", hot, err)
	}
	if n, err := c.QueryBalloon(ctx); err != nil || n != 32<<20 {
		t.Errorf("balloon: %d, %v", n, err)
	}
	must(t, c.Balloon(ctx, 24<<20))
	if out, err := c.HumanMonitorCommand(ctx, "info version"); err != nil || out == "" {
		t.Errorf("hmp: %q, %v", out, err)
	}
	if v, err := c.QueryVNC(ctx); err == nil && v.Enabled {
		t.Errorf("vnc: %+v", v)
	}
	must(t, c.Quit(ctx))
	for {
		e := next(t, sub)
		if e.Name == EventReset {
			continue
		}
		var d ShutdownData
		must(t, e.Decode(&d))
		if e.Name != EventShutdown || d.Guest || d.Reason != "host-qmp-quit" {
			t.Fatalf("%s %+v", e.Name, d)
		}
		break
	}
	<-c.Done()
}

func TestQEMUDevices(t *testing.T) {
	c := dial(t, realQEMU(t, "-machine", "q35", "-m", "32", "-device", "qemu-xhci,id=usb",
		"-device", "pcie-root-port,id=rp0,chassis=1,slot=1", "-netdev", "user,id=n0,restrict=on", "-device", "virtio-net-pci,id=net0,netdev=n0,bus=rp0"))
	ctx := testContext(t)
	must(t, c.DeviceAdd(ctx, obj{"driver": "usb-kbd", "id": "kbd", "bus": "usb.0"}))
	if ok, err := c.HasDevice(ctx, "kbd"); err != nil || !ok {
		t.Fatalf("after device_add: %v, %v", ok, err)
	}
	must(t, c.RemoveDevice(ctx, "kbd"), c.RemoveDevice(ctx, "kbd"))
	if ok, err := c.HasDevice(ctx, "kbd"); err != nil || ok {
		t.Fatalf("after removal: %v, %v", ok, err)
	}
	must(t, c.SetLink(ctx, "net0", false), c.SetLink(ctx, "net0", true),
		c.NetdevAdd(ctx, obj{"type": "user", "id": "n1", "restrict": true}), c.NetdevDel(ctx, "n1"))
	// A PCI device needs the guest's consent; this one's CPUs stand still.
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if err := c.RemoveDevice(short, "net0"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("unplug without a guest: %v", err)
	}
	// A second request waits for the first one's end as well; a reset grants it.
	gone := make(chan error, 1)
	go func() { gone <- c.RemoveDevice(ctx, "net0") }()
	must(t, c.Cont(ctx), c.SystemReset(ctx))
	if err := <-gone; err != nil {
		t.Fatalf("unplug by reset: %v", err)
	}
}

func TestQEMUBlock(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"base", "top"} {
		out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", filepath.Join(dir, name), "8M").CombinedOutput()
		if err != nil {
			t.Fatalf("qemu-img: %v: %s", err, out)
		}
	}
	c := dial(t, realQEMU(t, "-machine", "q35", "-m", "32", "-device", "virtio-scsi-pci,id=scsi", "-device", "scsi-cd,id=cd,bus=scsi.0,scsi-id=5"))
	ctx := testContext(t)
	for i, name := range []string{"base", "top"} {
		set := i + 1
		for _, mode := range []int{os.O_RDWR, os.O_RDONLY} {
			f, err := os.OpenFile(filepath.Join(dir, name), mode, 0)
			must(t, err)
			_, err = c.AddFD(ctx, set, name, f)
			must(t, err, f.Close())
		}
		must(t, c.BlockdevAdd(ctx, obj{
			"node-name": name, "driver": "qcow2", "backing": nil,
			"file": obj{"driver": "file", "node-name": name + "-file", "filename": fmt.Sprintf("/dev/fdset/%d", set), "locking": "off"},
		}))
	}
	if sets, err := c.QueryFDSets(ctx); err != nil || len(sets) != 2 || len(sets[0].FDs) != 2 {
		t.Errorf("fd sets: %+v, %v", sets, err)
	}
	must(t, c.DeviceAdd(ctx, obj{"driver": "scsi-hd", "id": "hd", "bus": "scsi.0", "scsi-id": 1, "drive": "base"}),
		c.BlockResize(ctx, "base", 16<<20),
		c.BlockResize(ctx, "top", 16<<20),
		c.Transaction(ctx, SnapshotAction("base", "top")))
	blocks, err := c.QueryBlock(ctx)
	must(t, err)
	found := false
	for _, b := range blocks {
		if b.QDev == "hd" {
			found = b.Inserted != nil && b.Inserted.NodeName == "top" && b.Inserted.Image.VirtualSize == 16<<20
		}
	}
	if !found {
		t.Fatalf("no snapshot on the disk: %+v", blocks)
	}
	if nodes, err := c.QueryNamedBlockNodes(ctx); err != nil || len(nodes) != 4 {
		t.Errorf("nodes: %+v, %v", nodes, err)
	}
	if stats, err := c.QueryBlockStats(ctx, true); err != nil || len(stats) == 0 {
		t.Errorf("stats: %+v, %v", stats, err)
	}
	// Merge it back, as a running VM does: ready, complete, concluded, dismissed.
	no := false
	must(t, c.BlockCommit(ctx, Commit{JobID: "merge", Device: "top", AutoDismiss: &no}))
	job, err := c.WaitJob(ctx, "merge", JobReady)
	must(t, err)
	if job.Type != "commit" {
		t.Errorf("job %+v", job)
	}
	must(t, c.BlockJobComplete(ctx, "merge"))
	job, err = c.WaitJob(ctx, "merge")
	must(t, err)
	if job.Status != JobConcluded {
		t.Errorf("job %+v", job)
	}
	must(t, c.JobDismiss(ctx, "merge"), c.BlockdevDel(ctx, "top"), c.RemoveFD(ctx, 2))
	if _, err := c.WaitJob(ctx, "merge"); err == nil {
		t.Error("a job that does not exist concludes")
	}
	// Mirror to another node and cancel.
	must(t, c.BlockdevAdd(ctx, obj{"node-name": "copy", "driver": "null-co", "size": 16 << 20}),
		c.BlockdevMirror(ctx, Mirror{JobID: "m", Device: "base", Target: "copy", Sync: "full", AutoDismiss: &no}))
	_, err = c.WaitJob(ctx, "m", JobReady)
	must(t, err, c.BlockJobCancel(ctx, "m", true))
	if job, err = c.WaitJob(ctx, "m"); job.Status != JobConcluded {
		t.Errorf("cancelled mirror: %+v, %v", job, err)
	}
	must(t, c.JobDismiss(ctx, "m"))
	// Media.
	must(t, c.ChangeMediumNode(ctx, "cd", "copy", true), c.ChangeMediumNode(ctx, "cd", "", true), c.BlockdevDel(ctx, "copy"))
	// NBD.
	must(t, c.NBDServerStart(ctx, SocketAddress{Type: "unix", Path: filepath.Join(dir, "nbd")}, "", 2),
		c.NBDExportAdd(ctx, NBDExport{ID: "e", Node: "base"}))
	must(t, c.ExportDel(ctx, "e", true), c.NBDServerStop(ctx))
	must(t, c.RemoveDevice(ctx, "hd"), c.BlockdevDel(ctx, "base"))
}

func TestQEMUDescriptors(t *testing.T) {
	c := dial(t, realQEMU(t, "-machine", "q35", "-m", "32", "-vga", "std"))
	ctx := testContext(t)
	dir := t.TempDir()
	mem, err := os.Create(filepath.Join(dir, "memory"))
	must(t, err, c.GetFD(ctx, "unused", mem), c.CloseFD(ctx, "unused"))
	if err := c.CloseFD(ctx, "unused"); err == nil {
		t.Error("closed twice")
	}
	// A memory snapshot: migrate to a passed descriptor.
	sub := c.Subscribe(0, EventMigration)
	must(t, c.MigrateSetCapabilities(ctx, Capability{Name: "events", State: true}),
		c.MigrateSetParameters(ctx, obj{"max-bandwidth": 1 << 33}),
		c.GetFD(ctx, "mem", mem), mem.Close(), c.Migrate(ctx, "fd:mem"))
	for done := false; !done; {
		var d MigrationData
		must(t, next(t, sub).Decode(&d))
		if d.Status == MigrationFailed {
			t.Fatal("migration failed")
		}
		done = d.Status == MigrationCompleted
	}
	if info, err := c.QueryMigrate(ctx); err != nil || info.Status != MigrationCompleted || info.RAM.Total == 0 {
		t.Errorf("migration: %+v, %v", info, err)
	}
	if st, err := os.Stat(filepath.Join(dir, "memory")); err != nil || st.Size() == 0 {
		t.Errorf("memory file: %v, %v", st, err)
	}
	// A picture of the screen.
	shot, err := os.OpenFile(filepath.Join(dir, "shot"), os.O_WRONLY|os.O_CREATE, 0o600)
	must(t, err)
	_, err = c.AddFD(ctx, 7, "shot", shot)
	must(t, err, shot.Close(), c.Screendump(ctx, "/dev/fdset/7", "ppm"), c.RemoveFD(ctx, 7))
	if b, err := os.ReadFile(filepath.Join(dir, "shot")); err != nil || !bytes.HasPrefix(b, []byte("P6")) {
		t.Errorf("picture of %d bytes, %v", len(b), err)
	}
}
