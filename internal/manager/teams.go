package manager

import (
	"slices"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"
)

// checkTeams refuses teams of uplinks that the host can't have, or that would cut off NICs on it. What the host has not said is not held against it.
func (m *Manager) checkTeams(old, h *v1.Host) error {
	f := resource.FaultsOf(resource.KindHost, h.Meta.Name)
	devices := map[string]*v1.Uplink{}
	for _, u := range h.GetStatus().GetUplinks() {
		devices[u.Name] = u
	}
	had := membersOf(old.Spec.GetTeams())
	for _, t := range h.Spec.GetTeams() {
		for _, d := range slices.Concat(t.Uplinks, t.Standby) {
			switch u := devices[d]; {
			case len(devices) == 0 || had[d] != "":
			case u == nil:
				f.Add("spec.teams["+t.Name+"]", "UPLINK_UNKNOWN", "the host has no device %q that could be an uplink; it has %s", d, strings.Join(sorted(devices), ", "))
			case u.Address != "" && u.Team == "":
				f.Add("spec.teams["+t.Name+"]", "UPLINK_IN_USE", "device %q has the machine's address %s, which the switch would cut off; name one without addresses", d, u.Address)
			}
		}
	}
	if len(h.Spec.GetTeams()) == 0 || slices.EqualFunc(old.Spec.GetTeams(), h.Spec.Teams, sameTeam) {
		return f.Err()
	}
	on := map[string]int{}
	m.eachPort(func(vm *v1.VM, nic *v1.NICSpec, net *v1.Network) {
		if vm.GetStatus().GetOwner() == h.Meta.Name && net.GetSpec().GetPhysical() != nil {
			on[net.Meta.Name]++
		}
	})
	for _, name := range sorted(on) {
		net, ok := m.Networks.cache.Get(name)
		if !ok {
			continue
		}
		team := resource.TeamOf(net.Spec)
		i := slices.IndexFunc(h.Spec.Teams, func(t *v1.UplinkTeam) bool { return t.Name == team })
		if i < 0 {
			if hasTeam(old, team) || slices.Contains(teamNames(old.Spec.GetTeams()), team) {
				f.Add("spec.teams", "TEAM_IN_USE", "%d NICs here are on network %q, which is on team %q; keep the team, or move them", on[name], name, team)
			}
			continue
		}
		for _, d := range slices.Concat(h.Spec.Teams[i].Uplinks, h.Spec.Teams[i].Standby) {
			if u := devices[d]; u != nil && u.Mtu > 0 && u.Mtu < resource.MTUOf(net.Spec) {
				f.Add("spec.teams["+team+"]", "MTU_TOO_LARGE", "uplink %s has MTU %d, and network %q on the team has %d", d, u.Mtu, name, resource.MTUOf(net.Spec))
			}
		}
	}
	return f.Err()
}

func sameTeam(a, b *v1.UplinkTeam) bool {
	return a.Name == b.Name && slices.Equal(a.Uplinks, b.Uplinks) && slices.Equal(a.Standby, b.Standby)
}

func teamNames(teams []*v1.UplinkTeam) []string {
	var list []string
	for _, t := range teams {
		list = append(list, t.Name)
	}
	return list
}

// membersOf are the teams of devices.
func membersOf(teams []*v1.UplinkTeam) map[string]string {
	in := map[string]string{}
	for _, t := range teams {
		for _, d := range slices.Concat(t.Uplinks, t.Standby) {
			in[d] = t.Name
		}
	}
	return in
}
