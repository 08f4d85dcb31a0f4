package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"drover/internal/clock"
)

const (
	// SessionIdle and SessionMost end a log-in: after that long without a use,
	// and in any case.
	SessionIdle = 12 * time.Hour
	SessionMost = 7 * 24 * time.Hour
	// touchEvery bounds how often a use is written down.
	touchEvery = time.Minute
)

// User is a person's record.
type User struct {
	Name string
	// PasswordHash is a PHC string; empty for those who log in elsewhere.
	PasswordHash string
	// Provider is empty for passwords, else names the identity provider.
	Provider string
	Roles    []Grant
	Disabled bool
	// ValidFrom makes sessions and tokens made before it invalid; setting it is
	// "log out everywhere".
	ValidFrom time.Time
}

// UserStore keeps people.
type UserStore interface {
	// GetUser fails with ErrNotFound.
	GetUser(ctx context.Context, name string) (User, int64, error)
	// UpdateUser replaces the record if its revision is still this one, else
	// fails with ErrConflict.
	UpdateUser(ctx context.Context, u User, revision int64) error
}

// Service logs people in and recognises them afterwards. It is safe for
// concurrent use. All fields are needed.
type Service struct {
	Clock   clock.Clock
	Log     *slog.Logger
	Users   UserStore
	Tokens  TokenStore
	Hasher  *Hasher
	Limiter *Limiter
}

// Login checks a password and opens a session. It fails with [ErrWrongPassword],
// a [*RetryError], or [ErrBusy].
func (s *Service) Login(ctx context.Context, user, password string, addr netip.Addr) (text string, p Principal, err error) {
	if err := s.Limiter.Begin(user, addr); err != nil {
		return "", Principal{}, err
	}
	u, rev, err := s.Users.GetUser(ctx, user)
	if err != nil && !errors.Is(err, ErrNotFound) {
		s.Limiter.Abort(user, addr)
		return "", Principal{}, fmt.Errorf("log in %q: %w", user, err)
	}
	ok, stale, err := s.Hasher.Verify(ctx, u.PasswordHash, password)
	if err != nil {
		s.Limiter.Abort(user, addr)
		return "", Principal{}, fmt.Errorf("log in %q: %w", user, err)
	}
	if !ok || u.Disabled {
		s.Log.InfoContext(ctx, "log-in refused", "user", user, "source", addr)
		return "", Principal{}, ErrWrongPassword
	}
	s.Limiter.Success(user, addr)
	if stale {
		s.rehash(ctx, u, rev, password)
	}
	return s.Open(ctx, user, addr.String())
}

// rehash is an improvement: if it fails, the next log-in tries again.
func (s *Service) rehash(ctx context.Context, u User, rev int64, password string) {
	phc, err := s.Hasher.Hash(ctx, password)
	if err == nil {
		u.PasswordHash = phc
		err = s.Users.UpdateUser(ctx, u, rev)
	}
	if err != nil {
		s.Log.WarnContext(ctx, "password hash not brought up to date", "user", u.Name, "error", err)
	}
}

// Open opens a session for a user whom the caller has verified by other means
// than a password.
func (s *Service) Open(ctx context.Context, user, source string) (text string, p Principal, err error) {
	t := Token{
		Session: true, User: user, Source: source,
		Scopes: []Scope{ScopeAdmin}, Expires: s.Clock.Now().Add(SessionMost),
	}
	text, t, err = s.create(ctx, t)
	if err != nil {
		return "", Principal{}, fmt.Errorf("open a session for %q: %w", user, err)
	}
	p, err = s.principal(ctx, t, source)
	return text, p, err
}

// TokenOptions say what an API token is for.
type TokenOptions struct {
	User   string
	Title  string
	Scopes []Scope
	// Lifetime is 90 days if zero; negative for a token without end.
	Lifetime time.Duration
	Source   string
}

// CreateToken makes an API token. Its text can be had now and never again. The
// maker's own scopes must hold the new token's.
func (s *Service) CreateToken(ctx context.Context, by Principal, o TokenOptions) (text string, t Token, err error) {
	if len(o.Scopes) == 0 {
		return "", Token{}, fmt.Errorf("create token %q: no scope: give one of read, write, admin, metrics", o.Title)
	}
	for _, sc := range o.Scopes {
		if !sc.Valid() {
			return "", Token{}, fmt.Errorf("create token %q: scope %q: use read, write, admin or metrics", o.Title, sc)
		}
		if by.Kind != KindSystem && !holds(by.Scopes, sc) {
			return "", Token{}, fmt.Errorf("create token %q: your own log-in lacks the scope %q: %w", o.Title, sc, ErrDenied)
		}
	}
	if _, _, err := s.Users.GetUser(ctx, o.User); err != nil {
		return "", Token{}, fmt.Errorf("create token %q for user %q: %w", o.Title, o.User, err)
	}
	t = Token{User: o.User, Title: o.Title, Scopes: slices.Clone(o.Scopes), Source: o.Source}
	switch {
	case o.Lifetime == 0:
		t.Expires = s.Clock.Now().Add(90 * 24 * time.Hour)
	case o.Lifetime > 0:
		t.Expires = s.Clock.Now().Add(o.Lifetime)
	}
	text, t, err = s.create(ctx, t)
	if err != nil {
		return "", Token{}, fmt.Errorf("create token %q: %w", o.Title, err)
	}
	return text, t, nil
}

func (s *Service) create(ctx context.Context, t Token) (string, Token, error) {
	text, id, hash := newSecret()
	t.ID, t.Hash = id, hash
	t.Created = s.Clock.Now()
	t.LastUsed = t.Created
	return text, t, s.Tokens.CreateToken(ctx, t)
}

// Authenticate returns the caller behind a session or token text. It fails
// with [ErrUnauthenticated] whatever is wrong with it.
func (s *Service) Authenticate(ctx context.Context, text, source string) (Principal, error) {
	if !wellFormed(text) {
		return Principal{}, ErrUnauthenticated
	}
	id, hash := identify(text)
	t, err := s.Tokens.GetToken(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return Principal{}, ErrUnauthenticated
	}
	if err != nil {
		return Principal{}, fmt.Errorf("authenticate: %w", err)
	}
	now := s.Clock.Now()
	if !t.matches(hash) || t.ended(now) {
		return Principal{}, ErrUnauthenticated
	}
	p, err := s.principal(ctx, t, source)
	if err != nil {
		return Principal{}, err
	}
	if now.Sub(t.LastUsed) >= touchEvery {
		if err := s.Tokens.TouchToken(ctx, t.ID, now); err != nil {
			s.Log.WarnContext(ctx, "use of token not noted", "token", t.ID, "error", err)
		}
	}
	return p, nil
}

func (t Token) ended(now time.Time) bool {
	if !t.Expires.IsZero() && !now.Before(t.Expires) {
		return true
	}
	return t.Session && now.Sub(t.LastUsed) >= SessionIdle
}

// principal joins a token with its user as of now.
func (s *Service) principal(ctx context.Context, t Token, source string) (Principal, error) {
	u, _, err := s.Users.GetUser(ctx, t.User)
	if errors.Is(err, ErrNotFound) || err == nil && (u.Disabled || t.Created.Before(u.ValidFrom)) {
		return Principal{}, ErrUnauthenticated
	}
	if err != nil {
		return Principal{}, fmt.Errorf("authenticate %q: %w", t.User, err)
	}
	kind := KindToken
	if t.Session {
		kind = KindUser
	}
	return Principal{Kind: kind, Name: u.Name, TokenID: t.ID, Roles: u.Roles, Scopes: t.Scopes, Source: source}, nil
}

// Revoke ends a session or token by its id. The caller has checked that it may.
func (s *Service) Revoke(ctx context.Context, id string) error {
	if err := s.Tokens.DeleteToken(ctx, id); err != nil {
		return fmt.Errorf("revoke token %s: %w", id, err)
	}
	return nil
}

// Sweep deletes what has ended, and returns how many.
func (s *Service) Sweep(ctx context.Context) (int, error) {
	all, err := s.Tokens.ListTokens(ctx, "")
	if err != nil {
		return 0, fmt.Errorf("sweep tokens: %w", err)
	}
	n := 0
	for _, t := range all {
		if !t.ended(s.Clock.Now()) {
			continue
		}
		if err := s.Tokens.DeleteToken(ctx, t.ID); err != nil {
			return n, fmt.Errorf("sweep token %s: %w", t.ID, err)
		}
		n++
	}
	return n, nil
}

// SetPassword gives a user a new password and ends all their sessions and
// tokens made before.
func (s *Service) SetPassword(ctx context.Context, user, password string) error {
	phc, err := s.Hasher.Hash(ctx, password)
	if err != nil {
		return fmt.Errorf("set password of %q: %w", user, err)
	}
	for {
		u, rev, err := s.Users.GetUser(ctx, user)
		if err != nil {
			return fmt.Errorf("set password of %q: %w", user, err)
		}
		u.PasswordHash, u.ValidFrom = phc, s.Clock.Now()
		err = s.Users.UpdateUser(ctx, u, rev)
		if err == nil || !errors.Is(err, ErrConflict) {
			if err != nil {
				err = fmt.Errorf("set password of %q: %w", user, err)
			}
			return err
		}
	}
}
