package manager

import (
	"cmp"
	"slices"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"

	"google.golang.org/protobuf/proto"
)

// checkReferences says whether everything that a VM names is there and fit for it. old is the VM before a change, or nil: what
// it names already isn't asked for again.
func (m *Manager) checkReferences(vm, old *v1.VM) error {
	f := resource.FaultsOf(resource.KindVM, vm.Meta.Name)
	s := vm.Spec
	image := func(field, name string, kind v1.ImageKind) {
		img, ok := m.Images.exists(f, field, name)
		switch {
		case !ok:
		case img.GetStatus().GetPhase() != v1.ImagePhase_IMAGE_PHASE_READY:
			f.Add(field, "IMAGE_NOT_READY", "image %q is not ready (%s %s)", name, phaseName(img.GetStatus().GetPhase()), img.GetStatus().GetMessage())
		case img.Spec.Kind != kind:
			f.Add(field, "IMAGE_KIND", "image %q is of kind %s, here %s is needed", name, kindName(img.Spec.Kind), kindName(kind))
		}
	}
	for _, d := range s.Disks {
		at := "spec.disks[" + d.Name + "]"
		was := diskOf(old, d.Name)
		if d.Image != "" && was == nil && s.CloneFrom == nil {
			image(at+".image", d.Image, v1.ImageKind_IMAGE_KIND_DISK)
			if img, ok := m.Images.cache.Get(d.Image); ok && d.SizeBytes != 0 && d.SizeBytes < img.GetStatus().GetVirtualSizeBytes() {
				f.Add(at+".size_bytes", "OUT_OF_RANGE", "%d is smaller than its image %q with %d; leave it out or make it larger", d.SizeBytes, d.Image, img.Status.VirtualSizeBytes)
			}
		}
		if d.Datastore != "" && was == nil {
			m.Datastores.exists(f, at+".datastore", d.Datastore)
		}
	}
	for _, c := range s.Cdroms {
		if c.Image != "" && !slices.ContainsFunc(old.GetSpec().GetCdroms(), func(o *v1.CDROMSpec) bool { return o.Image == c.Image }) {
			image("spec.cdroms["+c.Name+"].image", c.Image, v1.ImageKind_IMAGE_KIND_ISO)
		}
	}
	if s.KernelImage != "" && s.KernelImage != old.GetSpec().GetKernelImage() {
		image("spec.kernel_image", s.KernelImage, v1.ImageKind_IMAGE_KIND_KERNEL)
	}
	for _, n := range s.Nics {
		at := "spec.nics[" + n.Name + "].network"
		net, ok := m.Networks.exists(f, at, n.Network)
		was := nicOf(old, n.Name)
		m.checkNICProfile(f, vm, n, net, was)
		if old == nil || was.GetNetwork() == n.Network {
			continue // placement asks, or it is there
		}
		if host, held := m.Hosts.cache.Get(old.GetStatus().GetOwner()); ok && held && !offers(host, net) {
			f.Add(at, "NETWORK_NOT_HERE", "host %q, which holds the VM, has no uplink for network %q", host.Meta.Name, n.Network)
		}
	}
	if p := s.Placement; p != nil {
		if p.Site != "" {
			m.Sites.exists(f, "spec.placement.site", p.Site)
		}
		if p.Host != "" {
			m.Hosts.exists(f, "spec.placement.host", p.Host)
		}
	}
	return f.Err()
}

// checkNICs says which networks and profiles of a spec from the past are no more.
func (m *Manager) checkNICs(vm string, s *v1.VMSpec) error {
	f := resource.FaultsOf(resource.KindVM, vm)
	for _, n := range s.Nics {
		at := "spec.nics[" + n.Name + "]"
		m.Networks.exists(f, at+".network", n.Network)
		if n.Profile != "" {
			m.Profiles.exists(f, at+".profile", n.Profile)
		}
	}
	return f.Err()
}

// checkNICProfile says what is wrong with the profile that a NIC names, or gets from its network. was is the NIC before a change, or nil.
func (m *Manager) checkNICProfile(f *resource.Faults, vm *v1.VM, n *v1.NICSpec, net *v1.Network, was *v1.NICSpec) {
	if was != nil && was.Profile == n.Profile && was.Network == n.Network {
		return
	}
	at := "spec.nics[" + n.Name + "].profile"
	if n.Profile != "" {
		if _, ok := m.Profiles.exists(f, at, n.Profile); !ok {
			return
		}
	}
	e, _ := profiles{m: m}.effective(profileOf(n, net))
	for _, x := range m.unfit(vm, n, net, e) {
		f.Add(at, "PROFILE_UNFIT", "%q: %s", profileOf(n, net), x)
	}
}

// keepGiven takes what a change left out from the VM as it is, where the manager has given it or where its default would be
// a surprise: a document that says nothing of power does not turn a VM off, and one without addresses does not give it new ones.
func keepGiven(old, s *v1.VMSpec) {
	if s.Power == v1.Power_POWER_UNSPECIFIED {
		s.Power = old.Power
	}
	if s.CloneFrom == nil {
		s.CloneFrom = old.CloneFrom
	}
	if s.Os == "" {
		s.Os = old.Os
	}
	if s.Hardware == nil {
		s.Hardware = &v1.Hardware{Machine: old.Hardware.GetMachine(), Firmware: old.Hardware.GetFirmware()}
	}
	s.Hardware.Version = cmp.Or(s.Hardware.Version, old.Hardware.GetVersion())
	for _, d := range s.Disks {
		for _, was := range old.Disks {
			if was.Name == d.Name {
				d.Datastore, d.Format, d.Bus = cmp.Or(d.Datastore, was.Datastore), cmp.Or(d.Format, was.Format), cmp.Or(d.Bus, was.Bus)
				d.SizeBytes = cmp.Or(d.SizeBytes, was.SizeBytes)
			}
		}
	}
	for _, n := range s.Nics {
		for _, was := range old.Nics {
			if was.Name == n.Name {
				n.Mac, n.Adapter = cmp.Or(n.Mac, was.Mac), cmp.Or(n.Adapter, was.Adapter)
			}
		}
	}
}

// checkVMChange says what of a change can't be made, at least not now.
func checkVMChange(old, vm *v1.VM) error {
	f := resource.FaultsOf(resource.KindVM, vm.Meta.Name)
	off := old.Spec.Power == v1.Power_POWER_OFF && !isUp(old.GetStatus().GetPhase())
	a, b := old.Spec, vm.Spec
	fixed := func(field string, same bool) {
		if !same {
			f.Add(field, "FIELD_IMMUTABLE", "never changes after creation")
		}
	}
	whenOff := func(field string, same bool) {
		if !same && !off {
			f.Add(field, "VM_NOT_OFF", "only changes while the VM is off; stop it first")
		}
	}
	if a.Template && b.Template && !sameDisks(a.Disks, b.Disks) {
		f.Add("spec.disks", "IS_TEMPLATE", "a template's disks never change; clone it, or make it a VM again")
	}
	fixed("spec.clone_from", proto.Equal(a.CloneFrom, b.CloneFrom))
	fixed("spec.hardware.version", a.Hardware.GetVersion() == b.Hardware.GetVersion())
	whenOff("spec.hardware", proto.Equal(a.Hardware, b.Hardware))
	whenOff("spec.template", a.Template == b.Template)
	whenOff("spec.kernel_image", a.KernelImage == b.KernelImage)
	for _, d := range b.Disks {
		was := diskOf(old, d.Name)
		if was == nil {
			continue
		}
		at := "spec.disks[" + d.Name + "]"
		fixed(at+".image", was.Image == d.Image)
		fixed(at+".datastore", was.Datastore == d.Datastore)
		fixed(at+".format", was.Format == d.Format)
		whenOff(at+".bus", was.Bus == d.Bus)
		whenOff(at+".read_only", was.ReadOnly == d.ReadOnly)
		if now := max(was.SizeBytes, diskSize(old, d.Name)); d.SizeBytes != was.SizeBytes && d.SizeBytes < now {
			f.Add(at+".size_bytes", "OUT_OF_RANGE", "%d is less than its %d bytes now; disks only grow", d.SizeBytes, now)
		}
	}
	for _, n := range b.Nics {
		if was := nicOf(old, n.Name); was != nil {
			whenOff("spec.nics["+n.Name+"].adapter", was.Adapter == n.Adapter)
			whenOff("spec.nics["+n.Name+"].mac", was.Mac == n.Mac)
		}
	}
	if s := b.Placement.GetSite(); s != "" && s != a.Placement.GetSite() && s != old.GetStatus().GetSite() {
		f.Add("spec.placement.site", "CANNOT_MOVE", "the VM and its disks are in site %q; this version can't move them", old.GetStatus().GetSite())
	}
	if h := b.Placement.GetHost(); h != "" && h != a.Placement.GetHost() && h != old.GetStatus().GetOwner() {
		f.Add("spec.placement.host", "CANNOT_MOVE", "the VM and its disks are on host %q; this version can't move them", old.GetStatus().GetOwner())
	}
	return f.Err()
}

func sameDisks(a, b []*v1.DiskSpec) bool {
	return slices.EqualFunc(a, b, func(x, y *v1.DiskSpec) bool { return proto.Equal(x, y) })
}

func diskSize(vm *v1.VM, name string) int64 {
	for _, d := range vm.GetStatus().GetDisks() {
		if d.Name == name {
			return d.SizeBytes
		}
	}
	return 0
}
