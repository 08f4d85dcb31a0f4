package host

import (
	"context"
	"errors"
	"fmt"

	"drover/internal/disk"
	"drover/internal/qemu"
)

// compact folds all layers that nobody needs apart. The VM is off.
func (m *machine) compact(ctx context.Context) error {
	stores, err := m.storesInUse()
	if err != nil {
		return err
	}
	for _, st := range stores {
		if err := st.Compact(ctx, m.uid); err != nil && !errors.Is(err, disk.ErrNotFound) {
			return fmt.Errorf("merge layers: %w", err)
		}
	}
	m.local.Compact = false
	return m.save()
}

// mergeLive folds what can be folded while QEMU runs: layers below the one that is written. That one stays apart until
// the VM is off; the disks are right without.
func (m *machine) mergeLive(ctx context.Context, p *qemu.Process, stores []*disk.Store) error {
	later := false
	for _, st := range stores {
		for {
			todo, err := st.Merges(m.uid, true)
			if err != nil {
				return err
			}
			g, ok := disk.Merge{}, false
			for _, t := range todo {
				switch t.How {
				case disk.Commit:
					g, ok = t, true
				case disk.Stream:
					later = true
				}
			}
			if !ok {
				break
			}
			if err := m.mergeOne(ctx, p, st, g); err != nil {
				return err
			}
		}
	}
	m.local.Compact = later
	return m.save()
}

func (m *machine) mergeOne(ctx context.Context, p *qemu.Process, st *disk.Store, g disk.Merge) error {
	id := diskWith(p, nodeName(g.Top))
	if id == "" {
		return fmt.Errorf("merge layer %s: QEMU does not have it", g.Top.ID)
	}
	if err := st.StartMerge(ctx, g); err != nil {
		return err
	}
	undo := context.WithoutCancel(ctx)
	if err := p.Merge(ctx, id, nodeName(g.Top)); err != nil {
		if diskWith(p, nodeName(g.Top)) != "" {
			return errors.Join(err, st.AbortMerge(undo, g))
		}
		m.log.Warn("a merge succeeded with a complaint", "err", err)
	}
	return st.FinishMerge(undo, g)
}

// diskWith is the disk that has a layer in QEMU.
func diskWith(p *qemu.Process, node string) string {
	for _, d := range p.Spec().Disks {
		for _, l := range d.Layers {
			if l.ID == node {
				return d.ID
			}
		}
	}
	return ""
}

// mendMerges settles merges that an agent before has begun. there are the layers that QEMU has, after the qemu package
// has settled its own side. A commit that was cut off left the disk right.
func (m *machine) mendMerges(ctx context.Context, st *disk.Store, running bool, there map[string]bool) error {
	todo, err := st.Merging(m.uid)
	if err != nil {
		return err
	}
	for _, g := range todo {
		if running && !there[nodeName(g.Top)] {
			err = st.FinishMerge(ctx, g)
		} else {
			m.local.Compact = true
			err = st.AbortMerge(ctx, g)
		}
		if err != nil {
			return fmt.Errorf("merge of layer %s, which was cut off: %w", g.Top.ID, err)
		}
	}
	return nil
}
