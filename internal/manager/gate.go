package manager

import (
	"context"
	"sync"
)

// gate lets so many at a time through by name. Who waits goes in the order in which they came.
type gate struct {
	mu    sync.Mutex
	in    map[string]int
	queue map[string][]chan struct{}
}

// enter waits until fewer than limit are in, tells by wait when it has to, and returns how to leave.
func (g *gate) enter(ctx context.Context, name string, limit int, wait func()) (leave func(), err error) {
	g.mu.Lock()
	if g.in == nil {
		g.in, g.queue = map[string]int{}, map[string][]chan struct{}{}
	}
	if g.in[name] < limit && len(g.queue[name]) == 0 {
		g.in[name]++
		g.mu.Unlock()
		return g.leaver(name), nil
	}
	turn := make(chan struct{})
	g.queue[name] = append(g.queue[name], turn)
	g.mu.Unlock()
	wait()
	select {
	case <-turn:
		return g.leaver(name), nil
	case <-ctx.Done():
		g.mu.Lock()
		for i, c := range g.queue[name] {
			if c == turn {
				g.queue[name] = append(g.queue[name][:i:i], g.queue[name][i+1:]...)
				g.mu.Unlock()
				return nil, context.Cause(ctx)
			}
		}
		g.mu.Unlock()
		g.leave(name) // the turn came at the same moment
		return nil, context.Cause(ctx)
	}
}

func (g *gate) leaver(name string) func() { return sync.OnceFunc(func() { g.leave(name) }) }

// leave gives the place to the next.
func (g *gate) leave(name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if q := g.queue[name]; len(q) > 0 {
		g.queue[name] = q[1:]
		close(q[0])
		return
	}
	if g.in[name]--; g.in[name] <= 0 {
		delete(g.in, name)
	}
}
