package hostnet

import (
	"context"
	"fmt"
	"net/netip"

	"drover/internal/unwind"

	"golang.org/x/sys/unix"
)

// Path is the way to another address by the routes of now.
type Path struct {
	Source netip.Addr // address of this host that packets on it carry
	Device string
	MTU    int // of the route, or else of the device
}

// PathTo asks the kernel for the way to an address. There may be none.
func (n *Net) PathTo(to netip.Addr) (Path, error) {
	routes, err := n.h.RouteGet(to.Unmap().AsSlice())
	if err != nil || len(routes) == 0 {
		return Path{}, fmt.Errorf("find the way to %v in namespace %q: %w", to, n.name, err)
	}
	r := routes[0]
	l, err := n.h.LinkByIndex(r.LinkIndex)
	if err != nil {
		return Path{}, fmt.Errorf("find the way to %v in namespace %q: link %d: %w", to, n.name, r.LinkIndex, err)
	}
	p := Path{Device: l.Attrs().Name, MTU: l.Attrs().MTU}
	if r.MTU > 0 && r.MTU < p.MTU {
		p.MTU = r.MTU
	}
	if src, ok := netip.AddrFromSlice(r.Src); ok {
		p.Source = src.Unmap()
	}
	return p, nil
}

// EnsurePromiscuous makes a NIC take frames to any address: VMs' addresses are not its own. It stays so without us; the undo, and
// SetPromiscuous(name, false) at release, take it back. A NIC that is promiscuous by others' wish stays so.
func (n *Net) EnsurePromiscuous(u *unwind.Stack, name string) error {
	l, err := n.link(name)
	if err != nil {
		return err
	}
	if l.Attrs().RawFlags&unix.IFF_PROMISC != 0 {
		return nil
	}
	if err := n.SetPromiscuous(name, true); err != nil {
		return err
	}
	u.Push("make link "+name+" take only its own frames", func(context.Context) error { return n.SetPromiscuous(name, false) })
	return nil
}

// SetPromiscuous sets the flag that an administrator would set (IFF_PROMISC); sockets that want it hold it besides.
func (n *Net) SetPromiscuous(name string, on bool) error {
	l, err := n.link(name)
	if err != nil {
		return err
	}
	if on {
		return n.errorf("make promiscuous", name, n.h.SetPromiscOn(l))
	}
	return n.errorf("make not promiscuous", name, n.h.SetPromiscOff(l))
}
