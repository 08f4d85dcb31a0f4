package host

import (
	"fmt"
	"path/filepath"
	"slices"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/guest"
	"drover/internal/qemu"
	"drover/internal/resource"
)

const stopWaitDefault = 90 * time.Second

// stopRequest reads how a stop is to be done.
func stopRequest(w *wish, vm *v1.VM) {
	if g := vm.GetSpec().GetStopGrace(); g != nil {
		w.stopWait = g.AsDuration()
		w.force = w.stopWait <= 0
	}
}

// Where a device sits is chosen once and kept with the VM, since a guest finds its devices by their places.
const (
	placeDisk  = "disk/"
	placeNIC   = "nic/"
	placeCDROM = "cd/"
)

// place finds or gives the slot of a device. group tells apart what can't share a slot.
func (l *local) place(kind, group, name string) int {
	key := kind + group + "/" + name
	if n, ok := l.Places[key]; ok {
		return n
	}
	used := map[int]bool{}
	for k, n := range l.Places {
		if len(k) > len(kind+group) && k[:len(kind+group)+1] == kind+group+"/" {
			used[n] = true
		}
	}
	n := 0
	for used[n] {
		n++
	}
	if l.Places == nil {
		l.Places = map[string]int{}
	}
	l.Places[key] = n
	return n
}

func (l *local) unplace(kind, group, name string) { delete(l.Places, kind+group+"/"+name) }

func hardwareOf(s *v1.VMSpec) (*guest.Hardware, error) {
	return guest.Lookup(resource.MachineOf(s.GetHardware().GetMachine()), int(s.GetHardware().GetVersion()))
}

func diskID(bus guest.DiskBus, slot int) string {
	prefix := map[guest.DiskBus]string{guest.VirtioBlk: "vd", guest.VirtioSCSI: "sd", guest.SATADisk: "hd"}[bus]
	return fmt.Sprintf("%s%d", prefix, slot)
}

func nicID(slot int) string { return fmt.Sprintf("nic%d", slot) }
func cdID(slot int) string  { return fmt.Sprintf("cd%d", slot) }

// qemuSpec turns the API's spec into QEMU's. Files that it names must be there: see provision.
func (m *machine) qemuSpec(vm *v1.VM) (qemu.Spec, error) {
	s := vm.GetSpec()
	hw, err := hardwareOf(s)
	if err != nil {
		return qemu.Spec{}, err
	}
	os, err := guest.LookupOS(s.GetOs())
	if err != nil {
		os = guest.OS{}
	}
	spec := qemu.Spec{
		Name: vm.GetMeta().GetName(), UUID: m.uid, Machine: hw.Machine, Version: hw.Version, Accel: m.a.accel.name,
		CPU:      qemu.CPU{Sockets: int(max(s.GetCpus(), 1)), Cores: 1, Model: s.GetHardware().GetCpuModel()},
		Memory:   qemu.Memory{MiB: s.GetMemoryBytes() >> 20, Path: m.memoryPath()},
		Firmware: qemu.Firmware{Kind: resource.FirmwareOf(s.GetHardware().GetFirmware())},
		HyperV:   os.HyperV, LocalRTC: os.LocalRTC, GenerationID: m.local.GenerationID,
		SMBIOS: qemu.SMBIOS{Manufacturer: "Drover", Product: "Drover VM"},
	}
	if hw.CPUHotplug && s.GetMaxCpus() > s.GetCpus() {
		spec.CPU.MaxSockets = int(s.GetMaxCpus())
	}
	if hw.MemorySlots > 0 && s.GetMaxMemoryBytes() > s.GetMemoryBytes() {
		spec.Memory.MaxMiB = s.GetMaxMemoryBytes() >> 20
	}
	if spec.Firmware.Kind == guest.UEFI {
		spec.Firmware.Code, spec.Firmware.Vars = firmwareCode, filepath.Join(m.dir, firmwareVars)
	}
	if s.GetKernelImage() != "" {
		if spec.Kernel, err = m.kernel(s); err != nil {
			return qemu.Spec{}, err
		}
	}
	for _, d := range s.GetDisks() {
		q, err := m.qemuDisk(d)
		if err != nil {
			return qemu.Spec{}, err
		}
		spec.Disks = append(spec.Disks, q)
	}
	for _, c := range s.GetCdroms() {
		q, err := m.qemuCDROM(c)
		if err != nil {
			return qemu.Spec{}, err
		}
		spec.CDROMs = append(spec.CDROMs, q)
	}
	switch {
	case resource.SeedOnCD(s):
		slot := m.local.place(placeCDROM, "", ".seed")
		spec.CDROMs = append(spec.CDROMs, qemu.CDROM{ID: cdID(slot), Slot: slot, Path: m.seedPath()})
	case s.GetCloudInit().GetEnabled():
		spec.Disks = append(spec.Disks, m.seedDisk(hw))
	}
	for _, n := range s.GetNics() {
		spec.NICs = append(spec.NICs, m.qemuNIC(n))
	}
	return spec, nil
}

func (m *machine) qemuNIC(n *v1.NICSpec) qemu.NIC {
	slot := m.local.place(placeNIC, "", n.GetName())
	return qemu.NIC{
		ID: nicID(slot), Slot: slot, Adapter: resource.AdapterOf(n.GetAdapter()), MAC: n.GetMac(),
		MTU: m.a.mtu(n.GetNetwork()), Down: n.GetLinkDown(),
	}
}

func (m *machine) memoryPath() string { return filepath.Join(m.a.cfg.ShmDir, m.uid) }
func (m *machine) seedPath() string   { return filepath.Join(m.dir, "seed.iso") }

// diskSpec and nicSpec find parts of a spec by name.
func diskSpec(s *v1.VMSpec, name string) *v1.DiskSpec {
	if i := slices.IndexFunc(s.GetDisks(), func(d *v1.DiskSpec) bool { return d.GetName() == name }); i >= 0 {
		return s.GetDisks()[i]
	}
	return nil
}

func nicSpec(s *v1.VMSpec, name string) *v1.NICSpec {
	if i := slices.IndexFunc(s.GetNics(), func(n *v1.NICSpec) bool { return n.GetName() == name }); i >= 0 {
		return s.GetNics()[i]
	}
	return nil
}
