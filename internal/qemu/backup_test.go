package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"drover/internal/guest"
	"drover/internal/nbd"
	"drover/internal/qmp"
)

// fleece makes one in a file without a name.
func (r *rig) fleece(t *testing.T) func(string, int64) (*os.File, error) {
	n := 0
	return func(disk string, size int64) (*os.File, error) {
		n++
		l := r.image(t, fmt.Sprintf("fleece-%s-%d-%p", disk, n, &n), Qcow2, fmt.Sprint(size))
		f, err := os.OpenFile(l.Path, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		return f, os.Remove(l.Path)
	}
}

// startAnew starts the machine, which another agent may adopt.
func (r *rig) startAnew(t *testing.T) *Process {
	t.Helper()
	p, err := Start(testContext(t), r.spec, Attach{}, r.opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := Clean(ctx, r.opt.Dir); err != nil {
			t.Error(err)
		}
	})
	return p
}

func dial(t *testing.T, l *LivePoint, export string, contexts ...string) *nbd.Client {
	t.Helper()
	c, err := nbd.Dial(testContext(t), "unix", l.Socket, nbd.Options{Export: export, Contexts: contexts})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// word is what the disk's megabyte begins with.
func word(t *testing.T, c *nbd.Client, mib int64) string {
	t.Helper()
	b := make([]byte, 512)
	if err := c.ReadAt(testContext(t), b, mib<<20); err != nil {
		t.Fatal(err)
	}
	s, _, _ := strings.Cut(string(bytes.TrimRight(b, "\x00")), "\n")
	return s
}

func dirty(t *testing.T, c *nbd.Client, name string) string {
	t.Helper()
	list, err := c.Extents(testContext(t), "qemu:dirty-bitmap:"+name, 0, c.Size())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range list {
		if e.Flags&1 != 0 {
			out = append(out, fmt.Sprintf("%d+%d", e.Offset>>16, e.Length>>16))
		}
	}
	return strings.Join(out, " ")
}

// noPoint finds anything that a point has left in QEMU.
func noPoint(t *testing.T, p *Process) {
	t.Helper()
	ctx := testContext(t)
	nodes, err := p.QMP().QueryNamedBlockNodes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		if strings.HasPrefix(n.NodeName, pointPrefix) {
			t.Errorf("node %s is left", n.NodeName)
		}
	}
	if all, err := p.QMP().QueryBlockExports(ctx); err != nil || len(all) > 0 {
		t.Errorf("exports are left: %v %v", all, err)
	}
	sets, err := p.QMP().QueryFDSets(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sets {
		for _, fd := range s.FDs {
			if strings.HasPrefix(fd.Opaque, pointPrefix) {
				t.Errorf("the descriptor of %s is left", fd.Opaque)
			}
		}
	}
}

func TestPoints(t *testing.T) {
	for _, m := range []guest.Machine{guest.Q35, guest.MicroVM} {
		t.Run(string(m), func(t *testing.T) { points(t, m) })
	}
}

func points(t *testing.T, m guest.Machine) {
	mods := map[guest.Machine][]string{guest.Q35: diskModules, guest.MicroVM: {"virtio_mmio", "virtio_blk"}}
	r := newRig(t, m, mods[m]...)
	r.spec.Disks = []Disk{
		{ID: "root", Bus: guest.VirtioBlk, Slot: 0, Layers: []Layer{r.image(t, "root-0", Qcow2, "16M"), r.image(t, "root-1", Qcow2, "16M")}},
		{ID: "data", Bus: guest.VirtioBlk, Slot: 1, Layers: []Layer{r.image(t, "data-0", Qcow2, "8M")}},
	}
	p := r.startAnew(t)
	sh := boot(t, p)
	ctx := testContext(t)
	write := func(mib int, s string) {
		sh.run(t, fmt.Sprintf("for d in vda vdb; do echo %s | dd of=/dev/$d bs=1M seek=%d conv=fsync 2>/dev/null; done", s, mib))
	}
	begin := func(next string, since ...string) *LivePoint {
		t.Helper()
		var disks []PointDisk
		for _, id := range []string{"root", "data"} {
			disks = append(disks, PointDisk{Disk: id, Bitmap: next, Since: since})
		}
		l, err := p.BeginPoint(ctx, PointOptions{Disks: disks, Fleece: r.fleece(t)})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	write(1, "one")
	first := begin("drover-a")
	write(1, "two")
	write(2, "new")
	for _, id := range []string{"root", "data"} {
		c := dial(t, first, first.Export(id), "base:allocation")
		if a, b := word(t, c, 1), word(t, c, 2); a != "one" || b != "" {
			t.Errorf("disk %s at the point: %q and %q", id, a, b)
		}
	}
	// A second point on top of the first, which then goes first.
	second := begin("drover-b", "drover-a")
	write(1, "three")
	c1, c2 := dial(t, first, first.Export("root")), dial(t, second, second.Export("root"), "qemu:dirty-bitmap:drover-a")
	if a, b := word(t, c1, 1), word(t, c2, 1); a != "one" || b != "two" {
		t.Errorf("two points: %q and %q", a, b)
	}
	if d := dirty(t, c2, "drover-a"); d != "16+1 32+1" {
		t.Errorf("changed between the points: %q", d)
	}
	for _, err := range []error{
		p.Snapshot(ctx, map[string]Layer{"root": r.image(t, "root-2", Qcow2, "16M")}, nil), p.ResizeDisk(ctx, "root", 32<<20), p.RemoveDisk(ctx, "data"),
	} {
		if !errors.Is(err, ErrBusy) {
			t.Errorf("a change of disks that are read: %v", err)
		}
	}
	if err := first.Close(ctx); err != nil {
		t.Fatal(err)
	}
	write(3, "more")
	if b := word(t, c2, 1); b != "two" || word(t, c2, 3) != "" {
		t.Errorf("the second point after the first ended: %q", b)
	}
	if err := second.Close(ctx); err != nil {
		t.Fatal(err)
	}
	noPoint(t, p)
	// The second failed, so that what it tracked belongs to the first again.
	for _, id := range []string{"root", "data"} {
		if err := p.MergeBitmap(ctx, id, "drover-a", "drover-b"); err != nil {
			t.Fatal(err)
		}
	}
	// The bitmap goes along with a new active layer.
	if err := p.Snapshot(ctx, map[string]Layer{"root": r.image(t, "root-2", Qcow2, "16M"), "data": r.image(t, "data-1", Qcow2, "8M")}, nil); err != nil {
		t.Fatal(err)
	}
	write(4, "snap")
	third := begin("drover-c", "drover-a")
	c3 := dial(t, third, third.Export("root"), "qemu:dirty-bitmap:drover-a")
	if d := dirty(t, c3, "drover-a"); d != "16+1 32+1 48+1 64+1" {
		t.Errorf("changed since the first point, over a snapshot: %q", d)
	}
	// An agent that dies leaves a point, another comes.
	sh.run(t, "true")
	p.Leave()
	p, err := Adopt(ctx, Options{Dir: r.opt.Dir, Log: r.opt.Log})
	if err != nil {
		t.Fatal(err)
	}
	noPoint(t, p)
	sh = &shell{conn: p.Serial(), in: newReader(p.Serial()), n: 500}
	write(5, "after")
	all, err := p.Bitmaps(ctx)
	if err != nil || len(all["root"]) != 2 || len(all["data"]) != 2 {
		t.Errorf("bitmaps after the agent's end: %v %v", all, err)
	}
	if err := p.ResizeDisk(ctx, "root", 32<<20); err != nil {
		t.Errorf("grow a disk with bitmaps: %v", err)
	}
	if _, err := p.Quit(ctx); err != nil {
		t.Fatal(err)
	}
	// Bitmaps are in the image then.
	r.spec.Disks = p.Spec().Disks
	p = r.startAnew(t)
	if all, err = p.Bitmaps(ctx); err != nil || len(all["root"]) != 2 || all["root"][0].Lost {
		t.Errorf("bitmaps after a new start: %v %v", all, err)
	}
	if _, err := p.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	p = r.startAnew(t)
	if all, err = p.Bitmaps(ctx); err != nil || len(all["root"]) != 2 || !all["root"][0].Lost {
		t.Errorf("bitmaps after a crash: %v %v", all, err)
	}
	if err := p.RemoveBitmap(ctx, "root", "drover-a"); err != nil {
		t.Error(err)
	}
}

// TestPointBreaks: a fleece that is full breaks the point, never the guest's writes.
func TestPointBreaks(t *testing.T) {
	r := newRig(t, guest.Q35, diskModules...)
	r.spec.Disks = []Disk{{ID: "root", Bus: guest.VirtioBlk, Layers: []Layer{r.image(t, "root-0", Qcow2, "16M")}}}
	p := r.start(t, Attach{})
	sh := boot(t, p)
	ctx := testContext(t)
	sh.run(t, "tr '\\0' x </dev/zero | dd of=/dev/vda bs=1M count=16 iflag=fullblock conv=fsync 2>/dev/null")
	l, err := p.BeginPoint(ctx, PointOptions{Disks: []PointDisk{{Disk: "root"}}, Fleece: r.fleece(t), Limit: 2 << 20})
	if err != nil {
		t.Fatal(err)
	}
	sh.run(t, "tr '\\0' y </dev/zero | dd of=/dev/vda bs=1M count=16 iflag=fullblock conv=fsync")
	select {
	case <-l.Full():
	case <-ctx.Done():
		t.Error("nobody said that the fleece is full")
	}
	if err := l.Close(ctx); err != nil {
		t.Fatal(err)
	}
	noPoint(t, p)

	// When nobody listens, QEMU keeps to the limit by itself.
	var kept *os.File
	l, err = p.BeginPoint(ctx, PointOptions{Disks: []PointDisk{{Disk: "root"}}, Limit: 2 << 20, Fleece: func(disk string, size int64) (*os.File, error) {
		f, err := r.fleece(t)(disk, size)
		if err == nil {
			kept, err = os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDONLY, 0)
		}
		return f, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	sh.run(t, "tr '\\0' z </dev/zero | dd of=/dev/vda bs=1M count=16 iflag=fullblock conv=fsync")
	var st unix.Stat_t
	if err := unix.Fstat(int(kept.Fd()), &st); err != nil || st.Blocks*512 > 7<<20 || st.Blocks*512 < 2<<20 {
		t.Errorf("a fleece of at most 2 MiB and 4 MiB more has %d KiB: %v", st.Blocks/2, err)
	}
	if err := dial(t, l, l.Export("root")).ReadAt(ctx, make([]byte, 512), 0); err == nil {
		t.Error("a point that is broken can be read")
	}
	if err := l.Close(ctx); err != nil {
		t.Fatal(err)
	}
	noPoint(t, p)

	// One on a full disk.
	l, err = p.BeginPoint(ctx, PointOptions{Disks: []PointDisk{{Disk: "root"}}, Fleece: func(string, int64) (*os.File, error) {
		return os.OpenFile("/dev/full", os.O_RDWR, 0)
	}})
	var refused *qmp.Error
	if !errors.As(err, &refused) {
		t.Errorf("a fleece that is none: %v, %v", l, err)
	}
	noPoint(t, p)
	sh.run(t, "echo fine | dd of=/dev/vda conv=fsync")
}
