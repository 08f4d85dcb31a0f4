package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"drover/internal/blob"
	"drover/internal/chunkstore/ledger"
	"drover/internal/chunkstore/pack"
	"drover/internal/chunkstore/parity"
)

// repair makes the contents of bad packs anew, and tells what is lost.
func (c *scrub) repair(ctx context.Context) error {
	var lost []badPack
	for i := range c.bad {
		b := &c.bad[i]
		how := ""
		if !c.o.ReadOnly {
			var err error
			if how, err = c.byParity(ctx, b); err != nil {
				return err
			}
		}
		if how != "" {
			c.Repaired = append(c.Repaired, BadPack{Pack: b.id, Meta: b.state.Meta, Records: b.bad, How: how})
			continue
		}
		lost = append(lost, *b)
	}
	if len(lost) == 0 {
		return nil
	}
	places, err := c.affected(ctx, lost)
	if err != nil {
		return err
	}
	for i := range lost {
		b := &lost[i]
		how, left := "", b.bad
		if !c.o.ReadOnly && b.bad != nil {
			if how, left, err = c.byCopies(ctx, b, places); err != nil {
				return err
			}
		}
		if how != "" {
			c.Repaired = append(c.Repaired, BadPack{Pack: b.id, Meta: b.state.Meta, Records: b.bad, How: how})
			continue
		}
		why := "no parity and no other copy"
		if b.err != nil {
			why = b.err.Error()
		}
		c.Damaged = append(c.Damaged, BadPack{Pack: b.id, Meta: b.state.Meta, Records: left, How: why})
		for _, n := range left {
			c.Affected = append(c.Affected, places[place{b.id, uint16(n)}]...)
		}
		if b.bad == nil {
			for at, list := range places {
				if at.pack == b.id {
					c.Affected = append(c.Affected, list...)
				}
			}
		}
	}
	slices.SortFunc(c.Affected, func(a, b Affected) int {
		if n := slices.Compare(a.Point[:], b.Point[:]); n != 0 {
			return n
		}
		if a.Disk != b.Disk {
			if a.Disk < b.Disk {
				return -1
			}
			return 1
		}
		return int(min(max(a.Offset-b.Offset, -1), 1))
	})
	return nil
}

// byParity makes a pack's bytes anew, and moves its records into new packs: what has a name is never written over.
func (c *scrub) byParity(ctx context.Context, b *badPack) (how string, err error) {
	if !c.r.Parity() {
		return "", nil
	}
	object, err := c.r.store.Get(ctx, parityName(b.id), parity.ObjectSize(pack.MaxSize))
	if errors.Is(err, blob.ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("parity of pack %s: %w", b.id, err)
	}
	p, err := parity.Parse(object)
	if err != nil || p.Pack != b.id || p.Size != b.state.Size {
		c.r.log.Warn("the parity of a damaged pack is damaged too", "pack", b.id, "error", err)
		return "", nil
	}
	name := packName(kindOf(b.state.Meta), b.id)
	size, err := c.r.store.Size(ctx, name)
	if err != nil && !errors.Is(err, blob.ErrNotFound) {
		return "", fmt.Errorf("pack %s: %w", b.id, err)
	}
	whole := make([]byte, min(size, b.state.Size))
	if len(whole) > 0 {
		if err := c.r.store.ReadAt(ctx, name, whole, 0); err != nil {
			return "", fmt.Errorf("pack %s: %w", b.id, err)
		}
	}
	whole, slices, err := p.Repair(whole)
	if err != nil {
		c.r.log.Warn("parity can not repair a pack", "pack", b.id, "error", err)
		return "", nil
	}
	l := b.load
	l.whole = whole
	res, err := c.r.move(ctx, moveOptions{purpose: "repair"}, []load{l})
	if err != nil {
		return "", err
	}
	if res.Packs == 0 {
		return "", nil
	}
	return fmt.Sprintf("%d of its slices by parity", slices), nil
}

// byCopies moves the good records, and for the bad ones blocks from elsewhere. left are the records that are nowhere.
func (c *scrub) byCopies(ctx context.Context, b *badPack, places map[place][]Affected) (how string, left []int, err error) {
	if b.state.Meta {
		return "", b.bad, nil
	}
	f, err := c.r.readFooter(ctx, b.id)
	if err != nil {
		return "", b.bad, nil
	}
	if err := c.r.fillIndex(ctx); err != nil {
		return "", nil, err
	}
	found := map[uint16][]byte{}
	for _, n := range b.bad {
		plain, err := c.another(ctx, f, uint16(n), places[place{b.id, uint16(n)}])
		if err != nil {
			return "", nil, err
		}
		if plain == nil {
			left = append(left, n)
			continue
		}
		found[uint16(n)] = plain
		if len(found) > maxPatches {
			return "", b.bad, nil // so much damage is for a new full backup
		}
	}
	if len(left) > 0 {
		return "", left, nil
	}
	l := b.load
	l.patches = found
	res, err := c.r.move(ctx, moveOptions{purpose: "repair"}, []load{l})
	if err != nil || res.Packs == 0 {
		return "", b.bad, err
	}
	return fmt.Sprintf("%d blocks from other copies", len(found)), nil, nil
}

// maxPatches bounds the blocks that a repair holds in memory.
const maxPatches = 512

// another reads a block from another pack, or from the mirror.
func (c *scrub) another(ctx context.Context, f *footer, number uint16, places []Affected) ([]byte, error) {
	id := f.entries[number].ID
	w := c.r.sweeper()
	defer w.close()
	if x := c.r.currentIndex(); x != nil {
		if p, n, ok, err := x.Lookup(id); err == nil && ok && p != f.id && c.r.live(p) {
			plain, err := c.r.record(ctx, place{p, n}, id)
			if err == nil && w.is(pack.Data, plain, id) {
				return plain, nil
			}
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
		}
	}
	if c.o.Mirror == nil {
		return nil, nil
	}
	for _, a := range places {
		plain, err := c.o.Mirror.Block(ctx, a.Point, a.Disk, a.Offset/int64(c.r.config.BlockSize))
		if err == nil && w.is(pack.Data, plain, id) {
			return plain, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		c.r.log.Warn("the mirror does not have a block", "point", a.Point, "disk", a.Disk, "offset", a.Offset, "error", err)
	}
	return nil, nil
}

// maxAffected bounds what is told.
const maxAffected = 10_000

// affected finds what of points stands in bad records.
func (c *scrub) affected(ctx context.Context, packs []badPack) (map[place][]Affected, error) {
	v := &victims{r: c.r, bad: map[PackID]map[int]bool{}, clean: map[entry]bool{}, found: map[place][]Affected{}}
	for i := range packs {
		var records map[int]bool
		if packs[i].bad != nil {
			records = map[int]bool{}
			for _, n := range packs[i].bad {
				records[n] = true
			}
		}
		v.bad[packs[i].id] = records
	}
	var points []*ledger.Point
	c.r.ledger.View(func(s *ledger.State) { points = s.List() })
	for _, p := range points {
		for _, d := range p.Disks {
			t, err := c.r.tree(d)
			if err != nil {
				return nil, err
			}
			v.at = Affected{Point: PointID(p.Id), VM: p.Vm, Disk: d.Name}
			v.tree = t
			if t.root.Zero() {
				continue
			}
			if _, err := v.page(ctx, t.level, 0, entry{t.root, t.at}); err != nil {
				return nil, err
			}
		}
	}
	return v.found, nil
}

// victims walks points for what stands in bad records.
type victims struct {
	r    *Repository
	bad  map[PackID]map[int]bool // nil: all of the pack
	tree *tree
	at   Affected
	n    int
	// clean are pages below which nothing is bad.
	clean map[entry]bool
	found map[place][]Affected
}

func (v *victims) isBad(at place) bool {
	records, ok := v.bad[at.pack]
	return ok && (records == nil || records[int(at.record)])
}

// lies follows a record to the pack where it is now: pages go on naming the pack in which it was when they were written.
func (v *victims) lies(ctx context.Context, at place, id ID) (place, error) {
	p, there, moved := v.r.packState(at.pack)
	if there && p.Condemned == 0 || len(moved) == 0 {
		return at, nil
	}
	to, found, err := v.r.follow(ctx, moved, id)
	switch {
	case ctx.Err() != nil:
		return at, ctx.Err()
	case err == nil && found:
		return to, nil
	case err == nil:
		return at, nil
	}
	// A pack on the way says no more what it held: it may have been this.
	seen := map[[16]byte]bool{}
	for queue := moved; len(queue) > 0; {
		next := queue[0]
		queue = queue[1:]
		if seen[next] {
			continue
		}
		seen[next] = true
		if records, ok := v.bad[next]; ok && records == nil {
			return place{pack: next}, nil
		}
		_, _, further := v.r.packState(next)
		queue = append(slices.Clone(queue), further...)
	}
	return at, nil
}

// page looks below a page, and reports whether all is well there.
func (v *victims) page(ctx context.Context, level int, i int64, e entry) (clean bool, err error) {
	if v.clean[e] {
		return true, nil
	}
	p, err := v.tree.load(ctx, level, i, e.id, e.at)
	if err != nil {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		// All below it is lost.
		at, err := v.lies(ctx, e.at, e.id)
		if err != nil {
			return false, err
		}
		_, span := v.tree.entries(level, i)
		v.add(at, i*pageBlocks(level)*v.tree.blockSize, span)
		return false, nil
	}
	clean = true
	for k := range p.n {
		if p.ids[k].Zero() {
			continue
		}
		child := i*Fanout + int64(k)
		if level == 0 {
			at, err := v.lies(ctx, p.places[k], p.ids[k])
			if err != nil {
				return false, err
			}
			if v.isBad(at) {
				v.add(at, child*v.tree.blockSize, v.tree.blockSize)
				clean = false
			}
			continue
		}
		ok, err := v.page(ctx, level-1, child, entry{p.ids[k], p.places[k]})
		if err != nil {
			return false, err
		}
		clean = clean && ok
	}
	if clean {
		v.clean[e] = true
	}
	return clean, nil
}

func (v *victims) add(at place, off, length int64) {
	if v.n++; v.n > maxAffected {
		return
	}
	a := v.at
	a.Offset, a.Length = off, min(length, v.tree.size-off)
	v.found[at] = append(v.found[at], a)
}

// AffectedPoints lists the points of what a scrub found, each once.
func (s *ScrubResult) AffectedPoints() []PointID {
	set := map[PointID]bool{}
	for _, a := range s.Affected {
		set[a.Point] = true
	}
	return slices.SortedFunc(maps.Keys(set), func(a, b PointID) int { return slices.Compare(a[:], b[:]) })
}
