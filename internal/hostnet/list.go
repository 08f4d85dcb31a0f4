package hostnet

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Link is what a link is now.
type Link struct {
	Name     string
	Index    int
	Kind     string // rtnl kind: "tuntap", "bridge", "veth", "vlan"; "device" for a NIC
	Mark     Mark   // zero if it is not ours
	MAC      net.HardwareAddr
	MTU      int
	Up       bool   // administratively
	Carrier  bool   // and able to pass frames
	Master   string // the bridge it is on
	Counters Counters
}

// Counters are a link's totals since it was made. On a TAP, Rx is what the guest
// sent.
type Counters struct {
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// Links lists all links of the namespace.
func (n *Net) Links() ([]Link, error) {
	var all []netlink.Link
	var err error
	for range 5 { // a dump that was overtaken by a change is asked for again
		all, err = n.h.LinkList()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list links of namespace %q: %w", n.name, err)
	}
	names := make(map[int]string, len(all))
	for _, l := range all {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	out := make([]Link, 0, len(all))
	for _, l := range all {
		r := toLink(l)
		r.Master = names[l.Attrs().MasterIndex]
		out = append(out, r)
	}
	return out, nil
}

func toLink(l netlink.Link) Link {
	a := l.Attrs()
	mark, _ := ParseMark(a.Alias)
	r := Link{
		Name: a.Name, Index: a.Index, Kind: l.Type(), Mark: mark, MAC: a.HardwareAddr, MTU: a.MTU,
		Up:      a.RawFlags&unix.IFF_UP != 0,
		Carrier: a.RawFlags&unix.IFF_LOWER_UP != 0 && a.RawFlags&unix.IFF_RUNNING != 0,
	}
	if s := a.Statistics; s != nil {
		r.Counters = Counters{
			RxBytes: s.RxBytes, RxPackets: s.RxPackets, RxErrors: s.RxErrors, RxDropped: s.RxDropped,
			TxBytes: s.TxBytes, TxPackets: s.TxPackets, TxErrors: s.TxErrors, TxDropped: s.TxDropped,
		}
	}
	return r
}

// Link is the link of that name, or ErrNotFound.
func (n *Net) Link(name string) (Link, error) {
	l, err := n.link(name)
	if err != nil {
		return Link{}, err
	}
	r := toLink(l)
	if m := l.Attrs().MasterIndex; m != 0 {
		if ml, err := n.h.LinkByIndex(m); err == nil {
			r.Master = ml.Attrs().Name
		}
	}
	return r, nil
}

// Owned lists the links with our mark; kind "" is any kind of mark.
func (n *Net) Owned(kind string) ([]Link, error) {
	all, err := n.Links()
	if err != nil {
		return nil, err
	}
	var out []Link
	for _, l := range all {
		if l.Mark != (Mark{}) && (kind == "" || l.Mark.Kind == kind) {
			out = append(out, l)
		}
	}
	return out, nil
}

// Sweep deletes the links with marks of that kind for which keep says no, and
// returns them. It goes on past a failure.
func (n *Net) Sweep(kind string, keep func(Mark) bool) ([]Link, error) {
	owned, err := n.Owned(kind)
	if err != nil {
		return nil, err
	}
	var gone []Link
	var failed []error
	for _, l := range owned {
		if keep(l.Mark) {
			continue
		}
		if err := n.Delete(l.Name, l.Mark); err != nil {
			failed = append(failed, err)
			continue
		}
		gone = append(gone, l)
	}
	return gone, errors.Join(failed...)
}
