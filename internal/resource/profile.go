package resource

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	v1 "drover/api/drover/v1"
)

// The profiles that are always there.
const (
	DefaultProfile = "default"
	SecureProfile  = "secure"
)

// MaxChain bounds how many profiles inherit from each other, the last one included.
const MaxChain = 8

// Bounds of a profile.
const (
	maxMACs        = 64
	maxDHCPRate    = 10_000
	maxStorm       = 100_000_000
	maxVirtual     = 16
	maxTrunkRanges = 256
	maxSession     = 1023
	maxRate        = 1 << 40 // 1 Tbit/s
	minRate        = 64_000
	maxBurst       = 1 << 30
	minBurst       = 9216 + 18 // one largest frame: less would let it never pass
)

// BuiltinProfiles are the specs of the profiles that are always there, by name.
func BuiltinProfiles() map[string]*v1.PortProfileSpec {
	const on, off = v1.Toggle_TOGGLE_ON, v1.Toggle_TOGGLE_OFF
	return map[string]*v1.PortProfileSpec{
		DefaultProfile: {
			Description: "Guards that need to know no addresses. What other profiles leave open is as it is here.",
			Security:    &v1.Security{Promiscuous: off, ForgedTransmits: off, MacChanges: off},
			Guards: &v1.Guards{
				IpSource: off, Arp: off, Nd: off, DhcpSnooping: off,
				DhcpServer: on, DhcpRate: 15, Ra: on, Bpdu: on, Control: on, VirtualRouter: on,
				Storm: &v1.StormControl{Broadcast: 1000, Multicast: 5000, UnknownUnicast: 2000},
			},
			PrivateRole: v1.PrivateRole_PRIVATE_ROLE_NONE,
			Qos:         &v1.QoS{In: &v1.Rate{LimitBps: -1}, Out: &v1.Rate{LimitBps: -1}, Dscp: -1},
		},
		SecureProfile: {
			Description: "All guards: a port sends from its own MAC and from addresses that are assigned to it or leased by DHCP.",
			Parent:      DefaultProfile,
			Guards:      &v1.Guards{IpSource: on, Arp: on, Nd: on, DhcpSnooping: on},
		},
	}
}

// CheckProfile says what is wrong with a port profile by itself. What its parents make of it is CheckEffective's.
func CheckProfile(p *v1.PortProfile) error {
	f := begin(KindProfile, p.GetMeta(), false)
	s := p.GetSpec()
	checkEnums(f, s)
	checkText(f, "spec.description", s.GetDescription(), 1024)
	if s.GetParent() != "" && !ValidName(s.GetParent()) {
		f.Add("spec.parent", "NAME_INVALID", "%q is not the name of a port profile", s.GetParent())
	}
	between := func(at string, v, least, most int64) {
		if v < least || v > most {
			f.Add(at, "OUT_OF_RANGE", "%d; must be %d to %d", v, least, most)
		}
	}
	between("spec.security.mac_limit", int64(s.GetSecurity().GetMacLimit()), 0, maxMACs)
	g := s.GetGuards()
	between("spec.guards.dhcp_rate", int64(g.GetDhcpRate()), 0, maxDHCPRate)
	between("spec.guards.storm.broadcast", int64(g.GetStorm().GetBroadcast()), -1, maxStorm)
	between("spec.guards.storm.multicast", int64(g.GetStorm().GetMulticast()), -1, maxStorm)
	between("spec.guards.storm.unknown_unicast", int64(g.GetStorm().GetUnknownUnicast()), -1, maxStorm)
	checkVirtual(f, g.GetVirtualAddresses())
	if _, err := ParseVLANs(s.GetTrunk().GetVlans()); err != nil {
		f.Add("spec.trunk.vlans", "VLAN_INVALID", "%v", err)
	}
	if n := len(s.GetTrunk().GetVlans()); n > maxTrunkRanges {
		f.Add("spec.trunk.vlans", "TOO_MANY", "%d ranges; at most %d", n, maxTrunkRanges)
	}
	if s.GetTrunk().GetNoNative() && len(s.Trunk.Vlans) == 0 {
		f.Add("spec.trunk.no_native", "CONTRADICTION", "a trunk with neither VLANs nor a native network carries nothing; name its VLANs")
	}
	between("spec.community", int64(s.GetCommunity()), 0, maxCommunity)
	switch isCommunity := s.GetPrivateRole() == v1.PrivateRole_PRIVATE_ROLE_COMMUNITY; {
	case isCommunity && s.GetCommunity() == 0:
		f.Add("spec.community", "COMMUNITY_MISSING", "a port of a community needs its number, 1 to %d", maxCommunity)
	case !isCommunity && s.GetCommunity() != 0:
		f.Add("spec.community", "CONTRADICTION", "only a port with private_role community is in one")
	}
	checkRate(f, "spec.qos.in", s.GetQos().GetIn(), true)
	checkRate(f, "spec.qos.out", s.GetQos().GetOut(), false)
	between("spec.qos.dscp", int64(s.GetQos().GetDscp()), -1, 63)
	between("spec.qos.cos", int64(s.GetQos().GetCos()), 0, 7)
	checkMirror(f, s.GetMirror())
	return f.Err()
}

func checkVirtual(f *Faults, list []string) {
	seen := map[netip.Addr]bool{}
	if len(list) > maxVirtual {
		f.Add("spec.guards.virtual_addresses", "TOO_MANY", "%d addresses; at most %d", len(list), maxVirtual)
		return
	}
	for _, v := range list {
		a, err := netip.ParseAddr(v)
		switch {
		case err != nil || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback():
			f.Add("spec.guards.virtual_addresses", "ADDRESS_INVALID", "%q is not an IP address of a router", v)
		case seen[a]:
			f.Add("spec.guards.virtual_addresses", "NAME_TAKEN", "%s stands twice", a)
		}
		seen[a] = true
	}
}

func checkRate(f *Faults, at string, r *v1.Rate, guaranteed bool) {
	if r == nil {
		return
	}
	if l := r.LimitBps; l != 0 && l != -1 && (l < minRate || l > maxRate) {
		f.Add(at+".limit_bps", "OUT_OF_RANGE", "%d; must be %d to %d bits a second, -1 for no limit, or 0 to inherit", l, minRate, int64(maxRate))
	}
	if b := r.BurstBytes; b != 0 && (b < minBurst || b > maxBurst) {
		f.Add(at+".burst_bytes", "OUT_OF_RANGE", "%d; must be %d, so that the largest frame passes, to %d bytes, or 0 for the default", b, minBurst, maxBurst)
	}
	switch g := r.GuaranteeBps; {
	case g == 0:
	case !guaranteed:
		f.Add(at+".guarantee_bps", "CONTRADICTION", "is of frames from the guest, on the uplink; set qos.in.guarantee_bps")
	case g != -1 && (g < minRate || g > maxRate):
		f.Add(at+".guarantee_bps", "OUT_OF_RANGE", "%d; must be %d to %d bits a second, -1 for none, or 0 to inherit", g, minRate, int64(maxRate))
	case r.LimitBps > 0 && g > r.LimitBps:
		f.Add(at+".guarantee_bps", "CONTRADICTION", "%d is more than the limit %d", g, r.LimitBps)
	}
}

func checkMirror(f *Faults, m *v1.Mirror) {
	if m == nil {
		return
	}
	on := m.In || m.Out
	switch {
	case m.Port != "" && m.Address != "":
		f.Add("spec.mirror", "CONTRADICTION", "copies go to a port or to an address, not to both")
	case on && m.Port == "" && m.Address == "":
		f.Add("spec.mirror", "TARGET_MISSING", "copies need a port or an address to go to")
	case !on && (m.Port != "" || m.Address != ""):
		f.Add("spec.mirror", "CONTRADICTION", "has a target and copies nothing; set in, out or both")
	}
	if _, _, ok := Part(m.Port); m.Port != "" && !ok {
		f.Add("spec.mirror.port", "NAME_INVALID", "%q is not the name of a port, VM/NIC", m.Port)
	}
	if m.Address != "" {
		if a, err := netip.ParseAddr(m.Address); err != nil || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
			f.Add("spec.mirror.address", "ADDRESS_INVALID", "%q is not an address that copies can be sent to", m.Address)
		}
	}
	if m.Session < 0 || m.Session > maxSession {
		f.Add("spec.mirror.session", "OUT_OF_RANGE", "%d; must be 1 to %d", m.Session, maxSession)
	}
	if m.Session != 0 && m.Address == "" {
		f.Add("spec.mirror.session", "CONTRADICTION", "is of copies to an address")
	}
	if m.Address != "" && m.Session == 0 {
		f.Add("spec.mirror.session", "SESSION_MISSING", "copies to an address need a session, 1 to %d", maxSession)
	}
}

// CheckEffective adds what contradicts itself only together with what is inherited. own is what the profile itself says.
func CheckEffective(f *Faults, own, effective *v1.PortProfileSpec) {
	sec := effective.GetSecurity()
	changes := sec.GetMacChanges() == v1.Toggle_TOGGLE_ON
	if changes && sec.GetMacLimit() == 1 {
		f.Add("spec.security.mac_limit", "CONTRADICTION", "1 is the port's own MAC, so mac_changes could grant none; set 2 or more, or mac_changes off")
	}
	if !changes && own.GetSecurity().GetMacLimit() > 1 {
		f.Add("spec.security.mac_limit", "CONTRADICTION", "%d, but mac_changes is off, so that a port has its own MAC only", own.Security.MacLimit)
	}
	trunk := len(effective.GetTrunk().GetVlans()) > 0
	if role := effective.GetPrivateRole(); trunk && (role == v1.PrivateRole_PRIVATE_ROLE_ISOLATED || role == v1.PrivateRole_PRIVATE_ROLE_COMMUNITY) {
		f.Add("spec.trunk", "CONTRADICTION", "a trunk carries several networks, and private role %s is of one; let the role be none or promiscuous", Word(role))
	}
	if in := effective.GetQos().GetIn(); in.GetLimitBps() > 0 && in.GetGuaranteeBps() > in.LimitBps {
		f.Add("spec.qos.in.guarantee_bps", "CONTRADICTION", "%d is more than the limit %d; one of them is inherited", in.GuaranteeBps, in.LimitBps)
	}
	if effective.GetGuards().GetVirtualRouter() == v1.Toggle_TOGGLE_ON && len(own.GetGuards().GetVirtualAddresses()) > 0 {
		f.Add("spec.guards.virtual_addresses", "CONTRADICTION", "no port may hold a virtual address while the guard virtual_router is on; turn it off")
	}
}

// ParseVLANs are the VLANs of a trunk, "10" or "20-29", in order and once each.
func ParseVLANs(list []string) ([]uint16, error) {
	var seen [maxVLAN + 1]bool
	number := func(s string) (int, bool) {
		n, err := strconv.Atoi(s)
		return n, err == nil && n >= 1 && n <= maxVLAN && strconv.Itoa(n) == s
	}
	for _, s := range list {
		lo, hi, ranged := strings.Cut(s, "-")
		if !ranged {
			hi = lo
		}
		a, ok1 := number(lo)
		b, ok2 := number(hi)
		if !ok1 || !ok2 || a > b {
			return nil, &Error{Code: Invalid, Message: strconv.Quote(s) + " is neither a VLAN from 1 to 4094 nor a range of them such as 20-29"}
		}
		for v := a; v <= b; v++ {
			seen[v] = true
		}
	}
	var vlans []uint16
	for v, is := range seen {
		if is {
			vlans = append(vlans, uint16(v))
		}
	}
	return vlans, nil
}

// Builtin reports whether a profile is one that can't be changed.
func Builtin(profile string) bool {
	return slices.Contains([]string{DefaultProfile, SecureProfile}, profile)
}
