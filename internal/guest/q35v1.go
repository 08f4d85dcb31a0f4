package guest

import "fmt"

// q35v1 is hardware version 1 of q35. FROZEN: do not edit, add a version.
//
// Addresses on pcie.0 (slot.function, hex):
//
//	00.0 host bridge       01.0 VGA            02.0 USB (xHCI)       03.0 virtio-serial
//	04.0 virtio-scsi       05.0 balloon        06.0 RNG              07.0 panic notifier
//	10.0–10.7 root ports of NIC slots 0–7      11.0–11.7 root ports of virtio-blk slots 0–7
//	1e.0 PCIe-to-PCI bridge; NIC slot N of a conventional PCI adapter is its device N+1
//	1f.0 LPC, 1f.2 AHCI (ports 0–1 CD-ROM drives, 2–5 SATA disks), 1f.3 SMBus: the chipset's own
//
// The root ports reserve no I/O space: there are only 64 KiB of it, ports of 4 KiB each would use it up, and no model
// behind them needs any. Option ROMs are off: a ROM's size is part of the migrated state and would change with the
// ROM package; UEFI boots from the network without them.
func q35v1() *Hardware {
	h := &Hardware{
		Version: 1, Machine: Q35, QEMU: "pc-q35-7.2", Versioned: true,
		Options: Props{
			{"usb", "off"}, {"vmport", "off"}, {"hpet", "off"}, {"smm", "off"}, {"graphics", "on"},
			{"dump-guest-core", "off"}, {"mem-merge", "off"},
		},
		Globals: []string{"ICH9-LPC.disable_s3=1", "ICH9-LPC.disable_s4=1", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=on"},
		CPU: map[Accel]CPU{
			// Westmere is the x86-64-v2 level plus AES: any Intel since 2010 and any AMD since 2011. Its second
			// revision has the speculation controls, which software emulation has not.
			KVM: {Model: "Westmere-v2", Features: []string{}, HyperV: []string{"hv_relaxed=on", "hv_vapic=on", "hv_spinlocks=0x1fff", "hv_time=on", "hv_vpindex=on", "hv_runtime=on", "hv_synic=on", "hv_stimer=on", "hv_frequencies=on"}},
			TCG: {Model: "Westmere-v1", Features: []string{}, HyperV: []string{}},
		},
		Firmware: []Firmware{BIOS, UEFI},

		VGA:     Device{ID: "vga0", Driver: "VGA", Bus: "pcie.0", Addr: "01.0", Props: Props{{"vgamem_mb", 16}}},
		USB:     Device{ID: "usb0", Driver: "qemu-xhci", Bus: "pcie.0", Addr: "02.0", Props: Props{{"p2", 4}, {"p3", 4}}},
		Tablet:  Device{ID: "tablet0", Driver: "usb-tablet", Bus: "usb0.0", Props: Props{{"port", "1"}}},
		Serial:  Device{ID: "vserial0", Driver: "virtio-serial-pci", Bus: "pcie.0", Addr: "03.0", Props: Props{{"disable-legacy", "on"}, {"max_ports", 8}}},
		SCSI:    Device{ID: "scsi0", Driver: "virtio-scsi-pci", Bus: "pcie.0", Addr: "04.0", Props: Props{{"disable-legacy", "on"}, {"num_queues", 1}}},
		Balloon: Device{ID: "balloon0", Driver: "virtio-balloon-pci", Bus: "pcie.0", Addr: "05.0", Props: Props{{"disable-legacy", "on"}, {"deflate-on-oom", true}, {"free-page-reporting", true}}},
		RNG:     Device{ID: "rng0", Driver: "virtio-rng-pci", Bus: "pcie.0", Addr: "06.0", Props: Props{{"disable-legacy", "on"}}},
		Panic:   Device{ID: "panic0", Driver: "pvpanic-pci", Bus: "pcie.0", Addr: "07.0"},
		GenID:   Device{ID: "genid0", Driver: "vmgenid"},

		NICSlots:    8,
		Adapters:    map[Adapter]AdapterRow{},
		Disks:       map[DiskBus]DiskRow{},
		CPUHotplug:  true,
		MemorySlots: 8,
		MaxCPUs:     240, // without an interrupt remapping device the APIC ids end at 255
	}

	var pcie, pci, blk, scsi, sata, cd []Device
	for i := range 8 {
		h.Bridges = append(h.Bridges, rootPort(fmt.Sprintf("pnic%d", i), 0x10, i, 1+i))
		pcie = append(pcie, Device{Bus: fmt.Sprintf("pnic%d", i), Addr: "00.0"})
		pci = append(pci, Device{Bus: "pci0", Addr: fmt.Sprintf("%02x.0", i+1)})
		blk = append(blk, Device{Bus: fmt.Sprintf("pblk%d", i), Addr: "00.0"})
	}
	for i := range 8 {
		h.Bridges = append(h.Bridges, rootPort(fmt.Sprintf("pblk%d", i), 0x11, i, 17+i))
	}
	h.Bridges = append(h.Bridges, Device{ID: "pci0", Driver: "pcie-pci-bridge", Bus: "pcie.0", Addr: "1e.0"})
	for i := range 60 {
		scsi = append(scsi, Device{Bus: "scsi0.0", Props: Props{{"channel", 0}, {"scsi-id", i}, {"lun", 0}}})
	}
	for i := range 2 {
		cd = append(cd, Device{Bus: fmt.Sprintf("ide.%d", i)})
	}
	for i := range 4 {
		sata = append(sata, Device{Bus: fmt.Sprintf("ide.%d", i+2)})
	}

	virtio := Props{{"disable-legacy", "on"}}
	h.Adapters[VirtioNet] = AdapterRow{Driver: "virtio-net-pci", Bus: PCIe, Hotplug: true, Link: true, Offload: true, Queues: 8, MTU: 65535,
		Desc: "paravirtual (virtio 1)", Props: virtio.With("romfile", ""), Places: pcie}
	h.Adapters[VMXNET3] = AdapterRow{Driver: "vmxnet3", Bus: PCIe, Hotplug: true, Link: true, Offload: true, Queues: 1, MTU: 9000,
		Desc: "VMware paravirtual", Props: Props{{"romfile", ""}}, Places: pcie}
	// QEMU 7.2 raises the 82574L's interrupt for link changes once and, as Linux does not clear its cause, never again.
	h.Adapters[E1000E] = AdapterRow{Driver: "e1000e", Bus: PCIe, Hotplug: true, Offload: true, Queues: 1, MTU: 9000,
		Desc: "Intel 82574L Gigabit", Props: Props{{"romfile", ""}}, Places: pcie}
	h.Adapters[E1000] = AdapterRow{Driver: "e1000-82545em", Bus: PCI, Hotplug: true, Link: true, Queues: 1, MTU: 16110,
		Desc: "Intel 82545EM Gigabit", Props: Props{{"romfile", ""}}, Places: pci}
	h.Adapters[PCNet] = AdapterRow{Driver: "pcnet", Bus: PCI, Hotplug: true, Queues: 1, MTU: 1500,
		Desc: "AMD PCnet-PCI II, 10 Mbit/s", Props: Props{{"romfile", ""}}, Places: pci}
	h.Adapters[RTL8139] = AdapterRow{Driver: "rtl8139", Bus: PCI, Hotplug: true, Link: true, Queues: 1, MTU: 1500,
		Desc: "Realtek RTL8139C+, 100 Mbit/s", Props: Props{{"romfile", ""}}, Places: pci}

	h.Disks[VirtioBlk] = DiskRow{Driver: "virtio-blk-pci", Bus: PCIe, Hotplug: true, Slots: 8, Props: virtio.With("num-queues", 1), Places: blk}
	h.Disks[VirtioSCSI] = DiskRow{Driver: "scsi-hd", Bus: SCSI, Hotplug: true, Slots: 60, Props: Props{}, Places: scsi}
	h.Disks[SATADisk] = DiskRow{Driver: "ide-hd", Bus: SATA, Slots: 4, Props: Props{{"rotation_rate", 1}}, Places: sata}
	h.CDROM = DiskRow{Driver: "ide-cd", Bus: SATA, Slots: 2, Props: Props{}, Places: cd}
	return h
}

func rootPort(id string, slot, fn, chassis int) Device {
	p := Props{{"chassis", chassis}, {"slot", 0}, {"port", slot<<3 | fn}, {"io-reserve", 0}}
	if fn == 0 {
		p = p.With("multifunction", true)
	}
	return Device{ID: id, Driver: "pcie-root-port", Bus: "pcie.0", Addr: fmt.Sprintf("%02x.%x", slot, fn), Props: p}
}
