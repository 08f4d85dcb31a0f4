package host

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/hostnet"
	"drover/internal/resource"
	"drover/internal/vswitch/tunnel"
)

// ciphers is this host's encrypted tunnel. It belongs to the fabric's goroutine.
type ciphers struct {
	key     tunnel.Key
	keyErr  error
	tunnel  *tunnel.Tunnel // nil: not needed yet
	applied string         // the configuration that it has
}

// tunnelTimeout bounds the making of a tunnel.
const tunnelTimeout = 10 * time.Second

// loadTunnelKey has the key known before there is a tunnel: others are told it.
func (f *fabric) loadTunnelKey() {
	if len(f.a.cfg.Tunnel) == 0 {
		f.keyErr = errors.New("this agent was started without a program for tunnels")
		return
	}
	if f.key, f.keyErr = tunnel.LoadKey(filepath.Join(f.dir, "tunnel.key")); f.keyErr != nil {
		f.log.Error("this host has no key for encrypted tunnels", "err", f.keyErr)
	}
}

// ensureTunnel brings the tunnel to the hosts of other sites, and says whether what the compiler is told of it changed. It is made only once a network needs it.
func (f *fabric) ensureTunnel(ctx context.Context) bool {
	before := f.vxlan
	err := f.applyTunnel(ctx)
	f.vxlan.Encrypted, f.vxlan.EncryptedReason, f.vxlan.Tunnel = err == nil, "", netip.Addr{}
	if err == nil {
		f.vxlan.Tunnel, err = resource.TunnelAddress(f.a.id.UID)
	}
	if err != nil {
		f.vxlan.Encrypted, f.vxlan.EncryptedReason = false, err.Error()
	}
	return f.vxlan != before
}

var errNoTunnelWanted = errors.New("no network needs it")

func (f *fabric) applyTunnel(ctx context.Context) error {
	var nets []*v1.Network
	var peers []*v1.Peer
	w := f.a.world
	w.mu.Lock()
	for _, n := range w.networks {
		nets = append(nets, n)
	}
	for _, p := range w.peers {
		peers = append(peers, p)
	}
	w.mu.Unlock()
	wanted := slices.ContainsFunc(nets, func(n *v1.Network) bool {
		s := n.GetSpec()
		return s.GetOverlay().GetEncrypted() && (len(s.GetSites()) == 0 || slices.Contains(s.GetSites(), f.a.id.Site))
	})
	switch {
	case f.keyErr != nil:
		return f.keyErr
	case !wanted:
		return errNoTunnelWanted
	case !f.overlay.address.IsValid():
		return errors.New("this host has no overlay address")
	}
	cfg, err := f.tunnelConfig(peers)
	if err != nil {
		return err
	}
	text := fmt.Sprint(cfg)
	if text == f.applied {
		return nil
	}
	if f.tunnel == nil {
		f.tunnel = tunnel.New(tunnel.Options{
			Net: f.a.net, Name: hostnet.Name("dw", f.a.tag()), Mark: hostnet.Mark{Kind: markSwitch, ID: f.a.tag() + "/tunnel"},
			Dir: filepath.Join(f.a.cfg.RunDir, "switch"), Command: f.a.cfg.Tunnel, Log: f.log,
		})
	}
	ctx, cancel := context.WithTimeout(ctx, tunnelTimeout)
	defer cancel()
	if err := f.tunnel.Apply(ctx, cfg); err != nil {
		f.applied = ""
		return err
	}
	if f.applied == "" {
		t := f.tunnel
		f.parts.Go(func() {
			if err := t.Wait(f.life); err == nil {
				f.hear(func() {
					f.log.Warn("the process of the encrypted tunnel has ended; it is started again")
					f.applied = ""
					f.changed()
				})
			}
		})
	}
	f.applied = text
	return nil
}

// tunnelConfig has the hosts of other sites as peers; inside a site nothing is encrypted.
func (f *fabric) tunnelConfig(peers []*v1.Peer) (tunnel.Config, error) {
	over := tunnel.Overhead4
	if f.overlay.address.Is6() {
		over = tunnel.Overhead6
	}
	c := tunnel.Config{Key: f.key, Port: tunnel.Port, MTU: f.overlay.mtu - over}
	var err error
	if c.Address, err = resource.TunnelAddress(f.a.id.UID); err != nil {
		return c, err
	}
	for _, p := range peers {
		if p.GetHost() == f.a.id.Host || p.GetSite() == f.a.id.Site || p.GetTunnelKey() == "" {
			continue
		}
		key, err := tunnel.ParseKey(p.GetTunnelKey())
		outer, oerr := netip.ParseAddr(p.GetOverlayAddress())
		inner, ierr := netip.ParseAddr(p.GetTunnelAddress())
		if err := errors.Join(err, oerr, ierr); err != nil {
			f.log.Warn("a host of another site is not reached by the encrypted tunnel", "peer", p.GetHost(), "err", err)
			continue
		}
		c.Peers = append(c.Peers, tunnel.Peer{Key: key, Endpoint: netip.AddrPortFrom(outer.Unmap(), uint16(p.GetTunnelPort())), Address: inner})
	}
	slices.SortFunc(c.Peers, func(a, b tunnel.Peer) int { return strings.Compare(a.Address.String(), b.Address.String()) })
	return c, nil
}
