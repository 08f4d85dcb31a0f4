package frame

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"drover/internal/vswitch/table"

	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/gopacket/gopacket"
)

var (
	mac   = table.MAC{0x52, 0x54, 0, 0, 0, 1}
	other = table.MAC{0x52, 0x54, 0, 0, 0, 2}
	env   = Env{MAC: mac, IP4: netip.MustParseAddr("10.0.0.5"), IP6: netip.MustParseAddr("2001:db8::5"), MACOf: func(a netip.Addr) (table.MAC, bool) {
		return other, a == netip.MustParseAddr("10.0.0.9") || a == netip.MustParseAddr("2001:db8::9")
	}}
)

// described is each description with what Summary and tshark (the protocol's column) say of it.
var described = []struct{ text, summary, protocol string }{
	{"arp who-has 10.0.0.1", "52:54:00:00:00:01 → ff:ff:ff:ff:ff:ff ARP 42 Who has 10.0.0.1? Tell 10.0.0.5", "ARP"},
	{"arp who-has 10.0.0.1 tell 10.0.0.7", "52:54:00:00:00:01 → ff:ff:ff:ff:ff:ff ARP 42 Who has 10.0.0.1? Tell 10.0.0.7", "ARP"},
	{"to 52:54:00:00:00:02 arp reply 10.0.0.1 is-at 52:54:00:00:00:03", "52:54:00:00:00:01 → 52:54:00:00:00:02 ARP 42 10.0.0.1 is at 52:54:00:00:00:03", "ARP"},
	{"arp probe 10.0.0.1", "52:54:00:00:00:01 → ff:ff:ff:ff:ff:ff ARP 42 Who has 10.0.0.1? (probe)", "ARP"},
	{"arp announce 10.0.0.1", "52:54:00:00:00:01 → ff:ff:ff:ff:ff:ff ARP 42 Announcement: 10.0.0.1 is at 52:54:00:00:00:01", "ARP"},
	{"tcp 10.0.0.5:1234 > 10.0.0.9:80 syn", "10.0.0.5 → 10.0.0.9 TCP 54 1234 → 80 [SYN] Seq=1 Len=0", "TCP"},
	{"tcp 10.0.0.9:80 syn, ack", "10.0.0.5 → 10.0.0.9 TCP 54 40000 → 80 [SYN, ACK] Seq=1 Len=0", "TCP"},
	{"vlan 12 tcp [2001:db8::5]:1>[2001:db8::9]:2 fin", "2001:db8::5 → 2001:db8::9 VLAN 12, TCP 78 1 → 2 [FIN] Seq=1 Len=0", "TCP"},
	{"size 1514 udp 10.0.0.9", "10.0.0.5 → 10.0.0.9 UDP 1514 40000 → 9 Len=6", "UDP"},
	{"udp 2001:db8::9", "2001:db8::5 → 2001:db8::9 UDP 68 40000 → 9 Len=6", "UDP"},
	{"icmp 10.0.0.9", "10.0.0.5 → 10.0.0.9 ICMP 48 Echo request", "ICMP"},
	{"icmp 10.0.0.9 > 10.0.0.5 reply", "10.0.0.9 → 10.0.0.5 ICMP 48 Echo reply", "ICMP"},
	{"icmp6 2001:db8::9", "2001:db8::5 → 2001:db8::9 ICMPv6 68 Echo request", "ICMPv6"},
	{"nd solicit 2001:db8::9", "2001:db8::5 → ff02::1:ff00:9 ICMPv6 86 Neighbor solicitation for 2001:db8::9 from 52:54:00:00:00:01", "ICMPv6"},
	{"nd advert 2001:db8::9 is-at 52:54:00:00:00:02", "2001:db8::9 → ff02::1 ICMPv6 86 Neighbor advertisement of 2001:db8::9 is at 52:54:00:00:00:02", "ICMPv6"},
	{"nd ra", "fe80::5054:ff:fe00:1 → ff02::1 ICMPv6 78 Router advertisement", "ICMPv6"},
	{"nd rs", "fe80::5054:ff:fe00:1 → ff02::2 ICMPv6 70 Router solicitation", "ICMPv6"},
	{"nd redirect 2001:db8::1", "fe80::5054:ff:fe00:1 → ff02::1 ICMPv6 94 Redirect", "ICMPv6"},
	{"dhcp discover", "0.0.0.0 → 255.255.255.255 DHCP 342 Discover of 52:54:00:00:00:01", "DHCP"},
	{"dhcp request 10.0.0.7", "0.0.0.0 → 255.255.255.255 DHCP 342 Request of 52:54:00:00:00:01", "DHCP"},
	{"dhcp offer 10.0.0.7", "10.0.0.5 → 255.255.255.255 DHCP 342 Offer of 52:54:00:00:00:01, address 10.0.0.7", "DHCP"},
	{"dhcp ack 10.0.0.7", "10.0.0.5 → 255.255.255.255 DHCP 342 ACK of 52:54:00:00:00:01, address 10.0.0.7", "DHCP"},
	{"dhcp nak", "10.0.0.5 → 255.255.255.255 DHCP 342 NAK of 52:54:00:00:00:01", "DHCP"},
	{"dhcp release 10.0.0.7", "10.0.0.7 → 255.255.255.255 DHCP 342 Release of 52:54:00:00:00:01", "DHCP"},
	{"dhcp6 solicit", "fe80::5054:ff:fe00:1 → ff02::1:2 DHCPv6 80 Solicit", "DHCPv6"},
	{"dhcp6 reply", "fe80::5054:ff:fe00:1 → ff02::1 DHCPv6 80 Reply", "DHCPv6"},
	{"igmp join 239.1.1.1", "10.0.0.5 → 224.0.0.22 IGMP 54 v3 report", "IGMPv3"},
	{"igmp leave 239.1.1.1", "10.0.0.5 → 224.0.0.22 IGMP 54 v3 report", "IGMPv3"},
	{"igmp query", "10.0.0.5 → 224.0.0.1 IGMP 50 Query", "IGMPv3"},
	{"mld join ff05::1234", "fe80::5054:ff:fe00:1 → ff02::16 ICMPv6 90 Multicast listener report v2", "ICMPv6"},
	{"mld query", "fe80::5054:ff:fe00:1 → ff02::1 ICMPv6 90 Multicast listener query", "ICMPv6"},
	{"bpdu", "52:54:00:00:00:01 → 01:80:c2:00:00:00 STP 60 root 32768/52:54:00:00:00:01", "STP"},
	{"pvst", "52:54:00:00:00:01 → 01:00:0c:cc:cc:cd PVST+ 64 root 32768/52:54:00:00:00:01", "STP"},
	{"lldp", "52:54:00:00:00:01 → 01:80:c2:00:00:0e LLDP 38", "LLDP"},
	{"cdp", "52:54:00:00:00:01 → 01:00:0c:cc:cc:cc CDP 36", "CDP"},
	{"lacp", "52:54:00:00:00:01 → 01:80:c2:00:00:02 LACP 124", "LACP"},
	{"pause", "52:54:00:00:00:01 → 01:80:c2:00:00:01 MAC control 60 pause", "MAC CTRL"},
	{"vrrp 7", "10.0.0.5 → 224.0.0.18 VRRP 46 version 3, router 7, priority 255", "VRRP"},
	{"hsrp", "10.0.0.5 → 224.0.0.2 HSRP 62", "HSRP"},
	{"glbp", "10.0.0.5 → 224.0.0.102 GLBP 54", "GLBP"},
}

func TestDescribe(t *testing.T) {
	for _, c := range described {
		f, err := Describe(c.text, env)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		if got := Summary(f); got != c.summary {
			t.Errorf("%s:\n got %s\nwant %s", c.text, got, c.summary)
		}
	}
}

// TestTshark asks a program that others wrote: the protocol that it sees, and that it finds neither wrong checksums nor malformed packets.
func TestTshark(t *testing.T) {
	tshark, err := exec.LookPath("tshark")
	if err != nil {
		t.Fatal("tshark is not installed: run scripts/install-deps")
	}
	file := filepath.Join(t.TempDir(), "frames.pcap")
	var b bytes.Buffer
	w := pcapgo.NewWriter(&b)
	if err := w.WriteFileHeader(65535, layers.LinkTypeEthernet); err != nil {
		t.Fatal(err)
	}
	for _, c := range described {
		f, err := Describe(c.text, env)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.WritePacket(gopacket.CaptureInfo{CaptureLength: len(f), Length: len(f)}, f); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(tshark, "-n", "-r", file, "-T", "fields", "-E", "separator=|", "-e", "_ws.col.Protocol", "-e", "_ws.expert.message",
		"-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	if len(lines) != len(described) {
		t.Fatalf("tshark shows %d frames, want %d", len(lines), len(described))
	}
	for i, l := range lines {
		protocol, expert, _ := strings.Cut(l, "|")
		if protocol != described[i].protocol {
			t.Errorf("%s: tshark calls it %q, want %q", described[i].text, protocol, described[i].protocol)
		}
		low := strings.ToLower(expert)
		if described[i].protocol != "GLBP" && (strings.Contains(low, "malformed") || strings.Contains(low, "bad checksum") || strings.Contains(low, "incorrect")) {
			t.Errorf("%s: tshark says %s", described[i].text, expert)
		}
	}
}

func TestDescribeErrors(t *testing.T) {
	for _, c := range []struct {
		text     string
		position int
		want     string
	}{
		{"", 0, "the description ends at position 1; there should be from, to, vlan, size, arp"},
		{"arp who-hat 10.0.0.1", 4, `"who-hat" at position 5: there should be who-has, reply, probe or announce`},
		{"arp who-has 10.0.0", 12, `"10.0.0" at position 13: there should be an IPv4 address such as 10.0.0.1`},
		{"arp who-has", 11, "the description ends at position 12; there should be an IPv4 address"},
		{"tcp 10.0.0.1 > 2001:db8::1", 15, `an address of the same family as 10.0.0.1`},
		{"tcp 10.0.0.1:99999", 4, "an address such as 10.0.0.1"},
		{"vlan 5000 bpdu", 5, "a number from 0 to 4095"},
		{"from 52:54 bpdu", 5, "a MAC address such as"},
		{"bpdu twice", 5, "nothing more"},
		{"igmp join 10.0.0.1", 10, "a multicast group such as 239.1.1.1"},
		{"nd solicit 10.0.0.1", 11, "an IPv6 address"},
	} {
		_, err := Describe(c.text, env)
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%q: error %v", c.text, err)
			continue
		}
		if e.Position != c.position || !strings.Contains(e.Error(), c.want) {
			t.Errorf("%q: %v (position %d)", c.text, e, e.Position)
		}
	}
}

func TestSummaryOfBadFrames(t *testing.T) {
	for _, c := range []struct{ hex, want string }{
		{"", "0 bytes, too short for an Ethernet header"},
		{"525400000002525400000001080045", "52:54:00:00:00:01 → 52:54:00:00:00:02 IPv4 15 malformed"},
		{"5254000000025254000000018100", "52:54:00:00:00:01 → 52:54:00:00:00:02 VLAN cut off, Ethernet 14"},
		{"52540000000252540000000181000005810000060806", "52:54:00:00:00:01 → 52:54:00:00:00:02 VLAN 5, VLAN 6, ARP 22 cut off"},
	} {
		b, err := hex.DecodeString(c.hex)
		if err != nil {
			t.Fatal(err)
		}
		if got := Summary(b); got != c.want {
			t.Errorf("%s: %q, want %q", c.hex, got, c.want)
		}
	}
}

func FuzzDescribe(f *testing.F) {
	for _, c := range described {
		f.Add(c.text)
	}
	f.Add("from to vlan")
	f.Fuzz(func(t *testing.T, text string) {
		b, err := Describe(text, env)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Position < 0 || e.Position > len(text) {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		if len(b) < 14 || Summary(b) == "" {
			t.Fatalf("%q: %x", text, b)
		}
	})
}

func FuzzSummary(f *testing.F) {
	for _, c := range described {
		b, err := Describe(c.text, env)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := Summary(b)
		if s == "" || strings.ContainsAny(s, "\n\r") {
			t.Fatalf("%x: %q", b, s)
		}
	})
}
