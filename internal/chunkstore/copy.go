package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	"drover/internal/chunkstore/keys"
	"drover/internal/chunkstore/ledger"
	"drover/internal/chunkstore/pack"
)

// CopySource is where points are copied from: another repository, on this machine (NewCopySource) or elsewhere. Its key may be another. If it
// also has a method IDKey like the Repository's, blocks are compared with their ids there.
type CopySource interface {
	BlockSize() int
	// Points lists points, a point after those that it was written against. Of a disk its name and size count.
	Points(ctx context.Context) ([]*ledger.Point, error)
	// Open makes a point readable until Close.
	Open(ctx context.Context, point PointID) (CopyPoint, error)
}

// CopyPoint is a point being copied. It is for concurrent use.
type CopyPoint interface {
	Description(ctx context.Context) ([]byte, error)
	// Changed lists what of a disk may differ from a disk of another point of the source, in order. Without a point: what is not zeros.
	Changed(ctx context.Context, disk string, from PointID, fromDisk string) ([]Extent, error)
	// Blocks reads blocks in any order, as they are stored there: opened, not decompressed. A hole may be left out, or have a zero id. The
	// payload is good until each returns.
	Blocks(ctx context.Context, disk string, block int64, count int, each func(block int64, id ID, codec pack.Codec, raw int, payload []byte) error) error
	Close(ctx context.Context) error
}

// CopyOptions are for Copy.
type CopyOptions struct {
	// Points to copy; nil: all. Those that are here already are left out.
	Points []PointID
	Rate   int64 // bytes a second, decompressed; 0: as fast as it goes
	// Workers is how many ranges of a disk are read at once; 0: 4.
	Workers int
	// Room is asked before a block of so many bytes is stored; its error ends the copy. Nil: there is always room.
	Room func(ctx context.Context, bytes int64) error
	// Progress is told after each point, and now and then; nil: nobody.
	Progress func(CopyResult)
}

// CopyResult tells what a copy did.
type CopyResult struct {
	Points int // copied
	Had    int // were here already
	Bytes  int64
	Stored int64 // bytes of blocks that were not here
	Packed int64 // the same, as stored
	// Failed are points that could not be read. The others were copied.
	Failed []CopyFailure
}

// CopyFailure is a point that was not copied.
type CopyFailure struct {
	Point PointID
	Err   error
}

// Copy copies points from another repository, one after another, and only what is missing: of a disk what differs from an earlier point of it that
// is in both, of that what is not stored here. A point keeps its id. Cut off, it goes on with the point that was not done. Block sizes must be equal.
func (r *Repository) Copy(ctx context.Context, from CopySource, o CopyOptions) (CopyResult, error) {
	if o.Workers <= 0 {
		o.Workers = 4
	}
	c := &copying{r: r, from: from, o: o, pace: newPace(r.o.Clock, o.Rate)}
	if k, ok := from.(interface {
		IDKey() (hash string, key []byte)
	}); ok {
		hash, key := k.IDKey()
		c.hashers = &sync.Pool{New: func() any { return keys.NewHasher(hash, key) }}
	}
	err := c.run(ctx)
	if err != nil {
		err = fmt.Errorf("copy points to %s: %w", r.store, err)
	}
	return c.result(), err
}

type copying struct {
	r    *Repository
	from CopySource
	o    CopyOptions
	s    *Session

	mu   sync.Mutex // of pace
	pace *pace

	hashers *sync.Pool // of the source's ids; nil: it does not tell

	bytes  atomic.Int64
	done   CopyResult
	source map[PointID]*ledger.Point
}

func (c *copying) result() CopyResult {
	res := c.done
	res.Bytes = c.bytes.Load()
	return res
}

func (c *copying) run(ctx context.Context) error {
	if n := c.from.BlockSize(); n != c.r.config.BlockSize {
		return fmt.Errorf("its blocks have %d bytes, and those here %d: points are copied between repositories with one block size", n, c.r.config.BlockSize)
	}
	if err := c.r.Refresh(ctx); err != nil {
		return err
	}
	points, err := c.from.Points(ctx)
	if err != nil {
		return fmt.Errorf("list points: %w", err)
	}
	c.source = map[PointID]*ledger.Point{}
	wanted := map[PointID]bool{}
	for _, id := range c.o.Points {
		wanted[id] = true
	}
	for _, p := range points {
		if len(p.GetId()) != len(PointID{}) {
			return fmt.Errorf("%w: a point without an id", ErrDamaged)
		}
		c.source[PointID(p.GetId())] = p
	}
	for _, id := range c.o.Points {
		if c.source[id] == nil {
			return fmt.Errorf("point %s: %w", id, ErrGone)
		}
	}
	if c.s, err = c.r.Begin(ctx, BeginOptions{Purpose: "copy"}); err != nil {
		return err
	}
	for _, p := range points {
		id := PointID(p.GetId())
		if c.o.Points != nil && !wanted[id] {
			continue
		}
		if _, here := c.r.Point(id); here {
			c.done.Had++
			continue
		}
		err := c.point(ctx, p)
		switch {
		case err == nil:
			c.done.Points++
		case ctx.Err() != nil || errors.Is(err, ErrEnded) || errors.Is(err, errHere):
			return errors.Join(fmt.Errorf("point %s: %w", id, err), c.s.Close(context.WithoutCancel(ctx)))
		case errors.Is(err, ErrExists):
			c.done.Had++ // another has copied it meanwhile
		default:
			c.r.log.Warn("a point can not be copied", "point", id, "vm", p.GetVm(), "error", err)
			c.done.Failed = append(c.done.Failed, CopyFailure{Point: id, Err: err})
		}
		if c.o.Progress != nil {
			c.o.Progress(c.result())
		}
	}
	return c.s.Close(ctx)
}

// errHere marks an error of this repository: with it no point can be copied.
var errHere = errors.New("can not write")

// point copies one.
func (c *copying) point(ctx context.Context, p *ledger.Point) (err error) {
	id := PointID(p.GetId())
	src, err := c.from.Open(ctx, id)
	if err != nil {
		return fmt.Errorf("open it: %w", err)
	}
	defer func() {
		if cerr := src.Close(context.WithoutCancel(ctx)); cerr != nil {
			c.r.log.Warn("a point that was copied can not be closed", "point", id, "error", cerr)
		}
	}()
	text, err := src.Description(ctx)
	if err != nil {
		return fmt.Errorf("its description: %w", err)
	}
	out := proto.Clone(p).(*ledger.Point)
	out.Disks, out.Description, out.Added = nil, nil, 0
	var added Stats
	for _, d := range p.GetDisks() {
		w, err := c.disk(ctx, src, p, d)
		if err != nil {
			return fmt.Errorf("disk %q: %w", d.GetName(), err)
		}
		disk, st, err := w.Finish(ctx)
		if err != nil {
			return fmt.Errorf("%w: %w", errHere, err)
		}
		added.Stored += st.Stored
		added.Packed += st.Packed
		out.Disks = append(out.Disks, disk)
	}
	out.Added = added.Packed
	if len(text) > 0 {
		if out.Description, err = c.s.Describe(ctx, text); err != nil {
			return fmt.Errorf("%w: %w", errHere, err)
		}
	}
	if err := c.s.Commit(ctx, out); err != nil {
		if errors.Is(err, ErrExists) {
			return err
		}
		return fmt.Errorf("%w: %w", errHere, err)
	}
	c.done.Stored += added.Stored
	c.done.Packed += added.Packed
	return nil
}

// base finds an earlier point of a disk that is in both repositories: the last that was committed here.
func (c *copying) base(p *ledger.Point, d *ledger.Disk) (PointID, *ledger.Disk) {
	all := c.r.Points()
	for i := len(all) - 1; i >= 0; i-- {
		q := all[i]
		id := PointID(q.GetId())
		if q.GetVmUid() != p.GetVmUid() || q.GetVm() != p.GetVm() || c.source[id] == nil {
			continue
		}
		for _, e := range q.GetDisks() {
			if e.GetName() == d.GetName() {
				return id, e
			}
		}
	}
	return PointID{}, nil
}

// disk copies one disk.
func (c *copying) disk(ctx context.Context, src CopyPoint, p *ledger.Point, d *ledger.Disk) (*DiskWriter, error) {
	o := DiskOptions{Name: d.GetName(), Size: d.GetSize()}
	base, disk := c.base(p, d)
	extents, err := src.Changed(ctx, d.GetName(), base, d.GetName())
	if err != nil && disk != nil {
		// The source does not have the earlier point any more, or not to read: all of it then.
		c.r.log.Info("a disk is copied as a whole", "disk", d.GetName(), "error", err)
		disk = nil
		extents, err = src.Changed(ctx, d.GetName(), PointID{}, "")
	}
	if err != nil {
		return nil, err
	}
	if disk != nil {
		o.Parent, o.Incremental = disk, true
	}
	w, err := c.s.Disk(ctx, o)
	if err != nil && disk != nil && errors.Is(err, ErrGone) {
		// It was forgotten here meanwhile.
		if extents, err = src.Changed(ctx, d.GetName(), PointID{}, ""); err != nil {
			return nil, err
		}
		w, err = c.s.Disk(ctx, DiskOptions{Name: o.Name, Size: o.Size})
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errHere, err)
	}
	type part struct {
		block int64
		count int
	}
	var parts []part
	bs := int64(c.r.config.BlockSize)
	for _, e := range extents {
		first, end := e.Offset/bs, min((e.Offset+e.Length+bs-1)/bs, w.shape.blocks)
		if e.Zero && o.Incremental {
			if err := w.Zero(ctx, first, end-first); err != nil {
				return nil, fmt.Errorf("%w: %w", errHere, err)
			}
			continue
		}
		for first < end && !e.Zero {
			n := min(end-first, Fanout-first%Fanout)
			parts = append(parts, part{first, int(n)})
			first += n
		}
	}
	return w, each(ctx, c.o.Workers, len(parts), func(ctx context.Context, i int) error {
		return c.part(ctx, src, w, parts[i].block, parts[i].count)
	})
}

// part copies some blocks. What the source leaves out is a hole.
func (c *copying) part(ctx context.Context, src CopyPoint, w *DiskWriter, block int64, count int) error {
	var mu sync.Mutex
	got := make([]bool, count)
	err := src.Blocks(ctx, w.o.Name, block, count, func(n int64, id ID, codec pack.Codec, raw int, payload []byte) error {
		if n < block || n >= block+int64(count) {
			return fmt.Errorf("%w: block %d was not asked for", ErrDamaged, n)
		}
		mu.Lock()
		got[n-block] = true
		mu.Unlock()
		if id.Zero() {
			return c.here(w.Zero(ctx, n, 1))
		}
		c.mu.Lock()
		err := c.pace.spend(ctx, int64(raw))
		c.mu.Unlock()
		if err != nil {
			return err
		}
		c.bytes.Add(int64(raw))
		return w.putPacked(ctx, n, codec, raw, payload, func(plain []byte) error { return c.check(n, id, plain) }, c.room)
	})
	if err != nil {
		return err
	}
	for i, ok := range got {
		if !ok && w.o.Incremental {
			if err := c.here(w.Zero(ctx, block+int64(i), 1)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *copying) room(ctx context.Context, n int64) error {
	if c.o.Room == nil {
		return nil
	}
	return c.here(c.o.Room(ctx, n))
}

// check compares a block with its id in the source, if the source tells how.
func (c *copying) check(block int64, id ID, plain []byte) error {
	if c.hashers == nil {
		return nil
	}
	h := c.hashers.Get().(*keys.Hasher)
	defer c.hashers.Put(h)
	if h.Block(plain) != id {
		return fmt.Errorf("block %d: %w: it is not what its id says", block, ErrDamaged)
	}
	return nil
}

func (c *copying) here(err error) error {
	if err != nil {
		return fmt.Errorf("%w: %w", errHere, err)
	}
	return nil
}

// putPacked stores a block that is compressed already. Its id is made here, by this repository's key.
func (w *DiskWriter) putPacked(ctx context.Context, block int64, codec pack.Codec, raw int, payload []byte, check func(plain []byte) error, room func(context.Context, int64) error) error {
	r := w.s.r
	if raw != r.config.BlockSize || len(payload) > raw {
		return fmt.Errorf("disk %q: block %d comes with %d bytes for %d: %w", w.o.Name, block, len(payload), raw, ErrDamaged)
	}
	sc := r.scratch()
	defer r.release(sc)
	plain := sc.room(raw)
	if err := sc.decompress(plain, codec, payload); err != nil {
		return fmt.Errorf("disk %q: block %d: %w", w.o.Name, block, err)
	}
	if err := check(plain); err != nil {
		return fmt.Errorf("disk %q: %w", w.o.Name, err)
	}
	w.read.Add(int64(raw))
	id := sc.hasher.Block(plain)
	if have, err := w.PutID(ctx, block, id); have || err != nil {
		return err
	}
	if err := room(ctx, int64(len(payload))); err != nil {
		return err
	}
	return w.append(ctx, block, id, codec, raw, payload)
}
