package chunkstore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"

	"drover/internal/blob"
	"drover/internal/chunkstore/keys"
	"drover/internal/chunkstore/ledger"
	"drover/internal/chunkstore/pack"
	"drover/internal/clock"
)

// Errors that callers branch on.
var (
	ErrDamaged  = pack.ErrDamaged
	ErrWrongKey = keys.ErrWrongKey
	ErrForeign  = keys.ErrForeign
	ErrNewer    = keys.ErrNewer
	ErrEnded    = ledger.ErrEnded
	ErrGone     = ledger.ErrGone
	ErrKept     = ledger.ErrKept
	ErrExists   = ledger.ErrExists
	// ErrClosed: the repository, or the session, was closed here.
	ErrClosed = errors.New("closed")
)

// CreateOptions are for Create. The zero value makes an encrypted repository of 64 KiB blocks with BLAKE3.
type CreateOptions struct {
	BlockSize   int
	Hash        string // keys.BLAKE3 or keys.SHA256
	Unencrypted bool
	Parity      bool
	Passphrase  string
	// Cost of guessing the passphrase.
	Cost keys.Cost
	Open OpenOptions
}

// OpenOptions are for Open. Of Passphrase, Recovery and Master one is needed, if the repository is encrypted.
type OpenOptions struct {
	Passphrase, Recovery string
	Master               []byte
	// Cache is the directory of the index. Empty: a temporary one.
	Cache    string
	ReadOnly bool
	Log      *slog.Logger
	Clock    clock.Clock
	Version  string // of the program, for people
	// Random is where ids and salts come from; nil: the system's. Only golden files have another.
	Random io.Reader
	// NewIndex makes the index when a writer first needs it; nil: the index of package index, in Cache.
	NewIndex func(dir string, repository [16]byte) (Index, error)
}

// Repository is an open one. It is for concurrent use.
type Repository struct {
	store  blob.Store
	o      OpenOptions
	config *keys.Config
	raw    [16]byte
	ring   *keys.Ring
	ledger *ledger.Log
	log    *slog.Logger

	scratches sync.Pool
	runs      sync.Pool // *runBuffer
	footers   *cache[PackID, *footer]
	pages     *cache[entry, *page] // by id and place: where the blocks of two pages of one id are is not the same

	randomMu sync.Mutex

	indexTurn chan struct{} // held by who fills the index
	indexMu   sync.RWMutex
	index     Index
	indexed   int64 // SEQ that the index has seen
	temporary string
}

// Create makes a repository in an empty store. Recovery is the recovery key, for people to keep; empty if it is not encrypted.
func Create(ctx context.Context, st blob.Store, o CreateOptions) (r *Repository, recovery string, err error) {
	random := o.Open.random()
	if o.BlockSize == 0 {
		o.BlockSize = keys.DefaultBlockSize
	}
	if o.Hash == "" {
		o.Hash = keys.BLAKE3
	}
	c := &keys.Config{Format: keys.Format, Version: keys.Version, BlockSize: o.BlockSize, Hash: o.Hash, Cipher: keys.AES256GCM, Created: o.Open.clock().Now().UTC().Round(0)}
	if o.Unencrypted {
		c.Cipher = keys.NoCipher
	}
	if o.Parity {
		c.Parity = keys.Parity20p2
	}
	if c.ID, err = keys.NewID(random); err != nil {
		return nil, "", err
	}
	if err := c.Validate(); err != nil {
		return nil, "", err
	}
	if _, err := st.Size(ctx, "config"); err == nil {
		return nil, "", fmt.Errorf("create a repository in %s: %w: there is one", st, blob.ErrExists)
	} else if !errors.Is(err, blob.ErrNotFound) {
		return nil, "", fmt.Errorf("create a repository in %s: %w", st, err)
	}
	master := keys.OpenMaster(c.ID)
	wrapped := map[string]*keys.Wrapped{}
	if c.Encrypted() {
		master = make([]byte, keys.MasterSize)
		if _, err := io.ReadFull(random, master); err != nil {
			return nil, "", err
		}
		if o.Passphrase != "" {
			if wrapped["passphrase-"+c.ID[:8]], err = keys.WrapPassphrase(master, o.Passphrase, c.ID, "passphrase-"+c.ID[:8], o.Cost, random); err != nil {
				return nil, "", err
			}
		}
		if wrapped["recovery-"+c.ID[:8]], recovery, err = keys.WrapRecovery(master, c.ID, "recovery-"+c.ID[:8], random); err != nil {
			return nil, "", err
		}
	}
	// The config is last: without it there is no repository.
	for name, w := range wrapped {
		b, err := w.Encode()
		if err == nil {
			err = st.Put(ctx, "keys/"+name, b)
		}
		if err != nil {
			return nil, "", fmt.Errorf("create a repository in %s: keys/%s: %w", st, name, err)
		}
	}
	b, err := c.Encode()
	if err == nil {
		err = st.Put(ctx, "config", b)
	}
	if err != nil {
		return nil, "", fmt.Errorf("create a repository in %s: config: %w", st, err)
	}
	r, err = open(ctx, st, c, master, o.Open)
	return r, recovery, err
}

// Open opens a repository.
func Open(ctx context.Context, st blob.Store, o OpenOptions) (*Repository, error) {
	b, err := st.Get(ctx, "config", 64<<10)
	if errors.Is(err, blob.ErrNotFound) {
		return nil, fmt.Errorf("open the repository in %s: %w: there is no object config", st, ErrForeign)
	}
	if err != nil {
		return nil, fmt.Errorf("open the repository in %s: config: %w", st, err)
	}
	c, err := keys.ParseConfig(b)
	if err != nil {
		return nil, fmt.Errorf("open the repository in %s: %w", st, err)
	}
	master := o.Master
	if !c.Encrypted() {
		master = keys.OpenMaster(c.ID)
	} else if master == nil {
		if master, err = unwrap(ctx, st, c, o); err != nil {
			return nil, fmt.Errorf("open the repository in %s: %w", st, err)
		}
	}
	if len(master) != keys.MasterSize {
		return nil, fmt.Errorf("open the repository in %s: %w", st, ErrWrongKey)
	}
	return open(ctx, st, c, master, o)
}

func unwrap(ctx context.Context, st blob.Store, c *keys.Config, o OpenOptions) ([]byte, error) {
	if o.Passphrase == "" && o.Recovery == "" {
		return nil, fmt.Errorf("%w: it is encrypted, and none was given", ErrWrongKey)
	}
	tried := 0
	var last error
	for info, err := range st.List(ctx, "keys/", "") {
		if err != nil {
			return nil, fmt.Errorf("list keys: %w", err)
		}
		if tried++; tried > 64 {
			break // a stranger's files must not keep us busy
		}
		b, err := st.Get(ctx, info.Name, 64<<10)
		if errors.Is(err, blob.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", info.Name, err)
		}
		w, err := keys.ParseWrapped(b)
		if err != nil {
			last = fmt.Errorf("%s: %w", info.Name, err)
			continue
		}
		secret := o.Passphrase
		if w.IsRecovery() {
			secret = o.Recovery
		}
		if secret == "" {
			continue
		}
		master, err := w.Unwrap(secret, c.ID, strings.TrimPrefix(info.Name, "keys/"))
		if err == nil {
			return master, nil
		}
		last = err
	}
	if last == nil || errors.Is(last, ErrWrongKey) {
		return nil, ErrWrongKey
	}
	return nil, fmt.Errorf("%w: %w", ErrWrongKey, last)
}

func open(ctx context.Context, st blob.Store, c *keys.Config, master []byte, o OpenOptions) (*Repository, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Clock = o.clock()
	r := &Repository{
		store: st, o: o, config: c, raw: c.RawID(), ring: keys.NewRing(c, master), log: o.Log,
		footers: newCache[PackID, *footer](64), pages: newCache[entry, *page](512), indexTurn: make(chan struct{}, 1),
	}
	r.scratches.New = func() any { return r.newScratch() }
	r.runs.New = func() any { return &runBuffer{} }
	var err error
	r.ledger, err = ledger.OpenLog(ctx, st, ledger.Options{Key: r.ring.Log(), Clock: o.Clock, Random: lockedReader{r}, Version: o.Version, ReadOnly: o.ReadOnly, Log: o.Log})
	if errors.Is(err, ledger.ErrDamaged) && !errors.Is(err, ledger.ErrMissing) && o.Master != nil {
		err = fmt.Errorf("%w, or the key is of another repository", err)
	}
	if err != nil {
		return nil, fmt.Errorf("open the repository in %s: %w", st, err)
	}
	return r, nil
}

// Close ends the use of the repository. Sessions were closed before.
func (r *Repository) Close() error {
	r.indexMu.Lock()
	x := r.index
	r.index = nil
	r.indexMu.Unlock()
	var err error
	if x != nil {
		err = x.Close()
	}
	if r.temporary != "" {
		err = errors.Join(err, os.RemoveAll(r.temporary))
	}
	return err
}

// ID is the repository's id, hexadecimal.
func (r *Repository) ID() string { return r.config.ID }

// BlockSize is in bytes.
func (r *Repository) BlockSize() int { return r.config.BlockSize }

// Encrypted reports whether storage alone reveals nothing.
func (r *Repository) Encrypted() bool { return r.config.Encrypted() }

// Parity reports whether packs have parity.
func (r *Repository) Parity() bool { return r.config.Parity != "" }

// IDKey returns what block ids are made with: the hash's name, and its key.
func (r *Repository) IDKey() (hash string, key []byte) { return r.ring.IDKey() }

// Master is the master key, for who serves the repository unattended.
func (r *Repository) Master() []byte { return r.ring.Master() }

// Refresh reads new transactions.
func (r *Repository) Refresh(ctx context.Context) error { return r.ledger.Refresh(ctx) }

// Points returns the points that there are, in order of their commits. They are not to be changed.
func (r *Repository) Points() []*ledger.Point {
	var points []*ledger.Point
	r.ledger.View(func(s *ledger.State) { points = s.List() })
	return points
}

// Point returns one.
func (r *Repository) Point(id PointID) (*ledger.Point, bool) {
	var p *ledger.PointState
	r.ledger.View(func(s *ledger.State) { p = s.Points[id] })
	if p == nil {
		return nil, false
	}
	return p.Point, true
}

// Kept reports whether a point may not be forgotten.
func (r *Repository) Kept(id PointID) bool {
	kept := false
	r.ledger.View(func(s *ledger.State) { kept = s.Points[id] != nil && s.Points[id].Keep })
	return kept
}

// Forget removes points. Sessions that are open read them on. One that is kept fails with ErrKept, and none goes.
func (r *Repository) Forget(ctx context.Context, reason string, points ...PointID) error {
	// One that is not known may have been made by another since the log was read.
	for _, id := range points {
		if _, known := r.Point(id); !known {
			if err := r.Refresh(ctx); err != nil {
				return fmt.Errorf("forget points: %w", err)
			}
			break
		}
	}
	_, err := r.ledger.Do(ctx, func(s *ledger.State) (*ledger.Transaction, error) {
		f := &ledger.Forget{Reason: reason}
		for _, id := range points {
			if s.Points[id] != nil {
				f.Points = append(f.Points, id[:])
			}
		}
		if len(f.Points) == 0 {
			return nil, nil
		}
		return &ledger.Transaction{Kind: &ledger.Transaction_Forget{Forget: f}}, nil
	})
	if err != nil {
		return fmt.Errorf("forget points: %w", err)
	}
	return nil
}

// Keep says that a point may not be forgotten, or may again, and changes its labels: an empty value removes one.
func (r *Repository) Keep(ctx context.Context, id PointID, keep bool, labels map[string]string) error {
	_, err := r.ledger.Do(ctx, func(*ledger.State) (*ledger.Transaction, error) {
		return &ledger.Transaction{Kind: &ledger.Transaction_Keep{Keep: &ledger.Keep{Point: id[:], Keep: keep, Labels: labels}}}, nil
	})
	if err != nil {
		return fmt.Errorf("keep point %s: %w", id, err)
	}
	return nil
}

// Rotate starts a new data key: packs written from now on have it.
func (r *Repository) Rotate(ctx context.Context) error {
	_, err := r.ledger.Do(ctx, func(s *ledger.State) (*ledger.Transaction, error) {
		return &ledger.Transaction{Kind: &ledger.Transaction_Rotate{Rotate: &ledger.Rotate{Generation: s.Generation + 1}}}, nil
	})
	if err != nil {
		return fmt.Errorf("rotate the data key: %w", err)
	}
	return nil
}

// SetPassphrase replaces all passphrases by one. The recovery key stays.
func (r *Repository) SetPassphrase(ctx context.Context, passphrase string) error {
	if !r.Encrypted() {
		return fmt.Errorf("set the passphrase of the repository in %s: it is not encrypted", r.store)
	}
	var old []string
	for info, err := range r.store.List(ctx, "keys/passphrase-", "") {
		if err != nil {
			return fmt.Errorf("list keys: %w", err)
		}
		old = append(old, info.Name)
	}
	name := "passphrase-" + r.randomID().String()
	w, err := keys.WrapPassphrase(r.ring.Master(), passphrase, r.config.ID, name, keys.Cost{}, lockedReader{r})
	if err != nil {
		return fmt.Errorf("set the passphrase: %w", err)
	}
	b, err := w.Encode()
	if err != nil {
		return err
	}
	if err := r.store.Put(ctx, "keys/"+name, b); err != nil {
		return fmt.Errorf("set the passphrase: %w", err)
	}
	for _, name := range old {
		if err := r.store.Delete(ctx, name); err != nil {
			return fmt.Errorf("the new passphrase is set, but the old one %s is still good: %w", name, err)
		}
	}
	return nil
}

func (o *OpenOptions) random() io.Reader {
	if o.Random == nil {
		return rand.Reader
	}
	return o.Random
}

func (o *OpenOptions) clock() clock.Clock {
	if o.Clock == nil {
		return clock.Real()
	}
	return o.Clock
}

// lockedReader is the repository's randomness for several goroutines.
type lockedReader struct{ r *Repository }

func (l lockedReader) Read(p []byte) (int, error) {
	l.r.randomMu.Lock()
	defer l.r.randomMu.Unlock()
	return l.r.o.random().Read(p)
}

// randomID makes a fresh id. Without randomness there is nothing to go on with.
func (r *Repository) randomID() PackID {
	var id PackID
	if _, err := io.ReadFull(lockedReader{r}, id[:]); err != nil {
		panic(fmt.Sprintf("chunkstore: no randomness: %v", err))
	}
	return id
}
