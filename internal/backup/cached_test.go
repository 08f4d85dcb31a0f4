package backup_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"drover/internal/backup"
	"drover/internal/backup/backuptest"
	"drover/internal/nbd"
)

// slowDisk counts reads, and fails when it is told to.
type slowDisk struct {
	backup.DiskReader
	reads, bytes atomic.Int64
	fail         atomic.Bool
}

func (d *slowDisk) ReadAt(ctx context.Context, p []byte, off int64) error {
	d.reads.Add(1)
	d.bytes.Add(int64(len(p)))
	if d.fail.Load() {
		return errBroken
	}
	return d.DiskReader.ReadAt(ctx, p, off)
}

func stored(t *testing.T, img []byte) *slowDisk {
	t.Helper()
	m := &backuptest.Memory{}
	pr, err := m.OpenPoint(t.Context(), backuptest.Write(t, m, "vm", img).ID)
	if err != nil {
		t.Fatal(err)
	}
	d, err := pr.Disk(t.Context(), "root")
	if err != nil {
		t.Fatal(err)
	}
	return &slowDisk{DiskReader: d}
}

func TestCached(t *testing.T) {
	img := backuptest.Image(4, 40<<20+777)
	d := stored(t, img)
	c := backup.NewCached(t.Context(), d, 1)
	defer c.Close()
	check := func(off int64, n int) {
		t.Helper()
		want := make([]byte, n)
		if off < int64(len(img)) {
			copy(want, img[off:])
		}
		got := make([]byte, n)
		if err := c.ReadAt(t.Context(), got, off); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%d bytes at %d are wrong", n, off)
		}
	}
	// In order, 4 KiB each: few reads of many bytes.
	for off := int64(0); off < int64(len(img)); off += 4096 {
		check(off, 4096)
	}
	if n := d.reads.Load(); n > 120 {
		t.Errorf("%d reads for 40 MiB in order", n)
	}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 1))
			for range 300 {
				check(rng.Int64N(int64(len(img))+1000), 1+rng.IntN(300_000))
			}
		})
	}
	wg.Wait()
	check(0, 3<<20)

	// An error is told, and not kept.
	d.fail.Store(true)
	fresh := backup.NewCached(t.Context(), d, 0)
	defer fresh.Close()
	if err := fresh.ReadAt(t.Context(), make([]byte, 10), 1<<20); !errors.Is(err, errBroken) {
		t.Errorf("a disk that fails: %v", err)
	}
	d.fail.Store(false)
	if err := fresh.ReadAt(t.Context(), make([]byte, 10), 1<<20); err != nil {
		t.Errorf("a disk that works again: %v", err)
	}
	if err := fresh.Close(); err != nil {
		t.Fatal(err)
	}
	if err := fresh.ReadAt(t.Context(), make([]byte, 10), 0); err == nil {
		t.Error("a read after Close")
	}
}

// A guest that reads here and there costs a block each time, not more.
func TestCachedRandom(t *testing.T) {
	d := stored(t, backuptest.Image(4, 64<<20))
	c := backup.NewCached(t.Context(), d, 0)
	defer c.Close()
	rng := rand.New(rand.NewPCG(7, 1))
	for range 200 {
		if err := c.ReadAt(t.Context(), make([]byte, 4096), rng.Int64N(64<<20/4096)*4096); err != nil {
			t.Fatal(err)
		}
	}
	if n := d.bytes.Load(); n > 300*64<<10 {
		t.Errorf("%d bytes were read for 200 blocks", n)
	}
}

// What is exported is what foreign clients read.
func TestExport(t *testing.T) {
	img := backuptest.Image(4, 20<<20+700)
	d := stored(t, img)
	x := backup.NewExport(t.Context(), d, 0)
	defer x.Close()
	dir := t.TempDir()
	socket := filepath.Join(dir, "nbd")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := nbd.NewServer(nbd.ServerOptions{Lookup: func(_ context.Context, name string, _ nbd.Peer) (nbd.Export, func(), error) {
		if name != "token" {
			return nil, nil, nbd.ErrNoExport
		}
		return x, func() {}, nil
	}})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(ctx, l) })
	defer wg.Wait()
	defer cancel()

	want := append(bytes.Clone(img), make([]byte, (512-len(img)%512)%512)...)
	out := filepath.Join(dir, "copy")
	if b, err := exec.Command("nbdcopy", "nbd+unix:///token?socket="+socket, out).CombinedOutput(); err != nil {
		t.Fatalf("nbdcopy: %v: %s", err, b)
	}
	src, err := backup.OpenFile(out)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if src.Size() != int64(len(want)) {
		t.Fatalf("the copy has %d bytes, not %d", src.Size(), len(want))
	}
	got := make([]byte, len(want))
	if err := src.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the copy differs: %v", err)
	}

	// And our own client is a source: a point is backed up again by way of NBD.
	c, err := nbd.Dial(t.Context(), "unix", socket, nbd.Options{Export: "token", Contexts: []string{nbd.Allocation}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	m := &backuptest.Memory{}
	_, w := begin(t, m, backup.DiskOptions{Name: "d", Size: c.Size()})
	counted := &counting{Source: backup.NBD{Client: c}}
	if _, err := backup.Store(t.Context(), w, counted, backup.StoreOptions{BlockSize: backuptest.BlockSize}); err != nil {
		t.Fatal(err)
	}
	if n := counted.bytes.Load(); n == 0 || n > int64(len(img))*9/10 {
		t.Errorf("%d of %d bytes were read: holes too", n, len(img))
	}
}
