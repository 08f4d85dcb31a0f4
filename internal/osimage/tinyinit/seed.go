package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// networkConfig is a NoCloud network-config, version 2, as far as a test guest needs it.
type networkConfig struct {
	nics []nicConfig
}

type nicConfig struct {
	mac       string
	dhcp      bool
	mtu       int
	addresses []*net.IPNet
	routes    []route
}

type route struct {
	dst *net.IPNet // nil: everything
	via net.IP
}

// forMAC finds a NIC's part; nil means DHCP.
func (c *networkConfig) forMAC(mac net.HardwareAddr) *nicConfig {
	if c == nil {
		return nil
	}
	for i := range c.nics {
		if strings.EqualFold(c.nics[i].mac, mac.String()) {
			return &c.nics[i]
		}
	}
	return nil
}

// findSeed looks for a disk or CD labelled cidata and applies the first one that is found, once in the guest's life.
func (m *machine) findSeed() {
	m.mu.Lock()
	done := m.seeded
	m.mu.Unlock()
	if done {
		return
	}
	blocks, _ := filepath.Glob("/sys/block/*")
	for _, b := range blocks {
		name := filepath.Base(b)
		if strings.HasPrefix(name, "loop") || strings.HasPrefix(name, "ram") {
			continue
		}
		if fs := cidataFS("/dev/" + name); fs != "" {
			if err := m.applySeed("/dev/"+name, fs); err != nil {
				m.printf("seed %s: %v", name, err)
				continue
			}
			return
		}
	}
}

// cidataFS tells the filesystem of a device labelled cidata: iso9660 (ECMA-119 8.4.7), vfat, or none.
func cidataFS(dev string) string {
	f, err := os.Open(dev)
	if err != nil {
		return ""
	}
	defer f.Close()
	buf := make([]byte, 512)
	label := func(off, n int) bool {
		return strings.EqualFold(strings.TrimRight(string(buf[off:off+n]), " \x00"), "cidata")
	}
	if n, _ := f.ReadAt(buf, 0x8000); n == len(buf) && string(buf[1:6]) == "CD001" && label(40, 32) {
		return "iso9660"
	}
	if n, _ := f.ReadAt(buf, 0); n == len(buf) && buf[510] == 0x55 && buf[511] == 0xaa && (label(43, 11) || label(71, 11)) {
		return "vfat"
	}
	return ""
}

func (m *machine) applySeed(dev, fs string) error {
	const dir = "/run/seed"
	os.MkdirAll(dir, 0o700)
	if fs == "iso9660" {
		m.mods.load("isofs")
	} else {
		m.mods.load("vfat")
	}
	if err := syscall.Mount(dev, dir, fs, syscall.MS_RDONLY|syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount %s: %w", fs, err)
	}
	defer syscall.Unmount(dir, 0)
	meta, err := readSmall(dir + "/meta-data")
	if err != nil {
		return err
	}
	if v, err := parseYAML(meta); err == nil {
		if mm, ok := v.(map[string]any); ok {
			for _, k := range []string{"hostname", "local-hostname"} {
				if h, ok := mm[k].(string); ok {
					m.setHostname(h)
				}
			}
		}
	}
	var cfg *networkConfig
	if text, err := readSmall(dir + "/network-config"); err == nil {
		if cfg, err = parseNetworkConfig(text); err != nil {
			m.printf("seed: network-config: %v", err)
		}
	}
	m.mu.Lock()
	m.seeded, m.seed = true, cfg
	late := len(m.nics) > 0
	m.mu.Unlock()
	if late {
		m.reconfigure()
	}
	return nil
}

func readSmall(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	buf := make([]byte, 256<<10)
	n := 0
	for n < len(buf) {
		c, err := f.Read(buf[n:])
		n += c
		if err != nil {
			break
		}
	}
	return string(buf[:n]), nil
}

func parseNetworkConfig(text string) (*networkConfig, error) {
	v, err := parseYAML(text)
	if err != nil {
		return nil, err
	}
	top, _ := v.(map[string]any)
	if n, ok := top["network"].(map[string]any); ok {
		top = n
	}
	if fmt.Sprint(top["version"]) != "2" {
		return nil, fmt.Errorf("version %v is not 2", top["version"])
	}
	eths, _ := top["ethernets"].(map[string]any)
	c := &networkConfig{}
	for id, e := range eths {
		em, _ := e.(map[string]any)
		nic, err := parseNIC(em)
		if err != nil {
			return nil, fmt.Errorf("ethernets.%s: %w", id, err)
		}
		c.nics = append(c.nics, nic)
	}
	return c, nil
}

func parseNIC(em map[string]any) (nicConfig, error) {
	var nic nicConfig
	if mm, ok := em["match"].(map[string]any); ok {
		nic.mac, _ = mm["macaddress"].(string)
	}
	nic.dhcp = yes(em["dhcp4"])
	nic.mtu, _ = strconv.Atoi(fmt.Sprint(em["mtu"]))
	if nic.mtu < 68 || nic.mtu > 65535 {
		nic.mtu = 0
	}
	for _, a := range items(em["addresses"]) {
		s, _ := a.(string)
		ip, n, err := net.ParseCIDR(s)
		if err != nil {
			return nic, fmt.Errorf("address %q is not of the form IP/LENGTH", s)
		}
		nic.addresses = append(nic.addresses, &net.IPNet{IP: ip, Mask: n.Mask})
	}
	for _, k := range []string{"gateway4", "gateway6"} {
		if s, ok := em[k].(string); ok {
			if ip := net.ParseIP(s); ip != nil {
				nic.routes = append(nic.routes, route{via: ip})
			}
		}
	}
	for _, r := range items(em["routes"]) {
		rm, _ := r.(map[string]any)
		to, _ := rm["to"].(string)
		via, _ := rm["via"].(string)
		x := route{via: net.ParseIP(via)}
		if x.via == nil {
			return nic, fmt.Errorf("route via %q is not an address", via)
		}
		if to != "default" && to != "0.0.0.0/0" && to != "::/0" {
			var err error
			if _, x.dst, err = net.ParseCIDR(to); err != nil {
				return nic, fmt.Errorf("route to %q is not a network", to)
			}
		}
		nic.routes = append(nic.routes, x)
	}
	return nic, nil
}

func items(v any) []any {
	l, _ := v.([]any)
	return l
}

func yes(v any) bool {
	switch x := v.(type) {
	case bool:
		return x
	case string:
		return strings.EqualFold(x, "true") || strings.EqualFold(x, "yes") || strings.EqualFold(x, "on")
	}
	return false
}
