package host

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
)

// bare is an export without block status. QEMU 7.2 answers a guest's read with zeros, and no error, when it streams and a question
// about block status fails (block/copy-on-read.c takes an answer without length for the end of the backing file). An export
// without meta contexts is never asked; zeros cross the socket as holes all the same.
type bare struct{ x *backup.Export }

func (b bare) Size() int64 { return b.x.Size() }

func (b bare) ReadAt(ctx context.Context, p []byte, off int64) error { return b.x.ReadAt(ctx, p, off) }

// patientDisk is a disk of a point in a repository that may go away and come back: who reads waits a while.
type patientDisk struct {
	i    *instant
	from string
	size int64
}

func (d *patientDisk) Size() int64  { return d.size }
func (d *patientDisk) Close() error { return nil }

func (d *patientDisk) ReadAt(ctx context.Context, p []byte, off int64) error {
	return d.i.try(ctx, d.from, func(r backup.DiskReader) error { return r.ReadAt(ctx, p, off) })
}

// Extents calls all of it data: nobody asks.
func (d *patientDisk) Extents(_ context.Context, off, n int64) ([]backup.Extent, error) {
	return []backup.Extent{{Offset: off, Length: n}}, nil
}

func (d *patientDisk) Changed(context.Context, string, string) ([]backup.Extent, error) {
	return nil, errors.New("not asked here")
}

// try does something with a disk of the point, again and again while the repository does not answer, up to readPatience.
func (i *instant) try(ctx context.Context, from string, do func(backup.DiskReader) error) error {
	begun := i.m.a.clk.Now()
	wait := 100 * time.Millisecond
	for {
		r, opened, err := i.disk(from)
		if err == nil {
			err = do(r)
		}
		if err == nil {
			i.answered()
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		i.silent(err)
		// Also damage may be repaired from a copy: it is for people to decide, and the guest waits.
		if i.m.a.clk.Now().Sub(begun) > readPatience {
			i.reopen(opened)
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-i.m.a.clk.After(wait):
		}
		wait = min(2*wait, 2*time.Second)
	}
}

// disk opens a disk of the point, unless it is open.
// The point outlives the read that found it closed.
func (i *instant) disk(from string) (r backup.DiskReader, opened int, err error) {
	i.opening.Lock()
	defer i.opening.Unlock()
	i.mu.Lock()
	r, reader, source, opened := i.open[from], i.reader, i.source, i.opened
	i.mu.Unlock()
	if r != nil {
		return r, opened, nil
	}
	var closer func()
	if reader == nil {
		repo, done, err := i.m.a.vault(i.life, source)
		if err != nil {
			return nil, opened, err
		}
		if reader, err = repo.OpenPoint(i.life, i.point); err != nil {
			done()
			return nil, opened, fmt.Errorf("open the restore point in repository %s: %w", source.GetVault().GetRepository(), err)
		}
		closer = done
		opened++
	}
	if r, err = reader.Disk(i.life, from); err != nil && closer != nil {
		reader.Close()
		closer()
	}
	if err != nil {
		return nil, opened, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if closer != nil {
		i.reader, i.closer, i.opened = reader, closer, opened
	}
	i.open[from] = r
	return r, opened, nil
}

// reopen lets go of the point, unless another has done so since: the next read opens it anew.
func (i *instant) reopen(opened int) {
	i.opening.Lock()
	defer i.opening.Unlock()
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.opened == opened {
		i.drop()
	}
}

// silent notes that the repository failed.
func (i *instant) silent(err error) {
	i.mu.Lock()
	first := i.away == nil
	if first {
		i.since = i.m.a.clk.Now()
	}
	i.away = err
	i.mu.Unlock()
	if first {
		i.m.event(v1.Severity_SEVERITY_WARNING, "RESTORE_WAITS", "the repository that it is being restored from does not answer: "+err.Error())
		i.m.poke()
	}
}

func (i *instant) answered() {
	i.mu.Lock()
	was := i.away
	i.away = nil
	i.mu.Unlock()
	if was != nil {
		i.m.event(v1.Severity_SEVERITY_INFO, "RESTORE_GOES_ON", "the repository that it is being restored from answers again")
		i.m.poke()
	}
}

// sinkStep is how much is written between two looks at the room that is left.
const sinkStep = 64 << 20

// sinkGate says when it is time to look.
type sinkGate struct {
	mu   sync.Mutex
	left int64
}

func (g *sinkGate) due(n int64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.left -= n; g.left > 0 {
		return false
	}
	g.left = sinkStep
	return true
}
