package chunkstore

import (
	"context"
	"fmt"

	"drover/internal/chunkstore/ledger"
	"drover/internal/chunkstore/pack"
)

// NewCopySource makes an open repository a source of copies.
func NewCopySource(r *Repository) CopySource { return copySource{r} }

type copySource struct{ r *Repository }

func (s copySource) BlockSize() int { return s.r.BlockSize() }

// IDKey lets the copy compare blocks with their ids.
func (s copySource) IDKey() (hash string, key []byte) { return s.r.IDKey() }

func (s copySource) Points(ctx context.Context) ([]*ledger.Point, error) {
	if err := s.r.Refresh(ctx); err != nil {
		return nil, err
	}
	return s.r.Points(), nil
}

func (s copySource) Open(ctx context.Context, id PointID) (CopyPoint, error) {
	session, err := s.r.Begin(ctx, BeginOptions{Reader: true, Pins: []PointID{id}, Purpose: "copy"})
	if err != nil {
		return nil, err
	}
	p, ok := s.r.Point(id)
	if !ok {
		return nil, fmt.Errorf("point %s: %w", id, ErrGone)
	}
	return &copyPoint{r: s.r, s: session, p: p}, nil
}

type copyPoint struct {
	r *Repository
	s *Session
	p *ledger.Point
}

func (c *copyPoint) Description(ctx context.Context) ([]byte, error) {
	return c.s.Description(ctx, c.p)
}

func (c *copyPoint) open(ctx context.Context, p *ledger.Point, name string) (*Disk, error) {
	for _, d := range p.GetDisks() {
		if d.GetName() == name {
			return c.s.Open(ctx, d)
		}
	}
	return nil, fmt.Errorf("disk %q of point %x: %w", name, p.GetId(), ErrGone)
}

func (c *copyPoint) Changed(ctx context.Context, disk string, from PointID, fromDisk string) ([]Extent, error) {
	d, err := c.open(ctx, c.p, disk)
	if err != nil {
		return nil, err
	}
	if from == (PointID{}) {
		all, err := d.Extents(ctx, 0, d.Size())
		if err != nil {
			return nil, err
		}
		filled := all[:0]
		for _, e := range all {
			if !e.Zero {
				filled = append(filled, e)
			}
		}
		return filled, nil
	}
	p, ok := c.r.Point(from)
	if !ok {
		return nil, fmt.Errorf("point %s: %w", from, ErrGone)
	}
	other, err := c.open(ctx, p, fromDisk)
	if err != nil {
		return nil, err
	}
	return d.Changed(ctx, other)
}

func (c *copyPoint) Blocks(ctx context.Context, disk string, block int64, count int, each func(block int64, id ID, codec pack.Codec, raw int, payload []byte) error) error {
	d, err := c.open(ctx, c.p, disk)
	if err != nil {
		return err
	}
	return d.Blocks(ctx, block, count, each)
}

func (c *copyPoint) Close(ctx context.Context) error { return c.s.Close(ctx) }
