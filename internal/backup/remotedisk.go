package backup

import (
	"context"
	"fmt"
	"iter"
	"slices"

	"drover/internal/nbd"
)

// NBD is an export as Source and as Sink. The client stays the caller's.
type NBD struct{ Client *nbd.Client }

// Size in bytes.
func (d NBD) Size() int64 { return d.Client.Size() }

// ReadAt fills p from off.
func (d NBD) ReadAt(ctx context.Context, p []byte, off int64) error {
	return d.Client.ReadAt(ctx, p, off)
}

// WriteAt writes p at off.
func (d NBD) WriteAt(ctx context.Context, p []byte, off int64) error {
	return d.Client.WriteAt(ctx, p, off)
}

// Zero makes a range zeros, and lets the server free it.
func (d NBD) Zero(ctx context.Context, off, n int64) error {
	for n > 0 {
		part := min(n, window)
		if err := d.Client.Zero(ctx, off, part, true); err != nil {
			return err
		}
		off += part
		n -= part
	}
	return nil
}

// Flush makes what was written durable at the server.
func (d NBD) Flush(ctx context.Context) error { return d.Client.Flush(ctx) }

// Extents asks for what is allocated, if the client negotiated that; else all is data.
func (d NBD) Extents(ctx context.Context, off, n int64) ([]Extent, error) {
	if !slices.Contains(d.Client.Contexts(), nbd.Allocation) {
		return []Extent{{Offset: off, Length: n}}, nil
	}
	list, err := d.Client.Extents(ctx, nbd.Allocation, off, n)
	if err != nil {
		return nil, err
	}
	out := make([]Extent, 0, len(list))
	for _, e := range list {
		out = append(out, Extent{Offset: e.Offset, Length: e.Length, Zero: e.Flags&nbd.Zero != 0})
	}
	return out, nil
}

// Dirty is what a bitmap of the export says has changed, in order; name is without its prefix. The client was dialled with its context.
func (d NBD) Dirty(ctx context.Context, name string) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		for off := int64(0); off < d.Size(); off += window {
			n := min(window, d.Size()-off)
			list, err := d.Client.Extents(ctx, nbd.DirtyBitmap+name, off, n)
			if err != nil {
				yield(Extent{}, fmt.Errorf("bitmap %s from %d: %w", name, off, err))
				return
			}
			for _, e := range list {
				if e.Flags&nbd.Dirty != 0 && !yield(Extent{Offset: e.Offset, Length: e.Length}, nil) {
					return
				}
			}
		}
	}
}
