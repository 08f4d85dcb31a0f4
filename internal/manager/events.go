package manager

import (
	"context"
	"sync"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"
)

// hub passes values on to those who listen now. One who doesn't keep up is told so and has to listen anew: nothing is
// lost silently.
type hub[T any] struct {
	mu   sync.Mutex
	subs map[chan T]struct{} // a channel is closed when it is taken out for being full
}

func newHub[T any]() *hub[T] { return &hub[T]{subs: map[chan T]struct{}{}} }

// errBehind ends a listener that didn't keep up.
var errBehind = &resource.Error{Code: resource.Unavailable, Reason: "WATCH_LOST", Message: "the stream fell behind", Remedy: "watch again, with a backlog"}

// hubDepth is how far a listener may lag.
const hubDepth = 256

func (h *hub[T]) send(v T) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.subs {
		select {
		case c <- v:
		default:
			delete(h.subs, c)
			close(c)
		}
	}
}

// listen passes what is sent from now on to f until ctx ends or f fails. begun is called when nothing can be missed any more.
func (h *hub[T]) listen(ctx context.Context, begun func() error, f func(T) error) error {
	c := make(chan T, hubDepth)
	h.mu.Lock()
	h.subs[c] = struct{}{}
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		delete(h.subs, c)
		h.mu.Unlock()
	}()
	if err := begun(); err != nil {
		return err
	}
	for {
		select {
		case v, ok := <-c:
			if !ok {
				return errBehind
			}
			if err := f(v); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// event tells something that happened in the manager.
func (m *Manager) event(sev v1.Severity, kind, name, reason, message string) {
	m.record(&v1.Event{Time: stamp(m.cfg.Clock.Now()), Severity: sev, Kind: kind, Name: name, Reason: reason, Message: message})
}
