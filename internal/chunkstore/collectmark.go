package chunkstore

import (
	"bytes"
	"context"
	"fmt"
	"math/bits"
	"slices"

	"drover/internal/chunkstore/ledger"
)

// marker walks the pages of points, each page once, and keeps a bit for each record that lives. Pages are read by level
// and in the order of their packs, so that a walk reads each meta pack once for each level.
type marker struct {
	r *Repository
	// wanted says of which data packs bits are kept: a pass of a large repository takes some at a time.
	wanted func(PackID) bool

	data map[PackID]*packBits
	meta map[PackID]*metaBits
	// needed are condemned packs that something points to and that nothing was moved out of, or not that.
	needed map[PackID]bool
	// lost are blocks and pages that are nowhere.
	lost  []Lost
	pages int64
	read  int64 // bytes
}

// Lost is a block or page that a point needs and that is in no pack.
type Lost struct {
	ID     ID
	Pack   PackID
	Record int
}

// maxLost bounds what is told of a repository that is mostly gone.
const maxLost = 1000

type packBits struct {
	bits  []uint64
	count int
}

func (b *packBits) set(n uint16) bool {
	i := int(n / 64)
	if i >= len(b.bits) {
		b.bits = append(b.bits, make([]uint64, i+1-len(b.bits))...)
	}
	m := uint64(1) << (n % 64)
	if b.bits[i]&m != 0 {
		return false
	}
	b.bits[i] |= m
	b.count++
	return true
}

// records lists what is set.
func (b *packBits) records() []uint16 {
	out := make([]uint16, 0, b.count)
	for i, w := range b.bits {
		for ; w != 0; w &= w - 1 {
			out = append(out, uint16(i*64+bits.TrailingZeros64(w)))
		}
	}
	return out
}

// metaBits are of a pack of pages: what lives, and for each level what is still to be read.
type metaBits struct {
	packBits
	todo [maxLevel + 1]*packBits
}

func newMarker(r *Repository, wanted func(PackID) bool) *marker {
	return &marker{r: r, wanted: wanted, data: map[PackID]*packBits{}, meta: map[PackID]*metaBits{}, needed: map[PackID]bool{}}
}

// walk marks all that points need.
func (m *marker) walk(ctx context.Context, points []*ledger.PointState) error {
	for _, p := range points {
		if at, id, err := placeOf(p.Point.GetDescription()); err != nil {
			return fmt.Errorf("point %x: %w", p.Point.GetId(), err)
		} else if !id.Zero() {
			if err := m.markMeta(ctx, at, id, -1); err != nil {
				return err
			}
		}
		for _, d := range p.Point.GetDisks() {
			at, id, err := placeOf(d.GetRoot())
			if err == nil && (d.GetLevel() < 0 || d.GetLevel() > maxLevel) {
				err = fmt.Errorf("%w: its tree has %d levels", ErrDamaged, d.GetLevel())
			}
			if err != nil {
				return fmt.Errorf("point %x, disk %s: %w", p.Point.GetId(), d.GetName(), err)
			}
			if id.Zero() {
				continue
			}
			if err := m.markMeta(ctx, at, id, int(d.GetLevel())); err != nil {
				return err
			}
		}
	}
	for level := maxLevel; level >= 0; level-- {
		if err := m.descend(ctx, level); err != nil {
			return err
		}
	}
	return nil
}

// descend reads the pages of one level that are to be read.
func (m *marker) descend(ctx context.Context, level int) error {
	var packs []PackID
	for id, b := range m.meta {
		if b.todo[level] != nil {
			packs = append(packs, id)
		}
	}
	slices.SortFunc(packs, func(a, b PackID) int { return bytes.Compare(a[:], b[:]) })
	w := m.r.sweeper()
	defer w.close()
	for _, id := range packs {
		b := m.meta[id]
		todo := b.todo[level]
		b.todo[level] = nil
		if err := m.descendPack(ctx, w, id, todo.records(), level); err != nil {
			return fmt.Errorf("walk the pages of pack %s: %w", id, err)
		}
	}
	return nil
}

func (m *marker) descendPack(ctx context.Context, w *sweeper, id PackID, records []uint16, level int) error {
	f, err := m.r.footer(ctx, id)
	if err != nil {
		return err
	}
	return w.records(ctx, f, records, func(number int, b []byte) error {
		plain, err := w.plain(f, number, b)
		if err != nil {
			return err
		}
		p, err := parsePage(plain)
		if err != nil || p.level != level || p.id(w.sc.hasher) != f.entries[number].ID {
			return fmt.Errorf("record %d: %w: it is no page of level %d, or not this one", number, ErrDamaged, level)
		}
		m.pages++
		m.read += int64(len(b))
		for i := range p.n {
			if p.ids[i].Zero() {
				continue
			}
			if level > 0 {
				err = m.markMeta(ctx, p.places[i], p.ids[i], level-1)
			} else {
				err = m.markData(ctx, p.places[i], p.ids[i])
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// markMeta marks a page, which is read later, or a description (level −1).
func (m *marker) markMeta(ctx context.Context, at place, id ID, level int) error {
	at, ok, err := m.resolve(ctx, at, id)
	if err != nil || !ok {
		return err
	}
	b := m.meta[at.pack]
	if b == nil {
		b = &metaBits{}
		m.meta[at.pack] = b
	}
	if b.set(at.record) && level >= 0 {
		if b.todo[level] == nil {
			b.todo[level] = &packBits{}
		}
		b.todo[level].set(at.record)
	}
	return nil
}

func (m *marker) markData(ctx context.Context, at place, id ID) error {
	at, ok, err := m.resolve(ctx, at, id)
	if err != nil || !ok || m.wanted != nil && !m.wanted(at.pack) {
		return err
	}
	b := m.data[at.pack]
	if b == nil {
		b = &packBits{}
		m.data[at.pack] = b
	}
	b.set(at.record)
	return nil
}

// resolve follows a record to where it lives. What is in a condemned pack, and was not moved, makes that pack needed.
func (m *marker) resolve(ctx context.Context, at place, id ID) (place, bool, error) {
	p, there, moved := m.r.packState(at.pack)
	if there && p.Condemned == 0 {
		return at, true, nil
	}
	if len(moved) > 0 {
		to, found, err := m.r.follow(ctx, moved, id)
		if err != nil {
			return at, false, err
		}
		if q, ok, _ := m.r.packState(to.pack); found && (ok && q.Condemned == 0 || !there) {
			if ok && q.Condemned != 0 {
				m.needed[to.pack] = true
			}
			return to, true, nil
		}
	}
	if there {
		m.needed[at.pack] = true
		return at, true, nil
	}
	if len(m.lost) < maxLost {
		m.lost = append(m.lost, Lost{ID: id, Pack: at.pack, Record: int(at.record)})
	}
	return at, false, nil
}

// follow finds a record in packs that others were moved to, in those that these were moved to, and so on: in one that is
// condemned only if there is no other.
func (r *Repository) follow(ctx context.Context, moved [][16]byte, id ID) (place, bool, error) {
	queue := moved
	var seen map[PackID]bool
	var last place
	found := false
	for len(queue) > 0 {
		to := PackID(queue[0])
		queue = queue[1:]
		if seen[to] {
			continue
		}
		p, there, further := r.packState(to)
		if there {
			f, err := r.footer(ctx, to)
			if err != nil {
				return place{}, false, fmt.Errorf("pack %s, which others were moved to: %w", to, err)
			}
			if n, ok := f.find(id); ok {
				last, found = place{pack: to, record: n}, true
				if p.Condemned == 0 {
					return last, true, nil
				}
			}
		}
		if len(further) > 0 {
			if seen == nil {
				seen = map[PackID]bool{}
			}
			seen[to] = true
			queue = append(slices.Clone(queue), further...)
		}
	}
	return last, found, nil
}

// packState tells of a pack: its state, and where what lived in it was moved to.
func (r *Repository) packState(id PackID) (p ledger.PackState, there bool, moved [][16]byte) {
	r.ledger.View(func(s *ledger.State) {
		p, there = s.Packs[id]
		moved = s.Moved[id]
	})
	return p, there, moved
}

// next begins a walk of points that came later: pages that were seen are not seen again, and of data packs nothing is kept
// but which condemned ones are needed.
func (m *marker) next() {
	m.data = map[PackID]*packBits{}
	m.wanted = func(PackID) bool { return false }
	m.needed = map[PackID]bool{}
}

// live is how many records of a pack live.
func (m *marker) live(id PackID, meta bool) int {
	if meta {
		if b := m.meta[id]; b != nil {
			return b.count
		}
		return 0
	}
	if b := m.data[id]; b != nil {
		return b.count
	}
	return 0
}

// records lists the living records of a pack.
func (m *marker) records(id PackID, meta bool) []uint16 {
	if meta {
		if b := m.meta[id]; b != nil {
			return b.records()
		}
		return nil
	}
	if b := m.data[id]; b != nil {
		return b.records()
	}
	return nil
}
