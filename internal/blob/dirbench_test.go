package blob_test

import (
	"fmt"
	"os"
	"testing"

	"drover/internal/blob"
	"drover/internal/vfs"
)

// BenchmarkDirPack writes packs of 64 MiB, as a session does.
func BenchmarkDirPack(b *testing.B) {
	d, err := blob.OpenDir(vfs.OS{}, b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	p := make([]byte, 1<<20)
	for i := range p {
		p[i] = byte(i * 7)
	}
	b.SetBytes(64 << 20)
	for i := 0; b.Loop(); i++ {
		w, err := d.Create(b.Context(), fmt.Sprintf("data/%02x/%d", i%256, i))
		if err != nil {
			b.Fatal(err)
		}
		for range 64 {
			if _, err := w.Write(p); err != nil {
				b.Fatal(err)
			}
		}
		if err := w.Commit(); err != nil {
			b.Fatal(err)
		}
		if i > 0 {
			_ = d.Delete(b.Context(), fmt.Sprintf("data/%02x/%d", (i-1)%256, i-1))
		}
	}
}

// BenchmarkDirPut puts small objects, as a transaction is one.
func BenchmarkDirPut(b *testing.B) {
	d, err := blob.OpenDir(vfs.OS{}, b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	p := make([]byte, 400)
	for i := 0; b.Loop(); i++ {
		if err := d.Put(b.Context(), fmt.Sprintf("log/%016x", i), p); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDirList lists 65,536 objects in 256 directories.
func BenchmarkDirList(b *testing.B) {
	dir := b.TempDir()
	for i := range 256 {
		if err := os.MkdirAll(fmt.Sprintf("%s/data/%02x", dir, i), 0o700); err != nil {
			b.Fatal(err)
		}
		for k := range 256 {
			if err := os.WriteFile(fmt.Sprintf("%s/data/%02x/%032x", dir, i, k), nil, 0o600); err != nil {
				b.Fatal(err)
			}
		}
	}
	d, err := blob.OpenDir(vfs.OS{}, dir)
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	for b.Loop() {
		n := 0
		for _, err := range d.List(b.Context(), "data/", "") {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
		if n != 256*256 {
			b.Fatal(n)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/65536, "ns/object")
}

// BenchmarkDirRead reads blocks of a pack that stays open.
func BenchmarkDirRead(b *testing.B) {
	d, err := blob.OpenDir(vfs.OS{}, b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	if err := d.Put(b.Context(), "data/aa/1", make([]byte, 16<<20)); err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 64<<10)
	b.SetBytes(int64(len(p)))
	for i := 0; b.Loop(); i++ {
		if err := d.ReadAt(b.Context(), "data/aa/1", p, int64(i%256)*int64(len(p))); err != nil {
			b.Fatal(err)
		}
	}
}
