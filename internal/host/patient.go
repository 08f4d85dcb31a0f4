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
	return d.i.try(ctx, d.from, func(ctx context.Context, r backup.DiskReader) error { return r.ReadAt(ctx, p, off) })
}

// Extents calls all of it data: nobody asks.
func (d *patientDisk) Extents(_ context.Context, off, n int64) ([]backup.Extent, error) {
	return []backup.Extent{{Offset: off, Length: n}}, nil
}

func (d *patientDisk) Changed(context.Context, string, string) ([]backup.Extent, error) {
	return nil, errors.New("not asked here")
}

// probeTime is how long a read waits for a repository that has been away for longer than readPatience: just long enough to find it back.
const probeTime = 2 * time.Second

// try does something with a disk of the point, again and again while the repository does not answer, up to readPatience after it fell silent. All reads that
// are under way then fail together: QEMU waits for each of them before it stops the guest, and hears nobody meanwhile.
func (i *instant) try(ctx context.Context, from string, do func(context.Context, backup.DiskReader) error) error {
	begun := i.m.a.clk.Now()
	wait := 100 * time.Millisecond
	for {
		// The repository's client has a patience of its own, which is longer.
		once, cancel := context.WithTimeout(ctx, i.patience(begun))
		r, opened, err := i.disk(once, from)
		if err == nil {
			err = do(once, r)
		}
		cancel()
		if err == nil {
			i.answered()
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		i.silent(err)
		// Also damage may be repaired from a copy: it is for people to decide, and the guest waits.
		if i.patience(begun) <= probeTime && i.m.a.clk.Now().Sub(begun) >= probeTime {
			if !errors.Is(err, context.DeadlineExceeded) {
				i.reopen(opened) // one that is only silent is still the same when it speaks again
			}
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

// patience is how long a read that began at some time may still wait.
func (i *instant) patience(begun time.Time) time.Duration {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.away != nil && i.since.Before(begun) {
		begun = i.since
	}
	return max(probeTime, readPatience-i.m.a.clk.Now().Sub(begun))
}

// disk opens a disk of the point, unless it is open. The point outlives the read that found it closed, but not one that gave up while it was being opened.
func (i *instant) disk(ctx context.Context, from string) (r backup.DiskReader, opened int, err error) {
	select {
	case i.opening <- struct{}{}:
		defer func() { <-i.opening }()
	case <-ctx.Done():
		return nil, 0, context.Cause(ctx)
	}
	i.mu.Lock()
	r, reader, source, opened := i.open[from], i.reader, i.source, i.opened
	i.mu.Unlock()
	if r != nil {
		return r, opened, nil
	}
	life, cancel := context.WithCancel(i.life)
	keep := context.AfterFunc(ctx, cancel)
	closer := cancel
	fresh := reader == nil
	if fresh {
		repo, done, err := i.m.a.vault(life, source)
		if err != nil {
			cancel()
			return nil, opened, err
		}
		closer = func() { done(); cancel() }
		if reader, err = repo.OpenPoint(life, i.point); err != nil {
			closer()
			return nil, opened, fmt.Errorf("open the restore point in repository %s: %w", source.GetVault().GetRepository(), err)
		}
		opened++
	}
	r, err = reader.Disk(life, from)
	if err == nil && !keep() {
		err = context.Cause(ctx)
	}
	if err != nil {
		if fresh {
			i.letGo(reader, closer)
		} else {
			cancel()
		}
		return nil, opened, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if fresh && i.source != source {
		i.letGo(reader, closer)
		return nil, opened, errors.New("the repository was named anew meanwhile")
	}
	if fresh {
		i.reader, i.closer, i.opened = reader, closer, opened
	}
	i.open[from] = r
	return r, opened, nil
}

// letGo closes a point. That may ask a repository that does not answer, so nobody waits for it.
func (i *instant) letGo(reader backup.PointReader, closer func()) {
	i.m.a.actors.Go(func() {
		if err := reader.Close(); err != nil {
			i.m.log.Debug("close the restore point", "point", i.point, "err", err)
		}
		closer()
	})
}

// reopen lets go of the point, unless another has done so since: the next read opens it anew.
func (i *instant) reopen(opened int) {
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
