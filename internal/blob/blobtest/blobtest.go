package blobtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"drover/internal/blob"
)

// Options says how the store is got.
type Options struct {
	// Open returns a store that is empty. Another store of the same objects is returned by again.
	Open func(t *testing.T) (st blob.Store, again func() blob.Store)
	// Large is the size of the object that is written in pieces; 20 MiB if 0.
	Large int
}

// Run runs the suite.
func Run(t *testing.T, o Options) {
	if o.Large == 0 {
		o.Large = 20<<20 + 12345
	}
	for _, c := range []struct {
		name string
		f    func(t *testing.T, o Options)
	}{
		{"Put", testPut}, {"Create", testCreate}, {"Abort", testAbort}, {"Absent", testAbsent}, {"Race", testRace}, {"RaceLarge", testRaceLarge},
		{"Read", testRead}, {"List", testList}, {"Delete", testDelete}, {"Names", testNames}, {"Cancel", testCancel}, {"Reopen", testReopen},
	} {
		t.Run(c.name, func(t *testing.T) { c.f(t, o) })
	}
}

func fill(seed uint64, n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	p := make([]byte, n)
	r.Read(p)
	return p
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantIs(t *testing.T, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("got error %v, want %v", err, target)
	}
}

func wantObject(t *testing.T, st blob.Store, name string, want []byte) {
	t.Helper()
	got, err := st.Get(t.Context(), name, int64(len(want)))
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Fatalf("%s: %d bytes that differ from the %d written", name, len(got), len(want))
	}
	n, err := st.Size(t.Context(), name)
	must(t, err)
	if n != int64(len(want)) {
		t.Fatalf("%s: size %d, want %d", name, n, len(want))
	}
}

func testPut(t *testing.T, o Options) {
	st, _ := o.Open(t)
	for i, n := range []int{0, 1, 4096, 1<<20 + 1} {
		name := fmt.Sprintf("data/0%d/object", i)
		p := fill(uint64(i), n)
		q := bytes.Clone(p)
		must(t, st.Put(t.Context(), name, q))
		clear(q) // the store keeps nothing of the caller's
		wantObject(t, st, name, p)
	}
	must(t, st.Put(t.Context(), "config", []byte("one")))
	wantIs(t, st.Put(t.Context(), "config", []byte("two")), blob.ErrExists)
	wantIs(t, st.Put(t.Context(), "config", []byte("one")), blob.ErrExists)
	wantObject(t, st, "config", []byte("one"))
	if st.String() == "" {
		t.Error("the store has no name for people")
	}
}

// write writes an object in pieces of random sizes, reusing the buffer.
func write(w io.Writer, p []byte, seed uint64) error {
	r := rand.New(rand.NewPCG(seed, 1))
	var buf []byte
	for len(p) > 0 {
		n := min(len(p), 1+r.IntN(3<<20))
		if r.IntN(3) == 0 {
			n = min(len(p), 1+r.IntN(5000))
		}
		buf = append(buf[:0], p[:n]...)
		if k, err := w.Write(buf); err != nil || k != n {
			return fmt.Errorf("wrote %d bytes: %d, %w", n, k, err)
		}
		p = p[n:]
	}
	return nil
}

func testCreate(t *testing.T, o Options) {
	st, _ := o.Open(t)
	for i, n := range []int{0, 1, 1 << 20, 8 << 20, 16 << 20, o.Large} {
		name := fmt.Sprintf("data/aa/%d", i)
		p := fill(uint64(n), n)
		w, err := st.Create(t.Context(), name)
		must(t, err)
		must(t, write(w, p, uint64(n)))
		_, err = st.Size(t.Context(), name)
		wantIs(t, err, blob.ErrNotFound)
		must(t, w.Commit())
		w.Abort() // does nothing
		wantObject(t, st, name, p)
		if err := w.Commit(); err == nil {
			t.Fatal("a second Commit succeeded")
		}
		if _, err := w.Write([]byte("x")); err == nil {
			t.Fatal("a Write after Commit succeeded")
		}
	}
	for _, n := range []int{10, o.Large} {
		w, err := st.Create(t.Context(), "data/aa/1")
		if err == nil {
			if err = write(w, fill(9, n), 9); err == nil {
				err = w.Commit()
			}
			w.Abort()
		}
		wantIs(t, err, blob.ErrExists)
	}
	wantObject(t, st, "data/aa/1", fill(1, 1))
}

func testAbort(t *testing.T, o Options) {
	st, _ := o.Open(t)
	for i, n := range []int{0, 100, o.Large} {
		w, err := st.Create(t.Context(), fmt.Sprintf("data/aa/%d", i))
		must(t, err)
		must(t, write(w, fill(1, n), 1))
		w.Abort()
		w.Abort()
		if err := w.Commit(); err == nil {
			t.Error("Commit after Abort succeeded")
		}
	}
	if got := list(t, st, "", ""); len(got) != 0 {
		t.Errorf("after Abort: %v", got)
	}
}

func testAbsent(t *testing.T, o Options) {
	st, _ := o.Open(t)
	_, err := st.Get(t.Context(), "config", 100)
	wantIs(t, err, blob.ErrNotFound)
	_, err = st.Size(t.Context(), "config")
	wantIs(t, err, blob.ErrNotFound)
	wantIs(t, st.ReadAt(t.Context(), "data/aa/bb", make([]byte, 1), 0), blob.ErrNotFound)
	must(t, st.Delete(t.Context(), "config"))
	must(t, st.Delete(t.Context(), "data/aa/bb"))
	if got := list(t, st, "", ""); len(got) != 0 {
		t.Errorf("an empty store lists %v", got)
	}
}

// testRace lets many put one name: one wins, the others are told, and the object is the winner's.
func testRace(t *testing.T, o Options) {
	race(t, o, func(i int) []byte { return fill(uint64(i), 1000+i) }, 12, 8)
}

func testRaceLarge(t *testing.T, o Options) {
	race(t, o, func(i int) []byte { return fill(uint64(i), o.Large/2+i) }, 2, 3)
}

func race(t *testing.T, o Options, content func(int) []byte, rounds, writers int) {
	st, again := o.Open(t)
	for round := range rounds {
		name := fmt.Sprintf("log/%016x", round)
		errs := make([]error, writers)
		var wg sync.WaitGroup
		for i := range writers {
			wg.Go(func() {
				st := st
				if i%2 == 1 {
					st = again()
				}
				w, err := st.Create(t.Context(), name)
				if err == nil {
					if err = write(w, content(i), uint64(i)); err == nil {
						err = w.Commit()
					}
					w.Abort()
				}
				errs[i] = err
			})
		}
		wg.Wait()
		won := -1
		for i, err := range errs {
			switch {
			case err == nil && won >= 0:
				t.Fatalf("%s: both %d and %d were told that they put it", name, won, i)
			case err == nil:
				won = i
			case !errors.Is(err, blob.ErrExists):
				t.Fatalf("%s: writer %d: %v", name, i, err)
			}
		}
		if won < 0 {
			t.Fatalf("%s: nobody won: %v", name, errs)
		}
		wantObject(t, st, name, content(won))
		wantObject(t, again(), name, content(won))
	}
}

func testRead(t *testing.T, o Options) {
	st, _ := o.Open(t)
	p := fill(3, 300_000)
	must(t, st.Put(t.Context(), "data/aa/x", p))
	r := rand.New(rand.NewPCG(1, 2))
	for range 60 {
		off := r.IntN(len(p))
		q := make([]byte, r.IntN(len(p)-off)+1)
		must(t, st.ReadAt(t.Context(), "data/aa/x", q, int64(off)))
		if !bytes.Equal(q, p[off:off+len(q)]) {
			t.Fatalf("%d bytes at %d differ", len(q), off)
		}
	}
	must(t, st.ReadAt(t.Context(), "data/aa/x", nil, 0))
	for _, c := range []struct{ off, n int }{{len(p) - 1, 2}, {len(p), 1}, {len(p) + 1000, 10}, {0, len(p) + 1}} {
		wantIs(t, st.ReadAt(t.Context(), "data/aa/x", make([]byte, c.n), int64(c.off)), io.ErrUnexpectedEOF)
	}
	if _, err := st.Get(t.Context(), "data/aa/x", int64(len(p)-1)); err == nil || errors.Is(err, blob.ErrNotFound) {
		t.Errorf("Get of more than its limit: %v", err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			q := make([]byte, 1000)
			for j := range 10 {
				off := (i*10 + j) * 1000
				if err := st.ReadAt(t.Context(), "data/aa/x", q, int64(off)); err != nil || !bytes.Equal(q, p[off:off+1000]) {
					t.Errorf("concurrent read at %d: %v", off, err)
				}
			}
		})
	}
	wg.Wait()
}

func list(t *testing.T, st blob.Store, prefix, after string) []string {
	t.Helper()
	var out []string
	for i, err := range st.List(t.Context(), prefix, after) {
		must(t, err)
		if i.Size != int64(len(i.Name)) {
			t.Errorf("%s is listed with size %d", i.Name, i.Size)
		}
		out = append(out, i.Name)
	}
	return out
}

func testList(t *testing.T, o Options) {
	st, _ := o.Open(t)
	var names []string
	for i := range 30 {
		names = append(names, fmt.Sprintf("data/%02x/%032x", i*7%16, i), fmt.Sprintf("log/%016x", i))
	}
	// Whole names are compared: hyphen and dot are less than the slash.
	names = append(names, "config", "data-x/1", "data.x", "data/0.0/1", "data/00-/1", "keys/a", "keys/ab", "keys/b", "parity/00/1", "logs")
	var wg sync.WaitGroup
	for _, part := range slices.Collect(slices.Chunk(names, 9)) {
		wg.Go(func() {
			for _, n := range part {
				if err := st.Put(t.Context(), n, []byte(n)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	slices.Sort(names)
	for _, prefix := range []string{"", "d", "data", "data/", "data/0", "data/07/", "data/00", "log/", "log", "keys/a", "none", "none/"} {
		for _, after := range append([]string{"", "a", "data/", "data/05", "data/05/zz", "log/0000000000000007", "zzz", "data/00/"}, names[3], names[20], names[len(names)-1]) {
			var want []string
			for _, n := range names {
				if strings.HasPrefix(n, prefix) && n > after {
					want = append(want, n)
				}
			}
			if got := list(t, st, prefix, after); !slices.Equal(got, want) {
				t.Fatalf("List(%q, %q):\ngot  %v\nwant %v", prefix, after, got, want)
			}
		}
	}
	n := 0
	for range st.List(t.Context(), "", "") {
		if n++; n == 3 {
			break
		}
	}
}

func testDelete(t *testing.T, o Options) {
	st, again := o.Open(t)
	must(t, st.Put(t.Context(), "data/aa/1", []byte("one")))
	must(t, st.Put(t.Context(), "data/aa/2", []byte("data/aa/2")))
	wantObject(t, st, "data/aa/1", []byte("one"))
	must(t, st.Delete(t.Context(), "data/aa/1"))
	for _, st := range []blob.Store{st, again()} {
		_, err := st.Get(t.Context(), "data/aa/1", 10)
		wantIs(t, err, blob.ErrNotFound)
		wantIs(t, st.ReadAt(t.Context(), "data/aa/1", make([]byte, 1), 0), blob.ErrNotFound)
	}
	if got := list(t, st, "", ""); !slices.Equal(got, []string{"data/aa/2"}) {
		t.Errorf("after Delete: %v", got)
	}
	must(t, st.Delete(t.Context(), "data/aa/1"))
	must(t, st.Put(t.Context(), "data/aa/1", []byte("another")))
	wantObject(t, st, "data/aa/1", []byte("another"))
	must(t, st.Delete(t.Context(), "data/aa"))
	wantObject(t, st, "data/aa/1", []byte("another"))
}

func testNames(t *testing.T, o Options) {
	st, _ := o.Open(t)
	for _, name := range []string{"", ".", "..", "/", "/a", "a/", "a//b", "a/../b", "../a", "a/./b", "A", "a b", "a\x00b", "a\nb", "é", "a\\b", "tmp", "tmp/a", "a,b", "a?b=c",
		"a#b", "a%2fb", strings.Repeat("x", 201)} {
		if err := st.Put(t.Context(), name, nil); err == nil {
			t.Errorf("Put of %q succeeded", name)
		}
		if _, err := st.Create(t.Context(), name); err == nil {
			t.Errorf("Create of %q succeeded", name)
		}
		if _, err := st.Get(t.Context(), name, 1); err == nil || errors.Is(err, blob.ErrNotFound) {
			t.Errorf("Get of %q: %v", name, err)
		}
		if err := st.Delete(t.Context(), name); err == nil {
			t.Errorf("Delete of %q succeeded", name)
		}
	}
	long := strings.Repeat("long-name/", 15) + "end"
	must(t, st.Put(t.Context(), long, []byte("x")))
	wantObject(t, st, long, []byte("x"))
	// One name is another's directory: a bucket takes it, a directory may refuse; nothing may break.
	if err := st.Put(t.Context(), "long-name/long-name", []byte("x")); err == nil {
		wantObject(t, st, "long-name/long-name", []byte("x"))
	}
	wantObject(t, st, long, []byte("x"))
}

func testCancel(t *testing.T, o Options) {
	st, _ := o.Open(t)
	must(t, st.Put(t.Context(), "a", []byte("a")))
	ctx, cancel := context.WithCancel(t.Context())
	w, err := st.Create(ctx, "b")
	must(t, err)
	must(t, write(w, fill(1, 1000), 1))
	cancel()
	wantIs(t, w.Commit(), context.Canceled)
	w.Abort()
	wantIs(t, st.Put(ctx, "c", nil), context.Canceled)
	_, err = st.Create(ctx, "c")
	wantIs(t, err, context.Canceled)
	_, err = st.Get(ctx, "a", 10)
	wantIs(t, err, context.Canceled)
	wantIs(t, st.ReadAt(ctx, "a", make([]byte, 1), 0), context.Canceled)
	wantIs(t, st.Delete(ctx, "a"), context.Canceled)
	err = nil
	for _, e := range st.List(ctx, "", "") {
		err = errors.Join(err, e)
	}
	wantIs(t, err, context.Canceled)
	if got := list(t, st, "", ""); !slices.Equal(got, []string{"a"}) {
		t.Errorf("after what was cancelled: %v", got)
	}
}

func testReopen(t *testing.T, o Options) {
	st, again := o.Open(t)
	must(t, st.Put(t.Context(), "config", []byte("x")))
	other := again()
	wantObject(t, other, "config", []byte("x"))
	wantIs(t, other.Put(t.Context(), "config", []byte("y")), blob.ErrExists)
	must(t, other.Put(t.Context(), "log/1", []byte("one")))
	wantObject(t, st, "log/1", []byte("one"))
	if _, free, ok, err := st.Space(t.Context()); err != nil || ok && free <= 0 {
		t.Errorf("Space: %d, %v, %v", free, ok, err)
	}
}
