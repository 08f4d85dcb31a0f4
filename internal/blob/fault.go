package blob

import (
	"context"
	"iter"
)

// Verb says what is asked of a store.
type Verb string

// Verbs, as [Fault] sees them.
const (
	VerbPut    Verb = "put"
	VerbCreate Verb = "create"
	VerbWrite  Verb = "write"
	VerbCommit Verb = "commit"
	VerbRead   Verb = "read"
	VerbGet    Verb = "get"
	VerbSize   Verb = "size"
	VerbList   Verb = "list" // asked for each object
	VerbDelete Verb = "delete"
)

// Outcome is what becomes of a request.
type Outcome struct {
	// Err is the answer, if set.
	Err error
	// Done: the request was carried out all the same, its answer alone was lost.
	Done bool
	// Change changes the bytes that were read, in place.
	Change func(p []byte)
}

// Fault is a store whose answers a test decides about.
type Fault struct {
	Store
	decide func(verb Verb, name string) Outcome
}

// NewFault wraps a store. decide is called for each request, also by many at once.
func NewFault(st Store, decide func(verb Verb, name string) Outcome) *Fault {
	return &Fault{Store: st, decide: decide}
}

// Unwrap returns the store below.
func (f *Fault) Unwrap() Store { return f.Store }

func (f *Fault) do(verb Verb, name string, p []byte, op func() error) error {
	o := f.decide(verb, name)
	if o.Err == nil || o.Done {
		if err := op(); err != nil {
			return err
		}
	}
	if o.Change != nil {
		o.Change(p)
	}
	return o.Err
}

// Put implements [Store].
func (f *Fault) Put(ctx context.Context, name string, data []byte) error {
	return f.do(VerbPut, name, nil, func() error { return f.Store.Put(ctx, name, data) })
}

// Create implements [Store].
func (f *Fault) Create(ctx context.Context, name string) (w Writer, err error) {
	err = f.do(VerbCreate, name, nil, func() error { w, err = f.Store.Create(ctx, name); return err })
	if err != nil {
		if w != nil {
			w.Abort()
		}
		return nil, err
	}
	return &faultWriter{Writer: w, f: f, name: name}, nil
}

type faultWriter struct {
	Writer
	f    *Fault
	name string
}

func (w *faultWriter) Write(p []byte) (n int, err error) {
	err = w.f.do(VerbWrite, w.name, nil, func() error { n, err = w.Writer.Write(p); return err })
	return n, err
}

func (w *faultWriter) Commit() error { return w.f.do(VerbCommit, w.name, nil, w.Writer.Commit) }

// ReadAt implements [Store].
func (f *Fault) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	return f.do(VerbRead, name, p, func() error { return f.Store.ReadAt(ctx, name, p, off) })
}

// Get implements [Store].
func (f *Fault) Get(ctx context.Context, name string, limit int64) (p []byte, err error) {
	o := f.decide(VerbGet, name)
	if o.Err != nil {
		return nil, o.Err
	}
	p, err = f.Store.Get(ctx, name, limit)
	if err == nil && o.Change != nil {
		o.Change(p)
	}
	return p, err
}

// Size implements [Store].
func (f *Fault) Size(ctx context.Context, name string) (n int64, err error) {
	err = f.do(VerbSize, name, nil, func() error { n, err = f.Store.Size(ctx, name); return err })
	return n, err
}

// List implements [Store].
func (f *Fault) List(ctx context.Context, prefix, after string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		for i, err := range f.Store.List(ctx, prefix, after) {
			if o := f.decide(VerbList, i.Name); err == nil && o.Err != nil {
				yield(Info{}, o.Err)
				return
			}
			if !yield(i, err) {
				return
			}
		}
	}
}

// Delete implements [Store].
func (f *Fault) Delete(ctx context.Context, name string) error {
	return f.do(VerbDelete, name, nil, func() error { return f.Store.Delete(ctx, name) })
}
