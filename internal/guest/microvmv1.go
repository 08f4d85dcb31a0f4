package guest

import "fmt"

// microvmV1 is hardware version 1 of microvm. FROZEN: do not edit, add a version.
//
// Places are the 24 virtio-mmio buses:
//
//	1 balloon   2 RNG   3 virtio-serial   8–15 NIC slots 0–7   16–23 virtio-blk slots 0–7
//
// Bus 0 stays empty: its interrupt is pin 0 of the second I/O APIC, which guests under TCG never hear.
//
// QEMU does not version this machine type, hence Versioned=false: a guest's memory fits only the QEMU version that it
// was started with. Nothing can be hotplugged, as virtio-mmio has no way to announce it.
func microvmV1() *Hardware {
	mmio := func(n int) string { return fmt.Sprintf("virtio-mmio-bus.%d", n) }
	h := &Hardware{
		Version: 1, Machine: MicroVM, QEMU: "microvm", Versioned: false,
		// ioapic2 is what gives 24 buses; ACPI announces them and makes a graceful power-off possible.
		Options: Props{
			{"acpi", "on"}, {"ioapic2", "on"}, {"pcie", "off"}, {"pic", "on"}, {"pit", "on"}, {"rtc", "on"},
			{"isa-serial", "on"}, {"auto-kernel-cmdline", "off"}, {"x-option-roms", "off"}, {"usb", "off"},
			{"dump-guest-core", "off"}, {"mem-merge", "off"},
		},
		Globals: []string{"virtio-mmio.force-legacy=off"},
		CPU: map[Accel]CPU{
			KVM: {Model: "Westmere-v2", Features: []string{}, HyperV: []string{}},
			TCG: {Model: "Westmere-v1", Features: []string{}, HyperV: []string{}},
		},
		Firmware: []Firmware{BIOS}, DirectBoot: true, BIOS: "bios-microvm.bin",
		Bridges: []Device{},
		Serial:  Device{ID: "vserial0", Driver: "virtio-serial-device", Bus: mmio(3), Props: Props{{"max_ports", 8}}},
		Balloon: Device{ID: "balloon0", Driver: "virtio-balloon-device", Bus: mmio(1), Props: Props{{"deflate-on-oom", true}, {"free-page-reporting", true}}},
		RNG:     Device{ID: "rng0", Driver: "virtio-rng-device", Bus: mmio(2)},

		NICSlots: 8,
		MaxCPUs:  240,
	}
	var nic, blk []Device
	for i := range 8 {
		nic = append(nic, Device{Bus: mmio(8 + i)})
		blk = append(blk, Device{Bus: mmio(16 + i)})
	}
	h.Adapters = map[Adapter]AdapterRow{
		VirtioNet: {Driver: "virtio-net-device", Bus: MMIO, Link: true, Offload: true, Queues: 1, MTU: 65535, Desc: "paravirtual (virtio 1)", Props: Props{}, Places: nic},
	}
	h.Disks = map[DiskBus]DiskRow{
		VirtioBlk: {Driver: "virtio-blk-device", Bus: MMIO, Slots: 8, Props: Props{{"num-queues", 1}}, Places: blk},
	}
	return h
}
