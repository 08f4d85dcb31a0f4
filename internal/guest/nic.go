package guest

import "fmt"

// Adapter is a NIC model as users name it.
type Adapter string

// The adapters.
const (
	VirtioNet Adapter = "virtio"
	VMXNET3   Adapter = "vmxnet3"
	E1000     Adapter = "e1000" // Intel 82545EM, the one that VMware emulates
	E1000E    Adapter = "e1000e"
	PCNet     Adapter = "pcnet"
	RTL8139   Adapter = "rtl8139"
)

// Adapters lists all of them, the default first.
func Adapters() []Adapter {
	return []Adapter{VirtioNet, VMXNET3, E1000, E1000E, PCNet, RTL8139}
}

// BusKind is the sort of bus that a model sits on.
type BusKind string

// The kinds of bus.
const (
	PCIe BusKind = "pcie"
	PCI  BusKind = "pci"
	MMIO BusKind = "virtio-mmio"
	SCSI BusKind = "scsi"
	SATA BusKind = "sata"
)

// AdapterRow is one NIC model on one machine.
type AdapterRow struct {
	Driver  string   `json:"driver"`
	Bus     BusKind  `json:"bus"`
	Hotplug bool     `json:"hotplug"`
	Offload bool     `json:"offload"`     // the model understands the virtio-net header on its TAP (IFF_VNET_HDR)
	Link    bool     `json:"link"`        // the guest notices when its cable is unplugged while running
	Queues  int      `json:"queues"`      // most queue pairs that Drover gives it
	MTU     int      `json:"max_mtu"`     // largest MTU that the model passes
	Desc    string   `json:"description"` // for people
	Props   Props    `json:"props"`
	Places  []Device `json:"places"` // bus and address by slot
}

// NIC returns the device for a NIC of the adapter in a slot, without its MAC and backend.
func (h *Hardware) NIC(a Adapter, slot int) (Device, error) {
	row, ok := h.Adapters[a]
	if !ok {
		return Device{}, fmt.Errorf("NIC adapter %q on %s: %w; use virtio or machine q35", a, h.Machine, ErrUnsupported)
	}
	if slot < 0 || slot >= len(row.Places) {
		return Device{}, fmt.Errorf("NIC slot %d on %s: %w; slots are 0 to %d", slot, h.Machine, ErrUnsupported, len(row.Places)-1)
	}
	d := row.Places[slot]
	d.Driver, d.Props = row.Driver, row.Props
	return d, nil
}
