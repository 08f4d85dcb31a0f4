package manager

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/auth"
	"drover/internal/resource"
	"drover/internal/store"
)

func (m *Manager) openAuth() {
	m.auth = &auth.Service{
		Clock: m.cfg.Clock, Log: m.log, Users: userStore{m}, Tokens: tokenStore{m},
		Hasher: auth.NewHasher(0, 0), Limiter: auth.NewLimiter(m.cfg.Clock),
	}
}

// Auth logs people in and recognises them.
func (m *Manager) Auth() *auth.Service { return m.auth }

// Local is what users of this machine may do over the Unix socket.
func (m *Manager) Local() auth.Local {
	return auth.Local{OwnerUID: uint32(os.Getuid()), AdminGroup: "drover", ViewerGroup: "drover-view"}
}

// firstUser makes the administrator when there are no users yet.
func (m *Manager) firstUser(ctx context.Context) error {
	if m.Users.cache.Len() > 0 {
		return nil
	}
	res, err := m.CreateUser(ctx, &v1.CreateUserRequest{User: &v1.User{
		Meta: &v1.Meta{Name: "admin"}, Spec: &v1.UserSpec{DisplayName: "Administrator", Roles: []string{"admin"}},
	}})
	if resource.CodeOf(err) == resource.Exists {
		return nil // another manager on the same etcd was faster
	}
	if err != nil {
		return err
	}
	m.FirstPassword = res.Password
	return nil
}

// CreateUser makes a user with a password, given or made up.
func (m *Manager) CreateUser(ctx context.Context, req *v1.CreateUserRequest) (*v1.CreateUserResponse, error) {
	if err := needMeta(resource.KindUser, req.User); err != nil {
		return nil, err
	}
	u := clone(req.User)
	if u.Spec == nil {
		u.Spec = &v1.UserSpec{}
	}
	u.Spec.PasswordHash = ""
	// Tokens of an earlier user of that name are worth nothing.
	u.Spec.ValidFrom = stamp(m.cfg.Clock.Now())
	if err := resource.CheckUser(u); err != nil {
		return nil, err
	}
	if _, ok := m.Users.cache.Get(u.Meta.Name); ok {
		return nil, m.Users.translate(store.ErrExists, u.Meta.Name)
	}
	password := req.Password
	if password == "" {
		password = auth.GeneratePassword()
	}
	var err error
	if u.Spec.PasswordHash, err = m.hash(ctx, u.Meta.Name, password); err != nil {
		return nil, err
	}
	if u, err = m.Users.create(ctx, m.store, u); err != nil {
		return nil, err
	}
	res := &v1.CreateUserResponse{User: u}
	if req.Password == "" {
		res.Password = password
	}
	return res, nil
}

// shortest is the least length of a password, in characters (NIST SP 800-63B asks for 8, and 15 where it stands alone).
const shortest = 12

func (m *Manager) hash(ctx context.Context, user, password string) (string, error) {
	if n := len([]rune(password)); n < shortest || len(password) > 1024 {
		return "", &resource.Error{Code: resource.Invalid, Kind: resource.KindUser, Name: user, Field: "password", Reason: "PASSWORD_SHORT", Message: "must have 12 to 1024 characters"}
	}
	return m.auth.Hasher.Hash(ctx, password)
}

// SetPassword changes a password; all sessions and tokens made with the old one are void.
func (m *Manager) SetPassword(ctx context.Context, user, password string) error {
	if _, err := m.Users.lookup(user); err != nil {
		return err
	}
	if _, err := m.hash(ctx, user, password); err != nil { // said in words before anything is changed
		return err
	}
	return m.auth.SetPassword(ctx, user, password)
}

// DeleteUser forgets a user. The last administrator stays.
func (m *Manager) DeleteUser(ctx context.Context, name string, revision int64) (*v1.User, error) {
	ctx, done, err := m.exclusive(ctx) // two must not both find that the other stays
	if err != nil {
		return nil, err
	}
	defer done()
	u, err := m.Users.lookup(name)
	if err != nil {
		return nil, err
	}
	if err := atRevision(resource.KindUser, u.Meta, revision); err != nil {
		return nil, err
	}
	others := 0
	all, _ := m.Users.cache.List()
	for _, x := range all {
		if x.Meta.Name != name && !x.Spec.Disabled && slices.Contains(x.Spec.Roles, "admin") {
			others++
		}
	}
	if others == 0 && slices.Contains(u.Spec.Roles, "admin") {
		return nil, &resource.Error{Code: resource.Precondition, Kind: resource.KindUser, Name: name, Reason: "LAST_ADMIN", Message: "is the last administrator", Remedy: "make another one first"}
	}
	if err := m.Users.remove(ctx, name, u.Meta.Revision); err != nil {
		return nil, err
	}
	tokens, _ := m.Tokens.cache.List()
	for _, t := range tokens {
		if t.Spec.User != name {
			continue
		}
		if err := m.Tokens.remove(ctx, t.Meta.Name, 0); err != nil && resource.CodeOf(err) != resource.NotFound {
			return nil, err
		}
	}
	return m.Users.seen(u), nil
}

// sweepTokens deletes sessions and tokens that have ended.
func (m *Manager) sweepTokens(ctx context.Context) error {
	for {
		if _, err := m.auth.Sweep(ctx); err != nil && ctx.Err() == nil {
			m.log.Warn("manager: sweep tokens", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.cfg.Clock.After(time.Hour):
		}
	}
}

// userStore keeps people for package auth.
type userStore struct{ m *Manager }

func (s userStore) GetUser(_ context.Context, name string) (auth.User, int64, error) {
	u, ok := s.m.Users.cache.Get(name)
	if !ok {
		return auth.User{}, 0, auth.ErrNotFound
	}
	a := auth.User{Name: name, PasswordHash: u.Spec.PasswordHash, Disabled: u.Spec.Disabled}
	if u.Spec.ValidFrom != nil {
		a.ValidFrom = u.Spec.ValidFrom.AsTime()
	}
	for _, r := range u.Spec.Roles {
		a.Roles = append(a.Roles, auth.Grant{Role: auth.Role(r)})
	}
	return a, u.Meta.Revision, nil
}

func (s userStore) UpdateUser(ctx context.Context, a auth.User, revision int64) error {
	_, err := s.m.Users.mutate(ctx, a.Name, func(u *v1.User) error {
		if u.Meta.Revision != revision {
			return auth.ErrConflict
		}
		u.Spec.PasswordHash = a.PasswordHash
		if !a.ValidFrom.IsZero() {
			u.Spec.ValidFrom = stamp(a.ValidFrom)
		}
		return nil
	})
	return err
}

// tokenStore keeps sessions and API tokens for package auth.
type tokenStore struct{ m *Manager }

func (s tokenStore) CreateToken(ctx context.Context, t auth.Token) error {
	scopes := make([]string, len(t.Scopes))
	for i, sc := range t.Scopes {
		scopes[i] = string(sc)
	}
	x := &v1.Token{
		Meta:   &v1.Meta{Name: t.ID},
		Spec:   &v1.TokenSpec{Description: t.Title, User: t.User, Scopes: scopes, SecretHash: t.Hash, Session: t.Session},
		Status: &v1.TokenStatus{LastUsed: stamp(t.LastUsed), LastSource: t.Source},
	}
	if !t.Expires.IsZero() {
		x.Spec.ExpireTime = stamp(t.Expires)
	}
	_, err := s.m.Tokens.create(ctx, s.m.store, x)
	return err
}

func tokenOf(x *v1.Token) auth.Token {
	t := auth.Token{
		ID: x.Meta.Name, Hash: x.Spec.SecretHash, Session: x.Spec.Session, User: x.Spec.User, Title: x.Spec.Description,
		Created: x.Meta.CreateTime.AsTime(), LastUsed: x.GetStatus().GetLastUsed().AsTime(), Source: x.GetStatus().GetLastSource(),
	}
	if x.Spec.ExpireTime != nil {
		t.Expires = x.Spec.ExpireTime.AsTime()
	}
	for _, sc := range x.Spec.Scopes {
		t.Scopes = append(t.Scopes, auth.Scope(sc))
	}
	return t
}

func (s tokenStore) GetToken(_ context.Context, id string) (auth.Token, error) {
	x, ok := s.m.Tokens.cache.Get(id)
	if !ok {
		return auth.Token{}, auth.ErrNotFound
	}
	return tokenOf(x), nil
}

func (s tokenStore) TouchToken(ctx context.Context, id string, at time.Time) error {
	_, err := s.m.Tokens.mutate(ctx, id, func(x *v1.Token) error {
		x.Status.LastUsed = stamp(at)
		return nil
	})
	if resource.CodeOf(err) == resource.NotFound {
		return nil
	}
	return err
}

func (s tokenStore) DeleteToken(ctx context.Context, id string) error {
	err := s.m.Tokens.remove(ctx, id, 0)
	if err != nil && (resource.CodeOf(err) == resource.NotFound || errors.Is(err, store.ErrNotFound)) {
		return nil
	}
	return err
}

func (s tokenStore) ListTokens(_ context.Context, user string) ([]auth.Token, error) {
	var list []auth.Token
	all, _ := s.m.Tokens.cache.List()
	for _, x := range all {
		if user == "" || x.Spec.User == user {
			list = append(list, tokenOf(x))
		}
	}
	return list, nil
}
