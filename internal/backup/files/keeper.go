package files

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Keeper keeps sessions by key, and ends each when nobody has asked for Idle.
type Keeper struct {
	// Life ends all; Idle is how long one is kept unused, Most how many there are at once: the one that was unused for longest makes room.
	life context.Context
	idle time.Duration
	most int

	mu   sync.Mutex // guards the fields below
	all  map[string]*kept
	work sync.WaitGroup
}

type kept struct {
	ready chan struct{} // closed when s or err is there
	s     *Session
	err   error
	users int
	since time.Time   // when it was used last
	timer *time.Timer // runs while nobody uses it
}

// ErrBusy: all sessions are in use.
var ErrBusy = errors.New("too many restore points are being browsed; try again later")

// NewKeeper makes a keeper; idle 0 is 10 minutes, most 0 is 4. life ends all its sessions.
func NewKeeper(life context.Context, idle time.Duration, most int) *Keeper {
	if idle == 0 {
		idle = 10 * time.Minute
	}
	if most == 0 {
		most = 4
	}
	return &Keeper{life: life, idle: idle, most: most, all: map[string]*kept{}}
}

// Get gives the session of a key, opened by open if there is none. release is called once, when the caller is done with it. now is the time.
func (k *Keeper) Get(ctx context.Context, key string, now func() time.Time, open func(ctx, life context.Context) (*Session, error)) (_ *Session, release func(), err error) {
	k.mu.Lock()
	if k.life.Err() != nil {
		k.mu.Unlock()
		return nil, nil, errClosed
	}
	e := k.all[key]
	if e == nil {
		if len(k.all) >= k.most && !k.evict() {
			k.mu.Unlock()
			return nil, nil, ErrBusy
		}
		e = &kept{ready: make(chan struct{})}
		k.all[key] = e
		k.work.Go(func() {
			defer close(e.ready)
			// Not of the caller's context: others may wait for it too.
			e.s, e.err = open(k.life, k.life)
		})
	}
	e.users++
	if e.timer != nil {
		e.timer.Stop()
		e.timer = nil
	}
	k.mu.Unlock()
	release = func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		e.since = now()
		if e.users--; e.users == 0 && k.all[key] == e {
			e.timer = time.AfterFunc(k.idle, func() { k.expire(key, e) })
		}
	}
	select {
	case <-e.ready:
	case <-ctx.Done():
		release()
		return nil, nil, ctx.Err()
	}
	if e.err != nil {
		k.mu.Lock()
		if k.all[key] == e {
			delete(k.all, key)
		}
		k.mu.Unlock()
		return nil, nil, e.err
	}
	return e.s, release, nil
}

// evict ends the session that was unused for longest. It is called with the lock held.
func (k *Keeper) evict() bool {
	var oldest string
	for key, e := range k.all {
		if e.timer != nil && (oldest == "" || e.since.Before(k.all[oldest].since)) {
			oldest = key
		}
	}
	if oldest == "" {
		return false
	}
	e := k.all[oldest]
	delete(k.all, oldest)
	e.timer.Stop()
	k.work.Go(func() { e.end() })
	return true
}

func (e *kept) end() {
	<-e.ready
	if e.s != nil {
		e.s.Close()
	}
}

func (k *Keeper) expire(key string, e *kept) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e.users > 0 || k.all[key] != e || k.life.Err() != nil {
		return // Close ends it, or it is in use again
	}
	delete(k.all, key)
	k.work.Go(func() { e.end() })
}

// Close ends all sessions and waits for them. It is called after life has ended.
func (k *Keeper) Close() {
	k.mu.Lock()
	for key, e := range k.all {
		delete(k.all, key)
		if e.timer != nil {
			e.timer.Stop()
		}
		k.work.Go(func() { e.end() })
	}
	k.mu.Unlock()
	k.work.Wait()
}
