package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"drover/internal/guest"
	"drover/internal/qmp"
)

// eventually asks the guest until a command gives the wanted output; the guest itself does the waiting.
func (s *shell) eventually(t *testing.T, cmd, want string) {
	t.Helper()
	got := s.run(t, fmt.Sprintf(`for i in $(seq 300); do r=$(%s 2>/dev/null); [ "$r" = %q ] && break; sleep 0.1; done; echo "$r"`, cmd, want))
	if got != want {
		t.Errorf("in the guest: %s: %q, want %q", cmd, got, want)
	}
}

var diskModules = []string{"virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod"}

func TestDisksWhileRunning(t *testing.T) {
	r := newRig(t, guest.Q35, diskModules...)
	p := r.start(t, Attach{})
	sh := boot(t, p)
	ctx := testContext(t)
	for _, c := range []struct {
		bus  guest.DiskBus
		slot int
		dev  string
		f    Format
	}{{guest.VirtioBlk, 0, "vda", Qcow2}, {guest.VirtioBlk, 7, "vdb", Raw}, {guest.VirtioSCSI, 59, "sda", Qcow2}} {
		id := fmt.Sprintf("d-%s", c.dev)
		l := r.image(t, id+"-1", c.f, "32M")
		if err := p.AddDisk(ctx, Disk{ID: id, Bus: c.bus, Slot: c.slot, Serial: "SER-" + c.dev, Layers: []Layer{l}}); err != nil {
			t.Fatal(err)
		}
		sh.eventually(t, "cat /sys/block/"+c.dev+"/size", "65536")
		sh.run(t, "echo hello-"+c.dev+" >/dev/"+c.dev+" && sync")
		if err := p.ResizeDisk(ctx, id, 48<<20); err != nil {
			t.Error(err)
		}
		if c.bus == guest.VirtioSCSI {
			sh.run(t, "echo 1 >/sys/block/sda/device/rescan; true")
		}
		sh.eventually(t, "cat /sys/block/"+c.dev+"/size", "98304")
		if err := p.ResizeDisk(ctx, id, 16<<20); !errors.Is(err, ErrSpec) {
			t.Errorf("shrinking: %v", err)
		}
		if err := p.AddDisk(ctx, Disk{ID: id + "x", Bus: c.bus, Slot: c.slot, Layers: []Layer{r.image(t, id+"-2", Raw, "1M")}}); !errors.Is(err, ErrSpec) {
			t.Errorf("a second disk in the place: %v", err)
		}
	}
	if n := len(p.Spec().Disks); n != 3 {
		t.Errorf("%d disks in the spec", n)
	}
	for _, dev := range []string{"vda", "vdb", "sda"} {
		if err := p.RemoveDisk(ctx, "d-"+dev); err != nil {
			t.Fatal(err)
		}
		sh.eventually(t, "ls /sys/block | grep -c "+dev+" || true", "0")
		// The file can be used again: QEMU has let go of it.
		b := make([]byte, 8)
		if dev == "vdb" {
			f, err := os.Open(filepath.Join(r.dir, "d-vdb-1.raw"))
			if err != nil {
				t.Fatal(err)
			}
			f.Read(b)
			f.Close()
			if string(b) != "hello-vd" {
				t.Errorf("%s holds %q", dev, b)
			}
		}
	}
	nodes, err := p.QMP().QueryNamedBlockNodes(ctx)
	if err != nil || len(nodes) != 0 {
		t.Errorf("nodes left: %v %v", nodes, err)
	}
	sets, err := p.QMP().QueryFDSets(ctx)
	if err != nil || len(sets) != 0 {
		t.Errorf("descriptors left: %v %v", sets, err)
	}
	if st, err := readState(r.opt.Dir); err != nil || len(st.Spec.Disks) != 0 {
		t.Errorf("state after: %v %v", st, err)
	}
	if err := p.RemoveDisk(ctx, "none"); !errors.Is(err, ErrNotFound) {
		t.Errorf("removing what is not there: %v", err)
	}
	// An image that is not there leaves nothing behind.
	bad := Disk{ID: "bad", Bus: guest.VirtioBlk, Slot: 1, Layers: []Layer{r.image(t, "ok", Qcow2, "1M"), {ID: "bad-2", Path: r.dir + "/none", Format: Qcow2}}}
	if err := p.AddDisk(ctx, bad); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing image: %v", err)
	}
	if nodes, err := p.QMP().QueryNamedBlockNodes(ctx); err != nil || len(nodes) != 0 || len(p.Spec().Disks) != 0 {
		t.Errorf("left after a failed add: %v %v %v", nodes, p.Spec().Disks, err)
	}
}

// TestGuestThatDoesNotLetGo unplugs while no system runs in the guest that could answer.
func TestGuestThatDoesNotLetGo(t *testing.T) {
	r := newRig(t, guest.Q35, "virtio_pci")
	r.spec.Disks = []Disk{{ID: "root", Bus: guest.VirtioBlk, Layers: []Layer{r.image(t, "root", Raw, "1M")}}}
	p := r.start(t, Attach{})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := p.RemoveDisk(ctx, "root")
	if !errors.Is(err, ErrGuest) || !strings.Contains(err.Error(), "root") {
		t.Errorf("error: %v", err)
	}
	if len(p.Spec().Disks) != 1 {
		t.Error("the disk is gone from the spec")
	}
}

func TestCPUAndMemoryWhileRunning(t *testing.T) {
	r := newRig(t, guest.Q35, "virtio_pci", "virtio_balloon")
	r.spec.CPU.MaxSockets = 3
	r.spec.Memory.MiB, r.spec.Memory.MaxMiB = 256, 1024
	p := r.start(t, Attach{})
	sh := boot(t, p)
	ctx := testContext(t)
	if err := p.AddSockets(ctx, 3); err != nil {
		t.Fatal(err)
	}
	sh.run(t, "for i in $(seq 300); do [ -e /sys/devices/system/cpu/cpu2/online ] && break; sleep 0.1; done; echo 1 >/sys/devices/system/cpu/cpu1/online; echo 1 >/sys/devices/system/cpu/cpu2/online")
	sh.eventually(t, "grep -c ^processor /proc/cpuinfo", "3")
	if err := p.AddSockets(ctx, 4); !errors.Is(err, ErrSpec) {
		t.Errorf("a fourth socket: %v", err)
	}
	if err := p.AddMemory(ctx, 256); err != nil {
		t.Fatal(err)
	}
	sh.run(t, "for i in $(seq 300); do ls /sys/devices/system/memory/*/state | xargs grep -l offline >/tmp/off && break; sleep 0.1; done; for f in $(cat /tmp/off); do echo online_movable >$f; done")
	total := sh.run(t, "awk '/MemTotal/{print ($2 > 400000)}' /proc/meminfo")
	if total != "1" {
		t.Errorf("the guest does not see its new memory: %s", sh.run(t, "cat /proc/meminfo | head -3"))
	}
	if err := p.AddMemory(ctx, 1024); !errors.Is(err, ErrSpec) {
		t.Errorf("more than the limit: %v", err)
	}
	steps := p.QMP().Subscribe(0, qmp.EventBalloonChange)
	defer steps.Close()
	if err := p.Balloon(ctx, 200); err != nil {
		t.Error(err)
	}
	for { // it tells of every step
		st, err := p.Stats(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if st.Balloon == 200<<20 {
			break
		}
		if _, err := steps.Next(ctx); err != nil {
			t.Fatalf("the balloon is at %d: %v", st.Balloon, err)
		}
	}
	s := p.Spec()
	if len(s.CPU.Plugged) != 2 || len(s.Memory.DIMMs) != 1 {
		t.Errorf("spec: %+v %+v", s.CPU, s.Memory)
	}
	if _, err := Make(&s); err != nil {
		t.Errorf("the machine cannot be started again as it is: %v", err)
	}
}
