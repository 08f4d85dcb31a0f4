package hostnet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// waitSlice bounds how long WaitUp and WatchLinks overlook the end of their context.
const waitSlice = 200 * time.Millisecond

// subscribe opens a socket that hears of every change of a link; receiving ends with EAGAIN after waitSlice.
func (n *Net) subscribe() (*nl.NetlinkSocket, error) {
	var s *nl.NetlinkSocket
	err := onThread(func() (err error) {
		s, err = nl.SubscribeAt(n.ns, netns.None(), unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe to links of namespace %q: %w", n.name, err)
	}
	tv := unix.NsecToTimeval(waitSlice.Nanoseconds())
	if err := s.SetReceiveTimeout(&tv); err != nil {
		s.Close()
		return nil, fmt.Errorf("subscribe to links of namespace %q: %w", n.name, err)
	}
	return s, nil
}

// WaitUp returns when every link of those names is up and passes frames
// (operational state "up"), which the kernel tells some time after both ends of a
// pair were set up. It gives up when ctx ends.
func (n *Net) WaitUp(ctx context.Context, names ...string) error {
	s, err := n.subscribe()
	if err != nil {
		return err
	}
	defer s.Close()
	for {
		waiting := ""
		for _, name := range names {
			l, err := n.link(name)
			if err != nil {
				return err
			}
			if l.Attrs().OperState != netlink.OperUp {
				waiting = name
				break
			}
		}
		if waiting == "" {
			return nil
		}
		if ctx.Err() != nil {
			return n.errorf("wait for", waiting, context.Cause(ctx))
		}
		// What the message says does not matter, only that something changed; an
		// overrun (ENOBUFS) says so too.
		_, _, err := s.Receive()
		if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOBUFS) {
			return n.errorf("wait for", waiting, err)
		}
	}
}
