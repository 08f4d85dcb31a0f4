package resource

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	v1 "drover/api/drover/v1"
)

// The range of MTUs: what IPv6 needs at least (RFC 8200, 5), to what switches call jumbo.
const (
	minMTU = 1280
	maxMTU = 9216
)

// What networks get that say nothing of their MTU: an overlay leaves this of 1500 also over IPv6.
const (
	defaultMTU   = 1500
	overlayMTU   = 1430
	encryptedMTU = 1350
)

// Bounds of the numbers on the wire (IEEE 802.1Q, RFC 7348, RFC 5517).
const (
	maxVLAN      = 4094
	maxVNI       = 1<<24 - 1
	maxCommunity = 65535
)

// DefaultTeam is the team of uplinks of networks and hosts that name none.
const DefaultTeam = "default"

// CheckNetwork says what is wrong with a network.
func CheckNetwork(n *v1.Network) error {
	f := begin(KindNetwork, n.GetMeta(), false)
	s := n.GetSpec()
	checkText(f, "spec.description", s.GetDescription(), 1024)
	if m := s.GetMtu(); m != 0 && (m < minMTU || m > maxMTU) {
		f.Add("spec.mtu", "OUT_OF_RANGE", "%d; must be %d to %d, or 0 for the default", m, minMTU, maxMTU)
	}
	seen := map[string]bool{}
	for _, site := range s.GetSites() {
		if !ValidName(site) {
			f.Add("spec.sites", "NAME_INVALID", "%q is not the name of a site", site)
		}
		if seen[site] {
			f.Add("spec.sites", "NAME_TAKEN", "%q stands twice", site)
		}
		seen[site] = true
	}
	for _, p := range s.GetPrefixes() {
		if x, err := netip.ParsePrefix(p); err != nil || x.Masked() != x {
			f.Add("spec.prefixes", "PREFIX_INVALID", "%q is not a network such as 10.1.0.0/24 or 2001:db8::/64", p)
		}
	}
	if v := s.GetVni(); v < 0 || v > maxVNI {
		f.Add("spec.vni", "OUT_OF_RANGE", "%d; must be 1 to %d, or 0 to be given one", v, maxVNI)
	}
	if p := s.GetProfile(); p != "" && !ValidName(p) {
		f.Add("spec.profile", "NAME_INVALID", "%q is not the name of a port profile", p)
	}
	checkPhysical(f, s)
	checkPrivateVLANs(f, s)
	return f.Err()
}

func checkPhysical(f *Faults, s *v1.NetworkSpec) {
	p := s.GetPhysical()
	if p == nil {
		return
	}
	checkVLAN(f, "spec.physical.vlan", p.Vlan, 0)
	for site, v := range p.SiteVlans {
		at := "spec.physical.site_vlans[" + site + "]"
		checkVLAN(f, at, v, 0)
		switch {
		case !ValidName(site):
			f.Add(at, "NAME_INVALID", "%q is not the name of a site", site)
		case len(s.Sites) > 0 && !slices.Contains(s.Sites, site):
			f.Add(at, "CONTRADICTION", "the network does not span site %q; add it to spec.sites, or leave it out here", site)
		}
	}
	if p.Team != "" && !ValidName(p.Team) {
		f.Add("spec.physical.team", "NAME_INVALID", "%q is not the name of a team of uplinks", p.Team)
	}
}

func checkVLAN(f *Faults, at string, v, least int32) {
	if v < least || v > maxVLAN {
		f.Add(at, "OUT_OF_RANGE", "%d; VLANs are 1 to %d%s", v, maxVLAN, map[bool]string{true: ", and 0 is untagged"}[least == 0])
	}
}

func checkPrivateVLANs(f *Faults, s *v1.NetworkSpec) {
	p := s.GetPrivateVlans()
	if p == nil {
		return
	}
	tagged := p.IsolatedVlan != 0 || len(p.CommunityVlans) > 0
	if tagged && s.Physical == nil {
		f.Add("spec.private_vlans", "CONTRADICTION", "says how ports look on the uplinks, and the network has no physical side; roles of ports are in their profiles and need none")
		return
	}
	taken := map[int32]string{}
	for _, v := range primaries(s) {
		taken[v] = "the network itself"
	}
	take := func(at string, v int32, who string) {
		checkVLAN(f, at, v, 1)
		if by := taken[v]; by != "" {
			f.Add(at, "VLAN_TAKEN", "VLAN %d is that of %s already; a secondary VLAN has a number of its own", v, by)
			return
		}
		taken[v] = who
	}
	if p.IsolatedVlan != 0 {
		take("spec.private_vlans.isolated_vlan", p.IsolatedVlan, "isolated ports")
	}
	for _, c := range communities(p) {
		at := fmt.Sprintf("spec.private_vlans.community_vlans[%d]", c)
		if c < 1 || c > maxCommunity {
			f.Add(at, "OUT_OF_RANGE", "communities have the numbers 1 to %d", maxCommunity)
		}
		take(at, p.CommunityVlans[c], fmt.Sprintf("community %d", c))
	}
}

// communities are in order, so that faults are always told in the same one.
func communities(p *v1.PrivateVLANs) []int32 {
	list := make([]int32, 0, len(p.GetCommunityVlans()))
	for c := range p.GetCommunityVlans() {
		list = append(list, c)
	}
	slices.Sort(list)
	return list
}

// primaries are the VLANs that a network has itself, in any site.
func primaries(s *v1.NetworkSpec) []int32 {
	list := []int32{s.GetPhysical().GetVlan()}
	for _, v := range s.GetPhysical().GetSiteVlans() {
		list = append(list, v)
	}
	return list
}

// HasOverlay reports whether a network has a side between hosts: it says so, or it has no other.
func HasOverlay(s *v1.NetworkSpec) bool { return s.GetOverlay() != nil || s.GetPhysical() == nil }

// MTUOf is the MTU of a network: its own, or what follows from its sides.
func MTUOf(s *v1.NetworkSpec) int32 {
	switch {
	case s.GetMtu() != 0:
		return s.Mtu
	case s.GetOverlay().GetEncrypted():
		return encryptedMTU
	case HasOverlay(s):
		return overlayMTU
	}
	return defaultMTU
}

// Overhead is what a network's frames grow by between hosts, counted from MTU to MTU: the inner Ethernet header (14), VXLAN (8, RFC 7348),
// UDP (8) and IP (20 or 40); encrypted also what WireGuard counts with its own UDP and IP, 60 or 80.
func Overhead(s *v1.NetworkSpec, outer netip.Addr) int32 {
	n, enc := int32(50), int32(60)
	if outer.Is6() && !outer.Is4In6() {
		n, enc = 70, 80
	}
	if s.GetOverlay().GetEncrypted() {
		n += enc
	}
	return n
}

// TeamOf is the team of uplinks that a network's physical side is on.
func TeamOf(s *v1.NetworkSpec) string {
	if t := s.GetPhysical().GetTeam(); t != "" {
		return t
	}
	return DefaultTeam
}

// Spans reports whether a network is there in a site.
func Spans(s *v1.NetworkSpec, site string) bool {
	return len(s.GetSites()) == 0 || slices.Contains(s.GetSites(), site)
}

// VLANAt is the VLAN of a network's physical side in a site; 0 is untagged.
func VLANAt(s *v1.NetworkSpec, site string) int32 {
	if v, ok := s.GetPhysical().GetSiteVlans()[site]; ok {
		return v
	}
	return s.GetPhysical().GetVlan()
}

// VLANsAt are all VLANs that a network takes on its team's uplinks in a site: its own, that of isolated ports, those of communities.
func VLANsAt(s *v1.NetworkSpec, site string) []int32 {
	if s.GetPhysical() == nil {
		return nil
	}
	list := []int32{VLANAt(s, site)}
	if v := s.GetPrivateVlans().GetIsolatedVlan(); v != 0 {
		list = append(list, v)
	}
	for _, c := range communities(s.GetPrivateVlans()) {
		list = append(list, s.PrivateVlans.CommunityVlans[c])
	}
	return list
}

// TunnelAddress is a host's address inside the encrypted tunnels: fd64:726f:7665::/64 ("drove"), and the first 64 bits of its uid, a UUID.
func TunnelAddress(uid string) (netip.Addr, error) {
	b, err := hex.DecodeString(strings.ReplaceAll(uid, "-", ""))
	if err != nil || len(b) != 16 {
		return netip.Addr{}, fmt.Errorf("uid %q is not a UUID", uid)
	}
	a := [16]byte{0xfd, 0x64, 0x72, 0x6f, 0x76, 0x65}
	copy(a[8:], b[:8])
	return netip.AddrFrom16(a), nil
}
