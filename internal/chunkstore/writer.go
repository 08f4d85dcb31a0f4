package chunkstore

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"drover/internal/chunkstore/ledger"
	"drover/internal/chunkstore/pack"
)

// openLeaves is how many leaves of a disk are being written at once: 2,048 of them are 32 GiB of disk and 28 MB of memory. Who
// writes all over a larger disk makes the oldest be written, and read again when it is written to once more.
const openLeaves = 2048

// DiskOptions are for Session.Disk.
type DiskOptions struct {
	Name string
	Size int64 // bytes
	// Parent is a disk of a point that there is; nil: none. Blocks and pages that are as in it are not stored.
	Parent *ledger.Disk
	// What is not written is as in the parent. Without it, it is zeros.
	Incremental bool
}

// Stats are of one disk that was written.
type Stats struct {
	Read   int64 // bytes given to Put
	Zero   int64 // of them, in blocks of zeros
	Stored int64 // bytes that the repository lacked, before compression
	Packed int64 // the same, as stored
	Pages  int64 // bytes of pages that were stored
}

// DiskWriter makes a disk of blocks, in any order. Put and PutID and PutStored are for concurrent use; they have all returned before Finish.
type DiskWriter struct {
	s      *Session
	o      DiskOptions
	shape  shape
	parent *tree

	read, zero, stored, packed, paged atomic.Int64

	mu    sync.Mutex
	open  map[int64]*leaf
	order []int64 // of open, oldest first
	done  map[int64]entry
}

// entry is an id, and where its record is. Zero: a hole.
type entry struct {
	id ID
	at place
}

// leaf is a leaf being written.
type leaf struct {
	index int64

	mu    sync.Mutex // also held while its beginnings are read: others wait for them
	base  *page      // the parent's; nil: zeros
	gone  bool       // it was written away: take it again
	page  page
	count int
}

// Disk begins a disk.
func (s *Session) Disk(ctx context.Context, o DiskOptions) (*DiskWriter, error) {
	if err := s.writable(); err != nil {
		return nil, err
	}
	bs := int64(s.r.config.BlockSize)
	if o.Size < 0 || o.Size > maxDisk {
		return nil, fmt.Errorf("disk %q: a size of %d bytes is impossible", o.Name, o.Size)
	}
	w := &DiskWriter{s: s, o: o, shape: newShape(o.Size, bs), open: map[int64]*leaf{}, done: map[int64]entry{}}
	if o.Parent != nil {
		if err := s.readable(o.Parent); err != nil {
			return nil, fmt.Errorf("disk %q, the parent: %w", o.Name, err)
		}
		var err error
		if w.parent, err = s.r.tree(o.Parent); err != nil {
			return nil, fmt.Errorf("the parent: %w", err)
		}
	} else if o.Incremental {
		return nil, fmt.Errorf("disk %q: incremental to nothing", o.Name)
	}
	if err := s.r.fillIndex(ctx); err != nil {
		return nil, err
	}
	return w, nil
}

// readable makes sure that the log knows the disk, of a point that stays readable while the session is open.
func (s *Session) readable(d *ledger.Disk) error {
	known := len(d.GetRoot().GetId()) == 0
	s.r.ledger.View(func(st *ledger.State) {
		of := func(p *ledger.PointState) {
			if p.Forgotten != 0 && p.Forgotten < s.began {
				return
			}
			for _, k := range p.Point.GetDisks() {
				if string(k.GetRoot().GetId()) == string(d.GetRoot().GetId()) && string(k.GetRoot().GetPack()) == string(d.GetRoot().GetPack()) && k.GetSize() == d.GetSize() {
					known = true
				}
			}
		}
		for _, p := range st.Points {
			if known {
				return
			}
			of(p)
		}
		for _, p := range st.Forgotten {
			of(p)
		}
	})
	if !known {
		return fmt.Errorf("disk %q of no point that there is: %w", d.GetName(), ErrGone)
	}
	return nil
}

// Size is the disk's, in bytes.
func (w *DiskWriter) Size() int64 { return w.o.Size }

// take returns the leaf of a block, with its parent's read, and locked.
func (w *DiskWriter) take(ctx context.Context, block int64) (*leaf, error) {
	if block < 0 || block >= w.shape.blocks {
		return nil, fmt.Errorf("disk %q: block %d is beyond its %d", w.o.Name, block, w.shape.blocks)
	}
	i := block / Fanout
	for {
		w.mu.Lock()
		l, ok := w.open[i]
		var old *leaf
		var again *entry
		if !ok {
			l = &leaf{index: i}
			n, span := w.shape.entries(0, i)
			l.page.n, l.page.span = n, span
			w.open[i] = l
			w.order = append(w.order, i)
			if e, ok := w.done[i]; ok {
				again = &e
				delete(w.done, i)
			}
			l.mu.Lock() // until its contents are what they were
			if len(w.open) > openLeaves {
				old = w.oldest(i)
			}
		}
		w.mu.Unlock()
		if ok {
			l.mu.Lock()
			if l.gone {
				l.mu.Unlock()
				continue
			}
			return l, nil
		}
		if err := w.load(ctx, l, again); err != nil {
			l.gone = true
			l.mu.Unlock()
			w.mu.Lock()
			delete(w.open, i)
			if again != nil {
				w.done[i] = *again
			}
			w.mu.Unlock()
			return nil, err
		}
		if old == nil {
			return l, nil
		}
		// Locked one after the other: two who each hold one leaf and want the other's would wait for ever.
		l.mu.Unlock()
		old.mu.Lock()
		var err error
		if !old.gone {
			err = w.finish(ctx, old)
		}
		old.mu.Unlock()
		if err != nil {
			return nil, err
		}
	}
}

// oldest is the leaf that was begun first. The caller holds the lock.
func (w *DiskWriter) oldest(but int64) *leaf {
	for len(w.order) > 0 {
		i := w.order[0]
		w.order = w.order[1:]
		if l := w.open[i]; l != nil && i != but {
			return l
		}
	}
	return nil
}

// load reads what a leaf begins with.
func (w *DiskWriter) load(ctx context.Context, l *leaf, again *entry) error {
	if w.parent != nil {
		var err error
		if l.base, err = w.parent.leaf(ctx, l.index); err != nil {
			return err
		}
	}
	if again == nil {
		return nil
	}
	// It was written away: what stands there is all of it.
	if !again.id.Zero() {
		p, ok := w.s.r.pages.get(*again)
		if !ok {
			if err := w.s.meta.flush(); err != nil {
				return err
			}
			var err error
			if p, err = w.s.ownPage(ctx, *again); err != nil {
				return err
			}
		}
		l.page = *p
	}
	for i := range l.page.n {
		l.page.present[i/64] |= 1 << (i % 64)
	}
	l.count = l.page.n
	return nil
}

// set puts an entry into a leaf that the caller has taken, and gives the leaf back.
func (w *DiskWriter) set(ctx context.Context, l *leaf, slot int64, id ID, at place) error {
	defer l.mu.Unlock()
	l.page.ids[slot], l.page.places[slot] = id, at
	if bit := uint64(1) << (slot % 64); l.page.present[slot/64]&bit == 0 {
		l.page.present[slot/64] |= bit
		l.count++
	}
	if l.count == l.page.n {
		return w.finish(ctx, l)
	}
	return nil
}

// finish writes a leaf away. The caller holds its lock.
func (w *DiskWriter) finish(ctx context.Context, l *leaf) error {
	if w.o.Incremental && l.base != nil {
		for i := range min(l.page.n, l.base.n) {
			if l.page.present[i/64]&(1<<(i%64)) == 0 {
				l.page.ids[i], l.page.places[i] = l.base.ids[i], l.base.places[i]
			}
		}
	}
	e, err := w.store(ctx, &l.page, 0, l.index)
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.done[l.index] = e
	delete(w.open, l.index)
	w.mu.Unlock()
	l.gone = true
	return nil
}

// store writes a page, unless it is a hole or as in the parent.
func (w *DiskWriter) store(ctx context.Context, p *page, level int, i int64) (entry, error) {
	if p.hole() {
		return entry{}, nil
	}
	sc := w.s.r.scratch()
	defer w.s.r.release(sc)
	id := p.id(sc.hasher)
	if w.parent != nil && level <= w.parent.level && i < w.parent.pages(level) {
		pid, at, err := w.parent.entry(ctx, level, i)
		if err != nil {
			return entry{}, err
		}
		if pid == id && w.sameAsParent(ctx, p, level, i, pid, at) {
			return entry{id, at}, nil
		}
	}
	sc.packed = p.encode(sc.packed[:0])
	at, n, err := w.s.meta.append(ctx, id, pack.Raw, len(sc.packed), sc.packed)
	if err != nil {
		return entry{}, fmt.Errorf("disk %q: store a page: %w", w.o.Name, err)
	}
	w.paged.Add(int64(n))
	return entry{id, at}, nil
}

// sameAsParent reports whether a page with the id of the parent's also has its blocks in the same places. If not, some were stored anew, because
// the old place is damaged or condemned: then the new ones count, and the page is stored anew too. So is one that can not be read.
func (w *DiskWriter) sameAsParent(ctx context.Context, p *page, level int, i int64, id ID, at place) bool {
	base, err := w.parent.load(ctx, level, i, id, at)
	if err != nil || base.n != p.n {
		return false
	}
	for k := range p.n {
		if !p.ids[k].Zero() && p.places[k] != base.places[k] {
			return false
		}
	}
	return true
}

// Put stores a block: block size bytes, but for the disk's last, which may be shorter. The buffer is the caller's again on return.
func (w *DiskWriter) Put(ctx context.Context, block int64, data []byte) error {
	r := w.s.r
	bs := r.config.BlockSize
	if len(data) != bs && (len(data) > bs || block != w.shape.blocks-1 || int64(len(data)) != w.o.Size-block*int64(bs)) {
		return fmt.Errorf("disk %q: block %d has %d bytes, not %d", w.o.Name, block, len(data), bs)
	}
	w.read.Add(int64(len(data)))
	if zeros(data) {
		w.zero.Add(int64(len(data)))
		l, err := w.take(ctx, block)
		if err != nil {
			return err
		}
		return w.set(ctx, l, block%Fanout, ID{}, place{})
	}
	sc := r.scratch()
	defer r.release(sc)
	if len(data) < bs {
		data = sc.pad(data, bs)
	}
	id := sc.hasher.Block(data)
	if have, err := w.PutID(ctx, block, id); have || err != nil {
		return err
	}
	codec, payload := sc.compress(data)
	return w.append(ctx, block, id, codec, len(data), payload)
}

func (sc *scratch) pad(data []byte, size int) []byte {
	if cap(sc.plain) < size {
		sc.plain = make([]byte, size)
	}
	plain := sc.plain[:size]
	clear(plain[copy(plain, data):])
	return plain
}

func (w *DiskWriter) append(ctx context.Context, block int64, id ID, codec pack.Codec, raw int, payload []byte) error {
	at, n, err := w.s.data.append(ctx, id, codec, raw, payload)
	if err != nil {
		return fmt.Errorf("disk %q: store block %d: %w", w.o.Name, block, err)
	}
	if n > 0 {
		w.stored.Add(int64(raw))
		w.packed.Add(int64(n))
	}
	l, err := w.take(ctx, block)
	if err != nil {
		return err
	}
	return w.set(ctx, l, block%Fanout, id, at)
}

// PutID takes a block that the repository has, and says whether it has it. A zero id is a hole.
func (w *DiskWriter) PutID(ctx context.Context, block int64, id ID) (have bool, err error) {
	l, err := w.take(ctx, block)
	if err != nil {
		return false, err
	}
	slot := block % Fanout
	if id.Zero() {
		return true, w.set(ctx, l, slot, ID{}, place{})
	}
	if l.base != nil && slot < int64(l.base.n) && l.base.ids[slot] == id && w.s.r.live(l.base.places[slot].pack) {
		return true, w.set(ctx, l, slot, id, l.base.places[slot])
	}
	l.mu.Unlock()
	at, ok := w.s.find(id)
	if !ok {
		return false, nil
	}
	if l, err = w.take(ctx, block); err != nil {
		return false, err
	}
	return true, w.set(ctx, l, slot, id, at)
}

// live reports whether a pack may be referred to anew.
func (r *Repository) live(id PackID) bool {
	p, ok := r.ledger.Pack(id)
	return ok && p.Live()
}

// find looks for a block: among those that the session wrote lately, and in the index.
func (s *Session) find(id ID) (place, bool) {
	if at, ok := s.data.lookup(id); ok {
		return at, true
	}
	x := s.r.currentIndex()
	if x == nil {
		return place{}, false
	}
	p, record, ok, err := x.Lookup(id)
	if err != nil || !ok || !s.r.live(p) {
		return place{}, false // stored anew: that costs room, never a block
	}
	return place{pack: p, record: record}, true
}

// Has reports whether the repository has a block.
func (s *Session) Has(id ID) bool {
	_, ok := s.find(id)
	return ok
}

// PutStored takes a block compressed by another. It is decompressed and hashed, and refused if it is not the one that id names.
func (w *DiskWriter) PutStored(ctx context.Context, block int64, id ID, codec pack.Codec, raw int, payload []byte) error {
	r := w.s.r
	if raw != r.config.BlockSize || len(payload) > raw {
		return fmt.Errorf("disk %q: block %d comes with %d bytes for %d: %w", w.o.Name, block, len(payload), raw, ErrDamaged)
	}
	sc := r.scratch()
	defer r.release(sc)
	plain := sc.pad(nil, raw)
	if err := sc.decompress(plain, codec, payload); err != nil {
		return fmt.Errorf("disk %q: block %d: %w", w.o.Name, block, err)
	}
	if sc.hasher.Block(plain) != id {
		return fmt.Errorf("disk %q: block %d: %w: it is not what its id says", w.o.Name, block, ErrDamaged)
	}
	w.read.Add(int64(raw))
	if have, err := w.PutID(ctx, block, id); have || err != nil {
		return err
	}
	return w.append(ctx, block, id, codec, raw, payload)
}

// ParentIDs returns the ids of count blocks of the parent. Beyond its end, and without a parent, they are zero.
func (w *DiskWriter) ParentIDs(ctx context.Context, block int64, count int) ([]ID, error) {
	if block < 0 || count < 0 || count > 1<<20 {
		return nil, fmt.Errorf("disk %q: no blocks %d+%d", w.o.Name, block, count)
	}
	ids := make([]ID, count)
	if w.parent == nil {
		return ids, nil
	}
	for i := 0; i < count && block+int64(i) < w.parent.blocks; {
		at := block + int64(i)
		n := min(count-i, int(Fanout-at%Fanout))
		p, err := w.parent.leaf(ctx, at/Fanout)
		if err != nil {
			return nil, err
		}
		if p != nil {
			slot := int(at % Fanout)
			copy(ids[i:i+n], p.ids[slot:min(slot+n, p.n)])
		}
		i += n
	}
	return ids, nil
}

// Zero makes count blocks zeros.
func (w *DiskWriter) Zero(ctx context.Context, block, count int64) error {
	if block < 0 || count < 0 || count > w.shape.blocks || block > w.shape.blocks-count {
		return fmt.Errorf("disk %q: no blocks %d+%d", w.o.Name, block, count)
	}
	end := block + count
	touched := w.touched(count)
	for block < end {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if count >= wideLeaves*Fanout {
			if next := w.hole(ctx, block, end, touched); next > block {
				block = next
				continue
			}
		}
		i := block / Fanout
		n, _ := w.shape.entries(0, i)
		next := min(end, (i+1)*Fanout)
		if block == i*Fanout && next-block >= int64(n) {
			w.mu.Lock()
			if w.open[i] == nil {
				if w.o.Incremental || w.done[i] != (entry{}) {
					w.done[i] = entry{}
				}
				block = next
			}
			w.mu.Unlock()
			if block == next {
				continue
			}
		}
		for ; block < next; block++ {
			l, err := w.take(ctx, block)
			if err != nil {
				return err
			}
			if err := w.set(ctx, l, block%Fanout, ID{}, place{}); err != nil {
				return err
			}
		}
	}
	return nil
}

// wideLeaves is from how many leaves on zeros are looked at as a whole: a disk of many terabytes with nothing in it costs neither time nor memory.
const wideLeaves = 16

// touched lists the leaves that this writer has an opinion of, in order, if as many blocks are worth it.
func (w *DiskWriter) touched(count int64) []int64 {
	if count < wideLeaves*Fanout {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	list := make([]int64, 0, len(w.open)+len(w.done))
	for i := range w.open {
		list = append(list, i)
	}
	for i := range w.done {
		list = append(list, i)
	}
	slices.Sort(list)
	return list
}

// hole is how far from block on, up to end, the disk is zeros already: nothing was written there, and the parent has nothing.
func (w *DiskWriter) hole(ctx context.Context, block, end int64, touched []int64) int64 {
	if block%Fanout != 0 {
		return block
	}
	i := block / Fanout
	limit := (end + Fanout - 1) / Fanout
	if k, _ := slices.BinarySearch(touched, i); k < len(touched) {
		limit = min(limit, touched[k])
	}
	if limit <= i {
		return block
	}
	if w.o.Incremental && i < w.parent.pages(0) {
		whole := false
		for level := w.parent.level; level >= 0 && !whole; level-- {
			leaves := pageBlocks(level) / Fanout
			id, _, err := w.parent.entry(ctx, level, i/leaves)
			if err != nil {
				return block // one that can not be read is not asked
			}
			if whole = id.Zero(); whole {
				limit = min(limit, (i/leaves+1)*leaves)
			}
		}
		if !whole {
			return block
		}
	}
	return min(limit*Fanout, end)
}

// Finish writes what is left of the disk's pages, and returns the disk for a point.
func (w *DiskWriter) Finish(ctx context.Context) (*ledger.Disk, Stats, error) {
	w.mu.Lock()
	var left []*leaf
	for _, l := range w.open {
		left = append(left, l)
	}
	w.mu.Unlock()
	slices.SortFunc(left, func(a, b *leaf) int { return int(a.index - b.index) })
	for _, l := range left {
		l.mu.Lock()
		var err error
		if !l.gone {
			err = w.finish(ctx, l)
		}
		l.mu.Unlock()
		if err != nil {
			return nil, Stats{}, err
		}
	}
	dirty := make([]int64, 0, len(w.done))
	for i := range w.done {
		dirty = append(dirty, i)
	}
	slices.Sort(dirty)
	var root entry
	if w.shape.blocks > 0 {
		var err error
		if root, err = w.build(ctx, w.shape.level, 0, dirty); err != nil {
			return nil, Stats{}, err
		}
	}
	d := &ledger.Disk{Name: w.o.Name, Size: w.o.Size, Level: int32(w.shape.level)}
	if !root.id.Zero() {
		d.Root = root.at.ledger(root.id)
	}
	return d, Stats{Read: w.read.Load(), Zero: w.zero.Load(), Stored: w.stored.Load(), Packed: w.packed.Load(), Pages: w.paged.Load()}, nil
}

// build makes page i of a level. dirty are the leaves below it that were written.
func (w *DiskWriter) build(ctx context.Context, level int, i int64, dirty []int64) (entry, error) {
	n, span := w.shape.entries(level, i)
	if len(dirty) == 0 {
		e, whole, err := w.inherit(ctx, level, i, n, span)
		if whole || err != nil {
			return e, err
		}
	}
	if level == 0 {
		if len(dirty) > 0 {
			return w.done[i], nil
		}
		return w.partial(ctx, i, n, span)
	}
	p := &page{level: level, n: n, span: span}
	below := pageBlocks(level-1) / Fanout // leaves under one entry
	for slot := range n {
		child := i*Fanout + int64(slot)
		k, _ := slices.BinarySearch(dirty, (child+1)*below)
		e, err := w.build(ctx, level-1, child, dirty[:k])
		if err != nil {
			return entry{}, err
		}
		dirty = dirty[k:]
		p.ids[slot], p.places[slot] = e.id, e.at
	}
	return w.store(ctx, p, level, i)
}

// inherit takes a page that nobody wrote to: a hole, or the parent's if it is of the same shape.
func (w *DiskWriter) inherit(ctx context.Context, level int, i int64, n int, span int64) (e entry, whole bool, err error) {
	if !w.o.Incremental {
		return entry{}, true, nil
	}
	if level > w.parent.level {
		return entry{}, false, nil
	}
	if i >= w.parent.pages(level) {
		return entry{}, true, nil
	}
	if pn, ps := w.parent.entries(level, i); pn != n || ps != span {
		return entry{}, false, nil
	}
	e.id, e.at, err = w.parent.entry(ctx, level, i)
	return e, true, err
}

// partial makes a leaf that nobody wrote to, where the disk's end moved.
func (w *DiskWriter) partial(ctx context.Context, i int64, n int, span int64) (entry, error) {
	base, err := w.parent.leaf(ctx, i)
	if err != nil || base == nil {
		return entry{}, err
	}
	p := &page{n: n, span: span}
	for slot := range min(n, base.n) {
		p.ids[slot], p.places[slot] = base.ids[slot], base.places[slot]
	}
	return w.store(ctx, p, 0, i)
}
