package vswitch

import (
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"drover/internal/vswitch/table"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// twins are the types of package table by their names in C.
var twins = map[string]any{
	"port": table.Port{}, "fdb_key": table.FDBKey{}, "fdb_entry": table.FDBEntry{}, "network": table.Network{}, "member_key": table.MemberKey{},
	"member": table.Member{}, "group_key": table.GroupKey{}, "binding_key": table.BindingKey{}, "binding": table.Binding{}, "mac_key": table.MACKey{},
	"trunk_key": table.TrunkKey{}, "uplink_key": table.UplinkKey{}, "uplink_vlan": table.UplinkVLAN{}, "uplink": table.Uplink{}, "team": table.Team{},
	"vtep": table.VTEP{}, "bucket": table.Bucket{}, "meter": table.Meter{}, "traffic": table.Traffic{}, "drop_key": table.DropKey{},
	"drop_count": table.DropCount{}, "gate": table.Gate{},
}

// TestRecords compares the records of rings, which no map names, so that the object's BTF does not have them: their source is read.
func TestRecords(t *testing.T) {
	src, err := os.ReadFile("../../bpf/maps.h")
	must(t, err)
	c := numbers(t)
	field := regexp.MustCompile(`__u(8|16|32|64)\s+(\w+)(?:\[(\w+)\])?;`)
	for name, twin := range map[string]any{"event": table.Event{}, "punt": table.Punt{}, "capture": table.Capture{}} {
		_, body, ok := strings.Cut(string(src), "\nstruct "+name+" {")
		body, _, ends := strings.Cut(body, "\n};")
		if !ok || !ends {
			t.Errorf("bpf/maps.h has no struct %s", name)
			continue
		}
		g := reflect.TypeOf(twin)
		fields := field.FindAllStringSubmatch(body, -1)
		if len(fields) != g.NumField() {
			t.Errorf("struct %s has %d fields, %v has %d", name, len(fields), g, g.NumField())
			continue
		}
		offset := 0
		for i, m := range fields {
			bits, err := strconv.Atoi(m[1])
			must(t, err)
			size := bits / 8
			offset = (offset + size - 1) / size * size
			if m[3] != "" {
				size *= int(c[m[3]])
			}
			f := g.Field(i)
			if int(f.Offset) != offset || int(f.Type.Size()) != size {
				t.Errorf("%s.%s is at %d with %d bytes, %v.%s at %d with %d", name, m[2], offset, size, g, f.Name, f.Offset, f.Type.Size())
			}
			if plain := strings.ReplaceAll(m[2], "_", ""); (m[2] == "pad") != (f.Name == "_") || f.Name != "_" && !strings.EqualFold(plain, f.Name) {
				t.Errorf("field %d of struct %s is %s, of %v %s", i, name, m[2], g, f.Name)
			}
			offset += size
		}
	}
}

func TestLayouts(t *testing.T) {
	spec, err := loadDatapath()
	must(t, err)
	for _, name := range slices.Sorted(maps.Keys(twins)) {
		var c *btf.Struct
		if err := spec.Types.TypeByName(name, &c); err != nil {
			t.Errorf("struct %s: %v (does the datapath use it?)", name, err)
			continue
		}
		compare(t, name, c, reflect.TypeOf(twins[name]))
	}
}

// compare wants field for field the same names, offsets and sizes, and no byte between two fields.
func compare(t *testing.T, name string, c *btf.Struct, g reflect.Type) {
	t.Helper()
	if int(c.Size) != int(g.Size()) {
		t.Errorf("struct %s has %d bytes, %v has %d", name, c.Size, g, g.Size())
	}
	if len(c.Members) != g.NumField() {
		t.Errorf("struct %s has %d fields, %v has %d", name, len(c.Members), g, g.NumField())
		return
	}
	end := 0
	for i, m := range c.Members {
		f := g.Field(i)
		size, err := btf.Sizeof(m.Type)
		must(t, err)
		if int(m.Offset.Bytes()) != int(f.Offset) || size != int(f.Type.Size()) {
			t.Errorf("%s.%s is at %d with %d bytes, %v.%s at %d with %d", name, m.Name, m.Offset.Bytes(), size, g, f.Name, f.Offset, f.Type.Size())
		}
		if int(f.Offset) != end {
			t.Errorf("%v has %d bytes before %s that no field names", g, int(f.Offset)-end, f.Name)
		}
		end = int(f.Offset + f.Type.Size())
		pad := strings.HasPrefix(m.Name, "pad")
		if plain := strings.ReplaceAll(m.Name, "_", ""); pad != (f.Name == "_") || !pad && !strings.EqualFold(plain, f.Name) {
			t.Errorf("field %d of struct %s is %s, of %v %s", i, name, m.Name, g, f.Name)
		}
	}
	if end != int(g.Size()) {
		t.Errorf("%v ends with %d bytes that no field names", g, int(g.Size())-end)
	}
}

func TestMaps(t *testing.T) {
	spec, err := loadDatapath()
	must(t, err)
	m := newMaps(&datapathMaps{})
	// Rows of package vswitch, by the map's name: key and value.
	typed := map[string][2]reflect.Type{}
	add(typed, m.ports)
	add(typed, m.fdb)
	add(typed, m.networks)
	add(typed, m.members)
	add(typed, m.groups)
	add(typed, m.bindings)
	add(typed, m.macs)
	add(typed, m.trunks)
	add(typed, m.uplinks)
	add(typed, m.uplinkVLANs)
	add(typed, m.teams)
	add(typed, m.vteps)
	add(typed, m.vtepSources)
	add(typed, m.meters)
	typed[datapathMapCounters] = [2]reflect.Type{reflect.TypeFor[uint32](), reflect.TypeFor[table.Traffic]()}
	typed[datapathMapDrops] = [2]reflect.Type{reflect.TypeFor[table.DropKey](), reflect.TypeFor[table.DropCount]()}
	typed[datapathMapGates] = [2]reflect.Type{reflect.TypeFor[uint32](), reflect.TypeFor[table.Gate]()}
	typed[datapathMapProvisional] = [2]reflect.Type{reflect.TypeFor[uint32](), reflect.TypeFor[table.BindingKey]()} // the datapath's own
	for name, s := range spec.Maps {
		if s.Pinning != ebpf.PinByName {
			continue // of a program's own
		}
		if s.Type == ebpf.RingBuf {
			continue
		}
		kv, ok := typed[name]
		if !ok {
			t.Errorf("nothing in Go reads or writes map %s", name)
			continue
		}
		if int(s.KeySize) != int(kv[0].Size()) || int(s.ValueSize) != int(kv[1].Size()) {
			t.Errorf("map %s has keys of %d and values of %d bytes, Go has %d and %d", name, s.KeySize, s.ValueSize, kv[0].Size(), kv[1].Size())
		}
		delete(typed, name)
	}
	for name := range typed {
		t.Errorf("map %s is not in the object, or not pinned", name)
	}
}

func add[K, V comparable](typed map[string][2]reflect.Type, r rows[K, V]) {
	typed[r.name] = [2]reflect.Type{reflect.TypeFor[K](), reflect.TypeFor[V]()}
}

// numbers reads the enumerators and the plain #defines of bpf/maps.h.
func numbers(t *testing.T) map[string]uint64 {
	t.Helper()
	src, err := os.ReadFile("../../bpf/maps.h")
	must(t, err)
	out := map[string]uint64{}
	re := regexp.MustCompile(`(?m)(?:#define\s+([A-Z][A-Z0-9_]*)\s+|\b([A-Z][A-Z0-9_]*)\s*=\s*)(0x[0-9a-f]+|[0-9]+)u?(?:\s*<<\s*([0-9]+))?`)
	for _, m := range re.FindAllStringSubmatch(string(src), -1) {
		n, err := strconv.ParseUint(m[3], 0, 64)
		must(t, err)
		if m[4] != "" {
			shift, err := strconv.Atoi(m[4])
			must(t, err)
			n <<= shift
		}
		out[m[1]+m[2]] = n
	}
	return out
}

func TestNumbers(t *testing.T) {
	c := numbers(t)
	want := map[string]uint64{
		"DROVER_LAYOUT": table.Layout, "DROVER_MARK": table.Mark,
		"MAX_PORTS": table.MaxPorts, "MAX_FDB": table.MaxFDB, "MAX_NETWORKS": table.MaxNetworks, "MAX_MEMBERS": table.MaxMembers, "MAX_BINDINGS": table.MaxBindings,
		"MAX_TRUNK": table.MaxTrunk, "MAX_VTEPS": table.MaxVTEPs, "MAX_GROUPS": table.MaxGroups, "MAX_UPLINK_VLANS": table.MaxUplinkVLANs, "MAX_TEAMS": table.MaxTeams,
		"TEAM_BUCKETS": table.TeamBuckets, "INLINE_IP4": table.InlineIPs, "INLINE_IP6": table.InlineIPs,
		"PUNT_BYTES": table.PuntBytes, "EVENT_BYTES": table.EventBytes, "CAPTURE_BYTES": table.CaptureBytes, "DROP_REASONS": table.Reasons,
		"PVLAN_NONE": uint64(table.PVLANNone), "PVLAN_PROMISCUOUS": uint64(table.PVLANPromiscuous), "PVLAN_ISOLATED": uint64(table.PVLANIsolated), "PVLAN_COMMUNITY": uint64(table.PVLANCommunity),
		"TEAM_BY_PORT": uint64(table.TeamByPort), "TEAM_BY_MAC": uint64(table.TeamByMAC), "TEAM_BY_IP": uint64(table.TeamByIP),
		"PLACE_LOCAL": uint64(table.PlaceLocal), "PLACE_UPLINK": uint64(table.PlaceUplink), "PLACE_TUNNEL": uint64(table.PlaceTunnel),
		"NETWORK_UPLINK": uint64(table.NetworkUplink), "NETWORK_OVERLAY": uint64(table.NetworkOverlay), "NETWORK_SNOOPING": uint64(table.NetworkSnooping),
		"NETWORK_WATCHED": uint64(table.NetworkWatched), "NETWORK_PROXY": uint64(table.NetworkProxy), "NETWORK_ENCRYPTED": uint64(table.NetworkEncrypted), "VTEP_PRIVATE": uint64(table.VTEPPrivate), "NETWORK_HERE": uint64(table.NetworkHere),
		"MEMBER_ALL_GROUPS": uint64(table.MemberAllGroups), "MEMBER_PROMISCUOUS": uint64(table.MemberPromiscuous),
		"BINDING_ASSIGNED": uint64(table.BindingAssigned), "BINDING_DHCP": uint64(table.BindingDHCP), "BINDING_PROVISIONAL": uint64(table.BindingProvisional),
		"BINDING_REMOTE": uint64(table.BindingRemote), "BINDING_VIRTUAL": uint64(table.BindingVirtual),
		"UPLINK_SHARED": uint64(table.UplinkShared), "UPLINK_CAPTURE": uint64(table.UplinkCapture),
		"PUNT_DHCP": uint64(table.PuntDHCP), "PUNT_GROUP": uint64(table.PuntGroup), "PUNT_LLDP": uint64(table.PuntLLDP), "PUNT_CDP": uint64(table.PuntCDP),
		"PUNT_BEACON": uint64(table.PuntBeacon), "PUNT_NEW_MAC": uint64(table.PuntNewMAC), "PUNT_VIRTUAL": uint64(table.PuntVirtual),
		"CAPTURE_FROM_GUEST": uint64(table.CaptureFromGuest), "CAPTURE_ACCEPTED": uint64(table.CaptureAccepted), "CAPTURE_TO_GUEST": uint64(table.CaptureToGuest), "CAPTURE_DROPPED": uint64(table.CaptureDropped),
		"PORT_PROMISCUOUS": uint64(table.PortPromiscuous), "PORT_FORGED": uint64(table.PortForged), "PORT_MAC_CHANGES": uint64(table.PortMACChanges), "PORT_TRUNK": uint64(table.PortTrunk),
		"PORT_IP_GUARD": uint64(table.PortIPGuard), "PORT_ARP_GUARD": uint64(table.PortARPGuard), "PORT_ND_GUARD": uint64(table.PortNDGuard), "PORT_DHCP_SERVER": uint64(table.PortDHCPServer),
		"PORT_DHCP_SNOOP": uint64(table.PortDHCPSnoop), "PORT_ROUTER": uint64(table.PortRouter), "PORT_BPDU": uint64(table.PortBPDU), "PORT_L2_CONTROL": uint64(table.PortL2Control),
		"PORT_VIRTUAL_ROUTER": uint64(table.PortVirtualRouter), "PORT_METER_IN": uint64(table.PortMeterIn), "PORT_METER_OUT": uint64(table.PortMeterOut), "PORT_STORM": uint64(table.PortStorm),
		"PORT_MORE_IPS": uint64(table.PortMoreIPs), "PORT_MORE_MACS": uint64(table.PortMoreMACs), "PORT_MIRROR_IN": uint64(table.PortMirrorIn), "PORT_MIRROR_OUT": uint64(table.PortMirrorOut),
		"PORT_CAPTURE": uint64(table.PortCapture), "PORT_PEER": uint64(table.PortPeer), "PORT_MARK": uint64(table.PortMark), "PORT_DOWN": uint64(table.PortDown),
		"PORT_NO_PROXY": uint64(table.PortNoProxy), "PORT_NO_SNOOPING": uint64(table.PortNoSnooping), "PORT_PRIORITY": uint64(table.PortPriority),
	}
	for r := range table.Reason(table.Reasons) {
		if name := r.String(); !strings.HasPrefix(name, "REASON_") {
			want["DROP_"+name] = uint64(r)
		}
	}
	for name, n := range want {
		got, ok := c[name]
		if !ok || got != n {
			t.Errorf("%s is %#x in C (there: %v), %#x in Go", name, got, ok, n)
		}
		delete(c, name)
	}
	for name := range c {
		t.Errorf("%s of bpf/maps.h has no twin in this test", name)
	}
}

func TestRecordHeads(t *testing.T) {
	for name, x := range map[string]struct{ head, size int }{
		"event":   {eventHead + table.EventBytes, int(unsafe.Sizeof(table.Event{}))},
		"punt":    {puntHead + table.PuntBytes, int(unsafe.Sizeof(table.Punt{}))},
		"capture": {captureHead + table.CaptureBytes, int(unsafe.Sizeof(table.Capture{}))},
	} {
		if x.head != x.size {
			t.Errorf("%s: data ends at %d, the record at %d: decode takes them to be the same", name, x.head, x.size)
		}
	}
}
