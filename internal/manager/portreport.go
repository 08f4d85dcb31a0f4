package manager

import (
	"net/netip"
	"slices"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"

	"google.golang.org/protobuf/proto"
)

// Bounds of what a host may say of one port: what they allow is far more than the datapath does.
const (
	mostPortMACs       = 64
	mostPortBindings   = 256
	mostPortGroups     = 256
	mostPortConditions = 32
	mostPortDrops      = 128
)

// reportPorts takes in what a host says of its ports. A report about a port that is not the host's in that epoch changes nothing; that
// it was refused, the host learns from its report of the VM. With full, ports of the host that it does not name have no device.
func (m *Manager) reportPorts(host string, reports []*v1.PortReport, full bool) {
	b := m.board
	var lost []string
	b.mu.Lock()
	told := map[string]bool{}
	var news []string
	for _, r := range reports {
		vmName, part, ok := resource.Part(r.Name)
		vm, there := m.VMs.cache.Get(vmName)
		if !ok || !there || nicOf(vm, part) == nil || vm.Meta.Uid != r.Uid || vm.GetStatus().GetOwner() != host || vm.Status.Epoch != r.Epoch {
			continue
		}
		told[r.Name] = true
		if b.ports[r.Name] == nil {
			b.refresh([]string{r.Name}) // the VM is so new that it was not looked at yet
		}
		p := b.ports[r.Name]
		if p == nil {
			continue // it went at this moment
		}
		st := m.portStatus(r.Status, nicOf(vm, part).Mac)
		if p.status != nil && p.epoch == r.Epoch && sameStatus(p.status, st) {
			continue
		}
		p.status, p.uid, p.epoch = st, r.Uid, r.Epoch
		news = append(news, r.Name)
	}
	if full {
		for _, name := range b.where(func(p *boardPort) bool { return p.host == host && p.status.GetDevice() != "" }) {
			if !told[name] {
				b.ports[name].status = left(b.ports[name].status)
				news = append(news, name)
			}
		}
	}
	before := b.losers(news)
	if len(news) > 0 {
		b.refresh(news)
	}
	for _, port := range sorted(b.losers(news)) {
		if !before[port] {
			lost = append(lost, port)
		}
	}
	b.mu.Unlock()
	if full {
		b.settle(host)
	}
	for _, port := range lost {
		m.event(v1.Severity_SEVERITY_WARNING, resource.KindPort, port, "MAC_CONFLICT", "uses a MAC that another port of its network has; it is not registered for this one")
	}
}

// losers are those of the ports that want a MAC which another one has. b.mu is held.
func (b *board) losers(names []string) map[string]bool {
	found := map[string]bool{}
	for _, name := range names {
		p := b.ports[name]
		if p == nil {
			continue
		}
		for key := range p.wants {
			if list := b.holders[key]; len(list) > 0 && list[0].port != name && !resource.VirtualMAC(list[0].reg.Mac) {
				found[name] = true
			}
		}
	}
	return found
}

func sameStatus(a, b *v1.PortStatus) bool {
	t := b.UpdateTime
	b.UpdateTime = a.UpdateTime
	same := proto.Equal(a, b)
	b.UpdateTime = t
	return same
}

// portStatus is a report in the words of the manager: what is no MAC and no address is left out.
func (m *Manager) portStatus(st *v1.PortStatus, own string) *v1.PortStatus {
	if st == nil {
		st = &v1.PortStatus{}
	}
	st = clone(st)
	st.Host, st.Site, st.Generation = "", "", 0
	st.UpdateTime = stamp(m.cfg.Clock.Now())
	st.Conditions = st.Conditions[:min(len(st.Conditions), mostPortConditions)]
	st.Groups = st.Groups[:min(len(st.Groups), mostPortGroups)]
	if c := st.Counters; c != nil {
		c.Drops = c.Drops[:min(len(c.Drops), mostPortDrops)]
	}
	var macs []string
	for _, s := range st.Macs {
		if mac, err := resource.NormalMAC(s); err == nil && mac != own && !slices.Contains(macs, mac) && len(macs) < mostPortMACs {
			macs = append(macs, mac)
		}
	}
	st.Macs = macs
	var bindings []*v1.Binding
	for _, x := range st.Bindings {
		a, err := netip.ParseAddr(x.GetAddress())
		if err != nil || a.Zone() != "" || x.Source != bindingDHCP && x.Source != bindingVirtual || len(bindings) == mostPortBindings {
			continue // those of the NIC are known here
		}
		x.Address = a.Unmap().String()
		if mac, err := resource.NormalMAC(x.Mac); err == nil {
			x.Mac = mac
		} else {
			x.Mac = own
		}
		bindings = append(bindings, x)
	}
	st.Bindings = bindings
	return st
}
