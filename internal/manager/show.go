package manager

import (
	"slices"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"

	"google.golang.org/protobuf/types/known/timestamppb"
)

func stamp(t time.Time) *timestamppb.Timestamp { return timestamppb.New(t) }

// What follows adds status that is counted from other resources whenever it is looked at.

func (m *Manager) showSite(s *v1.Site) {
	s.Status = &v1.SiteStatus{}
	hosts, _ := m.Hosts.cache.List()
	in := map[string]bool{}
	for _, h := range hosts {
		if h.Spec.Site == s.Meta.Name {
			in[h.Meta.Name] = true
			s.Status.Hosts++
			if h.GetStatus().GetPhase() == v1.HostPhase_HOST_PHASE_READY {
				s.Status.HostsReady++
			}
		}
	}
	vms, _ := m.VMs.cache.List()
	for _, vm := range vms {
		if in[vm.GetStatus().GetOwner()] {
			s.Status.Vms++
		}
	}
}

func (m *Manager) showHost(h *v1.Host) {
	if h.Status == nil {
		h.Status = &v1.HostStatus{}
	}
	st := h.Status
	m.heard.show(h.Meta.Name, st)
	vms, _ := m.VMs.cache.List()
	for _, vm := range vms {
		if vm.GetStatus().GetOwner() != h.Meta.Name {
			continue
		}
		st.Vms++
		if isUp(vm.Status.Phase) {
			st.VmsRunning++
		}
		if vm.Spec.Power != v1.Power_POWER_OFF {
			st.CpusAllocated += vm.Spec.Cpus
			st.MemoryAllocatedBytes += vm.Spec.MemoryBytes
		}
	}
}

// offers reports whether a host can connect VMs to a network.
func offers(h *v1.Host, n *v1.Network) bool {
	return resource.Spans(n.GetSpec(), h.Spec.GetSite()) && slices.ContainsFunc(h.GetStatus().GetNetworks(), func(x *v1.HostNetwork) bool { return x.Network == n.Meta.Name })
}

func (m *Manager) showImage(i *v1.Image) {
	if i.Status == nil {
		i.Status = &v1.ImageStatus{}
	}
	i.Status.UsedBy = int32(len(m.usersOf(i.Meta.Name)))
}

// usersOf are the VMs that name an image.
func (m *Manager) usersOf(image string) []string {
	return m.vmsWhere(func(s *v1.VMSpec) bool {
		return needsToStart(s, image) || slices.ContainsFunc(s.Disks, func(d *v1.DiskSpec) bool { return d.Image == image })
	})
}

// startersOf are the VMs that need an image whenever they start, not only when their disks were made.
func (m *Manager) startersOf(image string) []string {
	return m.vmsWhere(func(s *v1.VMSpec) bool { return needsToStart(s, image) })
}

func needsToStart(s *v1.VMSpec, image string) bool {
	return s.KernelImage == image || slices.ContainsFunc(s.Cdroms, func(c *v1.CDROMSpec) bool { return c.Image == image })
}

func (m *Manager) vmsWhere(is func(*v1.VMSpec) bool) []string {
	var names []string
	vms, _ := m.VMs.cache.List()
	for _, vm := range vms {
		if is(vm.Spec) {
			names = append(names, vm.Meta.Name)
		}
	}
	return names
}

func (m *Manager) showSnapshot(s *v1.Snapshot) {
	if s.Status == nil {
		s.Status = &v1.SnapshotStatus{}
	}
	name, _, _ := strings.Cut(s.Meta.Name, "/")
	vm, ok := m.VMs.cache.Get(name)
	s.Status.Current = ok && vm.GetStatus().GetCurrentSnapshot() == s.Meta.Name
	s.Status.Clones = m.clonesOf(name, s.Meta.Name)
	s.Status.VmSpec = nil
}

// phaseName is an enum value for people: IMAGE_PHASE_WAITING is "waiting".
func phaseName(p v1.ImagePhase) string {
	return strings.ToLower(strings.TrimPrefix(p.String(), "IMAGE_PHASE_"))
}

func kindName(k v1.ImageKind) string {
	return strings.ToLower(strings.TrimPrefix(k.String(), "IMAGE_KIND_"))
}
