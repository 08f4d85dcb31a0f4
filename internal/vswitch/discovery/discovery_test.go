package discovery

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"drover/internal/vswitch/shark"
	"drover/internal/vswitch/table"
)

var self = Self{
	MAC: table.MAC{2, 0, 0, 0, 0, 7}, Chassis: table.MAC{2, 0, 0, 0, 0, 1}, Ifindex: 5, Port: "eth1", System: "host-a", Description: "Drover on Debian 12",
	Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")},
}

func TestHostsAreToldFromSwitches(t *testing.T) {
	for _, frame := range [][]byte{LLDP(self), CDP(self)} {
		if n, err := Parse(frame); err != nil || !n.Host() {
			t.Errorf("%v, %v is no host", n, err)
		}
	}
	for _, s := range []string{"", "Cisco IOS", "Droverlike 1", "cisco WS-C2960, Drover on Debian"} {
		if (Neighbor{Description: s}).Host() {
			t.Errorf("%q is a host", s)
		}
	}
}

func TestTsharkReadsOurFrames(t *testing.T) {
	odd := self
	odd.Description += "!"
	got := shark.Fields(t, [][]byte{LLDP(self)}, "lldp.chassis.id.mac", "lldp.port.id", "lldp.time_to_live", "lldp.tlv.system.name", "lldp.tlv.system.desc",
		"lldp.mgn.addr.ip4", "lldp.mgn.addr.ip6", "lldp.tlv.enable_system_cap.bridge", "eth.dst")
	want := []string{"02:00:00:00:00:01", "eth1", "120", "host-a", "Drover on Debian 12", "192.0.2.7", "2001:db8::7", "1", "01:80:c2:00:00:0e"}
	if !reflect.DeepEqual(got[0], want) {
		t.Errorf("LLDP: %q, want %q", got[0], want)
	}
	for _, s := range []Self{self, odd} {
		got = shark.Fields(t, [][]byte{CDP(s)}, "cdp.version", "cdp.ttl", "cdp.checksum.status", "cdp.deviceid", "cdp.portid", "cdp.nrgyz.ip_address", "cdp.platform", "cdp.software_version", "cdp.capabilities.switch")
		want = []string{"2", "120", "1", "host-a", "eth1", "192.0.2.7", "Drover", s.Description, "1"}
		for i := range want {
			if strings.TrimSpace(got[0][i]) != want[i] {
				t.Errorf("CDP: %q, want %q", got[0], want)
				break
			}
		}
	}
}

func TestParse(t *testing.T) {
	addresses := self.Addresses
	for _, tt := range []struct {
		frame []byte
		want  Neighbor
	}{
		{LLDP(self), Neighbor{"lldp", "02:00:00:00:00:01", "eth1", "host-a", "Drover on Debian 12", addresses, 0, TTL}},
		{append(LLDP(self), make([]byte, 20)...), Neighbor{"lldp", "02:00:00:00:00:01", "eth1", "host-a", "Drover on Debian 12", addresses, 0, TTL}},
		{CDP(self), Neighbor{"cdp", "host-a", "eth1", "host-a", "Drover, Drover on Debian 12", addresses, 0, TTL}},
		{append(CDP(self), 0, 0, 0), Neighbor{"cdp", "host-a", "eth1", "host-a", "Drover, Drover on Debian 12", addresses, 0, TTL}},
		// Chassis and port as text (kind 7), a VLAN, a control sequence in the name.
		{lldp("\x02\x05\x07core", "\x04\x06\x07Gi1/2", "\x06\x02\x00\x78", "\x0a\x05a\x1b[1m", "\xfe\x06\x00\x80\xc2\x01\x00\x2a", "\x00\x00"),
			Neighbor{"lldp", "core", "Gi1/2", "a?[1m", "", nil, 42, TTL}},
	} {
		got, err := Parse(tt.frame)
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("Parse = %+v, %v\nwant    %+v", got, err, tt.want)
		}
	}
}

func lldp(tlvs ...string) []byte {
	return []byte("\x01\x80\xc2\x00\x00\x0e\x02\x00\x00\x00\x00\x09\x88\xcc" + strings.Join(tlvs, ""))
}

func TestParseRefuses(t *testing.T) {
	whole := LLDP(self)
	cdp := CDP(self)
	flipped := append([]byte(nil), cdp...)
	flipped[40] ^= 1
	for name, frame := range map[string][]byte{
		"empty": nil, "ARP": {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 6}, "LLDP cut": whole[:len(whole)-1], "LLDP cut in the middle": whole[:30],
		"LLDP without port": lldp("\x02\x05\x07core", "\x06\x02\x00\x78", "\x00\x00"), "CDP cut": cdp[:len(cdp)-2], "CDP checksum": flipped,
	} {
		if n, err := Parse(frame); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %+v, %v; want ErrMalformed", name, n, err)
		}
	}
}

func TestTable(t *testing.T) {
	var tab Table
	now := time.Unix(1_700_000_000, 0)
	cdp := Neighbor{Protocol: "cdp", Port: "Gi1", TTL: 180 * time.Second}
	lldp := Neighbor{Protocol: "lldp", Port: "Gi1/0/1", TTL: 10 * time.Second}
	port := func() string { n, _, _ := tab.Neighbor("eth0", now); return n.Port }
	if _, _, ok := tab.Neighbor("eth0", now); ok {
		t.Error("a neighbour that nobody heard")
	}
	if !tab.Heard("eth0", cdp, now) || port() != "Gi1" {
		t.Errorf("after CDP: %q", port())
	}
	if !tab.Heard("eth0", lldp, now) || port() != "Gi1/0/1" {
		t.Errorf("LLDP counts more: %q", port())
	}
	if tab.Heard("eth0", lldp, now) {
		t.Error("the same again is a change")
	}
	now = now.Add(10 * time.Second)
	if port() != "Gi1" {
		t.Errorf("after LLDP's time: %q", port())
	}
	lldp.TTL = 0
	tab.Heard("eth0", lldp, now)
	cdp.TTL = 0
	if !tab.Heard("eth0", cdp, now) || port() != "" {
		t.Errorf("after good-bye: %q", port())
	}
	cdp.TTL = time.Second
	tab.Heard("eth0", cdp, now)
	tab.Forget("eth0")
	if port() != "" {
		t.Errorf("after Forget: %q", port())
	}
}

func FuzzParse(f *testing.F) {
	f.Add(LLDP(self))
	f.Add(CDP(self))
	f.Add(lldp("\x02\x05\x07core", "\x04\x06\x07Gi1/2", "\x06\x02\x00\x78", "\x00\x00"))
	f.Fuzz(func(t *testing.T, frame []byte) {
		n, err := Parse(frame)
		if err != nil {
			return
		}
		for _, s := range []string{n.Chassis, n.Port, n.System, n.Description} {
			if len(s) > 1022 || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				t.Errorf("words %q", s)
			}
		}
		if len(n.Addresses) > maxAddresses || n.VLAN > 4095 || n.TTL > 65535*time.Second {
			t.Errorf("%+v", n)
		}
	})
}
