package chunkstore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"drover/internal/blob"
	"drover/internal/chunkstore/pack"
)

const (
	// One read of a pack takes records that stand near each other: a gap costs less than another request.
	runBytes = 1 << 20
	runGap   = 64 << 10
	// Blocks of one run, decompressed, stay in the processor's cache.
	runRaw = 4 << 20
)

// want is a block to be read.
type want struct {
	block int64
	id    ID
	at    place
}

// run is one read of a pack, for the blocks whose records are in it.
type run struct {
	f     *footer
	off   int64
	size  int
	wants []want // by record; several may want one
	where []int  // record numbers, as the footer has them
}

// runBuffer is what reading a run needs. It is pooled.
type runBuffer struct {
	stored, plain []byte
}

func grow(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n)
	}
	return b[:n]
}

// plan sorts wants into runs, in the order of packs and of records in them.
func (r *Repository) plan(ctx context.Context, wants []want) ([]run, error) {
	slices.SortFunc(wants, func(a, b want) int {
		return cmp.Or(bytes.Compare(a.at.pack[:], b.at.pack[:]), cmp.Compare(a.at.record, b.at.record), cmp.Compare(a.block, b.block))
	})
	var runs []run
	var strays []want
	var f *footer
	var ferr error
	doubt := false
	for i, w := range wants {
		if i == 0 || w.at.pack != wants[i-1].at.pack {
			f, ferr = r.footer(ctx, w.at.pack)
			doubt = r.doubtful(w.at.pack)
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
		}
		if ferr != nil || doubt || int(w.at.record) >= len(f.entries) || f.entries[w.at.record].ID != w.id {
			strays = append(strays, w)
			continue
		}
		runs = addRun(runs, f, int(w.at.record), w, int64(r.config.BlockSize))
	}
	// Blocks that are elsewhere by now. They moved together, so they are mostly together again.
	type found struct {
		f *footer
		n int
		w want
	}
	var all []found
	for _, w := range strays {
		f, n, err := r.locate(ctx, w.at, w.id)
		if err != nil {
			return nil, fmt.Errorf("at %d: %w", w.block*int64(r.config.BlockSize), err)
		}
		all = append(all, found{f, n, w})
	}
	slices.SortFunc(all, func(a, b found) int {
		return cmp.Or(bytes.Compare(a.f.id[:], b.f.id[:]), cmp.Compare(a.n, b.n), cmp.Compare(a.w.block, b.w.block))
	})
	for _, s := range all {
		runs = addRun(runs, s.f, s.n, s.w, int64(r.config.BlockSize))
	}
	return runs, nil
}

// addRun puts a want into the last run, if it stands after what is wanted there already: a record is opened in place, and so only once.
func addRun(runs []run, f *footer, n int, w want, blockSize int64) []run {
	e := &f.entries[n]
	end := int64(e.Offset) + int64(recordSize(e))
	if k := len(runs) - 1; k >= 0 {
		o := &runs[k]
		if o.f == f && n >= o.where[len(o.where)-1] && int64(e.Offset)-(o.off+int64(o.size)) <= runGap && end-o.off <= runBytes && int64(len(o.wants)+1)*blockSize <= runRaw {
			o.size = max(o.size, int(end-o.off))
			o.wants = append(o.wants, w)
			o.where = append(o.where, n)
			return runs
		}
	}
	return append(runs, run{f: f, off: int64(e.Offset), size: int(end - int64(e.Offset)), wants: []want{w}, where: []int{n}})
}

// read reads a run's bytes. If the pack is gone it looks again where the records are, in a new plan: again is what is left to be read then.
func (r *Repository) read(ctx context.Context, o *run, buf *runBuffer) (again []run, err error) {
	buf.stored = grow(buf.stored, o.size)
	err = r.store.ReadAt(ctx, packName(o.f.kind, o.f.id), buf.stored, o.off)
	if errors.Is(err, blob.ErrNotFound) {
		if derr := r.dropped(ctx, o.f.id); derr != nil {
			return nil, derr
		}
		if _, there := r.ledger.Pack(o.f.id); !there {
			return r.plan(ctx, slices.Clone(o.wants))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read pack %s at %d: %w", o.f.id, o.off, err)
	}
	return nil, nil
}

// opened returns the opened payload of the k-th wanted block.
func (o *run) opened(k int, buf *runBuffer) (*pack.Entry, []byte, error) {
	e := &o.f.entries[o.where[k]]
	at := int64(e.Offset) - o.off
	payload, err := o.f.open(o.where[k], buf.stored[at:at+int64(recordSize(e))])
	return e, payload, err
}

// decode opens, decompresses and checks a run's blocks, and calls each with bytes of disk that follow each other, as long as can be.
func (r *Repository) decode(o *run, buf *runBuffer, each func(block int64, data []byte) error) error {
	bs := r.config.BlockSize
	sc := r.scratch()
	defer r.release(sc)
	buf.plain = grow(buf.plain, len(o.wants)*bs)
	// Rank by block, so that neighbours on the disk are neighbours in memory.
	rank := make([]int, len(o.wants))
	order := make([]int, len(o.wants))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(o.wants[a].block, o.wants[b].block) })
	for k, i := range order {
		rank[i] = k
	}
	for i := range o.wants {
		dst := buf.plain[rank[i]*bs : (rank[i]+1)*bs]
		if i > 0 && o.where[i] == o.where[i-1] {
			before := rank[i-1] * bs
			copy(dst, buf.plain[before:before+bs])
			continue
		}
		e, payload, err := o.opened(i, buf)
		if err == nil && int(e.Raw) != bs {
			err = fmt.Errorf("%w: a block of %d bytes", ErrDamaged, e.Raw)
		}
		if err == nil {
			err = sc.decompress(dst, e.Codec, payload)
		}
		if err == nil && sc.hasher.Block(dst) != o.wants[i].id {
			err = fmt.Errorf("%w: it is not what its id says", ErrDamaged)
		}
		if err != nil {
			return fmt.Errorf("at %d: pack %s: %w", o.wants[i].block*int64(bs), o.f.id, err)
		}
	}
	for from := 0; from < len(order); {
		to := from + 1
		first := o.wants[order[from]].block
		for to < len(order) && o.wants[order[to]].block == first+int64(to-from) {
			to++
		}
		if err := each(first, buf.plain[from*bs:to*bs]); err != nil {
			return err
		}
		from = to
	}
	return nil
}

// fetch calls work for each run that source yields, by several workers. Each has its own buffer for the length of a call.
func (r *Repository) fetch(ctx context.Context, workers int, source func(yield func([]run) bool) error, work func(context.Context, *run, *runBuffer) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	queue := make(chan run, workers)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			buf := r.runs.Get().(*runBuffer)
			defer r.runs.Put(buf)
			for o := range queue {
				if ctx.Err() != nil {
					continue
				}
				if err := r.one(ctx, &o, buf, work); err != nil {
					cancel(err)
				}
			}
		})
	}
	err := source(func(runs []run) bool {
		for _, o := range runs {
			select {
			case queue <- o:
			case <-ctx.Done():
				return false
			}
		}
		return ctx.Err() == nil
	})
	close(queue)
	wg.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// one reads one run and works on it.
func (r *Repository) one(ctx context.Context, o *run, buf *runBuffer, work func(context.Context, *run, *runBuffer) error) error {
	again, err := r.read(ctx, o, buf)
	if err != nil {
		return err
	}
	if again == nil {
		return work(ctx, o, buf)
	}
	for i := range again {
		if err := r.one(ctx, &again[i], buf, work); err != nil {
			return err
		}
	}
	return nil
}
