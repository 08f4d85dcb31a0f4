package vault

import (
	"context"
	"sync"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/chunkstore/keys"
	"drover/internal/chunkstore/pack"
	"drover/internal/pki"
	"drover/internal/resource"
)

// session is a writer's or a reader's.
type session struct {
	key     secret
	vault   *vault
	grant   *grant
	peer    pki.Identity
	purpose string
	local   *backup.Local
	write   *backup.LocalSession // nil: reads
	read    *backup.LocalPoint
	prover  sync.Pool // *keys.Hasher under the challenge
	blockBS int64
	loose   int64 // guarded by quota.mu

	mu     sync.Mutex
	calls  sync.WaitGroup
	busy   int
	last   time.Time
	over   bool
	disks  []*disk
	opened map[string]*backup.LocalDisk
	done   map[string][]byte // commits by id, for who did not get the answer
	// What the host has sent or proven lately, in two generations.
	known, knownBefore map[pack.ID]struct{}
}

// knownEach bounds a generation: 2 × 64 Ki ids are about 12 MiB.
const knownEach = 64 << 10

func (s *session) knows(id pack.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.known[id]; ok {
		return true
	}
	_, ok := s.knownBefore[id]
	return ok
}

func (s *session) learn(ids ...pack.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if len(s.known) >= knownEach {
			s.known, s.knownBefore = nil, s.known
		}
		if s.known == nil {
			s.known = map[pack.ID]struct{}{}
		}
		s.known[id] = struct{}{}
	}
}

func (s *session) idle(now time.Time, limit time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.busy == 0 && now.Sub(s.last) > limit
}

// add takes a new session in and returns its token.
func (v *Vaults) add(s *session) (string, error) {
	token, key, err := newSecret()
	if err != nil {
		return "", err
	}
	s.key, s.last = key, v.o.Clock.Now()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed || s.vault.local != s.local {
		return "", errClosed(s.vault.name, s.vault)
	}
	if v.grants[s.grant.key] != s.grant {
		return "", errEnded()
	}
	n := 0
	for _, o := range v.sessions {
		if o.grant == s.grant {
			n++
		}
	}
	if n >= sessionsEach {
		return "", &resource.Error{Code: resource.Exhausted, Kind: resource.KindRepository, Name: s.vault.name, Reason: "SESSIONS_MANY", Message: "too many sessions are open under the grant"}
	}
	v.sessions[key] = s
	return token, nil
}

// enter finds a session for a call; leave ends the call.
func (v *Vaults) enter(ctx context.Context, token string) (s *session, leave func(), err error) {
	who, err := peerOf(ctx)
	if err != nil {
		return nil, nil, err
	}
	v.mu.Lock()
	s = v.sessions[secretOf(token)]
	v.mu.Unlock()
	if s == nil || s.peer.Role != who.Role || s.peer.UID != who.UID {
		return nil, nil, errEnded()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return nil, nil, errEnded()
	}
	s.busy++
	s.calls.Add(1)
	return s, func() {
		s.mu.Lock()
		s.busy--
		s.last = v.o.Clock.Now()
		s.mu.Unlock()
		s.calls.Done()
	}, nil
}

// finish ends a session once its calls are over. A second time it does nothing.
func (v *Vaults) finish(ctx context.Context, s *session) error {
	v.mu.Lock()
	delete(v.sessions, s.key)
	v.mu.Unlock()
	s.mu.Lock()
	was := s.over
	s.over = true
	s.mu.Unlock()
	if was {
		return nil
	}
	s.calls.Wait()
	return s.close()
}

func (s *session) close() error {
	if s.write != nil {
		return s.write.Close()
	}
	return s.read.Close()
}

// pace waits for bandwidth, but not longer than the repository is open.
func (v *Vaults) pace(ctx context.Context, s *session, n int64) error {
	v.mu.Lock()
	life := s.vault.life
	v.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(life, func() { cancel(errEnded()) })()
	return s.vault.limit.Wait(ctx, n)
}

// End ends a session. One that is not there has ended.
func (v *Vaults) End(ctx context.Context, req *v1.VaultEndRequest) (*v1.VaultEndResponse, error) {
	s, leave, err := v.enter(ctx, req.GetSession())
	if err != nil {
		return &v1.VaultEndResponse{}, nil
	}
	leave()
	if err := v.finish(ctx, s); err != nil {
		return nil, told(s.vault.name, err)
	}
	return &v1.VaultEndResponse{}, nil
}

// Touch keeps a session.
func (v *Vaults) Touch(ctx context.Context, req *v1.VaultTouchRequest) (*v1.VaultTouchResponse, error) {
	_, leave, err := v.enter(ctx, req.GetSession())
	if err != nil {
		return nil, err
	}
	leave()
	return &v1.VaultTouchResponse{}, nil
}

func (s *session) hasher(challenge []byte) {
	hash, _ := s.local.Chunks().IDKey()
	s.prover.New = func() any { return keys.NewHasher(hash, challenge) }
}
