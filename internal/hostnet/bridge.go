package hostnet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"drover/internal/unwind"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Bridge is a plain Linux bridge: it does not filter VLANs, tagged frames pass
// unchanged, and it does not snoop multicast.
type Bridge struct {
	Name string
	Mark Mark
	MTU  int // 0: 1500
}

// EnsureBridge makes the bridge and sets it up.
func (n *Net) EnsureBridge(u *unwind.Stack, b Bridge) error {
	l, err := n.link(b.Name)
	switch {
	case errors.Is(err, ErrNotFound):
		off := false
		err = n.add(u, &netlink.Bridge{
			LinkAttrs:         netlink.LinkAttrs{Name: b.Name, MTU: b.MTU, TxQLen: -1},
			MulticastSnooping: &off,
		}, b.Mark)
	case err == nil:
		err = n.claim(l, "bridge", b.Mark)
	}
	if err != nil {
		return err
	}
	if b.MTU != 0 {
		if err := n.SetMTU(u, b.Name, b.MTU); err != nil {
			return err
		}
	}
	return n.upWithoutAddress(b.Name)
}

// upWithoutAddress sets a link up and keeps the kernel from giving it an IPv6
// address: the host would answer to guests on it.
func (n *Net) upWithoutAddress(name string) error {
	l, err := n.link(name)
	if err != nil {
		return err
	}
	const modeNone = 1 // IN6_ADDR_GEN_MODE_NONE, linux/if_link.h
	if err := n.h.LinkSetIP6AddrGenMode(l, modeNone); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return n.errorf("turn off IPv6 addresses of", name, err)
	}
	return n.SetUp(name, true)
}

// Attach puts a link (a TAP, a veth, an uplink) on a bridge. One that is on it is
// left alone; one on another bridge is ErrForeign: detach it first.
func (n *Net) Attach(u *unwind.Stack, bridge, name string) error {
	br, err := n.link(bridge)
	if err != nil {
		return err
	}
	if br.Type() != "bridge" {
		return n.errorf("attach to", bridge, fmt.Errorf("it is a %s, not a bridge", br.Type()))
	}
	l, err := n.link(name)
	if err != nil {
		return err
	}
	switch l.Attrs().MasterIndex {
	case br.Attrs().Index:
		return nil
	case 0:
	default:
		return n.errorf("attach", name, fmt.Errorf("it belongs to link %d: %w", l.Attrs().MasterIndex, ErrForeign))
	}
	if err := n.h.LinkSetMaster(l, br); err != nil {
		return n.errorf("attach to "+bridge, name, err)
	}
	u.Push("detach link "+name, func(context.Context) error { return n.Detach(name) })
	return nil
}

// Detach takes a link off its bridge. A link that is on none, or is gone, is
// no error.
func (n *Net) Detach(name string) error {
	l, err := n.link(name)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil || l.Attrs().MasterIndex == 0 {
		return err
	}
	return n.errorf("detach", name, n.h.LinkSetNoMaster(l))
}

// userHZ is the unit of the bridge's timers in netlink, USER_HZ.
const userHZ = 100

// SetSTP turns the kernel's spanning tree (802.1D) on or off. forwardDelay is 2 to
// 30 s when on: a port listens and learns for twice that before it forwards. A
// port that forwards when the tree is turned on goes on forwarding: attach the
// ports first, and wait for them (WaitUp), to have a switch that is up at once.
func (n *Net) SetSTP(bridge string, on bool, forwardDelay time.Duration) error {
	l, err := n.link(bridge)
	if err != nil {
		return err
	}
	state := uint32(0)
	if on {
		state = 1
		if forwardDelay < 2*time.Second || forwardDelay > 30*time.Second {
			return n.errorf("set spanning tree of", bridge, fmt.Errorf("forward delay %v: want 2s to 30s", forwardDelay))
		}
	}
	// netlink.Bridge has no such fields, so the message is made by hand.
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(l.Attrs().Index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_BR_FORWARD_DELAY, nl.Uint32Attr(uint32(forwardDelay*userHZ/time.Second)))
	data.AddRtAttr(nl.IFLA_BR_STP_STATE, nl.Uint32Attr(state))
	req.AddData(info)
	return n.errorf("set spanning tree of", bridge, n.Do(func() error {
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	}))
}
