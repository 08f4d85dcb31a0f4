package manager

import (
	"context"
	"slices"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"

	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// checkPolicy says what is wrong with a policy in its place.
func (m *Manager) checkPolicy(p *v1.BackupPolicy) error {
	if err := resource.CheckPolicy(p); err != nil {
		return err
	}
	f := resource.FaultsOf(resource.KindPolicy, p.Meta.Name)
	m.Repositories.exists(f, "spec.repository", p.Spec.Repository)
	for _, c := range p.Spec.Copies {
		m.Repositories.exists(f, "spec.copies.repository", c.Repository)
	}
	for _, s := range p.Spec.GetSelect().GetSites() {
		m.Sites.exists(f, "spec.select.sites", s)
	}
	checkPolicyExpressions(f, p.Spec)
	if len(p.Spec.GetNotify().GetMail()) > 0 && m.cfg.SMTP.Server == "" {
		f.Add("spec.notify.mail", "MAIL_UNAVAILABLE", "the manager has no mail server; start it with --smtp-server and --smtp-from")
	}
	if err := f.Err(); err != nil {
		return err
	}
	_, err := matcher(resource.KindVM, &v1.VM{}, p.Spec.GetSelect().GetFilter())
	return err
}

// CreatePolicy stores a policy; what it covers is backed up from its next due time on.
func (m *Manager) CreatePolicy(ctx context.Context, p *v1.BackupPolicy, validateOnly bool) (*v1.BackupPolicy, error) {
	secret := p.GetSpec().GetNotify().GetWebhookSecret()
	made, err := createSimple(ctx, m, m.Policies, p, validateOnly, func(p *v1.BackupPolicy) {
		if p.Spec == nil {
			p.Spec = &v1.BackupPolicySpec{}
		}
		p.Status = &v1.BackupPolicyStatus{WebhookSigned: secret != ""}
		resource.DefaultPolicy(p)
	}, m.checkPolicy, hideSecret)
	if err != nil || validateOnly {
		return made, err
	}
	m.wakeScheduler()
	return made, m.keepSecret(made, secret)
}

// hideSecret takes the webhook's secret out of what is stored.
func hideSecret(p *v1.BackupPolicy) error {
	if p.Spec.Notify != nil {
		p.Spec.Notify.WebhookSecret = ""
	}
	return nil
}

// UpdatePolicy changes a policy.
func (m *Manager) UpdatePolicy(ctx context.Context, p *v1.BackupPolicy, mask *fieldmaskpb.FieldMask, validateOnly bool) (*v1.BackupPolicy, error) {
	secret := ""
	made, err := updateSimple(ctx, m, m.Policies, p, mask, validateOnly, ignoreOld(func(p *v1.BackupPolicy) error {
		resource.DefaultPolicy(p)
		if err := m.checkPolicy(p); err != nil {
			return err
		}
		if s := p.Spec.GetNotify().GetWebhookSecret(); s != "" {
			secret = s
			if p.Status == nil {
				p.Status = &v1.BackupPolicyStatus{}
			}
			p.Status.WebhookSigned = true
		}
		return hideSecret(p)
	}))
	if err != nil || validateOnly {
		return made, err
	}
	m.wakeScheduler()
	return made, m.keepSecret(made, secret)
}

// DeletePolicy forgets a policy. Points that it made stay until somebody deletes them.
func (m *Manager) DeletePolicy(ctx context.Context, name string, revision int64) (*v1.BackupPolicy, error) {
	ctx, done, err := m.exclusive(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	p, err := deleteSimple(ctx, m.Policies, name, revision, func(*v1.BackupPolicy) []string { return nil })
	if err != nil {
		return nil, err
	}
	m.dropSecret(p)
	m.wakeScheduler()
	return p, nil
}

// covered are the VMs that a policy covers now, by name.
func (m *Manager) covered(s *v1.BackupPolicySpec) []*v1.VM {
	sel := s.GetSelect()
	match, err := matcher(resource.KindVM, &v1.VM{}, sel.GetFilter())
	if err != nil {
		return nil // it was checked; a later version may know other fields
	}
	if !sel.GetAll() && sel.GetFilter() == "" && len(sel.GetVms())+len(sel.GetSites())+len(sel.GetProjects()) == 0 {
		return nil
	}
	var list []*v1.VM
	all, _ := m.VMs.cache.List()
	for _, vm := range all {
		switch {
		case vm.Meta.DeleteTime != nil || slices.Contains(sel.Except, vm.Meta.Name):
		case len(sel.Vms) > 0 && !slices.Contains(sel.Vms, vm.Meta.Name):
		case len(sel.Sites) > 0 && !slices.Contains(sel.Sites, vm.GetStatus().GetSite()):
		case len(sel.Projects) > 0 && !slices.Contains(sel.Projects, vm.Meta.Project):
		case !match(vm):
		default:
			list = append(list, vm)
		}
	}
	return list
}
