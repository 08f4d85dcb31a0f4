package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"drover/internal/blob"
	"drover/internal/chunkstore/ledger"
	"drover/internal/chunkstore/pack"
)

// footer is what is known of a pack by reading its end.
type footer struct {
	id      PackID
	kind    pack.Kind
	sealer  *pack.Sealer
	entries []pack.Entry

	once sync.Once
	byID map[ID]uint16
}

// find looks a record up by id.
func (f *footer) find(id ID) (uint16, bool) {
	f.once.Do(func() {
		f.byID = make(map[ID]uint16, len(f.entries))
		for i := range f.entries {
			f.byID[f.entries[i].ID] = uint16(i)
		}
	})
	n, ok := f.byID[id]
	return n, ok
}

// footer returns a pack's footer, from memory if it was used lately.
func (r *Repository) footer(ctx context.Context, id PackID) (*footer, error) {
	if f, ok := r.footers.get(id); ok {
		return f, nil
	}
	f, err := r.readFooter(ctx, id)
	if err == nil {
		r.footers.put(id, f)
	}
	return f, err
}

func (r *Repository) readFooter(ctx context.Context, id PackID) (*footer, error) {
	p, ok := r.ledger.Pack(id)
	if !ok {
		return nil, fmt.Errorf("pack %s: %w", id, ErrGone)
	}
	f := &footer{id: id, kind: pack.Data}
	if p.Meta {
		f.kind = pack.Meta
	}
	var err error
	if f.sealer, err = r.ring.Sealer(uint32(p.Generation), id); err != nil {
		return nil, err
	}
	size := int64(pack.TailSize(int(p.Records), f.sealer.Sealed()))
	if p.Size < size || p.Size > pack.MaxSize {
		return nil, fmt.Errorf("pack %s: %w: the log says it has %d bytes and %d records", id, ErrDamaged, p.Size, p.Records)
	}
	tail := make([]byte, size)
	if err := r.store.ReadAt(ctx, packName(f.kind, id), tail, p.Size-size); err != nil {
		return nil, fmt.Errorf("pack %s: its footer: %w", id, err)
	}
	if f.entries, err = pack.ParseTail(tail, p.Size, f.sealer); err != nil {
		return nil, fmt.Errorf("pack %s: %w", id, err)
	}
	return f, nil
}

// doubtful reports whether a pack's records are better sought in others: they stand there as well, and it may go or is damaged.
func (r *Repository) doubtful(id PackID) bool {
	p, there, moved := r.packState(id)
	return there && (p.Damaged || p.Condemned != 0 && len(moved) > 0)
}

// locate finds the footer and the number of a record: where it was, or in the packs that took in what lived there, or, if
// its pack is damaged, where it was stored anew.
func (r *Repository) locate(ctx context.Context, at place, id ID) (*footer, int, error) {
	doubt := r.doubtful(at.pack)
	if doubt {
		if f, n, err := r.better(ctx, at.pack, id); f != nil || ctx.Err() != nil {
			return f, n, err
		}
	}
	f, err := r.footer(ctx, at.pack)
	if err == nil {
		if int(at.record) < len(f.entries) && f.entries[at.record].ID == id {
			return f, int(at.record), nil
		}
		err = fmt.Errorf("pack %s: %w: record %d is not the one looked for", at.pack, ErrDamaged, at.record)
	}
	if ctx.Err() != nil {
		return nil, 0, ctx.Err()
	}
	if doubt {
		return nil, 0, err
	}
	f, n, merr := r.better(ctx, at.pack, id)
	if merr != nil {
		return nil, 0, merr
	}
	if f == nil {
		return nil, 0, err
	}
	return f, n, nil
}

// better finds a record in another pack, in one that is not doubtful itself if there is one; nil: there is none that can be read.
func (r *Repository) better(ctx context.Context, from PackID, id ID) (*footer, int, error) {
	f, n, err := r.moved(ctx, from, id)
	if err != nil || f != nil && !r.doubtful(f.id) {
		return f, n, err
	}
	x := r.currentIndex()
	if x == nil {
		return f, n, nil
	}
	if p, k, ok, err := x.Lookup(id); err == nil && ok && p != from && r.live(p) {
		g, err := r.footer(ctx, p)
		if err == nil && int(k) < len(g.entries) && g.entries[k].ID == id {
			return g, int(k), nil
		}
		return f, n, ctx.Err()
	}
	return f, n, nil
}

// moved finds a record in the packs that a pack's records went to, however often they went on. What it finds is doubtful only if there is no other.
func (r *Repository) moved(ctx context.Context, from PackID, id ID) (last *footer, number int, err error) {
	seen := map[PackID]bool{from: true}
	_, _, queue := r.packState(from)
	queue = slices.Clone(queue)
	for len(queue) > 0 {
		t := PackID(queue[0])
		queue = queue[1:]
		if seen[t] {
			continue
		}
		seen[t] = true
		_, there, further := r.packState(t)
		if there {
			f, err := r.footer(ctx, t)
			if err != nil && ctx.Err() != nil {
				return nil, 0, ctx.Err()
			}
			if err == nil {
				if n, ok := f.find(id); ok {
					if !r.doubtful(t) {
						return f, int(n), nil
					}
					if last == nil {
						last, number = f, int(n)
					}
				}
			}
		}
		queue = append(queue, further...)
	}
	return last, number, nil
}

// dropped forgets what is cached of a pack that turned out to be gone, and reads the log: it tells where its records went.
func (r *Repository) dropped(ctx context.Context, id PackID) error {
	r.footers.drop(id)
	return r.ledger.Refresh(ctx)
}

// open checks a record's bytes against its entry, and opens its payload, in place.
func (f *footer) open(number int, b []byte) ([]byte, error) {
	e := &f.entries[number]
	head, stored, err := pack.ParseRecord(b)
	if err == nil && (head.ID != e.ID || head.Stored != e.Stored || head.Raw != e.Raw || head.Codec != e.Codec) {
		err = fmt.Errorf("%w: the record is not the one that the footer lists", ErrDamaged)
	}
	if err == nil {
		stored, err = f.sealer.Open(stored[:0], stored, uint32(number), b[:pack.HeadSize])
	}
	if err != nil {
		return nil, fmt.Errorf("pack %s, record %d: %w", f.id, number, err)
	}
	return stored, nil
}

func recordSize(e *pack.Entry) int { return pack.HeadSize + int(e.Stored) + pack.CRCSize }

// record reads one record, decompressed.
func (r *Repository) record(ctx context.Context, at place, id ID) ([]byte, error) {
	for again := false; ; again = true {
		f, n, err := r.locate(ctx, at, id)
		var b []byte
		if err == nil {
			e := &f.entries[n]
			b = make([]byte, recordSize(e))
			err = r.store.ReadAt(ctx, packName(f.kind, f.id), b, int64(e.Offset))
		}
		if err != nil {
			if !again && (errors.Is(err, blob.ErrNotFound) || errors.Is(err, ErrGone)) {
				gone := at.pack
				if f != nil {
					gone = f.id
				}
				if err := r.dropped(ctx, gone); err != nil {
					return nil, err
				}
				continue
			}
			return nil, err
		}
		payload, err := f.open(n, b)
		if err != nil {
			return nil, err
		}
		e := &f.entries[n]
		if e.Codec == pack.Raw {
			return payload, nil
		}
		sc := r.scratch()
		defer r.release(sc)
		out := make([]byte, e.Raw)
		if err := sc.decompress(out, e.Codec, payload); err != nil {
			return nil, fmt.Errorf("pack %s, record %d: %w", f.id, n, err)
		}
		return out, nil
	}
}

// page reads a page, from memory if it was used lately.
func (r *Repository) page(ctx context.Context, at place, id ID) (*page, error) {
	if p, ok := r.pages.get(entry{id, at}); ok {
		return p, nil
	}
	b, err := r.record(ctx, at, id)
	if err != nil {
		return nil, fmt.Errorf("a page: %w", err)
	}
	p, err := parsePage(b)
	if err != nil {
		return nil, fmt.Errorf("a page in pack %s: %w: %w", at.pack, ErrDamaged, err)
	}
	sc := r.scratch()
	defer r.release(sc)
	if p.id(sc.hasher) != id {
		return nil, fmt.Errorf("a page in pack %s: %w: it is another", at.pack, ErrDamaged)
	}
	r.pages.put(entry{id, at}, p)
	return p, nil
}

// Description reads a point's description.
func (s *Session) Description(ctx context.Context, p *ledger.Point) ([]byte, error) {
	at, id, err := placeOf(p.GetDescription())
	if err == nil && id.Zero() {
		return nil, nil
	}
	var b []byte
	if err == nil {
		b, err = s.r.record(ctx, at, id)
	}
	if err == nil {
		sc := s.r.scratch()
		defer s.r.release(sc)
		if sc.hasher.Description(b) != id {
			err = fmt.Errorf("%w: it is another", ErrDamaged)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("the description of point %x: %w", p.GetId(), err)
	}
	return b, nil
}

// ownPage reads a page that this session wrote, and that the log does not know yet. It is durable.
func (s *Session) ownPage(ctx context.Context, e entry) (*page, error) {
	var own *sealedPack
	s.mu.Lock()
	for i := range s.metas {
		if s.metas[i].id == e.at.pack {
			own = &s.metas[i]
		}
	}
	s.mu.Unlock()
	if own == nil {
		return s.r.page(ctx, e.at, e.id)
	}
	sealer, err := s.r.ring.Sealer(uint32(own.info.Generation), own.id)
	if err != nil {
		return nil, err
	}
	f := &footer{id: own.id, kind: pack.Meta, sealer: sealer, entries: own.entries}
	b := make([]byte, recordSize(&f.entries[e.at.record]))
	if err := s.r.store.ReadAt(ctx, packName(f.kind, f.id), b, int64(f.entries[e.at.record].Offset)); err != nil {
		return nil, fmt.Errorf("a page: pack %s: %w", f.id, err)
	}
	if b, err = f.open(int(e.at.record), b); err != nil {
		return nil, err
	}
	return parsePage(b)
}
