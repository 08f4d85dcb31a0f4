package chunkstore

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/blob"
	"drover/internal/chunkstore/ledger"
	"drover/internal/vfs"
)

// benchDisk makes a disk of this machine's files, each at a multiple of 4 KiB, as a file system has them: so many MiB
// (DROVER_BENCH_MIB, 256 by default).
func benchDisk(b *testing.B) []byte {
	b.Helper()
	mib := 256
	if s := os.Getenv("DROVER_BENCH_MIB"); s != "" {
		if _, err := fmt.Sscan(s, &mib); err != nil {
			b.Fatal(err)
		}
	}
	disk := make([]byte, 0, mib<<20)
	err := filepath.WalkDir("/usr", func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil
		}
		if len(disk) >= mib<<20 {
			return fs.SkipAll
		}
		f, err := os.Open(path)
		if err != nil {
			return nil
		}
		defer f.Close()
		n, _ := io.ReadFull(f, disk[len(disk):cap(disk)])
		disk = disk[:min((len(disk)+n+4095)&^4095, cap(disk))]
		return nil
	})
	if err != nil || len(disk) == 0 {
		b.Skip("no files to make a disk of", err)
	}
	return disk
}

func benchRepository(b *testing.B, o CreateOptions) *Repository {
	b.Helper()
	dir := os.Getenv("DROVER_BENCH_DIR")
	if dir == "" {
		dir = b.TempDir()
	}
	dir, err := os.MkdirTemp(dir, "repository")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	st, err := blob.OpenDir(vfs.OS{}, dir)
	if err != nil {
		b.Fatal(err)
	}
	o.Cost, o.Passphrase = cheap, "secret"
	r, _, err := Create(b.Context(), st, o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { r.Close() })
	return r
}

func benchBackup(b *testing.B, r *Repository, disk []byte, count *atomic.Int64) PointID {
	b.Helper()
	ctx := context.WithoutCancel(b.Context())
	s, err := r.Begin(ctx, BeginOptions{Purpose: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	w, err := s.Disk(ctx, DiskOptions{Name: "vda", Size: int64(len(disk))})
	if err != nil {
		b.Fatal(err)
	}
	bs := r.BlockSize()
	var wg sync.WaitGroup
	var next atomic.Int64
	for range 2 {
		wg.Go(func() {
			for {
				i := next.Add(1) - 1
				if i*int64(bs) >= int64(len(disk)) {
					return
				}
				p := disk[i*int64(bs) : min((i+1)*int64(bs), int64(len(disk)))]
				if err := w.Put(ctx, i, p); err != nil {
					b.Error(err)
					return
				}
				if count != nil {
					count.Add(int64(len(p)))
				}
			}
		})
	}
	wg.Wait()
	d, _, err := w.Finish(ctx)
	if err != nil {
		b.Fatal(err)
	}
	id := PointID(r.randomID())
	if err := s.Commit(ctx, &ledger.Point{Id: id[:], Vm: "bench", Disks: []*ledger.Disk{d}, Logical: int64(len(disk))}); err != nil {
		b.Fatal(err)
	}
	if err := s.Close(ctx); err != nil {
		b.Fatal(err)
	}
	return id
}

// BenchmarkUpkeep tells how long a repository's upkeep takes: verify, rewrite, forget half and collect.
func BenchmarkUpkeep(b *testing.B) {
	for _, plain := range []bool{true, false} {
		b.Run(fmt.Sprintf("encrypted=%v", !plain), func(b *testing.B) {
			disk := benchDisk(b)
			for range b.N {
				r := benchRepository(b, CreateOptions{Unencrypted: plain})
				ctx := b.Context()
				step := func(name string, bytes int64, do func() error) {
					start, cpu := time.Now(), processorTime(b)
					if err := do(); err != nil {
						b.Fatal(name, err)
					}
					took, spent := time.Since(start), processorTime(b)-cpu
					b.ReportMetric(took.Seconds(), name+"-s")
					b.Logf("%-18s %6.2f s, %6.2f s of one processor, %5.0f MB/s of it, stored %d MB", name, took.Seconds(), spent.Seconds(), float64(bytes)/1e6/spent.Seconds(), r.Load().Stored/1e6)
				}
				var first PointID
				step("backup", int64(len(disk)), func() error { first = benchBackup(b, r, disk, nil); return nil })
				verify := func() error {
					res, err := r.Scrub(ctx, ScrubOptions{})
					if err == nil && len(res.Damaged) > 0 {
						err = fmt.Errorf("%+v", res.Damaged)
					}
					return err
				}
				step("verify", int64(len(disk)), verify)
				// A second point of which two thirds are as before: forgetting the first frees a third, of each pack.
				rnd := rand.New(rand.NewPCG(1, 2))
				for off := 0; off < len(disk); off += 64 << 10 {
					if rnd.IntN(2) == 0 {
						p := disk[off:min(off+64<<10, len(disk))]
						for i := 0; i < len(p); i += 512 {
							p[i] ^= 0x55
						}
					}
				}
				step("second-backup", int64(len(disk)), func() error { benchBackup(b, r, disk, nil); return nil })
				step("forget", 0, func() error { return r.Forget(ctx, "bench", first) })
				var res CollectResult
				step("collect", 0, func() (err error) { res, err = r.Collect(ctx, CollectOptions{Share: 0.9}); return err })
				b.Logf("freed %d MB, copied %d MB, of %d MB", res.Freed/1e6, res.Move.Copied/1e6, res.Size/1e6)
				step("rewrite", int64(len(disk)), func() error { _, err := r.Rewrite(ctx, RewriteOptions{Workers: 2}); return err })
				step("collect-rewritten", 0, func() error { _, err := r.Collect(ctx, CollectOptions{}); return err })
				step("verify-dense", int64(len(disk)), verify)
			}
		})
	}
}

// processorTime is what this process has used, on a machine that others may use too.
func processorTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkWriterUnderCollect compares a writer's speed with and without collectors that work all the time beside it.
func BenchmarkWriterUnderCollect(b *testing.B) {
	disk := benchDisk(b)
	for _, busy := range []bool{false, true} {
		b.Run(fmt.Sprintf("collector=%v", busy), func(b *testing.B) {
			r := benchRepository(b, CreateOptions{})
			old := benchBackup(b, r, disk[:len(disk)/2], nil)
			ctx, cancel := context.WithCancel(b.Context())
			var wg sync.WaitGroup
			var runs int
			if busy {
				wg.Go(func() {
					for ctx.Err() == nil {
						// Walks, lists, condemns and drops, but copies nothing: what takes the processor from others is no waiting.
						if _, err := r.Collect(ctx, CollectOptions{Share: -1}); err != nil && ctx.Err() == nil {
							b.Error(err)
							return
						}
						runs++
					}
				})
			}
			if err := r.Forget(ctx, "bench", old); err != nil {
				b.Fatal(err)
			}
			var slowest time.Duration
			b.SetBytes(int64(len(disk)))
			b.ResetTimer()
			for n := range b.N {
				for i := 0; i < len(disk); i += 4096 {
					disk[i] ^= byte(n + 1)
				}
				start := time.Now()
				benchBackup(b, r, disk, nil)
				slowest = max(slowest, time.Since(start))
			}
			b.StopTimer()
			cancel()
			wg.Wait()
			b.Logf("%d backups, the slowest took %v, %d collections beside", b.N, slowest.Round(time.Millisecond), runs)
		})
	}
}
