package attack

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"drover/internal/vswitch/frame"
	"drover/internal/vswitch/table"
)

// attack is a tool and what must come of it.
type attack struct {
	name string
	// argv is the command; ATT, VIC, BY and RT stand for addresses, with 6 behind for IPv6, with M for MACs.
	argv string
	// router: it comes from behind the uplink.
	router bool
	// reasons: least frames are dropped for one of these; 0: what is allowed has come to the victim, and did nothing.
	reasons []table.Reason
	least   uint64
	// provoke is what others do meanwhile.
	provoke func(r *rig)
	// allow are frames of the attack that others may get, at most times each.
	allow func(f []byte) bool
	most  int
}

func of(reasons ...table.Reason) []table.Reason { return reasons }

func attacks() []attack {
	return []attack{
		{name: "macof: random MACs to fill tables", argv: "macof -i eth0 -n 5000", reasons: of(table.DropSourceMAC, table.DropSourceMulticast), least: 4000},
		{name: "arpspoof: I am the router", argv: "arpspoof -i eth0 -t VIC RT", reasons: of(table.DropARP), least: 1,
			allow: udpTo(67), most: 2}, // it provokes the victim's ARP by a datagram
		{name: "ettercap: in the middle by ARP", argv: "ettercap -T -q -i eth0 -M arp:remote /VIC// /RT//", reasons: of(table.DropARP), least: 2},
		{name: "yersinia: spanning tree configuration", argv: "yersinia stp -attack 2 -interface eth0", reasons: of(table.DropBPDU), least: 1000},
		{name: "yersinia: spanning tree changes", argv: "yersinia stp -attack 3 -interface eth0", reasons: of(table.DropBPDU), least: 1000},
		{name: "yersinia: CDP table", argv: "yersinia cdp -attack 1 -interface eth0", reasons: of(table.DropL2Control), least: 1000},
		{name: "yersinia: DTP, become a trunk", argv: "yersinia dtp -attack 1 -interface eth0", reasons: of(table.DropL2Control), least: 1},
		{name: "yersinia: VTP", argv: "yersinia vtp -attack 0 -interface eth0", reasons: of(table.DropL2Control), least: 1},
		{name: "yersinia: HSRP", argv: "yersinia hsrp -attack 0 -interface eth0", reasons: of(table.DropSourceMAC, table.DropSourceMulticast, table.DropVirtualRouter), least: 1},
		{name: "yersinia: use up DHCP leases", argv: "yersinia dhcp -attack 1 -interface eth0", reasons: of(table.DropSourceMAC, table.DropSourceMulticast), least: 1000},
		{name: "mausezahn: HSRP from the own MAC", argv: "mausezahn eth0 -q -c 200 -d 1m -a ATTM -b 01:00:5e:00:00:02 -A ATT -B 224.0.0.2 -t udp sp=1985,dp=1985", reasons: of(table.DropVirtualRouter), least: 200},
		{name: "mausezahn: DHCP requests from the own MAC", argv: "mausezahn eth0 -q -c 500 -a ATTM -b bcast -A 0.0.0.0 -B 255.255.255.255 -t udp sp=68,dp=67,p=01:01:06" + strings.Repeat(":00", 25) + ":ATTM",
			reasons: of(table.DropDHCPRate), least: 400, allow: udpTo(67), most: 100},
		{name: "mausezahn: DHCP requests for another MAC", argv: "mausezahn eth0 -q -c 200 -a ATTM -b bcast -A 0.0.0.0 -B 255.255.255.255 -t udp sp=68,dp=67,p=01:01:06" + strings.Repeat(":00", 25) + ":02:66:77:00:00:09",
			reasons: of(table.DropDHCPClient), least: 200},
		{name: "mausezahn: a DHCP server", argv: "mausezahn eth0 -q -c 200 -a ATTM -b bcast -A ATT -B 255.255.255.255 -t udp sp=67,dp=68", reasons: of(table.DropDHCPServer), least: 200},
		{name: "mausezahn: double tags", argv: "mausezahn eth0 -q -c 200 -Q 7,200 -a ATTM -b VICM -A ATT -B VIC -t udp sp=9,dp=9", reasons: of(table.DropDoubleTag), least: 200},
		{name: "mausezahn: a tag on an access port", argv: "mausezahn eth0 -q -c 200 -Q 7 -a ATTM -b VICM -A ATT -B VIC -t udp sp=9,dp=9", reasons: of(table.DropTagged), least: 200},
		{name: "mausezahn: pause frames", argv: "mausezahn eth0 -q -c 200 -a ATTM -b 01:80:c2:00:00:01 -p 60 88:08:00:01:ff:ff", reasons: of(table.DropL2Control), least: 200},
		{name: "mausezahn: the victim's MAC", argv: "mausezahn eth0 -q -c 200 -a VICM -b BYM -A VIC -B BY -t udp sp=9,dp=9", reasons: of(table.DropSourceMAC), least: 200},
		{name: "mausezahn: a storm of broadcasts", argv: "mausezahn eth0 -q -c 20000 -a ATTM -b bcast -A ATT -B 10.66.0.255 -t udp sp=9,dp=9", reasons: of(table.DropStormBroadcast), least: 10000,
			allow: udpTo(9), most: 9000},
		{name: "hping3: another's address", argv: "hping3 -q -i u200 -2 -a BY -p 9 VIC", reasons: of(table.DropSourceIP), least: 500},
		{name: "hping3: random addresses", argv: "hping3 -q -i u200 -S --rand-source -p 9 VIC", reasons: of(table.DropSourceIP), least: 500},
		{name: "hping3: a flood of SYN from another's address", argv: "hping3 -q --flood -S -a RT -p 9 VIC", reasons: of(table.DropSourceIP), least: 5000},
		{name: "thc-ipv6: a router", argv: "atk6-fake_router26 -i 1 -A fd99::/64 eth0", reasons: of(table.DropRA), least: 1},
		{name: "thc-ipv6: a router behind a fragment header", argv: "atk6-fake_router26 -i 1 -E 1 -A fd99::/64 eth0", reasons: of(table.DropRA, table.DropFragment), least: 1},
		{name: "thc-ipv6: a router behind a hop-by-hop header", argv: "atk6-fake_router26 -i 1 -E H -A fd99::/64 eth0", reasons: of(table.DropRA, table.DropFragment), least: 1},
		{name: "thc-ipv6: a router in fragments", argv: "atk6-fake_router26 -i 1 -E D -A fd99::/64 eth0", reasons: of(table.DropRA, table.DropFragment), least: 1,
			allow: fragment, most: 10}, // those behind the first are nothing without it
		// An honest first fragment, and one that writes over it: those who put fragments together have to throw both away (RFC 5722), which no switch can.
		{name: "thc-ipv6: a router in fragments that overlap", argv: "atk6-fake_router26 -i 1 -E o -A fd99::/64 eth0", allow: fragment, most: 20},
		{name: "thc-ipv6: the same in the other order", argv: "atk6-fake_router26 -i 1 -E O -A fd99::/64 eth0", allow: fragment, most: 20},
		{name: "thc-ipv6: a flood of routers", argv: "atk6-flood_router26 eth0", reasons: of(table.DropSourceMAC, table.DropSourceMulticast), least: 1000},
		{name: "thc-ipv6: the victim is me", argv: "atk6-fake_advertise6 eth0 VIC6", reasons: of(table.DropND, table.DropSourceIP), least: 1},
		{name: "thc-ipv6: everybody is me", argv: "atk6-parasite6 eth0", reasons: of(table.DropND, table.DropSourceIP), least: 1, provoke: askForNobody},
		{name: "thc-ipv6: a flood of solicitations", argv: "atk6-flood_solicitate6 eth0 VIC6", reasons: of(table.DropSourceMAC, table.DropSourceMulticast), least: 1000},
		{name: "thc-ipv6: redirects", argv: "atk6-redir6 eth0 VIC6 fd99::1 RT6 ATT6", reasons: of(table.DropRA, table.DropSourceMAC, table.DropSourceIP), least: 1},
		{name: "thc-ipv6: smurf", argv: "atk6-smurf6 eth0 VIC6", reasons: of(table.DropSourceMAC, table.DropSourceIP), least: 1000},
		{name: "from the wire: the victim's MAC", argv: "mausezahn eth0 -q -c 200 -a VICM -b BYM -A VIC -B BY -t udp sp=9,dp=9", router: true, reasons: of(table.DropReflected), least: 200},
		{name: "from the wire: another VLAN", argv: "mausezahn eth0 -q -c 200 -Q 8 -a RTM -b VICM -A RT -B VIC -t udp sp=9,dp=9", router: true, reasons: of(table.DropVLAN), least: 200},
		{name: "from the wire: unknown destinations", argv: "mausezahn eth0 -q -c 200 -a RTM -b 02:66:77:00:00:01 -A RT -B 10.66.0.77 -t udp sp=9,dp=9", router: true, reasons: of(table.DropUnregistered), least: 200},
	}
}

// udpTo says whether a frame goes to an IPv4 UDP port.
func udpTo(port uint16) func([]byte) bool {
	return func(f []byte) bool {
		return len(f) >= 42 && f[12] == 8 && f[13] == 0 && f[14] == 0x45 && f[23] == 17 && binary.BigEndian.Uint16(f[36:]) == port
	}
}

// fragment says whether a frame is part of an IPv6 packet.
func fragment(f []byte) bool { return len(f) >= 54 && f[12] == 0x86 && f[13] == 0xdd && f[20] == 44 }

// askForNobody has the victim look for an address that nobody has: it is told by all ports, the attacker's too.
func askForNobody(r *rig) {
	for i := range 5 {
		x := r.start(r.victim, "ping", "-n", "-c1", "-W1", fmt.Sprintf("fd66::77%02x", i))
		must(r.t, x.stopAfter(200*time.Millisecond))
	}
}

// stopAfter gives a tool time, and then ends it.
func (x *tool) stopAfter(d time.Duration) error {
	select {
	case <-time.After(d):
		return x.stop()
	case <-x.done:
		return nil
	}
}

func (r *rig) command(text string) []string {
	for _, g := range []struct {
		short string
		*guest
	}{{"ATT", r.attacker}, {"VIC", r.victim}, {"RT", r.router}, {"BY", r.bystander}} {
		text = strings.NewReplacer(g.short+"6", g.ip6.String(), g.short+"M", g.macText(), g.short, g.ip4.String()).Replace(text)
	}
	return strings.Fields(text)
}

// truth checks that a guest believes of everybody what is so.
func (r *rig) truth(t *testing.T, g *guest) {
	t.Helper()
	right := map[netip.Addr]string{}
	for _, x := range []*guest{r.attacker, r.victim, r.bystander, r.router} {
		right[x.ip4], right[x.ip6], right[frame.LinkLocal(x.mac)] = x.macText(), x.macText(), x.macText()
	}
	for a, mac := range r.neighbours(g) {
		if right[a] != mac {
			t.Errorf("%s believes that %v is at %s: it is at %q", g.name, a, mac, right[a])
		}
	}
}

// TestAttacks runs every attack.
func TestAttacks(t *testing.T) {
	r := newRig(t)
	all := []*guest{r.attacker, r.victim, r.bystander, r.router}
	watchers := []*watcher{watch(t, r.victim, all...), watch(t, r.bystander, all...), watch(t, r.router, all...)}
	s := newStream(t, r.victim, r.router)
	r.warm(t, s)
	for _, a := range attacks() {
		t.Run(a.name, func(t *testing.T) { r.attack(t, a, watchers, s) })
	}
	t.Run("without guards the harm is done", func(t *testing.T) { r.unguarded(t, watchers) })
}

// warm waits until the victim's traffic flows.
func (r *rig) warm(t *testing.T, s *stream) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		from := s.now()
		time.Sleep(100 * time.Millisecond)
		tentative := strings.Contains(r.belongings(r.victim)+r.belongings(r.bystander)+r.belongings(r.attacker), "tentative")
		if s.now() > from+10 && s.lost(from) == nil && !tentative {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the victim does not reach the router; dropped: %v, %v", r.dropped(r.victim.slot), r.dropped(1))
		}
	}
}

func (r *rig) attack(t *testing.T, a attack, watchers []*watcher, s *stream) {
	from, slot := r.attacker, r.attacker.slot
	if a.router {
		from, slot = r.router, 1
	}
	for _, w := range watchers {
		w.reset(a.allow)
	}
	tables, err := r.dp.Tables()
	must(t, err)
	belongings := r.belongings(r.victim) + r.belongings(r.bystander)
	before, first := r.dropped(slot), s.now()

	x := r.start(from, r.command(a.argv)...)
	if a.provoke != nil {
		a.provoke(r)
	}
	count := func() (n uint64) {
		now := r.dropped(slot)
		for _, reason := range a.reasons {
			n += now[reason] - before[reason]
		}
		return n
	}
	enough := func() bool {
		if a.least > 0 {
			return count() >= a.least
		}
		_, allowed, _ := watchers[0].result() // what passes has come to the victim
		return allowed > 0
	}
	deadline := time.Now().Add(8 * time.Second)
	for !enough() && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
	}
	// More of it, and time for what should not have come to come.
	time.Sleep(300 * time.Millisecond)
	err = x.stop()
	if n := count(); !enough() {
		if err != nil {
			t.Errorf("%s: %v", a.argv, err)
		}
		t.Errorf("%d frames dropped for %v, want %d or more; by reason: %v\n%s", n, a.reasons, a.least, since(r.dropped(slot), before), x.said())
	}
	for _, w := range watchers {
		if a.router && w.g == r.router {
			continue
		}
		hostile, allowed, seen := w.result()
		if hostile > 0 || allowed > a.most {
			t.Errorf("%s got %d frames that it should not have got, and %d that it may, of which %d are right: %q", w.g.name, hostile, allowed, a.most, seen)
		}
	}
	for _, g := range []*guest{r.victim, r.bystander, r.router} {
		r.truth(t, g)
	}
	if now := r.belongings(r.victim) + r.belongings(r.bystander); now != belongings {
		t.Errorf("addresses and routes changed:\n%s\nbefore:\n%s", now, belongings)
	}
	after, err := r.dp.Tables()
	must(t, err)
	if !maps.Equal(after.FDB, tables.FDB) {
		t.Errorf("registrations changed: %v, were %v", after.FDB, tables.FDB)
	}
	if !maps.Equal(after.Bindings, tables.Bindings) {
		t.Errorf("bindings changed: %v, were %v", after.Bindings, tables.Bindings)
	}
	if err := s.lost(first); err != nil {
		t.Error(err)
	}
}

func since(now, before map[table.Reason]uint64) string {
	var out []string
	for _, reason := range slices.Sorted(maps.Keys(now)) {
		if n := now[reason] - before[reason]; n > 0 {
			out = append(out, fmt.Sprintf("%v %d", reason, n))
		}
	}
	return strings.Join(out, ", ")
}

// unguarded shows that the test sees harm where there is some: the attacker's port gets a profile without guards.
func (r *rig) unguarded(t *testing.T, watchers []*watcher) {
	r.profile("open")
	for _, w := range watchers {
		w.reset(nil)
	}
	wait := func(what string, argv string, happened func() bool) {
		t.Helper()
		x := r.start(r.attacker, r.command(argv)...)
		deadline := time.Now().Add(8 * time.Second)
		ok := happened()
		for ; !ok && time.Now().Before(deadline); ok = happened() {
			time.Sleep(20 * time.Millisecond)
		}
		if err := x.stop(); !ok {
			t.Errorf("%s: it did not happen (%v): %s", what, err, x.said())
		}
	}
	wait("the victim is poisoned by ARP", "arpspoof -i eth0 -t VIC RT", func() bool { return r.neighbours(r.victim)[r.router.ip4] == r.attacker.macText() })
	wait("the victim believes a router", "atk6-fake_router26 -i 1 -A fd99::/64 eth0", func() bool { return strings.Contains(r.belongings(r.victim), "fd99:") })
	wait("the wire gets random MACs", "macof -i eth0", func() bool { n, _, _ := watchers[2].result(); return n > 200 })
	wait("the bystander gets spanning tree", "yersinia stp -attack 2 -interface eth0", func() bool {
		_, _, seen := watchers[1].result()
		return len(seen) > 0
	})
}
