package store

import (
	"context"

	"google.golang.org/protobuf/proto"
)

// Subscription is one follower's place in a cache's events. It needs no closing. It is for one goroutine.
type Subscription[T proto.Message] struct {
	cache *Cache[T]
	next  uint64
	lost  bool // the whole state comes first
	// seen is the latest revision delivered, so that a resume does not deliver it again.
	seen int64
}

// Subscribe follows the cache after revision from. With from 0, or when the changes after from are no longer
// kept, the first batch is the whole state.
func (c *Cache[T]) Subscribe(from int64) *Subscription[T] {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &Subscription[T]{cache: c, next: c.first, seen: from}
	s.lost = from == 0 || !c.synced || from < c.floor
	return s
}

// Next waits for events and returns them: Put and Delete in order, or, for a new follower and for one that was too
// slow, one batch of Reset, Puts of the whole state and Synced. Objects are shared and must not be changed. It
// fails when ctx ends or the cache has stopped.
func (s *Subscription[T]) Next(ctx context.Context) ([]Event[T], error) {
	for {
		batch, changed, err := s.poll()
		if len(batch) > 0 || err != nil {
			return batch, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (s *Subscription[T]) poll() ([]Event[T], <-chan struct{}, error) {
	c := s.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.synced {
		return nil, c.changed, c.stopped
	}
	if s.lost || s.next < c.first {
		return s.state(), c.changed, nil
	}
	if s.next == c.next {
		return nil, c.changed, c.stopped
	}
	batch := make([]Event[T], 0, c.next-s.next)
	for ; s.next < c.next; s.next++ {
		if e := c.events[s.next%uint64(len(c.events))]; e.Revision > s.seen {
			batch = append(batch, e)
		}
	}
	if len(batch) > 0 {
		s.seen = batch[len(batch)-1].Revision
	}
	return batch, c.changed, nil
}

// state makes the batch of the whole state. c.mu is held.
func (s *Subscription[T]) state() []Event[T] {
	c := s.cache
	batch := make([]Event[T], 0, len(c.objects)+2)
	batch = append(batch, Event[T]{Type: Reset, Revision: c.rev})
	for _, e := range c.objects {
		batch = append(batch, Event[T]{Type: Put, Name: e.name, Object: e.m, Revision: e.rev})
	}
	s.next, s.lost, s.seen = c.next, false, c.rev
	return append(batch, Event[T]{Type: Synced, Revision: c.rev})
}
