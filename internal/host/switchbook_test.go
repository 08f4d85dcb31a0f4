package host

import (
	"net/netip"
	"reflect"
	"testing"

	v1 "drover/api/drover/v1"
	"drover/internal/vswitch"
	"drover/internal/vswitch/compile"
	"drover/internal/vswitch/table"
)

func counted(n uint64) vswitch.Counters {
	return vswitch.Counters{Traffic: table.Traffic{InPackets: n}, Drops: map[table.Reason]table.DropCount{table.DropARP: {Packets: n}, table.DropAnswered: {Packets: n}}}
}

// Counters only grow: over a port's removal, a restart of the agent, and a reboot.
func TestCountersStayWithThePort(t *testing.T) {
	dir := t.TempDir()
	open := func(boot string) *slotBook {
		b, err := openBook(dir, boot)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	total := func(b *slotBook, want uint64) {
		t.Helper()
		got := b.total("port/u/n")
		if got.Traffic.InPackets != want || got.Drops["ARP"].Packets != want || len(got.Drops) != 1 {
			t.Errorf("counted %+v, want %d", got, want)
		}
		if err := b.save(); err != nil {
			t.Fatal(err)
		}
	}
	b := open("boot1")
	other, _, _ := b.take("uplink/up0")
	slot, fresh, err := b.take("port/u/n")
	if err != nil || slot == other || slot == 0 || !fresh {
		t.Fatalf("slot %d, fresh %v, %v", slot, fresh, err)
	}
	b.count(map[uint32]vswitch.Counters{slot: counted(5)})
	b.count(map[uint32]vswitch.Counters{slot: counted(7)})
	total(b, 7)
	b = open("boot1")
	if again, fresh, _ := b.take("port/u/n"); again != slot || fresh {
		t.Errorf("after a restart of the agent the port has slot %d, fresh %v", again, fresh)
	}
	b.count(map[uint32]vswitch.Counters{slot: counted(8)})
	total(b, 8)
	b.count(map[uint32]vswitch.Counters{slot: counted(1)}) // the datapath was made anew
	total(b, 9)
	b.release("port/u/n")
	total(b, 9)
	if next, fresh, _ := b.take("port/u/m"); next != slot || !fresh {
		t.Errorf("a free slot is not given again: %d, %v", next, fresh)
	}
	if moved, fresh, _ := b.take("port/u/n"); moved == slot || !fresh {
		t.Errorf("two ports have slot %d", moved)
	}
	b.count(map[uint32]vswitch.Counters{b.Slots["port/u/n"].Slot: counted(2)})
	total(b, 11)
	b = open("boot2")
	if _, fresh, _ := b.take("port/u/n"); !fresh {
		t.Error("after a reboot the datapath counts from 0")
	}
	total(b, 11)
	b.release("port/u/n")
	b.forget(func(name string) bool { return name == "port/u/n" })
	if b.Slots["port/u/n"] != nil || b.Slots["port/u/m"] == nil {
		t.Errorf("left: %v", b.Slots)
	}
}

func TestNoSlotLeft(t *testing.T) {
	b, err := openBook(t.TempDir(), "b")
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i < table.MaxPorts; i++ {
		if _, _, err := b.take("port/" + string(rune(i+1000))); err != nil {
			t.Fatalf("port %d: %v", i, err)
		}
	}
	if slot, _, err := b.take("port/one more"); err == nil {
		t.Errorf("slot %d was given", slot)
	}
}

func TestRegistry(t *testing.T) {
	dir := t.TempDir()
	r, err := loadRegistry(dir)
	if err != nil {
		t.Fatal(err)
	}
	reg := func(mac, host string) *v1.Registration {
		return &v1.Registration{Port: "a/n", Vni: 5, Mac: mac, Host: host, Addresses: []string{"10.0.0.1"}, PrivateRole: v1.PrivateRole_PRIVATE_ROLE_COMMUNITY, Community: 9}
	}
	first, second := reg("52:54:00:00:00:01", "h1"), reg("52:54:00:00:00:02", "h2")
	// Half of a batch is not the whole.
	if _, whole, _ := r.take(&v1.Registrations{Full: true, More: true, Set: []*v1.Registration{first}}); whole || len(r.all) != 0 {
		t.Error("half a batch was taken for the whole")
	}
	if _, whole, errs := r.take(&v1.Registrations{Full: true, Set: []*v1.Registration{second, {Mac: "nonsense"}}, Revision: 3}); !whole || len(errs) != 1 || len(r.all) != 2 {
		t.Errorf("whole %v, %v, %v", whole, errs, r.all)
	}
	if err := saveRegistry(dir, r.all, r.revision); err != nil {
		t.Fatal(err)
	}
	read, err := loadRegistry(dir)
	if err != nil || !reflect.DeepEqual(read.all, r.all) || read.revision != 3 || read.dirty {
		t.Errorf("read %v, want %v; %v", read.all, r.all, err)
	}
	key := table.FDBKey{Net: 5, MAC: table.MAC{0x52, 0x54, 0, 0, 0, 2}}
	want := compile.Registration{Port: "a/n", Host: "h2", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, PVLAN: table.PVLANCommunity, Community: 9}
	if !reflect.DeepEqual(read.all[key], want) {
		t.Errorf("%+v, want %+v", read.all[key], want)
	}
	steps, whole, _ := r.take(&v1.Registrations{Removed: []string{"5/52:54:00:00:00:01", "5/52:54:00:00:00:99"}, Set: []*v1.Registration{reg("52:54:00:00:00:02", "h3")}, Revision: 4})
	if whole || len(steps) != 2 || steps[0].New != nil || steps[1].Old.Host != "h2" || steps[1].New.Host != "h3" || r.revision != 4 {
		t.Errorf("steps %+v", steps)
	}
	// A stream that ends within a batch leaves nothing of it.
	r.take(&v1.Registrations{More: true, Removed: []string{"5/52:54:00:00:00:02"}})
	r.begin()
	if steps, _, _ := r.take(&v1.Registrations{}); len(steps) != 0 || len(r.all) != 1 {
		t.Errorf("steps %v, left %v", steps, r.all)
	}
}
