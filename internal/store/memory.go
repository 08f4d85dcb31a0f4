package store

import (
	"google.golang.org/protobuf/proto"
)

// NewMemory makes a cache that no collection feeds, for what is worked out rather than stored: its owner does, by Feed. It has its first
// state, nothing, at revision rev. ring is how many events a follower may lag before it gets the whole state again; 0 is the default.
// Run is not for it.
func NewMemory[T proto.Message](ring int, rev int64) *Cache[T] {
	if ring == 0 {
		ring = defaultRing
	}
	c := newCache[T](nil, ring)
	c.synced, c.rev, c.floor = true, rev, rev
	return c
}

// Feed takes in a batch of Put and Delete events, in order, or a whole new state: Reset, Puts, Synced. Revisions must grow from batch to batch; objects are shared from then on.
func (c *Cache[T]) Feed(batch []Event[T]) {
	if len(batch) > 0 {
		c.apply(batch)
	}
}
