package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"drover/internal/chunkstore/ledger"
	"drover/internal/chunkstore/pack"
)

const (
	// A session tells the log of its packs when it has so many, or so many records in them: until then others can not use them, and we keep their ids in memory.
	addPacks   = 8
	addRecords = 32 << 10
	// touchEvery is how often a session that writes nothing shows that it lives; one of a day may be taken for dead.
	touchEvery = 4 * time.Hour
)

// BeginOptions are for Begin.
type BeginOptions struct {
	Reader bool // writes nothing
	Pins   []PointID
	// Purpose is for people: "backup of web".
	Purpose string
}

// Session writes points, and reads. It is for concurrent use. While it is open nothing that it can read goes away.
type Session struct {
	r      *Repository
	id     SessionID
	o      BeginOptions
	began  int64
	ctx    context.Context // its lifetime
	cancel context.CancelFunc
	wg     sync.WaitGroup
	data   *packer
	meta   *packer

	addTurn chan struct{} // held by who tells the log of packs

	mu     sync.Mutex
	sealed []sealedPack // data packs that the log does not know yet
	metas  []sealedPack
	closed bool
	err    error // it was ended by another
}

// Begin starts a session. The caller ends it by Close. It fails with ErrGone if a pinned point is not there.
func (r *Repository) Begin(ctx context.Context, o BeginOptions) (*Session, error) {
	s := &Session{r: r, o: o, addTurn: make(chan struct{}, 1)}
	if r.o.ReadOnly {
		// Nothing can be written, so nobody can be told: what is read may go while it is read, and then reading fails.
		if !o.Reader {
			return nil, fmt.Errorf("begin a session: the repository was opened to read only")
		}
	} else {
		s.id = SessionID(r.randomID())
		b := &ledger.Begin{Session: s.id[:], Reader: o.Reader, Purpose: o.Purpose}
		for _, p := range o.Pins {
			b.Pins = append(b.Pins, p[:])
		}
		seq, err := r.ledger.Do(ctx, func(*ledger.State) (*ledger.Transaction, error) {
			return &ledger.Transaction{Kind: &ledger.Transaction_Begin{Begin: b}}, nil
		})
		if err != nil {
			return nil, fmt.Errorf("begin a session (%s): %w", o.Purpose, err)
		}
		s.began = seq
	}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.data = newPacker(s.ctx, r, pack.Data, s.sealedData)
	s.meta = newPacker(s.ctx, r, pack.Meta, s.sealedMeta)
	if !r.o.ReadOnly {
		s.wg.Go(s.touch)
	}
	return s, nil
}

// ID is the session's id.
func (s *Session) ID() SessionID { return s.id }

// Began is the number of the transaction that began it.
func (s *Session) Began() int64 { return s.began }

// touch shows now and then that the session lives.
func (s *Session) touch() {
	for {
		timer := s.r.o.Clock.NewTimer(touchEvery)
		select {
		case <-s.ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		if err := s.tell(s.ctx, nil); err != nil && s.ctx.Err() == nil {
			s.r.log.Warn("a session of the repository could not show that it lives", "session", s.id, "error", err)
		}
	}
}

// tell adds packs to the log.
func (s *Session) tell(ctx context.Context, packs []sealedPack) error {
	add := &ledger.Add{Session: s.id[:]}
	for _, p := range packs {
		add.Packs = append(add.Packs, p.info)
	}
	_, err := s.r.ledger.Do(ctx, func(*ledger.State) (*ledger.Transaction, error) {
		return &ledger.Transaction{Kind: &ledger.Transaction_Add{Add: add}}, nil
	})
	if errors.Is(err, ErrEnded) {
		s.mu.Lock()
		s.err = err
		s.mu.Unlock()
	}
	return err
}

func (s *Session) sealedMeta(p sealedPack) error {
	// Pages are told at the commit alone: before it, they may point to blocks that are not durable.
	s.mu.Lock()
	s.metas = append(s.metas, p)
	s.mu.Unlock()
	return nil
}

func (s *Session) sealedData(p sealedPack) error {
	s.mu.Lock()
	s.sealed = append(s.sealed, p)
	n, due := 0, len(s.sealed) >= addPacks
	for _, p := range s.sealed {
		n += len(p.entries)
	}
	s.mu.Unlock()
	if !due && n < addRecords {
		return nil
	}
	return s.addSealed(s.ctx)
}

// addSealed tells the log and then the index of the data packs that are durable.
func (s *Session) addSealed(ctx context.Context) error {
	select {
	case s.addTurn <- struct{}{}:
		defer func() { <-s.addTurn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	packs := slices.Clone(s.sealed)
	s.mu.Unlock()
	if len(packs) == 0 {
		return nil
	}
	if err := s.tell(ctx, packs); err != nil {
		return fmt.Errorf("add packs: %w", err)
	}
	s.told(packs)
	return nil
}

// told takes packs that the log knows by now out of the session's memory, and into the index.
func (s *Session) told(packs []sealedPack) {
	x := s.r.currentIndex()
	for _, p := range packs {
		if x != nil {
			if err := x.Add(p.id, p.entries); err != nil {
				s.r.log.Warn("the index does not take a pack: its blocks will be stored again", "pack", p.id, "error", err)
			}
		}
		s.data.forget(p.entries, p.id)
	}
	s.mu.Lock()
	s.sealed = s.sealed[len(packs):]
	s.mu.Unlock()
}

// check tells whether the session is still good.
func (s *Session) check() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("session %s: %w", s.id, ErrClosed)
	}
	return s.err
}

// Describe stores a point's description. Its place goes into the point.
func (s *Session) Describe(ctx context.Context, json []byte) (*ledger.Place, error) {
	if err := s.writable(); err != nil {
		return nil, err
	}
	if len(json) > pack.MaxRaw {
		return nil, fmt.Errorf("a description of %d bytes: at most %d", len(json), pack.MaxRaw)
	}
	sc := s.r.scratch()
	defer s.r.release(sc)
	id := sc.hasher.Description(json)
	codec, payload := sc.compress(json)
	at, _, err := s.meta.append(ctx, id, codec, len(json), payload)
	if err != nil {
		return nil, fmt.Errorf("store a description: %w", err)
	}
	return at.ledger(id), nil
}

func (s *Session) writable() error {
	if s.o.Reader {
		return fmt.Errorf("session %s only reads", s.id)
	}
	return s.check()
}

// Commit makes points of disks that are finished. When it returns without error they are durable. The session goes on. After an error they may be there
// or not; ErrEnded says that they are not.
func (s *Session) Commit(ctx context.Context, points ...*ledger.Point) error {
	if err := s.writable(); err != nil {
		return err
	}
	if err := s.data.flush(); err != nil {
		return err
	}
	if err := s.meta.flush(); err != nil {
		return err
	}
	select {
	case s.addTurn <- struct{}{}:
		defer func() { <-s.addTurn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	data, metas := slices.Clone(s.sealed), slices.Clone(s.metas)
	s.mu.Unlock()
	c := &ledger.Commit{Session: s.id[:], Points: points, More: true}
	for _, list := range [][]sealedPack{data, metas} {
		for _, p := range list {
			c.Packs = append(c.Packs, p.info)
		}
	}
	_, err := s.r.ledger.Do(ctx, func(*ledger.State) (*ledger.Transaction, error) {
		return &ledger.Transaction{Kind: &ledger.Transaction_Commit{Commit: c}}, nil
	})
	if err != nil {
		if errors.Is(err, ErrEnded) {
			s.mu.Lock()
			s.err = err
			s.mu.Unlock()
		}
		return fmt.Errorf("commit: %w", err)
	}
	s.told(data)
	s.mu.Lock()
	s.metas = s.metas[len(metas):]
	s.mu.Unlock()
	return nil
}

// Close ends the session. Points that were committed stay; packs that are durable serve later sessions. With a ctx that has ended the log is not
// told, and garbage that the session may refer to stays for a day.
func (s *Session) Close(ctx context.Context) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	ended := s.err != nil
	s.mu.Unlock()
	var err error
	if !s.o.Reader && !ended {
		// What was stored serves the next one, who may be the same after a cut.
		if err = s.data.flush(); err == nil {
			err = s.addSealed(ctx)
		}
	}
	s.cancel()
	s.data.abandon()
	s.meta.abandon()
	s.wg.Wait()
	if s.r.o.ReadOnly || ended {
		return err
	}
	_, eerr := s.r.ledger.Do(ctx, func(st *ledger.State) (*ledger.Transaction, error) {
		if st.Sessions[s.id] == nil {
			return nil, nil
		}
		return &ledger.Transaction{Kind: &ledger.Transaction_End{End: &ledger.End{Session: s.id[:]}}}, nil
	})
	if errors.Is(err, ErrEnded) {
		err = nil // nothing was lost by it
	}
	if err = errors.Join(err, eerr); err != nil {
		return fmt.Errorf("end session %s: %w", s.id, err)
	}
	return nil
}

func (l place) ledger(id ID) *ledger.Place {
	return &ledger.Place{Pack: l.pack[:], Record: int32(l.record), Id: id[:]}
}

func placeOf(l *ledger.Place) (place, ID, error) {
	if len(l.GetId()) == 0 {
		return place{}, ID{}, nil
	}
	if len(l.GetId()) != 32 || len(l.GetPack()) != 16 || l.GetRecord() < 0 || l.GetRecord() >= pack.MaxRecords {
		return place{}, ID{}, fmt.Errorf("%w: an impossible place in the log", ErrDamaged)
	}
	return place{pack: PackID(l.GetPack()), record: uint16(l.GetRecord())}, ID(l.GetId()), nil
}
