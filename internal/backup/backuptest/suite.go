package backuptest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"drover/internal/backup"
)

// Run is what every repository must do. open gives an empty one each time.
func Run(t *testing.T, open func(t *testing.T) backup.Repository) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, r backup.Repository)
	}{
		{"WhatIsWrittenIsRead", testRoundTrip},
		{"Incremental", testIncremental},
		{"FullAgainstParent", testParent},
		{"Resize", testResize},
		{"Points", testPoints},
		{"NothingBeforeCommit", testCommit},
		{"Parallel", testParallel},
		{"Changed", testChanged},
		{"Refusals", testRefusals},
		{"Bulk", testBulk},
		{"Engine", testEngine},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

// Image makes a disk's content: about a third each of holes, of blocks that repeat, and of those that don't.
func Image(seed uint64, size int64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	img := make([]byte, size)
	for off := int64(0); off < size; off += BlockSize {
		b := img[off:min(off+BlockSize, size)]
		switch r.IntN(3) {
		case 0:
		case 1:
			Fill(b, uint64(r.IntN(8)))
		default:
			Fill(b, r.Uint64())
		}
	}
	return img
}

// Fill writes bytes of this seed that compress to about half.
func Fill(b []byte, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 2))
	for i := 0; i < len(b); i += 16 {
		v := r.Uint64()
		for j := i; j < min(i+8, len(b)); j++ {
			b[j] = byte(v >> (8 * (j - i)))
		}
	}
}

// bytesSource is a Source of bytes. Blocks of zeros are holes.
type bytesSource []byte

// Bytes is a disk in memory.
func Bytes(img []byte) backup.Source { return bytesSource(img) }

func (s bytesSource) Size() int64 { return int64(len(s)) }

func (s bytesSource) ReadAt(_ context.Context, p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > int64(len(s)) {
		return fmt.Errorf("%d bytes at %d are beyond the end at %d", len(p), off, len(s))
	}
	copy(p, s[off:])
	return nil
}

func (s bytesSource) Extents(_ context.Context, off, n int64) ([]backup.Extent, error) {
	var out []backup.Extent
	for end := min(off+n, int64(len(s))); off < end; {
		next := min((off/4096+1)*4096, end)
		zero := isZero(s[off:next])
		if k := len(out); k > 0 && out[k-1].Zero == zero {
			out[k-1].Length += next - off
		} else {
			out = append(out, backup.Extent{Offset: off, Length: next - off, Zero: zero})
		}
		off = next
	}
	return out, nil
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

func blockSize(t testing.TB, r backup.Repository) int64 {
	t.Helper()
	info, err := r.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return int64(info.BlockSize)
}

// Write makes a point of one disk, named root.
func Write(t testing.TB, r backup.Repository, vm string, img []byte) backup.Point {
	t.Helper()
	return write(t, r, vm, img, backup.DiskOptions{Name: "root", Size: int64(len(img))}, func(w backup.DiskWriter, bs int64) error {
		_, err := backup.Store(t.Context(), w, Bytes(img), backup.StoreOptions{BlockSize: int(bs)})
		return err
	})
}

var epoch = time.Date(2021, 5, 6, 7, 8, 9, 0, time.UTC)

func write(t testing.TB, r backup.Repository, vm string, img []byte, o backup.DiskOptions, fill func(w backup.DiskWriter, bs int64) error) backup.Point {
	t.Helper()
	ctx := t.Context()
	so := backup.SessionOptions{Purpose: "test", VMUID: vm}
	if o.ParentPoint != "" {
		so.Pins = []string{o.ParentPoint}
	}
	s, err := r.Begin(ctx, so)
	if err != nil {
		t.Fatal("begin:", err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error("close:", err)
		}
	}()
	w, err := s.Disk(ctx, o)
	if err != nil {
		t.Fatal("disk:", err)
	}
	if err := fill(w, blockSize(t, r)); err != nil {
		t.Fatal("write:", err)
	}
	if _, err := w.Finish(ctx); err != nil {
		t.Fatal("finish:", err)
	}
	p, err := s.Commit(ctx, backup.Point{
		VMUID: vm, VM: "name of " + vm, Time: epoch, Disks: []backup.Disk{{Name: o.Name, Size: o.Size, Bitmap: "b"}}, Definition: []byte(`{"a":1}`),
		Files: map[string][]byte{"nvram": {1, 2, 3}}, Consistency: "crash", Labels: map[string]string{"policy": "gold"}, Logical: int64(len(img)),
	})
	if err != nil {
		t.Fatal("commit:", err)
	}
	if len(p.ID) != 32 {
		t.Fatalf("the point's id is %q", p.ID)
	}
	return p
}

// Read returns a disk of a point, read whole.
func Read(t testing.TB, r backup.Repository, point, disk string) []byte {
	t.Helper()
	d := openDisk(t, r, point, disk)
	got := make([]byte, d.Size())
	if err := d.ReadAt(t.Context(), got, 0); err != nil {
		t.Fatal("read:", err)
	}
	return got
}

func openDisk(t testing.TB, r backup.Repository, point, disk string) backup.DiskReader {
	t.Helper()
	p, err := r.OpenPoint(t.Context(), point)
	if err != nil {
		t.Fatal("open point:", err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error("close point:", err)
		}
	})
	d, err := p.Disk(t.Context(), disk)
	if err != nil {
		t.Fatal("open disk:", err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error("close disk:", err)
		}
	})
	return d
}

func same(t testing.TB, got, want []byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d bytes came back, not %d", len(got), len(want))
	}
	if !bytes.Equal(got, want) {
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("byte %d of %d is %#x, not %#x", i, len(got), got[i], want[i])
			}
		}
	}
}

func testRoundTrip(t *testing.T, r backup.Repository) {
	for i, size := range []int64{1, 511, 4096, BlockSize, BlockSize + 1, 5*BlockSize - 512, 20<<20 + 512} {
		img := Image(uint64(i), size)
		p := Write(t, r, "vm", img)
		same(t, Read(t, r, p.ID, "root"), img)
	}
	img := Image(9, 3<<20)
	d := openDisk(t, r, Write(t, r, "vm", img).ID, "root")
	rng := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		off := rng.Int64N(int64(len(img)))
		want := make([]byte, 1+rng.IntN(200_000))
		copy(want, img[off:])
		got := make([]byte, len(want))
		if err := d.ReadAt(t.Context(), got, off); err != nil {
			t.Fatal(err)
		}
		same(t, got, want)
	}
	for range 50 {
		off := rng.Int64N(int64(len(img)))
		n := 1 + rng.Int64N(int64(len(img))-off)
		list, err := d.Extents(t.Context(), off, n)
		if err != nil {
			t.Fatal(err)
		}
		at := off
		for _, e := range list {
			if e.Offset != at || e.Length <= 0 {
				t.Fatalf("extents of %d+%d: %v", off, n, list)
			}
			at += e.Length
			if e.Zero && !isZero(img[e.Offset:at]) {
				t.Fatalf("%v is not zeros", e)
			}
		}
		if at != off+n {
			t.Fatalf("extents of %d+%d end at %d", off, n, at)
		}
	}
}

func testIncremental(t *testing.T, r backup.Repository) {
	img := Image(1, 9<<20+1000)
	parent := Write(t, r, "vm", img)
	for i := range 3 {
		var dirty []backup.Extent
		change := func(off, n int64, zero bool) {
			n = min(n, int64(len(img))-off)
			if zero {
				clear(img[off : off+n])
			} else {
				Fill(img[off:off+n], uint64(100+i))
			}
			dirty = append(dirty, backup.Extent{Offset: off, Length: n})
		}
		change(1000, 10, false)
		change(1100, 100_000, false)
		change(1<<20+int64(i)*BlockSize, 2*BlockSize, true)
		change(5<<20, 1<<20, false)
		change(int64(len(img))-20, 20, false)
		before := Read(t, r, parent.ID, "root")
		p := write(t, r, "vm", img, backup.DiskOptions{Name: "root", Size: int64(len(img)), ParentPoint: parent.ID, ParentDisk: "root", Incremental: true},
			func(w backup.DiskWriter, bs int64) error {
				_, err := backup.Store(t.Context(), w, Bytes(img), backup.StoreOptions{BlockSize: int(bs), Incremental: true, Dirty: backup.Each(dirty)})
				return err
			})
		same(t, Read(t, r, p.ID, "root"), img)
		same(t, Read(t, r, parent.ID, "root"), before)
		parent = p
	}
}

func testParent(t *testing.T, r backup.Repository) {
	img := Image(1, 9<<20+1000)
	parent := Write(t, r, "vm", img)
	Fill(img[3<<20:4<<20], 77)
	clear(img[6<<20 : 7<<20])
	o := backup.DiskOptions{Name: "root", Size: int64(len(img)), ParentPoint: parent.ID, ParentDisk: "root"}
	p := write(t, r, "vm", img, o, func(w backup.DiskWriter, bs int64) error {
		_, err := backup.Store(t.Context(), w, Bytes(img), backup.StoreOptions{BlockSize: int(bs)})
		return err
	})
	same(t, Read(t, r, p.ID, "root"), img)
	// What is not written is zeros when it isn't incremental.
	p = write(t, r, "vm", img, o, func(backup.DiskWriter, int64) error { return nil })
	same(t, Read(t, r, p.ID, "root"), make([]byte, len(img)))
}

func testResize(t *testing.T, r backup.Repository) {
	img := Image(4, 4<<20+100)
	Fill(img[4<<20:], 5)
	p := Write(t, r, "vm", img)
	for _, size := range []int64{6<<20 + 5, 2<<20 + 7, 18 << 20} {
		next := make([]byte, size)
		copy(next, img)
		dirty := []backup.Extent{{Offset: min(int64(len(img)), size) / BlockSize * BlockSize, Length: BlockSize}}
		if size > int64(len(img)) {
			dirty[0].Length = size - dirty[0].Offset
		}
		if dirty[0].Offset+dirty[0].Length > size {
			dirty[0].Length = size - dirty[0].Offset
		}
		img = next
		p = write(t, r, "vm", img, backup.DiskOptions{Name: "root", Size: size, ParentPoint: p.ID, ParentDisk: "root", Incremental: true},
			func(w backup.DiskWriter, bs int64) error {
				_, err := backup.Store(t.Context(), w, Bytes(img), backup.StoreOptions{BlockSize: int(bs), Incremental: true, Dirty: backup.Each(dirty)})
				return err
			})
		same(t, Read(t, r, p.ID, "root"), img)
	}
}

func testPoints(t *testing.T, r backup.Repository) {
	img := Image(1, 1<<20)
	a, b, c := Write(t, r, "a", img), Write(t, r, "b", img), Write(t, r, "a", img)
	for vm, want := range map[string][]string{"": {a.ID, b.ID, c.ID}, "a": {a.ID, c.ID}, "b": {b.ID}, "c": nil} {
		list, err := r.Points(t.Context(), vm)
		if err != nil {
			t.Fatal(err)
		}
		ids := map[string]bool{}
		for _, p := range list {
			ids[p.ID] = true
			if p.VM != "name of "+p.VMUID || !p.Time.Equal(epoch) || p.Consistency != "crash" || p.Labels["policy"] != "gold" || len(p.Disks) != 1 || p.Disks[0].Size != 1<<20 {
				t.Errorf("a list shows %+v", p)
			}
		}
		if len(list) != len(want) || len(ids) != len(want) {
			t.Errorf("points of %q: %d, not %d", vm, len(list), len(want))
		}
		for _, id := range want {
			if !ids[id] {
				t.Errorf("points of %q: no %s", vm, id)
			}
		}
	}
	pr, err := r.OpenPoint(t.Context(), b.ID)
	if err != nil {
		t.Fatal(err)
	}
	if p := pr.Point(); p.ID != b.ID || string(p.Definition) != `{"a":1}` || !bytes.Equal(p.Files["nvram"], []byte{1, 2, 3}) || p.Disks[0].Bitmap != "b" {
		t.Errorf("the point says %+v", p)
	}
	if err := pr.Close(); err != nil {
		t.Error(err)
	}
}

func testCommit(t *testing.T, r backup.Repository) {
	ctx := t.Context()
	s, err := r.Begin(ctx, backup.SessionOptions{VMUID: "vm", Purpose: "test"})
	if err != nil {
		t.Fatal(err)
	}
	img := Image(3, 2<<20)
	w, err := s.Disk(ctx, backup.DiskOptions{Name: "root", Size: int64(len(img))})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := backup.Store(ctx, w, Bytes(img), backup.StoreOptions{BlockSize: int(blockSize(t, r))}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(ctx, backup.Point{VMUID: "vm", Time: epoch, Disks: []backup.Disk{{Name: "root", Size: int64(len(img))}}}); err == nil {
		t.Error("a disk that is not finished was committed")
	}
	if _, err := w.Finish(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(ctx, backup.Point{VMUID: "vm", Time: epoch, Disks: []backup.Disk{{Name: "other"}}}); err == nil {
		t.Error("a disk that was never written was committed")
	}
	if list, err := r.Points(ctx, ""); err != nil || len(list) != 0 {
		t.Fatalf("points before commit: %v, %v", list, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(ctx, backup.Point{VMUID: "vm", Time: epoch, Disks: []backup.Disk{{Name: "root", Size: int64(len(img))}}}); !errors.Is(err, backup.ErrEnded) {
		t.Errorf("commit after close: %v", err)
	}
	if list, err := r.Points(ctx, ""); err != nil || len(list) != 0 {
		t.Fatalf("points without commit: %v, %v", list, err)
	}
}

func testParallel(t *testing.T, r backup.Repository) {
	var wg sync.WaitGroup
	points := make([]backup.Point, 4)
	for i := range points {
		wg.Go(func() { points[i] = Write(t, r, fmt.Sprint("vm", i), Image(uint64(i), 6<<20)) })
	}
	wg.Wait()
	for i, p := range points {
		same(t, Read(t, r, p.ID, "root"), Image(uint64(i), 6<<20))
	}
}

func testChanged(t *testing.T, r backup.Repository) {
	img := Image(1, 8<<20+3)
	a := Write(t, r, "vm", img)
	old := bytes.Clone(img)
	Fill(img[1<<20:1<<20+5000], 55)
	clear(img[3<<20 : 4<<20])
	img[len(img)-1] ^= 1
	b := Write(t, r, "vm", img)
	list, err := openDisk(t, r, b.ID, "root").Changed(t.Context(), a.ID, "root")
	if err != nil {
		t.Fatal(err)
	}
	var sum int64
	for _, e := range list {
		end := min(e.Offset+e.Length, int64(len(img)))
		sum += end - e.Offset
		copy(old[e.Offset:end], img[e.Offset:end])
		if e.Zero && !isZero(img[e.Offset:end]) {
			t.Errorf("%v is not zeros", e)
		}
	}
	same(t, old, img)
	if sum > 1<<20+4*blockSize(t, r) {
		t.Errorf("%d bytes are said to have changed", sum)
	}
}

func testRefusals(t *testing.T, r backup.Repository) {
	ctx := t.Context()
	none := "0123456789abcdef0123456789abcdef"
	if _, err := r.OpenPoint(ctx, none); !errors.Is(err, backup.ErrNotFound) {
		t.Errorf("a point that is not there: %v", err)
	}
	if _, err := r.OpenPoint(ctx, "../x"); err == nil {
		t.Error("a bad id was taken")
	}
	p := Write(t, r, "vm", Image(1, 1<<20))
	pr, err := r.OpenPoint(ctx, p.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Close()
	if _, err := pr.Disk(ctx, "none"); !errors.Is(err, backup.ErrNotFound) {
		t.Errorf("a disk that is not there: %v", err)
	}
	s, err := r.Begin(ctx, backup.SessionOptions{VMUID: "vm", Purpose: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Disk(ctx, backup.DiskOptions{Name: "x", Size: 1 << 20, ParentPoint: none, ParentDisk: "root"}); err == nil {
		t.Error("a parent that is not there was taken")
	}
	w, err := s.Disk(ctx, backup.DiskOptions{Name: "x", Size: 1<<20 + 10})
	if err != nil {
		t.Fatal(err)
	}
	bs := blockSize(t, r)
	for _, c := range []struct {
		block int64
		n     int64
	}{{-1, bs}, {0, bs - 1}, {0, bs + 1}, {(1 << 20) / bs, bs}, {1 << 40, bs}} {
		if err := w.Put(ctx, c.block, bytes.Repeat([]byte{1}, int(c.n))); err == nil {
			t.Errorf("block %d of %d bytes was taken", c.block, c.n)
		}
	}
	if err := w.Zero(ctx, 0, 1<<30); err == nil {
		t.Error("zeros beyond the end were taken")
	}
}

func testBulk(t *testing.T, r backup.Repository) {
	img := Image(5, 30<<20+700)
	d := openDisk(t, r, Write(t, r, "vm", img).ID, "root")
	b, ok := d.(backup.BulkReader)
	if !ok {
		t.Skip("not a bulk reader")
	}
	parts := []backup.Extent{{Offset: 0, Length: 10}, {Offset: 100_000, Length: 5 << 20}, {Offset: 20 << 20, Length: int64(len(img)) - 20<<20}}
	var mu sync.Mutex
	got := make([]byte, len(img))
	seen := make([]byte, len(img))
	err := b.Bulk(t.Context(), parts, func(off int64, data []byte) error {
		mu.Lock()
		defer mu.Unlock()
		for i := range data {
			if at := off + int64(i); at < int64(len(img)) {
				got[at] = data[i]
				seen[at]++
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parts {
		same(t, got[p.Offset:p.Offset+p.Length], img[p.Offset:p.Offset+p.Length])
	}
	for i, n := range seen {
		if n > 1 {
			t.Fatalf("byte %d was handed over %d times", i, n)
		}
	}
	broken := errors.New("broken")
	if err := b.Bulk(t.Context(), parts, func(int64, []byte) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("an error of the caller comes back as %v", err)
	}
}

func testEngine(t *testing.T, r backup.Repository) {
	img := Image(6, 40<<20+4096)
	d := openDisk(t, r, Write(t, r, "vm", img).ID, "root")
	path := t.TempDir() + "/disk"
	sink, err := backup.CreateFile(path, int64(len(img)))
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	var last backup.Progress
	res, err := backup.Restore(t.Context(), d, sink, backup.RestoreOptions{Blank: true, Verify: true, Progress: func(p backup.Progress) { last = p }})
	if err != nil {
		t.Fatal(err)
	}
	if last.Position != last.Size || last.Size != int64(len(img)) || last.Bytes != res.Written || res.Verified == 0 {
		t.Errorf("%+v after %+v", res, last)
	}
	got := make([]byte, len(img))
	if err := sink.ReadAt(t.Context(), got, 0); err != nil {
		t.Fatal(err)
	}
	same(t, got, img)
}
