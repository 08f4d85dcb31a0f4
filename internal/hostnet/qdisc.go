package hostnet

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// SetNoQueue makes frames to a link go straight to its driver. On a TAP that saves the lock of a queue that never holds anything: the TAP has its own.
func (n *Net) SetNoQueue(name string) error {
	l, err := n.link(name)
	if err != nil {
		return err
	}
	root, err := n.rootQdisc(l)
	if err != nil || root != nil && root.Type() == "noqueue" {
		return err
	}
	q := &netlink.GenericQdisc{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_ROOT}, QdiscType: "noqueue"}
	return n.errorf("set no queue on", name, n.h.QdiscReplace(q))
}

// rootQdisc is nil if the link has none, or has one per hardware queue.
func (n *Net) rootQdisc(l netlink.Link) (netlink.Qdisc, error) {
	list, err := n.h.QdiscList(l)
	if err != nil {
		return nil, n.errorf("list queues of", l.Attrs().Name, err)
	}
	for _, q := range list {
		if q.Attrs().Parent == netlink.HANDLE_ROOT {
			return q, nil
		}
	}
	return nil, nil
}

// Classes of the tree on an uplink: 1:ffff has all of it, 1:fffe is for who has no class of his own, 1:SLOT is a port's.
const (
	htbMajor   = 1
	htbRoot    = 0xffff
	htbDefault = 0xfffe
)

// HTBPriority is the skb->priority that selects the class of a slot.
func HTBPriority(slot uint32) uint32 { return netlink.MakeHandle(htbMajor, uint16(slot)) }

// HTB shares an uplink: what is guaranteed to a class it gets also when the uplink is full, and what others leave it may use too.
type HTB struct {
	RateBPS uint64            // bits a second that the uplink carries
	Classes map[uint32]uint64 // bits a second guaranteed, by slot, 1 to 65533
}

// Validate checks that the guarantees can be kept.
func (h HTB) Validate() error {
	var sum uint64
	for slot, rate := range h.Classes {
		if slot == 0 || slot >= htbDefault || rate == 0 {
			return fmt.Errorf("guarantee of slot %d is %d bit/s: want a slot of 1 to %d and a rate", slot, rate, htbDefault-1)
		}
		sum += rate
	}
	if sum >= h.RateBPS {
		return fmt.Errorf("guarantees of %d bit/s together: the uplink carries %d bit/s; lower them", sum, h.RateBPS)
	}
	return nil
}

// EnsureHTB puts the tree on an uplink, or changes the one that is there, without losing what is queued in classes that stay.
// A queue that somebody else set up is ErrForeign.
func (n *Net) EnsureHTB(name string, h HTB) error {
	if err := h.Validate(); err != nil {
		return n.errorf("share", name, err)
	}
	l, err := n.link(name)
	if err != nil {
		return err
	}
	root, err := n.rootQdisc(l)
	if err != nil {
		return err
	}
	if !ourHTB(root) {
		if err := n.foreignQdisc(l, root); err != nil {
			return err
		}
		q := netlink.NewHtb(netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(htbMajor, 0), Parent: netlink.HANDLE_ROOT})
		q.Defcls = htbDefault
		if err := n.h.QdiscReplace(q); err != nil {
			return n.errorf("share", name, err)
		}
	}
	var sum uint64
	for _, r := range h.Classes {
		sum += r
	}
	// The root first: classes hang from it.
	if err := n.setClass(l, netlink.MakeHandle(htbMajor, 0), htbRoot, h.RateBPS, h.RateBPS); err != nil {
		return err
	}
	parent := netlink.MakeHandle(htbMajor, htbRoot)
	if err := n.setClass(l, parent, htbDefault, h.RateBPS-sum, h.RateBPS); err != nil {
		return err
	}
	for _, slot := range slices.Sorted(maps.Keys(h.Classes)) {
		if err := n.setClass(l, parent, uint16(slot), h.Classes[slot], h.RateBPS); err != nil {
			return err
		}
	}
	return n.dropClasses(l, h.Classes)
}

// setClass takes rates in bits a second. A class may send 10 ms of its rate at once, at least one whole GSO packet.
func (n *Net) setClass(l netlink.Link, parent uint32, minor uint16, rate, ceil uint64) error {
	burst := func(bps uint64) uint32 { return uint32(min(max(bps/8/100, 64<<10), 16<<20)) }
	c := netlink.NewHtbClass(
		netlink.ClassAttrs{LinkIndex: l.Attrs().Index, Parent: parent, Handle: netlink.MakeHandle(htbMajor, minor)},
		netlink.HtbClassAttrs{Rate: rate, Ceil: ceil, Buffer: burst(rate), Cbuffer: burst(ceil), Quantum: uint32(min(max(rate/80, 2000), 200000))})
	return n.errorf(fmt.Sprintf("set class %x of", minor), l.Attrs().Name, n.h.ClassReplace(c))
}

func (n *Net) dropClasses(l netlink.Link, keep map[uint32]uint64) error {
	list, err := n.h.ClassList(l, 0)
	if err != nil {
		return n.errorf("list classes of", l.Attrs().Name, err)
	}
	for _, c := range list {
		major, minor := netlink.MajorMinor(c.Attrs().Handle)
		if _, ok := keep[uint32(minor)]; ok || major != htbMajor || minor == htbRoot || minor == htbDefault {
			continue
		}
		if err := n.h.ClassDel(c); err != nil && !errors.Is(err, unix.ENOENT) {
			return n.errorf(fmt.Sprintf("remove class %x of", minor), l.Attrs().Name, err)
		}
	}
	return nil
}

// RemoveHTB takes the tree away; the kernel then queues as it likes. Another queue is left alone; a link that is gone is no error.
func (n *Net) RemoveHTB(name string) error {
	l, err := n.link(name)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	root, err := n.rootQdisc(l)
	if err != nil || !ourHTB(root) {
		return err
	}
	return n.errorf("stop sharing", name, n.h.QdiscDel(root))
}

func ourHTB(q netlink.Qdisc) bool {
	h, ok := q.(*netlink.Htb)
	return ok && h.Attrs().Handle == netlink.MakeHandle(htbMajor, 0) && h.Defcls == htbDefault
}

// foreignQdisc: what the kernel puts there by itself has the handle 0, but for one per hardware queue ("mq"), which has none either.
func (n *Net) foreignQdisc(l netlink.Link, root netlink.Qdisc) error {
	if root == nil || root.Attrs().Handle == 0 || root.Type() == "noqueue" {
		return nil
	}
	return n.errorf("share", l.Attrs().Name, fmt.Errorf("it has a queue of kind %s: %w; remove it with tc, or set no guarantees", root.Type(), ErrForeign))
}

// Filters describes classic tc filters of a link: "ingress bpf NAME". The switch's own programs (tcx) are not among them.
func (n *Net) Filters(name string) ([]string, error) {
	l, err := n.link(name)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, at := range []struct {
		name   string
		parent uint32
	}{{"ingress", netlink.HANDLE_MIN_INGRESS}, {"egress", netlink.HANDLE_MIN_EGRESS}} {
		list, err := n.h.FilterList(l, at.parent)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			continue // no clsact
		}
		if err != nil {
			return nil, n.errorf("list filters of", name, err)
		}
		seen := map[string]bool{}
		for _, f := range list {
			s := at.name + " " + f.Type()
			if b, ok := f.(*netlink.BpfFilter); ok && b.Name != "" {
				s += " " + b.Name
			}
			if !seen[s] {
				seen[s] = true
				out = append(out, s)
			}
		}
	}
	return out, nil
}
