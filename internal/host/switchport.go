package host

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/unwind"
	"drover/internal/vswitch"
	"drover/internal/vswitch/compile"
	"drover/internal/vswitch/table"
	"drover/internal/vswitch/team"
)

// nicPort is a NIC's port on this host, as its machine wants it.
type nicPort struct {
	name    string // "VM/NIC"
	uid     string // the VM's
	nic     string
	device  string
	ifindex uint32
	mac     table.MAC
	network string
	profile string // of the NIC; empty: the network's
	down    bool
	addrs   []netip.Addr
}

// key is the port's in the slot book: names of VMs come back, uids don't.
func (p *nicPort) key() string { return "port/" + p.uid + "/" + p.nic }

func newPort(uid, vm, device string, ifindex int, n *v1.NICSpec) (*nicPort, error) {
	p := &nicPort{
		name: vm + "/" + n.GetName(), uid: uid, nic: n.GetName(), device: device, ifindex: uint32(ifindex), network: n.GetNetwork(), profile: n.GetProfile(), down: n.GetLinkDown(),
	}
	var err error
	if p.mac, err = compile.ParseMAC(n.GetMac()); err != nil {
		return nil, err
	}
	for _, s := range n.GetAddresses() {
		a, err := compile.ParseAddr(s)
		if err != nil {
			return nil, err
		}
		p.addrs = append(p.addrs, a)
	}
	return p, nil
}

// plug puts a port into the switch. When it returns nil the port's whole policy is in force; otherwise there is no port.
func (f *fabric) plug(ctx context.Context, u *unwind.Stack, p *nicPort) error {
	err := f.do(ctx, func(ctx context.Context) error { return f.plugNow(ctx, p) })
	if err != nil {
		return err
	}
	u.Push("unplug port "+p.name, func(ctx context.Context) error { return f.unplug(ctx, p.uid, p.nic) })
	return nil
}

func (f *fabric) plugNow(ctx context.Context, p *nicPort) (err error) {
	if f.dp == nil {
		if err := f.open(ctx); err != nil {
			return err
		}
	}
	if old := f.ports[p.key()]; old != nil && old.ifindex != p.ifindex {
		if err := f.unplugNow(ctx, old); err != nil {
			return err
		}
	}
	slot, fresh, err := f.book.take(p.key())
	if err != nil {
		return err
	}
	if fresh { // before it is noted: an agent that is killed here gives the slot, and begins its counters, once more
		if err := f.dp.ResetCounters(slot); err != nil {
			f.book.release(p.key())
			return err
		}
	}
	if err := f.book.save(); err != nil {
		return fmt.Errorf("note the slot of port %s: %w", p.name, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.unplugNow(ctx, p))
		}
	}()
	// Attached before it has a row: until then nothing passes. Once it has one, all of it has.
	if err := f.dp.Attach(ctx, vswitch.Device{Ifindex: int(p.ifindex), Name: p.device, Kind: vswitch.KindPort}); err != nil {
		return fmt.Errorf("attach port %s to the switch: %w", p.name, err)
	}
	f.ports[p.key()] = p
	if err := f.rebuild(ctx); err != nil {
		var bad *vswitch.PortError
		if !errors.As(err, &bad) {
			return err
		}
		if portFailed(err, p.ifindex) {
			return fmt.Errorf("port %s: %w", p.name, err)
		}
	}
	return f.standing(p)
}

// portFailed says whether an error of the datapath is about a port.
func portFailed(err error, ifindex uint32) bool {
	switch x := err.(type) {
	case *vswitch.PortError:
		return x.Ifindex == ifindex
	case interface{ Unwrap() []error }:
		for _, e := range x.Unwrap() {
			if portFailed(e, ifindex) {
				return true
			}
		}
	case interface{ Unwrap() error }:
		return portFailed(x.Unwrap(), ifindex)
	}
	return false
}

// standing says why a port can't be used. What the manager, or a person at this host, may still set right is waited for.
func (f *fabric) standing(p *nicPort) error {
	var why []string
	for _, x := range f.result.Problems {
		if x.Port == p.name {
			why = append(why, x.Message)
		}
	}
	if !f.result.Ports[p.name] {
		return notYet("port %s: %s", p.name, strings.Join(why, "; "))
	}
	c := f.result.Connections[p.network]
	if c.Connects {
		return nil
	}
	why = nil
	for _, x := range f.problems() {
		if x.Network == p.network && x.Port == "" {
			why = append(why, x.Message)
		}
	}
	return notYet("this host can't connect VMs to network %s: %s", p.network, strings.Join(why, "; "))
}

// change brings a port to another spec of its NIC while it is in use.
func (f *fabric) change(ctx context.Context, uid string, n *v1.NICSpec) error {
	return f.do(ctx, func(ctx context.Context) error {
		key := (&nicPort{uid: uid, nic: n.GetName()}).key()
		old := f.ports[key]
		if old == nil {
			return fmt.Errorf("NIC %s has no port on the switch", n.GetName())
		}
		vm, _, _ := strings.Cut(old.name, "/")
		p, err := newPort(uid, vm, old.device, int(old.ifindex), n)
		if err != nil {
			return err
		}
		f.ports[key] = p
		err = f.rebuild(ctx)
		if err == nil || !portFailed(err, p.ifindex) {
			err = f.standing(p)
		}
		if err != nil {
			f.ports[key] = old
			return errors.Join(fmt.Errorf("change port %s: %w", p.name, err), f.rebuild(ctx))
		}
		return nil
	})
}

// unplug takes a port out of the switch. One that is not there is no error.
func (f *fabric) unplug(ctx context.Context, uid, nic string) error {
	return f.do(ctx, func(ctx context.Context) error {
		p := f.ports[(&nicPort{uid: uid, nic: nic}).key()]
		if p == nil {
			return nil
		}
		return f.unplugNow(ctx, p)
	})
}

// unplugAll takes out all ports of a VM.
func (f *fabric) unplugAll(ctx context.Context, uid string) error {
	return f.do(ctx, func(ctx context.Context) error {
		var errs []error
		for _, p := range f.sorted() {
			if p.uid == uid {
				errs = append(errs, f.unplugNow(ctx, p))
			}
		}
		return errors.Join(errs...)
	})
}

func (f *fabric) unplugNow(ctx context.Context, p *nicPort) error {
	if f.dp == nil {
		delete(f.ports, p.key())
		f.book.release(p.key())
		return f.book.save()
	}
	f.count()
	if err := f.dp.Detach(int(p.ifindex)); err != nil {
		return fmt.Errorf("detach port %s from the switch: %w", p.name, err)
	}
	delete(f.ports, p.key())
	delete(f.granted, p.key())
	if m := f.mirrors[p.key()]; m != nil {
		m.end()
		delete(f.mirrors, p.key())
	}
	f.macs.Forget(p.key())
	f.threats.Forget(p.ifindex)
	f.book.release(p.key())
	return errors.Join(f.book.save(), ignorePorts(f.rebuild(ctx)))
}

// sortErrors takes what went wrong with single ports, by device, out of an error of the datapath.
func sortErrors(err error) (ports map[uint32]error, rest error) {
	switch x := err.(type) {
	case *vswitch.PortError:
		return map[uint32]error{x.Ifindex: x}, nil
	case interface{ Unwrap() []error }:
		ports = map[uint32]error{}
		var others []error
		for _, e := range x.Unwrap() {
			more, other := sortErrors(e)
			maps.Copy(ports, more)
			others = append(others, other)
		}
		return ports, errors.Join(others...)
	}
	return nil, err
}

// ignorePorts leaves out what went wrong with single ports: each is told of its own.
func ignorePorts(err error) error {
	_, rest := sortErrors(err)
	return rest
}

// compilePort is a port as the compiler takes it.
func (f *fabric) compilePort(p *nicPort, networks map[string]*v1.Network) compile.Port {
	profile := p.profile
	if profile == "" {
		profile = networks[p.network].GetSpec().GetProfile()
	}
	if profile == "" {
		profile = defaultProfile
	}
	return compile.Port{
		Name: p.name, Ifindex: p.ifindex, Slot: f.book.Slots[p.key()].Slot, MAC: p.mac, Network: p.network, Profile: profile, LinkDown: p.down,
		Addresses: p.addrs, Bucket: team.Bucket(p.name), MACs: f.granted[p.key()],
	}
}

// defaultProfile is the profile of NICs whose network names none.
const defaultProfile = "default"
