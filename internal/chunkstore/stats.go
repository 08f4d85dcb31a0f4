package chunkstore

import (
	"context"
	"fmt"

	"drover/internal/chunkstore/ledger"
)

// Usage tells what a repository's room is used for. Sizes are in bytes.
type Usage struct {
	Points, VMs int
	// Logical is what the points' disks would take, each by itself.
	Logical int64
	// Raw is what distinct blocks have before compression, Stored what packs take, Live about what of it points need.
	Raw, Stored, Live int64
	// Meta is what of Stored are pages and descriptions.
	Meta int64
	// Waiting is what of Stored is condemned and goes when open sessions have ended.
	Waiting int64
	// Dense is what of Stored was compressed by the slow codec.
	Dense    int64
	Packs    int
	Damaged  int
	Sessions int
}

// Usage walks the repository and counts. It takes as long as the walk of a collection.
func (r *Repository) Usage(ctx context.Context) (Usage, error) {
	if err := r.Refresh(ctx); err != nil {
		return Usage{}, err
	}
	var u Usage
	var points []*ledger.PointState
	r.ledger.View(func(s *ledger.State) {
		points = s.Walk()
		u.Points, u.Sessions = len(s.Points), len(s.Sessions)
		vms := map[string]bool{}
		for _, p := range s.Points {
			u.Logical += p.Point.GetLogical()
			vms[p.Point.GetVmUid()+"\x00"+p.Point.GetVm()] = true
		}
		u.VMs = len(vms)
	})
	m := newMarker(r, nil)
	if err := m.walk(ctx, points); err != nil {
		return u, fmt.Errorf("usage of %s: %w", r.store, err)
	}
	r.ledger.View(func(s *ledger.State) {
		for id, p := range s.Packs {
			u.Packs++
			u.Stored += p.Size
			u.Live += m.share(id, p)
			if p.Meta {
				u.Meta += p.Size
			} else {
				u.Raw += p.Raw
			}
			if p.Condemned != 0 {
				u.Waiting += p.Size
			}
			if p.Dense {
				u.Dense += p.Size
			}
			if p.Damaged {
				u.Damaged++
			}
		}
	})
	return u, nil
}

// share is about how many bytes of a pack live.
func (m *marker) share(id PackID, p ledger.PackState) int64 {
	return p.Size * int64(m.live(id, p.Meta)) / int64(max(p.Records, 1))
}

// Frees tells about how many bytes would become free if points were forgotten.
func (r *Repository) Frees(ctx context.Context, points ...PointID) (int64, error) {
	if err := r.Refresh(ctx); err != nil {
		return 0, err
	}
	leave := map[PointID]bool{}
	for _, id := range points {
		leave[id] = true
	}
	var rest, gone []*ledger.PointState
	r.ledger.View(func(s *ledger.State) {
		for _, p := range s.Walk() {
			if leave[PointID(p.Point.GetId())] {
				gone = append(gone, p)
			} else {
				rest = append(rest, p)
			}
		}
	})
	m := newMarker(r, nil)
	if err := m.walk(ctx, rest); err != nil {
		return 0, fmt.Errorf("what points take in %s: %w", r.store, err)
	}
	count := func() (n int64) {
		r.ledger.View(func(s *ledger.State) {
			for id, p := range s.Packs {
				n += m.share(id, p)
			}
		})
		return n
	}
	before := count()
	if err := m.walk(ctx, gone); err != nil {
		return 0, fmt.Errorf("what points take in %s: %w", r.store, err)
	}
	return count() - before, nil
}
