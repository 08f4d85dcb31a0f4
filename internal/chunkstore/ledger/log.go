package ledger

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"drover/internal/blob"
	"drover/internal/clock"
)

// checkpointEvery is how many transactions stand between checkpoints, and 64 packs count as one more.
const checkpointEvery = 64

// blindTries is how often a transaction that is there, says the store, is looked for: 80 seconds, longer than NFS remembers names that are not there.
const blindTries = 28

// Options of a log. Key must be given.
type Options struct {
	Key      []byte // keys.Ring.Log
	Clock    clock.Clock
	Random   io.Reader // nil: the system's
	Version  string    // of the program, for people
	ReadOnly bool
	Log      *slog.Logger
}

// Log is a repository's log. It is for concurrent use.
type Log struct {
	store blob.Store
	o     Options
	turn  chan struct{} // held by who reads new transactions

	mu    sync.RWMutex
	state *State
	last  int64 // the last checkpoint known
}

// OpenLog reads the log, from the last checkpoint that can be read.
func OpenLog(ctx context.Context, store blob.Store, o Options) (*Log, error) {
	if o.Random == nil {
		o.Random = rand.Reader
	}
	if o.Clock == nil {
		o.Clock = clock.Real()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	l := &Log{store: store, o: o, turn: make(chan struct{}, 1), state: NewState()}
	var seqs []int64
	for info, err := range store.List(ctx, "checkpoint/", "") {
		if err != nil {
			return nil, fmt.Errorf("list checkpoints: %w", err)
		}
		if seq, ok := parseSeq(strings.TrimPrefix(info.Name, "checkpoint/")); ok {
			seqs = append(seqs, seq)
		}
	}
	for i := len(seqs) - 1; i >= 0; i-- {
		s, err := l.checkpoint(ctx, seqs[i])
		if err == nil {
			l.state, l.last = s, s.Seq
			break
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		o.Log.Warn("a checkpoint of the repository can not be read, an older one serves", "checkpoint", seqs[i], "error", err)
	}
	if err := l.Refresh(ctx); err != nil {
		return l, err
	}
	if err := l.Whole(ctx); err != nil {
		if !o.ReadOnly || !errors.Is(err, ErrDamaged) {
			return nil, err
		}
		// What came before can be read.
		o.Log.Warn("the repository is shown as it was before its log breaks off", "error", err)
	}
	return l, nil
}

// Whole makes sure that nothing follows the last transaction that was read. An entry that was lost would else pass for the end of the log: all
// points after it would seem never to have been, and what they are made of would be garbage.
func (l *Log) Whole(ctx context.Context) error {
	for suspected := int64(-1); ; {
		seq, _ := l.next()
		later, err := l.after(ctx, seq)
		if err != nil {
			return err
		}
		if later == "" {
			return nil
		}
		// It may have come since, and its follower with it: a listing that begins now would show both.
		if err := l.Refresh(ctx); err != nil {
			return err
		}
		if now, _ := l.next(); now != seq {
			suspected = -1
			continue
		}
		if suspected == seq {
			return fmt.Errorf("%w: %s is not there, but %s is: bring it back from a copy of the storage, or open the repository to read only", ErrMissing, logName(seq), later)
		}
		suspected = seq
	}
}

// after is the name of a transaction after seq if there is one and seq itself is not listed.
func (l *Log) after(ctx context.Context, seq int64) (string, error) {
	for info, err := range l.store.List(ctx, "log/", logName(seq-1)) {
		if err != nil {
			return "", fmt.Errorf("list the log: %w", err)
		}
		n, ok := parseSeq(strings.TrimPrefix(info.Name, "log/"))
		switch {
		case !ok || n < seq:
			continue
		case n == seq:
			return "", nil
		}
		return info.Name, nil
	}
	return "", nil
}

func (l *Log) checkpoint(ctx context.Context, seq int64) (*State, error) {
	object, err := l.store.Get(ctx, checkpointName(seq), maxCheckpoint)
	if err != nil {
		return nil, err
	}
	plain, err := open(l.o.Key, useCheckpoint, seq, nil, object)
	if err != nil {
		return nil, err
	}
	s, err := decodeState(plain)
	if err == nil && s.Seq != seq {
		err = fmt.Errorf("%w: it is of another number", ErrDamaged)
	}
	return s, err
}

// View calls f with the state as last read. f must not keep nor change it, nor call the Log.
func (l *Log) View(f func(*State)) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	f(l.state)
}

// Pack returns the state of one pack.
func (l *Log) Pack(id [16]byte) (PackState, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	p, ok := l.state.Packs[id]
	return p, ok
}

// Seq is the number of the last transaction read.
func (l *Log) Seq() int64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.state.Seq
}

// Refresh reads new transactions.
func (l *Log) Refresh(ctx context.Context) error {
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	return l.refresh(ctx)
}

// refresh is Refresh by who holds the turn.
func (l *Log) refresh(ctx context.Context) error {
	for {
		seq, previous := l.next()
		object, err := l.store.Get(ctx, logName(seq), maxTransaction)
		if errors.Is(err, blob.ErrNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", logName(seq), err)
		}
		plain, err := open(l.o.Key, useEntry, seq, previous[:], object)
		if err != nil {
			return fmt.Errorf("%s: %w", logName(seq), err)
		}
		var t Transaction
		if err := proto.Unmarshal(plain, &t); err != nil {
			return fmt.Errorf("%s: %w: %w", logName(seq), ErrDamaged, err)
		}
		l.apply(&t, sha256.Sum256(object), seq)
	}
}

// next is the number to read or write next, and the hash of what stands before it.
func (l *Log) next() (int64, [32]byte) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.state.Seq + 1, l.state.Hash
}

func (l *Log) apply(t *Transaction, hash [32]byte, seq int64) {
	l.mu.Lock()
	err := l.state.Apply(t, hash)
	l.mu.Unlock()
	if err != nil {
		l.o.Log.Warn("a transaction in the repository's log is void: the rules refuse it", "seq", seq, "writer", t.GetWriter(), "error", err)
	}
}

// Do makes a transaction true: build makes it from the present state, and again if another was quicker. build may return nil: nothing is to
// be done. An error of build or of the rules ends it.
func (l *Log) Do(ctx context.Context, build func(*State) (*Transaction, error)) (int64, error) {
	if l.o.ReadOnly {
		return 0, fmt.Errorf("the repository was opened to read only: %w", blob.ErrReadOnly)
	}
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	for blind := 0; ; {
		t, err := l.build(build)
		if t == nil || err != nil {
			// What is refused, or needless, by what was read last may be right by what others have written since.
			before, _ := l.next()
			if rerr := l.refresh(ctx); rerr != nil {
				return 0, errors.Join(err, rerr)
			}
			if now, _ := l.next(); now != before {
				continue
			}
		}
		if t == nil || err != nil {
			return 0, err
		}
		t.Time = timestamppb.New(l.o.Clock.Now().Round(time.Millisecond))
		t.Writer = l.o.Version
		plain, err := proto.MarshalOptions{Deterministic: true}.Marshal(t)
		if err != nil {
			return 0, fmt.Errorf("a transaction: %w", err)
		}
		seq, previous := l.next()
		object, err := seal(l.o.Key, useEntry, seq, previous[:], plain, l.o.Random)
		if err != nil {
			return 0, err
		}
		if len(object) > maxTransaction {
			return 0, fmt.Errorf("a transaction of %d bytes: %w: at most %d", len(object), ErrRefused, maxTransaction)
		}
		hash := sha256.Sum256(object)
		err = l.store.Put(ctx, logName(seq), object)
		if err == nil {
			l.apply(t, hash, seq)
			return seq, l.maybeCheckpoint(ctx)
		}
		// Another was quicker, or nobody knows: what stands there decides.
		if rerr := l.refresh(ctx); rerr != nil {
			return 0, errors.Join(fmt.Errorf("write %s: %w", logName(seq), err), rerr)
		}
		there, ours, herr := l.landed(ctx, seq, hash)
		switch {
		case herr != nil:
			return 0, errors.Join(fmt.Errorf("write %s: %w", logName(seq), err), herr)
		case ours:
			return seq, nil
		case there:
			blind = 0
		case errors.Is(err, blob.ErrExists) && blind < blindTries:
			// NFS remembers for a while that a name was not there.
			blind++
			select {
			case <-l.o.Clock.After(time.Duration(blind) * 200 * time.Millisecond):
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		default:
			return 0, fmt.Errorf("write %s: %w", logName(seq), err)
		}
	}
}

func (l *Log) landed(ctx context.Context, seq int64, hash [32]byte) (there, ours bool, err error) {
	l.mu.RLock()
	now, last := l.state.Seq, l.state.Hash
	l.mu.RUnlock()
	if now < seq {
		return false, false, nil
	}
	if now == seq {
		return true, last == hash, nil
	}
	object, err := l.store.Get(ctx, logName(seq), maxTransaction)
	return true, err == nil && sha256.Sum256(object) == hash, err
}

func (l *Log) build(build func(*State) (*Transaction, error)) (*Transaction, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if err := l.state.Writable(); err != nil {
		return nil, err
	}
	t, err := build(l.state)
	if t == nil || err != nil {
		return nil, err
	}
	return t, l.state.Check(t)
}

// maybeCheckpoint writes one if it is due. That it could not is no error of the transaction, which is true already.
func (l *Log) maybeCheckpoint(ctx context.Context) error {
	l.mu.RLock()
	seq := l.state.Seq
	due := seq-l.last >= checkpointEvery+int64(len(l.state.Packs)/64)
	var plain []byte
	var err error
	if due {
		plain, err = l.state.encode()
	}
	l.mu.RUnlock()
	if !due {
		return nil
	}
	var object []byte
	if err == nil {
		object, err = seal(l.o.Key, useCheckpoint, seq, nil, plain, l.o.Random)
	}
	if err == nil {
		err = l.store.Put(ctx, checkpointName(seq), object)
	}
	if err != nil && !errors.Is(err, blob.ErrExists) {
		l.o.Log.Warn("no checkpoint could be written, readers will take longer", "seq", seq, "error", err)
		return nil
	}
	l.mu.Lock()
	l.last = seq
	l.mu.Unlock()
	return nil
}

func logName(seq int64) string        { return fmt.Sprintf("log/%016x", seq) }
func checkpointName(seq int64) string { return fmt.Sprintf("checkpoint/%016x", seq) }

func parseSeq(s string) (int64, bool) {
	n, err := strconv.ParseInt(s, 16, 64)
	return n, err == nil && len(s) == 16 && n > 0
}
