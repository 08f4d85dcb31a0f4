package guard

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/vswitch/inet"
	"drover/internal/vswitch/table"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// village is Names of a small network.
type village struct{}

func (village) Device(ifindex uint32) (string, bool) {
	switch ifindex {
	case 1:
		return "web/net0", true
	case 3:
		return "uplink eth1", false
	}
	return "", false
}

func (village) Network(net uint32) string {
	if net == 7 {
		return "blue"
	}
	return ""
}

func (village) Holder(net uint32, addr netip.Addr) string {
	return map[string]string{"10.0.0.1": "router/net0", "10.0.0.5": "web/net0", "2001:db8::9": "db/net0"}[addr.String()]
}

func (village) Station(net uint32, mac table.MAC) string {
	return map[table.MAC]string{mac1: "web/net0", mac9: "db/net0"}[mac]
}

var everybody = table.MAC{255, 255, 255, 255, 255, 255}

func event(ifindex uint32, r table.Reason, frame []byte) *table.Event {
	e := &table.Event{Ifindex: ifindex, Net: 7, Reason: r, Count: 1, Length: uint32(len(frame)), Captured: uint16(min(len(frame), table.EventBytes))}
	copy(e.Data[:], frame)
	return e
}

func arpFrame(sender table.MAC, addr string) []byte {
	a := netip.MustParseAddr(addr).As4()
	return inet.Ethernet(everybody, mac1, 0, 0x0806, []byte{0, 1, 8, 0, 6, 4, 0, 2}, sender[:], a[:], make([]byte, 10))
}

func ip6Frame(from string, next byte, payload []byte) []byte {
	a, b := netip.MustParseAddr(from).As16(), netip.MustParseAddr("ff02::1").As16()
	h := append(append([]byte{0x60, 0, 0, 0, byte(len(payload) >> 8), byte(len(payload)), next, 255}, a[:]...), b[:]...)
	return inet.Ethernet(table.MAC{0x33, 0x33, 0, 0, 0, 1}, mac1, 0, 0x86dd, h, payload)
}

func advert(target string) []byte {
	a := netip.MustParseAddr(target).As16()
	return append([]byte{136, 0, 0, 0, 0, 0, 0, 0}, a[:]...)
}

func TestThreatTexts(t *testing.T) {
	prefix := append(make([]byte, 16), 3, 4, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x20, 1, 0xd, 0xb8, 0, 0xbe)
	prefix = append(prefix, make([]byte, 10)...)
	prefix[0] = 134
	offer := udpFrame(everybody, mac1, netip.MustParseAddrPort("10.0.0.66:67"), allC4, dhcp4(dhcpv4.MessageTypeOffer, mac9, dhcpv4.WithYourIP([]byte{10, 0, 0, 99})))
	vrrp := table.MAC{0, 0, 0x5e, 0, 1, 7}
	tagged := func(tags ...byte) []byte {
		var b []byte
		for _, v := range tags {
			b = append(b, 0, v, 0x81, 0)
		}
		copy(b[len(b)-2:], []byte{8, 0})
		return inet.Ethernet(mac9, mac1, 0, 0x8100, b)
	}
	for _, tt := range []struct {
		reason table.Reason
		frame  []byte
		want   string
	}{
		{table.DropARP, arpFrame(mac1, "10.0.0.1"), "claims by ARP 10.0.0.1, which belongs to router/net0 (network blue); 1 frame was dropped. If it may have the address, add it to the NIC's addresses"},
		{table.DropARP, arpFrame(mac1, "10.0.0.77"), "claims by ARP 10.0.0.77, which is not bound to it (network blue)"},
		{table.DropARP, arpFrame(mac9, "10.0.0.1"), "says by ARP that 10.0.0.1 is at 52:54:00:00:00:09, but sends from 52:54:00:00:00:01 ("},
		{table.DropARP, arpFrame(mac1, "10.0.0.1")[:30], "sends ARP that is cut off"},
		{table.DropND, ip6Frame("fe80::1", 58, advert("2001:db8::9")), "claims by neighbour discovery 2001:db8::9, which belongs to db/net0"},
		{table.DropND, ip6Frame("fe80::1", 60, append([]byte{58, 0, 1, 4, 0, 0, 0, 0}, advert("2001:db8::9")...)), "claims by neighbour discovery 2001:db8::9, which belongs to db/net0"},
		{table.DropND, ip6Frame("2001:db8::9", 58, make([]byte, 24)), "asks by neighbour discovery as 2001:db8::9, which belongs to db/net0"},
		{table.DropSourceIP, udpFrame(mac9, mac1, netip.MustParseAddrPort("10.0.0.1:1"), server4, nil), "sends as 10.0.0.1, which belongs to router/net0"},
		{table.DropSourceMAC, inet.Ethernet(mac1, mac9, 0, 0x0800), "sends from MAC 52:54:00:00:00:09, which belongs to db/net0"},
		{table.DropSourceMAC, inet.Ethernet(mac1, mac2, 0, 0x0800), "sends from MAC 52:54:00:00:00:02, which is not registered for it"},
		{table.DropNewMAC, inet.Ethernet(mac1, mac2, 0, 0x0800), "wants to use MAC 52:54:00:00:00:02"},
		{table.DropDHCPServer, offer, "answers DHCP as if it were a server: 10.0.0.66 offers 10.0.0.99"},
		{table.DropDHCPServer, reply6(mac9, time.Hour, "2001:db8::5"), "answers DHCP as if it were a server, from fe80::99"},
		{table.DropDHCPClient, udpFrame(everybody, mac1, client4, all4, dhcp4(dhcpv4.MessageTypeDiscover, mac9)), "asks by DHCP for an address of 52:54:00:00:00:09, which belongs to db/net0, but sends from 52:54:00:00:00:01"},
		{table.DropDHCPClient, udpFrame(everybody, mac1, client4, all4, make([]byte, 20)), "sends DHCP requests that are cut off"},
		{table.DropRA, ip6Frame("fe80::1", 58, prefix), "advertises itself as a router for 2001:db8:be::/64, from fe80::1"},
		{table.DropRA, ip6Frame("fe80::1", 58, []byte{134, 0}), "advertises itself as an IPv6 router, from fe80::1"},
		{table.DropRA, ip6Frame("fe80::1", 58, []byte{137, 0}), "sends ICMPv6 redirects from fe80::1"},
		{table.DropBPDU, inet.Ethernet(everybody, mac1, 0, 38), "sends spanning tree frames"},
		{table.DropL2Control, inet.Ethernet(table.MAC{1, 0x80, 0xc2, 0, 0, 0xe}, mac1, 0, 0x88cc, []byte{2, 7, 4}), "sends switch control frames: 52:54:00:00:00:01 → 01:80:c2:00:00:0e LLDP"},
		{table.DropVirtualRouter, inet.Ethernet(mac9, vrrp, 0, 0x0800), "sends from the virtual router's MAC 00:00:5e:00:01:07"},
		{table.DropVirtualRouter, arpFrame(vrrp, "10.0.0.1"), "says by ARP that 10.0.0.1 is at the virtual router's MAC 00:00:5e:00:01:07"},
		{table.DropVirtualRouter, ip6Frame("fe80::1", 112, make([]byte, 20)), "speaks VRRP or CARP, from fe80::1"},
		{table.DropVirtualRouter, udpFrame(mac9, mac1, netip.MustParseAddrPort("10.0.0.5:1985"), netip.MustParseAddrPort("224.0.0.2:1985"), nil), "speaks HSRP, from 10.0.0.5"},
		{table.DropTagged, tagged(20), "sends frames tagged with VLAN 20, but may not tag"},
		{table.DropTagged, tagged(0), "sends frames with a priority tag (VLAN 0)"},
		{table.DropVLAN, tagged(30), "sends frames tagged with VLAN 30, which its trunk does not carry"},
		{table.DropVLAN, inet.Ethernet(mac9, mac1, 0, 0x0800), "sends untagged frames, but its trunk has no native VLAN"},
		{table.DropDoubleTag, tagged(1, 20), "sends frames with two tags, VLAN 20 in VLAN 1"},
		{table.DropStormBroadcast, arpFrame(mac1, "10.0.0.5"), "sends more broadcasts than it may: "},
		{table.DropFragment, ip6Frame("fe80::1", 44, []byte{58, 0, 0, 1, 0, 0, 0, 0}), "sends fragments or headers that hide what is in them: "},
		{table.Reason(60), nil, "for a reason that this version does not know: "},
	} {
		got, ok := NewThreats(village{}).Heard(event(1, tt.reason, tt.frame), epoch)
		if !ok || !strings.HasPrefix(got.Text(), tt.want) {
			t.Errorf("%v: %v %q, want %q", tt.reason, ok, got.Text(), tt.want)
		}
		if _, kind, reason, _ := got.Event(); kind != "port" || reason != tt.reason.String() {
			t.Errorf("%v: event of a %s, %s", tt.reason, kind, reason)
		}
	}
}

// An outer tag may have been beside the frame.
func TestThreatNamesTagBesideFrame(t *testing.T) {
	e := event(1, table.DropTagged, inet.Ethernet(mac9, mac1, 0, 0x0800))
	e.VID = 0x1000 | 20
	if x, _ := NewThreats(village{}).Heard(e, epoch); x.Claim != "sends frames tagged with VLAN 20, but may not tag" {
		t.Errorf("claim %q", x.Claim)
	}
}

func TestEverydayDropsAreNoThreats(t *testing.T) {
	th := NewThreats(village{})
	for _, r := range []table.Reason{table.DropUnregistered, table.DropRateIn, table.DropPVLAN, table.DropAnswered, table.DropPortDown} {
		if x, ok := th.Heard(event(1, r, arpFrame(mac1, "10.0.0.1")), epoch); ok {
			t.Errorf("%v is told: %s", r, x.Text())
		}
	}
	if x, ok := th.Heard(event(3, table.DropVLAN, arpFrame(mac1, "10.0.0.1")), epoch); ok {
		t.Errorf("a VLAN of an uplink that nobody uses is told: %s", x.Text())
	}
	x, ok := th.Heard(event(4, table.DropVTEP, nil), epoch)
	if severity, kind, _, message := x.Event(); !ok || severity != v1.Severity_SEVERITY_WARNING || kind != "host" || !strings.HasPrefix(message, "device 4: gets overlay packets") {
		t.Errorf("%v, %v of a %s: %s", ok, severity, kind, message)
	}
}

// An attack of an hour is told six times, with all its frames; when it stops and begins again it is told at once.
func TestThreatsAreToldLessAndLess(t *testing.T) {
	th := NewThreats(village{})
	var told []string
	frames := uint64(0)
	tell := func(at time.Duration, x Threat) {
		told = append(told, fmt.Sprint(at))
		frames += x.Count
	}
	const end = 2 * time.Hour
	sent := uint64(0)
	for at := time.Duration(0); at < end; at += time.Second {
		e := event(1, table.DropARP, arpFrame(mac1, "10.0.0.1"))
		e.Count = 50
		sent += 50
		if x, ok := th.Heard(e, epoch.Add(at)); ok {
			tell(at, x)
		}
		for _, x := range th.Tick(epoch.Add(at)) {
			tell(at, x)
		}
	}
	if got := strings.Join(told, " "); got != "0s 10s 1m10s 11m10s 1h11m10s" {
		t.Errorf("told at %s", got)
	}
	at, ok := th.Next()
	if !ok {
		t.Fatal("what was not told yet is forgotten")
	}
	last := th.Tick(at)
	if len(last) != 1 || !strings.Contains(last[0].Text(), "frames were dropped in the last 60 min") {
		t.Fatalf("told at the end: %+v", last)
	}
	if frames += last[0].Count; frames != sent {
		t.Errorf("%d frames were told of, of %d", frames, sent)
	}
	at, _ = th.Next()
	if more := th.Tick(at); len(more) != 0 {
		t.Errorf("told though it has stopped: %v", more)
	}
	if _, ok := th.Next(); ok {
		t.Error("what has stopped is not forgotten")
	}
	if _, ok := th.Heard(event(1, table.DropARP, arpFrame(mac1, "10.0.0.1")), at); !ok {
		t.Error("a new attack is not told at once")
	}
	th.Forget(1)
	if len(th.running) != 0 {
		t.Error("a port that is gone is not forgotten")
	}
}

func FuzzThreat(f *testing.F) {
	for r := range table.Reason(table.Reasons) {
		f.Add(uint32(r), uint16(128), uint16(0x1014), arpFrame(mac1, "10.0.0.1"))
		f.Add(uint32(r), uint16(128), uint16(0), ip6Frame("2001:db8::9", 60, append([]byte{58, 0, 1, 4, 0, 0, 0, 0}, advert("2001:db8::9")...)))
		f.Add(uint32(r), uint16(128), uint16(0), ip6Frame("2001:db8::9", 58, append([]byte{134}, make([]byte, 60)...)))
		f.Add(uint32(r), uint16(300), uint16(0), udpFrame(mac9, mac1, server4, allC4, make([]byte, 60)))
	}
	f.Fuzz(func(t *testing.T, reason uint32, captured, vid uint16, b []byte) {
		e := event(1, table.Reason(reason), b)
		e.Captured, e.VID = captured, vid
		x := NewThreats(village{}).Describe(e, epoch)
		if x.Claim == "" || x.Text() == "" {
			t.Error("no text")
		}
		if len(x.Text()) > 1000 {
			t.Errorf("text of %d bytes", len(x.Text()))
		}
	})
}
