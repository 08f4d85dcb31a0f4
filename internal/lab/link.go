package lab

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"drover/internal/clock"
	"drover/internal/hostnet"
)

// LinkStatus is what a WAN link does and has done.
type LinkStatus struct {
	Name   string       `json:"name"`
	WAN    WAN          `json:"wan"`
	AToB   PipeCounters `json:"a_to_b"`
	BToA   PipeCounters `json:"b_to_a"`
	SiteA  string       `json:"site_a"`
	SiteB  string       `json:"site_b"`
	Device string       `json:"device"`
}

// wanLink runs a WANLink: two TUNs and a pipe each way. It owns the TUNs.
type wanLink struct {
	WANLink
	log    *slog.Logger
	par    atomic.Pointer[WAN]
	tuns   [2]*os.File
	pipes  [2]*pipe // 0: A to B
	wg     sync.WaitGroup
	setMu  sync.Mutex // orders changes
	closed sync.Once
}

// wanTxQueue is how many packets a router holds for the link's reader.
const wanTxQueue = 5000

// newWANLink makes the TUNs in the two routers, with addresses and routes, and
// starts to carry packets. Close it.
func newWANLink(c Config, t Topology, wl WANLink, clk clock.Clock, log *slog.Logger, seed uint64) (_ *wanLink, err error) {
	l := &wanLink{WANLink: wl, log: log.With("link", wl.Name)}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	a, err := t.Site(wl.A)
	if err != nil {
		return nil, err
	}
	b, err := t.Site(wl.B)
	if err != nil {
		return nil, err
	}
	if l.tuns[0], err = routerEnd(c, t, wl, a, b, wl.AddrA, wl.AddrB); err != nil {
		return nil, err
	}
	if l.tuns[1], err = routerEnd(c, t, wl, b, a, wl.AddrB, wl.AddrA); err != nil {
		return nil, err
	}
	first := c.WAN
	l.par.Store(&first)
	for i := range l.pipes {
		if l.pipes[i], err = newPipe(l.tuns[i], l.tuns[1-i], &l.par, clk, seed+uint64(i)); err != nil {
			return nil, fmt.Errorf("WAN link %s: %w", wl.Name, err)
		}
	}
	if err := l.change(WANChange{}); err != nil {
		return nil, err
	}
	for _, p := range l.pipes {
		l.wg.Go(func() {
			if err := p.read(); err != nil {
				l.log.Error("WAN link stopped reading: take the lab down and up", "err", err)
			}
		})
		l.wg.Go(p.write)
	}
	return l, nil
}

// routerEnd makes here's end of the link and the routes to the networks there.
func routerEnd(c Config, t Topology, wl WANLink, here, there SiteNet, mine, peer netip.Prefix) (_ *os.File, err error) {
	node, err := t.Node(routerNode(here.Name))
	if err != nil {
		return nil, err
	}
	n, err := hostnet.Open(node.Namespace)
	if err != nil {
		return nil, err
	}
	defer n.Close()
	f, err := n.OpenTUN(wl.Device, true)
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		n.SetMTU(nil, wl.Device, c.WANMTU),
		n.SetTxQueue(wl.Device, wanTxQueue),
		n.SetUp(wl.Device, true),
		n.EnsureAddress(nil, wl.Device, mine),
	)
	for _, dst := range []netip.Prefix{there.Management, there.Guests} {
		if err == nil {
			err = n.EnsureRoute(nil, dst, peer.Addr())
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// change sets parameters while packets flow. Packets on their way keep their time.
func (l *wanLink) change(ch WANChange) error {
	l.setMu.Lock()
	defer l.setMu.Unlock()
	w := ch.apply(*l.par.Load())
	if err := w.Validate(); err != nil {
		return fmt.Errorf("WAN link %s: %w", l.Name, err)
	}
	l.par.Store(&w)
	for _, f := range l.tuns {
		if err := hostnet.SetOffload(f, w.wholeSegments()); err != nil {
			return fmt.Errorf("WAN link %s: %w", l.Name, err)
		}
	}
	return nil
}

func (l *wanLink) status() LinkStatus {
	return LinkStatus{
		Name: l.Name, SiteA: l.A, SiteB: l.B, Device: l.Device, WAN: *l.par.Load(),
		AToB: l.pipes[0].counters(), BToA: l.pipes[1].counters(),
	}
}

// close removes the TUNs and waits for the pipes.
func (l *wanLink) close() {
	l.closed.Do(func() {
		for _, f := range l.tuns {
			if f != nil {
				f.Close()
			}
		}
		for _, p := range l.pipes {
			if p != nil {
				p.stop()
			}
		}
		l.wg.Wait()
	})
}
