package tunnel

import (
	"net"
	"net/netip"

	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// client talks to the kernel in the tunnel's namespace while fn runs.
func (t *Tunnel) client(fn func(*wgctrl.Client) error) error {
	return t.opt.Net.Do(func() error {
		c, err := wgctrl.New()
		if err != nil {
			return err
		}
		defer c.Close()
		return fn(c)
	})
}

func (t *Tunnel) configureKernel(want Config, told map[Key]netip.AddrPort) error {
	return t.client(func(c *wgctrl.Client) error {
		now, err := c.Device(t.opt.Name)
		if err != nil {
			return err
		}
		return c.ConfigureDevice(t.opt.Name, kernelChange(now, want, told))
	})
}

// kernelChange is what change is for the process.
func kernelChange(now *wgtypes.Device, want Config, told map[Key]netip.AddrPort) wgtypes.Config {
	var cfg wgtypes.Config
	if now.PrivateKey != want.Key {
		cfg.PrivateKey = &want.Key
	}
	if now.ListenPort != want.Port {
		cfg.ListenPort = &want.Port
	}
	there, keep := map[Key]bool{}, map[Key]bool{}
	for _, p := range now.Peers {
		there[p.PublicKey] = true
	}
	keepalive := Keepalive
	for _, p := range want.Peers {
		keep[p.Key] = true
		bits := p.Address.BitLen()
		pc := wgtypes.PeerConfig{
			PublicKey: p.Key, ReplaceAllowedIPs: true, PersistentKeepaliveInterval: &keepalive,
			AllowedIPs: []net.IPNet{{IP: p.Address.AsSlice(), Mask: net.CIDRMask(bits, bits)}},
		}
		if !there[p.Key] || told[p.Key] != p.Endpoint {
			pc.Endpoint = net.UDPAddrFromAddrPort(p.Endpoint)
		}
		cfg.Peers = append(cfg.Peers, pc)
	}
	for _, p := range now.Peers {
		if !keep[p.PublicKey] {
			cfg.Peers = append(cfg.Peers, wgtypes.PeerConfig{PublicKey: p.PublicKey, Remove: true})
		}
	}
	return cfg
}

func (t *Tunnel) kernelPeers() (out []PeerStatus, err error) {
	err = t.client(func(c *wgctrl.Client) error {
		d, err := c.Device(t.opt.Name)
		if err != nil {
			return err
		}
		for _, p := range d.Peers {
			s := PeerStatus{Key: p.PublicKey, Handshake: p.LastHandshakeTime, Received: uint64(p.ReceiveBytes), Sent: uint64(p.TransmitBytes)}
			if p.Endpoint != nil {
				s.Endpoint = p.Endpoint.AddrPort()
			}
			out = append(out, s)
		}
		return nil
	})
	return out, err
}
