package inet

import (
	"bytes"
	"net/netip"
	"testing"

	"drover/internal/vswitch/table"
)

func TestChecksum(t *testing.T) {
	// The example of RFC 1071, 3: the sum is ddf2.
	if got, want := Checksum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}), ^uint16(0xddf2); got != want {
		t.Errorf("Checksum = %#x, want %#x", got, want)
	}
	if got := Checksum([]byte{0xff}); got != 0x00ff {
		t.Errorf("odd: %#x", got)
	}
}

func TestAddresses(t *testing.T) {
	for group, want := range map[string]table.MAC{"239.129.2.3": {1, 0, 0x5e, 1, 2, 3}, "ff02::1:ff00:7": {0x33, 0x33, 0xff, 0, 0, 7}} {
		if got := GroupMAC(netip.MustParseAddr(group)); got != want {
			t.Errorf("GroupMAC(%s) = %v", group, got)
		}
	}
	if got := LinkLocal(table.MAC{2, 0, 0, 0, 0, 9}); got != netip.MustParseAddr("fe80::ff:fe00:9") {
		t.Errorf("LinkLocal = %v", got)
	}
	got := Ethernet(table.MAC{1}, table.MAC{2}, 7, 0x806, []byte{5})
	if want := []byte{1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0x81, 0, 0, 7, 8, 6, 5}; !bytes.Equal(got, want) {
		t.Errorf("Ethernet = % x", got)
	}
}
