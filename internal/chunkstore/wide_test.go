package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"drover/internal/chunkstore/ledger"
)

// TestWideZeros: zeros of a disk as large as a disk can be take neither time nor memory, and take away what stood there.
func TestWideZeros(t *testing.T) {
	r, _ := create(t, CreateOptions{BlockSize: 4096})
	ctx := t.Context()
	s, err := r.Begin(ctx, BeginOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(ctx)
	bs := int64(r.BlockSize())
	const size = int64(1) << 60
	all := size / bs
	data := bytes.Repeat([]byte{7, 8}, int(bs)/2)
	marks := []int64{3, Fanout * 40, all / 3, all - 1}
	disk := func(o DiskOptions, do func(w *DiskWriter)) *ledger.Disk {
		t.Helper()
		o.Name, o.Size = "vda", size
		w, err := s.Disk(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		do(w)
		if n := len(w.done) + len(w.open); n > 64 {
			t.Fatalf("%d leaves are in memory", n)
		}
		d, _, err := w.Finish(ctx)
		if err != nil {
			t.Fatal(err)
		}
		id := r.randomID()
		if err := s.Commit(ctx, &ledger.Point{Id: id[:], Disks: []*ledger.Disk{d}}); err != nil {
			t.Fatal(err)
		}
		return d
	}
	put := func(w *DiskWriter, at ...int64) {
		for _, b := range at {
			if err := w.Put(ctx, b, data); err != nil {
				t.Fatal(err)
			}
		}
	}
	zero := func(w *DiskWriter, at, n int64) {
		if err := w.Zero(ctx, at, n); err != nil {
			t.Fatal(err)
		}
	}
	check := func(what string, d *ledger.Disk, there ...int64) {
		t.Helper()
		o, err := s.Open(ctx, d)
		if err != nil {
			t.Fatal(err)
		}
		want := map[int64]bool{}
		for _, b := range there {
			want[b] = true
		}
		p := make([]byte, bs)
		for _, b := range append([]int64{0, 1, 2, 4, Fanout, all / 2}, marks...) {
			if err := o.ReadAt(ctx, p, b*bs); err != nil {
				t.Fatal(err)
			}
			if got := !zeros(p); got != want[b] {
				t.Errorf("%s: block %d has data: %t", what, b, got)
			}
		}
	}
	full := disk(DiskOptions{}, func(w *DiskWriter) { zero(w, 0, all); put(w, marks...); zero(w, 4, Fanout*39) })
	check("full", full, marks...)
	next := DiskOptions{Parent: full, Incremental: true}
	check("nothing left", disk(next, func(w *DiskWriter) { zero(w, 0, all) }))
	check("one kept", disk(next, func(w *DiskWriter) { zero(w, 5, all-5) }), 3)
	check("ends", disk(next, func(w *DiskWriter) { zero(w, 5, all-6) }), 3, all-1)
	check("written, then zeros", disk(next, func(w *DiskWriter) { put(w, all/2); zero(w, 0, all) }))
	check("zeros, then written", disk(next, func(w *DiskWriter) { zero(w, 0, all); put(w, all/2) }), all/2)

	w, err := s.Disk(ctx, DiskOptions{Name: "x", Size: size})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Zero(ctx, 1, 1<<63-1); err == nil {
		t.Error("more blocks than there are")
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err := w.Zero(gone, 0, all); !errors.Is(err, context.Canceled) {
		t.Error("who asked has gone:", err)
	}
}
