package disk

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"drover/internal/disk/inspect"
	"drover/internal/disk/sandbox"
)

// Layer is one file of a chain, as QEMU needs to know it.
type Layer struct {
	VM     string // who owns it; "" for an image
	ID     string // layer ID or image name; stays the same when a merge changes the file
	File   string // relative to the datastore
	Format string // "qcow2" or "raw"
	Size   int64  // virtual, bytes; 0 for an image
	Active bool   // the one that the VM writes to
	Remote bool   // no file: read over the network; ID is what Remote.ID was
}

// Chain lists a disk's layers from the active one down to the base.
func (s *Store) Chain(vm, disk string) ([]Layer, error) {
	m, err := s.manifest(vm)
	if err != nil {
		return nil, err
	}
	id, ok := m.Disks[disk]
	if !ok {
		return nil, fmt.Errorf("disk %.80q of VM %s: %w", disk, vm, ErrNotFound)
	}
	return s.chain(m, id)
}

// SnapshotChain lists the layers of a disk as of a snapshot; none is active.
func (s *Store) SnapshotChain(vm, snap, disk string) ([]Layer, error) {
	m, err := s.manifest(vm)
	if err != nil {
		return nil, err
	}
	sn := m.Snapshots[snap]
	if sn == nil || sn.Disks[disk] == "" {
		return nil, fmt.Errorf("disk %.80q in snapshot %.80q of VM %s: %w", disk, snap, vm, ErrNotFound)
	}
	return s.chain(m, sn.Disks[disk])
}

func (s *Store) chain(m *manifest, id string) ([]Layer, error) {
	var out []Layer
	for {
		l := m.Layers[id]
		if l == nil {
			return nil, fmt.Errorf("layer %s of VM %s: %w: the chain is broken", id, m.VM, ErrNotFound)
		}
		out = append(out, Layer{VM: m.VM, ID: id, File: vmDir(m.VM) + "/" + l.File, Format: l.Format, Size: l.Size,
			Active: len(out) == 0 && m.active(id)})
		if len(out) > 2*MaxDepth {
			return nil, fmt.Errorf("the chain of layer %s of VM %s has no end", id, m.VM)
		}
		p := l.Parent
		switch {
		case p == nil:
			return out, nil
		case p.Remote != "":
			return append(out, Layer{VM: m.VM, ID: p.Remote, Format: "raw", Remote: true}), nil
		case p.Image != "":
			return append(out, Layer{ID: p.Image, File: "images/" + p.Image, Format: "qcow2"}), nil
		case p.VM != "":
			other, err := s.manifest(p.VM)
			if err != nil {
				return nil, err
			}
			m = other
		}
		id = p.Layer
	}
}

// OpenLayer opens a layer's file; it never follows a symbolic link. Images are never opened for writing.
func (s *Store) OpenLayer(l Layer, write bool) (*os.File, error) {
	if l.Remote {
		return nil, fmt.Errorf("a disk of VM %s: %w: it is being restored, and not all of it is here", l.VM, ErrBusy)
	}
	flag := os.O_RDONLY
	if write {
		if l.VM == "" {
			return nil, fmt.Errorf("image %s: %w: images are read-only", l.ID, ErrInvalid)
		}
		flag = os.O_RDWR
	}
	f, err := s.root.OpenFile(l.File, flag|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open layer %s: %w", l.ID, err)
	}
	return f, nil
}

// stack is an open chain for a tool.
type stack struct {
	files []*os.File
	top   *sandbox.Node
}

func (k *stack) close() {
	for _, f := range k.files {
		f.Close()
	}
}

// stack opens and inspects a chain: a guest that took over its QEMU can have written any header.
func (s *Store) stack(chain []Layer) (*stack, error) {
	k := &stack{}
	var above *sandbox.Node
	for i, l := range chain {
		f, err := s.OpenLayer(l, false)
		if err != nil {
			k.close()
			return nil, err
		}
		k.files = append(k.files, f)
		if _, err := inspectFile(f, l.Format); err != nil {
			k.close()
			return nil, fmt.Errorf("layer %s of VM %s: %w", l.ID, l.VM, err)
		}
		n := &sandbox.Node{File: i, Format: l.Format}
		if above == nil {
			k.top = n
		} else {
			above.Backing = n
		}
		above = n
	}
	return k, nil
}

func inspectFile(f *os.File, format string) (inspect.Info, error) {
	st, err := f.Stat()
	if err != nil {
		return inspect.Info{}, err
	}
	return inspect.Inspect(f, st.Size(), inspect.Options{Format: inspect.Format(format)})
}

// newLayer makes a new file for a layer; fill writes it. It is durable on return, but known by no manifest.
func (s *Store) newLayer(vm, format string, fill func(f *os.File) error) (id, file string, err error) {
	id = newID()
	file = newID() + "." + format
	path := vmDir(vm) + "/" + file
	if err := s.root.MkdirAll(vmDir(vm), 0o700); err != nil {
		return "", "", err
	}
	f, err := s.root.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", "", fmt.Errorf("make a layer of VM %s: %w", vm, err)
	}
	defer func() {
		f.Close()
		if err != nil {
			err = errors.Join(err, s.root.Remove(path))
		}
	}()
	s.step("layer created")
	if err := s.opt.Box.Share(f, true); err != nil {
		return "", "", err
	}
	if err := fill(f); err != nil {
		return "", "", fmt.Errorf("make a layer of VM %s: %w", vm, err)
	}
	if err := f.Sync(); err != nil {
		return "", "", err
	}
	s.step("layer filled")
	return id, file, errors.Join(s.syncDir(vmDir(vm)), s.syncDir("vms"))
}

// overlay makes an empty layer of the given size over parent and puts it into m.
func (s *Store) overlay(m *manifest, size int64, parent *ref) (string, error) {
	id, file, err := s.newLayer(m.VM, "qcow2", func(f *os.File) error {
		if parent.Remote != "" {
			return writeFine(f, size)
		}
		return writeBlank(f, size)
	})
	if err != nil {
		return "", err
	}
	m.Layers[id] = &layer{File: file, Format: "qcow2", Size: size, Parent: parent}
	if chain, err := s.chain(m, id); err != nil || len(chain) > MaxDepth {
		if err == nil {
			err = fmt.Errorf("VM %s: %w: a chain of %d layers is the limit; delete snapshots or make a full clone", m.VM, ErrInvalid, MaxDepth)
		}
		return "", err
	}
	return id, nil
}

// qemuImg runs qemu-img where its output can't outgrow a disk of size.
func (s *Store) qemuImg(ctx context.Context, size int64, files []*os.File, args ...string) error {
	box := s.opt.Box
	box.MaxFile = size + size/256 + 64<<20
	return box.Run(ctx, sandbox.IO{}, files, append([]string{"qemu-img"}, args...)...)
}

// undo removes what an operation that failed has made; a VM without a manifest goes altogether.
func (s *Store) undo(vm string, err *error) {
	if *err == nil {
		return
	}
	s.mu.Lock()
	m := s.vms[vm]
	s.mu.Unlock()
	if m == nil {
		*err = errors.Join(*err, s.root.RemoveAll(vmDir(vm)))
		return
	}
	*err = errors.Join(*err, s.sweepVM(m))
}
