package vault_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/backup/remote"
	"drover/internal/backup/vault"
	"drover/internal/blob"
	"drover/internal/chunkstore"
	"drover/internal/vfs"
)

// cpu is what this process has used, in seconds: it says more than the clock on a machine that others use too.
func cpu() float64 {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// TestMeasure compares a repository on this machine with one behind TLS on the loopback. DROVER_BENCH_IMAGE is a raw disk; without it nothing is measured.
func TestMeasure(t *testing.T) {
	path := os.Getenv("DROVER_BENCH_IMAGE")
	if path == "" {
		t.Skip("DROVER_BENCH_IMAGE names no disk")
	}
	run := func(name string, r backup.Repository, wire func() int64) {
		ctx := context.Background()
		info, err := r.Info(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var parent string
		for _, step := range []string{"first", "again, parent", "again, none", "bitmap"} {
			src, err := backup.OpenFile(path)
			if err != nil {
				t.Fatal(err)
			}
			before, start, busy := wire(), time.Now(), cpu()
			s, err := r.Begin(ctx, backup.SessionOptions{Purpose: step, VMUID: "vm"})
			if err != nil {
				t.Fatal(err)
			}
			o := backup.DiskOptions{Name: "d", Size: src.Size()}
			so := backup.StoreOptions{BlockSize: info.BlockSize}
			if step == "again, parent" || step == "bitmap" {
				o.ParentPoint, o.ParentDisk = parent, "d"
			}
			if step == "bitmap" {
				o.Incremental, so.Incremental = true, true
				so.Dirty = backup.Each([]backup.Extent{{Offset: 0, Length: 32 << 20}})
			}
			w, err := s.Disk(ctx, o)
			if err != nil {
				t.Fatal(err)
			}
			res, err := backup.Store(ctx, w, src, so)
			if err != nil {
				t.Fatal(err)
			}
			d, err := w.Finish(ctx)
			if err != nil {
				t.Fatal(err)
			}
			p, err := s.Commit(ctx, backup.Point{VMUID: "vm", Disks: []backup.Disk{{Name: "d", Size: o.Size}}})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			parent = p.ID
			t.Logf("%s: %-14s %6.2f s, %5.2f s of CPU  read %d MiB, lacked %d MiB, stored %d MiB, wire %.1f MiB", name, step, time.Since(start).Seconds(), cpu()-busy, res.Read>>20, d.Stored>>20, d.Packed>>20, float64(wire()-before)/(1<<20))
			if err := src.Close(); err != nil {
				t.Fatal(err)
			}
		}
		before, start, busy := wire(), time.Now(), cpu()
		p, err := r.OpenPoint(ctx, parent)
		if err != nil {
			t.Fatal(err)
		}
		d, err := p.Disk(ctx, "d")
		if err != nil {
			t.Fatal(err)
		}
		sink, err := backup.CreateFile(filepath.Join(t.TempDir(), "disk"), d.Size())
		if err != nil {
			t.Fatal(err)
		}
		res, err := backup.Restore(ctx, d, sink, backup.RestoreOptions{Blank: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %-14s %6.2f s, %5.2f s of CPU  wrote %d MiB, wire %.1f MiB", name, "restore", time.Since(start).Seconds(), cpu()-busy, res.Written>>20, float64(wire()-before)/(1<<20))
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		_ = sink.Close()
	}
	t.Run("local", func(t *testing.T) {
		st, err := blob.OpenDir(vfs.OS{}, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		r, _, err := chunkstore.Create(t.Context(), st, chunkstore.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		run("local", backup.NewLocal(r), func() int64 { return 0 })
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("remote", func(t *testing.T) {
		w := newWorld(t, vault.Options{})
		w.create("r", &v1.RepositorySpec{Location: t.TempDir()})
		g := w.grant(&v1.VaultGrantRequest{Repository: "r", HostUid: "h", VmUid: "vm", Read: true, Write: true})
		c, count := w.counted("h")
		run("remote", remote.New(remote.Options{Client: c, Repository: "r", Grant: g}), count)
	})
}
