package qemu

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"drover/internal/qmp"
)

const (
	// bitmapGrain is the granularity of bitmaps in bytes, the block size of repositories by default.
	bitmapGrain = 64 << 10
	// BitmapPrefix begins the names of bitmaps that Drover makes. Others are left alone.
	BitmapPrefix = "drover-"
)

// Bitmap tracks what is written to a disk.
type Bitmap struct {
	Name      string
	Node      string // layer that has it: the active one
	Recording bool
	// Lost: QEMU ended out of order while it recorded, so that it says nothing.
	Lost  bool
	Dirty int64 // bytes
}

// Bitmaps lists Drover's bitmaps of the active layers, by disk.
func (p *Process) Bitmaps(ctx context.Context) (map[string][]Bitmap, error) {
	nodes, err := p.qmp.QueryNamedBlockNodes(ctx)
	if err != nil {
		return nil, p.wrap("list bitmaps", "", err)
	}
	out := map[string][]Bitmap{}
	for _, d := range p.Spec().Disks {
		top := d.Layers[len(d.Layers)-1].ID
		out[d.ID] = nil
		for _, n := range nodes {
			if n.NodeName != top {
				continue
			}
			for _, b := range n.Bitmaps {
				if strings.HasPrefix(b.Name, BitmapPrefix) {
					out[d.ID] = append(out[d.ID], Bitmap{Name: b.Name, Node: top, Recording: b.Recording, Lost: b.Inconsistent, Dirty: b.Count})
				}
			}
		}
	}
	return out, nil
}

// MergeBitmap adds what from tracked to into, which goes on to record, and removes from: what was to begin anew has failed.
func (p *Process) MergeBitmap(ctx context.Context, disk, into, from string) (err error) {
	defer func() { err = p.wrap("merge bitmaps of disk", disk, err) }()
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	d, err := p.disk(disk)
	if err != nil {
		return err
	}
	node := d.Layers[len(d.Layers)-1].ID
	a, b := qmp.BitmapName{Node: node, Name: into}, qmp.BitmapName{Node: node, Name: from}
	return p.qmp.Transaction(ctx, qmp.EnableBitmapAction(a), qmp.MergeBitmapAction(a, b), qmp.RemoveBitmapAction(b))
}

// RemoveBitmap removes a bitmap of a disk. One that is not there is no error.
func (p *Process) RemoveBitmap(ctx context.Context, disk, name string) (err error) {
	defer func() { err = p.wrap("remove a bitmap of disk", disk, err) }()
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	all, err := p.Bitmaps(ctx)
	if err != nil {
		return err
	}
	for _, b := range all[disk] {
		if b.Name == name {
			return p.qmp.RemoveBitmap(ctx, qmp.BitmapName{Node: b.Node, Name: name})
		}
	}
	return nil
}

// keeps says whether an image can keep bitmaps: qcow2 can.
func (p *Process) keeps(layer string) bool {
	for _, d := range p.Spec().Disks {
		for _, l := range d.Layers {
			if l.ID == layer {
				return l.Format == Qcow2
			}
		}
	}
	return false
}

// tracked are those of some layers that have bitmaps to carry.
func (p *Process) tracked(ctx context.Context, layers map[string]string) ([]string, error) {
	nodes, err := p.qmp.QueryNamedBlockNodes(ctx)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, layer := range layers {
		if len(carryBitmaps(nodes, layer, "")) > 0 {
			out = append(out, layer)
		}
	}
	return out, nil
}

// carryBitmaps are the actions by which the bitmaps of a layer go over to the one that is put on top of it, in the transaction
// that does so. They leave the layer below, where they would be stale.
func carryBitmaps(nodes []qmp.BlockNode, from, to string) []qmp.Action {
	i := slices.IndexFunc(nodes, func(n qmp.BlockNode) bool { return n.NodeName == from })
	if i < 0 {
		return nil
	}
	var out []qmp.Action
	for _, b := range nodes[i].Bitmaps {
		if !strings.HasPrefix(b.Name, BitmapPrefix) || b.Inconsistent || b.Busy {
			continue
		}
		old, new := qmp.BitmapName{Node: from, Name: b.Name}, qmp.BitmapName{Node: to, Name: b.Name}
		out = append(out,
			qmp.AddBitmapAction(qmp.BitmapAdd{BitmapName: new, Granularity: b.Granularity, Persistent: true, Disabled: !b.Recording}),
			qmp.MergeBitmapAction(new, old), qmp.RemoveBitmapAction(old))
	}
	return out
}

// deleteNode removes a node that may be there no more.
func (p *Process) deleteNode(ctx context.Context, name string) error {
	err := p.qmp.BlockdevDel(ctx, name)
	if err != nil && isRefusal(err) {
		nodes, qerr := p.qmp.QueryNamedBlockNodes(ctx)
		if qerr != nil {
			return qerr
		}
		if !slices.ContainsFunc(nodes, func(n qmp.BlockNode) bool { return n.NodeName == name }) {
			return nil
		}
	}
	return err
}

// dropFleece removes a fleece's nodes, from the top down, and lets QEMU close its file, which has the first one's name.
func (p *Process) dropFleece(ctx context.Context, format string, below ...string) error {
	for _, node := range append([]string{format}, below...) {
		if err := p.deleteNode(ctx, node); err != nil {
			return err
		}
	}
	sets, err := p.qmp.QueryFDSets(ctx)
	if err != nil {
		return err
	}
	for _, s := range sets {
		if slices.ContainsFunc(s.FDs, func(fd qmp.SetFD) bool { return fd.Opaque == format }) {
			p.dropSet(ctx, fmt.Sprintf("/dev/fdset/%d", s.ID))
		}
	}
	return nil
}

// reconcilePoints removes what the points of an agent before have left: exports, filters, fleece. Their files have no name, so that
// they go with this. Bitmaps stay.
func (p *Process) reconcilePoints(ctx context.Context) error {
	mine := func(name string) bool { return strings.HasPrefix(name, pointPrefix) }
	if err := p.qmp.RemoveExports(ctx, func(e qmp.Export) bool { return mine(e.ID) }); err != nil {
		return err
	}
	if err := p.qmp.NBDServerStop(ctx); err != nil && !isRefusal(err) {
		return err
	}
	nodes, err := p.qmp.QueryNamedBlockNodes(ctx)
	if err != nil {
		return err
	}
	var points []pointNode
	for _, n := range nodes {
		if pn, ok := parsePointNode(n.NodeName); ok {
			points = append(points, pn)
		}
	}
	for _, pn := range points {
		if pn.kind == "a" {
			if err := p.deleteNode(ctx, pn.name); err != nil {
				return err
			}
		}
	}
	// The last one is on top.
	slices.SortFunc(points, func(a, b pointNode) int { return b.n - a.n })
	blocks, err := p.qmp.QueryBlock(ctx)
	if err != nil {
		return err
	}
	for _, b := range blocks {
		id, ok := strings.CutPrefix(deviceOf(b.QDev), "disk-")
		if !ok || b.Inserted == nil || !mine(b.Inserted.NodeName) {
			continue
		}
		d, err := p.disk(id)
		if err != nil {
			return err
		}
		if err := p.popFilters(ctx, id, b.Inserted.NodeName, d.Layers[len(d.Layers)-1].ID, points); err != nil {
			return err
		}
	}
	for _, kind := range []string{"c", "f", "fb", "ff"} {
		for _, pn := range points {
			if pn.kind != kind {
				continue
			}
			err := p.deleteNode(ctx, pn.name)
			if kind == "f" {
				err = errors.Join(err, p.dropFleece(ctx, pn.name, pn.name+"b", pn.name+"f"))
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// popFilters takes the filters out of a disk, from the top down.
func (p *Process) popFilters(ctx context.Context, disk, at, layer string, points []pointNode) error {
	var stack []string
	for _, pn := range points {
		if pn.kind == "c" && pn.disk == disk {
			stack = append(stack, pn.name)
		}
	}
	i := slices.Index(stack, at)
	if i < 0 {
		return fmt.Errorf("disk %s uses %s: %w", disk, at, ErrNotFound)
	}
	// Filters above are those that the device was not switched to.
	for _, name := range stack[:i] {
		if err := p.deleteNode(ctx, name); err != nil {
			return err
		}
	}
	for stack = stack[i:]; len(stack) > 0; stack = stack[1:] {
		below := layer
		if len(stack) > 1 {
			below = stack[1]
		}
		if err := p.qmp.SetDrive(ctx, diskID(disk), below); err != nil {
			return err
		}
		if err := p.deleteNode(ctx, stack[0]); err != nil {
			return err
		}
	}
	return nil
}

// pointNode is a node's name taken apart.
type pointNode struct {
	name, disk, kind string
	n                int
}

func parsePointNode(name string) (pointNode, bool) {
	parts := strings.Split(name, "_")
	if len(parts) != 4 || parts[0]+"_" != pointPrefix {
		return pointNode{}, false
	}
	pn := pointNode{name: name, disk: parts[2], kind: parts[3]}
	if _, err := fmt.Sscanf(parts[1], "%d", &pn.n); err != nil {
		return pointNode{}, false
	}
	return pn, true
}
