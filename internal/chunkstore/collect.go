package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"drover/internal/blob"
	"drover/internal/chunkstore/ledger"
	"drover/internal/chunkstore/pack"
)

// CollectOptions are for Collect. The zero value does all of it, at full speed.
type CollectOptions struct {
	// Rate is how many bytes a second compaction copies; 0: as fast as it goes.
	Rate int64
	// Share is the share of living records under which a pack is compacted; 0: 0.55. Below 0: none is.
	Share float64
	// Memory bounds the bits that are kept of records, in bytes; 0: 64 MiB. Of more than that the walk is made in passes.
	Memory int64
	// Dead is how long a session may be silent before it is taken for dead and ended; 0: a day; below 0: never.
	Dead time.Duration
	// DryRun walks and tells, and changes nothing.
	DryRun bool
}

// CollectResult tells what a collection did. Sizes are in bytes of packs.
type CollectResult struct {
	Points  int   // walked
	Pages   int64 // read
	Read    int64 // bytes of them
	Passes  int
	Packs   int   // of the repository, at the walk
	Size    int64 // of them
	Live    int64 // about what of it lives
	Ended   int   // sessions taken for dead
	Dead    int   // packs condemned with nothing in them
	Move    MoveResult
	Rescued int // condemned packs that turned out to be needed
	Dropped int
	Freed   int64
	Orphans int // objects of no transaction, deleted
	Parity  int // parity objects made
	// Waiting are condemned packs that open sessions may still need, and their size.
	Waiting     int
	WaitingSize int64
	Lost        []Lost
}

// Collect frees the room of points that were forgotten. It makes nobody wait and waits for nobody: what open sessions may need
// stays for the next time. It may be cut off at any moment; several at once do no harm. The rules are those of the format page.
func (r *Repository) Collect(ctx context.Context, o CollectOptions) (CollectResult, error) {
	if o.Share == 0 {
		o.Share = 0.55
	}
	if o.Memory <= 0 {
		o.Memory = 64 << 20
	}
	if o.Dead == 0 {
		o.Dead = 24 * time.Hour
	}
	c := &collection{r: r, o: o}
	for try := 0; ; try++ {
		seq := r.ledger.Seq()
		err := c.run(ctx)
		if err == nil {
			return c.CollectResult, nil
		}
		// Another collector may have deleted what we walk: what the log says by now decides.
		if gone := errors.Is(err, blob.ErrNotFound) || errors.Is(err, ErrGone); gone && try < collectTries && ctx.Err() == nil {
			if rerr := r.Refresh(ctx); rerr == nil && r.ledger.Seq() != seq {
				done := c.CollectResult
				c = &collection{r: r, o: o, CollectResult: CollectResult{Ended: done.Ended, Dead: done.Dead, Move: done.Move, Rescued: done.Rescued, Dropped: done.Dropped, Freed: done.Freed, Orphans: done.Orphans, Parity: done.Parity}}
				continue
			}
		}
		return c.CollectResult, fmt.Errorf("collect garbage in %s: %w", r.store, err)
	}
}

const collectTries = 8

// collection is one run of the collector.
type collection struct {
	r *Repository
	o CollectOptions
	CollectResult

	marker *marker
	// walked is the SEQ up to which points were walked, first that of the first walk.
	walked, first int64
	// own are packs that this run condemned: the first walk knows what lived in them.
	own     map[PackID]bool
	needed  map[PackID]bool
	orphans []orphan
	listed  int64 // SEQ after the listing
}

type orphan struct {
	id   PackID
	kind pack.Kind
}

func (c *collection) run(ctx context.Context) error {
	c.own, c.needed = map[PackID]bool{}, map[PackID]bool{}
	if err := c.r.Refresh(ctx); err != nil {
		return err
	}
	var err error
	c.r.ledger.View(func(s *ledger.State) { err = s.Collectable() })
	if err != nil {
		return err
	}
	if err := c.endDead(ctx); err != nil {
		return err
	}
	// A log that lacks an entry would make garbage of all that came after it.
	if err := c.r.ledger.Whole(ctx); err != nil {
		return err
	}
	// What an interrupted run has dropped is deleted first.
	if err := c.delete(ctx); err != nil {
		return err
	}
	if err := c.list(ctx); err != nil {
		return err
	}
	if err := c.mark(ctx); err != nil {
		return err
	}
	if c.o.DryRun {
		return nil
	}
	if err := c.drop(ctx); err != nil {
		return err
	}
	// New packs, also those just made, get their parity now: writers do not take the time.
	made, err := c.r.Protect(ctx)
	if c.Parity += made; err != nil {
		return err
	}
	return c.note(ctx)
}

// endDead ends sessions that have been silent for long.
func (c *collection) endDead(ctx context.Context) error {
	if c.o.Dead < 0 || c.o.DryRun {
		return nil
	}
	limit := c.r.o.Clock.Now().Add(-c.o.Dead)
	for {
		var dead []byte
		_, err := c.r.ledger.Do(ctx, func(s *ledger.State) (*ledger.Transaction, error) {
			dead = nil
			for id, o := range s.Sessions {
				if o.Time.Before(limit) {
					dead = id[:]
					break
				}
			}
			if dead == nil {
				return nil, nil
			}
			return &ledger.Transaction{Kind: &ledger.Transaction_End{End: &ledger.End{Session: dead, Reason: "silent for more than " + c.o.Dead.String()}}}, nil
		})
		if err != nil || dead == nil {
			return err
		}
		c.r.log.Warn("a session of the repository is taken for dead", "session", SessionID(dead))
		c.Ended++
	}
}

// list finds objects that may be orphans. The log is read after it.
func (c *collection) list(ctx context.Context) error {
	for _, kind := range []pack.Kind{pack.Data, pack.Meta} {
		prefix := "data/"
		if kind == pack.Meta {
			prefix = "meta/"
		}
		for info, err := range c.r.store.List(ctx, prefix, "") {
			if err != nil {
				return fmt.Errorf("list %s: %w", prefix, err)
			}
			id, ok := parsePackName(info.Name)
			if !ok {
				continue
			}
			if _, known := c.r.ledger.Pack(id); !known {
				c.orphans = append(c.orphans, orphan{id, kind})
			}
		}
	}
	if err := c.r.Refresh(ctx); err != nil {
		return err
	}
	c.listed = c.r.ledger.Seq()
	if c.listed == 0 && len(c.orphans) > 0 {
		return fmt.Errorf("%w: there are %d packs, and no log that tells of them: nothing is deleted", ledger.ErrMissing, len(c.orphans))
	}
	return nil
}

func parsePackName(name string) (id PackID, ok bool) {
	s := name[strings.LastIndexByte(name, '/')+1:]
	if len(s) != 2*len(id) {
		return id, false
	}
	for i := range id {
		hi, lo := unhex(s[2*i]), unhex(s[2*i+1])
		if hi > 15 || lo > 15 {
			return id, false
		}
		id[i] = hi<<4 | lo
	}
	return id, true
}

func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	}
	return 255
}

// mark walks all points, condemns what is dead, and compacts what is mostly dead.
func (c *collection) mark(ctx context.Context) error {
	var points []*ledger.PointState
	var young, size int64
	var bits, packs int64
	c.r.ledger.View(func(s *ledger.State) {
		points, c.first, young = s.Walk(), s.Seq, youngest(s)
		for _, p := range s.Packs {
			bits += int64(p.Records)/8 + 96
			size += p.Size
			packs++
		}
	})
	c.walked = c.first
	c.Points, c.Packs, c.Size = len(points), int(packs), size
	c.Passes = int(min(max((bits+c.o.Memory-1)/c.o.Memory, 1), 256))
	for pass := range c.Passes {
		m := newMarker(c.r, func(id PackID) bool { return int(id[0])*c.Passes/256 == pass })
		if err := m.walk(ctx, points); err != nil {
			return err
		}
		for id := range m.needed {
			c.needed[id] = true
		}
		c.Pages += m.pages
		c.Read += m.read
		c.Lost = m.lost
		dead, loads := c.choose(m, young, pass)
		if !c.o.DryRun {
			if err := c.condemnDead(ctx, dead); err != nil {
				return err
			}
			if err := c.compact(ctx, loads); err != nil {
				return err
			}
		}
		c.marker = m
	}
	return nil
}

// choose finds the packs of a pass that are dead, and those that are to be compacted.
func (c *collection) choose(m *marker, young int64, pass int) (dead []PackID, loads []load) {
	var small [2][]load
	c.r.ledger.View(func(s *ledger.State) {
		for id, p := range s.Packs {
			if p.Condemned != 0 || p.Added >= young || p.Added > c.first || (p.Meta && pass > 0) || (!p.Meta && !m.wanted(id)) {
				continue
			}
			live := m.live(id, p.Meta)
			share := float64(live) / float64(max(p.Records, 1))
			c.Live += int64(share * float64(p.Size))
			switch {
			case live == 0:
				dead = append(dead, id)
			case c.o.Share < 0 || p.Damaged:
			case share < c.o.Share:
				loads = append(loads, load{id: id, state: p, records: m.records(id, p.Meta)})
			case p.Size < pack.Target/4:
				k := 0
				if p.Meta {
					k = 1
				}
				small[k] = append(small[k], load{id: id, state: p, records: m.records(id, p.Meta)})
			}
		}
	})
	// Many small packs, as each short backup leaves them, become few large ones.
	for _, list := range small {
		if len(list) >= smallPacks {
			loads = append(loads, list...)
		}
	}
	slices.SortFunc(dead, func(a, b PackID) int { return bytes.Compare(a[:], b[:]) })
	slices.SortFunc(loads, compareLoads)
	return dead, loads
}

// smallPacks is how many small packs are worth a move.
const smallPacks = 16

// compareLoads puts packs of one kind together, and in the order of their age.
func compareLoads(a, b load) int {
	if a.state.Meta != b.state.Meta {
		if a.state.Meta {
			return 1
		}
		return -1
	}
	if a.state.Added != b.state.Added {
		if a.state.Added < b.state.Added {
			return -1
		}
		return 1
	}
	return bytes.Compare(a.id[:], b.id[:])
}

// condemnDead condemns packs in which nothing lives.
func (c *collection) condemnDead(ctx context.Context, dead []PackID) error {
	const atOnce = 10_000
	for len(dead) > 0 {
		part := dead[:min(len(dead), atOnce)]
		dead = dead[len(part):]
		var took []PackID
		_, err := c.r.ledger.Do(ctx, func(s *ledger.State) (*ledger.Transaction, error) {
			if err := s.Collectable(); err != nil {
				return nil, err
			}
			t := &ledger.Condemn{Seen: c.first}
			took = took[:0]
			for _, id := range part {
				if p, ok := s.Packs[id]; ok && p.Condemned == 0 {
					t.Packs = append(t.Packs, &ledger.Moved{Pack: bytes.Clone(id[:])})
					took = append(took, id)
				}
			}
			if len(took) == 0 {
				return nil, nil
			}
			return &ledger.Transaction{Kind: &ledger.Transaction_Condemn{Condemn: t}}, nil
		})
		if err != nil {
			return err
		}
		c.condemned(took)
		c.Dead += len(took)
	}
	return nil
}

// mine remembers what this run condemned.
func (c *collection) mine(packs []PackID) {
	for _, id := range packs {
		c.own[id] = true
	}
}

// condemned takes packs out of the index.
func (c *collection) condemned(packs []PackID) {
	c.mine(packs)
	if x := c.r.currentIndex(); x != nil {
		if err := x.Remove(packs...); err != nil {
			c.r.log.Warn("the index keeps packs that are condemned", "error", err)
		}
	}
}

func (c *collection) compact(ctx context.Context, loads []load) error {
	res, err := c.r.move(ctx, moveOptions{purpose: "compact", seen: c.first, rate: c.o.Rate, condemned: c.mine}, loads)
	c.Move.Packs += res.Packs
	c.Move.Copied += res.Copied
	c.Move.Made += res.Made
	c.Move.Freed += res.Freed
	c.Move.Left += res.Left
	if errors.Is(err, blob.ErrFull) {
		// What is dead makes the room that moving needs.
		c.r.log.Warn("no room to compact packs: another time", "error", err)
		return nil
	}
	return err
}

// dropRounds is how often a commit may come between a walk and a drop before it is left for the next time.
const dropRounds = 8

// errAgain says that something came after the walk.
var errAgain = errors.New("a commit came after the walk")

// drop walks what came after the first walk, rescues condemned packs that are needed, and drops the others that no open session
// may need.
func (c *collection) drop(ctx context.Context) error {
	c.marker.next()
	for range dropRounds {
		if err := c.catchUp(ctx); err != nil {
			return err
		}
		if err := c.reprieve(ctx); err != nil {
			return err
		}
		err := c.tryDrop(ctx)
		if errors.Is(err, errAgain) {
			continue
		}
		if err != nil {
			return err
		}
		return c.delete(ctx)
	}
	c.r.log.Info("packs are left for the next collection: commits came too quickly")
	return nil
}

// catchUp walks the points that were committed after those that were walked.
func (c *collection) catchUp(ctx context.Context) error {
	if err := c.r.Refresh(ctx); err != nil {
		return err
	}
	var points []*ledger.PointState
	var seq int64
	c.r.ledger.View(func(s *ledger.State) {
		seq = s.Seq
		for _, p := range s.Walk() {
			if p.Committed > c.walked {
				points = append(points, p)
			}
		}
	})
	if err := c.marker.walk(ctx, points); err != nil {
		return err
	}
	for id := range c.marker.needed {
		c.needed[id] = true
	}
	c.walked = seq
	return nil
}

func (c *collection) reprieve(ctx context.Context) error {
	rescued := 0
	_, err := c.r.ledger.Do(ctx, func(s *ledger.State) (*ledger.Transaction, error) {
		t := &ledger.Packs{}
		rescued = 0
		for id := range c.needed {
			if p, ok := s.Packs[id]; ok && p.Condemned != 0 {
				t.Packs = append(t.Packs, bytes.Clone(id[:]))
			}
		}
		if len(t.Packs) == 0 {
			return nil, nil
		}
		rescued = len(t.Packs)
		return &ledger.Transaction{Kind: &ledger.Transaction_Reprieve{Reprieve: t}}, nil
	})
	if err == nil {
		c.Rescued += rescued
	}
	return err
}

// tryDrop drops the packs that may go now.
func (c *collection) tryDrop(ctx context.Context) error {
	var freed int64
	var packs, orphans int
	_, err := c.r.ledger.Do(ctx, func(s *ledger.State) (*ledger.Transaction, error) {
		if err := s.Collectable(); err != nil {
			return nil, err
		}
		if later(s, c.walked) {
			return nil, errAgain
		}
		t := &ledger.Drop{Seen: c.walked}
		freed = 0
		c.Waiting, c.WaitingSize = 0, 0
		for id, p := range s.Packs {
			if p.Condemned == 0 || c.needed[id] {
				continue
			}
			// One that another condemned after our first walk may hold what that walk saw in it, and its own knows.
			if p.Condemned > c.first && !c.own[id] || !droppable(s, p, c.walked) || len(t.Packs) >= ledger.MaxPacks/2 {
				c.Waiting++
				c.WaitingSize += p.Size
				continue
			}
			t.Packs = append(t.Packs, bytes.Clone(id[:]))
			freed += p.Size
		}
		t.Orphans = c.lonely(s)
		packs, orphans = len(t.Packs), len(t.Orphans)
		if packs+orphans == 0 {
			return nil, nil
		}
		return &ledger.Transaction{Kind: &ledger.Transaction_Drop{Drop: t}}, nil
	})
	if err != nil {
		return err
	}
	c.Dropped += packs
	c.Orphans += orphans
	c.Freed += freed
	return nil
}

// later reports whether there is a point that was committed after a transaction, and that somebody may read.
func later(s *ledger.State, seq int64) bool {
	for _, p := range s.Points {
		if p.Committed > seq {
			return true
		}
	}
	return slices.ContainsFunc(s.Forgotten, func(p *ledger.PointState) bool { return p.Committed > seq })
}

// droppable applies the rule of the format: no session of then is open, none of them has committed after the walk, and the
// walk came after the condemn.
func droppable(s *ledger.State, p ledger.PackState, walked int64) bool {
	g := s.Condemns[p.Condemned]
	return g != nil && len(g.Open) == 0 && g.LastCommit <= walked && p.Condemned <= walked
}

// lonely lists the objects that no session can add any more: all sessions that write now began after the listing.
func (c *collection) lonely(s *ledger.State) [][]byte {
	if youngest(s) <= c.listed {
		return nil
	}
	var out [][]byte
	for _, o := range c.orphans {
		if _, known := s.Packs[o.id]; !known && !s.Doomed[o.id] && len(out) < ledger.MaxPacks/2 {
			out = append(out, bytes.Clone(o.id[:]))
		}
	}
	return out
}

// delete deletes the objects of packs that were dropped.
func (c *collection) delete(ctx context.Context) error {
	if c.o.DryRun {
		return nil
	}
	var doomed []PackID
	c.r.ledger.View(func(s *ledger.State) {
		for id := range s.Doomed {
			doomed = append(doomed, id)
		}
	})
	slices.SortFunc(doomed, func(a, b PackID) int { return bytes.Compare(a[:], b[:]) })
	var gone [][]byte
	locked := 0
	for _, id := range doomed {
		c.r.footers.drop(id)
		err := c.deletePack(ctx, id)
		if errors.Is(err, blob.ErrReadOnly) {
			locked++ // a lock of the storage is in force, or the key may not: another time
			continue
		}
		if err != nil {
			return fmt.Errorf("delete pack %s: %w", id, err)
		}
		gone = append(gone, bytes.Clone(id[:]))
	}
	if locked > 0 {
		c.r.log.Info("the storage does not let packs be deleted yet", "packs", locked)
	}
	if len(gone) == 0 {
		return nil
	}
	_, err := c.r.ledger.Do(ctx, func(*ledger.State) (*ledger.Transaction, error) {
		return &ledger.Transaction{Kind: &ledger.Transaction_Dropped{Dropped: &ledger.Packs{Packs: gone}}}, nil
	})
	return err
}

func (c *collection) deletePack(ctx context.Context, id PackID) error {
	names := []string{packName(pack.Data, id), packName(pack.Meta, id)}
	if c.r.Parity() {
		names = append(names, parityName(id))
	}
	for _, name := range names {
		if err := c.r.store.Delete(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// note tells people when a collection ended.
func (c *collection) note(ctx context.Context) error {
	_, err := c.r.ledger.Do(ctx, func(*ledger.State) (*ledger.Transaction, error) {
		return &ledger.Transaction{Kind: &ledger.Transaction_Mark{Mark: &ledger.Mark{What: "collect", Seen: c.walked, Bytes: c.Freed, Packs: int64(c.Dropped)}}}, nil
	})
	return err
}

func parityName(id PackID) string {
	s := id.String()
	return "parity/" + s[:2] + "/" + s
}
