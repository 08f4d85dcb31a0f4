package guest

import "fmt"

// OS is what Drover proposes for a family of operating systems. Users may choose otherwise.
type OS struct {
	ID       string
	Name     string
	Machine  Machine
	NIC      Adapter
	Disk     DiskBus
	Firmware Firmware
	HyperV   bool   // give the CPU the Hyper-V features that Windows looks for
	LocalRTC bool   // the guest takes the hardware clock for local time
	Reason   string // why, for people
}

// OSes lists the families, the most usual first.
func OSes() []OS {
	return []OS{
		{"linux", "Linux", Q35, VirtioNet, VirtioBlk, UEFI, false, false, "virtio drivers have been in the kernel since 2.6.25; virtio 1 since 4.0"},
		{"linux-tiny", "Linux, direct kernel boot", MicroVM, VirtioNet, VirtioBlk, BIOS, false, false, "the kernel comes from the host, so nothing but virtio is needed"},
		{"linux-2.6", "Linux before 4.0 (RHEL 5 and 6, SLES 11, Debian 7)", Q35, E1000, SATADisk, BIOS, false, false, "drivers for virtio 1 came with kernel 4.0; the 82545EM works in every 2.6 kernel"},
		{"windows", "Windows 8.1, Server 2012 R2 and later", Q35, E1000E, SATADisk, UEFI, true, true, "Windows has drivers for AHCI and the 82574L on its disc; choose windows-virtio when the virtio drivers are installed"},
		{"windows-virtio", "Windows with virtio drivers", Q35, VirtioNet, VirtioSCSI, UEFI, true, true, "the virtio drivers are installed in the image"},
		{"windows-7", "Windows Vista to 8, Server 2008 to 2012", Q35, E1000, SATADisk, BIOS, true, true, "these have the 82545EM's driver and AHCI on their disc; UEFI needs more than OVMF gives them"},
		{"windows-xp", "Windows XP, Server 2003", Q35, RTL8139, SATADisk, BIOS, false, true, "the RTL8139's driver is on the disc; AHCI needs a driver diskette or a slipstreamed disc"},
		{"freebsd", "FreeBSD 9 and later", Q35, VirtioNet, VirtioBlk, UEFI, false, false, "virtio drivers are in the GENERIC kernel; virtio 1 since 13.0"},
		{"openbsd", "OpenBSD", Q35, VirtioNet, VirtioBlk, BIOS, false, false, "vio(4) and vioblk(4) are in GENERIC"},
		{"netbsd", "NetBSD 10 and later", Q35, VirtioNet, VirtioBlk, BIOS, false, false, "virtio 1 drivers are in GENERIC since 10.0"},
		{"solaris", "Solaris, illumos", Q35, E1000, SATADisk, BIOS, false, false, "e1000g has always been there; virtio 1 drivers are recent"},
		{"vmware", "An appliance made for VMware", Q35, VMXNET3, SATADisk, BIOS, false, false, "its image brings VMware's drivers and perhaps no virtio ones"},
		{"dos", "DOS and other old systems", Q35, PCNet, SATADisk, BIOS, false, true, "packet drivers for the PCnet are everywhere"},
		{"other", "Something else", Q35, E1000, SATADisk, BIOS, false, false, "the 82545EM and AHCI have drivers nearly everywhere"},
	}
}

// LookupOS finds a family by its id.
func LookupOS(id string) (OS, error) {
	for _, o := range OSes() {
		if o.ID == id {
			return o, nil
		}
	}
	return OS{}, fmt.Errorf("operating system family %q: %w; list the families, or use \"other\"", id, ErrUnknown)
}
