package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	v1 "drover/api/drover/v1"
	"drover/internal/qemu"
)

// beginLive opens the moment of a running VM.
func (j *backupJob) beginLive(ctx context.Context, p *qemu.Process) error {
	m := j.m
	byID, err := p.Bitmaps(ctx)
	if err != nil {
		return err
	}
	have := map[string][]qemu.Bitmap{}
	for _, d := range j.disks {
		have[d.name] = byID[d.id]
	}
	if err := j.choose(have); err != nil {
		return err
	}
	if err := m.tidyBitmaps(ctx, p); err != nil {
		return err
	}
	o, frozen, err := m.pointOptions(j.disks, j.req.GetQuiesce())
	if err != nil {
		return errors.Join(err, j.neverBegan())
	}
	if j.req.GetMemory() {
		if j.memory, err = j.disks[0].store.Scratch(); err != nil {
			return errors.Join(err, j.neverBegan())
		}
		o.Memory = j.memory
	}
	if j.live, err = p.BeginPoint(ctx, o); err != nil {
		return errors.Join(err, j.neverBegan())
	}
	j.point.Time = j.live.Time.UTC()
	j.point.Consistency = consistency(o.Memory != nil, *frozen)
	for _, d := range j.disks {
		d.size = j.live.Size(d.id)
	}
	m.log.Info("a moment of the disks is open for a backup", "point", j.req.GetPoint(), "stopped", j.live.Stopped, "consistency", j.point.Consistency)
	m.watchPoint(ctx, j.live, p, j.ends, &j.wait)
	j.manners = newManners()
	j.wait.Go(func() { j.manners.watch(ctx, m.a.clk, p.Requests) })
	if err := j.record(&j.live.Machine); err != nil {
		return errors.Join(err, j.live.Close(context.WithoutCancel(ctx)))
	}
	return nil
}

func consistency(memory, frozen bool) string {
	switch {
	case memory:
		return "memory"
	case frozen:
		return "quiesced"
	}
	return "crash"
}

// watchPoint ends who reads a moment when its fleece is full or the VM ends. It goes when ctx does.
func (m *machine) watchPoint(ctx context.Context, l *qemu.LivePoint, p *qemu.Process, ends context.CancelCauseFunc, wait interface{ Go(func()) }) {
	wait.Go(func() {
		select {
		case <-l.Full():
			ends(errFleeceFull)
			m.event(v1.Severity_SEVERITY_WARNING, "BACKUP_FLEECE_FULL", errFleeceFull.Error())
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), backupEnd)
			defer cancel()
			if err := l.Close(end); err != nil {
				m.log.Warn("a moment of the disks that is lost was not taken down", "err", err)
			}
		case <-p.Done():
			ends(errVMEnded)
		case <-ctx.Done():
		}
	})
}

// pointOptions are how a point of disks is made. frozen tells afterwards whether the guest was.
func (m *machine) pointOptions(disks []*pointDisk, quiesce v1.Quiesce) (qemu.PointOptions, *bool, error) {
	frozen := new(bool)
	o := qemu.PointOptions{}
	byID := map[string]*pointDisk{}
	perStore := map[any]int{}
	for _, d := range disks {
		byID[d.id] = d
		perStore[d.store]++
		o.Disks = append(o.Disks, qemu.PointDisk{Disk: d.id, Bitmap: d.next, Since: d.since})
	}
	for _, d := range disks {
		limit, err := fleeceLimit(d.store, perStore[d.store])
		if err != nil {
			return o, frozen, err
		}
		if o.Limit == 0 || limit < o.Limit {
			o.Limit = limit
		}
	}
	o.Fleece = func(id string, size int64) (*os.File, error) { return byID[id].store.ScratchDisk(size) }
	if quiesce == v1.Quiesce_QUIESCE_NEVER {
		return o, frozen, nil
	}
	o.Freeze = func(ctx context.Context) (func(), error) {
		if quiesce != v1.Quiesce_QUIESCE_REQUIRE && !m.guestStatus().GetAgent() {
			return func() {}, nil
		}
		thaw, err := m.freeze(ctx)
		switch {
		case err == nil:
			*frozen = true
			return thaw, nil
		case quiesce == v1.Quiesce_QUIESCE_REQUIRE:
			return nil, err
		}
		m.log.Info("the guest was not frozen for a backup", "err", err)
		return func() {}, nil
	}
	return o, frozen, nil
}

// neverBegan takes back what choose wrote down.
func (j *backupJob) neverBegan() error {
	p := j.m.process()
	if p == nil {
		return nil // folded by the next
	}
	ctx, cancel := context.WithTimeout(j.m.a.life, askTimeout)
	defer cancel()
	have, err := p.Bitmaps(ctx)
	if err != nil {
		return err
	}
	for _, d := range j.disks {
		if slices.ContainsFunc(have[d.id], func(b qemu.Bitmap) bool { return b.Name == d.next }) {
			continue
		}
		if t := j.m.local.track(j.info.ID, d.name); t != nil && t.Next == d.next {
			t.Next, t.NextPoint = "", ""
		}
	}
	return j.m.save()
}

// endLive settles what is tracked. It runs in the VM's actor.
func (j *backupJob) endLive(ctx context.Context, committed bool) error {
	m := j.m
	var old []func(*qemu.Process) error
	for _, d := range j.disks {
		t := m.local.track(j.info.ID, d.name)
		if t == nil || t.Next != d.next {
			continue
		}
		if !committed {
			into := ""
			if n := len(t.Bitmaps); n > 0 {
				into = t.Bitmaps[n-1]
			}
			if d.why != "" && !d.full() {
				t.Doubt = d.why
			}
			if into == "" {
				t.fold()
				continue
			}
			next := t.Next
			t.fold()
			old = append(old, func(p *qemu.Process) error {
				if err := p.MergeBitmap(ctx, d.id, into, next); err != nil {
					return err
				}
				t.Bitmaps = slices.DeleteFunc(t.Bitmaps, func(b string) bool { return b == next })
				return nil
			})
			continue
		}
		for _, b := range t.Bitmaps {
			old = append(old, func(p *qemu.Process) error { return p.RemoveBitmap(ctx, d.id, b) })
		}
		*t = track{Repo: t.Repo, Disk: t.Disk, Layer: d.top.ID, Node: nodeName(d.top), Size: d.size, Points: []string{t.NextPoint}, Bitmaps: []string{t.Next}}
	}
	// The record first: a bitmap too many is found by the next backup, one too few would cost a full read.
	if err := m.save(); err != nil {
		return err
	}
	p := m.process()
	if p == nil || len(old) == 0 {
		return nil
	}
	var errs []error
	for _, do := range old {
		errs = append(errs, do(p))
	}
	if err := errors.Join(append(errs, m.save())...); err != nil {
		return fmt.Errorf("settle the tracking of changes: %w", err)
	}
	return nil
}

// inspectTracks looks at what a new process has of the bitmaps, and removes what is of no use.
func (m *machine) inspectTracks(ctx context.Context, p *qemu.Process) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	all, err := p.Bitmaps(ctx)
	if err != nil {
		return err
	}
	lost := map[string]bool{}
	for _, list := range all {
		for _, b := range list {
			lost[b.Name] = lost[b.Name] || b.Lost
		}
	}
	for _, t := range m.local.Tracks {
		if slices.ContainsFunc(append(slices.Clone(t.Bitmaps), t.Next), func(b string) bool { return lost[b] }) {
			t.Doubt = "QEMU ended unexpectedly while it tracked changes"
		}
	}
	return errors.Join(m.save(), m.tidyBitmaps(ctx, p))
}
