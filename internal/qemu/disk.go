package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"drover/internal/guest"
	"drover/internal/qmp"
)

// addLayer gives QEMU an image as two nodes on top of backing ("": none).
func (p *Process) addLayer(ctx context.Context, l Layer, backing string, c Cache, readOnly bool) error {
	if l.remote() {
		return p.qmp.BlockdevAdd(ctx, remoteNode(l, c))
	}
	f, err := openLayer(l.Path, !l.Shared)
	if err != nil {
		return err
	}
	defer f.Close()
	name, err := p.passSet(ctx, l.ID, f)
	if err != nil {
		return err
	}
	nodes := layerNodes(l, name, backing, c, readOnly)
	if err := p.qmp.BlockdevAdd(ctx, nodes[0]); err != nil {
		p.dropSet(ctx, name)
		return err
	}
	if err := p.qmp.BlockdevAdd(ctx, nodes[1]); err != nil {
		err = errors.Join(err, p.qmp.BlockdevDel(ctx, fileOf(l.ID)))
		p.dropSet(ctx, name)
		return err
	}
	return nil
}

// passSet gives QEMU a descriptor in a new set and returns the name it can be opened by.
func (p *Process) passSet(ctx context.Context, what string, f *os.File) (string, error) {
	sets, err := p.qmp.QueryFDSets(ctx)
	if err != nil {
		return "", err
	}
	n := 0
	for _, s := range sets {
		n = max(n, s.ID+1)
	}
	if _, err := p.qmp.AddFD(ctx, n, what, f); err != nil {
		return "", fmt.Errorf("pass %s to QEMU: %w", what, err)
	}
	return fmt.Sprintf("/dev/fdset/%d", n), nil
}

// dropSet lets QEMU close a set once nothing uses it.
func (p *Process) dropSet(ctx context.Context, name string) {
	n, err := strconv.Atoi(strings.TrimPrefix(name, "/dev/fdset/"))
	if err != nil {
		return
	}
	if err := p.qmp.RemoveFD(ctx, n); err != nil {
		p.log.Debug("remove descriptor set", "set", n, "err", err)
	}
}

// dropLayer removes a layer's nodes and closes its file. Nodes that are not there are no error.
func (p *Process) dropLayer(ctx context.Context, id string) error {
	nodes, err := p.qmp.QueryNamedBlockNodes(ctx)
	if err != nil {
		return err
	}
	set := ""
	for _, name := range []string{id, fileOf(id)} {
		i := slices.IndexFunc(nodes, func(n qmp.BlockNode) bool { return n.NodeName == name })
		if i < 0 {
			continue
		}
		if strings.HasPrefix(nodes[i].File, "/dev/fdset/") {
			set = nodes[i].File
		}
		if err := p.qmp.BlockdevDel(ctx, name); err != nil {
			return err
		}
	}
	if set != "" {
		p.dropSet(ctx, set)
	}
	return nil
}

func (p *Process) dropLayers(ctx context.Context, layers []Layer) error {
	for i := len(layers) - 1; i >= 0; i-- {
		if err := p.dropLayer(ctx, layers[i].ID); err != nil {
			return err
		}
	}
	return nil
}

// AddDisk plugs a disk into the running machine.
func (p *Process) AddDisk(ctx context.Context, d Disk) (err error) {
	defer func() { err = p.wrap("add disk", d.ID, err) }()
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	next := p.Spec()
	next.Disks = append(next.Disks, d)
	if err := next.Validate(); err != nil {
		return err
	}
	if !p.hardware().Disks[d.Bus].Hotplug {
		return p.noHotplug(string(d.Bus))
	}
	if err := p.change(func(s *state) { s.Spec = next }); err != nil {
		return err
	}
	added := 0
	defer func() {
		if err != nil {
			undo, cancel := p.undoContext(ctx)
			defer cancel()
			err = errors.Join(err, p.dropLayers(undo, d.Layers[:added]), p.forgetDisk(d.ID))
		}
	}()
	backing := ""
	for i, l := range d.Layers {
		if err := p.addLayer(ctx, l, backing, d.Cache, i < len(d.Layers)-1 || d.ReadOnly); err != nil {
			return err
		}
		added, backing = i+1, l.ID
	}
	dev, err := diskDevice(p.hardware(), &d)
	if err != nil {
		return err
	}
	return p.qmp.DeviceAdd(ctx, dev.Args())
}

// RemoveDisk unplugs a disk and waits until the guest has let go of it, as long as ctx allows. After ErrGuest the disk
// is still there; the guest may let go of it later, and a second RemoveDisk then finishes.
func (p *Process) RemoveDisk(ctx context.Context, id string) (err error) {
	defer func() { err = p.wrap("remove disk", id, err) }()
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	d, err := p.disk(id)
	if err != nil {
		return err
	}
	if p.reading(id) {
		return ErrBusy
	}
	if !p.hardware().Disks[d.Bus].Hotplug {
		return p.noHotplug(string(d.Bus))
	}
	if err := p.unplug(ctx, diskID(id)); err != nil {
		return err
	}
	// The device is gone, so this has to be finished, whatever becomes of ctx.
	undo, cancel := p.undoContext(ctx)
	defer cancel()
	return errors.Join(p.dropLayers(undo, d.Layers), p.forgetDisk(id))
}

// unplug removes a device and makes a guest's silence or refusal an ErrGuest.
func (p *Process) unplug(ctx context.Context, device string) error {
	err := p.qmp.RemoveDevice(ctx, device)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, qmp.ErrUnplugRefused), ctx.Err() != nil:
		return fmt.Errorf("%w: it did not release %s; check that its system is up and not using it, or stop the machine first (%w)", ErrGuest, device, err)
	}
	return err
}

func (p *Process) forgetDisk(id string) error {
	return p.change(func(s *state) {
		s.Spec.Disks = slices.DeleteFunc(s.Spec.Disks, func(d Disk) bool { return d.ID == id })
	})
}

// ResizeDisk grows a disk; the guest sees the new size at once.
func (p *Process) ResizeDisk(ctx context.Context, id string, size int64) (err error) {
	defer func() { err = p.wrap("resize disk", id, err) }()
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	d, err := p.disk(id)
	if err != nil {
		return err
	}
	if p.reading(id) {
		return ErrBusy
	}
	top := d.Layers[len(d.Layers)-1]
	nodes, err := p.qmp.QueryNamedBlockNodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if n.NodeName == top.ID && size < n.Image.VirtualSize {
			return fmt.Errorf("%w: it has %d bytes and cannot shrink to %d: data would be lost", ErrSpec, n.Image.VirtualSize, size)
		}
	}
	if size <= 0 || size%512 != 0 {
		return bad("size %d is not a multiple of 512", size)
	}
	if top.Shared || d.ReadOnly {
		return bad("the disk is read-only")
	}
	return p.qmp.BlockResize(ctx, top.ID, size)
}

// ChangeCD puts an image into a drive, or takes it out (path ""). A guest that has locked the tray is overruled.
func (p *Process) ChangeCD(ctx context.Context, id, path string) (err error) {
	defer func() { err = p.wrap("change CD-ROM", id, err) }()
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	next := p.Spec()
	i := slices.IndexFunc(next.CDROMs, func(c CDROM) bool { return c.ID == id })
	if i < 0 {
		return fmt.Errorf("CD-ROM drive %s: %w", id, ErrNotFound)
	}
	next.CDROMs[i].Path = path
	if err := next.Validate(); err != nil {
		return err
	}
	var f *os.File
	if path != "" {
		if f, err = openLayer(path, false); err != nil {
			return err
		}
		defer f.Close()
	}
	if err := p.qmp.OpenTray(ctx, cdID(id), true); err != nil {
		return err
	}
	if err := p.qmp.RemoveMedium(ctx, cdID(id)); err != nil {
		return err
	}
	node := cdNode(id)
	if err := p.dropLayer(ctx, node); err != nil {
		return err
	}
	if f != nil {
		name, err := p.passSet(ctx, node, f)
		if err != nil {
			return err
		}
		if err := p.qmp.BlockdevAdd(ctx, fileNode(fileOf(node), name, WriteBack, true)); err != nil {
			return err
		}
		if err := p.qmp.BlockdevAdd(ctx, formatNode(node, Raw, fileOf(node), "", true)); err != nil {
			return err
		}
		if err := p.qmp.InsertMedium(ctx, cdID(id), node); err != nil {
			return err
		}
	}
	if err := p.qmp.CloseTray(ctx, cdID(id)); err != nil {
		return err
	}
	return p.change(func(s *state) { s.Spec = next })
}

// disk finds a disk of the machine.
func (p *Process) disk(id string) (Disk, error) {
	s := p.Spec()
	for _, d := range s.Disks {
		if d.ID == id {
			return d, nil
		}
	}
	return Disk{}, fmt.Errorf("disk %s: %w", id, ErrNotFound)
}

func (p *Process) noHotplug(what string) error {
	return fmt.Errorf("%s on %s cannot be plugged while the machine runs: %w; stop the machine first", what, p.hardware().Machine, guest.ErrUnsupported)
}

// wrap names the operation, its object and the machine in an error.
func (p *Process) wrap(op, id string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, qmp.ErrGone) {
		err = fmt.Errorf("%w: %w", ErrNotRunning, err)
	}
	return fmt.Errorf("%s %s of machine %s: %w", op, id, p.Spec().Name, err)
}

// undoContext lets a way back go on after the caller's context has ended.
func (p *Process) undoContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), undoGrace)
}
