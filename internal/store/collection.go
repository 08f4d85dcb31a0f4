package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
)

// Collection is all objects of one kind. A T must have a field meta with name and revision. Messages it
// returns belong to the caller. Its methods are safe for concurrent use.
type Collection[T proto.Message] struct {
	store *Store
	*codec[T]
}

// NewCollection makes a collection of kind k in s.
func NewCollection[T proto.Message](s *Store, k Kind[T]) (*Collection[T], error) {
	c, err := newCodec(k)
	if err != nil {
		return nil, err
	}
	return &Collection[T]{store: s, codec: c}, nil
}

// Kind is the collection's name.
func (c *Collection[T]) Kind() string { return c.kind }

// Get reads one object from the leader.
func (c *Collection[T]) Get(ctx context.Context, name string) (m T, err error) {
	if err := c.checkName(name); err != nil {
		return m, fail("get", c.kind, name, err)
	}
	ctx, cancel := c.store.bound(ctx)
	defer cancel()
	r, err := c.store.client.Get(ctx, c.key(name))
	if err != nil {
		return m, fail("get", c.kind, name, translate(ctx, err))
	}
	if len(r.Kvs) == 0 {
		return m, fail("get", c.kind, name, ErrNotFound)
	}
	m, _, err = c.decode(name, r.Kvs[0].Value, r.Kvs[0].ModRevision)
	return m, err
}

// List gives every object in name order, as of the one revision that it returns.
func (c *Collection[T]) List(ctx context.Context) ([]T, int64, error) {
	for {
		var out []T
		rev, err := c.scan(ctx, func(kv *mvccpb.KeyValue) error {
			m, _, err := c.decode(c.nameIn(kv.Key), kv.Value, kv.ModRevision)
			if err == nil {
				out = append(out, m)
			}
			return err
		})
		// A compaction between two pages: the pages would be of different times. Start again.
		if errors.Is(err, ErrCompacted) {
			continue
		}
		return out, rev, err
	}
}

func (c *Collection[T]) nameIn(key []byte) string { return string(key[len(c.prefix()):]) }

// page is small enough that one answer stays below gRPC's 4 MB for ordinary objects.
const page = 500

// scan calls visit for each value, all as of one revision.
func (c *Collection[T]) scan(ctx context.Context, visit func(*mvccpb.KeyValue) error) (int64, error) {
	var rev int64
	from, end := c.prefix(), clientv3.GetPrefixRangeEnd(c.prefix())
	for {
		rctx, cancel := c.store.bound(ctx)
		r, err := c.store.client.Get(rctx, from, clientv3.WithRange(end), clientv3.WithLimit(page), clientv3.WithRev(rev))
		err = translate(rctx, err)
		cancel()
		if err != nil {
			return 0, fail("list", c.kind, "", err)
		}
		if rev == 0 {
			rev = r.Header.Revision
		}
		for _, kv := range r.Kvs {
			if err := visit(kv); err != nil {
				return 0, err
			}
		}
		if !r.More {
			return rev, nil
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
}

// Create stores a new object; its name must be free. On success m's meta.revision is set.
func (c *Collection[T]) Create(ctx context.Context, m T) error {
	_, err := c.store.Txn(ctx, c.CreateOp(m))
	return err
}

// Update replaces the object if it still is at m's meta.revision, which on success becomes the new one.
func (c *Collection[T]) Update(ctx context.Context, m T) error {
	_, err := c.store.Txn(ctx, c.UpdateOp(m))
	return err
}

// Delete removes the object if it is at rev, or at whatever revision if rev is 0. It returns the revision of the
// deletion.
func (c *Collection[T]) Delete(ctx context.Context, name string, rev int64) (int64, error) {
	if rev != 0 {
		return c.store.Txn(ctx, c.DeleteOp(name, rev))
	}
	if err := c.checkName(name); err != nil {
		return 0, fail("delete", c.kind, name, err)
	}
	ctx, cancel := c.store.bound(ctx)
	defer cancel()
	r, err := c.store.client.Delete(ctx, c.key(name))
	if err != nil {
		return 0, fail("delete", c.kind, name, translate(ctx, err))
	}
	if r.Deleted == 0 {
		return 0, fail("delete", c.kind, name, ErrNotFound)
	}
	return r.Header.Revision, nil
}

// Mutate reads the object, applies change and writes it back, again on conflict until ctx ends. change may run
// several times, each time on a fresh message; its error ends Mutate. A change that changes nothing writes
// nothing. The name must not be changed. It returns the object as stored.
func (c *Collection[T]) Mutate(ctx context.Context, name string, change func(T) error) (T, error) {
	var zero T
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		m, err := c.Get(ctx, name)
		if err != nil {
			return zero, err
		}
		rev, before := c.revisionOf(m), proto.Clone(m)
		if err := change(m); err != nil {
			return zero, err
		}
		c.setRevision(m, rev)
		if proto.Equal(before, m) {
			return m, nil
		}
		if c.nameOf(m) != name {
			return zero, fail("update", c.kind, name, fmt.Errorf("%w: the change renames it to %q", ErrInvalid, c.nameOf(m)))
		}
		if err = c.Update(ctx, m); err == nil {
			return m, nil
		}
		if !errors.Is(err, ErrConflict) {
			return zero, err
		}
		// Writers that collided must not collide again in step.
		t := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return zero, err
		}
	}
}

// CreateOp is Create as a part of a transaction.
func (c *Collection[T]) CreateOp(m T) Op { return c.putOp("create", m, 0) }

// UpdateOp is Update as a part of a transaction.
func (c *Collection[T]) UpdateOp(m T) Op {
	rev := c.revisionOf(m)
	o := c.putOp("update", m, rev)
	if o.err == nil && rev <= 0 {
		o.err = fmt.Errorf("%w: meta.revision says which version it changes, and is not set", ErrInvalid)
	}
	return o
}

func (c *Collection[T]) putOp(op string, m T, rev int64) Op {
	o := Op{op: op, kind: c.kind, name: c.nameOf(m), rev: rev}
	if o.err = c.checkName(o.name); o.err != nil {
		return o
	}
	value, err := c.encode(m)
	if err != nil {
		o.err = err
		return o
	}
	o.key = c.key(o.name)
	put := clientv3.OpPut(o.key, string(value))
	o.write = &put
	o.done = func(rev int64) { c.setRevision(m, rev) }
	return o
}

// DeleteOp is Delete as a part of a transaction; rev must be given.
func (c *Collection[T]) DeleteOp(name string, rev int64) Op {
	o := c.CheckOp(name, rev)
	o.op = "delete"
	if o.err == nil && rev <= 0 {
		o.err = fmt.Errorf("%w: a deletion in a transaction needs the revision", ErrInvalid)
	}
	del := clientv3.OpDelete(o.key)
	o.write = &del
	return o
}

// CheckOp changes nothing; the transaction fails unless the object is at rev, or absent if rev is 0.
func (c *Collection[T]) CheckOp(name string, rev int64) Op {
	return Op{op: "check", kind: c.kind, name: name, key: c.key(name), rev: rev, err: c.checkName(name)}
}

// MigrateAll rewrites every value of an older schema and returns how many. It fails on the first value of a newer
// one, before it has written anything. Run it at start, before other writers.
func (c *Collection[T]) MigrateAll(ctx context.Context) (int, error) {
	var old []T
	_, err := c.scan(ctx, func(kv *mvccpb.KeyValue) error {
		m, wasOld, err := c.decode(c.nameIn(kv.Key), kv.Value, kv.ModRevision)
		if err == nil && wasOld {
			old = append(old, m)
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	n := 0
	for _, m := range old {
		switch err := c.Update(ctx, m); {
		case err == nil:
			n++
		case errors.Is(err, ErrConflict), errors.Is(err, ErrNotFound): // another manager was faster
		default:
			return n, err
		}
	}
	return n, nil
}
