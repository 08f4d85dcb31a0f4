package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
)

// Sink is a disk that is written. Methods are for concurrent use, on parts that do not overlap.
type Sink interface {
	// Size in bytes.
	Size() int64
	WriteAt(ctx context.Context, p []byte, off int64) error
	// Zero makes [off, off+n) zeros, without taking up room if it can.
	Zero(ctx context.Context, off, n int64) error
	// Flush makes all that was written durable.
	Flush(ctx context.Context) error
}

// BulkReader is a DiskReader with a faster way to read much: in the order that suits the repository, with many blocks on their way.
type BulkReader interface {
	DiskReader
	// Bulk reads parts, which are in order, and hands pieces of them to each, from several goroutines at once and in any order. It may leave out zeros only
	// if they are not in the list. each must not keep data.
	Bulk(ctx context.Context, parts []Extent, each func(off int64, data []byte) error) error
}

// RestoreOptions are for Restore.
type RestoreOptions struct {
	// Blank: the sink reads as zeros. Zeros are not written then.
	Blank bool
	// Verify reads the sink again when it is whole, and compares it with the repository. The sink must be a Source too.
	Verify  bool
	Workers int // 0: as many as processors, at most 8
	Limit   *Limiter
	// Progress is called now and then, by one goroutine at a time.
	Progress func(Progress)
}

// RestoreResult tells of Restore.
type RestoreResult struct {
	Written  int64 // bytes that are not zeros
	Verified int64 // bytes compared
}

// Restore writes a disk of a point to a sink, which must be at least as large, and makes it durable. What the sink has beyond the disk's end is zeros then.
func Restore(ctx context.Context, r DiskReader, sink Sink, o RestoreOptions) (RestoreResult, error) {
	if sink.Size() < r.Size() {
		return RestoreResult{}, fmt.Errorf("restore a disk of %d bytes: the target has %d", r.Size(), sink.Size())
	}
	back, ok := sink.(Source)
	if o.Verify && !ok {
		return RestoreResult{}, errors.New("restore a disk: the target can't be read, so that it can't be verified")
	}
	if o.Workers <= 0 {
		o.Workers = min(runtime.GOMAXPROCS(0), 8)
	}
	s := &restoring{r: r, sink: sink, o: o}
	if err := s.fill(ctx); err != nil {
		return RestoreResult{}, err
	}
	if !o.Blank && sink.Size() > r.Size() {
		if err := sink.Zero(ctx, r.Size(), sink.Size()-r.Size()); err != nil {
			return RestoreResult{}, fmt.Errorf("write zeros from %d: %w", r.Size(), err)
		}
	}
	if err := sink.Flush(ctx); err != nil {
		return RestoreResult{}, fmt.Errorf("make the disk durable: %w", err)
	}
	res := RestoreResult{Written: s.written.Load()}
	if !o.Verify {
		return res, nil
	}
	var err error
	res.Verified, err = Compare(ctx, r, back, o)
	return res, err
}

type restoring struct {
	r       DiskReader
	sink    Sink
	o       RestoreOptions
	written atomic.Int64

	mu  sync.Mutex
	pos int64
}

// fill writes all, a window after the other: extents of a large disk are never all in memory.
func (s *restoring) fill(ctx context.Context) error {
	bulk, _ := s.r.(BulkReader)
	size := s.r.Size()
	for at := int64(0); at < size; at += window {
		n := min(window, size-at)
		list, err := s.r.Extents(ctx, at, n)
		if err != nil {
			return fmt.Errorf("what the disk has from %d: %w", at, err)
		}
		data := make([]Extent, 0, len(list))
		for _, e := range list {
			switch {
			case !e.Zero:
				data = append(data, e)
			case !s.o.Blank:
				if err := s.sink.Zero(ctx, e.Offset, e.Length); err != nil {
					return fmt.Errorf("write zeros from %d: %w", e.Offset, err)
				}
			}
		}
		if bulk != nil {
			err = bulk.Bulk(ctx, data, func(off int64, p []byte) error { return s.put(ctx, off, p) })
		} else {
			err = eachPart(ctx, data, s.o.Workers, func(buf []byte, off int64) error {
				if err := s.r.ReadAt(ctx, buf, off); err != nil {
					return fmt.Errorf("read %d bytes from %d: %w", len(buf), off, err)
				}
				return s.put(ctx, off, buf)
			})
		}
		if err != nil {
			return err
		}
		s.tell(at + n)
	}
	return nil
}

func (s *restoring) put(ctx context.Context, off int64, p []byte) error {
	if err := s.o.Limit.Wait(ctx, int64(len(p))); err != nil {
		return err
	}
	// The last block of a disk may be handed over whole.
	if over := off + int64(len(p)) - s.r.Size(); over > 0 {
		p = p[:int64(len(p))-over]
	}
	if err := s.sink.WriteAt(ctx, p, off); err != nil {
		return fmt.Errorf("write %d bytes at %d: %w", len(p), off, err)
	}
	s.written.Add(int64(len(p)))
	s.tell(off + int64(len(p)))
	return nil
}

func (s *restoring) tell(pos int64) {
	if s.o.Progress == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pos = max(s.pos, pos)
	s.o.Progress(Progress{Position: s.pos, Size: s.r.Size(), Bytes: s.written.Load()})
}

// Compare reads a disk of a point and a source, and fails with the first offset where they differ. What the source has more must be zeros.
func Compare(ctx context.Context, r DiskReader, src Source, o RestoreOptions) (compared int64, err error) {
	if o.Workers <= 0 {
		o.Workers = min(runtime.GOMAXPROCS(0), 8)
	}
	var done atomic.Int64
	for at := int64(0); at < src.Size(); at += window {
		n := min(window, src.Size()-at)
		var ours []Extent
		if in := min(n, r.Size()-at); in > 0 {
			if ours, err = r.Extents(ctx, at, in); err != nil {
				return done.Load(), fmt.Errorf("what the disk has from %d: %w", at, err)
			}
		}
		theirs, err := src.Extents(ctx, at, n)
		if err != nil {
			return done.Load(), fmt.Errorf("what the target has from %d: %w", at, err)
		}
		others := sync.Pool{New: func() any { b := make([]byte, readSize); return &b }}
		err = eachPart(ctx, union(ours, theirs), o.Workers, func(buf []byte, off int64) error {
			b := others.Get().(*[]byte)
			defer others.Put(b)
			other := (*b)[:len(buf)]
			if err := r.ReadAt(ctx, buf, off); err != nil {
				return fmt.Errorf("read %d bytes from %d: %w", len(buf), off, err)
			}
			if err := src.ReadAt(ctx, other, off); err != nil {
				return fmt.Errorf("read back %d bytes from %d: %w", len(buf), off, err)
			}
			done.Add(int64(len(buf)))
			if bytes.Equal(buf, other) {
				return nil
			}
			i := 0
			for buf[i] == other[i] {
				i++
			}
			return fmt.Errorf("verify: the target differs from the restore point at offset %d", off+int64(i))
		})
		if err != nil {
			return done.Load(), err
		}
	}
	return done.Load(), nil
}

// union merges the data of two lists of extents.
func union(a, b []Extent) []Extent {
	var out []Extent
	for len(a) > 0 || len(b) > 0 {
		from := &a
		if len(a) == 0 || len(b) > 0 && b[0].Offset < a[0].Offset {
			from = &b
		}
		e := (*from)[0]
		*from = (*from)[1:]
		if e.Zero || e.Length <= 0 {
			continue
		}
		if n := len(out); n > 0 && out[n-1].Offset+out[n-1].Length >= e.Offset {
			out[n-1].Length = max(out[n-1].Length, e.Offset+e.Length-out[n-1].Offset)
			continue
		}
		out = append(out, e)
	}
	return out
}

// eachPart calls do for pieces of at most readSize bytes, from several goroutines at once.
func eachPart(ctx context.Context, parts []Extent, workers int, do func(buf []byte, off int64) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	jobs := make(chan Extent, workers)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			buf := make([]byte, readSize)
			for j := range jobs {
				if ctx.Err() != nil {
					continue
				}
				if err := do(buf[:j.Length], j.Offset); err != nil {
					cancel(err)
				}
			}
		})
	}
	for _, e := range parts {
		for e.Length > 0 && ctx.Err() == nil {
			n := min(readSize-e.Offset%readSize, e.Length)
			select {
			case jobs <- Extent{Offset: e.Offset, Length: n}:
			case <-ctx.Done():
			}
			e.Offset += n
			e.Length -= n
		}
	}
	close(jobs)
	wg.Wait()
	return context.Cause(ctx)
}
