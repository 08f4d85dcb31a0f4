package vault_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/backup/remote"
	"drover/internal/backup/vault"
	"drover/internal/pki"
)

// slowLink passes connections on to the vault, each byte after a delay: bandwidth without end, as a long fibre has.
func (w *world) slowLink(delay time.Duration) string {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	all.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", w.addr)
			if err != nil {
				_ = in.Close()
				continue
			}
			mu.Lock()
			open = append(open, in, out)
			mu.Unlock()
			all.Go(func() { late(in, out, delay) })
			all.Go(func() { late(out, in, delay) })
		}
	})
	w.t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return l.Addr().String()
}

// late copies, each piece when it is due.
func late(to, from net.Conn, delay time.Duration) {
	type piece struct {
		due  time.Time
		data []byte
	}
	way := make(chan piece, 1<<14)
	var ends sync.WaitGroup
	ends.Go(func() {
		defer to.Close()
		for p := range way {
			<-time.After(time.Until(p.due))
			if _, err := to.Write(p.data); err != nil {
				_, _ = io.Copy(io.Discard, from)
			}
		}
	})
	for {
		b := make([]byte, 64<<10)
		n, err := from.Read(b)
		if n > 0 {
			way <- piece{time.Now().Add(delay), b[:n]}
		}
		if err != nil {
			break
		}
	}
	close(way)
	ends.Wait()
}

// TestLatency: a link of 50 ms one way is filled. With the windows that net/http has by itself, 1 MiB is on its way at a time, which makes 10 MB/s.
func TestLatency(t *testing.T) {
	const size = 48 << 20
	for _, c := range []struct {
		name  string
		delay time.Duration
		conf  *http.HTTP2Config
		least float64 // bytes a second
	}{
		{"settings of net/http", 50 * time.Millisecond, nil, 0},
		{"settings of the vault", 50 * time.Millisecond, vault.ServerHTTP2(), 12e6},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, vault.Options{})
			w.stop()
			w.http2 = c.conf
			w.start()
			w.create("r", nil)
			g := w.grant(&v1.VaultGrantRequest{Repository: "r", HostUid: "h", VmUid: "vm", Read: true, Write: true})
			client, closer, err := remote.Dial(&v1.VaultAddress{Address: w.slowLink(c.delay), Role: "manager"}, w.credential(pki.Identity{Role: pki.RoleHost, Name: "h", UID: "h"}), w.ca.Trust())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(closer)
			r := remote.New(remote.Options{Client: client, Repository: "r", Grant: g})
			data := make([]byte, size)
			_, _ = rand.Read(data)
			rate, err := backUp(t.Context(), r, data)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%.0f MB/s", rate/1e6)
			if rate < c.least {
				t.Errorf("%.1f MB/s over a link of %v; want %.0f at least", rate/1e6, c.delay, c.least/1e6)
			}
		})
	}
}

// backUp makes a point of data, and tells how many bytes a second it took.
func backUp(ctx context.Context, r backup.Repository, data []byte) (rate float64, err error) {
	info, err := r.Info(ctx)
	if err != nil {
		return 0, err
	}
	s, err := r.Begin(ctx, backup.SessionOptions{Purpose: "test", VMUID: "vm"})
	if err != nil {
		return 0, err
	}
	defer s.Close()
	began := time.Now()
	w, err := s.Disk(ctx, backup.DiskOptions{Name: "d", Size: int64(len(data))})
	if err != nil {
		return 0, err
	}
	var all sync.WaitGroup
	errs := make(chan error, 16)
	blocks := int64(len(data) / info.BlockSize)
	for i := range int64(8) {
		all.Go(func() {
			for b := i; b < blocks; b += 8 {
				if err := w.Put(ctx, b, data[b*int64(info.BlockSize):][:info.BlockSize]); err != nil {
					errs <- fmt.Errorf("block %d: %w", b, err)
					return
				}
			}
		})
	}
	all.Wait()
	select {
	case err := <-errs:
		return 0, err
	default:
	}
	if _, err := w.Finish(ctx); err != nil {
		return 0, err
	}
	rate = float64(len(data)) / time.Since(began).Seconds()
	_, err = s.Commit(ctx, backup.Point{VMUID: "vm", VM: "vm", Disks: []backup.Disk{{Name: "d", Size: int64(len(data))}}})
	return rate, err
}
