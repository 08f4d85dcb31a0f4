package vswitch

import (
	"fmt"
	"slices"

	"github.com/cilium/ebpf/link"
)

// Foreign describes programs of others on the device: tcx ones with name, id, direction and whether they see frames before ours or only those that ours
// passes on; and classic tc filters, which always run behind tcx. A device that is gone is an error.
func (d *Datapath) Foreign(ifindex int) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, ErrClosed
	}
	var out []string
	for _, p := range []pin{{ifindex, false}, {ifindex, true}} {
		var res *link.QueryResult
		err := d.net.Do(func() (err error) {
			res, err = link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: p.attach()})
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("look for programs on device %d: %w", ifindex, err)
		}
		var mine link.ID
		if a, err := d.openLink(p); err != nil {
			return nil, err
		} else if a != nil {
			mine = a.id
			a.link.Close()
		}
		isMine := func(ap link.AttachedProgram) bool {
			id, ok := ap.LinkID()
			return ok && mine != 0 && id == mine
		}
		at := slices.IndexFunc(res.Programs, isMine)
		for i, ap := range res.Programs {
			if i == at {
				continue
			}
			out = append(out, describe(ap, p.out, at, i))
		}
	}
	name := d.deviceName(ifindex)
	if name == "" {
		return nil, fmt.Errorf("look for programs on device %d: it is gone", ifindex)
	}
	filters, err := d.net.Filters(name)
	if err != nil {
		return nil, err
	}
	for _, f := range filters {
		out = append(out, "tc filter "+f+", behind ours")
	}
	return out, nil
}

// describe says whose program it is that stands at i when ours stands at ours (-1: nowhere).
func describe(ap link.AttachedProgram, egress bool, ours, i int) string {
	direction, where := "ingress", "alone: ours is not attached"
	if egress {
		direction = "egress"
	}
	switch {
	case ours >= 0 && i < ours:
		where = "before ours"
	case ours >= 0:
		where = "behind ours"
	}
	name, err := programName(ap.ID)
	if err != nil || name == "" {
		name = "?" // gone meanwhile, or never named
	}
	return fmt.Sprintf("tcx %s program %s (id %d), %s", direction, name, ap.ID, where)
}
