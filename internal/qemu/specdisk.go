package qemu

import (
	"fmt"

	"drover/internal/guest"
)

func (s *Spec) validDisks(hw *guest.Hardware) error {
	ids, nodes, places := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, d := range s.Disks {
		if err := d.validate(hw); err != nil {
			return err
		}
		place := fmt.Sprint(d.Bus, d.Slot)
		if ids[d.ID] || places[place] {
			return bad("disk %s: its id or place (%s slot %d) is used twice", d.ID, d.Bus, d.Slot)
		}
		ids[d.ID], places[place] = true, true
		for _, l := range d.Layers {
			if nodes[l.ID] {
				return bad("disk %s: layer %s is used twice", d.ID, l.ID)
			}
			nodes[l.ID] = true
		}
	}
	for _, c := range s.CDROMs {
		if !validID(c.ID, 16) || ids[c.ID] {
			return bad("CD-ROM id %q: at most 16 of a-z, 0-9 and dashes, used once", c.ID)
		}
		if _, err := hw.CD(c.Slot); err != nil {
			return err
		}
		place := fmt.Sprint("cd", c.Slot)
		if places[place] {
			return bad("CD-ROM %s: slot %d is used twice", c.ID, c.Slot)
		}
		ids[c.ID], places[place] = true, true
		if c.Path != "" {
			if err := absolute("CD-ROM "+c.ID, c.Path); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *Disk) validate(hw *guest.Hardware) error {
	if !validID(d.ID, 16) {
		return bad("disk id %q: at most 16 of a-z, 0-9 and dashes, a letter first", d.ID)
	}
	if _, err := hw.Disk(d.Bus, d.Slot); err != nil {
		return fmt.Errorf("disk %s: %w", d.ID, err)
	}
	if !serialRE.MatchString(d.Serial) {
		return bad("disk %s: serial %q: at most 20 letters, digits, dashes", d.ID, d.Serial)
	}
	if d.Cache != WriteBack && d.Cache != Direct && d.Cache != Unsafe {
		return bad("disk %s: cache %q", d.ID, d.Cache)
	}
	if d.Boot < 0 || len(d.Layers) == 0 || len(d.Layers) > 64 {
		return bad("disk %s: %d layers: from 1 to 64; delete a snapshot", d.ID, len(d.Layers))
	}
	if d.Layers[0].remote() && (len(d.Layers) == 1 || d.ReadOnly) {
		return bad("disk %s: a remote base needs a layer above it that can be written", d.ID)
	}
	for i, l := range d.Layers {
		if err := l.validate(i > 0); err != nil {
			return fmt.Errorf("disk %s: %w", d.ID, err)
		}
	}
	return nil
}

func (l *Layer) validate(overlay bool) error {
	if !validID(l.ID, 24) {
		return bad("layer id %q: at most 24 of a-z, 0-9 and dashes, a letter first", l.ID)
	}
	if l.remote() {
		return l.validRemote(overlay)
	}
	if l.Format != Qcow2 && (l.Format != Raw || overlay) {
		return bad("layer %s: format %q: an overlay is qcow2, a base qcow2 or raw", l.ID, l.Format)
	}
	return absolute("layer "+l.ID, l.Path)
}
