package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
)

// Cache is a copy of a collection in memory, fed by one watch. Messages it hands out are shared and must never
// be changed; clone one to change it. Its methods are safe for concurrent use.
type Cache[T proto.Message] struct {
	coll *Collection[T]

	mu sync.Mutex
	// objects is in name order.
	objects []entry[T]
	// listed is objects as List hands it out; nil after a change.
	listed []T
	rev    int64
	synced bool
	// events is a ring of the latest events; the one with number n is at n modulo its length.
	events []Event[T]
	// next is the number that the next event gets.
	next uint64
	// first is the number of the oldest event that followers can still read.
	first uint64
	// floor: every change after this revision is in events.
	floor int64
	// changed is closed and replaced on every batch.
	changed chan struct{}
	stopped error
}

type entry[T proto.Message] struct {
	name string
	m    T
	rev  int64
}

// defaultRing is how many events a follower may lag before it gets the whole state again.
const defaultRing = 2048

// NewCache makes an empty cache of coll; Run feeds it.
func NewCache[T proto.Message](coll *Collection[T]) *Cache[T] {
	return newCache(coll, defaultRing)
}

func newCache[T proto.Message](coll *Collection[T], ring int) *Cache[T] {
	return &Cache[T]{coll: coll, events: make([]Event[T], ring), changed: make(chan struct{})}
}

// Run feeds the cache until ctx ends or a value cannot be decoded. Call it once. When it returns, everyone who
// waits on the cache gets its error.
func (c *Cache[T]) Run(ctx context.Context) error {
	err := c.coll.Watch(ctx, 0, func(batch []Event[T]) error {
		c.apply(batch)
		return nil
	})
	c.mu.Lock()
	c.stopped = fmt.Errorf("cache of %s has stopped: %w", c.coll.kind, err)
	c.broadcast()
	c.mu.Unlock()
	return err
}

// broadcast wakes everyone who waits. c.mu is held.
func (c *Cache[T]) broadcast() {
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *Cache[T]) apply(batch []Event[T]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if batch[0].Type == Reset {
		c.reset(batch)
	} else {
		for _, e := range batch {
			c.applyOne(e)
		}
	}
	c.broadcast()
}

// reset takes the whole state. Followers get it again from objects: the ring is emptied.
func (c *Cache[T]) reset(batch []Event[T]) {
	c.objects = c.objects[:0:0]
	for _, e := range batch {
		if e.Type == Put {
			c.objects = append(c.objects, entry[T]{e.Name, e.Object, e.Revision})
		}
	}
	slices.SortFunc(c.objects, func(a, b entry[T]) int { return strings.Compare(a.name, b.name) })
	clear(c.events)
	c.next++ // even a follower that had read everything is now behind
	c.first = c.next
	c.listed, c.synced = nil, true
	c.rev = batch[len(batch)-1].Revision
	c.floor = c.rev
}

func (c *Cache[T]) applyOne(e Event[T]) {
	c.rev = max(c.rev, e.Revision)
	if e.Type == Progress {
		return
	}
	i, found := c.find(e.Name)
	if found {
		e.Old = c.objects[i].m
	}
	switch {
	case e.Type == Put && found:
		c.objects[i].m, c.objects[i].rev = e.Object, e.Revision
	case e.Type == Put:
		c.objects = slices.Insert(c.objects, i, entry[T]{e.Name, e.Object, e.Revision})
	case e.Type == Delete && found:
		c.objects = slices.Delete(c.objects, i, i+1)
	}
	c.listed = nil
	slot := &c.events[c.next%uint64(len(c.events))]
	if c.next-c.first == uint64(len(c.events)) {
		c.first++
		c.floor = slot.Revision
	}
	*slot = e
	c.next++
}

// kind is what the cache holds, for errors.
func (c *Cache[T]) kind() string {
	if c.coll == nil {
		return "memory"
	}
	return c.coll.kind
}

func (c *Cache[T]) find(name string) (int, bool) {
	return slices.BinarySearchFunc(c.objects, name, func(e entry[T], n string) int { return strings.Compare(e.name, n) })
}

// Get gives the object of that name as of the cache's revision.
func (c *Cache[T]) Get(name string) (T, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i, ok := c.find(name); ok {
		return c.objects[i].m, true
	}
	var zero T
	return zero, false
}

// List gives every object in name order, and the revision. The slice is shared: don't change it.
func (c *Cache[T]) List() ([]T, int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.list(), c.rev
}

func (c *Cache[T]) list() []T {
	if c.listed == nil {
		c.listed = make([]T, len(c.objects))
		for i := range c.objects {
			c.listed[i] = c.objects[i].m
		}
	}
	return c.listed
}

// Len is the number of objects.
func (c *Cache[T]) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.objects)
}

// Revision is up to where the cache has seen every change; 0 before the first state is there.
func (c *Cache[T]) Revision() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rev
}

// progressAfter is how long WaitRevision waits for an event before it asks etcd whether there is none to come.
const progressAfter = 10 * time.Millisecond

// WaitRevision returns when the cache has seen everything up to rev, a revision that some write or read of the
// Store returned; also one of another collection. WaitRevision(ctx, 1) waits for the first state.
func (c *Cache[T]) WaitRevision(ctx context.Context, rev int64) error {
	wait := progressAfter
	for {
		c.mu.Lock()
		synced, at, changed, stopped := c.synced, c.rev, c.changed, c.stopped
		c.mu.Unlock()
		switch {
		case synced && at >= rev:
			return nil
		case stopped != nil:
			return stopped
		}
		t := time.NewTimer(wait)
		select {
		case <-changed:
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("wait for revision %d of %s, now at %d: %w", rev, c.kind(), at, ctx.Err())
		case <-t.C:
			if synced && c.coll != nil {
				// A failure here is the watch's own, which resumes and brings the news itself.
				_ = c.coll.store.requestProgress(ctx)
			}
			wait = min(2*wait, time.Second)
		}
		t.Stop()
	}
}
