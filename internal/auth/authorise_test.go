package auth

import (
	"errors"
	"testing"
)

func TestAuthorise(t *testing.T) {
	person := func(r Role, project string, scopes ...Scope) Principal {
		return Principal{Kind: KindToken, Name: "ann", Roles: []Grant{{r, project}}, Scopes: scopes}
	}
	admin := person(RoleAdmin, "", ScopeAdmin)
	host := HostPrincipal("a1", "u", "10.0.0.1")
	for _, tt := range []struct {
		name    string
		p       Principal
		verb    Verb
		kind    string
		project string
		want    error
	}{
		{"nobody", Principal{}, VerbGet, "vm", "", ErrUnauthenticated},
		{"unknown kind of caller", Principal{Kind: "x", Roles: admin.Roles, Scopes: admin.Scopes}, VerbGet, "vm", "", ErrUnauthenticated},
		{"admin", admin, VerbDelete, "user", "", nil},
		{"admin unknown verb", admin, "conquer", "vm", "", ErrDenied},
		{"admin as host", admin, VerbReport, "vm", "", ErrDenied},
		{"admin, read token", person(RoleAdmin, "", ScopeRead), VerbCreate, "vm", "", ErrDenied},
		{"admin, write token, users", person(RoleAdmin, "", ScopeWrite), VerbGet, "user", "", ErrDenied},
		{"write reads", person(RoleAdmin, "", ScopeWrite), VerbWatch, "vm", "", nil},
		{"metrics only scrapes", person(RoleAdmin, "", ScopeMetrics), VerbGet, "vm", "", ErrDenied},
		{"metrics", person(RoleViewer, "", ScopeMetrics), VerbMetrics, "metrics", "", nil},
		{"operator", person(RoleOperator, "", ScopeAdmin), VerbOperate, "vm", "", nil},
		{"operator, join token", person(RoleOperator, "", ScopeAdmin), VerbCreate, "join_token", "", ErrDenied},
		{"operator, audit", person(RoleOperator, "", ScopeAdmin), VerbList, "audit", "", ErrDenied},
		{"viewer looks", person(RoleViewer, "", ScopeAdmin), VerbList, "vm", "", nil},
		{"viewer starts", person(RoleViewer, "", ScopeAdmin), VerbOperate, "vm", "", ErrDenied},
		{"viewer, console", person(RoleViewer, "", ScopeAdmin), VerbConsole, "vm", "", ErrDenied},
		{"viewer, own token", person(RoleViewer, "", ScopeAdmin), VerbDelete, "own_token", "", nil},
		{"own project", person(RoleOperator, "blue", ScopeAdmin), VerbOperate, "vm", "blue", nil},
		{"other project", person(RoleOperator, "blue", ScopeAdmin), VerbOperate, "vm", "red", ErrDenied},
		{"no project", person(RoleOperator, "blue", ScopeAdmin), VerbList, "vm", "", ErrDenied},
		{"unknown role", person("boss", "", ScopeAdmin), VerbGet, "vm", "", ErrDenied},
		{"no role", Principal{Kind: KindUser, Scopes: []Scope{ScopeAdmin}}, VerbGet, "vm", "", ErrDenied},
		{"host reports", host, VerbReport, "vm", "", nil},
		{"host reports users", host, VerbReport, "user", "", ErrDenied},
		{"host lists", host, VerbList, "vm", "", ErrDenied},
		{"system", SystemPrincipal("scheduler"), VerbUpdate, "vm", "", nil},
	} {
		if err := Authorise(tt.p, tt.verb, tt.kind, tt.project); !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	if p, ok := FromContext(WithPrincipal(t.Context(), admin)); !ok || p.Name != "ann" {
		t.Errorf("context gave %v, %v", p, ok)
	}
	if _, ok := FromContext(t.Context()); ok {
		t.Error("an empty context has a principal")
	}
}
