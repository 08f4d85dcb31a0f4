package qemu

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"drover/internal/guest"
)

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestSnapshotWithMemoryAndRevert counts in the guest's memory and on its disk, and sees both go back.
func TestSnapshotWithMemoryAndRevert(t *testing.T) {
	for _, m := range []guest.Machine{guest.Q35, guest.MicroVM} {
		t.Run(string(m), func(t *testing.T) { snapshotAndRevert(t, m) })
	}
}

func snapshotAndRevert(t *testing.T, m guest.Machine) {
	mods := map[guest.Machine][]string{guest.Q35: diskModules, guest.MicroVM: {"virtio_mmio", "virtio_blk"}}
	r := newRig(t, m, mods[m]...)
	base, data := r.image(t, "root-0", Qcow2, "64M"), r.image(t, "data-0", Raw, "64M")
	r.spec.Disks = []Disk{
		{ID: "root", Bus: guest.VirtioBlk, Slot: 0, Layers: []Layer{base}},
		{ID: "data", Bus: guest.VirtioBlk, Slot: 1, Layers: []Layer{data}},
	}
	p := r.start(t, Attach{})
	sh := boot(t, p)
	ctx := testContext(t)
	put := func(s string) {
		sh.run(t, fmt.Sprintf("for d in vda vdb; do echo %s | dd of=/dev/$d conv=fsync 2>/dev/null; done", s))
	}
	get := func(sh *shell) string {
		return sh.run(t, "echo 3 >/proc/sys/vm/drop_caches; for d in vda vdb; do head -n1 /dev/$d; done | tr '\\n' ' '")
	}
	put("before")
	sh.run(t, "(i=0; while :; do i=$((i+1)); echo $i >/tmp/count.new; mv /tmp/count.new /tmp/count; sleep 0.05; done) &")
	sh.run(t, "until [ -e /tmp/count ]; do sleep 0.05; done; word=old")

	memory := filepath.Join(r.dir, "memory")
	mem, err := os.Create(memory)
	if err != nil {
		t.Fatal(err)
	}
	count0 := atoi(t, sh.run(t, "cat /tmp/count"))
	err = p.Snapshot(ctx, map[string]Layer{"root": r.image(t, "root-1", Qcow2, "64M"), "data": r.image(t, "data-1", Qcow2, "64M")}, mem)
	mem.Close()
	if err != nil {
		t.Fatal(err)
	}
	put("after")
	sh.run(t, "word=new")
	count1 := atoi(t, sh.run(t, fmt.Sprintf("until [ $(cat /tmp/count) -gt %d ]; do sleep 0.05; done; cat /tmp/count", count0+5)))
	if got := p.Spec().Disks[0].Layers; len(got) != 2 || got[1].ID != "root-1" {
		t.Errorf("layers after the snapshot: %v", got)
	}

	// A second snapshot without memory, then merges: first a layer in the middle, then the active one.
	if err := p.Snapshot(ctx, map[string]Layer{"root": r.image(t, "root-2", Qcow2, "64M")}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Kill(ctx); err != nil {
		t.Fatal(err)
	}

	// Go back: new layers on the frozen ones, and the memory of that moment.
	if mem, err = os.Open(memory); err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	r.spec.Incoming = true
	r.spec.Disks[0].Layers = []Layer{base, r.image(t, "root-3", Qcow2, "64M")}
	r.spec.Disks[1].Layers = []Layer{data, r.image(t, "data-3", Qcow2, "64M")}
	back := r.start(t, Attach{Incoming: mem})
	if back.Spec().Incoming {
		t.Error("the memory is in, and the spec still waits for it")
	}
	if err := back.QMP().Cont(ctx); err != nil {
		t.Fatal(err)
	}
	sh2 := &shell{conn: back.Serial(), in: newReader(back.Serial()), n: 1000}
	count2 := atoi(t, sh2.run(t, "cat /tmp/count"))
	if count2 < count0 || count2 >= count1 {
		t.Errorf("the counter was %d at the snapshot and %d after, and is %d now", count0, count1, count2)
	}
	if got := sh2.run(t, "echo $word"); got != "old" {
		t.Errorf("the guest's memory says %q", got)
	}
	if got := get(sh2); strings.TrimSpace(got) != "before before" {
		t.Errorf("the disks say %q", got)
	}
	sh2.run(t, fmt.Sprintf("until [ $(cat /tmp/count) -gt %d ]; do sleep 0.05; done", count2))
}

func TestMergeLayers(t *testing.T) {
	r := newRig(t, guest.Q35, diskModules...)
	layers := []Layer{r.image(t, "l0", Raw, "16M"), r.image(t, "l1", Qcow2, "16M"), r.image(t, "l2", Qcow2, "16M"), r.image(t, "l3", Qcow2, "16M")}
	r.spec.Disks = []Disk{{ID: "root", Bus: guest.VirtioBlk, Layers: layers[:1]}}
	p := r.start(t, Attach{})
	sh := boot(t, p)
	ctx := testContext(t)
	write := func(at int, s string) {
		sh.run(t, fmt.Sprintf("echo %s | dd of=/dev/vda bs=1M seek=%d conv=fsync 2>/dev/null", s, at))
	}
	write(0, "zero")
	for i := 1; i < 4; i++ {
		if err := p.Snapshot(ctx, map[string]Layer{"root": layers[i]}, nil); err != nil {
			t.Fatal(err)
		}
		write(i, fmt.Sprint("layer", i))
	}
	check := func(want ...string) {
		t.Helper()
		var ids []string
		for _, l := range p.Spec().Disks[0].Layers {
			ids = append(ids, l.ID)
		}
		if got := strings.Join(ids, " "); got != strings.Join(want, " ") {
			t.Errorf("layers %s, want %v", got, want)
		}
		got := sh.run(t, "echo 3 >/proc/sys/vm/drop_caches; for i in 0 1 2 3; do dd if=/dev/vda bs=1M skip=$i count=1 2>/dev/null | head -n1; done | tr '\\n' ' '")
		if strings.TrimSpace(got) != "zero layer1 layer2 layer3" {
			t.Errorf("the disk says %q", got)
		}
	}
	check("l0", "l1", "l2", "l3")
	if err := p.Merge(ctx, "root", "l2"); err != nil { // in the middle
		t.Fatal(err)
	}
	check("l0", "l1", "l3")
	if err := p.Merge(ctx, "root", "l3"); err != nil { // the active one
		t.Fatal(err)
	}
	check("l0", "l1")
	if err := p.Merge(ctx, "root", "l1"); err != nil { // into a raw base
		t.Fatal(err)
	}
	check("l0")
	if err := p.Merge(ctx, "root", "l0"); err == nil {
		t.Error("merged the base")
	}
	nodes, err := p.QMP().QueryNamedBlockNodes(ctx)
	if err != nil || len(nodes) != 2 {
		t.Errorf("nodes: %v %v", nodes, err)
	}
	if err := p.RemoveDisk(ctx, "root"); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(layers[0].Path)
	if err != nil || !strings.HasPrefix(string(b[3<<20:]), "layer3") {
		t.Errorf("the base file does not hold what was merged: %v", err)
	}
}
