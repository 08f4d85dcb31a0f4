package chunkstore

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"drover/internal/blob"
	"drover/internal/chunkstore/keys"
	"drover/internal/chunkstore/ledger"
)

// cheap makes tests fast: guessing costs nothing.
var cheap = keys.Cost{Time: 1, Memory: 8, Threads: 1}

func create(t *testing.T, o CreateOptions) (*Repository, *blob.Memory) {
	t.Helper()
	st := blob.NewMemory()
	o.Cost = cheap
	if o.Passphrase == "" {
		o.Passphrase = "secret"
	}
	r, _, err := Create(t.Context(), st, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r, st
}

// image makes a disk: some random, some text, some zeros, some repeated.
func image(seed uint64, size int) []byte {
	rnd := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, size)
	for off := 0; off < size; off += 4096 {
		p := b[off:min(off+4096, size)]
		switch rnd.IntN(4) {
		case 0:
		case 1:
			for i := range p {
				p[i] = byte(rnd.Uint32())
			}
		case 2:
			copy(p, bytes.Repeat([]byte(fmt.Sprintf("line %d of a log\n", rnd.IntN(9))), 300))
		case 3:
			copy(p, b[:4096])
		}
	}
	return b
}

func backup(t *testing.T, s *Session, name string, data []byte, o DiskOptions) *ledger.Disk {
	t.Helper()
	o.Name, o.Size = name, int64(len(data))
	w, err := s.Disk(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	bs := s.r.BlockSize()
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for k := range errs {
		wg.Go(func() {
			for i := k; i*bs < len(data) && errs[k] == nil; i += len(errs) {
				errs[k] = w.Put(context.WithoutCancel(t.Context()), int64(i), data[i*bs:min((i+1)*bs, len(data))])
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	d, _, err := w.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func commit(t *testing.T, s *Session, disks ...*ledger.Disk) PointID {
	t.Helper()
	id := PointID(s.r.randomID())
	text, err := s.Describe(t.Context(), []byte(`{"vm":"web"}`))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), &ledger.Point{Id: id[:], Vm: "web", Disks: disks, Description: text}); err != nil {
		t.Fatal(err)
	}
	return id
}

func begin(t *testing.T, r *Repository, o BeginOptions) *Session {
	t.Helper()
	s, err := r.Begin(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(context.WithoutCancel(t.Context())) })
	return s
}

type memorySink []byte

func (m memorySink) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }

// same reads a point's first disk in every way there is, and compares it.
func same(t *testing.T, r *Repository, id PointID, want []byte) {
	t.Helper()
	s := begin(t, r, BeginOptions{Reader: true, Pins: []PointID{id}})
	p, ok := r.Point(id)
	if !ok {
		t.Fatal("the point is not there")
	}
	if text, err := s.Description(t.Context(), p); err != nil || string(text) != `{"vm":"web"}` {
		t.Fatalf("description %q, %v", text, err)
	}
	d, err := s.Open(t.Context(), p.Disks[0])
	if err != nil {
		t.Fatal(err)
	}
	if d.Size() != int64(len(want)) {
		t.Fatalf("it has %d bytes, not %d", d.Size(), len(want))
	}
	got := make(memorySink, len(want))
	if err := d.Restore(t.Context(), got, RestoreOptions{}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("restored other bytes")
	}
	whole := make([]byte, len(want))
	if err := d.ReadAt(t.Context(), whole, 0); err != nil || !bytes.Equal(whole, want) {
		t.Fatalf("read other bytes: %v", err)
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 50 {
		off := rnd.IntN(len(want))
		p := make([]byte, rnd.IntN(9000))
		if err := d.ReadAt(t.Context(), p, int64(off)); err != nil {
			t.Fatal(err)
		}
		n := min(len(p), len(want)-off)
		if !bytes.Equal(p[:n], want[off:off+n]) || !zeros(p[n:]) {
			t.Fatalf("read other bytes at %d", off)
		}
	}
	x, err := d.Extents(t.Context(), 0, d.Size())
	if err != nil {
		t.Fatal(err)
	}
	at := int64(0)
	for _, e := range x {
		if e.Offset != at || e.Zero && !zeros(want[at:at+e.Length]) {
			t.Fatalf("extent %+v: wrong", e)
		}
		at += e.Length
	}
	if at != d.Size() {
		t.Fatalf("extents end at %d", at)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestBackupAndRestore(t *testing.T) {
	for _, c := range []CreateOptions{{}, {Unencrypted: true}, {Hash: keys.SHA256}, {BlockSize: 4096}, {BlockSize: 1 << 20}} {
		t.Run(fmt.Sprint(c.BlockSize, c.Unencrypted, c.Hash), func(t *testing.T) {
			r, st := create(t, c)
			one := image(1, 20<<20+777)
			s := begin(t, r, BeginOptions{Purpose: "test"})
			a := commit(t, s, backup(t, s, "vda", one, DiskOptions{}))
			if err := s.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			same(t, r, a, one)

			// The next day: some blocks change.
			two := bytes.Clone(one)
			bs := r.BlockSize()
			copy(two[5<<20:], "another")
			clear(two[9<<20 : 10<<20])
			s = begin(t, r, BeginOptions{Pins: []PointID{a}})
			pa, _ := r.Point(a)
			w, err := s.Disk(t.Context(), DiskOptions{Name: "vda", Size: int64(len(two)), Parent: pa.Disks[0], Incremental: true})
			if err != nil {
				t.Fatal(err)
			}
			i := (5 << 20) / bs
			if err := w.Put(t.Context(), int64(i), two[i*bs:min(len(two), (i+1)*bs)]); err != nil {
				t.Fatal(err)
			}
			if err := w.Zero(t.Context(), int64((9<<20)/bs), int64((1<<20)/bs)); err != nil {
				t.Fatal(err)
			}
			d, stats, err := w.Finish(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if stats.Read != int64(bs) || stats.Stored != int64(bs) {
				t.Errorf("stats %+v, want one block read and stored", stats)
			}
			b := commit(t, s, d)
			full := backup(t, s, "vda", two, DiskOptions{Parent: pa.Disks[0]})
			if !bytes.Equal(full.Root.Id, d.Root.Id) {
				t.Error("a full read of the same disk gives another tree")
			}
			if err := s.Close(t.Context()); err != nil {
				t.Fatal(err)
			}

			// Another program opens it.
			r2, err := Open(t.Context(), st, OpenOptions{Passphrase: "secret"})
			if err != nil {
				t.Fatal(err)
			}
			defer r2.Close()
			same(t, r2, a, one)
			same(t, r2, b, two)
		})
	}
}
