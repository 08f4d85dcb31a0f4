package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"drover/internal/backup"
	"drover/internal/nbd"
)

const (
	// sourceInFlight is how many requests a disk's reader has under way, and sourceWindow how much of a bitmap it asks for at once.
	sourceInFlight = 16
	sourceWindow   = int64(1) << 30
)

// diskSource reads a disk at a moment, over NBD.
type diskSource struct {
	point *nbd.Client
	// maps shows the bitmaps. It is a connection of its own where parts of point may be given up: a server answers for all contexts
	// of a connection or none.
	maps *nbd.Client
	// live is the disk as it is now; nil: point knows itself what is zero.
	live *nbd.Client
	// trim gives up what was read, so that nothing is saved for it any more.
	trim bool
	// manners, if set, are how to read beside a guest.
	manners *manners
}

func openSource(ctx context.Context, socket, point, live string, bitmaps []string) (*diskSource, error) {
	contexts := []string{nbd.Allocation}
	for _, b := range bitmaps {
		contexts = append(contexts, nbd.DirtyBitmap+b)
	}
	dial := func(export string, contexts []string) (*nbd.Client, error) {
		c, err := nbd.Dial(ctx, "unix", socket, nbd.Options{Export: export, Contexts: contexts, InFlight: sourceInFlight})
		if err != nil {
			return nil, err
		}
		for _, want := range contexts {
			if !slices.Contains(c.Contexts(), want) {
				return nil, errors.Join(fmt.Errorf("the export %s has no %s", export, want), c.Close())
			}
		}
		return c, nil
	}
	if live == "" {
		c, err := dial(point, contexts)
		if err != nil {
			return nil, err
		}
		return &diskSource{point: c, maps: c}, nil
	}
	s := &diskSource{}
	var err error
	if s.point, err = dial(point, contexts[:1]); err != nil {
		return nil, err
	}
	if s.live, err = dial(live, contexts[:1]); err == nil && len(bitmaps) > 0 {
		s.maps, err = dial(point, contexts[1:])
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close ends the connections.
func (s *diskSource) Close() error {
	err := s.point.Close()
	if s.live != nil {
		err = errors.Join(err, s.live.Close())
	}
	if s.maps != nil && s.maps != s.point {
		err = errors.Join(err, s.maps.Close())
	}
	return err
}

// Size in bytes.
func (s *diskSource) Size() int64 { return s.point.Size() }

// ReadAt reads a part, with trim for the last time.
func (s *diskSource) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := s.manners.read(ctx, s.point, p, off); err != nil {
		return err
	}
	if s.trim {
		return s.point.Trim(ctx, off, int64(len(p)))
	}
	return nil
}

// release gives up what is not going to be read. It does so in parts, as QEMU does nothing else meanwhile.
func (s *diskSource) release(ctx context.Context, off, n int64) error {
	for ; n > 0; off, n = off+sourceWindow, n-sourceWindow {
		if err := s.point.Trim(ctx, off, min(n, sourceWindow)); err != nil {
			return fmt.Errorf("give up what is not read, from %d: %w", off, err)
		}
	}
	return nil
}

// Extents tells what is zero. QEMU does not see through a moment to the layers below, so that what is zero is asked of the disk as it is
// now, and that it was so at the moment is known if afterwards nothing was saved for it.
func (s *diskSource) Extents(ctx context.Context, off, n int64) ([]backup.Extent, error) {
	if s.live == nil {
		return backup.NBD{Client: s.point}.Extents(ctx, off, n)
	}
	now, err := s.live.Extents(ctx, nbd.Allocation, off, n)
	if err != nil {
		return nil, err
	}
	then, err := s.point.Extents(ctx, nbd.Allocation, off, n)
	if err != nil {
		return nil, err
	}
	var out []backup.Extent
	for i, j := 0, 0; i < len(now) && j < len(then); {
		lo := max(now[i].Offset, then[j].Offset)
		endNow, endThen := now[i].Offset+now[i].Length, then[j].Offset+then[j].Length
		hi := min(endNow, endThen)
		zero := then[j].Flags&nbd.Zero != 0 || then[j].Flags&nbd.Hole != 0 && now[i].Flags&nbd.Zero != 0
		if k := len(out); k > 0 && out[k-1].Zero == zero {
			out[k-1].Length += hi - lo
		} else {
			out = append(out, backup.Extent{Offset: lo, Length: hi - lo, Zero: zero})
		}
		if endNow == hi {
			i++
		}
		if endThen == hi {
			j++
		}
	}
	return out, nil
}

// dirty is what any of the bitmaps has, in order, and all from grown on: the disk was not so large when they began.
func (s *diskSource) dirty(ctx context.Context, bitmaps []string, grown int64) iter.Seq2[backup.Extent, error] {
	var contexts []string
	for _, b := range bitmaps {
		contexts = append(contexts, nbd.DirtyBitmap+b)
	}
	return func(yield func(backup.Extent, error) bool) {
		for off := int64(0); off < s.Size(); off += sourceWindow {
			n := min(sourceWindow, s.Size()-off)
			all, err := s.maps.Status(ctx, off, n, contexts...)
			if err != nil {
				yield(backup.Extent{}, fmt.Errorf("what has changed from %d: %w", off, err))
				return
			}
			var list []backup.Extent
			for _, extents := range all {
				for _, e := range extents {
					if e.Flags&nbd.Dirty != 0 {
						list = append(list, backup.Extent{Offset: e.Offset, Length: e.Length})
					}
				}
			}
			if off+n > grown {
				from := max(off, grown)
				list = append(list, backup.Extent{Offset: from, Length: off + n - from})
			}
			for _, e := range joined(list) {
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}

// joined puts extents in order and makes one of those that touch.
func joined(list []backup.Extent) []backup.Extent {
	slices.SortFunc(list, func(a, b backup.Extent) int { return cmp.Compare(a.Offset, b.Offset) })
	var out []backup.Extent
	for _, e := range list {
		if k := len(out); k > 0 && e.Offset <= out[k-1].Offset+out[k-1].Length {
			out[k-1].Length = max(out[k-1].Length, e.Offset+e.Length-out[k-1].Offset)
			continue
		}
		out = append(out, e)
	}
	return out
}
