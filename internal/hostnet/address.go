package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"drover/internal/unwind"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// EnsureAddress gives a link an address; p is address and prefix length.
func (n *Net) EnsureAddress(u *unwind.Stack, name string, p netip.Prefix) error {
	l, err := n.link(name)
	if err != nil {
		return err
	}
	err = n.h.AddrAdd(l, &netlink.Addr{IPNet: ipNet(p)})
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return n.errorf(fmt.Sprintf("add address %v to", p), name, err)
	}
	u.Push(fmt.Sprintf("remove address %v of link %s", p, name), func(context.Context) error {
		return n.RemoveAddress(name, p)
	})
	return nil
}

// RemoveAddress takes an address away. One that is not there is no error.
func (n *Net) RemoveAddress(name string, p netip.Prefix) error {
	l, err := n.link(name)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	err = n.h.AddrDel(l, &netlink.Addr{IPNet: ipNet(p)})
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		return nil
	}
	return n.errorf(fmt.Sprintf("remove address %v of", p), name, err)
}

// Addresses lists a link's addresses with their prefix lengths.
func (n *Net) Addresses(name string) ([]netip.Prefix, error) {
	l, err := n.link(name)
	if err != nil {
		return nil, err
	}
	list, err := n.h.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return nil, n.errorf("list addresses of", name, err)
	}
	var out []netip.Prefix
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			ones, _ := a.Mask.Size()
			out = append(out, netip.PrefixFrom(ip.Unmap(), ones))
		}
	}
	return out, nil
}

// EnsureRoute adds a route to dst through the gateway via, which must be
// reachable. A route to dst that exists is replaced.
func (n *Net) EnsureRoute(u *unwind.Stack, dst netip.Prefix, via netip.Addr) error {
	r := &netlink.Route{Dst: ipNet(dst.Masked()), Gw: via.AsSlice()}
	if err := n.h.RouteReplace(r); err != nil {
		return fmt.Errorf("add route to %v via %v in namespace %q: %w", dst, via, n.name, err)
	}
	u.Push(fmt.Sprintf("remove route to %v", dst), func(context.Context) error { return n.RemoveRoute(dst, via) })
	return nil
}

// RemoveRoute removes a route. One that is not there is no error.
func (n *Net) RemoveRoute(dst netip.Prefix, via netip.Addr) error {
	err := n.h.RouteDel(&netlink.Route{Dst: ipNet(dst.Masked()), Gw: via.AsSlice()})
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove route to %v via %v in namespace %q: %w", dst, via, n.name, err)
	}
	return nil
}

// SetSysctl sets a network parameter of this namespace, "ipv4.ip_forward", to a
// value. It refuses Current: only namespaces made for a purpose are tuned.
func (n *Net) SetSysctl(key, value string) error {
	if strings.ContainsAny(key, "/\x00") {
		return fmt.Errorf("sysctl net.%s: write dots, not slashes", key)
	}
	if n.name == "" {
		return fmt.Errorf("sysctl net.%s: refusing to change the namespace that the process is in", key)
	}
	path := "/proc/sys/net/" + strings.ReplaceAll(key, ".", "/")
	err := n.Do(func() error { return os.WriteFile(path, []byte(value), 0) })
	if err != nil {
		return fmt.Errorf("sysctl net.%s in namespace %q: %w", key, n.name, err)
	}
	return nil
}
