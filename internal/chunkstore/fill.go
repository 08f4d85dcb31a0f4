package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"drover/internal/chunkstore/index"
	"drover/internal/chunkstore/ledger"
)

func (r *Repository) currentIndex() Index {
	r.indexMu.RLock()
	defer r.indexMu.RUnlock()
	return r.index
}

// fillIndex opens the index if nobody has, and adds and removes what the log says.
func (r *Repository) fillIndex(ctx context.Context) error {
	select {
	case r.indexTurn <- struct{}{}:
		defer func() { <-r.indexTurn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	x := r.currentIndex()
	if x == nil {
		var err error
		if x, err = r.openIndex(); err != nil {
			return fmt.Errorf("open the index: %w", err)
		}
		r.indexMu.Lock()
		r.index = x
		r.indexMu.Unlock()
	}
	seq := r.ledger.Seq()
	if seq == r.indexed {
		return nil
	}
	var missing, gone []PackID
	r.ledger.View(func(s *ledger.State) {
		for id, p := range s.Packs {
			switch {
			case p.Meta:
			case p.Live():
				if !x.Has(id) {
					missing = append(missing, id)
				}
			case x.Has(id):
				gone = append(gone, id)
			}
		}
	})
	if len(gone) > 0 {
		if err := x.Remove(gone...); err != nil {
			return fmt.Errorf("the index: %w", err)
		}
	}
	if err := r.readFooters(ctx, x, missing); err != nil {
		return err
	}
	r.indexed = seq
	return nil
}

// footersInFlight hides the latency of a store over the network.
const footersInFlight = 16

// readFooters puts packs into the index.
func (r *Repository) readFooters(ctx context.Context, x Index, packs []PackID) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, min(footersInFlight, len(packs)))
	for k := range errs {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(packs)) && ctx.Err() == nil; i = next.Add(1) - 1 {
				f, err := r.readFooter(ctx, packs[i])
				if err != nil {
					if ctx.Err() == nil {
						r.log.Warn("a pack's footer can not be read: its blocks will be stored again", "pack", packs[i], "error", err)
					}
					continue
				}
				if err := x.Add(packs[i], f.entries); err != nil {
					errs[k] = fmt.Errorf("the index: %w", err)
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(append(errs, ctx.Err())...)
}

func (r *Repository) openIndex() (Index, error) {
	if r.o.NewIndex != nil {
		return r.o.NewIndex(r.o.Cache, r.raw)
	}
	if r.o.Cache != "" {
		dir := filepath.Join(r.o.Cache, r.config.ID)
		err := os.MkdirAll(dir, 0o700)
		if err == nil {
			var x Index
			if x, err = index.Open(dir, index.Options{Repository: r.raw, Log: r.log}); err == nil {
				return x, nil
			}
		}
		r.log.Warn("the index's directory can not be used, a temporary one serves: it takes reading all footers", "directory", dir, "error", err)
	}
	dir, err := os.MkdirTemp("", "drover-index-")
	if err != nil {
		return nil, err
	}
	r.temporary = dir
	return index.Open(dir, index.Options{Repository: r.raw, Log: r.log})
}
