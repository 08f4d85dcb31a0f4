package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/guest"
	"drover/internal/nbd"
	"drover/internal/qmp"
)

// ErrBusy says that a consistent point of the machine is open, which the operation would disturb.
var ErrBusy = errors.New("a backup or a protection point reads the disk")

const (
	// cbwTimeout is how many seconds a guest's write may wait for the copy of what it overwrites; then the point is lost.
	cbwTimeout = 10
	// momentTimeout bounds the time that a guest stands still for the moment of a point, besides the saving of its memory.
	momentTimeout = 20 * time.Second
	// pointPrefix begins the names of what a point has in QEMU. Layers' names have no underscore.
	pointPrefix = "bk_"
	nbdSocket   = "nbd.sock"
	// tableShare is the part of a disk's size that the tables of its fleece take at most: 8 bytes for each cluster of 64 KiB.
	tableShare = 64 << 10 / 8
)

// PointDisk says how a disk takes part in a point.
type PointDisk struct {
	Disk string // id
	// Bitmap, if set, is made: it tracks what is written from the point on, and perhaps a little before.
	Bitmap string
	// Since are bitmaps that end at the point, or a little after. They are shown by the disk's export.
	Since []string
}

// PointOptions say how a point is made.
type PointOptions struct {
	Disks []PointDisk
	// Fleece makes an empty qcow2 of a size in bytes, to which QEMU saves what the guest overwrites. It is closed when QEMU has it.
	Fleece func(disk string, size int64) (*os.File, error)
	// Limit is how much a disk's fleece may save, in bytes; 0: as much as there is room. Beyond it the point is lost, not the guest. QEMU
	// holds to it by itself, a little above, also while nobody listens.
	Limit int64
	// Memory, if set, takes the machine's memory of the same moment; the guest stands still meanwhile.
	Memory *os.File
	// Freeze, if set, is called just before the moment, and thaw just after it.
	Freeze func(context.Context) (thaw func(), err error)
}

// LivePoint is a moment of a running machine's disks that can be read while the guest writes on.
type LivePoint struct {
	// Socket is where QEMU's NBD server listens.
	Socket string
	// Time of the moment, and how long the guest stood still for it.
	Time    time.Time
	Stopped time.Duration
	// Machine is what the machine was.
	Machine Spec

	p     *Process
	n     int
	disks []*pointDisk
	sub   *qmp.Subscription
	full  chan struct{}
	watch sync.WaitGroup

	// Guarded by the operation lock.
	closed bool
}

// pointDisk is a disk of an open point.
type pointDisk struct {
	PointDisk
	layer    string // the node below all filters
	below    string // what the device used before
	size     int64
	files    bool // fleece's nodes are there
	filter   bool
	switched bool
	access   bool
	bitmap   bool
}

func (l *LivePoint) node(d *pointDisk, kind string) string {
	return fmt.Sprintf("%s%d_%s_%s", pointPrefix, l.n, d.Disk, kind)
}

// Export is the NBD export of a disk as it was at the moment. What was read and is not needed again can be trimmed.
// Its base:allocation never calls anything zero.
func (l *LivePoint) Export(disk string) string {
	return l.node(&pointDisk{PointDisk: PointDisk{Disk: disk}}, "s")
}

// Live is the NBD export of the disk as it is now, for its block status: what is zero there, and then is not data in Export,
// was zero at the moment.
func (l *LivePoint) Live(disk string) string {
	return l.node(&pointDisk{PointDisk: PointDisk{Disk: disk}}, "l")
}

// Size of a disk at the moment, in bytes.
func (l *LivePoint) Size(disk string) int64 {
	for _, d := range l.disks {
		if d.Disk == disk {
			return d.size
		}
	}
	return 0
}

// Full is closed when a fleece has reached its limit: close the point at once.
func (l *LivePoint) Full() <-chan struct{} { return l.full }

// BeginPoint opens a consistent point of some disks: all of them as they are at one moment. The guest's writes go on; what they
// overwrite is saved to the fleece first, and if that can't be done the point breaks and not the guest. On failure the machine is as it was.
//
// Bitmaps cover the moment from both sides: new ones begin to record before it and old ones end after it. What is written
// in between is in both, which costs a few blocks and never loses one.
func (p *Process) BeginPoint(ctx context.Context, o PointOptions) (l *LivePoint, err error) {
	defer func() { err = p.wrap("begin a point", "", err) }()
	unlock, err := p.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	n := 1
	for _, other := range p.points {
		n = max(n, other.n+1)
	}
	l = &LivePoint{p: p, n: n, Socket: filepath.Join(p.opt.Dir, nbdSocket), full: make(chan struct{}), Machine: p.Spec()}
	defer func() {
		if err != nil {
			undo, cancel := p.undoContext(ctx)
			defer cancel()
			err = errors.Join(err, l.close(undo, true))
			l = nil
		}
	}()
	if err := l.find(ctx, o); err != nil {
		return l, err
	}
	p.points = append(p.points, l)
	l.sub = p.qmp.Subscribe(0, qmp.EventBlockWriteThreshold)
	l.watch.Go(l.listen)
	if err := p.serveNBD(ctx); err != nil {
		return l, err
	}
	if o.Memory == nil {
		if err := l.prepareAll(ctx, o); err != nil {
			return l, err
		}
	}
	if err := l.moment(ctx, o); err != nil {
		return l, err
	}
	return l, l.publish(ctx)
}

// find looks up the disks.
func (l *LivePoint) find(ctx context.Context, o PointOptions) error {
	nodes, err := l.p.qmp.QueryNamedBlockNodes(ctx)
	if err != nil {
		return err
	}
	for _, pd := range o.Disks {
		d, err := l.p.disk(pd.Disk)
		if err != nil {
			return err
		}
		if d.ReadOnly {
			return bad("disk %s is read-only and never changes", d.ID)
		}
		top := d.Layers[len(d.Layers)-1]
		at := &pointDisk{PointDisk: pd, layer: top.ID, below: top.ID}
		for _, other := range l.p.points {
			for _, od := range other.disks {
				if od.Disk == pd.Disk && od.switched {
					at.below = other.node(od, "c")
				}
			}
		}
		i := slices.IndexFunc(nodes, func(n qmp.BlockNode) bool { return n.NodeName == top.ID })
		if i < 0 {
			return fmt.Errorf("layer %s: %w", top.ID, ErrNotFound)
		}
		at.size = nodes[i].Image.VirtualSize
		l.disks = append(l.disks, at)
	}
	return nil
}

// serveNBD starts QEMU's NBD server, if no point did before.
func (p *Process) serveNBD(ctx context.Context) error {
	if p.serving {
		return nil
	}
	f, conn, err := listen(ctx, filepath.Join(p.opt.Dir, nbdSocket))
	if err != nil {
		return err
	}
	conn.Close()
	defer f.Close()
	if err := p.qmp.GetFD(ctx, nbdSocket, f); err != nil {
		return fmt.Errorf("pass the socket for NBD: %w", err)
	}
	if err := p.qmp.NBDServerStart(ctx, qmp.SocketAddress{Type: "fd", Str: nbdSocket}, "", 0); err != nil {
		return err
	}
	p.serving = true
	return nil
}

// prepareAll has everything ready for the moment.
func (l *LivePoint) prepareAll(ctx context.Context, o PointOptions) error {
	for _, d := range l.disks {
		if err := l.prepare(ctx, d, o); err != nil {
			return err
		}
	}
	return l.track(ctx)
}

// activate gives QEMU its images back, and the bitmaps in them, which it gave up for whoever would go on with the memory that it
// has saved. It does so by itself when the CPUs go on, and for an export.
func (p *Process) activate(ctx context.Context, layers []string) error {
	if err := p.serveNBD(ctx); err != nil {
		return err
	}
	for i, layer := range layers {
		id := fmt.Sprintf("%s0_%d_x", pointPrefix, i)
		if err := p.qmp.NBDExportAdd(ctx, qmp.NBDExport{ID: id, Name: id, Node: layer}); err != nil {
			return err
		}
	}
	return p.qmp.RemoveExports(ctx, func(e qmp.Export) bool { return strings.HasPrefix(e.ID, pointPrefix+"0_") })
}

// prepare adds the fleece and the filter of a disk. Nothing goes through the filter yet.
func (l *LivePoint) prepare(ctx context.Context, d *pointDisk, o PointOptions) error {
	f, err := o.Fleece(d.Disk, d.size)
	if err != nil {
		return fmt.Errorf("make the fleece of disk %s: %w", d.Disk, err)
	}
	defer f.Close()
	// The tables of a large disk take room of their own, though nothing is saved. A little above the limit there is no room at all, for
	// when nobody listens as the agent is gone: the point breaks by itself.
	limit := o.Limit + d.size/tableShare
	hard := limit + max(limit/16, 4<<20)&^(1<<20-1)
	if o.Limit > 0 {
		if err := f.Truncate(hard); err != nil {
			return fmt.Errorf("make the fleece of disk %s: %w", d.Disk, err)
		}
	}
	q := l.p.qmp
	name, err := l.p.passSet(ctx, l.node(d, "f"), f)
	if err != nil {
		return err
	}
	d.files = true
	// Nothing of the fleece is needed after an end of QEMU, so it is never flushed.
	cache := cacheProps(Unsafe)
	file := append(guest.Props{{Key: "driver", Value: "file"}, {Key: "node-name", Value: l.node(d, "ff")}, {Key: "filename", Value: name},
		{Key: "discard", Value: "unmap"}, {Key: "locking", Value: "off"}}, cache...)
	if err := q.BlockdevAdd(ctx, file); err != nil {
		l.p.dropSet(ctx, name)
		return err
	}
	below := l.node(d, "ff")
	if o.Limit > 0 {
		if err := q.SetWriteThreshold(ctx, below, limit); err != nil {
			return err
		}
		below = l.node(d, "fb")
		if err := q.BlockdevAdd(ctx, append(formatNode(below, Raw, l.node(d, "ff"), "", false).With("size", hard), cache...)); err != nil {
			return err
		}
	}
	if err := q.BlockdevAdd(ctx, append(formatNode(l.node(d, "f"), Qcow2, below, "", false), cache...)); err != nil {
		return err
	}
	d.filter = true
	return q.BlockdevAdd(ctx, guest.Props{
		{Key: "driver", Value: "copy-before-write"}, {Key: "node-name", Value: l.node(d, "c")}, {Key: "file", Value: d.below},
		{Key: "target", Value: l.node(d, "f")}, {Key: "on-cbw-error", Value: "break-snapshot"}, {Key: "cbw-timeout", Value: cbwTimeout},
		{Key: "discard", Value: "unmap"},
	})
}

// track begins the new bitmaps.
func (l *LivePoint) track(ctx context.Context) error {
	var actions []qmp.Action
	for _, d := range l.disks {
		if d.Bitmap != "" {
			actions = append(actions, qmp.AddBitmapAction(qmp.BitmapAdd{
				BitmapName: qmp.BitmapName{Node: d.layer, Name: d.Bitmap}, Granularity: bitmapGrain, Persistent: l.p.keeps(d.layer),
			}))
		}
	}
	if len(actions) == 0 {
		return nil
	}
	if err := l.p.qmp.Transaction(ctx, actions...); err != nil {
		return fmt.Errorf("begin to track changes: %w", err)
	}
	for _, d := range l.disks {
		d.bitmap = d.Bitmap != ""
	}
	return nil
}

// moment switches all disks to their filters while the guest writes nothing. QEMU has no transaction for this, so that
// with several disks the CPUs stand still for it; what the kernel has not yet written of the images is written out before, as QEMU waits for that.
func (l *LivePoint) moment(ctx context.Context, o PointOptions) (err error) {
	q := l.p.qmp
	st, err := q.QueryStatus(ctx)
	if err != nil {
		return err
	}
	stop := st.Running && (len(l.disks) > 1 || o.Memory != nil)
	if stop || o.Memory != nil {
		if err := l.settleFiles(); err != nil {
			return err
		}
		if err := l.p.change(func(s *state) { s.Pending = &pending{Resume: stop} }); err != nil {
			return err
		}
		defer func() {
			err = errors.Join(err, l.p.change(func(s *state) { s.Pending = nil }))
		}()
	}
	if o.Freeze != nil {
		thaw, err := o.Freeze(ctx)
		if err != nil {
			return err
		}
		defer thaw()
	}
	began := time.Now()
	l.Time = began
	if stop {
		sctx, cancel := context.WithTimeout(ctx, momentTimeout)
		defer cancel()
		defer func() {
			undo, cancel := l.p.undoContext(ctx)
			defer cancel()
			err = errors.Join(err, q.Cont(undo))
			l.Stopped = time.Since(began)
		}()
		if err := q.Stop(sctx); err != nil {
			return err
		}
	}
	if o.Memory != nil {
		if err := l.p.save(ctx, o.Memory); err != nil {
			return err
		}
		// Only now: QEMU saves no memory while a filter writes to a fleece.
		var layers []string
		for _, d := range l.disks {
			layers = append(layers, d.layer)
		}
		if err := l.p.activate(ctx, layers); err != nil {
			return err
		}
		if err := l.prepareAll(ctx, o); err != nil {
			return err
		}
	}
	for _, d := range l.disks {
		if err := q.SetDrive(ctx, diskID(d.Disk), l.node(d, "c")); err != nil {
			return err
		}
		d.switched = true
	}
	return nil
}

// settleFiles has the kernel write out the active layers.
func (l *LivePoint) settleFiles() error {
	for _, d := range l.Machine.Disks {
		if d.ReadOnly || !slices.ContainsFunc(l.disks, func(p *pointDisk) bool { return p.Disk == d.ID }) {
			continue
		}
		f, err := os.OpenFile(d.Layers[len(d.Layers)-1].Path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := errors.Join(unix.Fdatasync(int(f.Fd())), f.Close()); err != nil {
			return fmt.Errorf("write out disk %s: %w", d.ID, err)
		}
	}
	return nil
}

// publish makes the point readable, and ends the old bitmaps.
func (l *LivePoint) publish(ctx context.Context) error {
	q := l.p.qmp
	var actions []qmp.Action
	for _, d := range l.disks {
		for _, name := range d.Since {
			actions = append(actions, qmp.DisableBitmapAction(qmp.BitmapName{Node: d.layer, Name: name}))
		}
	}
	if len(actions) > 0 {
		if err := q.Transaction(ctx, actions...); err != nil {
			return fmt.Errorf("end the tracking of changes: %w", err)
		}
	}
	for _, d := range l.disks {
		d.access = true
		if err := q.BlockdevAdd(ctx, guest.Props{{Key: "driver", Value: "snapshot-access"}, {Key: "node-name", Value: l.node(d, "a")},
			{Key: "file", Value: l.node(d, "c")}, {Key: "discard", Value: "unmap"}}); err != nil {
			return err
		}
		e := qmp.NBDExport{ID: l.node(d, "s"), Name: l.node(d, "s"), Node: l.node(d, "a"), Writable: true}
		for _, name := range d.Since {
			e.Bitmaps = append(e.Bitmaps, qmp.BitmapName{Node: d.layer, Name: name})
		}
		if err := q.NBDExportAdd(ctx, e); err != nil {
			return err
		}
		if err := q.NBDExportAdd(ctx, qmp.NBDExport{ID: l.node(d, "l"), Name: l.node(d, "l"), Node: d.layer}); err != nil {
			return err
		}
	}
	return nil
}

// listen waits for a fleece that reaches its limit.
func (l *LivePoint) listen() {
	told := false
	mine := fmt.Sprintf("%s%d_", pointPrefix, l.n)
	for e := range l.sub.C {
		var d qmp.WriteThresholdData
		if !told && (e.Name == qmp.Lagged || e.Decode(&d) == nil && strings.HasPrefix(d.NodeName, mine)) {
			told = true
			close(l.full)
		}
	}
}

// Close ends the point; the bitmaps stay. Exports, filters and fleece are gone then, but for a filter that another
// point, begun later, stands on: it does nothing any more and goes with that one. A second call does nothing.
func (l *LivePoint) Close(ctx context.Context) (err error) {
	defer func() { err = l.p.wrap("end a point", "", err) }()
	unlock, err := l.p.lock(ctx)
	if errors.Is(err, ErrNotRunning) {
		l.stopListening()
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	err = l.close(ctx, false)
	if errors.Is(err, qmp.ErrGone) {
		return nil
	}
	return err
}

func (l *LivePoint) stopListening() {
	if l.sub != nil {
		l.sub.Close()
		l.watch.Wait()
	}
}

// close is called with the operation lock held.
func (l *LivePoint) close(ctx context.Context, bitmaps bool) error {
	l.stopListening()
	if l.closed {
		return nil
	}
	p := l.p
	if !slices.Contains(p.points, l) {
		return nil // it never began
	}
	if p.points[len(p.points)-1] != l {
		l.still(ctx)
	}
	prefix := fmt.Sprintf("%s%d_", pointPrefix, l.n)
	if err := p.qmp.RemoveExports(ctx, func(e qmp.Export) bool { return strings.HasPrefix(e.ID, prefix) }); err != nil {
		return err
	}
	l.closed = true
	for _, d := range l.disks {
		if bitmaps && d.bitmap {
			if err := p.qmp.RemoveBitmap(ctx, qmp.BitmapName{Node: d.layer, Name: d.Bitmap}); err != nil {
				return err
			}
			for _, name := range d.Since {
				if err := p.qmp.Transaction(ctx, qmp.EnableBitmapAction(qmp.BitmapName{Node: d.layer, Name: name})); err != nil {
					return err
				}
			}
		}
		if d.access {
			if err := p.deleteNode(ctx, l.node(d, "a")); err != nil {
				return err
			}
		}
	}
	for len(p.points) > 0 && p.points[len(p.points)-1].closed {
		if err := p.points[len(p.points)-1].detach(ctx); err != nil {
			return err
		}
		p.points = p.points[:len(p.points)-1]
	}
	return nil
}

// still has the filters of a point that is not the top one save nothing any more.
func (l *LivePoint) still(ctx context.Context) {
	for _, d := range l.disks {
		c, err := nbd.Dial(ctx, "unix", l.Socket, nbd.Options{Export: l.node(d, "s")})
		if err == nil {
			err = errors.Join(c.Trim(ctx, 0, d.size), c.Close())
		}
		if err != nil {
			l.p.log.Warn("a point that is over goes on to save what is overwritten, until later ones have ended", "disk", d.Disk, "err", err)
		}
	}
}

// detach takes the filters out again.
func (l *LivePoint) detach(ctx context.Context) error {
	for _, d := range l.disks {
		if d.switched {
			if err := l.p.qmp.SetDrive(ctx, diskID(d.Disk), d.below); err != nil {
				return err
			}
			d.switched = false
		}
		if d.filter {
			if err := l.p.deleteNode(ctx, l.node(d, "c")); err != nil {
				return err
			}
		}
		if d.files {
			if err := l.p.dropFleece(ctx, l.node(d, "f"), l.node(d, "fb"), l.node(d, "ff")); err != nil {
				return err
			}
		}
	}
	return nil
}

// reading says whether a point stands on a disk.
func (p *Process) reading(disk string) bool {
	return slices.ContainsFunc(p.points, func(l *LivePoint) bool {
		return slices.ContainsFunc(l.disks, func(d *pointDisk) bool { return d.Disk == disk })
	})
}
