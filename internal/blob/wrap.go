package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync/atomic"
	"time"
)

// As finds a store of a kind, or one that can do something more, below wrappers.
func As[T any](st Store) (t T, ok bool) {
	for st != nil {
		if t, ok := st.(T); ok {
			return t, true
		}
		u, ok := st.(interface{ Unwrap() Store })
		if !ok {
			break
		}
		st = u.Unwrap()
	}
	return t, false
}

// Close lets go of what a store holds open, if anything.
func Close(st Store) error {
	if c, ok := As[io.Closer](st); ok {
		return c.Close()
	}
	return nil
}

// Locker is a store whose objects can be locked against everybody's deletion (S3 Object Lock).
type Locker interface {
	// Lock is for how long objects are locked when they are put; 0: not at all.
	Lock() time.Duration
	// Extend locks an object until a time, if it is not already for longer.
	Extend(ctx context.Context, name string, until time.Time) error
}

// ErrReplaces: a server does not know the condition "if absent", on which a repository's safety rests.
var ErrReplaces = errors.New("the server replaced an object that was to be written only if absent; a repository on it is not safe: use a server that knows If-None-Match")

// CheckConditional finds out whether the store really puts only if absent, by putting the bytes of an object again that is there.
// A server that does not know the condition replaces the object by itself, which harms nothing.
func CheckConditional(ctx context.Context, st Store, name string) error {
	p, err := st.Get(ctx, name, 1<<20)
	if err != nil {
		return err
	}
	err = st.Put(ctx, name, p)
	switch {
	case err == nil:
		return fmt.Errorf("%s: %w", st, ErrReplaces)
	case errors.Is(err, ErrExists), errors.Is(err, ErrReadOnly):
		return nil
	}
	return err
}

// Counts are what a [Count] has seen.
type Counts struct {
	Puts, Reads, Lists, Deletes int64 // requests
	Written, Read               int64 // bytes
}

// Count counts requests and bytes.
type Count struct {
	Store
	puts, reads, lists, deletes, written, read atomic.Int64
}

// NewCount wraps a store.
func NewCount(st Store) *Count { return &Count{Store: st} }

// Unwrap returns the store below.
func (c *Count) Unwrap() Store { return c.Store }

// Counts returns the counts since the beginning.
func (c *Count) Counts() Counts {
	return Counts{Puts: c.puts.Load(), Reads: c.reads.Load(), Lists: c.lists.Load(), Deletes: c.deletes.Load(), Written: c.written.Load(), Read: c.read.Load()}
}

// Put implements [Store].
func (c *Count) Put(ctx context.Context, name string, data []byte) error {
	c.puts.Add(1)
	c.written.Add(int64(len(data)))
	return c.Store.Put(ctx, name, data)
}

// Create implements [Store].
func (c *Count) Create(ctx context.Context, name string) (Writer, error) {
	c.puts.Add(1)
	w, err := c.Store.Create(ctx, name)
	if err != nil {
		return nil, err
	}
	return &countWriter{w, c}, nil
}

type countWriter struct {
	Writer
	c *Count
}

func (w *countWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.c.written.Add(int64(n))
	return n, err
}

// ReadAt implements [Store].
func (c *Count) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	c.reads.Add(1)
	c.read.Add(int64(len(p)))
	return c.Store.ReadAt(ctx, name, p, off)
}

// Get implements [Store].
func (c *Count) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	c.reads.Add(1)
	p, err := c.Store.Get(ctx, name, limit)
	c.read.Add(int64(len(p)))
	return p, err
}

// Size implements [Store].
func (c *Count) Size(ctx context.Context, name string) (int64, error) {
	c.reads.Add(1)
	return c.Store.Size(ctx, name)
}

// List implements [Store].
func (c *Count) List(ctx context.Context, prefix, after string) iter.Seq2[Info, error] {
	c.lists.Add(1)
	return c.Store.List(ctx, prefix, after)
}

// Delete implements [Store].
func (c *Count) Delete(ctx context.Context, name string) error {
	c.deletes.Add(1)
	return c.Store.Delete(ctx, name)
}
