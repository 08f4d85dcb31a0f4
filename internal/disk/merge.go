package disk

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// How says by what means two layers become one.
type How string

const (
	// Offline: MergeOffline does it with qemu-img.
	Offline How = "offline"
	// Commit: QEMU's block-commit of Top down into Base; Top isn't the active layer.
	Commit How = "commit"
	// Stream: QEMU's block-stream of Base up into Top, which is the active layer. Not a commit: after the pivot of an
	// active commit the guest would write to Base while the manifest, if the agent dies just then, still has Top
	// mask it. A stream is right at every moment.
	Stream How = "stream"
)

// Merge folds Base, which nobody but Top needs any more, together with Top. Top's ID survives.
//
// Live, the agent calls StartMerge, runs the job with backing-file "" and explicit nodes (Commit: top Top, base Base; Stream:
// device Top, base Below or none), and when QEMU's graph has lost the file, FinishMerge. If the job failed: AbortMerge.
type Merge struct {
	VM    string
	Top   Layer
	Base  Layer
	Below *Layer // under Base; nil for none
	How   How
}

// Merges lists what can be folded now. running: the VM has QEMU on its active chains.
func (s *Store) Merges(vm string, running bool) ([]Merge, error) {
	m, err := s.manifest(vm)
	if err != nil {
		return nil, err
	}
	return s.merges(m, running)
}

func (s *Store) merges(m *manifest, running bool) ([]Merge, error) {
	outside, err := s.outside(m.VM)
	if err != nil {
		return nil, err
	}
	live := make(map[string]bool)
	for _, id := range m.Disks {
		for running {
			live[id] = true
			p := m.Layers[id].Parent
			if p == nil || p.Layer == "" || p.VM != "" {
				break
			}
			id = p.Layer
		}
	}
	var out []Merge
	for _, id := range slices.Sorted(maps.Keys(m.Layers)) {
		kids := m.children(id)
		// A clone above, however far, reads through this layer and may be running: it stays.
		if m.active(id) || m.heldBySnapshot(id) || len(kids) != 1 || m.reaches(id, outside) {
			continue
		}
		g := Merge{VM: m.VM, How: Offline}
		chain, err := s.chain(m, kids[0])
		if err != nil {
			return nil, err
		}
		g.Top, g.Base = chain[0], chain[1]
		if len(chain) > 2 {
			g.Below = &chain[2]
		}
		switch {
		case live[kids[0]] && g.Top.Active:
			g.How = Stream
		case live[kids[0]]:
			g.How = Commit
		}
		out = append(out, g)
	}
	return out, nil
}

// reaches says whether id or a layer above it is in set.
func (m *manifest) reaches(id string, set map[string][]string) bool {
	if len(set[id]) > 0 {
		return true
	}
	for _, c := range m.children(id) {
		if m.reaches(c, set) {
			return true
		}
	}
	return false
}

// still finds the pair again in m and checks that it may be merged.
func (s *Store) still(m *manifest, g Merge) (top, base *layer, err error) {
	top, base = m.Layers[g.Top.ID], m.Layers[g.Base.ID]
	if top == nil || base == nil || top.Parent == nil || top.Parent.VM != "" || top.Parent.Layer != g.Base.ID {
		return nil, nil, fmt.Errorf("merge of layer %s of VM %s: %w: it was done, or its layers changed", g.Base.ID, m.VM, ErrNotFound)
	}
	outside, err := s.outside(m.VM)
	if err != nil {
		return nil, nil, err
	}
	if m.active(g.Base.ID) || m.heldBySnapshot(g.Base.ID) || len(m.children(g.Base.ID)) != 1 || m.reaches(g.Base.ID, outside) {
		return nil, nil, fmt.Errorf("merge of layer %s of VM %s: %w: it is needed as it is", g.Base.ID, m.VM, ErrBusy)
	}
	return top, base, nil
}

// MergeOffline commits Top into Base with qemu-img. What is seen through Top is the same at every moment, so that a kill
// leaves the disk right, and the merge can be done again.
func (s *Store) MergeOffline(ctx context.Context, g Merge) error {
	if g.How != Offline {
		return fmt.Errorf("merge of layer %s: %w: QEMU has it open; use a live merge", g.Base.ID, ErrInvalid)
	}
	leave, err := s.begin(ctx, g.VM)
	if err != nil {
		return err
	}
	defer leave()
	m, err := s.manifest(g.VM)
	if err != nil {
		return err
	}
	top, base, err := s.still(m, g)
	if err != nil {
		return err
	}
	if base.Merging != "" {
		return fmt.Errorf("merge of layer %s of VM %s: %w: a live merge is under way", g.Base.ID, g.VM, ErrBusy)
	}
	chain, err := s.chain(m, g.Top.ID)
	if err != nil {
		return err
	}
	k, err := s.stack(chain)
	if err != nil {
		return err
	}
	defer k.close()
	s.step("before commit")
	// -d: Top isn't emptied, its file goes altogether.
	if err := s.qemuImg(ctx, max(top.Size, base.Size), k.files, "commit", "-q", "-d", k.top.Filename()); err != nil {
		return fmt.Errorf("merge layer %s of VM %s: %w", g.Base.ID, g.VM, err)
	}
	s.step("committed")
	f := k.files[1]
	if err := f.Sync(); err != nil {
		return err
	}
	info, err := inspectFile(f, base.Format)
	if err != nil {
		return fmt.Errorf("merge layer %s of VM %s: check the result: %w", g.Base.ID, g.VM, err)
	}
	if info.VirtualSize < top.Size {
		return fmt.Errorf("merge layer %s of VM %s: the result has %d bytes, not %d", g.Base.ID, g.VM, info.VirtualSize, top.Size)
	}
	m.sink(g.Top.ID, g.Base.ID)
	if err := s.save(m); err != nil {
		return err
	}
	return s.drop(m)
}

// sink gives Base's file and place to Top.
func (m *manifest) sink(top, base string) {
	t, b := m.Layers[top], m.Layers[base]
	t.File, t.Format, t.Parent = b.File, b.Format, b.Parent
	delete(m.Layers, base)
}

// Compact does all offline merges of a VM that is off.
func (s *Store) Compact(ctx context.Context, vm string) error {
	for {
		todo, err := s.Merges(vm, false)
		if err != nil || len(todo) == 0 {
			return err
		}
		if err := s.MergeOffline(ctx, todo[0]); err != nil {
			return err
		}
	}
}

// StartMerge marks a live merge, so that nothing is built on its layers meanwhile. It may be repeated.
func (s *Store) StartMerge(ctx context.Context, g Merge) error {
	return s.live(ctx, g, func(m *manifest, _, base *layer) error {
		base.Merging = g.Top.ID
		return s.save(m)
	})
}

// AbortMerge takes the mark of StartMerge back, after QEMU ended the job without success.
func (s *Store) AbortMerge(ctx context.Context, g Merge) error {
	return s.live(ctx, g, func(m *manifest, _, base *layer) error {
		base.Merging = ""
		return s.save(m)
	})
}

// FinishMerge writes down what QEMU's job has done and drops the file that it no longer uses.
func (s *Store) FinishMerge(ctx context.Context, g Merge) error {
	err := s.live(ctx, g, func(m *manifest, top, base *layer) error {
		if base.Merging != g.Top.ID {
			return fmt.Errorf("merge of layer %s of VM %s: %w: it wasn't started", g.Base.ID, g.VM, ErrInvalid)
		}
		if g.How == Stream {
			top.Parent = base.Parent
			delete(m.Layers, g.Base.ID)
		} else {
			m.sink(g.Top.ID, g.Base.ID)
		}
		if err := s.save(m); err != nil {
			return err
		}
		return s.drop(m)
	})
	if errors.Is(err, ErrNotFound) {
		return nil // finished before
	}
	return err
}

func (s *Store) live(ctx context.Context, g Merge, do func(m *manifest, top, base *layer) error) error {
	if g.How != Commit && g.How != Stream {
		return fmt.Errorf("merge of layer %s: %w: not a live merge", g.Base.ID, ErrInvalid)
	}
	leave, err := s.begin(ctx, g.VM)
	if err != nil {
		return err
	}
	defer leave()
	m, err := s.manifest(g.VM)
	if err != nil {
		return err
	}
	top, base, err := s.still(m, g)
	if err != nil {
		return err
	}
	return do(m, top, base)
}

// Merging lists the live merges that were started and neither finished nor aborted: for an agent that comes back.
func (s *Store) Merging(vm string) ([]Merge, error) {
	all, err := s.Merges(vm, true)
	if err != nil {
		return nil, err
	}
	m, err := s.manifest(vm)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(g Merge) bool { l := m.Layers[g.Base.ID]; return l == nil || l.Merging == "" }), nil
}
