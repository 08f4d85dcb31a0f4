package chunkstore

import (
	"context"
	"fmt"

	"drover/internal/chunkstore/ledger"
)

// tree is a disk's pages, read when asked for. It is for concurrent use.
type tree struct {
	r    *Repository
	name string
	shape
	root ID
	at   place
}

func (r *Repository) tree(d *ledger.Disk) (*tree, error) {
	at, root, err := placeOf(d.GetRoot())
	if err != nil {
		return nil, fmt.Errorf("disk %q: %w", d.GetName(), err)
	}
	if d.GetSize() < 0 || d.GetSize() > maxDisk {
		return nil, fmt.Errorf("disk %q: %w: a size of %d bytes is impossible", d.GetName(), ErrDamaged, d.GetSize())
	}
	t := &tree{r: r, name: d.GetName(), shape: newShape(d.GetSize(), int64(r.config.BlockSize)), root: root, at: at}
	if !root.Zero() && t.level != int(d.GetLevel()) {
		return nil, fmt.Errorf("disk %q: %w: %d bytes have no tree of level %d", d.GetName(), ErrDamaged, d.GetSize(), d.GetLevel())
	}
	return t, nil
}

// entry returns the id and place of page i of a level. A zero id: a hole.
func (t *tree) entry(ctx context.Context, level int, i int64) (ID, place, error) {
	id, at := t.root, t.at
	for l := t.level; l > level && !id.Zero(); l-- {
		below := int64(1) // pages of level under one entry of l
		for range l - level - 1 {
			below *= Fanout
		}
		p, err := t.load(ctx, l, i/below/Fanout, id, at)
		if err != nil {
			return ID{}, place{}, err
		}
		slot := i / below % Fanout
		if slot >= int64(p.n) {
			return ID{}, place{}, nil
		}
		id, at = p.ids[slot], p.places[slot]
	}
	return id, at, nil
}

// load reads page i of a level, and makes sure that it stands where it belongs.
func (t *tree) load(ctx context.Context, level int, i int64, id ID, at place) (*page, error) {
	p, err := t.r.page(ctx, at, id)
	if err != nil {
		return nil, fmt.Errorf("disk %q at %d: %w", t.name, i*pageBlocks(level)*t.blockSize, err)
	}
	if n, span := t.entries(level, i); p.level != level || p.n != n || p.span != span {
		return nil, fmt.Errorf("disk %q at %d: %w: its page stands where it does not belong", t.name, i*pageBlocks(level)*t.blockSize, ErrDamaged)
	}
	return p, nil
}

// leaf returns leaf i; nil: a hole.
func (t *tree) leaf(ctx context.Context, i int64) (*page, error) {
	if i >= t.pages(0) {
		return nil, nil
	}
	id, at, err := t.entry(ctx, 0, i)
	if err != nil || id.Zero() {
		return nil, err
	}
	return t.load(ctx, 0, i, id, at)
}
