package auth

import (
	"context"
	"errors"
	"slices"
)

// Kind is what sort of caller a principal is.
type Kind string

// The kinds of callers.
const (
	KindUser   Kind = "user"   // a person with a session
	KindToken  Kind = "token"  // a tool with a person's API token
	KindLocal  Kind = "local"  // a user of this machine, over the Unix socket
	KindHost   Kind = "host"   // a host, by its certificate
	KindSystem Kind = "system" // the manager's own controllers
)

// Role is what a caller may do in general.
type Role string

// The roles, each holding the ones after it.
const (
	RoleAdmin    Role = "admin"    // everything, people included
	RoleOperator Role = "operator" // every object but people and tokens
	RoleViewer   Role = "viewer"   // look
)

// Valid reports whether the role is a known one.
func (r Role) Valid() bool { return slices.Contains([]Role{RoleAdmin, RoleOperator, RoleViewer}, r) }

// Grant is a role in a project; the empty project means all of them.
type Grant struct {
	Role    Role
	Project string
}

// Scope narrows what a token can be used for.
type Scope string

// The scopes. Admin holds write, write holds read; metrics stands alone.
const (
	ScopeRead    Scope = "read"
	ScopeWrite   Scope = "write"
	ScopeAdmin   Scope = "admin"
	ScopeMetrics Scope = "metrics"
)

// Valid reports whether the scope is a known one.
func (s Scope) Valid() bool {
	return slices.Contains([]Scope{ScopeRead, ScopeWrite, ScopeAdmin, ScopeMetrics}, s)
}

// Principal is an authenticated caller. It is not changed once in a context.
type Principal struct {
	Kind Kind
	// Name is the user's or host's name, as in the audit log.
	Name string
	// UID is a host's uid.
	UID string
	// TokenID is the session or token used, if any; it is no secret.
	TokenID string
	Roles   []Grant
	// Scopes narrow Roles. A caller without a token has all of them.
	Scopes []Scope
	// Source is from where: an IP address, or "unix:pid=N".
	Source string
}

// String returns "kind:name".
func (p Principal) String() string { return string(p.Kind) + ":" + p.Name }

// HostPrincipal names a host known by its certificate.
func HostPrincipal(name, uid, source string) Principal {
	return Principal{Kind: KindHost, Name: name, UID: uid, Source: source}
}

// SystemPrincipal names a controller of the manager, for the audit log.
func SystemPrincipal(controller string) Principal {
	return Principal{Kind: KindSystem, Name: controller, Source: "manager"}
}

// Errors that callers map to API codes.
var (
	// ErrUnauthenticated: nobody knows who asks.
	ErrUnauthenticated = errors.New("not logged in: run `drover login`, or give a valid API token")
	// ErrWrongPassword covers unknown users, disabled ones and wrong passwords.
	ErrWrongPassword = errors.New("user name or password is wrong")
	// ErrDenied: it is known who asks, and they may not.
	ErrDenied = errors.New("permission denied")
)

type principalKey struct{}

// WithPrincipal returns a context that carries the caller.
func WithPrincipal(ctx context.Context, p Principal) context.Context {
	return context.WithValue(ctx, principalKey{}, p)
}

// FromContext returns the caller, or false if nobody was authenticated.
func FromContext(ctx context.Context) (Principal, bool) {
	p, ok := ctx.Value(principalKey{}).(Principal)
	return p, ok
}
