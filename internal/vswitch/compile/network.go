package compile

import (
	"cmp"
	"fmt"
	"slices"

	v1 "drover/api/drover/v1"
	"drover/internal/vswitch/table"
)

// DefaultTeam is the team of uplinks that a physical side without a name uses.
const DefaultTeam = "default"

// Bytes that a tunnel adds to a frame's payload: outer IP, UDP, VXLAN and the inner Ethernet header (RFC 7348), and WireGuard over that: outer IP,
// UDP, its header and tag.
const (
	VXLANOverIP4     = 50
	VXLANOverIP6     = 70
	WireGuardOverIP4 = 60
	WireGuardOverIP6 = 80
)

// MTU of networks that name none.
const (
	mtuPhysical  = 1500
	mtuOverlay   = 1430
	mtuEncrypted = 1350
)

// Connection is how this host reaches a network.
type Connection struct {
	Name string
	Net  uint32
	MTU  int
	VID  uint16
	Team string
	// Uplinks are the devices of its physical side; none: it has none here.
	Uplinks []string
	// Overlay says that frames for other hosts go into tunnels.
	Overlay   bool
	Encrypted bool
	// Connects says that VMs can be put on it here. If not, Problems of the result say why.
	Connects bool

	spec *v1.NetworkSpec
}

// MTUOf is a network's MTU, as chosen or by default.
func MTUOf(n *v1.Network) int {
	switch {
	case n.GetStatus().GetMtu() != 0:
		return int(n.GetStatus().GetMtu())
	case n.GetSpec().GetMtu() != 0:
		return int(n.GetSpec().GetMtu())
	case n.GetSpec().GetOverlay().GetEncrypted():
		return mtuEncrypted
	case hasOverlay(n.GetSpec()):
		return mtuOverlay
	}
	return mtuPhysical
}

// hasOverlay: with neither side a network is an overlay.
func hasOverlay(s *v1.NetworkSpec) bool { return s.GetOverlay() != nil || s.GetPhysical() == nil }

func vniOf(n *v1.Network) uint32 {
	if v := n.GetStatus().GetVni(); v != 0 {
		return uint32(v)
	}
	return uint32(n.GetSpec().GetVni())
}

func teamOf(s *v1.NetworkSpec) string { return cmp.Or(s.GetPhysical().GetTeam(), DefaultTeam) }

// vidOf is a network's VLAN on uplinks of a site.
func vidOf(s *v1.NetworkSpec, site string) uint16 {
	p := s.GetPhysical()
	if v, ok := p.GetSiteVlans()[site]; ok {
		return uint16(v)
	}
	return uint16(p.GetVlan())
}

// connect says how this host reaches each network of its site.
func (v *View) connect(nets []*v1.Network) {
	nets = slices.SortedFunc(slices.Values(nets), func(a, b *v1.Network) int { return cmp.Compare(a.GetMeta().GetName(), b.GetMeta().GetName()) })
	for _, n := range nets {
		s, name := n.GetSpec(), n.GetMeta().GetName()
		if sites := s.GetSites(); len(sites) > 0 && !slices.Contains(sites, v.site) {
			continue
		}
		c := &Connection{Name: name, Net: vniOf(n), MTU: MTUOf(n), Team: teamOf(s), Encrypted: s.GetOverlay().GetEncrypted(), spec: s}
		if c.Net == 0 || c.Net >= 1<<24 {
			v.problem(Problem{Network: name, Reason: "NETWORK_NUMBER", Message: fmt.Sprintf("network %s has no number yet (VNI %d)", name, c.Net)})
			continue
		}
		if other := v.byNet[c.Net]; other != nil {
			v.problem(Problem{Network: name, Reason: "NETWORK_NUMBER", Message: fmt.Sprintf("networks %s and %s have the same number %d", other.Name, name, c.Net)})
			continue
		}
		physical, overlay := v.physicalSide(c), v.overlaySide(c)
		c.Connects = physical || overlay
		v.byNet[c.Net], v.byName[name] = c, c
	}
}

// physicalSide fills in the uplinks, and says whether they can carry the network.
func (v *View) physicalSide(c *Connection) bool {
	if c.spec.GetPhysical() == nil {
		return false
	}
	c.VID = vidOf(c.spec, v.site)
	fits := true
	missing := ""
	for _, u := range v.uplinks {
		if u.Team != c.Team {
			continue
		}
		if u.Ifindex == 0 {
			missing += " " + u.Name
			continue
		}
		c.Uplinks = append(c.Uplinks, u.Name)
		if u.MTU < c.MTU {
			fits = false
			v.problem(Problem{Network: c.Name, Reason: "MTU_TOO_LARGE", Message: fmt.Sprintf("network %s has an MTU of %d bytes, and uplink %s one of %d", c.Name, c.MTU, u.Name, u.MTU)})
		}
	}
	switch {
	case len(c.Uplinks) > 0:
		return fits
	case missing != "":
		v.problem(Problem{Network: c.Name, Reason: "UPLINK_MISSING", Message: fmt.Sprintf("network %s: no uplink of team %s is there; looked for:%s", c.Name, c.Team, missing)})
	default:
		v.problem(Problem{Network: c.Name, Reason: "UPLINK_MISSING", Message: fmt.Sprintf("network %s: this host has no team of uplinks %s; start its agent with --uplink DEVICE, or set spec.teams of the host", c.Name, c.Team)})
	}
	return false
}

// overlaySide says whether tunnels can carry the network.
func (v *View) overlaySide(c *Connection) bool {
	if !hasOverlay(c.spec) {
		return false
	}
	if v.overlay.Ifindex == 0 {
		v.problem(Problem{Network: c.Name, Reason: "OVERLAY_UNAVAILABLE", Message: fmt.Sprintf("network %s: %s", c.Name, cmp.Or(v.overlay.Reason, "this host has no overlay"))})
		return false
	}
	c.Overlay = true
	need := c.MTU + VXLANOverIP4
	if v.overlay.Six || c.Encrypted {
		need = c.MTU + VXLANOverIP6 // the addresses in encrypted tunnels are IPv6
	}
	if c.Encrypted {
		if v.overlay.Six {
			need += WireGuardOverIP6
		} else {
			need += WireGuardOverIP4
		}
		if !v.overlay.Encrypted {
			v.problem(Problem{Network: c.Name, Reason: "TUNNEL_UNAVAILABLE", Message: fmt.Sprintf("network %s is encrypted between sites: %s", c.Name, cmp.Or(v.overlay.EncryptedReason, "this host has no encrypted tunnel"))})
		}
	}
	if v.overlay.MTU != 0 && need > v.overlay.MTU {
		v.problem(Problem{Network: c.Name, Reason: "MTU_TOO_LARGE", Message: fmt.Sprintf("network %s has an MTU of %d bytes, which makes packets of %d bytes between hosts; the way to other hosts carries %d", c.Name, c.MTU, need, v.overlay.MTU)})
		return false
	}
	return true
}

// network is a network's row, but for its members.
func (v *View) network(c *Connection) table.Network {
	row := table.Network{Team: v.teams[c.Team], VID: c.VID, MTU: uint16(c.MTU)}
	if len(c.Uplinks) > 0 {
		row.Flags |= table.NetworkUplink
	}
	if c.Overlay {
		row.Flags |= table.NetworkOverlay
	}
	if c.Overlay && c.Encrypted {
		row.Flags |= table.NetworkEncrypted
	}
	if !c.spec.GetNoSnooping() {
		row.Flags |= table.NetworkSnooping
	}
	if !c.spec.GetNoProxy() {
		row.Flags |= table.NetworkProxy
	}
	return row
}

// uplinkVID is the VLAN that a port's frames in its own network have on the uplinks, if its role has one of its own there.
func uplinkVID(p *port) uint16 {
	if p.native == nil || len(p.native.Uplinks) == 0 {
		return 0
	}
	private := p.native.spec.GetPrivateVlans()
	switch roleOf(p.policy.GetPrivateRole()) {
	case table.PVLANIsolated:
		return uint16(private.GetIsolatedVlan())
	case table.PVLANCommunity:
		return uint16(private.GetCommunityVlans()[p.policy.GetCommunity()])
	}
	return 0
}

// uplinkVLANs adds the rows of a network's VLANs on its uplinks.
func (v *View) uplinkVLANs(t *table.Tables, c *Connection) {
	private := c.spec.GetPrivateVlans()
	for _, u := range v.uplinks {
		if u.Ifindex == 0 || u.Team != c.Team || len(c.Uplinks) == 0 {
			continue
		}
		add := func(vid uint16, row table.UplinkVLAN) {
			key := table.UplinkKey{Ifindex: u.Ifindex, VID: uint32(vid)}
			if old, taken := t.UplinkVLANs[key]; taken && old.Net != row.Net {
				v.problem(Problem{Network: c.Name, Reason: "VLAN_CONFLICT", Message: fmt.Sprintf("network %s: VLAN %d on uplink %s is network %s's", c.Name, vid, u.Name, v.byNet[old.Net].Name)})
				return
			}
			t.UplinkVLANs[key] = row
		}
		primary := table.UplinkVLAN{Net: c.Net}
		if private != nil {
			primary.PVLAN = table.PVLANPromiscuous
		}
		add(c.VID, primary)
		if vid := private.GetIsolatedVlan(); vid != 0 {
			add(uint16(vid), table.UplinkVLAN{Net: c.Net, PVLAN: table.PVLANIsolated})
		}
		for _, community := range sortedKeys(private.GetCommunityVlans()) {
			add(uint16(private.GetCommunityVlans()[community]), table.UplinkVLAN{Net: c.Net, PVLAN: table.PVLANCommunity, Community: uint16(community)})
		}
	}
}

// Physical says whether the network has a side on uplinks, here or elsewhere.
func (c *Connection) Physical() bool { return c.spec.GetPhysical() != nil }
