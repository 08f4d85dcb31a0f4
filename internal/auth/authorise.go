package auth

import "fmt"

// Verb is what a call does to an object.
type Verb string

// The verbs.
const (
	VerbGet     Verb = "get"
	VerbList    Verb = "list"
	VerbWatch   Verb = "watch"
	VerbCreate  Verb = "create"
	VerbUpdate  Verb = "update"
	VerbDelete  Verb = "delete"
	VerbOperate Verb = "operate" // start, stop, snapshot, migrate, cancel …
	VerbConsole Verb = "console" // see and type into a guest
	VerbMetrics Verb = "metrics" // scrape
	VerbReport  Verb = "report"  // what hosts do: enrol, watch their VMs, report
)

// scopeOf is the scope that a verb needs; a verb that is missing is denied.
var scopeOf = map[Verb]Scope{
	VerbGet: ScopeRead, VerbList: ScopeRead, VerbWatch: ScopeRead,
	VerbCreate: ScopeWrite, VerbUpdate: ScopeWrite, VerbDelete: ScopeWrite,
	VerbOperate: ScopeWrite, VerbConsole: ScopeWrite,
	VerbMetrics: ScopeMetrics,
}

// adminKinds are objects that only administrators touch or see: who controls
// these controls the rest.
var adminKinds = map[string]bool{
	"user": true, "token": true, "join_token": true, "audit": true, "manager_backup": true,
}

// adminVerbs are what only administrators do to objects that others see and
// use: make places for backups, say how long what is there is kept, and
// destroy it.
var adminVerbs = map[string]map[Verb]bool{
	"repository": {VerbCreate: true, VerbUpdate: true, VerbDelete: true},
	"policy":     {VerbCreate: true, VerbUpdate: true, VerbDelete: true},
	"point":      {VerbDelete: true},
}

func adminOnly(verb Verb, kind string) bool { return adminKinds[kind] || adminVerbs[kind][verb] }

// hostKinds are what hosts report on, or fetch for their own use.
var hostKinds = map[string]bool{"host": true, "vm": true, "image": true, "datastore": true, "event": true, "vault": true}

// Authorise says whether a caller may do a verb to objects of a kind (the
// API's names in the singular, as "vm") in a project (empty: none in
// particular, or all). It returns nil or an error that wraps [ErrDenied].
//
// A host may only report; that it reports on its own objects is for the
// registry to check, by the principal's UID. Everybody may see and end their
// own sessions and tokens: the caller passes kind "own_token" for those.
func Authorise(p Principal, verb Verb, kind, project string) error {
	switch p.Kind {
	case KindSystem:
		return nil
	case KindHost:
		if verb == VerbReport && hostKinds[kind] {
			return nil
		}
		return denied(p, verb, kind, "hosts only report")
	case KindUser, KindToken, KindLocal:
	default:
		return ErrUnauthenticated
	}
	need, known := scopeOf[verb]
	if !known {
		return denied(p, verb, kind, "people cannot do that")
	}
	if adminOnly(verb, kind) {
		need = ScopeAdmin
	}
	if !holds(p.Scopes, need) {
		return denied(p, verb, kind, fmt.Sprintf("the token lacks the scope %q", need))
	}
	for _, g := range p.Roles {
		if (g.Project == "" || g.Project == project) && g.Role.allows(verb, kind) {
			return nil
		}
	}
	return denied(p, verb, kind, "no role of yours allows it: ask an administrator")
}

func (r Role) allows(verb Verb, kind string) bool {
	switch r {
	case RoleAdmin:
		return true
	case RoleOperator:
		return !adminOnly(verb, kind)
	case RoleViewer:
		return kind == "own_token" ||
			!adminOnly(verb, kind) && (scopeOf[verb] == ScopeRead || scopeOf[verb] == ScopeMetrics)
	}
	return false
}

// holds reports whether the scopes include one.
func holds(have []Scope, need Scope) bool {
	for _, s := range have {
		switch {
		case s == need,
			s == ScopeAdmin,
			s == ScopeWrite && need == ScopeRead:
			return true
		}
	}
	return false
}

func denied(p Principal, verb Verb, kind, why string) error {
	return fmt.Errorf("%s may not %s %s: %s: %w", p, verb, kind, why, ErrDenied)
}
