package blob_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"drover/internal/blob"
	"drover/internal/blob/blobtest"
)

var errWorld = errors.New("the server is tired")

// TestRetryConforms: with every third request failing, done or not, nobody notices.
func TestRetryConforms(t *testing.T) {
	open := func(*testing.T) (blob.Store, func() blob.Store) {
		m := blob.NewMemory()
		var mu sync.Mutex
		r := rand.New(rand.NewPCG(1, 1))
		f := blob.NewFault(m, func(verb blob.Verb, _ string) blob.Outcome {
			mu.Lock()
			defer mu.Unlock()
			if verb != blob.VerbWrite && verb != blob.VerbCommit && r.IntN(3) == 0 {
				return blob.Outcome{Err: errWorld, Done: r.IntN(2) == 0}
			}
			return blob.Outcome{}
		})
		st := blob.NewRetry(f, blob.RetryOptions{Attempts: 40, Base: time.Microsecond, Max: time.Microsecond})
		return st, func() blob.Store { return st }
	}
	blobtest.Run(t, blobtest.Options{Open: open, Large: 1 << 20})
}

func TestWrappersConform(t *testing.T) {
	blobtest.Run(t, blobtest.Options{Large: 1 << 20, Open: func(*testing.T) (blob.Store, func() blob.Store) {
		m := blob.NewMemory()
		st := blob.NewCount(blob.NewLimit(m, 1<<40, nil))
		return st, func() blob.Store { return m }
	}})
}

func TestRetryPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		f := blob.NewFault(blob.NewMemory(), func(blob.Verb, string) blob.Outcome { n++; return blob.Outcome{Err: errWorld} })
		st := blob.NewRetry(f, blob.RetryOptions{Attempts: 5, Base: time.Second, Max: 3 * time.Second, Jitter: func() float64 { return 1 }})
		start := time.Now()
		if _, err := st.Get(t.Context(), "a", 1); !errors.Is(err, errWorld) {
			t.Errorf("error %v", err)
		}
		if took := time.Since(start); took != 9*time.Second || n != 5 { // 1+2+3+3
			t.Errorf("%d attempts took %v, want 5 in 9s", n, took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		n, start = 0, time.Now()
		if _, err := st.Get(ctx, "a", 1); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 1500*time.Millisecond {
			t.Errorf("error %v after %v", err, time.Since(start))
		}
	})
}

// TestRetryPut: what another has put stays another's, also when answers are lost.
func TestRetryPut(t *testing.T) {
	for _, done := range []bool{true, false} {
		n := 0
		m := blob.NewMemory()
		f := blob.NewFault(m, func(verb blob.Verb, _ string) blob.Outcome {
			if verb == blob.VerbPut {
				if n++; n == 1 {
					return blob.Outcome{Err: errWorld, Done: done}
				}
			}
			return blob.Outcome{}
		})
		st := blob.NewRetry(f, blob.RetryOptions{Base: time.Microsecond})
		if err := st.Put(t.Context(), "log/1", []byte("mine")); err != nil {
			t.Errorf("done %v: %v", done, err)
		}
		if err := m.Put(t.Context(), "log/2", []byte("other")); err != nil {
			t.Fatal(err)
		}
		n = 0
		if err := st.Put(t.Context(), "log/2", []byte("mine")); !errors.Is(err, blob.ErrExists) {
			t.Errorf("done %v: over another's: %v", done, err)
		}
	}
	n := 0
	for _, final := range []error{blob.ErrFull, blob.ErrReadOnly, io.ErrUnexpectedEOF, blob.ErrNotFound} {
		f := blob.NewFault(blob.NewMemory(), func(blob.Verb, string) blob.Outcome { n++; return blob.Outcome{Err: final} })
		n = 0
		if err := blob.NewRetry(f, blob.RetryOptions{}).Put(t.Context(), "a", nil); !errors.Is(err, final) || n != 1 {
			t.Errorf("%v: %v after %d attempts", final, err, n)
		}
	}
}

func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		st := blob.NewLimit(blob.NewMemory(), 1<<20, nil)
		took := func(f func() error) time.Duration {
			start := time.Now()
			if err := f(); err != nil {
				t.Fatal(err)
			}
			return time.Since(start).Round(100 * time.Millisecond)
		}
		big := make([]byte, 10<<20)
		if d := took(func() error { return st.Put(ctx, "a", big) }); d != 10*time.Second {
			t.Errorf("10 MiB at 1 MiB/s took %v", d)
		}
		if d := took(func() error { return st.ReadAt(ctx, "a", big[:2<<20], 0) }); d != 2*time.Second {
			t.Errorf("reading 2 MiB at 1 MiB/s took %v", d)
		}
		// Two share the rate.
		if d := took(func() error {
			errs := make(chan error)
			for i := range 2 {
				go func() { errs <- st.Put(ctx, fmt.Sprintf("b%d", i), big[:1<<20]) }()
			}
			return errors.Join(<-errs, <-errs)
		}); d != 2*time.Second {
			t.Errorf("two times 1 MiB took %v", d)
		}
		// A new rate wakes who waits.
		st.SetRate(1)
		if d := took(func() error {
			errs := make(chan error)
			go func() { errs <- st.Put(ctx, "c", big) }()
			<-time.After(time.Minute)
			st.SetRate(10 << 20)
			return <-errs
		}); d > 61200*time.Millisecond || d < time.Minute {
			t.Errorf("after a minute at 1 byte/s, 10 MiB at 10 MiB/s took %v", d)
		}
		st.SetRate(0)
		if d := took(func() error { return st.Put(ctx, "d", big) }); d != 0 {
			t.Errorf("without a limit 10 MiB took %v", d)
		}
		// An idle hour earns nothing.
		st.SetRate(1 << 20)
		<-time.After(time.Hour)
		if d := took(func() error { return st.Put(ctx, "e", big) }); d != 10*time.Second {
			t.Errorf("after an idle hour 10 MiB took %v", d)
		}
		cancelled, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if err := st.Put(cancelled, "f", big); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cancelled while it waited: %v", err)
		}
	})
}

func TestCountAndAs(t *testing.T) {
	ctx := t.Context()
	c := blob.NewCount(blob.NewMemory())
	st := blob.NewRetry(blob.NewLimit(c, 0, nil), blob.RetryOptions{})
	if err := st.Put(ctx, "a", make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	w, err := st.Create(ctx, "b")
	if err != nil {
		t.Fatal(err)
	}
	_, werr := w.Write(make([]byte, 50))
	_, gerr := st.Get(ctx, "a", 100)
	_, serr := st.Size(ctx, "a")
	for _, err := range st.List(ctx, "", "") {
		werr = errors.Join(werr, err)
	}
	if err := errors.Join(werr, gerr, serr, w.Commit(), st.ReadAt(ctx, "b", make([]byte, 7), 3), st.Delete(ctx, "a")); err != nil {
		t.Fatal(err)
	}
	if got, want := c.Counts(), (blob.Counts{Puts: 2, Reads: 3, Lists: 1, Deletes: 1, Written: 150, Read: 107}); got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
	if got, ok := blob.As[*blob.Memory](st); !ok || got == nil {
		t.Error("As does not find the store below the wrappers")
	}
	if _, ok := blob.As[blob.Locker](st); ok {
		t.Error("a store in memory claims to lock")
	}
	if err := blob.CheckConditional(ctx, st, "b"); err != nil {
		t.Error(err)
	}
	if err := blob.CheckConditional(ctx, replacing{st}, "b"); err == nil {
		t.Error("a server that replaces objects passed")
	}
}

// replacing forgets the condition.
type replacing struct{ blob.Store }

func (r replacing) Put(ctx context.Context, name string, p []byte) error {
	return errors.Join(r.Store.Delete(ctx, name), r.Store.Put(ctx, name, p))
}
