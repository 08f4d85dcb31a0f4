package host

import (
	"context"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"drover/internal/clock"
	"drover/internal/nbd"
)

func TestMannersWatchTheGuest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		m := newManners()
		var n atomic.Uint64
		var fail atomic.Bool
		var wg sync.WaitGroup
		wg.Go(func() {
			m.watch(ctx, clock.Real(), func(context.Context) (uint64, error) {
				if fail.Load() {
					return 0, context.DeadlineExceeded
				}
				return n.Load(), nil
			})
		})
		step := func(made uint64, want bool) {
			t.Helper()
			synctest.Wait()
			n.Add(made)
			<-clock.Real().After(politeLook)
			synctest.Wait()
			if got := m.quiet.Load(); got != want {
				t.Errorf("after %d requests: quiet %v", made, got)
			}
		}
		synctest.Wait()
		if m.quiet.Load() {
			t.Error("quiet before anybody knows")
		}
		step(0, true)
		step(1000, false)
		step(politeIdle, true)
		fail.Store(true)
		step(0, false)
		fail.Store(false)
		step(0, false) // nothing to compare with
		step(0, true)
		cancel()
		wg.Wait()
	})
}

// piecesExport counts how it is read.
type piecesExport struct {
	mu           sync.Mutex
	now, at      int
	most, pieces int
}

func (p *piecesExport) Size() int64 { return 4 << 20 }

func (p *piecesExport) ReadAt(_ context.Context, b []byte, off int64) error {
	p.mu.Lock()
	p.now++
	p.at, p.most, p.pieces = max(p.at, p.now), max(p.most, len(b)), p.pieces+1
	p.mu.Unlock()
	for i := range b {
		b[i] = byte((off + int64(i)) >> 12)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now--
	return nil
}

// Beside a busy guest a disk is read in small pieces, one at a time; else in large ones.
func TestMannersRead(t *testing.T) {
	x := &piecesExport{}
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	srv := nbd.NewServer(nbd.ServerOptions{Lookup: func(context.Context, string, nbd.Peer) (nbd.Export, func(), error) { return x, func() {}, nil }})
	var serve sync.WaitGroup
	serve.Go(func() { _ = srv.Serve(ctx, l) })
	defer func() {
		cancel()
		serve.Wait()
	}()
	c, err := nbd.Dial(ctx, "unix", path, nbd.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	m := newManners()
	for _, quiet := range []bool{false, true} {
		m.quiet.Store(quiet)
		x.mu.Lock()
		x.at, x.most, x.pieces = 0, 0, 0
		x.mu.Unlock()
		var wg sync.WaitGroup
		for i := range int64(4) {
			wg.Go(func() {
				b := make([]byte, 1<<20-4096)
				off := i<<20 + 4096
				if err := m.read(ctx, c, b, off); err != nil {
					t.Error(err)
				}
				for j := 0; j < len(b); j += 4096 {
					if b[j] != byte((off+int64(j))>>12) {
						t.Errorf("at %d: wrong bytes", off+int64(j))
						return
					}
				}
			})
		}
		wg.Wait()
		x.mu.Lock()
		if polite := x.at == 1 && x.most <= politePiece && x.pieces == 4*16; polite == quiet {
			t.Errorf("quiet %v: %d pieces of at most %d, %d at once", quiet, x.pieces, x.most, x.at)
		}
		x.mu.Unlock()
	}
}
