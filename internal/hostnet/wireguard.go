package hostnet

import (
	"errors"
	"fmt"

	"drover/internal/unwind"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrUnsupported says that this kernel has no such kind of link.
var ErrUnsupported = errors.New("not supported by this kernel")

// EnsureWireGuard makes a link of the kernel's own WireGuard and sets it up, without keys or peers. A kernel that has none is ErrUnsupported.
func (n *Net) EnsureWireGuard(u *unwind.Stack, name string, m Mark, mtu int) error {
	l, err := n.link(name)
	switch {
	case err == nil:
		err = n.claim(l, "wireguard", m)
	case errors.Is(err, ErrNotFound):
		err = n.add(u, &netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: -1}}, m)
		if errors.Is(err, unix.EOPNOTSUPP) {
			return n.errorf("create", name, ErrUnsupported)
		}
	}
	if err != nil {
		return err
	}
	return n.finishTunnel(u, name, mtu)
}

// AdoptTUN marks a TUN that another process of ours made and holds, and sets it up. It goes with that process.
func (n *Net) AdoptTUN(u *unwind.Stack, name string, m Mark, mtu int) error {
	if err := m.Validate(); err != nil {
		return n.errorf("adopt", name, err)
	}
	l, err := n.link(name)
	if err != nil {
		return err
	}
	t, ok := l.(*netlink.Tuntap)
	if alias := l.Attrs().Alias; !ok || t.Mode != netlink.TUNTAP_MODE_TUN || alias != "" && alias != m.String() {
		return n.errorf("adopt", name, fmt.Errorf("it is a %s with alias %q: %w", l.Type(), alias, ErrForeign))
	}
	if err := n.h.LinkSetAlias(l, m.String()); err != nil {
		return n.errorf("mark", name, err)
	}
	return n.finishTunnel(u, name, mtu)
}

func (n *Net) finishTunnel(u *unwind.Stack, name string, mtu int) error {
	if mtu != 0 {
		if err := n.SetMTU(u, name, mtu); err != nil {
			return err
		}
	}
	return n.upWithoutAddress(name)
}
