package manager

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"
	"drover/internal/store"

	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// checkRepository says what is wrong with a repository in its place among the others.
func (m *Manager) checkRepository(r *v1.Repository) error {
	if err := resource.CheckRepository(r); err != nil {
		return err
	}
	f := resource.FaultsOf(resource.KindRepository, r.Meta.Name)
	if r.Spec.Host != "" {
		m.Hosts.exists(f, "spec.host", r.Spec.Host)
	}
	for _, x := range r.Spec.Mirrors {
		m.Repositories.exists(f, "spec.mirrors", x)
	}
	checkExpressions(f, r.Spec)
	all, _ := m.Repositories.cache.List()
	for _, x := range all {
		if x.Meta.Name != r.Meta.Name && samePlace(x.Spec, r.Spec) {
			f.Add("spec.location", "LOCATION_TAKEN", "is repository %q already", x.Meta.Name)
		}
	}
	return f.Err()
}

// samePlace reports whether one of two repositories lies in the other.
func samePlace(a, b *v1.RepositorySpec) bool {
	s3 := strings.HasPrefix(a.GetLocation(), "s3://")
	if s3 != strings.HasPrefix(b.GetLocation(), "s3://") {
		return false
	}
	if s3 && a.GetS3().GetEndpoint() != b.GetS3().GetEndpoint() || !s3 && a.GetHost() != b.GetHost() {
		return false
	}
	x, y := path.Clean(a.GetLocation())+"/", path.Clean(b.GetLocation())+"/"
	return strings.HasPrefix(x, y) || strings.HasPrefix(y, x)
}

// withoutSecrets is a repository as it may be stored and shown.
func withoutSecrets(r *v1.Repository) *v1.Repository {
	if r.GetSpec().GetS3().GetSecretKey() == "" {
		return r
	}
	r = clone(r)
	r.Spec.S3.SecretKey = ""
	return r
}

// CreateRepository makes a repository where its spec says, or takes one that is there. The recovery key is in the answer and nowhere else.
func (m *Manager) CreateRepository(ctx context.Context, req *v1.CreateRepositoryRequest) (*v1.CreateRepositoryResponse, error) {
	r := req.Repository
	if err := needMeta(resource.KindRepository, r); err != nil {
		return nil, err
	}
	r = clone(r)
	if r.Spec == nil {
		r.Spec = &v1.RepositorySpec{}
	}
	resource.DefaultRepository(r)
	r.Status = &v1.RepositoryStatus{Phase: v1.RepositoryPhase_REPOSITORY_PHASE_PENDING}
	if have, ok := m.Repositories.cache.Get(r.Meta.Name); ok && req.Attach && !req.ValidateOnly && have.Spec.Host == r.Spec.Host && have.Spec.Location == r.Spec.Location {
		return m.unlock(ctx, have, r, req.Passphrase)
	}
	if req.Passphrase != "" && !req.Attach {
		if err := resource.CheckPassphrase(r.Meta.Name, req.Passphrase); err != nil {
			return nil, err
		}
	}
	made, err := m.bookRepository(ctx, r, req.ValidateOnly)
	if err != nil || req.ValidateOnly {
		return &v1.CreateRepositoryResponse{Repository: made}, err
	}
	// The name is taken; now it is made where it is to be. That may take long, and holds up nobody.
	res, err := m.openVault(ctx, r, req.Passphrase, !req.Attach)
	if err != nil {
		if derr := m.Repositories.remove(context.WithoutCancel(ctx), r.Meta.Name, 0); derr != nil {
			m.log.Warn("manager: drop a repository that could not be made", "repository", r.Meta.Name, "err", derr)
		}
		return nil, err
	}
	made, err = m.Repositories.mutate(context.WithoutCancel(ctx), r.Meta.Name, func(x *v1.Repository) error {
		takeStatus(x, res.Status)
		return nil
	})
	if err != nil {
		return nil, err
	}
	m.event(v1.Severity_SEVERITY_INFO, resource.KindRepository, r.Meta.Name, "REPOSITORY_READY", "at "+r.Spec.Location)
	m.points.wake()
	return &v1.CreateRepositoryResponse{Repository: made, RecoveryKey: res.RecoveryKey}, nil
}

// unlock gives the key of a repository that is known already to who serves it: after that machine was made anew, or the manager's state was restored.
func (m *Manager) unlock(ctx context.Context, have, given *v1.Repository, passphrase string) (*v1.CreateRepositoryResponse, error) {
	told := clone(have)
	if secret := given.Spec.GetS3().GetSecretKey(); secret != "" && told.Spec.S3 != nil {
		told.Spec.S3.SecretKey = secret
	}
	res, err := m.openVault(ctx, told, passphrase, false)
	if err != nil {
		return nil, err
	}
	made, err := m.Repositories.mutate(ctx, have.Meta.Name, func(x *v1.Repository) error {
		takeStatus(x, res.Status)
		return nil
	})
	m.points.wake()
	return &v1.CreateRepositoryResponse{Repository: made}, err
}

// bookRepository checks and stores the record, without secrets.
func (m *Manager) bookRepository(ctx context.Context, r *v1.Repository, validateOnly bool) (*v1.Repository, error) {
	ctx, done, err := m.exclusive(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if _, ok := m.Repositories.cache.Get(r.Meta.Name); ok {
		return nil, m.Repositories.translate(store.ErrExists, r.Meta.Name)
	}
	if err := m.checkRepository(r); err != nil {
		return nil, err
	}
	if validateOnly {
		return withoutSecrets(r), nil
	}
	return m.Repositories.create(ctx, m.store, clone(withoutSecrets(r)))
}

// openVault has the serving machine open a repository, or make it. The spec goes there with its secrets.
func (m *Manager) openVault(ctx context.Context, r *v1.Repository, passphrase string, create bool) (*v1.VaultOpenResponse, error) {
	c, err := m.vault(r)
	if err != nil {
		return nil, err
	}
	res, err := c.Open(ctx, &v1.VaultOpenRequest{Repository: r.Meta.Name, Spec: r.Spec, Passphrase: passphrase, Create: create})
	return res, atVault(r, err)
}

// takeStatus makes what a vault tells a repository's status.
func takeStatus(r *v1.Repository, st *v1.RepositoryStatus) {
	gen := r.Meta.Generation
	if st != nil {
		r.Status = clone(st)
	} else if r.Status == nil {
		r.Status = &v1.RepositoryStatus{}
	}
	if r.Status.Phase <= v1.RepositoryPhase_REPOSITORY_PHASE_PENDING {
		r.Status.Phase = v1.RepositoryPhase_REPOSITORY_PHASE_READY
	}
	r.Status.ObservedGeneration = gen
}

// UpdateRepository changes a repository, but for where it is. The serving machine is told at once.
func (m *Manager) UpdateRepository(ctx context.Context, r *v1.Repository, mask *fieldmaskpb.FieldMask, validateOnly bool) (*v1.Repository, error) {
	if err := needMeta(resource.KindRepository, r); err != nil {
		return nil, err
	}
	secret := ""
	made, err := updateSimple(ctx, m, m.Repositories, r, mask, validateOnly, ignoreOld(func(r *v1.Repository) error {
		resource.DefaultRepository(r)
		return m.checkRepository(r)
	}), func(old, r *v1.Repository) error {
		f := resource.FaultsOf(resource.KindRepository, r.Meta.Name)
		if old.Spec.Host != r.Spec.Host {
			f.Add("spec.host", "FIELD_IMMUTABLE", "never changes after creation")
		}
		if old.Spec.Location != r.Spec.Location {
			f.Add("spec.location", "FIELD_IMMUTABLE", "never changes after creation; copy its points to another repository")
		}
		if s3 := r.Spec.S3; s3.GetSecretKey() != "" {
			secret, s3.SecretKey = s3.SecretKey, ""
		}
		return f.Err()
	})
	if err != nil || validateOnly {
		return made, err
	}
	told := clone(made)
	if secret != "" {
		told.Spec.S3.SecretKey = secret
	}
	if _, err := m.openVault(ctx, told, "", false); err != nil {
		if secret != "" {
			return nil, fmt.Errorf("the change is kept, but the secret key did not reach who serves the repository: %w", err)
		}
		m.log.Warn("manager: tell a repository's spec", "repository", made.Meta.Name, "err", err) // it is told again by the keeper
		return made, nil
	}
	m.points.wake()
	return m.Repositories.mutate(ctx, made.Meta.Name, func(x *v1.Repository) error {
		if x.Meta.Generation != told.Meta.Generation || x.Status.GetObservedGeneration() == told.Meta.Generation {
			return errSame
		}
		x.Status.ObservedGeneration = told.Meta.Generation
		return nil
	})
}

// DeleteRepository lets go of a repository. What it holds stays.
func (m *Manager) DeleteRepository(ctx context.Context, name string, revision int64, force bool) (*v1.Repository, error) {
	ctx, done, err := m.exclusive(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	r, err := deleteSimple(ctx, m.Repositories, name, revision, func(r *v1.Repository) (users []string) {
		if force {
			return nil
		}
		all, _ := m.Policies.cache.List()
		for _, p := range all {
			if p.Spec.Repository == name || slices.ContainsFunc(p.Spec.Copies, func(c *v1.PolicyCopy) bool { return c.Repository == name }) {
				users = append(users, "policy "+p.Meta.Name)
			}
		}
		return users
	})
	if err != nil {
		return nil, err
	}
	m.points.drop(name)
	if c, verr := m.vault(r); verr != nil {
		m.log.Warn("manager: close a repository", "repository", name, "err", verr)
	} else if _, verr := c.Close(ctx, &v1.VaultCloseRequest{Repository: name, Forget: true}); verr != nil {
		m.log.Warn("manager: close a repository", "repository", name, "err", verr)
	}
	m.event(v1.Severity_SEVERITY_INFO, resource.KindRepository, name, "REPOSITORY_DETACHED", "what it holds is left at "+r.Spec.Location)
	return r, nil
}

// RekeyRepository changes the passphrase, or begins a new data key.
func (m *Manager) RekeyRepository(ctx context.Context, req *v1.RekeyRepositoryRequest) (*v1.Repository, error) {
	r, err := m.Repositories.lookup(req.Name)
	if err != nil {
		return nil, err
	}
	if req.Passphrase == "" && !req.RotateDataKey {
		return nil, &resource.Error{Code: resource.Invalid, Kind: resource.KindRepository, Name: req.Name, Field: "passphrase", Reason: "NOTHING_TO_DO", Message: "neither a new passphrase nor a new data key is asked for"}
	}
	if req.Passphrase != "" {
		if err := resource.CheckPassphrase(req.Name, req.Passphrase); err != nil {
			return nil, err
		}
	}
	c, err := m.vault(r)
	if err != nil {
		return nil, err
	}
	if _, err := c.Rekey(ctx, &v1.VaultRekeyRequest{Repository: req.Name, Passphrase: req.Passphrase, RotateDataKey: req.RotateDataKey}); err != nil {
		return nil, atVault(r, err)
	}
	m.event(v1.Severity_SEVERITY_INFO, resource.KindRepository, req.Name, "REPOSITORY_REKEYED", "")
	return m.Repositories.seen(r), nil
}
