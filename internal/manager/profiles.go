package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"
	"drover/internal/store"

	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// openProfiles sees to the profiles that are always there: they are as this version has them.
func (m *Manager) openProfiles(ctx context.Context) error {
	for name, spec := range resource.BuiltinProfiles() {
		_, err := m.Profiles.create(ctx, m.store, &v1.PortProfile{Meta: &v1.Meta{Name: name}, Spec: spec})
		if resource.CodeOf(err) == resource.Exists {
			_, err = m.Profiles.mutate(ctx, name, func(p *v1.PortProfile) error {
				if len(resource.Differences(p.Spec, spec)) == 0 && p.Spec.GetDescription() == spec.Description {
					return errSame
				}
				p.Spec = spec
				p.Meta.Generation++
				return nil
			})
		}
		if err != nil {
			return fmt.Errorf("manager: port profile %s: %w", name, err)
		}
	}
	return nil
}

// profiles looks port profiles up: those in memory, but for one that is on trial.
type profiles struct {
	m     *Manager
	trial *v1.PortProfile
}

func (l profiles) get(name string) (*v1.PortProfile, bool) {
	if l.trial != nil && l.trial.Meta.Name == name {
		return l.trial, true
	}
	return l.m.Profiles.cache.Get(name)
}

// parentOf is the profile that one inherits from; "" for the last of a chain.
func parentOf(p *v1.PortProfile) string {
	switch {
	case p.GetSpec().GetParent() != "":
		return p.Spec.Parent
	case p.Meta.Name != resource.DefaultProfile:
		return resource.DefaultProfile
	}
	return ""
}

var (
	errNoParent = errors.New("a parent is missing")
	errTooDeep  = errors.New("the chain is too long")
	errCycle    = errors.New("profiles inherit from each other")
)

// chain is a profile with all that it inherits from, itself first.
func (l profiles) chain(name string) ([]*v1.PortProfile, error) {
	var list []*v1.PortProfile
	for name != "" {
		if slices.ContainsFunc(list, func(p *v1.PortProfile) bool { return p.Meta.Name == name }) {
			return nil, errCycle
		}
		if len(list) == resource.MaxChain {
			return nil, errTooDeep
		}
		p, ok := l.get(name)
		if !ok {
			return nil, fmt.Errorf("%w: %q", errNoParent, name)
		}
		list = append(list, p)
		name = parentOf(p)
	}
	return list, nil
}

// effective is what a profile comes to, and the generation of its chain, which grows with any change in it. A profile that is not
// there is as "default": its port must not be without guards.
func (l profiles) effective(name string) (*v1.PortProfileSpec, int64) {
	list, err := l.chain(name)
	if err != nil {
		if list, err = l.chain(resource.DefaultProfile); err != nil {
			return resource.Effective([]*v1.PortProfileSpec{resource.BuiltinProfiles()[resource.DefaultProfile]}), 0
		}
	}
	specs, gen := make([]*v1.PortProfileSpec, len(list)), int64(0)
	for i, p := range list {
		specs[i] = p.Spec
		gen += p.Meta.Generation
	}
	return resource.Effective(specs), gen
}

// heirs are the profiles that a change of one changes: itself, its children, theirs.
func (l profiles) heirs(name string) map[string]bool {
	found := map[string]bool{name: true}
	all, _ := l.m.Profiles.cache.List()
	for _, p := range all {
		list, err := l.chain(p.Meta.Name)
		if err != nil || slices.ContainsFunc(list, func(x *v1.PortProfile) bool { return x.Meta.Name == name }) {
			found[p.Meta.Name] = true
		}
	}
	return found
}

// profileOf is the name of the profile in force for a NIC on a network.
func profileOf(nic *v1.NICSpec, net *v1.Network) string {
	switch {
	case nic.GetProfile() != "":
		return nic.Profile
	case net.GetSpec().GetProfile() != "":
		return net.Spec.Profile
	}
	return resource.DefaultProfile
}

// eachPort calls visit for every NIC of every VM, with its network, which may be nil.
func (m *Manager) eachPort(visit func(vm *v1.VM, nic *v1.NICSpec, net *v1.Network)) {
	vms, _ := m.VMs.cache.List()
	for _, vm := range vms {
		for _, nic := range vm.Spec.GetNics() {
			net, _ := m.Networks.cache.Get(nic.Network)
			visit(vm, nic, net)
		}
	}
}

func (m *Manager) showProfile(p *v1.PortProfile) {
	l := profiles{m: m}
	heirs := l.heirs(p.Meta.Name)
	p.Status = &v1.PortProfileStatus{}
	p.Status.Effective, _ = l.effective(p.Meta.Name)
	m.eachPort(func(_ *v1.VM, nic *v1.NICSpec, net *v1.Network) {
		if heirs[profileOf(nic, net)] {
			p.Status.Ports++
		}
	})
}

func builtinError(name string) error {
	return &resource.Error{Code: resource.Precondition, Kind: resource.KindProfile, Name: name, Reason: "PROFILE_BUILTIN", Message: "is always there and always the same", Remedy: "make one that inherits from it: drover profile create NAME --parent " + name}
}

// checkProfile says what is wrong with a profile in its place among the others.
func (m *Manager) checkProfile(p *v1.PortProfile) error {
	if err := resource.CheckProfile(p); err != nil {
		return err
	}
	f := resource.FaultsOf(resource.KindProfile, p.Meta.Name)
	if t := p.Spec.GetMirror().GetPort(); t != "" {
		m.portExists(f, "spec.mirror.port", t)
	}
	l := profiles{m: m, trial: p}
	if parent := p.Spec.Parent; parent != "" {
		if _, ok := l.get(parent); !ok {
			f.Add("spec.parent", "REFERENCE_UNKNOWN", "there is no profile named %q", parent)
			return f.Err()
		}
	}
	for _, name := range sorted(l.heirs(p.Meta.Name)) {
		list, err := l.chain(name)
		switch {
		case errors.Is(err, errCycle):
			f.Add("spec.parent", "PROFILE_CYCLE", "%q inherits from this one already, directly or not", p.Spec.Parent)
			return f.Err()
		case errors.Is(err, errTooDeep):
			f.Add("spec.parent", "CHAIN_TOO_LONG", "%q would stand in a chain of more than %d profiles", name, resource.MaxChain)
			return f.Err()
		case err != nil:
			return err
		}
		effective, _ := l.effective(name)
		if name == p.Meta.Name {
			resource.CheckEffective(f, p.Spec, effective)
			continue
		}
		of := resource.FaultsOf(resource.KindProfile, name)
		if resource.CheckEffective(of, list[0].Spec, effective); of.Err() != nil {
			f.Add("spec", "CHILD_CONTRADICTS", "would make a child contradict itself: %v", of.Err())
		}
	}
	return f.Err()
}

// portExists adds a fault when there is no NIC of that name.
func (m *Manager) portExists(f *resource.Faults, field, name string) {
	vmName, part, _ := resource.Part(name)
	if vm, ok := m.VMs.cache.Get(vmName); !ok || nicOf(vm, part) == nil {
		f.Add(field, "REFERENCE_UNKNOWN", "there is no port named %q", name)
	}
}

func sorted[V any](set map[string]V) []string {
	list := make([]string, 0, len(set))
	for name := range set {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

// CreateProfile stores a port profile.
func (m *Manager) CreateProfile(ctx context.Context, p *v1.PortProfile, validateOnly bool) (*v1.PortProfile, error) {
	return createSimple(ctx, m, m.Profiles, p, validateOnly, func(p *v1.PortProfile) {
		if p.Spec == nil {
			p.Spec = &v1.PortProfileSpec{}
		}
		p.Status = nil
	}, func(p *v1.PortProfile) error {
		if _, ok := m.Profiles.cache.Get(p.Meta.Name); ok {
			return m.Profiles.translate(store.ErrExists, p.Meta.Name)
		}
		return m.checkProfile(p)
	})
}

// UpdateProfile changes a port profile, and with it all ports that follow it. What some port could not follow is refused.
func (m *Manager) UpdateProfile(ctx context.Context, p *v1.PortProfile, mask *fieldmaskpb.FieldMask, validateOnly bool) (*v1.PortProfile, error) {
	if resource.Builtin(p.GetMeta().GetName()) {
		return nil, builtinError(p.Meta.Name)
	}
	return updateSimple(ctx, m, m.Profiles, p, mask, validateOnly, func(old, p *v1.PortProfile) error {
		if err := m.checkProfile(p); err != nil {
			return err
		}
		p.Meta.Generation += m.ahead(old, p)
		var faults []string
		for _, d := range m.differences(profiles{m: m, trial: p}) {
			for _, x := range d.Faults {
				faults = append(faults, d.Port+": "+x)
			}
		}
		return portFaults(resource.KindProfile, p.Meta.Name, faults)
	})
}

// ahead is by how much a change of parent would put the generation of a chain back: the profile's own makes up for it, so that what
// hosts say they have is never taken for something newer.
func (m *Manager) ahead(old, p *v1.PortProfile) int64 {
	if parentOf(old) == parentOf(p) {
		return 0
	}
	_, was := profiles{m: m}.effective(parentOf(old))
	_, is := profiles{m: m}.effective(parentOf(p))
	return max(0, was-is)
}

// DeleteProfile deletes a port profile that nothing names.
func (m *Manager) DeleteProfile(ctx context.Context, name string, revision int64) (*v1.PortProfile, error) {
	if resource.Builtin(name) {
		return nil, builtinError(name)
	}
	ctx, done, err := m.exclusive(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return deleteSimple(ctx, m.Profiles, name, revision, func(*v1.PortProfile) (users []string) {
		all, _ := m.Profiles.cache.List()
		for _, p := range all {
			if p.Spec.GetParent() == name {
				users = append(users, "profile "+p.Meta.Name)
			}
		}
		nets, _ := m.Networks.cache.List()
		for _, n := range nets {
			if n.Spec.GetProfile() == name {
				users = append(users, "network "+n.Meta.Name)
			}
		}
		m.eachPort(func(vm *v1.VM, nic *v1.NICSpec, _ *v1.Network) {
			if nic.Profile == name && len(users) < mostUsers {
				users = append(users, "nic "+vm.Meta.Name+"/"+nic.Name)
			}
		})
		return users
	})
}

// mostUsers bounds how many of those that use something are named.
const mostUsers = 20

// PreviewProfile says which ports a change of a profile would change, and how.
func (m *Manager) PreviewProfile(req *v1.PreviewPortProfileRequest) (*v1.PreviewPortProfileResponse, error) {
	if err := needMeta(resource.KindProfile, req.Profile); err != nil {
		return nil, err
	}
	name := req.Profile.Meta.Name
	p, ok := m.Profiles.cache.Get(name)
	switch {
	case ok && resource.Builtin(name):
		return nil, builtinError(name)
	case ok:
		p = clone(p)
		if err := merge(resource.KindProfile, p, clone(req.Profile), req.Mask); err != nil && !errors.Is(err, errSame) {
			return nil, err
		}
	default:
		p = clone(req.Profile)
	}
	if p.Spec == nil {
		p.Spec = &v1.PortProfileSpec{}
	}
	if err := m.checkProfile(p); err != nil {
		return nil, err
	}
	return &v1.PreviewPortProfileResponse{Ports: m.differences(profiles{m: m, trial: p})}, nil
}

// differences are the ports that follow the profile on trial and would change, or could not follow.
func (m *Manager) differences(trial profiles) []*v1.PortDifference {
	type change struct {
		fields []*v1.FieldDifference
		after  *v1.PortProfileSpec
	}
	changes := map[string]change{}
	for name := range trial.heirs(trial.trial.Meta.Name) {
		if _, ok := m.Profiles.cache.Get(name); !ok {
			continue // on trial only: nothing follows it
		}
		before, _ := profiles{m: m}.effective(name)
		after, _ := trial.effective(name)
		if d := resource.Differences(before, after); len(d) > 0 {
			changes[name] = change{d, after}
		}
	}
	var list []*v1.PortDifference
	if len(changes) == 0 {
		return nil
	}
	m.eachPort(func(vm *v1.VM, nic *v1.NICSpec, net *v1.Network) {
		c, ok := changes[profileOf(nic, net)]
		if !ok {
			return
		}
		list = append(list, &v1.PortDifference{
			Port: vm.Meta.Name + "/" + nic.Name, Host: vm.GetStatus().GetOwner(), Fields: c.fields, Faults: m.unfit(vm, nic, net, c.after),
		})
	})
	return list
}

// unfit says why a port could not follow a profile.
func (m *Manager) unfit(vm *v1.VM, nic *v1.NICSpec, net *v1.Network, e *v1.PortProfileSpec) (faults []string) {
	owner, name := vm.GetStatus().GetOwner(), vm.Meta.Name+"/"+nic.Name
	if target := e.GetMirror().GetPort(); target != "" {
		vmName, _, _ := resource.Part(target)
		other, ok := m.VMs.cache.Get(vmName)
		switch {
		case target == name:
			faults = append(faults, "its frames would be copied to itself; give it another profile")
		case ok && owner != "" && other.GetStatus().GetOwner() != owner:
			faults = append(faults, fmt.Sprintf("is on host %q, and port %q, which would get its copies, on host %q; copies to another host go to an address", owner, target, other.GetStatus().GetOwner()))
		}
	}
	if g := e.GetQos().GetIn().GetGuaranteeBps(); g > 0 && net.GetSpec().GetPhysical() != nil {
		host, _ := m.Hosts.cache.Get(owner)
		if most := fastest(host, resource.TeamOf(net.Spec)); most > 0 && g > most*1_000_000 {
			faults = append(faults, fmt.Sprintf("is guaranteed %d bits a second, and the fastest uplink of its team on host %q has %d Mbit/s", g, owner, most))
		}
	}
	return faults
}

// fastest is the speed of a team's fastest uplink in Mbit/s; 0 if it is not known of all.
func fastest(h *v1.Host, team string) (mbps int64) {
	for _, u := range h.GetStatus().GetUplinks() {
		if u.Team != team {
			continue
		}
		if u.SpeedMbps <= 0 {
			return 0
		}
		mbps = max(mbps, u.SpeedMbps)
	}
	return mbps
}

// portFaults is nil, or the error that names what ports could not follow.
func portFaults(kind resource.Kind, name string, faults []string) error {
	if len(faults) == 0 {
		return nil
	}
	e := &resource.Error{Code: resource.Precondition, Kind: kind, Name: name, Reason: "PORTS_CANT_FOLLOW", Remedy: "change those ports first; to see all that would change: drover profile set with --dry-run"}
	for i, x := range faults[:min(len(faults), mostUsers)] {
		if i > 0 {
			e.Message += "; "
		}
		e.Message += x
	}
	if n := len(faults) - mostUsers; n > 0 {
		e.Message += fmt.Sprintf("; and %d more", n)
	}
	return e
}
