package announce

import (
	"net/netip"
	"reflect"
	"testing"

	"drover/internal/vswitch/shark"
	"drover/internal/vswitch/table"
)

func TestFrames(t *testing.T) {
	s := Subject{MAC: table.MAC{2, 0, 0, 0, 0, 9}, Addresses: []netip.Addr{netip.MustParseAddr("::ffff:10.0.0.9"), netip.MustParseAddr("2001:db8::9"), {}}}
	frames := Frames(s)
	s.VID = 42
	frames = append(frames, Frames(s)...)
	got := shark.Fields(t, frames, "eth.src", "eth.dst", "vlan.id", "arp.opcode", "arp.isgratuitous", "arp.src.proto_ipv4", "arp.dst.proto_ipv4",
		"icmpv6.type", "ipv6.src", "ipv6.dst", "icmpv6.nd.na.target_address", "icmpv6.nd.na.flag.o", "icmpv6.nd.na.flag.r", "icmpv6.opt.linkaddr", "icmpv6.checksum.status", "ipv6.hlim")
	const mac, all = "02:00:00:00:00:09", "ff:ff:ff:ff:ff:ff"
	var want [][]string
	for _, vid := range []string{"", "42"} {
		want = append(want,
			[]string{mac, all, vid, "3", "", "0.0.0.0", "0.0.0.0", "", "", "", "", "", "", "", "", ""},
			[]string{mac, all, vid, "1", "1", "10.0.0.9", "10.0.0.9", "", "", "", "", "", "", "", "", ""},
			[]string{mac, "33:33:00:00:00:01", vid, "", "", "", "", "136", "2001:db8::9", "ff02::1", "2001:db8::9", "1", "0", mac, "1", "255"})
	}
	for i := range want {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("frame %d: %q\nwant %q", i, got[i], want[i])
		}
		if len(frames[i]) < 60 {
			t.Errorf("frame %d has %d bytes: shorter than Ethernet allows", i, len(frames[i]))
		}
	}
	s.Router = true
	if got := Frames(s); len(got) != 2 {
		t.Errorf("a router got %d frames, want RARP and ARP alone", len(got))
	}
}
