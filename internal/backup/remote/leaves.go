package remote

import (
	"context"
	"fmt"
	"sync"

	v1 "drover/api/drover/v1"
	"drover/internal/chunkstore/pack"
)

const (
	// leafBlocks ids are fetched at once; keptLeaves are enough for workers that go through a disk in order.
	leafBlocks = 4096
	keptLeaves = 16
)

// leaves are the parent's ids, fetched a part at a time as the writer goes along.
type leaves struct {
	w *writer

	mu   sync.Mutex
	have map[int64]*leaf
	used int64
}

type leaf struct {
	ready chan struct{}
	ids   []byte
	err   error
	used  int64
}

func newLeaves(w *writer) *leaves { return &leaves{w: w, have: map[int64]*leaf{}} }

// at is the parent's id of a block; zero also where the parent has none.
func (l *leaves) at(ctx context.Context, block int64) (pack.ID, error) {
	n := block / leafBlocks
	l.mu.Lock()
	f := l.get(n)
	if block%leafBlocks == 0 && (n+1)*leafBlocks < l.w.blocks {
		l.get(n + 1) // soon
	}
	l.mu.Unlock()
	select {
	case <-f.ready:
	case <-ctx.Done():
		return pack.ID{}, context.Cause(ctx)
	}
	if f.err != nil {
		return pack.ID{}, f.err
	}
	return pack.ID(f.ids[32*(block%leafBlocks):][:32]), nil
}

// get finds a leaf, or begins to fetch it. l.mu is held.
func (l *leaves) get(n int64) *leaf {
	l.used++
	if f := l.have[n]; f != nil {
		f.used = l.used
		return f
	}
	if len(l.have) >= keptLeaves {
		oldest := int64(-1)
		for k, f := range l.have {
			if oldest < 0 || f.used < l.have[oldest].used {
				oldest = k
			}
		}
		delete(l.have, oldest)
	}
	f := &leaf{ready: make(chan struct{}), used: l.used}
	l.have[n] = f
	l.w.work.Go(func() {
		defer close(f.ready)
		w := l.w
		count := min(leafBlocks, w.blocks-n*leafBlocks)
		res, err := call(w.life, w.s.r, w.s.r.o.Client.Parent, &v1.VaultParentRequest{Session: w.s.token, Disk: w.id, Block: n * leafBlocks, Count: int32(count)})
		if err == nil && int64(len(res.GetIds())) != 32*count {
			err = fmt.Errorf("%d bytes of ids for %d blocks", len(res.GetIds()), count)
		}
		if err != nil {
			f.err = fmt.Errorf("disk %s: ids of point %s: %w", w.o.Name, w.o.ParentPoint, err)
			return
		}
		f.ids = res.GetIds()
	})
	return f
}
