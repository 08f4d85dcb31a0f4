package chunkstore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"drover/internal/blob"
	"drover/internal/chunkstore/ledger"
	"drover/internal/chunkstore/pack"
	"drover/internal/chunkstore/parity"
)

// ScrubOptions are for Scrub. The zero value reads everything and repairs what it can.
type ScrubOptions struct {
	// Share of the repository's bytes to read, those that nobody read for longest; 0 or 1: all.
	Share float64
	Rate  int64 // bytes a second; 0: as fast as it goes
	// Workers is how many packs are read at once; 0: 2.
	Workers int
	// ReadOnly finds, and changes nothing: no repair, no mark.
	ReadOnly bool
	// Mirror has the blocks of points in another place; nil: there is none.
	Mirror Mirror
	// Packs are those to read; nil: all, or the share.
	Packs []PackID
}

// Mirror is another place with the same points: a copy of the repository, which may have another key.
type Mirror interface {
	// Block reads a block of a disk of a point, padded to the block size. What it returns is checked.
	Block(ctx context.Context, point PointID, disk string, block int64) ([]byte, error)
}

// ScrubResult tells what a scrub found.
type ScrubResult struct {
	Packs int
	Bytes int64 // of packs read
	Raw   int64 // of blocks and pages, decompressed
	// Share of the repository's bytes that were read.
	Share  float64
	Parity int // parity objects that were made, as they lacked or were damaged
	// Damaged lists packs that are damaged still, Repaired those whose contents stand in new packs now, all of them.
	Damaged  []BadPack
	Repaired []BadPack
	// Affected lists what of points stands in records that are lost.
	Affected []Affected
}

// BadPack is a pack that is not what was written.
type BadPack struct {
	Pack    PackID
	Meta    bool
	Records []int // that are bad; nil: it can not be told
	How     string
}

// Affected is a part of a point that can not be read.
type Affected struct {
	Point          PointID
	VM, Disk       string
	Offset, Length int64
}

// Scrub reads packs and checks each record: its checksum, its seal, and its id. What is damaged is made anew from parity, from another copy in
// the repository, or from the mirror. What is left serves no dedupe hits, so that the next backup that reads those blocks stores them anew, and
// the next scrub puts them in their places.
func (r *Repository) Scrub(ctx context.Context, o ScrubOptions) (ScrubResult, error) {
	if o.Workers <= 0 {
		o.Workers = 2
	}
	c := &scrub{r: r, o: o, pace: newPace(r.o.Clock, o.Rate)}
	if err := c.run(ctx); err != nil {
		return c.ScrubResult, fmt.Errorf("scrub %s: %w", r.store, err)
	}
	return c.ScrubResult, nil
}

type scrub struct {
	r *Repository
	o ScrubOptions
	ScrubResult

	mu   sync.Mutex // of the result and pace
	pace *pace
	bad  []badPack
}

// badPack is one that is to be repaired.
type badPack struct {
	load
	bad []int // records; nil: unknown
	err error
}

func (c *scrub) run(ctx context.Context) error {
	if err := c.r.Refresh(ctx); err != nil {
		return err
	}
	packs, last, total := c.choose()
	err := each(ctx, c.o.Workers, len(packs), func(ctx context.Context, i int) error {
		return c.pack(ctx, &packs[i])
	})
	if err != nil {
		return err
	}
	if total > 0 {
		c.Share = float64(c.Bytes) / float64(total)
	}
	slices.SortFunc(c.bad, func(a, b badPack) int { return compareLoads(a.load, b.load) })
	if err := c.repair(ctx); err != nil {
		return err
	}
	if c.o.ReadOnly {
		return nil
	}
	return c.note(ctx, last)
}

// choose lists the packs to read: in the order in which they were added, going on behind the last that was read, and around.
// last is the SEQ of the last of them.
func (c *scrub) choose() (packs []load, last, total int64) {
	var from int64
	c.r.ledger.View(func(s *ledger.State) {
		from = s.Marks["scrub"].GetSeen()
		for id, p := range s.Packs {
			if p.Condemned != 0 {
				continue
			}
			total += p.Size
			if c.o.Packs == nil || slices.Contains(c.o.Packs, id) {
				packs = append(packs, load{id: id, state: p})
			}
		}
	})
	if c.o.Packs != nil || c.o.Share <= 0 || c.o.Share >= 1 {
		from = 0
	}
	slices.SortFunc(packs, func(a, b load) int {
		// Those that are known to be damaged first: perhaps they can be repaired by now.
		return cmp.Or(compareBool(b.state.Damaged, a.state.Damaged), compareBool(a.state.Added <= from, b.state.Added <= from),
			cmp.Compare(a.state.Added, b.state.Added), bytes.Compare(a.id[:], b.id[:]))
	})
	budget := total
	if c.o.Share > 0 && c.o.Share < 1 {
		budget = int64(c.o.Share * float64(total))
	}
	last = from
	for i := range packs {
		// Packs of one transaction are read together, so that its number says where to go on.
		if budget <= 0 && !packs[i].state.Damaged && packs[i].state.Added != last && c.o.Packs == nil {
			return packs[:i], last, total
		}
		budget -= packs[i].state.Size
		if !packs[i].state.Damaged {
			last = packs[i].state.Added
		}
	}
	if c.o.Packs != nil {
		last = from
	}
	return packs, last, total
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// pack checks one pack.
func (c *scrub) pack(ctx context.Context, l *load) error {
	raw, bad, err := c.r.verify(ctx, l, func(n int64) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.pace.spend(ctx, n)
	})
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		if rerr := c.r.Refresh(ctx); rerr != nil {
			return rerr
		}
		if p, there := c.r.ledger.Pack(l.id); !there || p.Condemned != 0 {
			return nil // it was dropped meanwhile, or will be
		}
		if !isDamage(err) {
			return err
		}
	}
	made := 0
	if err == nil && len(bad) == 0 && c.r.Parity() && !c.o.ReadOnly {
		if made, err = c.parity(ctx, l); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Packs++
	c.Bytes += l.state.Size
	c.Raw += raw
	c.Parity += made
	switch {
	case err != nil, len(bad) > 0:
		c.r.log.Warn("a pack of the repository is damaged", "pack", l.id, "records", len(bad), "error", err)
		c.bad = append(c.bad, badPack{load: *l, bad: bad, err: err})
	case l.state.Damaged:
		c.Repaired = append(c.Repaired, BadPack{Pack: l.id, Meta: l.state.Meta, How: "it reads well now"})
	}
	return nil
}

// isDamage tells damage from trouble with the storage, which says nothing about what is stored.
func isDamage(err error) bool {
	return errors.Is(err, ErrDamaged) || errors.Is(err, blob.ErrNotFound)
}

// verify reads a whole pack. bad are the records that are not what was written; an error of damage is of the pack as a whole.
func (r *Repository) verify(ctx context.Context, l *load, spend func(int64) error) (raw int64, bad []int, err error) {
	size, err := r.store.Size(ctx, packName(kindOf(l.state.Meta), l.id))
	if err != nil {
		return 0, nil, fmt.Errorf("pack %s: %w", l.id, err)
	}
	if size != l.state.Size {
		return 0, nil, fmt.Errorf("pack %s has %d bytes, not %d: %w", l.id, size, l.state.Size, ErrDamaged)
	}
	head := make([]byte, pack.HeaderSize)
	if err := r.store.ReadAt(ctx, packName(kindOf(l.state.Meta), l.id), head, 0); err != nil {
		return 0, nil, fmt.Errorf("pack %s: %w", l.id, err)
	}
	h, err := pack.ParseHeader(head)
	if err != nil {
		return 0, nil, fmt.Errorf("pack %s: %w", l.id, err)
	}
	if h.Pack != l.id || h.Repository != r.raw || h.Kind != kindOf(l.state.Meta) {
		return 0, nil, fmt.Errorf("pack %s: %w: its header is of another", l.id, ErrDamaged)
	}
	f, err := r.readFooter(ctx, l.id)
	if err != nil {
		return 0, nil, err
	}
	w := r.sweeper()
	defer w.close()
	err = w.records(ctx, f, nil, func(number int, b []byte) error {
		if err := spend(int64(len(b))); err != nil {
			return err
		}
		plain, err := w.plain(f, number, b)
		if err == nil && !w.is(f.kind, plain, f.entries[number].ID) {
			err = fmt.Errorf("pack %s, record %d: %w: it is not what its id says", l.id, number, ErrDamaged)
		}
		if errors.Is(err, ErrDamaged) {
			bad = append(bad, number)
			return nil
		}
		raw += int64(len(plain))
		return err
	})
	return raw, bad, err
}

// is reports whether a record has an id: a block's, a page's or a description's.
func (w *sweeper) is(kind pack.Kind, plain []byte, id ID) bool {
	if kind == pack.Data {
		return w.sc.hasher.Block(plain) == id
	}
	if p, err := parsePage(plain); err == nil && p.id(w.sc.hasher) == id {
		return true
	}
	return w.sc.hasher.Description(plain) == id
}

func kindOf(meta bool) pack.Kind {
	if meta {
		return pack.Meta
	}
	return pack.Data
}

// parity makes sure that a pack, which is as it was written, has good parity.
func (c *scrub) parity(ctx context.Context, l *load) (made int, err error) {
	b, err := c.r.store.Get(ctx, parityName(l.id), parity.ObjectSize(pack.MaxSize))
	if err != nil && !errors.Is(err, blob.ErrNotFound) {
		return 0, fmt.Errorf("parity of pack %s: %w", l.id, err)
	}
	if err == nil {
		if p, err := parity.Parse(b); err == nil && p.Whole() && p.Pack == l.id && p.Size == l.state.Size {
			return 0, nil
		}
		if err := c.r.store.Delete(ctx, parityName(l.id)); err != nil {
			return 0, fmt.Errorf("parity of pack %s, which is damaged: %w", l.id, err)
		}
	}
	return 1, c.r.makeParity(ctx, l.id, l.state)
}

func (r *Repository) makeParity(ctx context.Context, id PackID, p ledger.PackState) error {
	name := packName(kindOf(p.Meta), id)
	b, err := parity.Make(id, p.Size, func(b []byte, off int64) error { return r.store.ReadAt(ctx, name, b, off) })
	if err == nil {
		err = r.store.Put(ctx, parityName(id), b)
	}
	if err != nil && !errors.Is(err, blob.ErrExists) && !errors.Is(err, blob.ErrNotFound) {
		return fmt.Errorf("parity of pack %s: %w", id, err)
	}
	// A collector that dropped the pack meanwhile has deleted its parity before it was put; one that drops it from here on deletes it after.
	if rerr := r.Refresh(ctx); rerr != nil {
		return rerr
	}
	if _, there := r.ledger.Pack(id); !there {
		if err := r.store.Delete(ctx, parityName(id)); err != nil && !errors.Is(err, blob.ErrReadOnly) {
			return fmt.Errorf("parity of pack %s, which is gone: %w", id, err)
		}
		return nil
	}
	if errors.Is(err, blob.ErrNotFound) {
		return fmt.Errorf("parity of pack %s: %w", id, err)
	}
	return nil
}

// Protect makes the parity of packs that have none, and returns how many it made. It does nothing if the repository has no parity.
func (r *Repository) Protect(ctx context.Context) (int, error) {
	if !r.Parity() {
		return 0, nil
	}
	if err := r.Refresh(ctx); err != nil {
		return 0, err
	}
	have := map[PackID]bool{}
	for info, err := range r.store.List(ctx, "parity/", "") {
		if err != nil {
			return 0, fmt.Errorf("list parity: %w", err)
		}
		if id, ok := parsePackName(info.Name); ok {
			have[id] = true
		}
	}
	var lack []load
	r.ledger.View(func(s *ledger.State) {
		for id, p := range s.Packs {
			if p.Live() && !have[id] {
				lack = append(lack, load{id: id, state: p})
			}
		}
	})
	slices.SortFunc(lack, compareLoads)
	for i := range lack {
		if err := r.makeParity(ctx, lack[i].id, lack[i].state); err != nil {
			if _, there := r.ledger.Pack(lack[i].id); there {
				return i, err
			}
		}
	}
	return len(lack), nil
}

// mostNames is how many affected points the log names.
const mostNames = 1000

// names are the affected points for people, each once.
func (c *scrub) names() []string {
	seen := map[string]bool{}
	for _, a := range c.Affected {
		if seen[a.VM+"/"+a.Point.String()] = true; len(seen) == mostNames {
			break
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// note writes down what was found, so that damaged packs serve nobody, and where the next scrub goes on.
func (c *scrub) note(ctx context.Context, last int64) error {
	_, err := c.r.ledger.Do(ctx, func(s *ledger.State) (*ledger.Transaction, error) {
		m := &ledger.Mark{What: "scrub", Seen: last, Bytes: c.Bytes, Packs: int64(c.Packs), Share: c.Share}
		for i := range c.Damaged {
			if _, there := s.Packs[c.Damaged[i].Pack]; there {
				m.Damaged = append(m.Damaged, c.Damaged[i].Pack[:])
			}
		}
		for i := range c.Repaired {
			m.Repaired = append(m.Repaired, c.Repaired[i].Pack[:])
		}
		m.Affected = c.names()
		return &ledger.Transaction{Kind: &ledger.Transaction_Mark{Mark: m}}, nil
	})
	if err != nil {
		return err
	}
	if x := c.r.currentIndex(); x != nil {
		for i := range c.Damaged {
			if err := x.Remove(c.Damaged[i].Pack); err != nil {
				c.r.log.Warn("the index keeps a damaged pack", "pack", c.Damaged[i].Pack, "error", err)
			}
		}
	}
	return nil
}
