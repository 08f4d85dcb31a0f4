package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"drover/internal/guest"
)

// AddNIC plugs a NIC into the running machine. taps are one TAP descriptor per queue; the caller closes them.
func (p *Process) AddNIC(ctx context.Context, n NIC, taps []*os.File) (err error) {
	defer func() { err = p.wrap("add NIC", n.ID, err) }()
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	next := p.Spec()
	next.NICs = append(next.NICs, n)
	if err := next.Validate(); err != nil {
		return err
	}
	if !p.hardware().Adapters[n.Adapter].Hotplug {
		return p.noHotplug(string(n.Adapter))
	}
	if n.User != nil {
		return bad("a user network cannot be plugged while the machine runs")
	}
	if len(taps) != max(n.Queues, 1) {
		return bad("%d TAP descriptors for %d queues", len(taps), max(n.Queues, 1))
	}
	if err := p.change(func(s *state) { s.Spec = next }); err != nil {
		return err
	}
	netdev := false
	defer func() {
		if err != nil {
			undo, cancel := p.undoContext(ctx)
			defer cancel()
			if netdev {
				err = errors.Join(err, p.qmp.NetdevDel(undo, netdevOf(n.ID)))
			}
			err = errors.Join(err, p.forgetNIC(n.ID))
		}
	}()
	var names []string
	for i, f := range taps {
		name := fmt.Sprintf("%s-%d", netdevOf(n.ID), i)
		if err := p.qmp.GetFD(ctx, name, f); err != nil {
			return err
		}
		names = append(names, name)
	}
	key := "fd"
	if len(names) > 1 {
		key = "fds"
	}
	if err := p.qmp.NetdevAdd(ctx, guest.Props{{Key: "type", Value: "tap"}, {Key: "id", Value: netdevOf(n.ID)},
		{Key: key, Value: strings.Join(names, ":")}, {Key: "vhost", Value: false}}); err != nil {
		return err
	}
	netdev = true
	dev, err := nicDevice(p.hardware(), &n)
	if err != nil {
		return err
	}
	if err := p.qmp.DeviceAdd(ctx, dev.Args()); err != nil {
		return err
	}
	if n.Down {
		return p.qmp.SetLink(ctx, nicID(n.ID), false)
	}
	return nil
}

// RemoveNIC unplugs a NIC; see RemoveDisk for guests that don't let go. The TAP is the caller's to delete afterwards.
func (p *Process) RemoveNIC(ctx context.Context, id string) (err error) {
	defer func() { err = p.wrap("remove NIC", id, err) }()
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	n, err := p.nic(id)
	if err != nil {
		return err
	}
	if !p.hardware().Adapters[n.Adapter].Hotplug {
		return p.noHotplug(string(n.Adapter))
	}
	if err := p.unplug(ctx, nicID(id)); err != nil {
		return err
	}
	undo, cancel := p.undoContext(ctx)
	defer cancel()
	return errors.Join(p.qmp.NetdevDel(undo, netdevOf(id)), p.forgetNIC(id))
}

// SetLink plugs or unplugs a NIC's cable, as the guest sees it.
func (p *Process) SetLink(ctx context.Context, id string, up bool) (err error) {
	defer func() { err = p.wrap("set link of NIC", id, err) }()
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := p.nic(id); err != nil {
		return err
	}
	if err := p.qmp.SetLink(ctx, nicID(id), up); err != nil {
		return err
	}
	return p.change(func(s *state) {
		for i := range s.Spec.NICs {
			if s.Spec.NICs[i].ID == id {
				s.Spec.NICs[i].Down = !up
			}
		}
	})
}

func (p *Process) nic(id string) (NIC, error) {
	s := p.Spec()
	for _, n := range s.NICs {
		if n.ID == id {
			return n, nil
		}
	}
	return NIC{}, fmt.Errorf("NIC %s: %w", id, ErrNotFound)
}

func (p *Process) forgetNIC(id string) error {
	return p.change(func(s *state) {
		s.Spec.NICs = slices.DeleteFunc(s.Spec.NICs, func(n NIC) bool { return n.ID == id })
	})
}
