package hostnet

import (
	"context"

	"drover/internal/unwind"

	"golang.org/x/sys/unix"
)

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
