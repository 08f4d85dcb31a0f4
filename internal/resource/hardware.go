package resource

import (
	"regexp"

	v1 "drover/api/drover/v1"
	"drover/internal/guest"
)

var (
	cpuModel = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	userName = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
)

var machines = map[v1.MachineKind]guest.Machine{
	v1.MachineKind_MACHINE_KIND_UNSPECIFIED: guest.Q35,
	v1.MachineKind_MACHINE_KIND_Q35:         guest.Q35,
	v1.MachineKind_MACHINE_KIND_MICROVM:     guest.MicroVM,
}

var firmwares = map[v1.Firmware]guest.Firmware{
	v1.Firmware_FIRMWARE_UNSPECIFIED: guest.BIOS,
	v1.Firmware_FIRMWARE_BIOS:        guest.BIOS,
	v1.Firmware_FIRMWARE_UEFI:        guest.UEFI,
}

var buses = map[v1.DiskBus]guest.DiskBus{
	v1.DiskBus_DISK_BUS_UNSPECIFIED: guest.VirtioBlk,
	v1.DiskBus_DISK_BUS_VIRTIO_BLK:  guest.VirtioBlk,
	v1.DiskBus_DISK_BUS_VIRTIO_SCSI: guest.VirtioSCSI,
	v1.DiskBus_DISK_BUS_SATA:        guest.SATADisk,
}

var adapters = map[v1.NICAdapter]guest.Adapter{
	v1.NICAdapter_NIC_ADAPTER_UNSPECIFIED: guest.VirtioNet,
	v1.NICAdapter_NIC_ADAPTER_VIRTIO:      guest.VirtioNet,
	v1.NICAdapter_NIC_ADAPTER_VMXNET3:     guest.VMXNET3,
	v1.NICAdapter_NIC_ADAPTER_E1000:       guest.E1000,
	v1.NICAdapter_NIC_ADAPTER_E1000E:      guest.E1000E,
	v1.NICAdapter_NIC_ADAPTER_PCNET:       guest.PCNet,
	v1.NICAdapter_NIC_ADAPTER_RTL8139:     guest.RTL8139,
}

// MachineOf is the hardware table's name for the API's; what neither knows becomes a name that no table has.
func MachineOf(m v1.MachineKind) guest.Machine { return known(machines, m) }

// FirmwareOf is the hardware table's name for the API's.
func FirmwareOf(f v1.Firmware) guest.Firmware { return known(firmwares, f) }

// BusOf is the hardware table's name for the API's.
func BusOf(b v1.DiskBus) guest.DiskBus { return known(buses, b) }

// AdapterOf is the hardware table's name for the API's.
func AdapterOf(a v1.NICAdapter) guest.Adapter { return known(adapters, a) }

func known[K comparable, V ~string](table map[K]V, k K) V {
	if v, ok := table[k]; ok {
		return v
	}
	return "unknown"
}

func busOf(b guest.DiskBus) v1.DiskBus {
	for k, v := range buses {
		if v == b && k != v1.DiskBus_DISK_BUS_UNSPECIFIED {
			return k
		}
	}
	return v1.DiskBus_DISK_BUS_VIRTIO_BLK
}

func adapterOf(a guest.Adapter) v1.NICAdapter {
	for k, v := range adapters {
		if v == a && k != v1.NICAdapter_NIC_ADAPTER_UNSPECIFIED {
			return k
		}
	}
	return v1.NICAdapter_NIC_ADAPTER_VIRTIO
}
