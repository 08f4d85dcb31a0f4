package host

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/disk/seed"
)

// writeSeed makes the cloud-init seed, anew at each start: what it says follows the spec.
func (m *machine) writeSeed(vm *v1.VM) error {
	c := vm.GetSpec().GetCloudInit()
	if !c.GetEnabled() {
		return nil
	}
	data, err := m.seed(vm, c)
	if err != nil {
		return err
	}
	// Drover's QEMU opens it by descriptor, but again as its own user; it holds nothing that its guest doesn't see.
	return writeFile(m.seedPath(), data, 0o600)
}

func (m *machine) seed(vm *v1.VM, c *v1.CloudInit) ([]byte, error) {
	s := seed.Seed{InstanceID: m.uid, Hostname: cmp.Or(c.GetHostname(), vm.GetMeta().GetName()), UserData: []byte(c.GetUserData())}
	if c.GetUser() != "" {
		s.Users = []seed.User{{Name: c.GetUser(), Sudo: true, SSHKeys: c.GetSshAuthorizedKeys()}}
	} else {
		s.SSHKeys = c.GetSshAuthorizedKeys()
	}
	for _, n := range vm.GetSpec().GetNics() {
		nic, err := m.seedNIC(n)
		if err != nil {
			return nil, fmt.Errorf("NIC %s: %w", n.GetName(), err)
		}
		s.NICs = append(s.NICs, nic)
	}
	if c.GetNetworkConfig() == "" {
		return s.ISO()
	}
	files, err := s.Files()
	if err != nil {
		return nil, err
	}
	for i := range files {
		if files[i].Name == "network-config" {
			files = append(files[:i], files[i+1:]...)
			break
		}
	}
	return seed.Build("cidata", append(files, seed.File{Name: "network-config", Data: []byte(c.GetNetworkConfig())}))
}

func (m *machine) seedNIC(n *v1.NICSpec) (seed.NIC, error) {
	out := seed.NIC{MAC: strings.ToLower(n.GetMac()), DHCP4: len(n.GetAddresses()) == 0}
	if mtu := m.a.mtu(n.GetNetwork()); mtu != mtuEthernet {
		out.MTU = mtu
	}
	for _, a := range n.GetAddresses() {
		p, err := netip.ParsePrefix(a)
		if err != nil {
			return out, err
		}
		out.Addresses = append(out.Addresses, p)
	}
	for list, to := range map[*[]netip.Addr][]string{&out.Gateways: n.GetGateways(), &out.DNS: n.GetNameservers()} {
		for _, a := range to {
			addr, err := netip.ParseAddr(a)
			if err != nil {
				return out, err
			}
			*list = append(*list, addr)
		}
	}
	return out, nil
}
