package vault

import (
	"context"
	"fmt"
	"sync"

	"drover/internal/backup"
	"drover/internal/blob"
	"drover/internal/chunkstore"
)

// quota is how much a repository may still take.
type quota struct {
	mu      sync.Mutex
	counted bool
	stored  int64 // when it was counted
	sent    int64 // since
	// loose are pages that may have been stored, and of which the log does not tell: those of points to come, and of points that never came.
	loose int64
}

// pageCost is about what a page of a disk takes.
const pageCost = 10 << 10

// pages counts the pages that blocks may make. Blocks that are there cost a host nothing to name, but a page of them is stored.
func (v *Vaults) pages(ctx context.Context, s *session, blocks []int64) error {
	var n, last int64 = 0, -1
	for _, b := range blocks {
		if b/chunkstore.Fanout != last {
			n, last = n+pageCost, b/chunkstore.Fanout
		}
	}
	q := &s.vault.quota
	q.mu.Lock()
	s.loose += n
	q.loose += n
	q.mu.Unlock()
	return v.room(ctx, s.vault, s.local, 0)
}

// settle says that a session's pages are in the log now.
func (s *session) settle() {
	q := &s.vault.quota
	q.mu.Lock()
	q.loose = max(0, q.loose-s.loose)
	s.loose = 0
	q.counted = false
	q.mu.Unlock()
}

// swept says that what no transaction tells of was deleted, but for what open sessions still have.
func (v *Vaults) swept(x *vault) {
	v.mu.Lock()
	defer v.mu.Unlock()
	x.quota.mu.Lock()
	defer x.quota.mu.Unlock()
	x.quota.loose, x.quota.counted = 0, false
	for _, s := range v.sessions {
		if s.vault == x {
			x.quota.loose += s.loose
		}
	}
}

// recount is after how many bytes the repository is counted anew.
const recount = 1 << 30

// room says whether n bytes more may be sent.
func (v *Vaults) room(ctx context.Context, x *vault, local *backup.Local, n int64) error {
	limit := v.specOf(x).GetQuotaBytes()
	if limit <= 0 {
		return nil
	}
	q := &x.quota
	q.mu.Lock()
	q.sent += n
	stale := !q.counted || q.sent > recount || q.stored+q.sent+q.loose > limit
	over := q.stored+q.sent+q.loose > limit
	q.mu.Unlock()
	if stale {
		stored, err := storedBytes(ctx, local)
		if err != nil {
			return told(x.name, err)
		}
		q.mu.Lock()
		q.counted, q.stored, q.sent = true, stored, n
		over = stored+q.loose+n > limit || n == 0 && stored+q.loose >= limit
		q.mu.Unlock()
	}
	if over {
		return told(x.name, fmt.Errorf("%w: it has reached its quota of %d bytes", blob.ErrFull, limit))
	}
	return nil
}
