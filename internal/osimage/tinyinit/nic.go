package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// netif is one NIC: from its link to its address.
type netif struct {
	name    string
	index   int
	mac     net.HardwareAddr
	cancel  context.CancelFunc // ends its DHCP client
	settled bool               // it has an address or wants none
	given   []*net.IPNet       // addresses that we set
}

func (m *machine) startLoopback() {
	if lo, err := net.InterfaceByName("lo"); err == nil {
		linkUp(lo.Index, 0)
	}
}

// scanNICs takes up every NIC that is there.
func (m *machine) scanNICs() {
	dirs, _ := filepath.Glob("/sys/class/net/*/device")
	for _, d := range dirs {
		m.addNIC(filepath.Base(filepath.Dir(d)))
	}
}

func (m *machine) addNIC(name string) {
	if _, err := os.Stat("/sys/class/net/" + name + "/device"); err != nil {
		return
	}
	i, err := net.InterfaceByName(name)
	if err != nil {
		return
	}
	m.mu.Lock()
	_, known := m.nics[name]
	if known {
		m.mu.Unlock()
		return
	}
	n := &netif{name: name, index: i.Index, mac: i.HardwareAddr}
	m.nics[name] = n
	cfg := m.seed.forMAC(n.mac)
	m.mu.Unlock()
	m.configure(n, cfg)
}

func (m *machine) removeNIC(name string) {
	m.mu.Lock()
	n := m.nics[name]
	delete(m.nics, name)
	m.mu.Unlock()
	if n != nil {
		if n.cancel != nil {
			n.cancel()
		}
		m.printf("nic %s gone", name)
		m.settle(nil)
	}
}

// configure brings a NIC up as its configuration says, or by DHCP without one.
func (m *machine) configure(n *netif, cfg *nicConfig) {
	mtu := 0
	if cfg != nil {
		mtu = cfg.mtu
	}
	if err := linkUp(n.index, mtu); err != nil {
		m.printf("nic %s: up: %v", n.name, err)
	}
	if cfg != nil {
		for _, a := range cfg.addresses {
			m.give(n, a)
		}
		for _, r := range cfg.routes {
			if err := addRoute(n.index, r.dst, r.via); err != nil {
				m.printf("nic %s: route: %v", n.name, err)
			}
		}
		if !cfg.dhcp {
			m.settle(n)
			return
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	go m.dhcp(ctx, n)
}

func (m *machine) give(n *netif, a *net.IPNet) {
	if err := addAddress(n.index, a); err != nil {
		m.printf("nic %s: address %s: %v", n.name, a, err)
		return
	}
	m.mu.Lock()
	n.given = append(n.given, a)
	late := m.ready
	m.mu.Unlock()
	if late {
		m.printf("nic %s %s %s", n.name, n.mac, a)
	}
}

// reconfigure applies a seed that came after the NICs.
func (m *machine) reconfigure() {
	m.mu.Lock()
	var all []*netif
	for _, n := range m.nics {
		all = append(all, n)
	}
	seed := m.seed
	m.mu.Unlock()
	for _, n := range all {
		cfg := seed.forMAC(n.mac)
		if cfg == nil {
			continue
		}
		if n.cancel != nil {
			n.cancel()
			n.cancel = nil
		}
		m.mu.Lock()
		old := n.given
		n.given, n.settled = nil, false
		m.mu.Unlock()
		for _, a := range old {
			delAddress(n.index, a)
		}
		m.configure(n, cfg)
	}
}

// settle marks a NIC (nil: none) as done and wakes those who wait for that.
func (m *machine) settle(n *netif) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n != nil {
		n.settled = true
	}
	close(m.arrived)
	m.arrived = make(chan struct{})
}

// awaitAddresses returns when every NIC is settled, or after the limit.
func (m *machine) awaitAddresses(limit time.Duration) {
	end := time.After(limit)
	for {
		m.mu.Lock()
		all := true
		for _, n := range m.nics {
			all = all && n.settled
		}
		ch := m.arrived
		m.mu.Unlock()
		if all {
			return
		}
		select {
		case <-ch:
		case <-end:
			return
		}
	}
}

// addresses are the guest's own, with neither loopback nor link-local ones, in the NICs' order.
func addresses() []string {
	var out []string
	ifs, _ := net.Interfaces()
	for _, i := range ifs {
		as, _ := i.Addrs()
		for _, a := range as {
			if n, ok := a.(*net.IPNet); ok && !n.IP.IsLoopback() && !n.IP.IsLinkLocalUnicast() {
				out = append(out, strings.ToLower(n.IP.String()))
			}
		}
	}
	return out
}
