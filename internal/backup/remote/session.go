package remote

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/chunkstore/keys"
)

const (
	// touchEvery keeps a session that asks for nothing: vaults end it after an hour.
	touchEvery = 10 * time.Minute
	endTimeout = 10 * time.Second
)

type session struct {
	r         *Repository
	info      *v1.VaultInfoResponse
	token     string
	challenge []byte
	ctx       context.Context // of Begin: its life
	stop      context.CancelFunc
	touching  sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	writers []*writer
}

// Begin starts to write points. ctx bounds the session's life.
func (r *Repository) Begin(ctx context.Context, o backup.SessionOptions) (backup.Session, error) {
	info, err := r.about(ctx)
	if err != nil {
		return nil, err
	}
	res, err := call(ctx, r, r.o.Client.Begin, &v1.VaultBeginRequest{Repository: r.o.Repository, Grant: r.o.Grant, Purpose: o.Purpose, VmUid: o.VMUID, Pins: o.Pins})
	if err != nil {
		return nil, fmt.Errorf("begin to write to repository %s: %w", r.o.Repository, err)
	}
	s := &session{r: r, info: info, token: res.GetSession(), challenge: res.GetChallenge(), ctx: ctx}
	if len(s.challenge) != 32 {
		return nil, fmt.Errorf("begin to write to repository %s: the vault sent a challenge of %d bytes", r.o.Repository, len(s.challenge))
	}
	life, stop := context.WithCancel(ctx)
	s.stop = stop
	s.touching.Go(func() { r.touch(life, func() string { return s.token }) })
	return s, nil
}

// touch keeps a session until ctx ends.
func (r *Repository) touch(ctx context.Context, token func() string) {
	for {
		t := r.o.Clock.NewTimer(touchEvery)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		// A session that is gone is told to who uses it.
		if _, err := r.o.Client.Touch(ctx, &v1.VaultTouchRequest{Session: token()}); err != nil {
			r.o.Log.Debug("session not kept", "repository", r.o.Repository, "err", err)
		}
	}
}

func (s *session) ended() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return backup.ErrEnded
	}
	return nil
}

// Disk begins a disk.
func (s *session) Disk(ctx context.Context, o backup.DiskOptions) (backup.DiskWriter, error) {
	if err := s.ended(); err != nil {
		return nil, err
	}
	res, err := call(ctx, s.r, s.r.o.Client.Disk, &v1.VaultDiskRequest{Session: s.token, Name: o.Name, Size: o.Size,
		ParentPoint: o.ParentPoint, ParentDisk: o.ParentDisk, Incremental: o.Incremental})
	if err != nil {
		return nil, fmt.Errorf("disk %s: %w", o.Name, err)
	}
	w := newWriter(s, res.GetDisk(), o)
	s.mu.Lock()
	s.writers = append(s.writers, w)
	s.mu.Unlock()
	return w, nil
}

// Commit makes the point.
func (s *session) Commit(ctx context.Context, p backup.Point) (backup.Point, error) {
	if err := s.ended(); err != nil {
		return p, err
	}
	if p.ID == "" {
		// Made here, so that a commit whose answer was lost is known again.
		var id [16]byte
		if _, err := rand.Read(id[:]); err != nil {
			return p, err
		}
		p.ID = hex.EncodeToString(id[:])
	}
	if p.Read == 0 {
		s.mu.Lock()
		for _, w := range s.writers {
			w.mu.Lock()
			p.Read += w.read
			w.mu.Unlock()
		}
		s.mu.Unlock()
	}
	b, err := json.Marshal(p)
	if err != nil {
		return p, err
	}
	res, err := call(ctx, s.r, s.r.o.Client.Commit, &v1.VaultCommitRequest{Session: s.token, Point: b})
	if err != nil {
		return p, fmt.Errorf("commit: %w", err)
	}
	var out backup.Point
	if err := json.Unmarshal(res.GetPoint(), &out); err != nil {
		return p, fmt.Errorf("commit: what the vault answered: %w", err)
	}
	return out, nil
}

// Close ends the session.
func (s *session) Close() error {
	s.mu.Lock()
	was := s.closed
	s.closed = true
	s.mu.Unlock()
	if was {
		return nil
	}
	s.stop()
	s.touching.Wait()
	for _, w := range s.writers {
		w.end(backup.ErrEnded)
		w.work.Wait()
	}
	return s.r.endSession(s.ctx, s.token)
}

// endSession is done also when the caller's work was cancelled. A vault that does not answer ends the session by itself.
func (r *Repository) endSession(ctx context.Context, token string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	_, err := r.o.Client.End(ctx, &v1.VaultEndRequest{Session: token})
	if err = translate(err); err != nil && !errors.Is(err, backup.ErrEnded) {
		r.o.Log.Info("session left to the vault to end", "repository", r.o.Repository, "err", err)
	}
	return nil
}

func (s *session) hasher() *keys.Hasher {
	return keys.NewHasher(s.info.GetHash(), s.info.GetIdKey())
}

// prover makes proofs: hashes under the session's challenge.
func (s *session) prover() *keys.Hasher {
	return keys.NewHasher(s.info.GetHash(), s.challenge)
}
