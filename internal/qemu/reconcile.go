package qemu

import (
	"context"
	"errors"
	"slices"
	"strings"

	"drover/internal/qmp"
)

// reconcile brings the state file of an adopted machine in line with what QEMU has: the agent before may have ended in
// the middle of an operation. Additions that got no device are taken back, removals that got through are finished, a
// running merge is cancelled, and a snapshot counts if the guest writes to its layers.
func (p *Process) reconcile(ctx context.Context) error {
	there, err := p.qmp.QOMList(ctx, "/machine/peripheral")
	if err != nil {
		return err
	}
	has := func(id string) bool {
		return slices.ContainsFunc(there, func(q qmp.QOMProperty) bool { return q.Name == id })
	}
	if err := p.reconcilePoints(ctx); err != nil {
		return err
	}
	if err := p.reconcileBlocks(ctx); err != nil {
		return err
	}
	s := p.Spec()
	for _, d := range s.Disks {
		if !has(diskID(d.ID)) {
			if err := errors.Join(p.dropLayers(ctx, d.Layers), p.forgetDisk(d.ID)); err != nil {
				return err
			}
		}
	}
	for _, n := range s.NICs {
		if !has(nicID(n.ID)) {
			// The backend may never have been made.
			if err := p.qmp.NetdevDel(ctx, netdevOf(n.ID)); err != nil && !isRefusal(err) {
				return err
			}
			if err := p.forgetNIC(n.ID); err != nil {
				return err
			}
		}
	}
	for _, d := range s.Memory.DIMMs {
		if !has(dimmID(d.Slot)) {
			if err := p.qmp.ObjectDel(ctx, dimmRAM(d.Slot)); err != nil && !isRefusal(err) {
				return err
			}
			if err := p.forgetDIMM(d.Slot); err != nil {
				return err
			}
		}
	}
	return p.reconcileCPUs(has)
}

// reconcileCPUs counts a socket as plugged when all of its cores are there.
func (p *Process) reconcileCPUs(has func(string) bool) error {
	s := p.Spec()
	var plugged []int
	for socket := s.CPU.Sockets; socket < s.CPU.MaxSockets; socket++ {
		cores := 0
		for core := range s.CPU.Cores {
			if has(cpuDevice("", socket, core).ID) {
				cores++
			}
		}
		if cores == s.CPU.Cores {
			plugged = append(plugged, socket)
		}
	}
	if slices.Equal(plugged, s.CPU.Plugged) {
		return nil
	}
	return p.change(func(st *state) { st.Spec.CPU.Plugged = plugged })
}

// reconcileBlocks finishes or takes back the change of the block graph that was under way.
func (p *Process) reconcileBlocks(ctx context.Context) error {
	p.mu.Lock()
	pend := p.state.Pending
	p.mu.Unlock()
	if pend == nil {
		return nil
	}
	if pend.Disk == "" {
		return p.reconcileSnapshot(ctx, pend)
	}
	if err := p.endJob(ctx, mergeJob(pend.Disk)); err != nil {
		return err
	}
	// A layer that is still part of the chain cannot be deleted; one that has left it can, and the merge was done.
	err := p.dropLayer(ctx, pend.Layer)
	merged := err == nil
	if err != nil && !isRefusal(err) {
		return err
	}
	return p.change(func(s *state) {
		s.Pending = nil
		if merged {
			s.Spec.dropLayer(pend.Disk, pend.Layer)
		}
	})
}

func (p *Process) reconcileSnapshot(ctx context.Context, pend *pending) error {
	overlays := pend.Overlays
	blocks, err := p.qmp.QueryBlock(ctx)
	if err != nil {
		return err
	}
	active := map[string]string{}
	for _, b := range blocks {
		if id, ok := strings.CutPrefix(deviceOf(b.QDev), "disk-"); ok && b.Inserted != nil {
			active[id] = b.Inserted.NodeName
		}
	}
	done := len(overlays) > 0
	for id, l := range overlays {
		done = done && active[id] == l.ID // all switched or none did: it was one transaction
	}
	if !done {
		// A saving of memory that was under way stands in the way of everything else.
		if err := p.qmp.MigrateCancel(ctx); err != nil && !isRefusal(err) {
			return err
		}
		if err := p.finalized(ctx); err != nil {
			return err
		}
		for _, l := range overlays {
			if err := p.dropLayer(ctx, l.ID); err != nil {
				return err
			}
		}
	}
	if pend.Resume {
		if err := p.qmp.Cont(ctx); err != nil {
			return err
		}
	}
	return p.change(func(s *state) {
		s.Pending = nil
		if !done {
			return
		}
		for i := range s.Spec.Disks {
			d := &s.Spec.Disks[i]
			if l, ok := overlays[d.ID]; ok {
				d.Layers = append(d.Layers, l)
			}
		}
	})
}

// isRefusal reports whether QEMU answered and said no, as opposed to not answering.
func isRefusal(err error) bool {
	var e *qmp.Error
	return errors.As(err, &e)
}
