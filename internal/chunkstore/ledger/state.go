package ledger

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"drover/internal/chunkstore/keys"
)

// What this program knows. A repository may require more: Require.
const (
	WriterVersion    = 1
	CollectorVersion = 1
)

// Errors that callers branch on.
var (
	// ErrEnded: the session has ended, by itself or because another took it for dead.
	ErrEnded = errors.New("the session has ended")
	// ErrGone: a point or a pack is not there any more.
	ErrGone = errors.New("gone")
	// ErrExists: the point or session is there already.
	ErrExists = errors.New("exists already")
	// ErrRefused: the rules of the format forbid it now.
	ErrRefused = errors.New("refused")
	// ErrKept: the point is kept: let it go first.
	ErrKept = errors.New("is kept")
	// ErrNewer: a newer program has been here, this one may only read.
	ErrNewer = fmt.Errorf("update this program to write to the repository: %w", keys.ErrNewer)
	// ErrDamaged: the log is not what was written.
	ErrDamaged = errors.New("the log is damaged")
	// ErrMissing: an entry is not there, and others that came after it are.
	ErrMissing = fmt.Errorf("%w: an entry is missing", ErrDamaged)
)

// PackState is a pack that is there.
type PackState struct {
	Size, Raw  int64
	Added      int64 // SEQ
	Condemned  int64 // SEQ; 0: live
	Records    int32
	Generation int32
	Meta       bool
	Dense      bool
	// Damaged says that a scrub found it so: its blocks serve nobody.
	Damaged bool
}

// Live reports whether blocks in it may be referred to anew.
func (p *PackState) Live() bool { return p.Condemned == 0 && !p.Damaged }

// PointState is a point that is there, or one forgotten that somebody may still read.
type PointState struct {
	Point     *Point // not to be changed
	Committed int64  // SEQ
	Forgotten int64  // SEQ; 0: it is there
	Keep      bool
}

// SessionState is a session that is open.
type SessionState struct {
	ID      [16]byte
	Reader  bool
	Pins    [][16]byte
	Purpose string
	Began   int64 // SEQ
	Last    int64 // SEQ of its last transaction
	Time    time.Time
}

// CondemnState is a condemn some of whose packs are still there.
type CondemnState struct {
	// Open are the sessions open then that have not ended.
	Open map[[16]byte]bool
	// LastCommit is the SEQ of the last commit by a session that was open then.
	LastCommit int64
}

// State is what a repository holds after transaction Seq. Readers of it take care not to change it.
type State struct {
	Seq    int64
	Hash   [32]byte // SHA-256 of log/Seq
	Packs  map[[16]byte]PackState
	Points map[[16]byte]*PointState
	// Forgotten points are walked as if they lived. In order of their forgets.
	Forgotten []*PointState
	Sessions  map[[16]byte]*SessionState
	Condemns  map[int64]*CondemnState
	// Doomed are objects that may be deleted: dropped packs and orphans.
	Doomed map[[16]byte]bool
	// Moved tells where living records of packs went, also of those that are no more.
	Moved      map[[16]byte][][16]byte
	Generation int32
	// Marks holds the last of each kind.
	Marks                 map[string]*Mark
	MinWriter, MinReclaim int32
	// Newer: there was a transaction that this program does not know.
	Newer bool
}

// NewState is that of an empty log.
func NewState() *State {
	return &State{
		Packs: map[[16]byte]PackState{}, Points: map[[16]byte]*PointState{},
		Sessions: map[[16]byte]*SessionState{}, Condemns: map[int64]*CondemnState{}, Doomed: map[[16]byte]bool{},
		Moved: map[[16]byte][][16]byte{}, Marks: map[string]*Mark{}, Generation: 1,
	}
}

// Writable tells why this program may not write: ErrNewer.
func (s *State) Writable() error {
	if s.Newer || s.MinWriter > WriterVersion {
		return ErrNewer
	}
	return nil
}

// Collectable tells why this program may not collect.
func (s *State) Collectable() error {
	if s.MinReclaim > CollectorVersion {
		return ErrNewer
	}
	return s.Writable()
}

// Walk returns the points whose pages must stay readable: those there, and those forgotten that an open session may read. In order of their commits.
func (s *State) Walk() []*PointState {
	all := make([]*PointState, 0, len(s.Points)+len(s.Forgotten))
	for _, p := range s.Points {
		all = append(all, p)
	}
	all = append(all, s.Forgotten...)
	slices.SortFunc(all, func(a, b *PointState) int {
		return cmp.Or(cmp.Compare(a.Committed, b.Committed), slices.Compare(a.Point.Id, b.Point.Id))
	})
	return all
}

// List returns the points that are there, in order of their commits.
func (s *State) List() []*Point {
	all := make([]*PointState, 0, len(s.Points))
	for _, p := range s.Points {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *PointState) int {
		return cmp.Or(cmp.Compare(a.Committed, b.Committed), slices.Compare(a.Point.Id, b.Point.Id))
	})
	points := make([]*Point, len(all))
	for i, p := range all {
		points[i] = p.Point
	}
	return points
}

// OldestSession is the SEQ of the begin of the longest open session, or Seq+1 if none is open.
func (s *State) OldestSession() int64 {
	oldest := s.Seq + 1
	for _, o := range s.Sessions {
		oldest = min(oldest, o.Began)
	}
	return oldest
}

// purge drops what only sessions that have ended could still need.
func (s *State) purge() {
	if len(s.Forgotten) == 0 {
		return
	}
	oldest := s.OldestSession()
	s.Forgotten = slices.DeleteFunc(s.Forgotten, func(p *PointState) bool { return p.Forgotten < oldest })
}
