package guest

import "fmt"

// DiskBus is how a disk appears in the guest.
type DiskBus string

// The disk buses.
const (
	VirtioBlk  DiskBus = "virtio-blk"
	VirtioSCSI DiskBus = "virtio-scsi"
	SATADisk   DiskBus = "sata" // for guests without virtio drivers
)

// DiskRow is one way for a disk or CD-ROM into a guest.
type DiskRow struct {
	Driver  string   `json:"driver"`
	Bus     BusKind  `json:"bus"`
	Hotplug bool     `json:"hotplug"`
	Slots   int      `json:"slots"`
	Props   Props    `json:"props"`
	Places  []Device `json:"places"` // by slot; Props here are part of the address
}

func (r DiskRow) device(slot int) Device {
	p := r.Places[slot]
	d := Device{Driver: r.Driver, Bus: p.Bus, Addr: p.Addr}
	d.Props = append(append(Props{}, p.Props...), r.Props...)
	return d
}

// Disk returns the device for a disk on a bus in a slot, without its backend.
func (h *Hardware) Disk(bus DiskBus, slot int) (Device, error) {
	row, ok := h.Disks[bus]
	if !ok {
		return Device{}, fmt.Errorf("disk bus %q on %s: %w; use virtio-blk or machine q35", bus, h.Machine, ErrUnsupported)
	}
	if slot < 0 || slot >= row.Slots {
		return Device{}, fmt.Errorf("disk slot %d on bus %s of %s: %w; slots are 0 to %d", slot, bus, h.Machine, ErrUnsupported, row.Slots-1)
	}
	return row.device(slot), nil
}

// CD returns the device for CD-ROM drive number slot, without its backend.
func (h *Hardware) CD(slot int) (Device, error) {
	if slot < 0 || slot >= h.CDROM.Slots {
		if h.CDROM.Slots == 0 {
			return Device{}, fmt.Errorf("CD-ROM on %s: %w; use machine q35, or attach the image as a read-only disk", h.Machine, ErrUnsupported)
		}
		return Device{}, fmt.Errorf("CD-ROM drive %d on %s: %w; drives are 0 to %d", slot, h.Machine, ErrUnsupported, h.CDROM.Slots-1)
	}
	return h.CDROM.device(slot), nil
}
