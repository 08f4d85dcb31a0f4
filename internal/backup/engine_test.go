package backup_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"drover/internal/backup"
	"drover/internal/backup/backuptest"
	"drover/internal/clock"
)

// counting counts what is read.
type counting struct {
	backup.Source
	bytes, reads atomic.Int64
	fail         int64 // reads at or after this offset fail; 0: none
}

var errBroken = errors.New("broken")

func (c *counting) ReadAt(ctx context.Context, p []byte, off int64) error {
	c.reads.Add(1)
	c.bytes.Add(int64(len(p)))
	if c.fail > 0 && off >= c.fail {
		return errBroken
	}
	return c.Source.ReadAt(ctx, p, off)
}

func begin(t *testing.T, r backup.Repository, o backup.DiskOptions) (backup.Session, backup.DiskWriter) {
	t.Helper()
	s, err := r.Begin(t.Context(), backup.SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Disk(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return s, w
}

func TestHolesAreNotRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1<<30); err != nil {
		t.Fatal(err)
	}
	sink, err := backup.OpenSink(path)
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	data := bytes.Repeat([]byte("drover"), 100_000)
	for _, off := range []int64{0, 300<<20 + 12345, 1<<30 - 600_000} {
		if err := sink.WriteAt(t.Context(), data, off); err != nil {
			t.Fatal(err)
		}
	}
	src := &counting{Source: sink}
	m := &backuptest.Memory{}
	_, w := begin(t, m, backup.DiskOptions{Name: "d", Size: 1 << 30})
	res, err := backup.Store(t.Context(), w, src, backup.StoreOptions{BlockSize: backuptest.BlockSize})
	if err != nil {
		t.Fatal(err)
	}
	if n := src.bytes.Load(); n > 3<<20 || res.Read != n {
		t.Errorf("%d bytes were read, %d are told", n, res.Read)
	}
	if n := src.reads.Load(); n > 8 {
		t.Errorf("%d reads", n)
	}
}

// released refuses to read what it was told that nobody reads.
type released struct {
	backup.Source
	gone   []bool
	blocks int64
}

func (r *released) release(_ context.Context, off, n int64) error {
	for ; n > 0; off, n = off+backuptest.BlockSize, n-backuptest.BlockSize {
		r.gone[off/backuptest.BlockSize] = true
		r.blocks++
	}
	return nil
}

func (r *released) ReadAt(ctx context.Context, p []byte, off int64) error {
	for b := off / backuptest.BlockSize; b*backuptest.BlockSize < off+int64(len(p)); b++ {
		if r.gone[b] {
			return errBroken
		}
	}
	return r.Source.ReadAt(ctx, p, off)
}

func TestAudit(t *testing.T) {
	img := backuptest.Image(1, 16<<20)
	m := &backuptest.Memory{}
	parent := backuptest.Write(t, m, "vm", img)
	pr, err := m.OpenPoint(t.Context(), parent.ID)
	if err != nil {
		t.Fatal(err)
	}
	d, err := pr.Disk(t.Context(), "root")
	if err != nil {
		t.Fatal(err)
	}
	// A change that the tracking tells, and one that it missed.
	img[5<<20] ^= 1
	img[9<<20+100] ^= 1
	dirty := backup.Each([]backup.Extent{{Offset: 5 << 20, Length: 1}})
	for _, c := range []struct {
		share    float64
		min, max int64
	}{{0, 0, 0}, {1, 255, 255}, {0.2, 10, 120}} {
		_, w := begin(t, m, backup.DiskOptions{Name: "root", Size: 16 << 20, ParentPoint: parent.ID, ParentDisk: "root", Incremental: true})
		o := backup.StoreOptions{BlockSize: backuptest.BlockSize, Incremental: true, Dirty: dirty, AuditShare: c.share, Seed: 7}
		src := &released{Source: backuptest.Bytes(img), gone: make([]bool, 16<<20/backuptest.BlockSize)}
		if err := backup.Release(t.Context(), 16<<20, o, src.release); err != nil {
			t.Fatal(err)
		}
		o.Audit = d
		res, err := backup.Store(t.Context(), w, src, o)
		if err != nil {
			t.Fatal(err)
		}
		if n := int64(len(src.gone)) - src.blocks; n != res.Audited+1 {
			t.Errorf("share %v: all but %d blocks were released, %d are read", c.share, n, res.Audited+1)
		}
		if res.Audited < c.min || res.Audited > c.max {
			t.Errorf("share %v: %d blocks audited", c.share, res.Audited)
		}
		if c.share == 1 && !slices.Equal(res.Wrong, []int64{9 << 20}) {
			t.Errorf("wrong blocks: %v", res.Wrong)
		}
		if res.Read != (res.Audited+1)*backuptest.BlockSize {
			t.Errorf("%d bytes read for %d audited", res.Read, res.Audited)
		}
	}
}

func TestStoreFails(t *testing.T) {
	img := backuptest.Image(1, 16<<20)
	m := &backuptest.Memory{}
	_, w := begin(t, m, backup.DiskOptions{Name: "d", Size: 16 << 20})
	o := backup.StoreOptions{BlockSize: backuptest.BlockSize}
	if _, err := backup.Store(t.Context(), w, &counting{Source: backuptest.Bytes(img), fail: 8 << 20}, o); !errors.Is(err, errBroken) || !strings.Contains(err.Error(), "read ") {
		t.Errorf("a source that fails: %v", err)
	}
	m.Fail = func(string) error { return errBroken }
	if _, err := backup.Store(t.Context(), w, backuptest.Bytes(img), o); !errors.Is(err, errBroken) || !strings.Contains(err.Error(), "store ") {
		t.Errorf("a repository that fails: %v", err)
	}
	m.Fail = nil
	ctx, cancel := context.WithCancelCause(t.Context())
	o.Progress = func(p backup.Progress) {
		if p.Bytes > 2<<20 {
			cancel(errBroken)
		}
	}
	if _, err := backup.Store(ctx, w, backuptest.Bytes(img), o); !errors.Is(err, errBroken) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestRestoreOver(t *testing.T) {
	img := backuptest.Image(2, 5<<20+100)
	m := &backuptest.Memory{}
	p := backuptest.Write(t, m, "vm", img)
	pr, err := m.OpenPoint(t.Context(), p.ID)
	if err != nil {
		t.Fatal(err)
	}
	d, err := pr.Disk(t.Context(), "root")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, bytes.Repeat([]byte{7}, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	sink, err := backup.OpenSink(path)
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	if _, err := backup.Restore(t.Context(), d, sink, backup.RestoreOptions{Verify: true}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, append(img, make([]byte, 8<<20-len(img))...)) {
		t.Error("the file is not what the point has, and zeros")
	}
	if err := sink.WriteAt(t.Context(), []byte{1 ^ got[1<<20]}, 1<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := backup.Compare(t.Context(), d, sink, backup.RestoreOptions{}); err == nil || !strings.Contains(err.Error(), "offset 1048576") {
		t.Errorf("a byte that differs: %v", err)
	}
	small, err := backup.CreateFile(path+"2", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer small.Close()
	if _, err := backup.Restore(t.Context(), d, small, backup.RestoreOptions{}); err == nil {
		t.Error("a disk was restored to a smaller one")
	}
}

func TestLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clk := clock.Real()
		l := backup.NewLimiter(clk, 1000)
		start := clk.Now()
		for range 10 {
			if err := l.Wait(t.Context(), 1000); err != nil {
				t.Fatal(err)
			}
		}
		if d := clk.Now().Sub(start); d < 8*time.Second || d > 10*time.Second {
			t.Errorf("10,000 bytes at 1,000 a second took %v", d)
		}
		// Who waits is let go on when the limit is lifted.
		done := make(chan error)
		go func() { done <- errors.Join(l.Wait(t.Context(), 1e9), l.Wait(t.Context(), 1)) }()
		synctest.Wait()
		l.SetRate(0)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		l.SetRate(1)
		_ = l.Wait(ctx, 100)
		cancel(errBroken)
		if err := l.Wait(ctx, 100); !errors.Is(err, errBroken) {
			t.Error(err)
		}
	})
	var none *backup.Limiter
	if err := none.Wait(t.Context(), 1<<40); err != nil {
		t.Error(err)
	}
}
