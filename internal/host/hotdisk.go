package host

import (
	"context"
	"errors"
	"fmt"

	v1 "drover/api/drover/v1"
	"drover/internal/guest"
	"drover/internal/qemu"
	"drover/internal/resource"
)

// diskIDOf is QEMU's id of a disk that has a place.
func (m *machine) diskIDOf(d *v1.DiskSpec) string {
	bus := resource.BusOf(d.GetBus())
	return diskID(bus, m.local.place(placeDisk, string(bus), d.GetName()))
}

func (m *machine) hotRemoveDisk(ctx context.Context, p *qemu.Process, have *v1.VMSpec, name string) error {
	d := diskSpec(have, name)
	if err := p.RemoveDisk(ctx, m.diskIDOf(d)); err != nil && !errors.Is(err, qemu.ErrNotFound) {
		return err
	}
	if err := m.deleteDisk(ctx, name); err != nil {
		return fmt.Errorf("remove disk %s: %w", name, err)
	}
	have.Disks = without(have.Disks, d)
	return nil
}

func (m *machine) hotGrowDisk(ctx context.Context, p *qemu.Process, have *v1.VMSpec, d *v1.DiskSpec) error {
	if err := p.ResizeDisk(ctx, m.diskIDOf(d), d.GetSizeBytes()); err != nil {
		return err
	}
	st, err := m.a.stores.at(m.local.Made[d.GetName()].Path)
	if err != nil {
		return err
	}
	if err := st.Grown(ctx, m.uid, d.GetName(), d.GetSizeBytes()); err != nil {
		return fmt.Errorf("grow disk %s: %w", d.GetName(), err)
	}
	diskSpec(have, d.GetName()).SizeBytes = d.GetSizeBytes()
	return nil
}

func (m *machine) hotChangeCD(ctx context.Context, p *qemu.Process, have, want *v1.VMSpec, name string) error {
	for _, w := range want.GetCdroms() {
		if w.GetName() != name {
			continue
		}
		if w.GetImage() != "" {
			if err := m.ensureISO(ctx, w.GetImage()); err != nil {
				return fmt.Errorf("CD-ROM %s: %w", name, err)
			}
		}
		q, err := m.qemuCDROM(w)
		if err != nil {
			return err
		}
		if err := p.ChangeCD(ctx, q.ID, q.Path); err != nil {
			return err
		}
		for _, h := range have.GetCdroms() {
			if h.GetName() == name {
				h.Image = w.GetImage()
			}
		}
	}
	return nil
}

// seedDisk is the seed as a read-only disk, which cloud-init finds by its label as it finds a CD-ROM: at the last SCSI address, where
// no other disk is, or on machines without SCSI at one of the virtio ones.
func (m *machine) seedDisk(hw *guest.Hardware) qemu.Disk {
	bus, slot := guest.VirtioSCSI, hw.Disks[guest.VirtioSCSI].Slots-1
	if slot < 0 {
		bus, slot = guest.VirtioBlk, m.local.place(placeDisk, string(guest.VirtioBlk), ".seed")
	}
	return qemu.Disk{ID: "seed", Bus: bus, Slot: slot, ReadOnly: true, Serial: "cidata",
		Layers: []qemu.Layer{{ID: "seed-iso", Path: m.seedPath(), Format: qemu.Raw, Shared: true}}}
}
