package manager

import (
	"cmp"
	"slices"

	v1 "drover/api/drover/v1"
	"drover/internal/placement"
	"drover/internal/resource"
)

const (
	defaultOvercommit = 4
	defaultReserve    = 512 << 20
	// thinBytes is the room that a disk which grows as it is written must find at least.
	thinBytes = 64 << 20
)

// place chooses a host and datastores for a new VM and makes that host its owner. admission is held.
func (m *Manager) place(vm *v1.VM, at *pin) error {
	hosts, _ := m.Hosts.cache.List()
	list, held := make([]placement.Host, 0, len(hosts)), m.residents()
	for _, h := range hosts {
		list = append(list, m.candidate(h, held[h.Meta.Name]))
	}
	r := m.request(vm)
	if at != nil {
		r.Hosts = append(r.Hosts[:0:0], at.host) // the layers that it starts from are there
		for i := range r.Disks {
			r.Disks[i].Datastore = cmp.Or(r.Disks[i].Datastore, vm.Spec.Disks[i].Datastore)
		}
	}
	result, err := placement.Place(list, r, placement.Options{CPUOvercommit: 1})
	if err != nil {
		return err
	}
	best, ok := result.Best()
	if !ok {
		return &resource.Error{Code: resource.Exhausted, Kind: resource.KindVM, Name: vm.Meta.Name, Reason: "NO_HOST_FITS", Message: "no host fits:\n" + placement.Explain(result.Rejected), Remedy: "change the VM, or add a host: drover host token"}
	}
	for i, d := range vm.Spec.Disks {
		d.Datastore = best.Disks[i]
	}
	host, _ := m.Hosts.cache.Get(best.Host)
	vm.Status = &v1.VMStatus{Owner: best.Host, Epoch: 1, Site: host.GetSpec().GetSite(), Phase: v1.VMPhase_VM_PHASE_PENDING, PhaseTime: stamp(m.cfg.Clock.Now())}
	return nil
}

// placeNewDisks chooses datastores on a VM's owner for disks that a change adds without naming one.
func (m *Manager) placeNewDisks(old, vm *v1.VM) error {
	var fresh []*v1.DiskSpec
	for _, d := range vm.Spec.Disks {
		if diskOf(old, d.Name) == nil {
			fresh = append(fresh, d)
		}
	}
	host, ok := m.Hosts.cache.Get(vm.GetStatus().GetOwner())
	if len(fresh) == 0 || !ok {
		return nil
	}
	h := m.room(host, nil)
	r := placement.Request{Name: vm.Meta.Name, CPUs: 1, MemoryMiB: 1, Disks: m.diskRequests(fresh)}
	h.CPUs, h.MemoryMiB, h.AllocatedCPUs, h.AllocatedMemoryMiB = 1, 1, 0, 0 // only the disks are asked about
	result, err := placement.Place([]placement.Host{h}, r, placement.Options{})
	if err != nil {
		return err
	}
	best, ok := result.Best()
	if !ok {
		return &resource.Error{Code: resource.Exhausted, Kind: resource.KindVM, Name: vm.Meta.Name, Reason: "NO_ROOM", Message: "no room for a new disk: " + placement.Explain(result.Rejected), Remedy: "name another datastore, or make room"}
	}
	for i, d := range fresh {
		d.Datastore = best.Disks[i]
	}
	return nil
}

// request is a VM as placement sees it.
func (m *Manager) request(vm *v1.VM) placement.Request {
	s, p := vm.Spec, vm.Spec.Placement
	r := placement.Request{
		Name: vm.Meta.Name, Labels: vm.Meta.Labels, CPUs: int64(s.Cpus), MemoryMiB: s.MemoryBytes >> 20,
		HostLabels: p.GetHostLabels(), Disks: m.diskRequests(s.Disks),
	}
	if p.GetSite() != "" {
		r.Sites = []string{p.Site}
	}
	if p.GetHost() != "" {
		r.Hosts = []string{p.Host}
	}
	r.Groups, r.Terms = groupsOf(p)
	for _, n := range s.Nics {
		if !slices.Contains(r.Networks, n.Network) {
			r.Networks = append(r.Networks, n.Network)
		}
	}
	return r
}

// groupsOf puts the API's affinity groups into placement's terms.
func groupsOf(p *v1.PlacementSpec) (groups []string, terms []placement.Term) {
	add := func(group string, anti bool) {
		if group != "" {
			groups = append(groups, group)
			terms = append(terms, placement.Term{Anti: anti, Hard: !p.Preferred, Group: group})
		}
	}
	add(p.GetAffinityGroup(), false)
	add(p.GetAntiAffinityGroup(), true)
	return groups, terms
}

func (m *Manager) diskRequests(disks []*v1.DiskSpec) []placement.Disk {
	var list []placement.Disk
	for _, d := range disks {
		need := int64(thinBytes)
		img, _ := m.Images.cache.Get(d.Image)
		if d.Format == v1.DiskFormat_DISK_FORMAT_RAW {
			need = max(d.SizeBytes, img.GetStatus().GetVirtualSizeBytes())
		}
		list = append(list, placement.Disk{Name: d.Name, Bytes: need + img.GetStatus().GetSizeBytes(), Datastore: d.Datastore})
	}
	return list
}

// candidate is a host as placement sees it, with what keeps new VMs away.
func (m *Manager) candidate(h *v1.Host, held []*v1.VM) placement.Host {
	c := m.room(h, held)
	c.Cordoned = h.Spec.Cordoned
	switch h.GetStatus().GetPhase() {
	case v1.HostPhase_HOST_PHASE_READY:
		if h.GetStatus().GetRepositoriesOnly() {
			c.Down = "it serves repositories and runs no VMs"
		}
	case v1.HostPhase_HOST_PHASE_UNREACHABLE:
		c.Down = "no word from it"
	default:
		c.Down = "it hasn't reported yet"
	}
	return c
}

// residents are the VMs by the host that holds them.
func (m *Manager) residents() map[string][]*v1.VM {
	held := map[string][]*v1.VM{}
	vms, _ := m.VMs.cache.List()
	for _, vm := range vms {
		owner := vm.GetStatus().GetOwner()
		held[owner] = append(held[owner], vm)
	}
	return held
}

// room is what a host has and what of it is given away: to those of the VMs that it holds that are on.
func (m *Manager) room(h *v1.Host, held []*v1.VM) placement.Host {
	st, s := h.GetStatus(), h.Spec
	ratio := cmp.Or(s.CpuOvercommit, defaultOvercommit)
	c := placement.Host{
		Name: h.Meta.Name, Site: s.Site, Labels: h.Meta.Labels, Accel: st.GetAccelerator().GetName(),
		CPUs:      int64(float64(st.GetCpus()) * ratio),
		MemoryMiB: max(0, st.GetMemoryBytes()-cmp.Or(s.MemoryReserveBytes, defaultReserve)) >> 20,
	}
	nets, _ := m.Networks.cache.List()
	for _, n := range nets {
		if offers(h, n) || m.willOffer(h, n) {
			c.Networks = append(c.Networks, n.Meta.Name)
		}
	}
	stores, _ := m.Datastores.cache.List()
	for _, d := range stores {
		if d.Spec.Host == h.Meta.Name {
			c.Datastores = append(c.Datastores, placement.Datastore{
				Name: d.Meta.Name, SizeBytes: d.GetStatus().GetCapacityBytes(), FreeBytes: d.GetStatus().GetFreeBytes(),
				Closed: d.Spec.Cordoned || !d.GetStatus().GetReady(),
			})
		}
	}
	for _, vm := range held {
		resident := placement.Resident{Name: vm.Meta.Name, Labels: vm.Meta.Labels}
		resident.Groups, resident.Terms = groupsOf(vm.Spec.Placement)
		c.Residents = append(c.Residents, resident)
		if vm.Spec.Power != v1.Power_POWER_OFF {
			c.AllocatedCPUs += int64(vm.Spec.Cpus)
			c.AllocatedMemoryMiB += vm.Spec.MemoryBytes >> 20
		}
	}
	return c
}
