package model

import (
	"fmt"

	"drover/internal/vswitch/table"
)

type floodMode int

const (
	floodEverywhere floodMode = iota
	floodHere                 // members of this host only
	floodWatchers             // promiscuous members of this host
)

// pushedWord is a tag that is pushed, as records of the rings have it.
func pushedWord(vid uint16) uint16 {
	if vid == 0 {
		return 0
	}
	return vidWord(vid)
}

func tagWords(vid uint16) string {
	if vid == 0 {
		return ""
	}
	return fmt.Sprintf(", tagged with VLAN %d", vid)
}

// watch gives unicast frames to promiscuous ports, too.
func (w *walk) watch(to table.FDBEntry) {
	if w.network.Flags&table.NetworkWatched == 0 {
		return
	}
	skip := uint32(0)
	if to.Place == table.PlaceLocal {
		skip = to.Target
	}
	w.flood(floodWatchers, skip, 0)
}

// isSnooped tells groups that only those get who asked for them: not those of the link itself, which hosts need not join aloud (RFC 4541).
func (w *walk) isSnooped() bool {
	if w.network.Flags&table.NetworkSnooping == 0 || w.dst == broadcast || w.parse() != table.DropNone || w.p.family == 0 {
		return false
	}
	a := w.p.dst
	if w.p.family == 4 {
		return a[12]>>4 == 14 && [3]byte(a[12:15]) != [3]byte{224, 0, 0}
	}
	if a[0] != 0xff {
		return false
	}
	solicited := [13]byte(a[:13]) == [13]byte{0: 0xff, 1: 2, 11: 1, 12: 0xff}
	return a != table.IP{0: 0xff, 1: 2, 15: 1} && a != table.IP{0: 0xff, 1: 2, 15: 2} && !solicited
}

// isReport tells reports of IGMPv1, IGMPv2 and MLDv1: only routers may hear them, as hosts that do keep their own back (RFC 4541, 2.1.1).
func (w *walk) isReport() bool {
	if w.network.Flags&table.NetworkSnooping == 0 || w.dst == broadcast || w.parse() != table.DropNone {
		return false
	}
	if w.p.family == 6 {
		return w.isICMP6() && w.p.icmp == 131
	}
	if w.p.family != 4 || w.p.l4 != protoIGMP || w.p.fragment == 2 || w.p.l4Offset >= len(w.b) {
		return false
	}
	return w.b[w.p.l4Offset] == 0x12 || w.b[w.p.l4Offset] == 0x16
}

// flood sends copies to the members of the frame's network, and by the uplink.
func (w *walk) flood(mode floodMode, skip, team uint32) table.Reason {
	sent, withheld := 0, 0
	report := mode != floodWatchers && w.isReport()
	snooped := report || mode != floodWatchers && w.isSnooped()
	if w.trace && mode != floodWatchers {
		kind := "a group"
		if w.dst == broadcast {
			kind = "everybody"
		}
		switch {
		case report:
			kind = fmt.Sprintf("routers: a report of %s", w.p.dst.Addr())
		case snooped:
			kind = fmt.Sprintf("those who listen to %s", w.p.dst.Addr())
		}
		w.say("flood", true, "%s: for %s in %s", text(w.dst), kind, w.m.names.Network(w.net))
	}
	for row := range w.network.Members {
		m, ok := w.m.t.Members[table.MemberKey{Net: w.net, Row: row}]
		switch {
		case !ok:
		case m.Place == table.PlaceTunnel:
			if mode == floodEverywhere && w.toTunnel(m.Target, true) == table.DropNone {
				sent++
			}
		case m.Place != table.PlaceLocal || m.Target == w.ifindex:
		case mode == floodWatchers && (m.Flags&table.MemberPromiscuous == 0 || m.Target == skip):
		case snooped && !w.listens(&m, report):
		default:
			to, ok := w.m.t.Ports[m.Target]
			if !ok {
				continue
			}
			if mode != floodWatchers && w.origin == fromUplink && !w.isActive(&to, team) {
				withheld++
				if w.trace {
					w.say("flood", false, "%s gets group frames by another uplink", w.m.names.Port(m.Target))
				}
				continue
			}
			if w.admit("flood", m.Target, &to) != table.DropNone {
				continue
			}
			w.handOver(m.Target, &to, m.VID)
			w.output(Output{Ifindex: m.Target, Place: table.PlaceLocal, Tagged: m.VID != 0, VID: m.VID, Copy: true})
			sent++
			if w.trace {
				w.say("flood", true, "a copy goes to %s%s", w.m.names.Port(m.Target), tagWords(m.VID))
			}
		}
	}
	if mode == floodWatchers {
		return table.DropNone
	}
	w.result.Verdict = Flooded
	if mode == floodEverywhere && w.network.Flags&table.NetworkUplink != 0 {
		if r := w.toUplink(true); r != table.DropNone && sent == 0 {
			return r
		}
		return table.DropNone
	}
	if withheld > 0 && sent == 0 {
		return table.DropNotActive
	}
	return table.DropNone
}

func (w *walk) listens(m *table.Member, report bool) bool {
	if m.Flags&(table.MemberAllGroups|table.MemberPromiscuous) != 0 || report {
		return m.Flags&(table.MemberAllGroups|table.MemberPromiscuous) != 0
	}
	_, ok := w.m.t.Groups[table.GroupKey{Net: w.net, Target: m.Target, Group: w.p.dst, Place: uint32(m.Place)}]
	return ok
}

// isActive says whether a port gets group frames by the uplink that one came by: each port by one, so that none gets a frame twice.
func (w *walk) isActive(to *table.Port, team uint32) bool {
	if to.TeamHash == table.TeamByIP {
		return true
	}
	bucket := to.Bucket
	if to.TeamHash == table.TeamByMAC {
		bucket = spread(lastFour(to.MAC))
	}
	return bucket < table.TeamBuckets && w.m.t.Teams[team].Bucket[bucket] == w.ifindex
}
