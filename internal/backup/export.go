package backup

import (
	"context"

	"drover/internal/nbd"
)

// Export lends a disk of a restore point to QEMU and others over NBD, read-only. Its size is rounded up to 512 bytes, as drives are.
type Export struct {
	*Cached
	r DiskReader
}

// NewExport serves r, which stays the caller's. ctx bounds what it reads by itself; memory is as in NewCached.
func NewExport(ctx context.Context, r DiskReader, memory int64) *Export {
	return &Export{Cached: NewCached(ctx, r, memory), r: r}
}

// Size in bytes.
func (e *Export) Size() int64 { return (e.r.Size() + 511) &^ 511 }

// Contexts are what it can tell of itself.
func (e *Export) Contexts() []string { return []string{nbd.Allocation} }

// Extents tells what is data.
func (e *Export) Extents(ctx context.Context, _ string, off, n int64) ([]nbd.Extent, error) {
	n = min(n, window)
	var list []Extent
	if in := min(n, e.r.Size()-off); in > 0 {
		var err error
		if list, err = e.r.Extents(ctx, off, in); err != nil {
			return nil, err
		}
	}
	out := make([]nbd.Extent, 0, len(list)+1)
	at := off
	for _, x := range list {
		flags := uint32(0)
		if x.Zero {
			flags = nbd.Hole | nbd.Zero
		}
		out = append(out, nbd.Extent{Offset: x.Offset, Length: x.Length, Flags: flags})
		at = x.Offset + x.Length
	}
	if at < off+n {
		out = append(out, nbd.Extent{Offset: at, Length: off + n - at, Flags: nbd.Hole | nbd.Zero})
		if k := len(out); k > 1 && out[k-2].Flags == out[k-1].Flags {
			out[k-2].Length += out[k-1].Length
			out = out[:k-1]
		}
	}
	return out, nil
}
