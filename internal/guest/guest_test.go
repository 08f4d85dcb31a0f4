package guest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestFrozen fails when a released row changes. It never writes: a new version's file is made by hand from the output.
func TestFrozen(t *testing.T) {
	for _, row := range rows() {
		name := filepath.Join("testdata", fmt.Sprintf("%s-v%d.json", row.Machine, row.Version))
		got, err := json.MarshalIndent(row, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, '\n')
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatalf("a new row needs its golden file %s:\n%s", name, got)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: a frozen hardware row has changed; guests would meet another machine. Add a version instead.\n%s", name, got)
		}
	}
}

func TestPlacesAreUnique(t *testing.T) {
	for _, h := range rows() {
		seen := map[string]string{}
		take := func(what string, d Device) {
			t.Helper()
			if d.Bus == "" {
				return
			}
			id, _ := json.Marshal(d.Props)
			key := d.Bus + " " + d.Addr
			if d.Bus == "scsi0.0" {
				key += string(id)
			}
			if was, dup := seen[key]; dup {
				t.Errorf("%s v%d: %s and %s are both at %s", h.Machine, h.Version, was, what, key)
			}
			seen[key] = what
		}
		for _, d := range h.Bridges {
			take(d.ID, d)
		}
		for _, d := range []Device{h.VGA, h.USB, h.Tablet, h.Serial, h.Balloon, h.RNG, h.Panic, h.SCSI} {
			take(d.ID, d)
		}
		for bus, row := range h.Disks {
			if len(row.Places) != row.Slots {
				t.Errorf("%s %s: %d places for %d slots", h.Machine, bus, len(row.Places), row.Slots)
			}
			for i := range row.Slots {
				d, err := h.Disk(bus, i)
				if err != nil {
					t.Fatal(err)
				}
				take(fmt.Sprint(bus, i), d)
			}
		}
		for i := range h.CDROM.Slots {
			d, err := h.CD(i)
			if err != nil {
				t.Fatal(err)
			}
			take(fmt.Sprint("cd", i), d)
		}
		kinds := map[BusKind]bool{}
		for a, row := range h.Adapters {
			if len(row.Places) != h.NICSlots {
				t.Errorf("%s %s: %d places for %d slots", h.Machine, a, len(row.Places), h.NICSlots)
			}
			if kinds[row.Bus] { // adapters of one bus kind share their slots
				continue
			}
			kinds[row.Bus] = true
			for i := range h.NICSlots {
				d, err := h.NIC(a, i)
				if err != nil {
					t.Fatal(err)
				}
				take(fmt.Sprint(row.Bus, i), d)
			}
		}
	}
}

func TestLookup(t *testing.T) {
	for _, m := range []Machine{Q35, MicroVM} {
		h, err := Lookup(m, 0)
		if err != nil || h.Version != Latest {
			t.Errorf("%s: version 0 gave %v, %v", m, h, err)
		}
	}
	for _, bad := range []struct {
		m Machine
		v int
	}{{Q35, 99}, {Q35, -1}, {"pc", 1}, {"", 1}} {
		if _, err := Lookup(bad.m, bad.v); !errors.Is(err, ErrUnknown) {
			t.Errorf("%s v%d: %v", bad.m, bad.v, err)
		}
	}
	h, _ := Lookup(MicroVM, 1)
	if _, err := h.NIC(E1000, 0); !errors.Is(err, ErrUnsupported) {
		t.Errorf("e1000 on microvm: %v", err)
	}
	if _, err := h.CD(0); !errors.Is(err, ErrUnsupported) {
		t.Errorf("CD on microvm: %v", err)
	}
	if _, err := h.NIC(VirtioNet, 8); !errors.Is(err, ErrUnsupported) {
		t.Errorf("slot 8: %v", err)
	}
}

func TestRowsCannotBeChanged(t *testing.T) {
	a, _ := Lookup(Q35, 1)
	d, _ := a.NIC(VirtioNet, 0)
	_ = d.Props.With("mac", "x")
	a.Adapters[VirtioNet] = AdapterRow{}
	b, _ := Lookup(Q35, 1)
	if b.Adapters[VirtioNet].Driver != "virtio-net-pci" {
		t.Error("a caller's change reached the table")
	}
}

func TestOSRowsFitTheirMachine(t *testing.T) {
	seen := map[string]bool{}
	for _, o := range OSes() {
		if seen[o.ID] {
			t.Errorf("%s appears twice", o.ID)
		}
		seen[o.ID] = true
		h, err := Lookup(o.Machine, Latest)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.NIC(o.NIC, 0); err != nil {
			t.Errorf("%s: %v", o.ID, err)
		}
		if _, err := h.Disk(o.Disk, 0); err != nil {
			t.Errorf("%s: %v", o.ID, err)
		}
		if !h.HasFirmware(o.Firmware) {
			t.Errorf("%s: %s has no %s", o.ID, o.Machine, o.Firmware)
		}
		if o.Reason == "" || o.Name == "" {
			t.Errorf("%s: says nothing for people", o.ID)
		}
	}
	if _, err := LookupOS("plan9"); !errors.Is(err, ErrUnknown) {
		t.Errorf("plan9: %v", err)
	}
}
