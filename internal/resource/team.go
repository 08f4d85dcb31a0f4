package resource

import (
	"regexp"
	"time"

	v1 "drover/api/drover/v1"
)

// device is what the kernel takes as the name of a link, but for odd characters.
var device = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.@-]{0,14}$`)

const (
	maxTeams        = 16
	maxUplinks      = 16
	longestFailback = time.Hour
)

// checkTeams says what is wrong with the teams of a host's uplinks. That a device isn't there is for the host to say.
func checkTeams(f *Faults, teams []*v1.UplinkTeam) {
	if len(teams) > maxTeams {
		f.Add("spec.teams", "TOO_MANY", "%d teams; at most %d", len(teams), maxTeams)
		return
	}
	names, used := map[string]bool{}, map[string]string{}
	for _, t := range teams {
		at := "spec.teams[" + t.GetName() + "]"
		checkPart(f, at, t.GetName(), names)
		if len(t.GetUplinks()) == 0 {
			f.Add(at+".uplinks", "UPLINK_MISSING", "a team needs at least one uplink that is not on standby")
		}
		if n := len(t.GetUplinks()) + len(t.GetStandby()); n > maxUplinks {
			f.Add(at, "TOO_MANY", "%d uplinks; at most %d", n, maxUplinks)
			continue
		}
		for field, list := range map[string][]string{"uplinks": t.GetUplinks(), "standby": t.GetStandby()} {
			for _, d := range list {
				if !device.MatchString(d) {
					f.Add(at+"."+field, "NAME_INVALID", "%q is not the name of a network device, which has at most 15 characters", d)
				}
			}
		}
		for _, d := range append(append([]string{}, t.GetUplinks()...), t.GetStandby()...) {
			if by, ok := used[d]; ok {
				f.Add(at, "UPLINK_TAKEN", "uplink %q stands in team %q already; a device is in one team, once, either in use or on standby", d, by)
			}
			used[d] = t.GetName()
		}
		if d := t.GetFailbackDelay().AsDuration(); d < 0 || d > longestFailback {
			f.Add(at+".failback_delay", "OUT_OF_RANGE", "%v; must be 0 to %v", d, longestFailback)
		}
		if t.GetNoFailback() && t.GetFailbackDelay().AsDuration() > 0 {
			f.Add(at+".failback_delay", "CONTRADICTION", "is the delay of what no_failback rules out")
		}
		if t.GetPolicy() == v1.TeamPolicy_TEAM_POLICY_IP && len(t.GetStandby()) > 0 {
			f.Add(at+".standby", "CONTRADICTION", "the policy by IP needs all uplinks in one bundle of the physical switch, which has no standby")
		}
		if t.GetBeacon() && len(t.GetUplinks())+len(t.GetStandby()) < 2 {
			f.Add(at+".beacon", "CONTRADICTION", "beacons go from one uplink of a team to another, and there is one only")
		}
	}
}
