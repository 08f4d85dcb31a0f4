package backup

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"drover/internal/chunkstore"
	"drover/internal/chunkstore/ledger"
)

// OpenPoint starts to read a point.
func (l *Local) OpenPoint(ctx context.Context, id string) (PointReader, error) {
	return l.OpenLocal(ctx, id)
}

// OpenLocal is OpenPoint with more to it.
func (l *Local) OpenLocal(ctx context.Context, id string) (*LocalPoint, error) {
	pid, err := ParsePointID(id)
	if err != nil {
		return nil, err
	}
	if err := l.r.Refresh(ctx); err != nil {
		return nil, mapped(err)
	}
	p, ok := l.r.Point(pid)
	if !ok {
		return nil, fmt.Errorf("point %s: %w", id, ErrNotFound)
	}
	s, err := l.r.Begin(ctx, chunkstore.BeginOptions{Reader: true, Pins: []chunkstore.PointID{pid}, Purpose: "read point " + id})
	if err != nil {
		return nil, mapped(err)
	}
	point, err := l.describe(ctx, s, p)
	if err != nil {
		return nil, mapped(errors.Join(err, closeSession(ctx, s)))
	}
	return &LocalPoint{l: l, s: s, ctx: ctx, p: p, point: point}, nil
}

// LocalPoint is a PointReader of Local.
type LocalPoint struct {
	l     *Local
	s     *chunkstore.Session
	ctx   context.Context // of OpenLocal: values only
	p     *ledger.Point
	point Point
}

// Point is what the point says of itself.
func (p *LocalPoint) Point() Point { return p.point }

// Close lets go of the point.
func (p *LocalPoint) Close() error { return mapped(closeSession(p.ctx, p.s)) }

// Disk opens a disk.
func (p *LocalPoint) Disk(ctx context.Context, name string) (DiskReader, error) {
	return p.DiskLocal(ctx, name)
}

// DiskLocal is Disk with more to it.
func (p *LocalPoint) DiskLocal(ctx context.Context, name string) (*LocalDisk, error) {
	for _, d := range p.p.GetDisks() {
		if d.GetName() == name {
			c, err := p.s.Open(ctx, d)
			if err != nil {
				return nil, mapped(err)
			}
			return &LocalDisk{p: p, d: c, size: d.GetSize()}, nil
		}
	}
	return nil, fmt.Errorf("disk %q of point %s: %w", name, p.point.ID, ErrNotFound)
}

// LocalDisk is a DiskReader of Local.
type LocalDisk struct {
	p    *LocalPoint
	d    *chunkstore.Disk
	size int64
}

// Chunks is the disk itself.
func (d *LocalDisk) Chunks() *chunkstore.Disk { return d.d }

// Size in bytes.
func (d *LocalDisk) Size() int64 { return d.size }

// Close does nothing: the point's session holds all.
func (d *LocalDisk) Close() error { return nil }

// ReadAt fills p from off.
func (d *LocalDisk) ReadAt(ctx context.Context, p []byte, off int64) error {
	n := max(min(int64(len(p)), d.size-off), 0)
	clear(p[n:])
	if n == 0 {
		return nil
	}
	return mapped(d.d.ReadAt(ctx, p[:n], off))
}

// Extents tells data from zeros.
func (d *LocalDisk) Extents(ctx context.Context, off, n int64) ([]Extent, error) {
	list, err := d.d.Extents(ctx, off, min(n, d.size-off))
	return extents(list), mapped(err)
}

// Bulk reads in the order of the packs.
func (d *LocalDisk) Bulk(ctx context.Context, parts []Extent, each func(off int64, data []byte) error) error {
	for len(parts) > 0 {
		// One go for parts that are near: between them there is nothing, for who restores a disk.
		n := 1
		for n < len(parts) && parts[n].Offset-(parts[n-1].Offset+parts[n-1].Length) < window {
			n++
		}
		from, to := parts[0].Offset, parts[n-1].Offset+parts[n-1].Length
		err := d.d.Restore(ctx, clipped{parts[:n], each}, chunkstore.RestoreOptions{Offset: from, Length: to - from})
		if err != nil {
			return mapped(err)
		}
		parts = parts[n:]
	}
	return nil
}

// clipped hands on what lies in parts.
type clipped struct {
	parts []Extent
	each  func(off int64, data []byte) error
}

func (c clipped) WriteAt(p []byte, off int64) (int, error) {
	end := off + int64(len(p))
	i, _ := slices.BinarySearchFunc(c.parts, off, func(e Extent, off int64) int {
		if e.Offset+e.Length <= off {
			return -1
		}
		return 1
	})
	for ; i < len(c.parts) && c.parts[i].Offset < end; i++ {
		e := c.parts[i]
		lo, hi := max(off, e.Offset), min(end, e.Offset+e.Length)
		if err := c.each(lo, p[lo-off:hi-off]); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// Changed tells what may differ from the disk of another point.
func (d *LocalDisk) Changed(ctx context.Context, point, disk string) ([]Extent, error) {
	o, err := d.p.l.disk(point, disk)
	if err != nil {
		return nil, err
	}
	other, err := d.p.s.Open(ctx, o)
	if err != nil {
		return nil, mapped(err)
	}
	list, err := d.d.Changed(ctx, other)
	return extents(list), mapped(err)
}

func extents(list []chunkstore.Extent) []Extent {
	out := make([]Extent, 0, len(list))
	for _, e := range list {
		out = append(out, Extent{Offset: e.Offset, Length: e.Length, Zero: e.Zero})
	}
	return out
}

// ReservedLabel reports whether a label is this package's own.
func ReservedLabel(key string) bool { return key == attachedTo || key == attachedAs }

// Attached reports whether labels are of a file that belongs to a point, and not of a point.
func Attached(labels map[string]string) bool { return labels[attachedTo] != "" }

// Attach keeps a small file with a point: the result of a test. A second of the same name replaces the first.
func (l *Local) Attach(ctx context.Context, point, name string, data []byte) error {
	pid, err := ParsePointID(point)
	if err != nil {
		return err
	}
	p, ok := l.r.Point(pid)
	if !ok {
		return fmt.Errorf("point %s: %w", point, ErrNotFound)
	}
	s, err := l.r.Begin(ctx, chunkstore.BeginOptions{Purpose: "keep " + name + " with point " + point})
	if err != nil {
		return mapped(err)
	}
	err = l.attach(ctx, s, p, name, data)
	return mapped(errors.Join(err, closeSession(ctx, s)))
}

func (l *Local) attach(ctx context.Context, s *chunkstore.Session, p *ledger.Point, name string, data []byte) error {
	place, err := s.Describe(ctx, data)
	if err != nil {
		return err
	}
	id := hex.EncodeToString(p.GetId())
	before := l.attached(id, name)
	nid, err := newPointID()
	if err != nil {
		return err
	}
	err = s.Commit(ctx, &ledger.Point{Id: nid[:], VmUid: p.GetVmUid(), Vm: p.GetVm(), Time: p.GetTime(), Description: place,
		Labels: map[string]string{attachedTo: id, attachedAs: name}})
	if err != nil || len(before) == 0 {
		return err
	}
	return l.r.Forget(ctx, "replaced", before...)
}

// attached are the points that stand for files of a point, all if name is empty.
func (l *Local) attached(point, name string) []chunkstore.PointID {
	var out []chunkstore.PointID
	for _, p := range l.r.Points() {
		if p.GetLabels()[attachedTo] == point && (name == "" || p.GetLabels()[attachedAs] == name) {
			out = append(out, chunkstore.PointID(p.GetId()))
		}
	}
	return out
}

// Files are what was attached to the point.
func (p *LocalPoint) Files(ctx context.Context) (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, id := range p.l.attached(p.point.ID, "") {
		if q, ok := p.l.r.Point(id); ok {
			b, err := p.s.Description(ctx, q)
			if err != nil {
				return nil, mapped(fmt.Errorf("file %s of point %s: %w", q.GetLabels()[attachedAs], p.point.ID, err))
			}
			out[q.GetLabels()[attachedAs]] = b
		}
	}
	return out, nil
}

// Forget lets go of points, and of what is attached to them.
func (l *Local) Forget(ctx context.Context, reason string, points ...string) error {
	var ids []chunkstore.PointID
	for _, p := range points {
		id, err := ParsePointID(p)
		if err != nil {
			return err
		}
		ids = append(ids, id)
	}
	for _, p := range points {
		ids = append(ids, l.attached(p, "")...)
	}
	return mapped(l.r.Forget(ctx, reason, ids...))
}
