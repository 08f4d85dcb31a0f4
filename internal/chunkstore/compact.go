package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"drover/internal/blob"
	"drover/internal/chunkstore/ledger"
	"drover/internal/chunkstore/pack"
)

// load is a pack whose living records are to be moved.
type load struct {
	id      PackID
	state   ledger.PackState
	records []uint16 // in order; nil: all
	// whole is the pack's bytes if they were repaired; nil: read them.
	whole []byte
	// patches are records, decompressed, in the place of bad ones.
	patches map[uint16][]byte
}

// moveOptions are for a mover.
type moveOptions struct {
	purpose string
	// seen is the SEQ of the walk that said what lives; 0: everything is moved, and the last transaction serves.
	seen int64
	rate int64 // bytes a second; 0: as fast as it goes
	// dense compresses blocks anew with the slow codec.
	dense   *dense
	workers int
	// condemned is told of packs as they are condemned; nil: nobody.
	condemned func([]PackID)
}

// MoveResult counts what a mover did.
type MoveResult struct {
	Packs  int   // moved
	Copied int64 // bytes of records as they stood
	Made   int64 // bytes of the new packs
	Freed  int64 // bytes of the old packs, once they are dropped
	// Left are packs that could not be read. They stay as they are.
	Left int
}

// mover copies records into new packs and condemns the old ones, some packs at a time: what a crash undoes is one batch. It is a
// session, so that its new packs are no orphans; if another ends it, the batch comes to nothing.
type mover struct {
	r    *Repository
	o    moveOptions
	s    *Session
	pace *pace
	out  []sealedPack // guarded by mu
	mu   sync.Mutex
	MoveResult
}

// batchBytes is how much a mover moves between two transactions.
const batchBytes = 8 * pack.Target

// move moves packs.
func (r *Repository) move(ctx context.Context, o moveOptions, loads []load) (MoveResult, error) {
	if len(loads) == 0 {
		return MoveResult{}, nil
	}
	s, err := r.Begin(ctx, BeginOptions{Purpose: o.purpose})
	if err != nil {
		return MoveResult{}, err
	}
	m := &mover{r: r, o: o, s: s, pace: newPace(r.o.Clock, o.rate)}
	for len(loads) > 0 && err == nil {
		n, size := 0, int64(0)
		for n < len(loads) && (n == 0 || size < batchBytes && loads[n].state.Meta == loads[0].state.Meta) {
			l := &loads[n]
			if l.records != nil && l.state.Records > 0 {
				size += l.state.Size * int64(len(l.records)) / int64(l.state.Records)
			} else {
				size += l.state.Size
			}
			n++
		}
		err = m.batch(ctx, loads[:n])
		loads = loads[n:]
	}
	return m.MoveResult, errors.Join(err, s.Close(ctx))
}

// batch moves packs of one kind.
func (m *mover) batch(ctx context.Context, loads []load) error {
	kind := pack.Data
	if loads[0].state.Meta {
		kind = pack.Meta
	}
	m.out = nil
	packs := newPacker(m.s.ctx, m.r, kind, m.sealed)
	defer packs.abandon()
	moved := make([]*ledger.Moved, len(loads))
	var mu sync.Mutex // of the result and moved
	err := each(ctx, max(m.o.workers, 1), len(loads), func(ctx context.Context, i int) error {
		to, copied, err := m.pack(ctx, packs, &loads[i])
		mu.Lock()
		defer mu.Unlock()
		if errors.Is(err, ErrDamaged) || errors.Is(err, blob.ErrNotFound) || errors.Is(err, ErrGone) {
			// Or another collector has dropped it.
			m.r.log.Warn("a pack can not be moved", "pack", loads[i].id, "error", err)
			m.Left++
			return nil
		}
		if err != nil {
			return err
		}
		m.Copied += copied
		id := loads[i].id
		moved[i] = &ledger.Moved{Pack: id[:]}
		for t := range to {
			moved[i].To = append(moved[i].To, t[:])
		}
		return nil
	})
	if err == nil {
		err = packs.flush()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", m.o.purpose, err)
	}
	return m.condemn(ctx, loads, moved)
}

// sealed collects the new packs.
func (m *mover) sealed(p sealedPack) error {
	p.info.Dense = m.o.dense != nil
	m.mu.Lock()
	m.out = append(m.out, p)
	m.mu.Unlock()
	return nil
}

// pack copies one pack's records, and tells into which packs.
func (m *mover) pack(ctx context.Context, into *packer, l *load) (to map[PackID]bool, copied int64, err error) {
	f, err := m.r.loadFooter(ctx, l)
	if err != nil {
		return nil, 0, err
	}
	w := m.r.sweeper()
	defer w.close()
	w.whole = l.whole
	to = map[PackID]bool{}
	var d *denser
	if m.o.dense != nil && !l.state.Meta {
		d = m.o.dense.take()
		defer m.o.dense.put(d)
	}
	err = w.records(ctx, f, l.records, func(number int, b []byte) error {
		m.mu.Lock()
		perr := m.pace.spend(ctx, int64(len(b)))
		m.mu.Unlock()
		if perr != nil {
			return perr
		}
		e := &f.entries[number]
		codec := e.Codec
		payload := l.patches[uint16(number)]
		if payload != nil {
			codec, payload = w.sc.compress(payload)
		} else if payload, err = f.open(number, b); err != nil {
			return err
		}
		if d != nil && codec != pack.Zstd {
			if codec, payload, err = d.squeeze(w.sc, e, payload); err != nil {
				return fmt.Errorf("pack %s, record %d: %w", f.id, number, err)
			}
		}
		at, n, err := into.append(ctx, e.ID, codec, int(e.Raw), payload)
		if err != nil {
			return err
		}
		to[at.pack] = true
		copied += int64(n)
		return nil
	})
	return to, copied, err
}

// condemn makes the new packs part of the repository, and condemns the old ones.
func (m *mover) condemn(ctx context.Context, loads []load, moved []*ledger.Moved) error {
	var took []int
	_, err := m.r.ledger.Do(ctx, func(s *ledger.State) (*ledger.Transaction, error) {
		if s.Sessions[m.s.id] == nil {
			return nil, fmt.Errorf("session %s: %w", m.s.id, ErrEnded)
		}
		if err := s.Collectable(); err != nil {
			return nil, err
		}
		c := &ledger.Condemn{Seen: m.o.seen}
		if c.Seen == 0 {
			c.Seen = s.Seq
		}
		took = took[:0]
		for i, v := range moved {
			if v == nil {
				continue
			}
			// Another collector may have been quicker, and a pack may have turned out to be damaged: then what was copied of it
			// lives nowhere, and goes with the next collection.
			if p, ok := s.Packs[loads[i].id]; ok && p.Condemned == 0 && p.Added <= c.Seen {
				c.Packs = append(c.Packs, v)
				took = append(took, i)
			}
		}
		if len(c.Packs) == 0 {
			return nil, nil
		}
		for _, p := range m.out {
			c.Added = append(c.Added, p.info)
		}
		return &ledger.Transaction{Kind: &ledger.Transaction_Condemn{Condemn: c}}, nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", m.o.purpose, err)
	}
	if len(took) == 0 {
		return nil
	}
	x := m.r.currentIndex()
	for _, p := range m.out {
		m.Made += p.info.Size
		if x != nil && !p.info.Meta {
			if err := x.Add(p.id, p.entries); err != nil {
				m.r.log.Warn("the index does not take a pack: its blocks will be stored again", "pack", p.id, "error", err)
			}
		}
	}
	ids := make([]PackID, 0, len(took))
	for _, i := range took {
		ids = append(ids, loads[i].id)
		m.Packs++
		m.Freed += loads[i].state.Size
	}
	if x != nil {
		if err := x.Remove(ids...); err != nil {
			m.r.log.Warn("the index keeps packs that are condemned", "error", err)
		}
	}
	if m.o.condemned != nil {
		m.o.condemned(ids)
	}
	return nil
}

// loadFooter is the footer of a pack that is to be moved.
func (r *Repository) loadFooter(ctx context.Context, l *load) (*footer, error) {
	if l.whole == nil {
		return r.footer(ctx, l.id)
	}
	f := &footer{id: l.id, kind: pack.Data}
	if l.state.Meta {
		f.kind = pack.Meta
	}
	var err error
	if f.sealer, err = r.ring.Sealer(uint32(l.state.Generation), l.id); err == nil {
		f.entries, err = pack.ParseTail(l.whole, l.state.Size, f.sealer)
	}
	if err != nil {
		return nil, fmt.Errorf("pack %s: %w", l.id, err)
	}
	return f, nil
}

// each calls do for 0 to n−1, so many at a time, and waits. The first error ends it.
func each(ctx context.Context, workers, n int, do func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	next := make(chan int)
	for range min(workers, n) {
		wg.Go(func() {
			for i := range next {
				if err := do(ctx, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	for i := range n {
		if ctx.Err() != nil {
			break
		}
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}
