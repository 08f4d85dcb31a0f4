package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net"

	"drover/internal/unwind"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// link returns the link of that name, or ErrNotFound.
func (n *Net) link(name string) (netlink.Link, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	l, err := n.h.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, n.errorf("find", name, ErrNotFound)
	}
	if err != nil {
		return nil, n.errorf("find", name, err)
	}
	return l, nil
}

func (n *Net) errorf(op, link string, err error) error {
	if err == nil {
		return nil
	}
	if n.name != "" {
		return fmt.Errorf("%s link %s in namespace %s: %w", op, link, n.name, err)
	}
	return fmt.Errorf("%s link %s: %w", op, link, err)
}

// claim is called on a link that was found where one of ours is wanted: it checks
// kind and mark. A link cannot be made and marked in one step; one that we were
// killed in between is known by its derived name, is still down, and is marked now.
func (n *Net) claim(l netlink.Link, kind string, m Mark) error {
	a := l.Attrs()
	if l.Type() == kind && a.Alias == m.String() {
		return nil
	}
	if l.Type() == kind && a.Alias == "" && a.RawFlags&unix.IFF_UP == 0 && derived(a.Name, m.ID) {
		return n.errorf("mark", a.Name, n.h.LinkSetAlias(l, m.String()))
	}
	return n.errorf("use", l.Attrs().Name, fmt.Errorf("it is a %s with alias %q: %w", l.Type(), l.Attrs().Alias, ErrForeign))
}

// add makes a link, marks it, and pushes its removal.
func (n *Net) add(u *unwind.Stack, l netlink.Link, m Mark) error {
	name := l.Attrs().Name
	if err := errors.Join(CheckName(name), m.Validate()); err != nil {
		return n.errorf("create", name, err)
	}
	if err := n.h.LinkAdd(l); err != nil {
		return n.errorf("create", name, err)
	}
	return n.adopt(u, name, m)
}

// adopt marks a link just made and pushes its removal. If the mark cannot be
// set the link is removed at once: nothing would ever know it as ours.
func (n *Net) adopt(u *unwind.Stack, name string, m Mark) error {
	l, err := n.link(name)
	if err != nil {
		return err
	}
	if err := n.h.LinkSetAlias(l, m.String()); err != nil {
		return errors.Join(n.errorf("mark", name, err), n.h.LinkDel(l))
	}
	n.pushDelete(u, name, m)
	return nil
}

func (n *Net) pushDelete(u *unwind.Stack, name string, m Mark) {
	u.Push("delete link "+name, func(context.Context) error { return n.Delete(name, m) })
}

// Delete removes a link that carries exactly that mark. No link of that name is
// no error; one with another mark is ErrForeign.
func (n *Net) Delete(name string, m Mark) error {
	l, err := n.link(name)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if l.Attrs().Alias != m.String() {
		return n.errorf("delete", name, fmt.Errorf("alias is %q, not %q: %w", l.Attrs().Alias, m, ErrForeign))
	}
	if err := n.h.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return n.errorf("delete", name, err)
	}
	return nil
}

// Veth is a pair of links, A in one namespace and B in another or the same.
type Veth struct {
	A, B         string
	MarkA, MarkB Mark
	MTU          int              // 0: 1500
	MACA, MACB   net.HardwareAddr // nil: the kernel picks
}

// EnsureVeth makes the pair, with A in n and B in peer. A pair that exists is kept
// if both ends are ours; only a half is never left.
func (n *Net) EnsureVeth(u *unwind.Stack, peer *Net, v Veth) error {
	if err := errors.Join(CheckName(v.B), v.MarkB.Validate()); err != nil {
		return n.errorf("create", v.A, err)
	}
	a, err := n.link(v.A)
	if err == nil {
		if err := n.claim(a, "veth", v.MarkA); err != nil {
			return err
		}
		b, err := peer.link(v.B)
		if err != nil {
			return err
		}
		return peer.claim(b, "veth", v.MarkB)
	}
	if !errors.Is(err, ErrNotFound) {
		return err
	}
	l := netlink.NewVeth(netlink.LinkAttrs{Name: v.A, MTU: v.MTU, HardwareAddr: v.MACA, TxQLen: -1})
	l.PeerName, l.PeerHardwareAddr, l.PeerMTU = v.B, v.MACB, uint32(v.MTU)
	l.PeerNamespace = netlink.NsFd(peer.ns)
	if err := n.add(u, l, v.MarkA); err != nil {
		return err
	}
	b, err := peer.link(v.B)
	if err != nil {
		return err
	}
	if err := peer.h.LinkSetAlias(b, v.MarkB.String()); err != nil {
		return errors.Join(peer.errorf("mark", v.B, err), peer.h.LinkDel(b))
	}
	return nil
}

// SetUp sets a link up or down.
func (n *Net) SetUp(name string, up bool) error {
	l, err := n.link(name)
	if err != nil {
		return err
	}
	if up {
		return n.errorf("set up", name, n.h.LinkSetUp(l))
	}
	return n.errorf("set down", name, n.h.LinkSetDown(l))
}

// SetMTU changes a link's MTU and pushes the old one.
func (n *Net) SetMTU(u *unwind.Stack, name string, mtu int) error {
	l, err := n.link(name)
	if err != nil {
		return err
	}
	old := l.Attrs().MTU
	if old == mtu {
		return nil
	}
	if err := n.h.LinkSetMTU(l, mtu); err != nil {
		return n.errorf(fmt.Sprintf("set MTU %d of", mtu), name, err)
	}
	u.Push("restore MTU of link "+name, func(context.Context) error {
		if err := n.SetMTU(nil, name, old); !errors.Is(err, ErrNotFound) {
			return err
		}
		return nil
	})
	return nil
}

// SetTxQueue sets how many packets the kernel holds for a slow reader of a link.
func (n *Net) SetTxQueue(name string, packets int) error {
	l, err := n.link(name)
	if err != nil {
		return err
	}
	return n.errorf("set the queue of", name, n.h.LinkSetTxQLen(l, packets))
}
