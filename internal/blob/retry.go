package blob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"time"

	"drover/internal/clock"
)

// RetryOptions says how often and when something is tried again. The zero value is for a link over the internet: eight attempts within about
// half a minute.
type RetryOptions struct {
	// Attempts in all; 8 if 0.
	Attempts int
	// Base is the first pause; it doubles up to Max. 100 ms and 10 s if 0.
	Base, Max time.Duration
	// Jitter returns numbers from 0 to 1, so that many do not come again at once. Random if nil.
	Jitter func() float64
	Clock  clock.Clock // the machine's if nil
}

func (o RetryOptions) withDefaults() RetryOptions {
	if o.Attempts == 0 {
		o.Attempts = 8
	}
	if o.Base == 0 {
		o.Base = 100 * time.Millisecond
	}
	if o.Max == 0 {
		o.Max = 10 * time.Second
	}
	if o.Jitter == nil {
		o.Jitter = rand.Float64
	}
	if o.Clock == nil {
		o.Clock = clock.Real()
	}
	return o
}

// permanent marks an error that a repetition does not mend.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// transient reports whether a repetition may help.
func transient(err error) bool {
	var p permanent
	if errors.As(err, &p) {
		return false
	}
	for _, e := range []error{ErrExists, ErrNotFound, ErrReadOnly, ErrFull, io.ErrUnexpectedEOF, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, e) {
			return false
		}
	}
	return true
}

// do calls f until it succeeds, or a repetition makes no sense any more.
func (o RetryOptions) do(ctx context.Context, f func() error) error {
	pause := o.Base
	for i := 1; ; i++ {
		err := f()
		if err == nil || !transient(err) {
			return err
		}
		if ctx.Err() != nil {
			return errors.Join(ctx.Err(), err)
		}
		if i >= o.Attempts {
			return permanent{fmt.Errorf("%w (tried %d times)", err, i)} // whoever calls need not begin anew
		}
		timer := o.Clock.NewTimer(time.Duration(float64(pause) * (0.5 + o.Jitter()/2)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return errors.Join(ctx.Err(), err)
		}
		pause = min(2*pause, o.Max)
	}
}

// put repeats an attempt to put an object. One whose answer was lost may have succeeded: so after an unclear one the object is
// looked at, and is this put's if same says so.
func (o RetryOptions) put(ctx context.Context, attempt func() error, same func() (bool, error)) error {
	unclear := false
	return o.do(ctx, func() error {
		err := attempt()
		if err == nil {
			return nil
		}
		if !transient(err) && (!errors.Is(err, ErrExists) || !unclear) {
			return err
		}
		unclear = true
		switch is, serr := same(); {
		case serr == nil && is:
			return nil
		case serr == nil:
			return fmt.Errorf("%w: %w", ErrExists, err)
		case errors.Is(serr, ErrNotFound) && errors.Is(err, ErrExists):
			return permanent{fmt.Errorf("the object came and went: %w", serr)}
		case errors.Is(err, ErrExists):
			return serr // whose it is nobody knows yet
		}
		return err
	})
}

// Retry repeats what failed for reasons of the world. What a [Writer] does is repeated by the store itself, which has the bytes.
type Retry struct {
	Store
	o RetryOptions
}

// NewRetry wraps a store.
func NewRetry(st Store, o RetryOptions) *Retry { return &Retry{Store: st, o: o.withDefaults()} }

// Unwrap returns the store below.
func (r *Retry) Unwrap() Store { return r.Store }

// Put implements [Store].
func (r *Retry) Put(ctx context.Context, name string, data []byte) error {
	return r.o.put(ctx, func() error { return r.Store.Put(ctx, name, data) }, func() (bool, error) { return holds(ctx, r.Store, name, data) })
}

// holds reports whether an object has these bytes.
func holds(ctx context.Context, st Store, name string, data []byte) (bool, error) {
	n, err := st.Size(ctx, name)
	if err != nil || n != int64(len(data)) {
		return false, err
	}
	p, err := st.Get(ctx, name, n)
	return bytes.Equal(p, data), err
}

// Create implements [Store].
func (r *Retry) Create(ctx context.Context, name string) (w Writer, err error) {
	err = r.o.do(ctx, func() error { w, err = r.Store.Create(ctx, name); return err })
	return w, err
}

// ReadAt implements [Store].
func (r *Retry) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	return r.o.do(ctx, func() error { return r.Store.ReadAt(ctx, name, p, off) })
}

// Get implements [Store].
func (r *Retry) Get(ctx context.Context, name string, limit int64) (p []byte, err error) {
	err = r.o.do(ctx, func() error { p, err = r.Store.Get(ctx, name, limit); return err })
	return p, err
}

// Size implements [Store].
func (r *Retry) Size(ctx context.Context, name string) (n int64, err error) {
	err = r.o.do(ctx, func() error { n, err = r.Store.Size(ctx, name); return err })
	return n, err
}

// Delete implements [Store].
func (r *Retry) Delete(ctx context.Context, name string) error {
	return r.o.do(ctx, func() error { return r.Store.Delete(ctx, name) })
}

// List implements [Store]: one that breaks off goes on after the last object. Each object that is listed gives it all its attempts again.
func (r *Retry) List(ctx context.Context, prefix, after string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		for {
			before, stopped := after, false
			err := r.o.do(ctx, func() error {
				for i, err := range r.Store.List(ctx, prefix, after) {
					if err != nil {
						if after != before {
							return permanent{err} // it came further: begin to count anew
						}
						return err
					}
					after = i.Name
					if !yield(i, nil) {
						stopped = true
						return nil
					}
				}
				return nil
			})
			if err != nil && !stopped && after != before && onlyMarked(err) {
				continue
			}
			if err != nil && !stopped {
				yield(Info{}, err)
			}
			return
		}
	}
}

// onlyMarked reports whether an error would be transient without its mark.
func onlyMarked(err error) bool {
	p, ok := err.(permanent)
	return ok && transient(p.error)
}
