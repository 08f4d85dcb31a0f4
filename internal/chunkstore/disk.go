package chunkstore

import (
	"context"
	"fmt"
	"io"
	"sync"

	"drover/internal/chunkstore/ledger"
	"drover/internal/chunkstore/pack"
)

const (
	// Of a disk, blocks kept decompressed for small reads.
	cachedBytes = 4 << 20
	// aheadBytes is how much of a disk a small read brings along, if it stands together in a pack.
	aheadBytes = 512 << 10
	// A read from here on goes past the cache.
	largeRead = 1 << 20
)

// Extent is a part of a disk, in bytes.
type Extent struct {
	Offset, Length int64
	// Zero: it reads as zeros.
	Zero bool
}

// Disk reads a disk of a point. It is for concurrent use, and good while its session is open.
type Disk struct {
	s    *Session
	t    *tree
	keep *cache[int64, []byte] // blocks; nil: zeros
}

// Open opens a disk of a point that there is.
func (s *Session) Open(_ context.Context, d *ledger.Disk) (*Disk, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	if err := s.readable(d); err != nil {
		return nil, err
	}
	t, err := s.r.tree(d)
	if err != nil {
		return nil, err
	}
	return &Disk{s: s, t: t, keep: newCache[int64, []byte](max(4, cachedBytes/s.r.config.BlockSize))}, nil
}

// Size is in bytes.
func (d *Disk) Size() int64 { return d.t.size }

// Name is the disk's, in its point.
func (d *Disk) Name() string { return d.t.name }

func (d *Disk) fail(err error) error { return fmt.Errorf("disk %q: %w", d.t.name, err) }

// ReadAt fills p from off; beyond the end are zeros. After an error p holds nothing of worth.
func (d *Disk) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := d.s.check(); err != nil {
		return err
	}
	if off < 0 {
		return fmt.Errorf("disk %q: read at %d", d.t.name, off)
	}
	if over := off + int64(len(p)) - d.t.size; over > 0 {
		n := max(0, int64(len(p))-over)
		clear(p[n:])
		p = p[:n]
	}
	if len(p) >= largeRead {
		return d.readLarge(ctx, p, off)
	}
	bs := d.t.blockSize
	for len(p) > 0 {
		block := off / bs
		data, err := d.block(ctx, block)
		if err != nil {
			return d.fail(err)
		}
		from := off - block*bs
		n := min(len(p), int(bs-from))
		if data == nil {
			clear(p[:n])
		} else {
			copy(p[:n], data[from:])
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// block returns a block's bytes, nil: zeros. What is returned is not changed by anyone.
func (d *Disk) block(ctx context.Context, block int64) ([]byte, error) {
	if b, ok := d.keep.get(block); ok {
		return b, nil
	}
	leaf, err := d.t.leaf(ctx, block/Fanout)
	if err != nil {
		return nil, err
	}
	slot := int(block % Fanout)
	if leaf == nil || leaf.ids[slot].Zero() {
		return nil, nil
	}
	// What follows on the disk and in the pack comes along for little.
	wants := []want{{block: block, id: leaf.ids[slot], at: leaf.places[slot]}}
	for k := slot + 1; k < leaf.n && len(wants) < aheadBytes/int(d.t.blockSize); k++ {
		last := wants[len(wants)-1].at
		if at := leaf.places[k]; leaf.ids[k].Zero() || at.pack != last.pack || at.record <= last.record || at.record-last.record > 4 {
			break
		}
		if _, ok := d.keep.get(block + int64(k-slot)); ok {
			break
		}
		wants = append(wants, want{block: block + int64(k-slot), id: leaf.ids[k], at: leaf.places[k]})
	}
	runs, err := d.s.r.plan(ctx, wants)
	if err != nil {
		return nil, err
	}
	var found []byte
	buf := d.s.r.runs.Get().(*runBuffer)
	defer d.s.r.runs.Put(buf)
	for i := range runs {
		err := d.s.r.one(ctx, &runs[i], buf, func(_ context.Context, o *run, buf *runBuffer) error {
			return d.s.r.decode(o, buf, func(first int64, data []byte) error {
				for k := int64(0); len(data) > 0; k++ {
					b := append([]byte(nil), data[:d.t.blockSize]...)
					data = data[d.t.blockSize:]
					d.keep.put(first+k, b)
					if first+k == block {
						found = b
					}
				}
				return nil
			})
		})
		if err != nil {
			return nil, err
		}
	}
	if found == nil {
		return nil, fmt.Errorf("at %d: %w: the block was not found", block*d.t.blockSize, ErrDamaged)
	}
	return found, nil
}

// readLarge reads past the cache.
func (d *Disk) readLarge(ctx context.Context, p []byte, off int64) error {
	clear(p)
	bs := d.t.blockSize
	first, end := off/bs, (off+int64(len(p))+bs-1)/bs
	return d.blocks(ctx, first, end-first, 2, func(_ context.Context, o *run, buf *runBuffer) error {
		return d.s.r.decode(o, buf, func(block int64, data []byte) error {
			at := block*bs - off
			if at < 0 {
				data, at = data[-at:], 0
			}
			copy(p[at:], data)
			return nil
		})
	})
}

// blocks fetches the blocks from first on that are not zeros.
func (d *Disk) blocks(ctx context.Context, first, count int64, workers int, work func(context.Context, *run, *runBuffer) error) error {
	// A window of 8 leaves is 128 MiB of disk of 64 KiB blocks: enough to find neighbours in packs.
	const window = 8 * Fanout
	err := d.s.r.fetch(ctx, workers, func(yield func([]run) bool) error {
		var wants []want
		for block, end := first, first+count; block < end; {
			wants = wants[:0]
			for stop := min(end, (block/window+1)*window); block < stop; {
				next := min(stop, (block/Fanout+1)*Fanout)
				leaf, err := d.t.leaf(ctx, block/Fanout)
				if err != nil {
					return err
				}
				for ; leaf != nil && block < next; block++ {
					if slot := block % Fanout; !leaf.ids[slot].Zero() {
						wants = append(wants, want{block: block, id: leaf.ids[slot], at: leaf.places[slot]})
					}
				}
				block = next
			}
			runs, err := d.s.r.plan(ctx, wants)
			if err != nil {
				return err
			}
			if !yield(runs) {
				return nil
			}
		}
		return nil
	}, work)
	if err != nil {
		return d.fail(err)
	}
	return nil
}

// Blocks calls each with the blocks that are not zeros, as stored: opened, but neither decompressed nor hashed, which is for who gets them.
// Calls come in any order, one at a time; payload is each's until it returns.
func (d *Disk) Blocks(ctx context.Context, block int64, count int, each func(block int64, id ID, codec pack.Codec, raw int, payload []byte) error) error {
	if err := d.s.check(); err != nil {
		return err
	}
	if block < 0 || count < 0 {
		return fmt.Errorf("disk %q: no blocks %d+%d", d.t.name, block, count)
	}
	var mu sync.Mutex
	return d.blocks(ctx, block, min(int64(count), d.t.blocks-block), 2, func(_ context.Context, o *run, buf *runBuffer) error {
		mu.Lock()
		defer mu.Unlock()
		var e *pack.Entry
		var payload []byte
		for k := range o.wants {
			// One record may be wanted several times; opening it works once, in place.
			if k == 0 || o.where[k] != o.where[k-1] {
				var err error
				if e, payload, err = o.opened(k, buf); err != nil {
					return fmt.Errorf("at %d: %w", o.wants[k].block*d.t.blockSize, err)
				}
			}
			if err := each(o.wants[k].block, o.wants[k].id, e.Codec, int(e.Raw), payload); err != nil {
				return err
			}
		}
		return nil
	})
}

// RestoreOptions are for Restore.
type RestoreOptions struct {
	// The part to restore; Length 0: to the end.
	Offset, Length int64
	// Workers is how many reads are in flight; 0: 4. Over a slow link 16 are better.
	Workers int
	// Zero is told what is zeros; nil: the sink is blank already.
	Zero func(off, n int64) error
}

// Restore writes the disk to sink, at the offsets that it has there: only bytes that were checked, from several goroutines, in no order, in
// pieces of whole blocks where it can. Zeros are not written.
func (d *Disk) Restore(ctx context.Context, sink io.WriterAt, o RestoreOptions) error {
	if err := d.s.check(); err != nil {
		return err
	}
	if o.Workers <= 0 {
		o.Workers = 4
	}
	if o.Length == 0 {
		o.Length = d.t.size - o.Offset
	}
	end := min(o.Offset+o.Length, d.t.size)
	if o.Offset < 0 || o.Offset > d.t.size || o.Length < 0 {
		return fmt.Errorf("disk %q: restore of %d+%d: it has %d bytes", d.t.name, o.Offset, o.Length, d.t.size)
	}
	if o.Zero != nil {
		extents, err := d.Extents(ctx, o.Offset, end-o.Offset)
		if err != nil {
			return err
		}
		for _, x := range extents {
			if x.Zero {
				if err := o.Zero(x.Offset, x.Length); err != nil {
					return d.fail(err)
				}
			}
		}
	}
	bs := d.t.blockSize
	first := o.Offset / bs
	return d.blocks(ctx, first, (end+bs-1)/bs-first, o.Workers, func(_ context.Context, r *run, buf *runBuffer) error {
		return d.s.r.decode(r, buf, func(block int64, data []byte) error {
			at := block * bs
			if cut := at + int64(len(data)) - end; cut > 0 {
				data = data[:int64(len(data))-cut]
			}
			if at < o.Offset {
				data, at = data[o.Offset-at:], o.Offset
			}
			_, err := sink.WriteAt(data, at)
			return err
		})
	})
}

// Extents tells what [off, off+n) is made of, in order and without gaps. It ends with the disk.
func (d *Disk) Extents(ctx context.Context, off, n int64) ([]Extent, error) {
	return d.walk(ctx, off, n, func(i int64) (func(slot int64) (differs, zero bool), error) {
		leaf, err := d.t.leaf(ctx, i)
		return func(slot int64) (bool, bool) { return true, leaf == nil || leaf.ids[slot].Zero() }, err
	})
}

// Changed tells what may differ from another disk of the repository. What lies beyond that one's end differs from zeros.
func (d *Disk) Changed(ctx context.Context, other *Disk) ([]Extent, error) {
	return d.walk(ctx, 0, d.t.size, func(i int64) (func(slot int64) (differs, zero bool), error) {
		id, at, err := d.t.entry(ctx, 0, i)
		if err != nil {
			return nil, err
		}
		var was ID
		if i < other.t.pages(0) {
			if was, _, err = other.t.entry(ctx, 0, i); err != nil {
				return nil, err
			}
		}
		if id == was {
			return nil, nil
		}
		var leaf, old *page
		if !id.Zero() {
			if leaf, err = d.t.load(ctx, 0, i, id, at); err != nil {
				return nil, err
			}
		}
		if old, err = other.t.leaf(ctx, i); err != nil {
			return nil, err
		}
		return func(slot int64) (bool, bool) {
			var a, b ID
			if leaf != nil {
				a = leaf.ids[slot]
			}
			if old != nil && slot < int64(old.n) {
				b = old.ids[slot]
			}
			return a != b, a.Zero()
		}, nil
	})
}

// walk makes extents of a part of the disk. of tells about a leaf's blocks; nil: none of them matters.
func (d *Disk) walk(ctx context.Context, off, n int64, of func(leaf int64) (func(slot int64) (take, zero bool), error)) ([]Extent, error) {
	if err := d.s.check(); err != nil {
		return nil, err
	}
	end := min(off+n, d.t.size)
	if off < 0 || n < 0 {
		return nil, fmt.Errorf("disk %q: no part %d+%d", d.t.name, off, n)
	}
	bs := d.t.blockSize
	var out []Extent
	for block := off / bs; block*bs < end; {
		stop := (block/Fanout + 1) * Fanout
		slots, err := of(block / Fanout)
		if err != nil {
			return nil, d.fail(err)
		}
		for ; slots != nil && block < stop && block*bs < end; block++ {
			take, zero := slots(block % Fanout)
			if !take {
				continue
			}
			from, to := max(off, block*bs), min(end, (block+1)*bs)
			if k := len(out) - 1; k >= 0 && out[k].Zero == zero && out[k].Offset+out[k].Length == from {
				out[k].Length += to - from
			} else {
				out = append(out, Extent{Offset: from, Length: to - from, Zero: zero})
			}
		}
		block = stop
	}
	return out, nil
}
