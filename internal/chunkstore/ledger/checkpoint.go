package ledger

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// encode returns the state as a checkpoint: the same state, the same bytes.
func (s *State) encode() ([]byte, error) {
	c := &Checkpoint{Seq: s.Seq, Hash: s.Hash[:], Generation: s.Generation, Newer: s.Newer, Require: &Require{Writer: s.MinWriter, Collector: s.MinReclaim}}
	for id, p := range s.Packs {
		c.Packs = append(c.Packs, &CheckpointPack{Added: p.Added, Condemned: p.Condemned, Damaged: p.Damaged, Pack: &Pack{
			Id: id[:], Meta: p.Meta, Size: p.Size, Raw: p.Raw, Records: p.Records, Generation: p.Generation, Dense: p.Dense}})
	}
	slices.SortFunc(c.Packs, func(a, b *CheckpointPack) int { return bytes.Compare(a.Pack.Id, b.Pack.Id) })
	point := func(p *PointState) {
		c.Points = append(c.Points, &CheckpointPoint{Point: p.Point, Committed: p.Committed, Forgotten: p.Forgotten, Keep: p.Keep})
	}
	for _, p := range s.Points {
		point(p)
	}
	slices.SortFunc(c.Points, func(a, b *CheckpointPoint) int { return bytes.Compare(a.Point.Id, b.Point.Id) })
	for _, p := range s.Forgotten {
		point(p)
	}
	for id, o := range s.Sessions {
		b := &Begin{Session: id[:], Reader: o.Reader, Purpose: o.Purpose}
		for _, pin := range o.Pins {
			b.Pins = append(b.Pins, pin[:])
		}
		c.Sessions = append(c.Sessions, &CheckpointSession{Begin: b, Began: o.Began, Last: o.Last, Time: timestamppb.New(o.Time)})
	}
	slices.SortFunc(c.Sessions, func(a, b *CheckpointSession) int { return cmp.Compare(a.Began, b.Began) })
	for seq, g := range s.Condemns {
		k := &Condemnation{Seq: seq, LastCommit: g.LastCommit}
		for id := range g.Open {
			k.Open = append(k.Open, id[:])
		}
		slices.SortFunc(k.Open, bytes.Compare)
		c.Condemnations = append(c.Condemnations, k)
	}
	slices.SortFunc(c.Condemnations, func(a, b *Condemnation) int { return cmp.Compare(a.Seq, b.Seq) })
	for id := range s.Doomed {
		c.Doomed = append(c.Doomed, id[:])
	}
	slices.SortFunc(c.Doomed, bytes.Compare)
	for id, to := range s.Moved {
		m := &Moved{Pack: id[:]}
		for _, t := range to {
			m.To = append(m.To, t[:])
		}
		c.Moved = append(c.Moved, m)
	}
	slices.SortFunc(c.Moved, func(a, b *Moved) int { return bytes.Compare(a.Pack, b.Pack) })
	for _, m := range s.Marks {
		c.Marks = append(c.Marks, m)
	}
	slices.SortFunc(c.Marks, func(a, b *Mark) int { return cmp.Compare(a.GetWhat(), b.GetWhat()) })
	return proto.MarshalOptions{Deterministic: true}.Marshal(c)
}

// decodeState reads a checkpoint.
func decodeState(b []byte) (*State, error) {
	var c Checkpoint
	if err := proto.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("%w: a checkpoint: %w", ErrDamaged, err)
	}
	bad := func(err error) (*State, error) { return nil, fmt.Errorf("%w: a checkpoint: %w", ErrDamaged, err) }
	if len(c.Hash) != 32 || c.Seq < 1 || c.Generation < 1 {
		return bad(ErrRefused)
	}
	s := NewState()
	s.Seq, s.Hash, s.Generation, s.Newer = c.Seq, [32]byte(c.Hash), c.Generation, c.Newer
	s.MinWriter, s.MinReclaim = c.Require.GetWriter(), c.Require.GetCollector()
	for _, p := range c.Packs {
		id, err := id16("pack", p.GetPack().GetId())
		if err != nil {
			return bad(err)
		}
		k := p.Pack
		s.Packs[id] = PackState{Size: k.Size, Raw: k.Raw, Records: k.Records, Generation: k.Generation, Meta: k.Meta, Dense: k.Dense,
			Added: p.Added, Condemned: p.Condemned, Damaged: p.Damaged}
	}
	for _, p := range c.Points {
		id, err := id16("point", p.GetPoint().GetId())
		if err != nil {
			return bad(err)
		}
		o := &PointState{Point: p.Point, Committed: p.Committed, Forgotten: p.Forgotten, Keep: p.Keep}
		if p.Forgotten == 0 {
			s.Points[id] = o
		} else {
			s.Forgotten = append(s.Forgotten, o)
		}
	}
	for _, p := range c.Sessions {
		id, err := id16("session", p.GetBegin().GetSession())
		if err != nil {
			return bad(err)
		}
		o := &SessionState{ID: id, Reader: p.Begin.Reader, Purpose: p.Begin.Purpose, Began: p.Began, Last: p.Last, Time: p.GetTime().AsTime()}
		for _, b := range p.Begin.Pins {
			pin, err := id16("point", b)
			if err != nil {
				return bad(err)
			}
			o.Pins = append(o.Pins, pin)
		}
		s.Sessions[id] = o
	}
	for _, k := range c.Condemnations {
		g := &CondemnState{Open: map[[16]byte]bool{}, LastCommit: k.GetLastCommit()}
		for _, b := range k.GetOpen() {
			id, err := id16("session", b)
			if err != nil {
				return bad(err)
			}
			g.Open[id] = true
		}
		s.Condemns[k.GetSeq()] = g
	}
	for _, b := range c.Doomed {
		id, err := id16("pack", b)
		if err != nil {
			return bad(err)
		}
		s.Doomed[id] = true
	}
	for _, m := range c.Moved {
		id, err := id16("pack", m.GetPack())
		if err != nil {
			return bad(err)
		}
		for _, b := range m.GetTo() {
			to, err := id16("pack", b)
			if err != nil {
				return bad(err)
			}
			s.Moved[id] = append(s.Moved[id], to)
		}
	}
	for _, m := range c.Marks {
		s.Marks[m.GetWhat()] = m
	}
	return s, nil
}
