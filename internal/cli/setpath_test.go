package cli

import (
	"slices"
	"testing"

	v1 "drover/api/drover/v1"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
)

func TestProfileFlags(t *testing.T) {
	f := profileFlags{parent: "secure", set: []string{"guards.arp=off", "trunk.vlans=10, 20-29", "qos.in.limit_bps=1.5G", "qos.in.burst_bytes=64K", "qos.dscp=0",
		"security.promiscuous=on", "private_role=community", "community=7", "mirror.in=yes", "guards.storm.broadcast=-1"}, unset: []string{"qos.cos"}}
	got, named, err := f.spec()
	if err != nil {
		t.Fatal(err)
	}
	want := &v1.PortProfileSpec{
		Parent: "secure", Guards: &v1.Guards{Arp: v1.Toggle_TOGGLE_OFF, Storm: &v1.StormControl{Broadcast: -1}}, Trunk: &v1.Trunk{Vlans: []string{"10", "20-29"}},
		Qos:      &v1.QoS{In: &v1.Rate{LimitBps: 1500e6, BurstBytes: 64 << 10}, DscpSet: true},
		Security: &v1.Security{Promiscuous: v1.Toggle_TOGGLE_ON}, PrivateRole: v1.PrivateRole_PRIVATE_ROLE_COMMUNITY, Community: 7, Mirror: &v1.Mirror{In: true},
	}
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Error(d)
	}
	for _, path := range []string{"spec.guards.arp", "spec.qos.dscp", "spec.qos.dscp_set", "spec.qos.cos", "spec.qos.cos_set", "spec.trunk.vlans"} {
		if !slices.Contains(named, path) {
			t.Errorf("%s is not in the mask %v", path, named)
		}
	}
	for _, bad := range []string{"", "=x", "guards", "guards=on", "guards.arp", "guards.arp=maybe", "guards.nothing=on", "community=x", "community=99999999999", "qos.in.limit_bps=1Q",
		"qos.in.limit_bps=", "qos.in.limit_bps=-1M", "description.x=y", "mirror.in=perhaps", "qos.in.limit_bps=9999999T"} {
		f := profileFlags{set: []string{bad}}
		if _, _, err := f.spec(); err == nil {
			t.Errorf("--set %q was taken", bad)
		}
	}
	if _, _, err := (&profileFlags{unset: []string{"guards.none"}}).spec(); err == nil {
		t.Error("--unset of an unknown field was taken")
	}
}

func TestBits(t *testing.T) {
	for n, want := range map[int64]string{-1: "-", 0: "-", 999: "999", 1500: "1.5k", 100e6: "100M", 2500e6: "2.5G", 1e12: "1T"} {
		if got := bits(n); got != want {
			t.Errorf("bits(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestFrameOf(t *testing.T) {
	b, err := frameOf([]byte("ff:ff:ff:ff:ff:ff 52 54 00 00 00 01\n0806 0001"))
	if err != nil || len(b) != 16 || b[12] != 8 || b[13] != 6 {
		t.Errorf("frameOf = %x, %v", b, err)
	}
	raw := append([]byte("\x01\x02"), make([]byte, 60)...)
	if b, err := frameOf(raw); err != nil || len(b) != 62 {
		t.Errorf("raw frame: %d bytes, %v", len(b), err)
	}
	for _, bad := range []string{"", "ffff", "hello"} {
		if _, err := frameOf([]byte(bad)); err == nil {
			t.Errorf("%q was taken as a frame", bad)
		}
	}
}
