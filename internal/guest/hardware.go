package guest

import (
	"errors"
	"fmt"
	"slices"
)

// Machine is a machine kind.
type Machine string

// The machine kinds.
const (
	Q35     Machine = "q35"     // a PC with PCI Express: everything works on it
	MicroVM Machine = "microvm" // virtio-mmio only, direct kernel boot, no hotplug: starts fastest
)

// Accel is what executes the guest's instructions.
type Accel string

// The accelerators.
const (
	KVM Accel = "kvm"
	TCG Accel = "tcg"
)

// Firmware is what runs first in the guest.
type Firmware string

// The firmwares. A microvm with BIOS boots a kernel directly.
const (
	BIOS Firmware = "bios"
	UEFI Firmware = "uefi"
)

// Latest is the hardware version that new VMs get.
const Latest = 1

// ErrUnknown says that no row of a table has the wanted name or number.
var ErrUnknown = errors.New("unknown")

// ErrUnsupported says that the machine kind or version has no such device, place or operation.
var ErrUnsupported = errors.New("not supported by this machine")

// CPU is the processor that the guest sees.
type CPU struct {
	Model    string   `json:"model"`    // a versioned QEMU model
	Features []string `json:"features"` // added to the model for every guest
	HyperV   []string `json:"hyperv"`   // added for guests that are Windows
}

// Hardware is one frozen row: what version N of a machine kind is made of.
type Hardware struct {
	Version   int     `json:"version"`
	Machine   Machine `json:"machine"`
	QEMU      string  `json:"qemu"`      // QEMU's name of the machine type
	Versioned bool    `json:"versioned"` // whether that name pins the machine across QEMU versions

	Options Props         `json:"options"` // machine properties
	Globals []string      `json:"globals"` // -global arguments
	CPU     map[Accel]CPU `json:"cpu"`

	Firmware   []Firmware `json:"firmware"`
	BIOS       string     `json:"bios"`             // file name of the BIOS; empty: the machine's own default
	DirectBoot bool       `json:"direct_boot_only"` // there is nothing to boot from but a kernel given by the host

	Bridges []Device `json:"bridges"` // always present, in this order

	VGA     Device `json:"vga"`
	USB     Device `json:"usb"`
	Tablet  Device `json:"tablet"`
	Serial  Device `json:"serial"` // the controller that carries the guest agent's channel
	Balloon Device `json:"balloon"`
	RNG     Device `json:"rng"`
	Panic   Device `json:"panic"`
	GenID   Device `json:"generation_id"`
	SCSI    Device `json:"scsi"`

	NICSlots int                    `json:"nic_slots"`
	Adapters map[Adapter]AdapterRow `json:"adapters"`
	Disks    map[DiskBus]DiskRow    `json:"disks"`
	CDROM    DiskRow                `json:"cdrom"`

	CPUHotplug  bool `json:"cpu_hotplug"`
	MemorySlots int  `json:"memory_slots"` // DIMMs that can be added while running; 0: none
	MaxCPUs     int  `json:"max_cpus"`
}

// Lookup finds the row of a version; version 0 means Latest. The row is shared and must not be changed.
func Lookup(machine Machine, version int) (*Hardware, error) {
	if version == 0 {
		version = Latest
	}
	for _, row := range rows() {
		if row.Machine == machine && row.Version == version {
			return row, nil
		}
	}
	return nil, fmt.Errorf("hardware version %d of machine %q: %w; this Drover knows versions %v of q35 and microvm",
		version, machine, ErrUnknown, Versions())
}

// Versions lists the versions that exist, oldest first.
func Versions() []int { return []int{1} }

// rows makes every row anew, so that no caller can change another's table.
func rows() []*Hardware { return []*Hardware{q35v1(), microvmV1()} }

// HasFirmware reports whether the machine can start with f.
func (h *Hardware) HasFirmware(f Firmware) bool { return slices.Contains(h.Firmware, f) }
