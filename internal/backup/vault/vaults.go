package vault

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/backup"
	"drover/internal/blob"
	"drover/internal/chunkstore"
	"drover/internal/clock"
	"drover/internal/pki"
)

// Options are for New.
type Options struct {
	// StateDir holds keys, secrets and what was opened; CacheDir indexes, which may be lost. Both are made.
	StateDir, CacheDir string
	Clock              clock.Clock
	Log                *slog.Logger
	Version            string
	// Admit says whether a peer may call at all: whether a host is still a member. Nil: all whose certificate is good.
	Admit func(pki.Identity) error
	// Dial reaches other vaults, for copies and repairs. Nil: there are none.
	Dial func(address *v1.VaultAddress) (c droverv1connect.VaultServiceClient, closer func(), err error)
	// Storage opens what a spec names. Nil: directories and S3. Tests have others.
	Storage func(ctx context.Context, spec *v1.RepositorySpec) (blob.Store, error)
	// InWindow says whether a window of bandwidth_windows is open at t. Nil: none is.
	InWindow func(window string, t time.Time) (bool, error)
	// Idle is how long a session may ask for nothing. 0: an hour.
	Idle time.Duration
}

// Vaults are the repositories that this process serves.
type Vaults struct {
	o    Options
	life context.Context
	end  context.CancelFunc
	work sync.WaitGroup

	mu       sync.Mutex
	vaults   map[string]*vault
	grants   map[secret]*grant
	sessions map[secret]*session
	closed   bool
}

// vault is one repository.
type vault struct {
	name  string
	turn  chan struct{} // held while it is opened, closed or set up anew
	limit *backup.Limiter

	// Below: guarded by Vaults.mu.
	spec  *v1.RepositorySpec
	local *backup.Local // nil: not open
	store blob.Store
	wrong error           // why it is not open
	life  context.Context // of what is open
	end   context.CancelFunc
	uses  sync.WaitGroup
	quota quota
}

// New makes a service without repositories. Its own work ends with ctx and with Close.
func New(ctx context.Context, o Options) (*Vaults, error) {
	if o.Clock == nil {
		o.Clock = clock.Real()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Idle <= 0 {
		o.Idle = time.Hour
	}
	for _, dir := range []string{o.StateDir, o.CacheDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("vaults: %w", err)
		}
	}
	v := &Vaults{o: o, vaults: map[string]*vault{}, grants: map[secret]*grant{}, sessions: map[secret]*session{}}
	v.life, v.end = context.WithCancel(ctx)
	v.work.Go(v.tend)
	return v, nil
}

// Close ends sessions and closes repositories. Calls under way are to be over: the server that called Handler is closed first.
func (v *Vaults) Close() error {
	v.mu.Lock()
	v.closed = true
	var names []string
	for name := range v.vaults {
		names = append(names, name)
	}
	v.mu.Unlock()
	v.end()
	v.work.Wait()
	var errs []error
	// The context of our life is over; what is written yet ends sessions.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(v.life), 30*time.Second)
	defer cancel()
	for _, name := range names {
		errs = append(errs, v.shut(ctx, name))
	}
	return errors.Join(errs...)
}

// tend ends sessions that nobody uses, and sets bandwidth by the clock.
func (v *Vaults) tend() {
	every := min(v.o.Idle/4, 30*time.Second)
	for {
		t := v.o.Clock.NewTimer(every)
		select {
		case <-v.life.Done():
			t.Stop()
			return
		case <-t.C:
		}
		now := v.o.Clock.Now()
		var idle []*session
		v.mu.Lock()
		for _, s := range v.sessions {
			if s.idle(now, v.o.Idle) {
				idle = append(idle, s)
			}
		}
		for _, x := range v.vaults {
			v.setLimit(x, now)
		}
		v.mu.Unlock()
		for _, s := range idle {
			v.o.Log.Info("session ended: nobody used it", "repository", s.vault.name, "purpose", s.purpose)
			if err := v.finish(v.life, s); err != nil {
				v.o.Log.Warn("session not ended", "repository", s.vault.name, "purpose", s.purpose, "err", err)
			}
		}
	}
}

// setLimit sets the bandwidth that holds now. v.mu is held.
func (v *Vaults) setLimit(x *vault, now time.Time) {
	rate := x.spec.GetBandwidthLimit()
	for _, w := range x.spec.GetBandwidthWindows() {
		if v.o.InWindow == nil {
			break
		}
		in, err := v.o.InWindow(w.GetWindow(), now)
		if err != nil {
			v.o.Log.Warn("bandwidth window not understood", "repository", x.name, "window", w.GetWindow(), "err", err)
			continue
		}
		if in {
			rate = w.GetBandwidthLimit()
			break
		}
	}
	x.limit.SetRate(rate)
}

// use gives a repository that stays open until done is called.
func (v *Vaults) use(name string) (x *vault, local *backup.Local, done func(), err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	x = v.vaults[name]
	if x == nil || x.local == nil || v.closed {
		return nil, nil, nil, errClosed(name, x)
	}
	x.uses.Add(1)
	return x, x.local, x.uses.Done, nil
}

// Chunks gives an open repository itself, for use inside this process until done is called.
func (v *Vaults) Chunks(name string) (r *chunkstore.Repository, done func(), err error) {
	_, local, done, err := v.use(name)
	if err != nil {
		return nil, nil, err
	}
	return local.Chunks(), done, nil
}

func (v *Vaults) keyFile(name string) string  { return filepath.Join(v.o.StateDir, name+".key") }
func (v *Vaults) specFile(name string) string { return filepath.Join(v.o.StateDir, name+".json") }
