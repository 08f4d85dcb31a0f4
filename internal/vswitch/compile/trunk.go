package compile

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	v1 "drover/api/drover/v1"
)

func isTrunk(p *v1.PortProfileSpec) bool { return len(p.GetTrunk().GetVlans()) > 0 }

// trunk finds the networks that a trunk's VLANs are, in the port's site and team.
func (v *View) trunk(p *port) error {
	if !isTrunk(p.policy) {
		return nil
	}
	vlans, err := ParseVLANs(p.policy.GetTrunk().GetVlans())
	if err != nil {
		return err
	}
	if p.policy.GetTrunk().GetNoNative() {
		p.native = nil
	}
	byVLAN := map[uint16]*Connection{}
	for _, net := range sortedKeys(v.byNet) {
		c := v.byNet[net]
		if c.spec.GetPhysical() != nil && c.VID != 0 && c.Team == p.home.Team && byVLAN[c.VID] == nil {
			byVLAN[c.VID] = c
		}
	}
	for _, vid := range vlans {
		if c := byVLAN[vid]; c != nil && c != p.native {
			p.tagged = append(p.tagged, tagged{vid, c})
		}
	}
	return nil
}

// ParseVLANs reads "10" and "20-29" into VLANs in order, each once.
func ParseVLANs(list []string) ([]uint16, error) {
	var out []uint16
	for _, s := range list {
		lo, hi, isRange := strings.Cut(strings.TrimSpace(s), "-")
		first, err := vlan(lo)
		last := first
		if err == nil && isRange {
			last, err = vlan(hi)
		}
		if err != nil || last < first {
			return nil, fmt.Errorf("trunk VLANs %q: want a VLAN from 1 to 4094, or a range like 20-29", s)
		}
		for vid := first; vid <= last; vid++ {
			out = append(out, uint16(vid))
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

func vlan(s string) (int, error) {
	n, err := strconv.Atoi(strings.TrimSpace(s))
	if err == nil && (n < 1 || n > 4094) {
		err = strconv.ErrRange
	}
	return n, err
}
