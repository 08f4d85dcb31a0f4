package vswitch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"drover/internal/vswitch/table"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// pin is a pinned link's place: links/IFINDEX-in or -out.
type pin struct {
	ifindex int
	out     bool
}

func (p pin) name() string {
	if p.out {
		return fmt.Sprintf("%d-out", p.ifindex)
	}
	return fmt.Sprintf("%d-in", p.ifindex)
}

func (p pin) attach() ebpf.AttachType {
	if p.out {
		return ebpf.AttachTCXEgress
	}
	return ebpf.AttachTCXIngress
}

func (d *Datapath) path(p pin) string { return filepath.Join(d.linkDir(), p.name()) }

// pins lists what is pinned in links/.
func (d *Datapath) pins() ([]pin, error) {
	entries, err := os.ReadDir(d.linkDir())
	if err != nil {
		return nil, fmt.Errorf("list the datapath's links: %w", err)
	}
	var out []pin
	for _, e := range entries {
		index, direction, _ := strings.Cut(e.Name(), "-")
		i, err := strconv.Atoi(index)
		if err != nil || direction != "in" && direction != "out" {
			continue // not ours to judge
		}
		out = append(out, pin{i, direction == "out"})
	}
	slices.SortFunc(out, func(a, b pin) int {
		return cmp.Or(cmp.Compare(a.ifindex, b.ifindex), strings.Compare(b.name(), a.name()))
	})
	return out, nil
}

// program is the one for a kind of device, or nil.
func (d *Datapath) program(kind Kind, out bool) *ebpf.Program {
	switch {
	case kind == KindPort && out:
		return d.objs.PortOut
	case kind == KindPort:
		return d.objs.PortIn
	case kind == KindUplink && !out:
		return d.objs.UplinkIn
	case kind == KindTunnel && !out:
		return d.objs.TunnelIn
	}
	return nil
}

// kindOf tells a device's kind by the name of its program, which every build keeps.
func kindOf(program string) (Kind, bool) {
	switch program {
	case datapathProgPortIn, datapathProgPortOut:
		return KindPort, true
	case datapathProgUplinkIn:
		return KindUplink, true
	case datapathProgTunnelIn:
		return KindTunnel, true
	}
	return 0, false
}

// attached is a pinned link and what it is about.
type attached struct {
	pin
	link    link.Link
	id      link.ID
	program ebpf.ProgramID
	kind    Kind
	known   bool // the program has a name of ours
}

// openLink opens a pinned link. It is nil if nothing is pinned, or if the link is not on the device of that index any more: a device that is gone
// leaves its links defunct, and another device may get its index.
func (d *Datapath) openLink(p pin) (_ *attached, err error) {
	l, err := link.LoadPinnedLink(d.path(p), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the link of device %d: %w", p.ifindex, err)
	}
	info, err := l.Info()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("ask about the link of device %d: %w", p.ifindex, err), l.Close())
	}
	tcx := info.TCX()
	if tcx == nil || int(tcx.Ifindex) != p.ifindex || ebpf.AttachType(tcx.AttachType) != p.attach() {
		return nil, l.Close()
	}
	a := &attached{pin: p, link: l, id: info.ID, program: info.Program}
	name, err := programName(info.Program)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("ask about the program of device %d: %w", p.ifindex, err), l.Close())
	}
	a.kind, a.known = kindOf(name)
	return a, nil
}

func programName(id ebpf.ProgramID) (string, error) {
	prog, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return "", err
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		return "", err
	}
	return info.Name, nil
}

// unpin removes a pin, and with it the link and its program from the device.
func (d *Datapath) unpin(p pin) error {
	if err := os.Remove(d.path(p)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("take the datapath off device %d: %w", p.ifindex, err)
	}
	return nil
}

// Attach puts the programs of its kind on a device, at the tail: programs of others see frames first. One that has them keeps its
// link. A port whose row is not there yet passes nothing. The kernel waits for running packets at each program that it adds, some milliseconds, and twice for a
// port: whoever sets a port up can do other things meanwhile. dev.Name is for errors only.
func (d *Datapath) Attach(ctx context.Context, dev Device) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if dev.Ifindex <= 0 || d.program(dev.Kind, false) == nil {
		return fmt.Errorf("attach the datapath to device %q: index %d and %v make no device of the switch", dev.Name, dev.Ifindex, dev.Kind)
	}
	// The way out first: from the moment that frames come in, none goes out that the datapath did not send.
	for _, out := range []bool{true, false} {
		if err := d.attach(pin{dev.Ifindex, out}, dev); err != nil {
			return fmt.Errorf("attach the datapath to %s %q (index %d): %w", dev.Kind, dev.Name, dev.Ifindex, err)
		}
		if err := d.build.at("attach"); err != nil {
			return err
		}
	}
	return nil
}

func (d *Datapath) attach(p pin, dev Device) error {
	prog := d.program(dev.Kind, p.out)
	a, err := d.openLink(p)
	if err != nil {
		return err
	}
	if a != nil {
		defer a.link.Close()
		if prog != nil && a.known && a.kind == dev.Kind {
			return nil // of this build, or of the one before until the first Apply
		}
		if prog != nil {
			if err = a.link.Update(prog); !errors.Is(err, unix.ENOLINK) {
				return err
			}
		}
	}
	if err := d.unpin(p); err != nil {
		return err
	}
	if prog == nil {
		return nil
	}
	return d.net.Do(func() error {
		l, err := link.AttachTCX(link.TCXOptions{Interface: p.ifindex, Program: prog, Attach: p.attach(), Anchor: link.Tail()})
		if errors.Is(err, ebpf.ErrNotSupported) {
			return fmt.Errorf("%w: it has no tcx links; Drover's switch needs Linux 6.6 or later", ErrUnsupported)
		}
		if err != nil {
			return err
		}
		defer l.Close()
		if err := d.build.at("pin"); err != nil {
			return err
		}
		return l.Pin(d.path(p))
	})
}

// Detach takes the programs off a device and removes its rows, first that of the port. A device that is gone is no error.
func (d *Datapath) Detach(ifindex int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return ErrClosed
	}
	if err := d.detach(ifindex); err != nil {
		return fmt.Errorf("detach device %d: %w", ifindex, err)
	}
	return nil
}

func (d *Datapath) detach(ifindex int) error {
	if err := d.forget(uint32(ifindex)); err != nil {
		return err
	}
	return errors.Join(d.unpin(pin{ifindex, false}), d.unpin(pin{ifindex, true}))
}

// forget removes all rows that name the device: that of the port first.
func (d *Datapath) forget(ifindex uint32) error {
	h := d.have
	o := &outcome{}
	drop(d.maps.ports, h.Ports, o, func(k uint32, _ table.Port) bool { return k == ifindex })
	if err := errors.Join(o.err(), d.build.at("detach")); err != nil {
		return err
	}
	drop(d.maps.uplinks, h.Uplinks, o, func(k uint32, _ table.Uplink) bool { return k == ifindex })
	drop(d.maps.uplinkVLANs, h.UplinkVLANs, o, func(k table.UplinkKey, _ table.UplinkVLAN) bool { return k.Ifindex == ifindex })
	drop(d.maps.fdb, h.FDB, o, func(_ table.FDBKey, v table.FDBEntry) bool { return v.Place == table.PlaceLocal && v.Target == ifindex })
	drop(d.maps.groups, h.Groups, o, func(k table.GroupKey, _ uint8) bool {
		return k.Place == uint32(table.PlaceLocal) && k.Target == ifindex
	})
	drop(d.maps.members, h.Members, o, func(_ table.MemberKey, v table.Member) bool {
		return v.Place == table.PlaceLocal && v.Target == ifindex
	})
	drop(d.maps.macs, h.MACs, o, func(k table.MACKey, _ uint8) bool { return k.Ifindex == ifindex })
	drop(d.maps.trunks, h.Trunks, o, func(k table.TrunkKey, _ uint32) bool { return k.Ifindex == ifindex })
	h.Bindings = map[table.BindingKey]table.Binding{}
	if err := d.maps.bindings.read(h.Bindings); err != nil {
		return errors.Join(err, o.err())
	}
	drop(d.maps.bindings, h.Bindings, o, func(_ table.BindingKey, v table.Binding) bool { return v.Ifindex == ifindex })
	return o.err()
}

// drop removes the rows that match.
func drop[K, V comparable](r rows[K, V], have map[K]V, o *outcome, match func(K, V) bool) {
	c := change[K, V]{rows: r, have: have}
	for k, v := range have {
		if match(k, v) {
			c.gone = append(c.gone, k)
		}
	}
	c.remove(o.other)
}

// clearPorts takes their rows from all ports.
func (d *Datapath) clearPorts() error {
	o := &outcome{}
	drop(d.maps.ports, d.have.Ports, o, func(uint32, table.Port) bool { return true })
	return o.err()
}

// Attached lists devices that have links here. One that is gone is listed once: its pins and rows are removed.
func (d *Datapath) Attached() ([]Device, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, ErrClosed
	}
	return d.devices()
}

func (d *Datapath) devices() ([]Device, error) {
	pins, err := d.pins()
	if err != nil {
		return nil, err
	}
	var errs []error
	var out []Device
	seen := map[int]bool{} // device has a link that works
	var gone []int
	for _, p := range pins {
		a, err := d.openLink(p)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if a == nil {
			gone = append(gone, p.ifindex)
			errs = append(errs, d.unpin(p))
			continue
		}
		a.link.Close()
		if !seen[p.ifindex] && a.known {
			seen[p.ifindex] = true
			out = append(out, Device{Ifindex: p.ifindex, Name: d.deviceName(p.ifindex), Kind: a.kind})
		}
	}
	for _, ifindex := range slices.Compact(gone) {
		if seen[ifindex] {
			continue // one of its two links is lost: Attach makes it again
		}
		kind := KindPort
		if _, ok := d.have.Uplinks[uint32(ifindex)]; ok {
			kind = KindUplink
		}
		d.log.Info("a device of the switch is gone", "ifindex", ifindex, "kind", kind.String())
		errs = append(errs, d.forget(uint32(ifindex)))
		out = append(out, Device{Ifindex: ifindex, Kind: kind, Gone: true})
	}
	return out, errors.Join(errs...)
}

// removeGone is Attached for its side effect.
func (d *Datapath) removeGone() error {
	_, err := d.devices()
	return err
}

// deviceName is empty if there is no such device.
func (d *Datapath) deviceName(ifindex int) (name string) {
	_ = d.net.Do(func() error {
		if i, err := net.InterfaceByIndex(ifindex); err == nil {
			name = i.Name
		}
		return nil
	})
	return name
}
