package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	v1 "drover/api/drover/v1"
	"drover/internal/disk"
)

// templateBase begins the names of snapshots that linked clones of a template stand on. No user's snapshot has it: it
// ends with a number and names of users' snapshots come with the manager's own check.
const templateBase = "template-base-"

// clone makes the VM's disks from another's, which must be on this host, in the same datastores.
func (m *machine) clone(ctx context.Context, vm *v1.VM, c *v1.CloneSource) error {
	src := m.a.named(c.GetVm())
	if src == nil {
		return notYet("clone of VM %s: its disks are not on this host", c.GetVm())
	}
	if src == m {
		return fmt.Errorf("clone of VM %s: it would be a clone of itself", c.GetVm())
	}
	_, snap, _ := strings.Cut(c.GetSnapshot(), "/")
	m.doingNow("cloning VM " + c.GetVm())
	// The source's actor holds still: its disks can't change, nor can it be started meanwhile.
	return src.ask(ctx, func(context.Context) error {
		if err := src.settledRevert(); err != nil {
			return &waitError{err}
		}
		if snap == "" && src.process() != nil {
			return fmt.Errorf("clone of VM %s: it runs; stop it, or clone a snapshot of it", c.GetVm())
		}
		paths := map[string]bool{}
		for _, made := range src.local.Made {
			paths[made.Path] = true
		}
		for path := range paths {
			st, err := m.a.stores.at(path)
			if err != nil {
				return err
			}
			if err := m.cloneIn(ctx, st, src, snap, c.GetLinked()); err != nil {
				return fmt.Errorf("clone of VM %s: %w", c.GetVm(), err)
			}
			disks, err := st.Disks(m.uid)
			if err != nil {
				return err
			}
			for name := range disks {
				from := src.local.Made[name]
				m.local.Made[name] = madeDisk{Datastore: m.a.stores.nameOf(path), Path: path, Image: from.Image}
			}
		}
		m.local.Cloned = true
		return m.save()
	})
}

func (m *machine) cloneIn(ctx context.Context, st *disk.Store, src *machine, snap string, linked bool) error {
	var err error
	switch {
	case linked && snap == "":
		if snap, err = src.templateSnapshot(ctx, st); err == nil {
			err = st.LinkedClone(ctx, src.uid, snap, m.uid)
		}
	case linked:
		err = st.LinkedClone(ctx, src.uid, snap, m.uid)
	default:
		err = st.FullClone(ctx, src.uid, snap, m.uid)
	}
	if errors.Is(err, disk.ErrExists) {
		return nil // made before, and the agent died before it was written down
	}
	return err
}

// templateSnapshot is a snapshot of a template's present state: the last one, if the VM never ran since.
func (m *machine) templateSnapshot(ctx context.Context, st *disk.Store) (string, error) {
	if !m.vmSpec().GetTemplate() {
		return "", errors.New("a linked clone needs a template or a snapshot")
	}
	snaps, err := st.Snapshots(m.uid)
	if err != nil {
		return "", err
	}
	name := fmt.Sprintf("%s%d", templateBase, m.local.Starts)
	for _, s := range snaps {
		if s.Name == name {
			return name, nil
		}
	}
	return name, st.Snapshot(ctx, m.uid, name)
}

func (m *machine) vmSpec() *v1.VMSpec {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.vm.GetSpec()
}

// allocated is how many bytes a file takes on its file system.
func allocated(info os.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return 0
}
