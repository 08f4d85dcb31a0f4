package store

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
)

// EventType says what an Event means.
type EventType int

const (
	// Put: Object is new or changed.
	Put EventType = iota + 1
	// Delete: the object Name is gone.
	Delete
	// Reset: forget everything; Puts of the whole state follow, then Synced.
	Reset
	// Synced: what was delivered so far is the whole state as of Revision.
	Synced
	// Progress: nothing changed up to Revision.
	Progress
)

func (t EventType) String() string {
	switch t {
	case Put:
		return "put"
	case Delete:
		return "delete"
	case Reset:
		return "reset"
	case Synced:
		return "synced"
	case Progress:
		return "progress"
	}
	return "unknown"
}

// Event is one change or marker. Events of one transaction share a Revision and come in one batch.
type Event[T proto.Message] struct {
	Type   EventType
	Name   string // Put, Delete
	Object T      // Put
	// Old is what was there before, for Put and Delete from a Subscription; nil if nothing was.
	Old      T
	Revision int64
}

// Watch calls handle with batches of changes after revision from, in order and without a gap, until ctx ends or
// handle fails; it returns that error. With from 0, and when the changes after from are compacted, it delivers
// Reset, the whole state and Synced first, then changes. It lives through lost connections and leaders. It fails on
// a value that it cannot decode.
func (c *Collection[T]) Watch(ctx context.Context, from int64, handle func([]Event[T]) error) error {
	wait := time.Duration(0)
	for {
		before := from
		err := c.watchOnce(ctx, &from, handle)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, ErrCompacted) {
			from = 0
			continue
		}
		if !errors.Is(err, ErrUnavailable) || c.store.client.Ctx().Err() != nil {
			return fail("watch", c.kind, "", err)
		}
		if from != before {
			wait = 0
		}
		wait = min(max(2*wait, 20*time.Millisecond), 3*time.Second)
		c.store.log.Warn("watch was interrupted; it resumes", "kind", c.kind, "revision", from, "wait", wait, "err", err)
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}

// watchOnce follows one etcd watch and moves *from as it delivers.
func (c *Collection[T]) watchOnce(ctx context.Context, from *int64, handle func([]Event[T]) error) error {
	if *from == 0 {
		objs, rev, err := c.List(ctx)
		if err != nil {
			return err
		}
		batch := make([]Event[T], 0, len(objs)+2)
		batch = append(batch, Event[T]{Type: Reset, Revision: rev})
		for _, m := range objs {
			batch = append(batch, Event[T]{Type: Put, Name: c.nameOf(m), Object: m, Revision: c.revisionOf(m)})
		}
		if err := handle(append(batch, Event[T]{Type: Synced, Revision: rev})); err != nil {
			return err
		}
		*from = rev
	}
	ctx, cancel := context.WithCancel(c.store.watchContext(ctx))
	defer cancel()
	ch := c.store.client.Watch(ctx, c.prefix(), clientv3.WithPrefix(), clientv3.WithRev(*from+1), clientv3.WithFragment(), clientv3.WithProgressNotify())
	for r := range ch {
		if err := r.Err(); err != nil {
			if r.CompactRevision != 0 {
				return ErrCompacted
			}
			return translate(ctx, err)
		}
		batch, err := c.events(r.Events)
		if err != nil {
			return err
		}
		if len(batch) == 0 {
			if !r.IsProgressNotify() {
				continue
			}
			batch = []Event[T]{{Type: Progress, Revision: r.Header.Revision}}
		}
		if err := handle(batch); err != nil {
			return err
		}
		*from = max(*from, batch[len(batch)-1].Revision)
	}
	return errors.Join(ErrUnavailable, ctx.Err())
}

func (c *Collection[T]) events(evs []*clientv3.Event) ([]Event[T], error) {
	batch := make([]Event[T], 0, len(evs))
	for _, ev := range evs {
		e := Event[T]{Name: c.nameIn(ev.Kv.Key), Revision: ev.Kv.ModRevision}
		switch ev.Type {
		case mvccpb.Event_DELETE:
			e.Type = Delete
		default:
			m, _, err := c.decode(e.Name, ev.Kv.Value, ev.Kv.ModRevision)
			if err != nil {
				return nil, err
			}
			e.Type, e.Object = Put, m
		}
		batch = append(batch, e)
	}
	return batch, nil
}

// watchContext makes a member that lost its leader end the watch, so that it moves to another. All
// watches share the stream of this context's metadata.
func (s *Store) watchContext(ctx context.Context) context.Context {
	return clientv3.WithRequireLeader(ctx)
}

// requestProgress asks for a Progress event on every watch that has seen everything.
func (s *Store) requestProgress(ctx context.Context) error {
	return s.client.RequestProgress(s.watchContext(ctx))
}
