package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"drover/internal/qmp"
)

// Snapshot freezes the disks as they are: each named disk gets a new active layer, made by the caller as an empty qcow2
// of the disk's size, and all switch at one moment. The layers before are not written any more.
//
// With memory, the guest stops, its memory is written to the file, and it runs on afterwards if it ran before. The file
// belongs to the frozen layers: to go back, start with new layers on top of them and Attach.Incoming. On failure the
// machine is as it was.
func (p *Process) Snapshot(ctx context.Context, overlays map[string]Layer, memory *os.File) (err error) {
	defer func() { err = p.wrap("snapshot disks", "", err) }()
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	next := p.Spec()
	tops := map[string]string{}
	found := 0
	for i := range next.Disks {
		d := &next.Disks[i]
		if l, ok := overlays[d.ID]; ok {
			if d.ReadOnly {
				return bad("disk %s is read-only and needs no snapshot", d.ID)
			}
			found++
			tops[d.ID] = d.Layers[len(d.Layers)-1].ID
			d.Layers = append(d.Layers, l)
		}
	}
	if found != len(overlays) {
		return fmt.Errorf("a disk to snapshot: %w", ErrNotFound)
	}
	if err := next.Validate(); err != nil {
		return err
	}
	if len(p.points) > 0 {
		return ErrBusy
	}
	was, err := p.qmp.QueryStatus(ctx)
	if err != nil {
		return err
	}
	tracked, err := p.tracked(ctx, tops)
	if err != nil {
		return err
	}
	if err := p.change(func(s *state) { s.Pending = &pending{Overlays: overlays, Resume: memory != nil && was.Running} }); err != nil {
		return err
	}
	done := false
	defer func() {
		undo, cancel := p.undoContext(ctx)
		defer cancel()
		if !done {
			for _, l := range overlays {
				err = errors.Join(err, p.dropLayer(undo, l.ID))
			}
		}
		if memory != nil && was.Running {
			err = errors.Join(err, p.qmp.Cont(undo))
		}
		err = errors.Join(err, p.change(func(s *state) {
			s.Pending = nil
			if done {
				s.Spec = next
			}
		}))
	}()
	var actions []qmp.Action
	for i := range next.Disks {
		d := &next.Disks[i]
		l, ok := overlays[d.ID]
		if !ok {
			continue
		}
		if err := p.addLayer(ctx, l, "", d.Cache, false); err != nil {
			return err
		}
	}
	if memory != nil {
		if was.Running {
			if err := p.qmp.Stop(ctx); err != nil {
				return err
			}
		}
		if err := p.save(ctx, memory); err != nil {
			return err
		}
		if len(tracked) > 0 {
			for _, l := range overlays {
				tracked = append(tracked, l.ID)
			}
			if err := p.activate(ctx, tracked); err != nil {
				return err
			}
		}
	}
	nodes, err := p.qmp.QueryNamedBlockNodes(ctx)
	if err != nil {
		return err
	}
	for id, l := range overlays {
		actions = append(actions, carryBitmaps(nodes, tops[id], l.ID)...)
		actions = append(actions, qmp.SnapshotAction(tops[id], l.ID))
	}
	if len(actions) > 0 {
		if err := p.qmp.Transaction(ctx, actions...); err != nil {
			return err
		}
	}
	done = true
	return nil
}

// Merge writes a layer of a disk into the one below it and drops it from the running machine: this is how a snapshot is
// deleted. The layer may be the active one. Its file is the caller's to delete afterwards. A cancelled merge leaves the
// chain as it was.
func (p *Process) Merge(ctx context.Context, disk, layer string) (err error) {
	defer func() { err = p.wrap("merge layer "+layer+" of disk", disk, err) }()
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	d, err := p.disk(disk)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(d.Layers, func(l Layer) bool { return l.ID == layer })
	switch {
	case p.reading(disk):
		return ErrBusy
	case i < 0:
		return fmt.Errorf("layer %s: %w", layer, ErrNotFound)
	case i == 0:
		return bad("it is the lowest layer")
	case d.Layers[i-1].Shared:
		return bad("the layer below it, %s, belongs to others too", d.Layers[i-1].ID)
	}
	if err := p.change(func(s *state) { s.Pending = &pending{Disk: disk, Layer: layer} }); err != nil {
		return err
	}
	merged, err := p.commit(ctx, d, i)
	undo, cancel := p.undoContext(ctx)
	defer cancel()
	if merged {
		err = errors.Join(err, p.dropLayer(undo, layer))
	}
	return errors.Join(err, p.change(func(s *state) {
		s.Pending = nil
		if merged {
			s.Spec.dropLayer(disk, layer)
		}
	}))
}

// commit runs the merge of layer i of d into the one below. It reports whether the layer has left the chain.
func (p *Process) commit(ctx context.Context, d Disk, i int) (bool, error) {
	job := mergeJob(d.ID)
	keep := false
	args := qmp.Commit{
		JobID: job, Device: d.Layers[len(d.Layers)-1].ID, Top: d.Layers[i].ID, Base: d.Layers[i-1].ID, AutoDismiss: &keep,
	}
	if i < len(d.Layers)-1 {
		// No header ever names another file: what lies below what is known by the datastore's manifest alone.
		none := ""
		args.BackingFile = &none
	}
	if err := p.qmp.BlockCommit(ctx, args); err != nil {
		return false, err
	}
	state, err := p.qmp.WaitJob(ctx, job, qmp.JobReady)
	if err == nil && state.Status == qmp.JobReady {
		if err = p.qmp.JobComplete(ctx, job); err == nil {
			_, err = p.qmp.WaitJob(ctx, job)
		}
	}
	undo, cancel := p.undoContext(ctx)
	defer cancel()
	if err != nil {
		return false, errors.Join(err, p.endJob(undo, job))
	}
	return true, p.qmp.JobDismiss(undo, job)
}

func mergeJob(disk string) string { return "merge-" + disk }

// endJob cancels a job, if it is there, and waits until it is gone.
func (p *Process) endJob(ctx context.Context, id string) error {
	jobs, err := p.qmp.QueryJobs(ctx)
	if err != nil || !slices.ContainsFunc(jobs, func(j qmp.Job) bool { return j.ID == id }) {
		return err
	}
	if err := p.qmp.BlockJobCancel(ctx, id, true); err != nil {
		p.log.Debug("cancel job", "job", id, "err", err) // it may just have ended
	}
	// That it ended by being cancelled is an error of the job, not ours.
	if j, err := p.qmp.WaitJob(ctx, id); err != nil && j.Status != qmp.JobConcluded {
		return err
	}
	return p.qmp.JobDismiss(ctx, id)
}

func (s *Spec) dropLayer(disk, layer string) {
	for i := range s.Disks {
		if s.Disks[i].ID == disk {
			s.Disks[i].Layers = slices.DeleteFunc(s.Disks[i].Layers, func(l Layer) bool { return l.ID == layer })
		}
	}
}
