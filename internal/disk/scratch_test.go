package disk

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"drover/internal/nbd"
)

// A disk that is lent for writing, its bitmap, and what is lent for reading afterwards.
func TestLendDisk(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := t.Context()
	if err := s.CreateDisk(ctx, "v1", "root", Spec{Size: 8 << 20}); err != nil {
		t.Fatal(err)
	}
	if err := s.SetBitmaps(ctx, "v1", "root", "drover-x", "drover-none"); err != nil {
		t.Fatal(err)
	}
	lend := func(o Lend, contexts []string, use func(*nbd.Client)) {
		t.Helper()
		sock, err := os.MkdirTemp("", "dl")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(sock)
		path := filepath.Join(sock, "s")
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if o.Socket, err = l.File(); err != nil {
			t.Fatal(err)
		}
		o.Timeout = time.Minute
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		done := make(chan error, 1)
		go func() {
			done <- s.LendDisk(ctx, "v1", "root", o)
			cancel() // a process that does not begin has no peer wait for it
		}()
		c, err := nbd.Dial(ctx, "unix", path, nbd.Options{Export: o.Export, Contexts: contexts})
		o.Socket.Close()
		if err != nil {
			t.Fatal(err, <-done)
		}
		use(c)
		c.Close()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("the end of a loan: %v", err)
		}
	}
	data := make([]byte, 64<<10)
	for i := range data {
		data[i] = byte(i)
	}
	lend(Lend{Export: "w", Write: true}, nil, func(c *nbd.Client) {
		if err := errors.Join(c.WriteAt(ctx, data, 1<<20), c.Flush(ctx)); err != nil {
			t.Fatal(err)
		}
	})
	lend(Lend{Export: "r", Bitmaps: []string{"drover-x"}}, []string{nbd.Allocation, nbd.DirtyBitmap + "drover-x"}, func(c *nbd.Client) {
		got := make([]byte, len(data))
		if err := c.ReadAt(ctx, got, 1<<20); err != nil || string(got) != string(data) {
			t.Errorf("read what was written: %v", err)
		}
		if err := c.WriteAt(ctx, data, 0); err == nil {
			t.Error("a disk that is lent for reading was written to")
		}
		list, err := c.Extents(ctx, nbd.DirtyBitmap+"drover-x", 0, c.Size())
		if err != nil || len(list) != 3 || list[1].Offset != 1<<20 || list[1].Length != 64<<10 || list[1].Flags&nbd.Dirty == 0 {
			t.Errorf("the bitmap: %v %v", list, err)
		}
	})
	f, err := s.ScratchDisk(1 << 30)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if left, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(left) > 0 {
		t.Errorf("a scratch file has a name: %v %v", left, err)
	}
}
