package qemu

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"drover/internal/guest"
)

// AddSockets plugs CPUs into the running machine until it has count sockets. CPUs that were added stay if a later one
// fails; Spec tells what is there. CPUs are not taken away from a running guest: many guests crash of it.
func (p *Process) AddSockets(ctx context.Context, count int) (err error) {
	defer func() { err = p.wrap("add CPUs to", fmt.Sprint(count, " sockets"), err) }()
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	s := p.Spec()
	have := s.CPU.Sockets + len(s.CPU.Plugged)
	switch {
	case !p.hardware().CPUHotplug || s.CPU.MaxSockets <= s.CPU.Sockets:
		return fmt.Errorf("the machine was started without room for more CPUs: %w; stop it and set max_sockets", guest.ErrUnsupported)
	case count < have:
		return fmt.Errorf("it has %d sockets: CPUs are not taken from a running guest: %w; stop the machine first", have, guest.ErrUnsupported)
	case count > s.CPU.MaxSockets:
		return bad("at most %d sockets were set as max_sockets", s.CPU.MaxSockets)
	}
	places, err := p.qmp.QueryHotpluggableCPUs(ctx)
	if err != nil {
		return err
	}
	taken := map[[2]int]bool{}
	for _, pl := range places {
		if pl.QOMPath != "" && pl.Props.Socket != nil && pl.Props.Core != nil {
			taken[[2]int{*pl.Props.Socket, *pl.Props.Core}] = true
		}
	}
	for socket := s.CPU.Sockets; socket < s.CPU.MaxSockets && have < count; socket++ {
		if slices.Contains(s.CPU.Plugged, socket) {
			continue
		}
		for core := range s.CPU.Cores {
			if taken[[2]int{socket, core}] { // an earlier try ended in the middle
				continue
			}
			if err := p.qmp.DeviceAdd(ctx, cpuDevice(s.cpuModel(p.hardware()), socket, core).Args()); err != nil {
				return err
			}
		}
		have++
		if err := p.change(func(st *state) { st.Spec.CPU.Plugged = append(st.Spec.CPU.Plugged, socket) }); err != nil {
			return err
		}
	}
	return nil
}

// AddMemory plugs a DIMM into the running machine. A guest uses it when it sets it online, as Linux distributions do.
func (p *Process) AddMemory(ctx context.Context, mib int64) (err error) {
	defer func() { err = p.wrap("add memory", fmt.Sprint(mib, " MiB"), err) }()
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	next := p.Spec()
	m := &next.Memory
	if p.hardware().MemorySlots == 0 || m.MaxMiB <= m.MiB {
		return fmt.Errorf("the machine was started without room for more memory: %w; stop it and set max_mib", guest.ErrUnsupported)
	}
	total, used := m.MiB, map[int]bool{}
	for _, d := range m.DIMMs {
		total, used[d.Slot] = total+d.MiB, true
	}
	slot := 0
	for used[slot] {
		slot++
	}
	if slot >= p.hardware().MemorySlots || mib <= 0 || mib > m.MaxMiB-total {
		return bad("memory: %d MiB of at most %d are there, in %d of %d extra slots; stop the machine to change the limits", total, m.MaxMiB, len(m.DIMMs), p.hardware().MemorySlots)
	}
	m.DIMMs = append(m.DIMMs, DIMM{Slot: slot, MiB: mib})
	if err := next.Validate(); err != nil {
		return err
	}
	path := dimmPath(m.Path, slot)
	if err := p.change(func(s *state) { s.Spec = next }); err != nil {
		return err
	}
	object := false
	defer func() {
		if err != nil {
			undo, cancel := p.undoContext(ctx)
			defer cancel()
			if object {
				err = errors.Join(err, p.qmp.ObjectDel(undo, dimmRAM(slot)))
			}
			err = errors.Join(err, p.forgetDIMM(slot))
		}
	}()
	if err := makeRAM(path, mib, p.opt.UID, p.opt.GID); err != nil {
		return err
	}
	if err := p.qmp.ObjectAdd(ctx, ramBackend(dimmRAM(slot), path, mib)); err != nil {
		return err
	}
	object = true
	return p.qmp.DeviceAdd(ctx, dimmDevice(slot).Args())
}

// forgetDIMM removes a DIMM that is not there from the spec, and its file.
func (p *Process) forgetDIMM(slot int) error {
	removeDIMM(p.Spec().Memory.Path, slot)
	return p.change(func(s *state) {
		s.Spec.Memory.DIMMs = slices.DeleteFunc(s.Spec.Memory.DIMMs, func(d DIMM) bool { return d.Slot == slot })
	})
}

// Balloon asks the guest to make do with mib of its memory. It does so slowly, or not at all without the driver; see
// Stats for what it has.
func (p *Process) Balloon(ctx context.Context, mib int64) (err error) {
	defer func() { err = p.wrap("balloon memory to", fmt.Sprint(mib, " MiB"), err) }()
	s := p.Spec()
	total := s.Memory.MiB
	for _, d := range s.Memory.DIMMs {
		total += d.MiB
	}
	if mib < 16 || mib > total {
		return bad("memory: from 16 to %d MiB", total)
	}
	return p.qmp.Balloon(ctx, mib<<20)
}
