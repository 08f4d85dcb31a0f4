package main

import (
	"net"
	"reflect"
	"testing"
)

func TestParseNetworkConfig(t *testing.T) {
	const text = `network:
  version: 2
  ethernets:
    a:   # the first
      match: {macaddress: "52:54:00:00:00:01"}
      mtu: 9000
      addresses: [192.0.2.1/24, "2001:db8::1/64"]
      gateway4: 192.0.2.254
    b:
      match:
        macaddress: 52:54:00:00:00:02
      dhcp4: true
      routes:
      - to: 198.51.100.0/24
        via: 192.0.2.9
`
	c, err := parseNetworkConfig(text)
	if err != nil {
		t.Fatal(err)
	}
	mac := func(s string) net.HardwareAddr { m, _ := net.ParseMAC(s); return m }
	a, b := c.forMAC(mac("52:54:00:00:00:01")), c.forMAC(mac("52:54:00:00:00:02"))
	if a == nil || a.dhcp || a.mtu != 9000 || len(a.addresses) != 2 || a.addresses[1].String() != "2001:db8::1/64" || len(a.routes) != 1 || a.routes[0].dst != nil {
		t.Errorf("a: %+v", a)
	}
	if b == nil || !b.dhcp || len(b.routes) != 1 || b.routes[0].dst.String() != "198.51.100.0/24" || b.routes[0].via.String() != "192.0.2.9" {
		t.Errorf("b: %+v", b)
	}
	if c.forMAC(mac("52:54:00:00:00:03")) != nil {
		t.Error("a MAC that is not there has a configuration")
	}
	for _, bad := range []string{"version: 1\n", "version: 2\nethernets:\n  a:\n    addresses: [1.2.3]\n", "x", "\ta: b", "a:\n    b: c\n  d: e\n"} {
		if _, err := parseNetworkConfig(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestParseYAML(t *testing.T) {
	for in, want := range map[string]any{
		"":                               nil,
		"a: b":                           map[string]any{"a": "b"},
		"a: 'x # y' # z":                 map[string]any{"a": "x # y"},
		"- a\n- b: c\n  d: e\n-\n  f: g": []any{"a", map[string]any{"b": "c", "d": "e"}, map[string]any{"f": "g"}},
		"a:\n- b\nc: []":                 map[string]any{"a": []any{"b"}, "c": []any{}},
		`{"a": ["b"]}`:                   map[string]any{"a": []any{"b"}},
	} {
		if got, err := parseYAML(in); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q gave %#v, %v", in, got, err)
		}
	}
}

func FuzzParseNetworkConfig(f *testing.F) {
	f.Add("version: 2\nethernets:\n  a:\n    match: {macaddress: x}\n    addresses: [192.0.2.1/24]\n    routes:\n    - to: default\n      via: 192.0.2.9\n")
	f.Add("- - - a\n")
	f.Fuzz(func(t *testing.T, s string) {
		if c, err := parseNetworkConfig(s); err == nil {
			for _, n := range c.nics {
				for _, r := range n.routes {
					if r.via == nil {
						t.Fatal("a route without a gateway")
					}
				}
			}
		}
	})
}

func FuzzParseDHCP(f *testing.F) {
	mac := net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}
	b := make([]byte, 240)
	b[0] = 2
	copy(b[28:], mac)
	copy(b[236:], "\x63\x82\x53\x63")
	f.Add(append(b, 53, 1, 5, 1, 4, 255, 255, 255, 0, 3, 4, 192, 0, 2, 1, 255))
	f.Fuzz(func(t *testing.T, in []byte) {
		if _, l := parseDHCP(in, [4]byte{}, mac); l != nil {
			if _, bits := l.addr.Mask.Size(); len(l.addr.IP) != 4 || bits != 32 {
				t.Fatalf("lease %+v", l)
			}
		}
	})
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, alias string
		want           bool
	}{
		{"virtio:d00000001v*", "virtio:d00000001v00001AF4", true},
		{"virtio:d00000001v*", "virtio:d00000002v00001AF4", false},
		{"pci:v00001AF4d*sv*sd*bc*sc*i*", "pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00", true},
		{"acpi*:PNP0C0C:*", "acpi:PNP0C0C:", true},
		{"a", "ab", false},
		{"*", "", true},
	} {
		if got := match(c.pattern, c.alias); got != c.want {
			t.Errorf("match(%q, %q) = %v", c.pattern, c.alias, got)
		}
	}
}
