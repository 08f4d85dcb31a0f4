package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"drover/internal/disk"
	"drover/internal/qemu"
)

// lendTime bounds how long the disks of a VM that is off are read.
const lendTime = 7 * 24 * time.Hour

// offRead is the reading of a VM that is off. A start ends it.
type offRead struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	dir    string
	wait   sync.WaitGroup

	mu    sync.Mutex
	n     int
	ended bool
}

// beginOff opens the disks of a VM that is off.
func (j *backupJob) beginOff(ctx context.Context) error {
	m := j.m
	if j.req.GetMemory() {
		return m.notRunning()
	}
	if len(m.imports) > 0 {
		return m.precondition("IMPORT_OPEN", "has a disk that is open for writing", "release the import first")
	}
	have := map[string][]qemu.Bitmap{}
	for _, d := range j.disks {
		t := m.local.track(j.info.ID, d.name)
		if t == nil {
			continue
		}
		// What the image really has is seen when it is opened.
		for _, b := range append(slices.Clone(t.Bitmaps), t.Next) {
			have[d.name] = append(have[d.name], qemu.Bitmap{Name: b, Recording: true})
		}
	}
	if err := j.choose(have); err != nil {
		return err
	}
	// Nothing is made before the end: until then the old bitmaps are what counts.
	for _, d := range j.disks {
		if t := m.local.track(j.info.ID, d.name); t != nil {
			t.Next, t.NextPoint = "", ""
		}
	}
	if err := m.save(); err != nil {
		return err
	}
	j.point.Time = m.a.clk.Now().UTC()
	j.point.Consistency = "off"
	if err := j.record(nil); err != nil {
		return err
	}
	off, err := m.newOffRead()
	if err != nil {
		return err
	}
	j.off = off
	j.wait.Go(func() {
		select {
		case <-off.ctx.Done():
			j.ends(context.Cause(off.ctx))
		case <-ctx.Done():
		}
	})
	for _, d := range j.disks {
		if d.full() {
			continue
		}
		// One try, so that a bitmap that is not there means a full read and not a failure.
		src, err := off.open(ctx, m.uid, d.name, d.store, d.since)
		if err == nil {
			err = src.Close()
		}
		if err != nil {
			d.since, d.grown = nil, d.size
			d.why = "the bitmap of its changes is gone or was not written out by QEMU"
			m.log.Info("a disk that is off is read in full", "disk", d.name, "err", err)
		}
	}
	return nil
}

func (m *machine) newOffRead() (*offRead, error) {
	dir, err := os.MkdirTemp(m.a.cfg.RunDir, "read-")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(m.a.life)
	o := &offRead{ctx: ctx, cancel: cancel, dir: dir}
	m.readings = append(m.readings, o)
	return o, nil
}

// source opens a disk for reading.
func (o *offRead) source(ctx context.Context, d *pointDisk) (*diskSource, error) {
	return o.open(ctx, d.vm, d.name, d.store, d.since)
}

// open lends a disk and connects to it.
func (o *offRead) open(ctx context.Context, vm, name string, st *disk.Store, bitmaps []string) (*diskSource, error) {
	path, err := o.lend(vm, name, st, disk.Lend{Bitmaps: bitmaps})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return openSource(ctx, path, name, "", bitmaps)
}

// lend serves a disk until the reading ends.
func (o *offRead) lend(vm, name string, st *disk.Store, how disk.Lend) (string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return "", context.Cause(o.ctx)
	}
	o.n++
	path := filepath.Join(o.dir, fmt.Sprint(o.n))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return "", err
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err = errors.Join(err, l.Close()); err != nil {
		return "", err
	}
	how.Socket, how.Export, how.Timeout = f, name, lendTime
	o.wait.Go(func() {
		defer f.Close()
		// Its end is seen by who reads: the connection breaks.
		_ = st.LendDisk(o.ctx, vm, name, how)
	})
	return path, nil
}

// end stops the reading, for a reason, and waits until nothing has the disks open.
func (o *offRead) end(reason error) {
	if reason == nil {
		reason = context.Canceled
	}
	o.mu.Lock()
	o.ended = true
	o.mu.Unlock()
	o.cancel(reason)
	o.wait.Wait()
	_ = os.RemoveAll(o.dir)
}

// endReading lets go of the disks before something changes them. It is called by the actor.
func (m *machine) endReading(reason error) {
	for _, o := range m.readings {
		o.end(reason)
	}
	m.readings = nil
}

// forgetReading reports whether nothing has ended the reading before its time.
func (m *machine) forgetReading(o *offRead) bool {
	n := len(m.readings)
	m.readings = slices.DeleteFunc(m.readings, func(r *offRead) bool { return r == o })
	return len(m.readings) < n
}

// endOff begins to track changes, if nothing has come between. It runs in the VM's actor.
func (j *backupJob) endOff(ctx context.Context, committed bool) error {
	m := j.m
	same := m.forgetReading(j.off)
	for _, d := range j.disks {
		t := m.local.track(j.info.ID, d.name)
		switch {
		case t == nil || j.off == nil:
			continue
		case !committed:
			if d.why != "" && !d.full() {
				t.Doubt = d.why
			}
			continue
		case !d.full():
			// The old bitmaps have all that has changed since this point too.
			t.Points = append(t.Points, j.point.ID)
			t.Points = t.Points[max(0, len(t.Points)-pointsMost):]
		}
		chain, err := d.store.Chain(m.uid, d.name)
		if err != nil {
			return err
		}
		if !same || m.process() != nil || chain[0] != d.top {
			continue
		}
		old := t.Bitmaps
		if err := d.store.SetBitmaps(ctx, m.uid, d.name, d.next); err != nil {
			m.log.Info("changes of a disk are not tracked", "disk", d.name, "err", err)
			continue
		}
		*t = track{Repo: t.Repo, Disk: t.Disk, Layer: d.top.ID, Node: nodeName(d.top), Size: d.size, Points: []string{j.point.ID}, Bitmaps: []string{d.next}}
		if err := m.save(); err != nil {
			return err
		}
		if len(old) > 0 {
			if err := d.store.SetBitmaps(ctx, m.uid, d.name, "", old...); err != nil {
				return err
			}
		}
	}
	return m.save()
}
