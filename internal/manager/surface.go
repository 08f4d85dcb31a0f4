package manager

import (
	"log/slog"
	"slices"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/auth"
	"drover/internal/guest"
	"drover/internal/resource"

	"google.golang.org/protobuf/proto"
)

// LongestToken is the longest life of an API token.
const LongestToken = 2 * 365 * 24 * time.Hour

// Logger is the manager's.
func (m *Manager) Logger() *slog.Logger { return m.log }

// Config is what the manager was started with, defaults filled in.
func (m *Manager) Config() Config { return m.cfg }

// Object is a resource as it is now, for the audit log; nil if there is none of that name.
func (m *Manager) Object(kind, name string) proto.Message {
	switch kind {
	case resource.KindSite:
		return get(m.Sites, name)
	case resource.KindHost:
		return get(m.Hosts, name)
	case resource.KindDatastore:
		return get(m.Datastores, name)
	case resource.KindNetwork:
		return get(m.Networks, name)
	case resource.KindProfile:
		return get(m.Profiles, name)
	case resource.KindPort:
		return get(m.Ports, name)
	case resource.KindImage:
		return get(m.Images, name)
	case resource.KindVM:
		return get(m.VMs, name)
	case resource.KindSnapshot:
		return get(m.Snapshots, name)
	case resource.KindTask:
		return get(m.Tasks, name)
	case resource.KindUser:
		return get(m.Users, name)
	case resource.KindRepository:
		return get(m.Repositories, name)
	case resource.KindPolicy:
		return get(m.Policies, name)
	case resource.KindPoint:
		return get(m.Points, name)
	case resource.KindDisk:
		if d, err := m.Disks.Get(name); err == nil {
			return d
		}
	case resource.KindNIC:
		if n, err := m.NICs.Get(name); err == nil {
			return n
		}
	}
	return nil
}

func get[T Object](r *Registry[T], name string) proto.Message {
	obj, err := r.Get(name)
	if err != nil {
		return nil
	}
	return obj
}

// OperatingSystems is the table of guests.
func (m *Manager) OperatingSystems() *v1.OperatingSystemList {
	list := &v1.OperatingSystemList{}
	for _, o := range guest.OSes() {
		list.OperatingSystems = append(list.OperatingSystems, &v1.OperatingSystem{
			Id: o.ID, Title: o.Name, NicAdapter: string(o.NIC), DiskBus: string(o.Disk), Firmware: string(o.Firmware), Reason: o.Reason,
		})
	}
	return list
}

// UserFor is the user whom a caller's tokens act for: the caller, or the administrator for an administrator of this machine. Somebody
// of this machine who may only look is no user: there is nobody whom a token could act for.
func (m *Manager) UserFor(p auth.Principal) string {
	switch {
	case p.Kind != auth.KindLocal:
		return p.Name
	case slices.Contains(p.Roles, auth.Grant{Role: auth.RoleAdmin}):
		return "admin"
	}
	return ""
}

// TokensFor lists a caller's sessions and tokens, or with all everybody's.
func (m *Manager) TokensFor(p auth.Principal, all bool, req *v1.ListRequest) (*Listing[*v1.Token], error) {
	if all {
		return m.Tokens.List(req)
	}
	tokens, rev := m.Tokens.cache.List()
	var own []*v1.Token
	for _, t := range tokens {
		if t.Spec.User == p.Name {
			own = append(own, m.Tokens.seen(t))
		}
	}
	return list(resource.KindToken, &v1.Token{}, own, rev, req)
}

// Counts are numbers of resources, by phase or kind.
type Counts struct {
	Hosts, VMs, Tasks, Objects, Ports map[string]int
	Registrations                     int
}

// portState is "active", "waiting" for a device whose policy is not in place, or "off".
func portState(p *v1.Port) string {
	switch st := p.GetStatus(); {
	case st.GetActive():
		return "active"
	case st.GetDevice() != "":
		return "waiting"
	}
	return "off"
}

// Count counts resources.
func (m *Manager) Count() Counts {
	c := Counts{Hosts: map[string]int{}, VMs: map[string]int{}, Tasks: map[string]int{}, Objects: map[string]int{
		resource.KindSite: m.Sites.cache.Len(), resource.KindHost: m.Hosts.cache.Len(), resource.KindDatastore: m.Datastores.cache.Len(),
		resource.KindNetwork: m.Networks.cache.Len(), resource.KindImage: m.Images.cache.Len(), resource.KindVM: m.VMs.cache.Len(),
		resource.KindSnapshot: m.Snapshots.cache.Len(), resource.KindTask: m.Tasks.cache.Len(), resource.KindProfile: m.Profiles.cache.Len(),
		resource.KindRepository: m.Repositories.cache.Len(), resource.KindPolicy: m.Policies.cache.Len(), resource.KindPoint: m.points.view.Len(),
	}, Ports: map[string]int{}, Registrations: m.board.regs.Len()}
	ports, _ := m.board.view.List()
	for _, p := range ports {
		c.Ports[portState(p)]++
	}
	hosts, _ := m.Hosts.cache.List()
	for _, h := range hosts {
		c.Hosts[h.GetStatus().GetPhase().String()]++
	}
	vms, _ := m.VMs.cache.List()
	for _, vm := range vms {
		c.VMs[vm.GetStatus().GetPhase().String()]++
	}
	tasks, _ := m.Tasks.cache.List()
	for _, t := range tasks {
		c.Tasks[t.GetStatus().GetState().String()]++
	}
	return c
}
