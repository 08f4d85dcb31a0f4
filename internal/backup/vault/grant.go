package vault

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	v1 "drover/api/drover/v1"
	"drover/internal/pki"
	"drover/internal/resource"
)

// secret is the SHA-256 of a grant or of a session's token: what is looked up is not what is told, so that the time of a comparison says nothing.
type secret [sha256.Size]byte

func secretOf(text string) secret { return sha256.Sum256([]byte(text)) }

// newSecret makes a token and what it is known by.
func newSecret() (text string, s secret, err error) {
	var b [32]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", s, err
	}
	text = hex.EncodeToString(b[:])
	return text, secretOf(text), nil
}

// Limits of grants.
const (
	minGrant = 32 // characters
	maxGrant = 256
	// maxGrants are open at once over all repositories: a manager that forgets to take them back does not fill memory.
	maxGrants = 100_000
	// sessionsEach are open at once under one grant.
	sessionsEach = 32
)

// grant lets a host, or the manager, do something.
type grant struct {
	key         secret
	repository  string
	host        string // uid; "": the manager
	vm          string // uid; "": all
	point       string // "": any
	read, write bool
	said        *v1.VaultGrantRequest
}

// all reports whether the grant opens everything: who may read all needs to prove nothing.
func (g *grant) all() bool { return g.vm == "" && g.point == "" && g.read }

type peerKey struct{}

// WithPeer says who calls. Handler does it for what comes over TLS.
func WithPeer(ctx context.Context, who pki.Identity) context.Context {
	return context.WithValue(ctx, peerKey{}, who)
}

func peerOf(ctx context.Context) (pki.Identity, error) {
	who, ok := ctx.Value(peerKey{}).(pki.Identity)
	if !ok {
		return pki.Identity{}, &resource.Error{Code: resource.Anonymous, Reason: "PEER_UNKNOWN", Message: "nobody is known behind this connection"}
	}
	return who, nil
}

// manager refuses everybody else.
func (v *Vaults) manager(ctx context.Context) error {
	who, err := peerOf(ctx)
	if err != nil {
		return err
	}
	if who.Role != pki.RoleManager {
		return &resource.Error{Code: resource.Denied, Reason: "MANAGER_ONLY", Message: fmt.Sprintf("%s may not ask for this: only the manager may", who)}
	}
	return nil
}

// Grant makes or takes back a grant. Taking it back ends its sessions.
func (v *Vaults) Grant(ctx context.Context, req *v1.VaultGrantRequest) (*v1.VaultGrantResponse, error) {
	if err := v.manager(ctx); err != nil {
		return nil, err
	}
	if req.GetRevoke() && req.GetGrant() == "" && req.GetHostUid() != "" {
		return &v1.VaultGrantResponse{}, v.revokeHost(ctx, req.GetRepository(), req.GetHostUid())
	}
	if n := len(req.GetGrant()); n < minGrant || n > maxGrant {
		return nil, invalid("grant", "a grant has %d to %d characters, not %d", minGrant, maxGrant, n)
	}
	key := secretOf(req.GetGrant())
	if req.GetRevoke() {
		return &v1.VaultGrantResponse{}, v.revoke(ctx, key)
	}
	if n := len(req.GetDefinition()); n > maxPoint/2 {
		return nil, invalid("definition", "a definition has at most %d bytes, not %d", maxPoint/2, n)
	}
	if req.GetPoint() != "" {
		if _, err := pointID(req.GetPoint()); err != nil {
			return nil, err
		}
	}
	_, _, done, err := v.use(req.GetRepository())
	if err != nil {
		return nil, err
	}
	defer done()
	g := &grant{key: key, repository: req.GetRepository(), host: req.GetHostUid(), vm: req.GetVmUid(), point: req.GetPoint(), read: req.GetRead(), write: req.GetWrite(), said: proto.CloneOf(req)}
	v.mu.Lock()
	defer v.mu.Unlock()
	if old := v.grants[key]; old != nil {
		if !proto.Equal(old.said, g.said) {
			return nil, &resource.Error{Code: resource.Exists, Reason: "GRANT_TAKEN", Message: "this grant was given for something else", Remedy: "make a new one"}
		}
		return &v1.VaultGrantResponse{}, nil
	}
	if len(v.grants) >= maxGrants {
		return nil, &resource.Error{Code: resource.Exhausted, Reason: "GRANTS_MANY", Message: fmt.Sprintf("%d grants are open", len(v.grants)), Remedy: "take back those that nobody needs"}
	}
	v.grants[key] = g
	return &v1.VaultGrantResponse{}, nil
}

func (v *Vaults) revoke(ctx context.Context, key secret) error {
	v.mu.Lock()
	g := v.grants[key]
	delete(v.grants, key)
	var list []*session
	for _, s := range v.sessions {
		if g != nil && s.grant == g {
			list = append(list, s)
		}
	}
	v.mu.Unlock()
	for _, s := range list {
		if err := v.finish(ctx, s); err != nil {
			v.o.Log.Warn("session not ended", "repository", s.vault.name, "purpose", s.purpose, "err", err)
		}
	}
	return nil
}

// granted finds what a peer may do. Whatever is wrong, the answer is the same.
func (v *Vaults) granted(ctx context.Context, repository, text string) (*grant, pki.Identity, error) {
	who, err := peerOf(ctx)
	if err != nil {
		return nil, who, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	// A repository that is not open yet is something else: its grants come after it.
	if x := v.vaults[repository]; x == nil || x.local == nil {
		return nil, who, errClosed(repository, x)
	}
	g := v.grants[secretOf(text)]
	if g == nil || g.repository != repository || g.host == "" && who.Role != pki.RoleManager || g.host != "" && (who.Role != pki.RoleHost || who.UID != g.host) {
		return nil, who, &resource.Error{Code: resource.Denied, Kind: resource.KindRepository, Name: repository, Reason: "GRANT_UNKNOWN",
			Message: fmt.Sprintf("%s has no such grant here", who), Remedy: "the manager gives them, and again after a restart of the vault"}
	}
	return g, who, nil
}

func (g *grant) may(write bool) error {
	if write && !g.write || !write && !g.read {
		verb := "read"
		if write {
			verb = "write"
		}
		return &resource.Error{Code: resource.Denied, Kind: resource.KindRepository, Name: g.repository, Reason: "GRANT_NARROW", Message: "the grant does not let its holder " + verb}
	}
	return nil
}

// sees reports whether the grant covers a point of its VM: one that only reads may be for one point alone.
func (g *grant) sees(point string) bool {
	return g.write || g.point == "" || strings.EqualFold(point, g.point)
}

// vmOK says whether the grant covers a VM.
func (g *grant) vmOK(uid string) error {
	if g.vm != "" && uid != g.vm {
		return &resource.Error{Code: resource.Denied, Kind: resource.KindRepository, Name: g.repository, Reason: "GRANT_NARROW", Message: "the grant is for another VM"}
	}
	return nil
}
