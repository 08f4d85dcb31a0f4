package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	v1 "drover/api/drover/v1"
	"drover/internal/qemu"
	"drover/internal/unwind"
)

// changeKind is one kind of change to a running machine.
type changeKind int

const (
	addDisk changeKind = iota
	removeDisk
	growDisk
	changeCD
	addNIC
	removeNIC
	setLink
	moveNIC // to another network, profile or addresses
	addCPUs
	setMemory
)

// change is one of them; name is the disk's, drive's or NIC's.
type change struct {
	kind changeKind
	name string
}

// drift compares what a running machine has with what it should have: what can be changed live, and the field paths
// of what takes effect at the next start.
func drift(have, want *v1.VMSpec) (changes []change, restart []string) {
	later := func(same bool, path string) {
		if !same {
			restart = append(restart, path)
		}
	}
	micro := have.GetHardware().GetMachine() == v1.MachineKind_MACHINE_KIND_MICROVM
	later(equal(have.GetHardware(), want.GetHardware()), "spec.hardware")
	later(have.GetOs() == want.GetOs(), "spec.os")
	later(have.GetKernelImage() == want.GetKernelImage(), "spec.kernel_image")
	later(have.GetKernelCmdline() == want.GetKernelCmdline(), "spec.kernel_cmdline")
	later(equal(have.GetCloudInit(), want.GetCloudInit()), "spec.cloud_init")
	later(have.GetMaxCpus() == want.GetMaxCpus(), "spec.max_cpus")
	later(have.GetMaxMemoryBytes() == want.GetMaxMemoryBytes(), "spec.max_memory_bytes")
	switch h, w := have.GetCpus(), want.GetCpus(); {
	case w > h && w <= have.GetMaxCpus() && !micro:
		changes = append(changes, change{kind: addCPUs})
	default:
		later(h == w, "spec.cpus")
	}
	switch h, w := have.GetMemoryBytes(), want.GetMemoryBytes(); {
	case w < h || w > h && w <= have.GetMaxMemoryBytes() && !micro && (w-h)%(128<<20) == 0:
		changes = append(changes, change{kind: setMemory})
	default:
		later(h == w, "spec.memory_bytes")
	}
	c, r := driftDisks(have, want, micro)
	changes, restart = append(changes, c...), append(restart, r...)
	c, r = driftNICs(have, want, micro)
	return append(changes, c...), append(restart, r...)
}

func driftDisks(have, want *v1.VMSpec, micro bool) (changes []change, restart []string) {
	for _, h := range have.GetDisks() {
		if diskSpec(want, h.GetName()) == nil {
			if micro {
				restart = append(restart, "spec.disks."+h.GetName())
				continue
			}
			changes = append(changes, change{removeDisk, h.GetName()})
		}
	}
	for _, w := range want.GetDisks() {
		h := diskSpec(have, w.GetName())
		switch {
		case h == nil && micro:
			restart = append(restart, "spec.disks."+w.GetName())
		case h == nil:
			changes = append(changes, change{addDisk, w.GetName()})
		default:
			if w.GetSizeBytes() > h.GetSizeBytes() {
				changes = append(changes, change{growDisk, w.GetName()})
			}
			if w.GetBus() != h.GetBus() || w.GetBootOrder() != h.GetBootOrder() || w.GetReadOnly() != h.GetReadOnly() {
				restart = append(restart, "spec.disks."+w.GetName())
			}
		}
	}
	drives := map[string]*v1.CDROMSpec{}
	for _, h := range have.GetCdroms() {
		drives[h.GetName()] = h
	}
	for _, w := range want.GetCdroms() {
		h := drives[w.GetName()]
		delete(drives, w.GetName())
		switch {
		case h == nil || h.GetBootOrder() != w.GetBootOrder():
			restart = append(restart, "spec.cdroms."+w.GetName())
		case h.GetImage() != w.GetImage():
			changes = append(changes, change{changeCD, w.GetName()})
		}
	}
	for name := range drives {
		restart = append(restart, "spec.cdroms."+name)
	}
	return changes, restart
}

func driftNICs(have, want *v1.VMSpec, micro bool) (changes []change, restart []string) {
	for _, h := range have.GetNics() {
		if nicSpec(want, h.GetName()) == nil {
			if micro {
				restart = append(restart, "spec.nics."+h.GetName())
				continue
			}
			changes = append(changes, change{removeNIC, h.GetName()})
		}
	}
	for _, w := range want.GetNics() {
		h := nicSpec(have, w.GetName())
		if h == nil {
			if micro {
				restart = append(restart, "spec.nics."+w.GetName())
			} else {
				changes = append(changes, change{addNIC, w.GetName()})
			}
			continue
		}
		if h.GetAdapter() != w.GetAdapter() || !strings.EqualFold(h.GetMac(), w.GetMac()) {
			restart = append(restart, "spec.nics."+w.GetName())
		}
		if h.GetNetwork() != w.GetNetwork() || h.GetProfile() != w.GetProfile() || !slices.Equal(h.GetAddresses(), w.GetAddresses()) {
			changes = append(changes, change{moveNIC, w.GetName()})
		}
		if h.GetLinkDown() != w.GetLinkDown() {
			changes = append(changes, change{setLink, w.GetName()})
		}
	}
	return changes, restart
}

// unplugTimeout is how long a guest may take to let go of a device.
const unplugTimeout = 30 * time.Second

// hot brings the running machine to the spec, one change after another. Each is noted when it is done.
func (m *machine) hot(ctx context.Context, vm *v1.VM) error {
	p := m.process()
	if p == nil {
		return nil
	}
	have := m.local.Run.spec()
	changes, _ := drift(have, vm.GetSpec())
	var errs []error
	for _, c := range changes {
		if err := m.change(ctx, p, have, vm.GetSpec(), c); err != nil {
			// The others need not wait for one that a guest refuses.
			errs = append(errs, err)
			continue
		}
		if err := m.local.Run.setSpec(have); err != nil {
			return err
		}
		if err := m.save(); err != nil {
			return err
		}
	}
	return errors.Join(errs...)
}

// change does one change, and puts it into have.
func (m *machine) change(ctx context.Context, p *qemu.Process, have, want *v1.VMSpec, c change) error {
	ctx, cancel := context.WithTimeout(ctx, unplugTimeout)
	defer cancel()
	switch c.kind {
	case addDisk:
		d := diskSpec(want, c.name)
		q, err := m.makeDisk(ctx, d)
		if err != nil {
			return fmt.Errorf("add disk %s: %w", c.name, err)
		}
		if err := p.AddDisk(ctx, q); err != nil {
			return err
		}
		have.Disks = append(have.Disks, clone(d))
	case removeDisk:
		return m.hotRemoveDisk(ctx, p, have, c.name)
	case growDisk:
		return m.hotGrowDisk(ctx, p, have, diskSpec(want, c.name))
	case changeCD:
		return m.hotChangeCD(ctx, p, have, want, c.name)
	case addNIC:
		return m.hotAddNIC(ctx, p, have, want, nicSpec(want, c.name))
	case removeNIC:
		n := nicSpec(have, c.name)
		if err := p.RemoveNIC(ctx, m.qemuNIC(n).ID); err != nil && !errors.Is(err, qemu.ErrNotFound) {
			return err
		}
		if err := m.removeTAP(ctx, c.name); err != nil {
			return err
		}
		m.local.unplace(placeNIC, "", c.name)
		have.Nics = without(have.Nics, n)
	case moveNIC:
		h, w := nicSpec(have, c.name), nicSpec(want, c.name)
		next := clone(h)
		next.Network, next.Profile, next.Addresses = w.GetNetwork(), w.GetProfile(), w.GetAddresses()
		if err := m.a.net.SetMTU(nil, tapName(m.uid, c.name), m.a.mtu(next.GetNetwork())); err != nil {
			return err
		}
		if err := m.a.fabric.change(ctx, m.uid, next); err != nil {
			return fmt.Errorf("NIC %s: %w", c.name, err)
		}
		h.Network, h.Profile, h.Addresses = next.GetNetwork(), next.GetProfile(), next.GetAddresses()
	case setLink:
		w := nicSpec(want, c.name)
		next := clone(nicSpec(have, c.name))
		next.LinkDown = w.GetLinkDown()
		if err := m.a.fabric.change(ctx, m.uid, next); err != nil {
			return fmt.Errorf("NIC %s: %w", c.name, err)
		}
		if err := p.SetLink(ctx, m.qemuNIC(w).ID, !w.GetLinkDown()); err != nil {
			return err
		}
		nicSpec(have, c.name).LinkDown = w.GetLinkDown()
	case addCPUs:
		if err := p.AddSockets(ctx, int(want.GetCpus())); err != nil {
			return err
		}
		have.Cpus = want.GetCpus()
	case setMemory:
		return m.hotMemory(ctx, p, have, want)
	}
	return nil
}

func (m *machine) hotAddNIC(ctx context.Context, p *qemu.Process, have, want *v1.VMSpec, n *v1.NICSpec) (err error) {
	var u unwind.Stack
	defer u.Undo(ctx, &err)
	tap, err := m.tap(ctx, &u, want, n)
	if err != nil {
		return err
	}
	defer tap.Close()
	if err := m.save(); err != nil { // its place
		return err
	}
	if err := p.AddNIC(ctx, m.qemuNIC(n), []*os.File{tap}); err != nil {
		return err
	}
	u.Commit()
	have.Nics = append(have.Nics, clone(n))
	return nil
}

// hotMemory plugs what is missing, or lets the balloon take what is too much.
func (m *machine) hotMemory(ctx context.Context, p *qemu.Process, have, want *v1.VMSpec) error {
	s := p.Spec()
	total := s.Memory.MiB
	for _, d := range s.Memory.DIMMs {
		total += d.MiB
	}
	target := want.GetMemoryBytes() >> 20
	if target > total {
		if err := p.AddMemory(ctx, target-total); err != nil {
			return err
		}
	}
	if err := p.Balloon(ctx, target); err != nil {
		return err
	}
	have.MemoryBytes = want.GetMemoryBytes()
	return nil
}

func without[T proto.Message](list []T, gone T) []T {
	var out []T
	for _, v := range list {
		if proto.Message(v) != proto.Message(gone) {
			out = append(out, v)
		}
	}
	return out
}

func equal(a, b proto.Message) bool { return proto.Equal(a, b) }
