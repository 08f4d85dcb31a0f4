package resource

import (
	"net/netip"
	"slices"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/guest"

	"google.golang.org/protobuf/types/known/durationpb"
)

// Bounds of a VM. QEMU's own are wider; these keep sums of them far from overflowing.
const (
	MiB          = 1 << 20
	minMemory    = 16 * MiB
	maxMemory    = 4 << 40
	maxDisk      = 64 << 40
	sector       = 512
	maxUserData  = 256 << 10
	maxParts     = 32
	defaultStop  = 90 * time.Second
	longestStop  = time.Hour
	maxCmdline   = 2048
	maxKeyLength = 16 << 10
)

// DefaultVM fills in what was left open. image is the VM's boot image, or nil.
func DefaultVM(vm *v1.VM, image *v1.Image) {
	s := vm.Spec
	if s.Os == "" {
		s.Os = image.GetSpec().GetOs()
	}
	if s.Power == v1.Power_POWER_UNSPECIFIED {
		s.Power = v1.Power_POWER_OFF
	}
	if s.Hardware == nil {
		s.Hardware = &v1.Hardware{}
	}
	if s.Hardware.Version == 0 {
		s.Hardware.Version = guest.Latest
	}
	if s.Hardware.Machine == v1.MachineKind_MACHINE_KIND_UNSPECIFIED {
		s.Hardware.Machine = v1.MachineKind_MACHINE_KIND_Q35
	}
	if s.Hardware.Firmware == v1.Firmware_FIRMWARE_UNSPECIFIED {
		s.Hardware.Firmware = v1.Firmware_FIRMWARE_BIOS
	}
	if s.Cpus == 0 {
		s.Cpus = 1
	}
	if s.MemoryBytes == 0 {
		s.MemoryBytes = 512 * MiB
	}
	if s.RestartPolicy == v1.RestartPolicy_RESTART_POLICY_UNSPECIFIED {
		s.RestartPolicy = v1.RestartPolicy_RESTART_POLICY_ON_CRASH
	}
	if s.StopTimeout == nil {
		s.StopTimeout = durationpb.New(defaultStop)
	}
	for i, d := range s.Disks {
		DefaultDisk(d, s.Os)
		if i == 0 && d.BootOrder == 0 && !slices.ContainsFunc(s.Disks, func(d *v1.DiskSpec) bool { return d.BootOrder > 0 }) {
			d.BootOrder = 1
		}
	}
	for _, n := range s.Nics {
		DefaultNIC(n, s.Os)
	}
}

// DefaultDisk fills in what was left open in a disk of a guest of that OS.
func DefaultDisk(d *v1.DiskSpec, os string) {
	if d.Format == v1.DiskFormat_DISK_FORMAT_UNSPECIFIED {
		d.Format = v1.DiskFormat_DISK_FORMAT_QCOW2
	}
	if d.Bus == v1.DiskBus_DISK_BUS_UNSPECIFIED {
		d.Bus = v1.DiskBus_DISK_BUS_VIRTIO_BLK
		if o, err := guest.LookupOS(os); err == nil {
			d.Bus = busOf(o.Disk)
		}
	}
}

// DefaultNIC fills in what was left open in a NIC of a guest of that OS.
func DefaultNIC(n *v1.NICSpec, os string) {
	if n.Adapter == v1.NICAdapter_NIC_ADAPTER_UNSPECIFIED {
		n.Adapter = v1.NICAdapter_NIC_ADAPTER_VIRTIO
		if o, err := guest.LookupOS(os); err == nil {
			n.Adapter = adapterOf(o.NIC)
		}
	}
	if n.Mac == "" {
		n.Mac = NewMAC()
	} else if mac, err := NormalMAC(n.Mac); err == nil {
		n.Mac = mac
	}
}

// CheckVM says what is wrong with a VM whose defaults are filled in.
func CheckVM(vm *v1.VM) error {
	f := begin(KindVM, vm.GetMeta(), false)
	s := vm.GetSpec()
	if s == nil {
		f.Add("spec", "SPEC_MISSING", "says what the VM is made of, and is missing")
		return f.Err()
	}
	checkEnums(f, s)
	checkText(f, "spec.description", s.Description, 1024)
	checkOS(f, s.Os)
	hw := checkHardware(f, s)
	checkSize(f, s, hw)
	checkDisks(f, s, hw)
	checkNICs(f, s, hw)
	checkSeed(f, s.CloudInit)
	checkPlacement(f, s.Placement)
	checkText(f, "spec.kernel_cmdline", s.KernelCmdline, maxCmdline)
	if s.KernelImage != "" && !ValidName(s.KernelImage) {
		f.Add("spec.kernel_image", "NAME_INVALID", "%q is not the name of an image", s.KernelImage)
	}
	if s.KernelCmdline != "" && s.KernelImage == "" {
		f.Add("spec.kernel_cmdline", "CONTRADICTION", "is only used together with kernel_image")
	}
	if t := s.StopTimeout.AsDuration(); t < 0 || t > longestStop {
		f.Add("spec.stop_timeout", "OUT_OF_RANGE", "%v; must be 0 to %v", t, longestStop)
	}
	if t := s.StopGrace.AsDuration(); t < 0 || t > longestStop {
		f.Add("spec.stop_grace", "OUT_OF_RANGE", "%v; must be 0 to %v", t, longestStop)
	}
	if s.Template && s.Power != v1.Power_POWER_OFF {
		f.Add("spec.template", "CONTRADICTION", "a template never runs; power must be POWER_OFF")
	}
	if c := s.CloneFrom; c != nil {
		if !ValidName(c.Vm) {
			f.Add("spec.clone_from.vm", "NAME_INVALID", "%q is not the name of a VM", c.Vm)
		}
		if vmName, _, ok := Part(c.Snapshot); c.Snapshot != "" && (!ok || vmName != c.Vm) {
			f.Add("spec.clone_from.snapshot", "NAME_INVALID", "%q is not a snapshot of VM %q; it is named VM/SNAPSHOT", c.Snapshot, c.Vm)
		}
	}
	return f.Err()
}

func checkOS(f *Faults, os string) {
	if os == "" {
		return
	}
	if _, err := guest.LookupOS(os); err != nil {
		f.Add("spec.os", "OS_UNKNOWN", "%v", err)
	}
}

func checkHardware(f *Faults, s *v1.VMSpec) *guest.Hardware {
	hw, err := guest.Lookup(MachineOf(s.Hardware.GetMachine()), int(s.Hardware.GetVersion()))
	if err != nil {
		f.Add("spec.hardware", "HARDWARE_UNKNOWN", "%v", err)
		return nil
	}
	if !hw.HasFirmware(FirmwareOf(s.Hardware.GetFirmware())) {
		f.Add("spec.hardware.firmware", "HARDWARE_UNSUPPORTED", "machine %s has no %s; use q35", hw.Machine, FirmwareOf(s.Hardware.GetFirmware()))
	}
	if hw.DirectBoot && s.KernelImage == "" {
		f.Add("spec.kernel_image", "KERNEL_MISSING", "machine %s boots only directly; name an image of kind kernel, or use q35", hw.Machine)
	}
	if m := s.Hardware.GetCpuModel(); m != "" && !cpuModel.MatchString(m) {
		f.Add("spec.hardware.cpu_model", "CPU_INVALID", "%q is not a QEMU CPU model such as Skylake-Client-v1", m)
	}
	return hw
}

func checkSize(f *Faults, s *v1.VMSpec, hw *guest.Hardware) {
	most := int32(255)
	if hw != nil {
		most = int32(hw.MaxCPUs)
	}
	if s.Cpus < 1 || s.Cpus > most {
		f.Add("spec.cpus", "OUT_OF_RANGE", "%d; must be 1 to %d", s.Cpus, most)
	}
	if s.MaxCpus != 0 && (s.MaxCpus < s.Cpus || s.MaxCpus > most) {
		f.Add("spec.max_cpus", "OUT_OF_RANGE", "%d; must be cpus (%d) to %d, or 0", s.MaxCpus, s.Cpus, most)
	}
	if s.MemoryBytes < minMemory || s.MemoryBytes > maxMemory || s.MemoryBytes%MiB != 0 {
		f.Add("spec.memory_bytes", "OUT_OF_RANGE", "%d; must be a multiple of 1 MiB from 16 MiB to 4 TiB", s.MemoryBytes)
	}
	if m := s.MaxMemoryBytes; m != 0 && (m < s.MemoryBytes || m > maxMemory || m%MiB != 0) {
		f.Add("spec.max_memory_bytes", "OUT_OF_RANGE", "%d; must be a multiple of 1 MiB from memory_bytes (%d) to 4 TiB, or 0", m, s.MemoryBytes)
	}
}

func checkDisks(f *Faults, s *v1.VMSpec, hw *guest.Hardware) {
	seen := map[string]bool{}
	byBus := map[v1.DiskBus]int{}
	if len(s.Disks) > maxParts {
		f.Add("spec.disks", "TOO_MANY", "%d disks; at most %d", len(s.Disks), maxParts)
		return
	}
	for _, d := range s.Disks {
		at := "spec.disks[" + d.GetName() + "]"
		checkPart(f, at, d.GetName(), seen)
		CheckDiskSize(f, at+".size_bytes", d.SizeBytes)
		if d.SizeBytes == 0 && d.Image == "" && s.CloneFrom == nil {
			f.Add(at+".size_bytes", "SIZE_MISSING", "a disk that starts from no image needs a size")
		}
		if d.Image != "" && !ValidName(d.Image) {
			f.Add(at+".image", "NAME_INVALID", "%q is not the name of an image", d.Image)
		}
		if d.Datastore != "" && !ValidName(d.Datastore) {
			f.Add(at+".datastore", "NAME_INVALID", "%q is not the name of a datastore", d.Datastore)
		}
		if d.BootOrder < 0 || d.BootOrder > 99 {
			f.Add(at+".boot_order", "OUT_OF_RANGE", "%d; must be 0 to 99", d.BootOrder)
		}
		if hw != nil {
			if _, err := hw.Disk(BusOf(d.Bus), byBus[d.Bus]); err != nil {
				f.Add(at+".bus", "HARDWARE_UNSUPPORTED", "%v", err)
			}
		}
		byBus[d.Bus]++
	}
	for i, c := range s.Cdroms {
		at := "spec.cdroms[" + c.GetName() + "]"
		checkPart(f, at, c.GetName(), seen)
		if c.Image != "" && !ValidName(c.Image) {
			f.Add(at+".image", "NAME_INVALID", "%q is not the name of an image", c.Image)
		}
		slot := i
		if SeedOnCD(s) {
			slot++
		}
		if hw != nil {
			if _, err := hw.CD(slot); err != nil {
				f.Add(at, "HARDWARE_UNSUPPORTED", "%v", err)
			}
		}
	}
}

// SeedOnCD reports whether a VM's cloud-init seed takes one of its CD-ROM drives. It does for guests whose disks are on
// SATA; the others may have no driver for it (Debian's cloud kernel has none), and get the seed as a disk.
func SeedOnCD(s *v1.VMSpec) bool {
	return s.CloudInit.GetEnabled() && MachineOf(s.Hardware.GetMachine()) == guest.Q35 &&
		slices.ContainsFunc(s.Disks, func(d *v1.DiskSpec) bool { return d.Bus == v1.DiskBus_DISK_BUS_SATA })
}

// CheckDiskSize says whether a disk can be so large. 0 means that something else decides.
func CheckDiskSize(f *Faults, field string, size int64) {
	if size < 0 || size > maxDisk || size%sector != 0 {
		f.Add(field, "OUT_OF_RANGE", "%d; must be a multiple of 512 and at most 64 TiB", size)
	}
}

func checkPart(f *Faults, at, name string, seen map[string]bool) {
	if !ValidName(name) {
		f.Add(at+".name", "NAME_INVALID", "%q must have 1 to 63 characters of a-z, 0-9 and '-', and not begin or end with '-'", name)
	}
	if seen[name] {
		f.Add(at+".name", "NAME_TAKEN", "stands twice in this VM")
	}
	seen[name] = true
}

func checkNICs(f *Faults, s *v1.VMSpec, hw *guest.Hardware) {
	seen, macs := map[string]bool{}, map[string]bool{}
	if len(s.Nics) > maxParts {
		f.Add("spec.nics", "TOO_MANY", "%d NICs; at most %d", len(s.Nics), maxParts)
		return
	}
	for i, n := range s.Nics {
		at := "spec.nics[" + n.GetName() + "]"
		checkPart(f, at, n.GetName(), seen)
		if !ValidName(n.Network) {
			f.Add(at+".network", "NETWORK_MISSING", "%q is not the name of a network", n.Network)
		}
		if n.Profile != "" && !ValidName(n.Profile) {
			f.Add(at+".profile", "NAME_INVALID", "%q is not the name of a port profile", n.Profile)
		}
		mac, err := NormalMAC(n.Mac)
		if err != nil {
			f.Add(at+".mac", "MAC_INVALID", "%v", err)
		} else if VirtualMAC(mac) {
			f.Add(at+".mac", "MAC_INVALID", "%s is for virtual routers, which move; a NIC has a MAC of its own", mac)
		} else if macs[mac] {
			f.Add(at+".mac", "MAC_TAKEN", "%s stands twice in this VM", mac)
		}
		macs[mac] = true
		for _, a := range n.Addresses {
			if _, err := netip.ParsePrefix(a); err != nil {
				f.Add(at+".addresses", "ADDRESS_INVALID", "%q is not an address with its prefix length, such as 10.1.0.5/24", a)
			}
		}
		for _, a := range slices.Concat(n.Gateways, n.Nameservers) {
			if _, err := netip.ParseAddr(a); err != nil {
				f.Add(at, "ADDRESS_INVALID", "%q is not an IP address", a)
			}
		}
		if hw != nil {
			if _, err := hw.NIC(AdapterOf(n.Adapter), i); err != nil {
				f.Add(at+".adapter", "HARDWARE_UNSUPPORTED", "%v", err)
			}
		}
	}
}

func checkSeed(f *Faults, c *v1.CloudInit) {
	if c == nil {
		return
	}
	checkText(f, "spec.cloud_init.user_data", c.UserData, maxUserData)
	checkText(f, "spec.cloud_init.network_config", c.NetworkConfig, maxUserData)
	if c.Hostname != "" && !ValidName(c.Hostname) {
		f.Add("spec.cloud_init.hostname", "NAME_INVALID", "%q is not a host name", c.Hostname)
	}
	if c.User != "" && !userName.MatchString(c.User) {
		f.Add("spec.cloud_init.user", "NAME_INVALID", "%q is not a user name", c.User)
	}
	for _, k := range c.SshAuthorizedKeys {
		checkText(f, "spec.cloud_init.ssh_authorized_keys", k, maxKeyLength)
	}
}

func checkPlacement(f *Faults, p *v1.PlacementSpec) {
	if p == nil {
		return
	}
	for field, name := range map[string]string{"site": p.Site, "host": p.Host, "affinity_group": p.AffinityGroup, "anti_affinity_group": p.AntiAffinityGroup} {
		if name != "" && !ValidName(name) {
			f.Add("spec.placement."+field, "NAME_INVALID", "%q is not a name", name)
		}
	}
	checkLabels(f, "spec.placement.host_labels", p.HostLabels)
}
