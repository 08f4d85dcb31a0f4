package host

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"time"

	"drover/internal/backup"
	"drover/internal/clock"
	"drover/internal/nbd"
)

const (
	// politePiece is what is read at once, by all who read a VM's disks together, while its guest uses them: QEMU serves both in one
	// thread, so that a request of the guest waits for no more than that.
	politePiece = 64 << 10
	// politeLook is how often it is looked whether the guest does, and politeIdle how many requests in that time are none to speak of.
	politeLook = 200 * time.Millisecond
	politeIdle = 4
)

// manners are those of who reads disks beside the guest that uses them. Nil has none.
type manners struct {
	turn  chan struct{} // holds one; who has it reads
	quiet atomic.Bool   // the guest asks nothing of its disks
}

func newManners() *manners { return &manners{turn: make(chan struct{}, 1)} }

// watch looks after the guest until ctx ends. requests counts all that it has made so far.
func (m *manners) watch(ctx context.Context, clk clock.Clock, requests func(context.Context) (uint64, error)) {
	last, known := uint64(0), false
	for {
		n, err := requests(ctx)
		m.quiet.Store(err == nil && known && n-last <= politeIdle)
		last, known = n, err == nil
		select {
		case <-clk.After(politeLook):
		case <-ctx.Done():
			return
		}
	}
}

// read fills p from off: at once, or in pieces and by turns while the guest is busy.
func (m *manners) read(ctx context.Context, c *nbd.Client, p []byte, off int64) error {
	for len(p) > 0 {
		if m == nil || m.quiet.Load() {
			return c.ReadAt(ctx, p, off)
		}
		select {
		case m.turn <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		n := min(politePiece-int(off%politePiece), len(p))
		err := c.ReadAt(ctx, p[:n], off)
		<-m.turn
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// diskReading is a disk of a backup that is open, and how it is read.
type diskReading struct {
	src *diskSource
	o   backup.StoreOptions
}

// open opens a disk at the moment. Of a running VM's it gives up at once what is not going to be read.
func (j *backupJob) open(ctx context.Context, d *pointDisk, limit *backup.Limiter) (_ *diskReading, err error) {
	r := &diskReading{o: backup.StoreOptions{BlockSize: j.info.BlockSize, Incremental: !d.full(), Limit: limit, Seed: rand.Uint64() | 1}}
	if j.live == nil {
		r.src, err = j.off.source(ctx, d)
	} else {
		r.src, err = openSource(ctx, j.live.Socket, j.live.Export(d.id), j.live.Live(d.id), d.since)
	}
	if err != nil {
		return nil, err
	}
	if r.o.Incremental {
		r.o.Dirty = r.src.dirty(ctx, d.since, d.grown)
		if j.parent != nil {
			r.o.AuditShare = j.req.GetAuditShare()
		}
	}
	if j.live == nil {
		return r, nil
	}
	// The guest's processors go first.
	r.o.Background, r.o.Workers = true, max(1, min(runtime.GOMAXPROCS(0)/2, 8))
	r.src.trim, r.src.manners = true, j.manners
	if r.o.Incremental {
		err = backup.Release(ctx, r.src.Size(), r.o, r.src.release)
	}
	if err != nil {
		return nil, errors.Join(err, r.src.Close())
	}
	return r, nil
}
