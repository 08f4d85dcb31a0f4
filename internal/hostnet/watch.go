package hostnet

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// LinkChange is a link as it is now, or one that is gone (then only name and index count).
type LinkChange struct {
	Link
	Gone bool
}

// WatchLinks calls each for every link that is there, and then for every change of a link (carrier, up, MTU, name) until ctx ends; the error is then nil.
// After the kernel lost messages, all links are told again. Master is not set. each runs on the caller's goroutine.
func (n *Net) WatchLinks(ctx context.Context, each func(LinkChange)) error {
	s, err := n.subscribe()
	if err != nil {
		return err
	}
	defer s.Close()
	known := map[int]string{}
	if err := n.tellAll(known, each); err != nil {
		return err
	}
	for ctx.Err() == nil {
		messages, _, err := s.Receive()
		switch {
		case err == nil:
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS):
			if err := n.tellAll(known, each); err != nil {
				return err
			}
			continue
		default:
			return fmt.Errorf("watch links of namespace %q: %w", n.name, err)
		}
		for _, m := range messages {
			gone := m.Header.Type == unix.RTM_DELLINK
			if !gone && m.Header.Type != unix.RTM_NEWLINK {
				continue
			}
			header := unix.NlMsghdr(m.Header)
			l, err := netlink.LinkDeserialize(&header, m.Data)
			if err != nil || gone && nl.DeserializeIfInfomsg(m.Data).Family != unix.AF_UNSPEC {
				continue // a bridge says that a port left it
			}
			c := LinkChange{toLink(l), gone}
			if gone {
				delete(known, c.Index)
			} else {
				known[c.Index] = c.Name
			}
			each(c)
		}
	}
	return nil
}

func (n *Net) tellAll(known map[int]string, each func(LinkChange)) error {
	all, err := n.Links()
	if err != nil {
		return err
	}
	seen := map[int]bool{}
	for _, l := range all {
		seen[l.Index] = true
		known[l.Index] = l.Name
		l.Master = ""
		each(LinkChange{Link: l})
	}
	for i, name := range known {
		if !seen[i] {
			delete(known, i)
			each(LinkChange{Link: Link{Index: i, Name: name}, Gone: true})
		}
	}
	return nil
}
