package guard

import (
	"fmt"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/vswitch/table"
)

// Threat is what a port, or somebody else at a device of the switch, did that it may not do.
type Threat struct {
	// Device is "web/net0", with IsPort, or "uplink eth1".
	Device  string
	IsPort  bool
	Network string
	Reason  table.Reason
	// Claim is what it did: "claims by ARP 10.0.0.1, which belongs to db/net0".
	Claim string
	// Remedy is what to do if it may do that; empty: nothing.
	Remedy string
	// Count is how many frames were dropped for this since it was last told.
	Count uint64
	// Over is the time in which they were; 0: it is told for the first time.
	Over time.Duration
	Time time.Time
}

// Text is the threat in a sentence or three, for people.
func (t Threat) Text() string {
	s := t.Claim
	if t.Network != "" {
		s += " (network " + t.Network + ")"
	}
	frames := "1 frame was"
	if t.Count != 1 {
		frames = fmt.Sprintf("%d frames were", t.Count)
	}
	s += "; " + frames + " dropped"
	if t.Over > 0 {
		s += " in the last " + words(t.Over)
	}
	if t.Remedy != "" {
		s += ". " + t.Remedy
	}
	return s
}

// Event is the threat for the list of events. Its kind is "port" or, for other devices, "host", which the caller names.
func (t Threat) Event() (severity v1.Severity, kind, reason, message string) {
	severity = v1.Severity_SEVERITY_WARNING
	switch t.Reason {
	case table.DropNewMAC, table.DropMTU, table.DropVLAN, table.DropTagged:
		severity = v1.Severity_SEVERITY_INFO
	}
	if t.IsPort {
		return severity, "port", t.Reason.String(), t.Text()
	}
	return severity, "host", t.Reason.String(), t.Device + ": " + t.Text()
}

// remedies say how each may be allowed. Reasons that are not here have no remedy in a profile.
var remedies = map[table.Reason]string{
	table.DropARP:            "If it may have the address, add it to the NIC's addresses",
	table.DropND:             "If it may have the address, add it to the NIC's addresses",
	table.DropSourceIP:       "If it may have the address, add it to the NIC's addresses",
	table.DropSourceMAC:      "If it may use other MACs, set security.mac_changes or security.forged_transmits in its profile",
	table.DropDHCPServer:     "If it is a DHCP server, turn guards.dhcp_server off in its profile",
	table.DropDHCPRate:       "If it needs more, raise guards.dhcp_rate in its profile",
	table.DropRA:             "If it is a router, turn guards.ra off in its profile",
	table.DropVirtualRouter:  "If it is one of a pair of routers, turn guards.virtual_router off in its profile and list guards.virtual_addresses",
	table.DropBPDU:           "If other VMs must see them, turn guards.bpdu off in its profile; they never leave the host",
	table.DropL2Control:      "If other VMs must see them, turn guards.control off in its profile; they never leave the host",
	table.DropTagged:         "If it may tag, give it a trunk in its profile",
	table.DropVLAN:           "If it may use the VLAN, add it to the trunk of its profile",
	table.DropStormBroadcast: "If it needs more, raise guards.storm.broadcast in its profile",
	table.DropStormMulticast: "If it needs more, raise guards.storm.multicast in its profile",
	table.DropStormUnknown:   "If it needs more, raise guards.storm.unknown_unicast in its profile",
	table.DropMTU:            "Set the guest's MTU to the network's",
}

// everyday are reasons that say nothing of a guest's doing wrong, at ports or uplinks: counters have them.
func everyday(r table.Reason, isPort bool) bool {
	switch r {
	case table.DropNone, table.DropNoPort, table.DropPortDown, table.DropRateIn, table.DropRateOut, table.DropUnregistered, table.DropHairpin, table.DropSplitHorizon, table.DropPVLAN,
		table.DropReflected, table.DropNotActive, table.DropNetwork, table.DropNoUplink, table.DropRedirect, table.DropZone, table.DropReservedUplink, table.DropPunted, table.DropAnswered:
		return true
	case table.DropVLAN, table.DropTagged, table.DropDoubleTag, table.DropMTU, table.DropMalformed, table.DropFragment, table.DropSourceMulticast:
		return !isPort // a trunk to the host may carry more than is used here
	}
	return false
}

// gaps are the times between tellings of one thing that goes on.
var gaps = [...]time.Duration{10 * time.Second, time.Minute, 10 * time.Minute, time.Hour}

type threatKey struct {
	ifindex uint32
	reason  table.Reason
}

type running struct {
	told   time.Time
	due    time.Time
	step   int // of gaps
	latest Threat
	count  uint64 // since told
}

// Threats turns events into threats: what begins is told at once, what goes on after 10 s, 1 min, 10 min and then every hour, with counts. Make it with NewThreats.
type Threats struct {
	names   Names
	running map[threatKey]*running
}

// NewThreats makes one that has told nothing yet.
func NewThreats(names Names) *Threats {
	return &Threats{names: names, running: map[threatKey]*running{}}
}

// Describe is an event in words, told or not.
func (t *Threats) Describe(e *table.Event, now time.Time) Threat {
	device, isPort := t.names.Device(e.Ifindex)
	if device == "" {
		device = fmt.Sprintf("device %d", e.Ifindex)
	}
	c := claim{e: e, names: t.names, port: device}
	c.p, c.whole = parsePacket(e.Data[:min(int(e.Captured), len(e.Data))])
	out := Threat{Device: device, IsPort: isPort, Network: t.names.Network(e.Net), Reason: e.Reason, Claim: c.text(), Count: uint64(max(e.Count, 1)), Time: now}
	if isPort {
		out.Remedy = remedies[e.Reason]
	}
	return out
}

// Heard takes an event. ok says that it is to be told now.
func (t *Threats) Heard(e *table.Event, now time.Time) (x Threat, ok bool) {
	_, isPort := t.names.Device(e.Ifindex)
	if everyday(e.Reason, isPort) {
		return x, false
	}
	k := threatKey{e.Ifindex, e.Reason}
	x = t.Describe(e, now)
	r := t.running[k]
	if r == nil {
		t.running[k] = &running{told: now, due: now.Add(gaps[0])}
		return x, true
	}
	r.latest = x
	r.count += x.Count
	if now.Before(r.due) {
		return x, false
	}
	return r.tell(now), true
}

// tell takes what is to be told now, and waits longer for the next.
func (r *running) tell(now time.Time) Threat {
	x := r.latest
	x.Count, x.Over = r.count, now.Sub(r.told)
	r.step = min(r.step+1, len(gaps)-1)
	r.count, r.told, r.due = 0, now, now.Add(gaps[r.step])
	return x
}

// Tick tells what went on since it was last told and is due, and forgets what has stopped.
func (t *Threats) Tick(now time.Time) []Threat {
	var out []Threat
	for k, r := range t.running {
		switch {
		case now.Before(r.due):
		case r.count > 0:
			out = append(out, r.tell(now))
		default:
			delete(t.running, k)
		}
	}
	return out
}

// Next is when Tick has something to do.
func (t *Threats) Next() (at time.Time, ok bool) {
	for _, r := range t.running {
		if !ok || r.due.Before(at) {
			at, ok = r.due, true
		}
	}
	return at, ok
}

// Forget drops what is known of a device that is gone.
func (t *Threats) Forget(ifindex uint32) {
	for k := range t.running {
		if k.ifindex == ifindex {
			delete(t.running, k)
		}
	}
}

// words is a time as people say it.
func words(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", max(1, int(d.Round(time.Second).Seconds())))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Round(time.Minute).Minutes()))
	}
	return fmt.Sprintf("%d h", int(d.Round(time.Hour).Hours()))
}
