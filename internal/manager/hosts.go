package manager

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/auth"
	"drover/internal/pki"
	"drover/internal/resource"
	"drover/internal/store"
)

// heartbeats remembers when each host was last heard, and how busy it was. It is not stored: it changes all the time, and a
// manager that was away gives every host a fresh delay.
type heartbeats struct {
	mu    sync.Mutex
	at    map[string]time.Time
	loads map[string]load
}

// load is how busy a host is.
type load struct {
	cpu        float64 // share of CPU time in use
	memoryFree int64   // bytes
	// uplinks and sw are what moves all the time of the host's part of the switch.
	uplinks map[string]*v1.Uplink
	sw      *v1.SwitchStatus
}

func newHeartbeats() *heartbeats {
	return &heartbeats{at: map[string]time.Time{}, loads: map[string]load{}}
}

func (h *heartbeats) note(host string, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.at[host] = at
}

// load notes how busy a host says that it is.
func (h *heartbeats) load(host string, st *v1.HostStatus) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := load{cpu: st.CpuLoad, memoryFree: st.MemoryFreeBytes, uplinks: map[string]*v1.Uplink{}, sw: clone(st.Switch)}
	for _, u := range st.Uplinks {
		l.uplinks[u.Name] = clone(u)
	}
	h.loads[host] = l
}

// show adds to a host's status what is not stored of it.
func (h *heartbeats) show(host string, st *v1.HostStatus) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t, ok := h.at[host]; ok {
		st.LastHeartbeat = stamp(t)
	}
	l := h.loads[host]
	st.CpuLoad, st.MemoryFreeBytes = l.cpu, l.memoryFree
	for _, u := range st.Uplinks {
		if was := l.uplinks[u.Name]; was != nil {
			u.Counters = was.Counters
			if u.Neighbor != nil && was.Neighbor != nil {
				u.Neighbor.Seen = was.Neighbor.Seen
			}
		}
	}
	if st.Switch != nil && l.sw != nil {
		st.Switch.Ports, st.Switch.Registrations, st.Switch.Revision = l.sw.Ports, l.sw.Registrations, l.sw.Revision
	}
}

// withoutMoving takes out of a host's status what heartbeats keeps of its switch.
func withoutMoving(st *v1.HostStatus) {
	for _, u := range st.Uplinks {
		u.Counters = nil
		if u.Neighbor != nil {
			u.Neighbor.Seen = nil
		}
	}
	if st.Switch != nil {
		st.Switch.Ports, st.Switch.Registrations, st.Switch.Revision = 0, 0, 0
	}
}

func (h *heartbeats) forget(host string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.at, host)
	delete(h.loads, host)
}

func (h *heartbeats) last(host string) (time.Time, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t, ok := h.at[host]
	return t, ok
}

// watchHosts calls hosts unreachable that have been silent for too long.
func (m *Manager) watchHosts(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.cfg.Clock.After(m.cfg.HostTimeout / 5):
		}
		hosts, _ := m.Hosts.cache.List()
		for _, h := range hosts {
			last, ok := m.heard.last(h.Meta.Name)
			if !ok {
				last = m.start
			}
			if h.GetStatus().GetPhase() != v1.HostPhase_HOST_PHASE_READY || m.cfg.Clock.Now().Sub(last) < m.cfg.HostTimeout {
				continue
			}
			silent := false
			_, err := m.Hosts.mutate(ctx, h.Meta.Name, func(h *v1.Host) error {
				now, heard := m.heard.last(h.Meta.Name)
				silent = h.GetStatus().GetPhase() == v1.HostPhase_HOST_PHASE_READY && (!heard || !now.After(last))
				if !silent {
					return errSame
				}
				h.Status.Phase = v1.HostPhase_HOST_PHASE_UNREACHABLE
				return nil
			})
			if err != nil && ctx.Err() == nil {
				m.log.Error("manager: mark host unreachable", "host", h.Meta.Name, "err", err)
			}
			if err != nil || !silent {
				continue
			}
			m.event(v1.Severity_SEVERITY_ERROR, resource.KindHost, h.Meta.Name, "HOST_UNREACHABLE", "no word from it for "+m.cfg.HostTimeout.String()+"; its VMs may well run on")
		}
	}
}

// CreateJoinToken makes a token that lets one machine in as a host.
func (m *Manager) CreateJoinToken(ctx context.Context, req *v1.CreateJoinTokenRequest) (*v1.JoinToken, error) {
	f := resource.FaultsOf("join token", "")
	if req.Site == "" {
		f.Add("site", "SITE_MISSING", "a host is in a site; name one, or make one: drover site create NAME")
	} else if _, ok := m.Sites.cache.Get(req.Site); !ok {
		f.Add("site", "REFERENCE_UNKNOWN", "there is no site named %q; make it: drover site create %s", req.Site, req.Site)
	}
	if req.Host != "" && !resource.ValidName(req.Host) {
		f.Add("host", "NAME_INVALID", "%q must have 1 to 63 characters of a-z, 0-9 and '-'", req.Host)
	}
	if _, ok := m.Hosts.cache.Get(req.Host); ok {
		f.Add("host", "NAME_TAKEN", "there is a host named %q already", req.Host)
	}
	if d := req.Lifetime.AsDuration(); d < 0 || d > 7*24*time.Hour {
		f.Add("lifetime", "OUT_OF_RANGE", "%v; must be more than 0 and at most 168h", d)
	}
	if err := f.Err(); err != nil {
		return nil, err
	}
	by, _ := auth.FromContext(ctx)
	t, rec, err := m.joins.Create(ctx, pki.JoinOptions{Addresses: m.addresses(), Lifetime: req.Lifetime.AsDuration(), CreatedBy: by.String(), Site: req.Site, Name: req.Host})
	if err != nil {
		return nil, err
	}
	return &v1.JoinToken{Token: t.Text(), ExpireTime: stamp(rec.Expires)}, nil
}

// addresses are where hosts reach the manager, "address:port".
func (m *Manager) addresses() []string {
	host, port, _ := net.SplitHostPort(m.cfg.Listen)
	var list []string
	for _, a := range m.names() {
		list = append(list, net.JoinHostPort(a, port))
	}
	if len(list) == 0 && host != "" {
		list = append(list, m.cfg.Listen)
	}
	return list
}

// Enroll lets a machine with a join token in as a host.
func (m *Manager) Enroll(ctx context.Context, req *v1.EnrollRequest) (*v1.EnrollResponse, error) {
	refuse := func(err error) error {
		if errors.Is(err, store.ErrUnavailable) || ctx.Err() != nil {
			return m.joinKeys.translate(err, "") // the machine tries again
		}
		return &resource.Error{Code: resource.Denied, Kind: resource.KindHost, Name: req.Hostname, Reason: "JOIN_REFUSED", Message: err.Error(), Err: err}
	}
	key, err := pki.RequestKey(req.Csr)
	if err != nil {
		return nil, refuse(err)
	}
	rec, err := m.joins.Redeem(ctx, req.Token, key, hostname(req.Hostname), resource.NewUID())
	if err != nil {
		return nil, refuse(err)
	}
	ctx, done, err := m.exclusive(ctx) // the site must not go meanwhile
	if err != nil {
		return nil, err
	}
	defer done()
	if _, ok := m.Sites.cache.Get(rec.Site); !ok {
		return nil, refuse(fmt.Errorf("site %q, for which the token was made, does not exist any more", rec.Site))
	}
	claim := rec.Claim
	id := pki.Identity{Role: pki.RoleHost, Name: claim.Name, UID: claim.UID}
	now := stamp(m.cfg.Clock.Now())
	h := &v1.Host{
		Meta:   &v1.Meta{Name: claim.Name, Uid: claim.UID, Generation: 1, CreateTime: now, UpdateTime: now},
		Spec:   &v1.HostSpec{Site: rec.Site},
		Status: &v1.HostStatus{Phase: v1.HostPhase_HOST_PHASE_JOINING, Address: req.Address},
	}
	if _, ok := m.Hosts.cache.Get(claim.Name); !ok {
		// VMs of a removed host of that name must not fall to this one.
		if err := m.disownAll(ctx, claim.Name); err != nil {
			return nil, err
		}
	}
	_, err = m.store.Txn(ctx, m.Hosts.coll.CreateOp(h))
	joined := err == nil
	if errors.Is(err, store.ErrExists) {
		// The answer to an earlier try may have been lost: the same key gets the same claim.
		have, gerr := m.Hosts.coll.Get(ctx, claim.Name)
		if gerr != nil || have.Meta.Uid != claim.UID {
			return nil, refuse(fmt.Errorf("there is another host named %q; choose another name with --hostname", claim.Name))
		}
	} else if err != nil {
		return nil, m.Hosts.translate(err, claim.Name)
	}
	// The host comes at once with its certificate, and must be known then.
	if err := m.Hosts.cache.WaitRevision(ctx, h.Meta.Revision); err != nil {
		return nil, err
	}
	chain, err := m.ca.Issue(key, pki.Grant{Identity: id, IPs: addressIPs(req.Address)})
	if err != nil {
		return nil, refuse(err)
	}
	if joined {
		m.event(v1.Severity_SEVERITY_INFO, resource.KindHost, claim.Name, "HOST_JOINED", "in site "+rec.Site)
	}
	return &v1.EnrollResponse{Certificate: pki.EncodeCertificates(chain...), Ca: m.ca.Trust().PEM(), Host: claim.Name, HostUid: claim.UID, Site: rec.Site}, nil
}

// addressIPs are what programs of others check when they read a disk from a host over NBD: they know it by its address alone. Drover's own
// processes never go by it.
func addressIPs(address string) []net.IP {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil
	}
	if ip := net.ParseIP(host); ip != nil && !ip.IsUnspecified() {
		return []net.IP{ip}
	}
	return nil
}

// hostname is a machine's own name made fit for a host.
func hostname(s string) string {
	s, _, _ = strings.Cut(strings.ToLower(s), ".")
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return '-'
	}, s)
	return strings.Trim(s[:min(len(s), 63)], "-")
}

// Renew gives a host a fresh certificate for the identity that it has.
func (m *Manager) Renew(host *v1.Host, csr []byte) (*v1.RenewResponse, error) {
	key, err := pki.RequestKey(csr)
	var chain []*x509.Certificate
	if err == nil {
		chain, err = m.ca.Issue(key, pki.Grant{
			Identity: pki.Identity{Role: pki.RoleHost, Name: host.Meta.Name, UID: host.Meta.Uid}, IPs: addressIPs(host.GetStatus().GetAddress()),
		})
	}
	if err != nil {
		return nil, &resource.Error{Code: resource.Invalid, Kind: resource.KindHost, Name: host.Meta.Name, Field: "csr", Reason: "CSR_INVALID", Message: err.Error()}
	}
	return &v1.RenewResponse{Certificate: pki.EncodeCertificates(chain...), Ca: m.ca.Trust().PEM()}, nil
}

// HostOf is the host that an identity belongs to now. One that was removed is nobody.
func (m *Manager) HostOf(name, uid string) (*v1.Host, error) {
	h, ok := m.Hosts.cache.Get(name)
	if !ok || h.Meta.Uid != uid || h.Meta.DeleteTime != nil {
		return nil, &resource.Error{Code: resource.Denied, Kind: resource.KindHost, Name: name, Reason: "HOST_REMOVED", Message: "is not a host of this installation any more", Remedy: "let it join anew with a token: drover host token"}
	}
	return h, nil
}

// Admit is for TLS: whether a peer with a certificate may come in.
func (m *Manager) Admit(id pki.Identity) error {
	if id.Role != pki.RoleHost {
		return nil
	}
	_, err := m.HostOf(id.Name, id.UID)
	return err
}

// DeleteHost forgets a host. With force its VMs lose their owner: they can only be deleted then.
func (m *Manager) DeleteHost(ctx context.Context, name string, revision int64, force bool) (*v1.Host, error) {
	ctx, done, err := m.exclusive(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	h, err := m.Hosts.lookup(name)
	if err != nil {
		return nil, err
	}
	if err := atRevision(resource.KindHost, h.Meta, revision); err != nil {
		return nil, err
	}
	held := m.residents()[name]
	if len(held) > 0 && !force {
		return nil, &resource.Error{Code: resource.Precondition, Kind: resource.KindHost, Name: name, Reason: "HAS_VMS", Message: fmt.Sprintf("holds %d VMs", len(held)), Remedy: "delete them first; or, if the machine is gone for good, delete it with --force and lose them"}
	}
	seen := m.Hosts.seen(h)
	// Its token goes first: it would let the same machine in again as the same host.
	if err := m.dropJoins(ctx, func(j *v1.Join) bool { return j.GetClaim().GetUid() == h.Meta.Uid }); err != nil {
		return nil, err
	}
	if err := m.Hosts.remove(ctx, name, h.Meta.Revision); err != nil {
		return nil, err
	}
	// From here on the sweep finishes what is cut off.
	m.heard.forget(name)
	m.nodes.forget(name)
	m.removed.add(h.Meta.Uid)
	m.points.wake()
	m.event(v1.Severity_SEVERITY_WARNING, resource.KindHost, name, "HOST_REMOVED", fmt.Sprintf("with %d VMs", len(held)))
	if err := m.disownAll(ctx, name); err != nil {
		return nil, err
	}
	stores, _ := m.Datastores.cache.List()
	for _, d := range stores {
		if d.Spec.Host != name {
			continue
		}
		if err := m.Datastores.remove(ctx, d.Meta.Name, 0); err != nil && resource.CodeOf(err) != resource.NotFound {
			return nil, err
		}
	}
	return seen, nil
}

// disownAll takes all its VMs from a host that is no more.
func (m *Manager) disownAll(ctx context.Context, host string) error {
	for _, vm := range m.residents()[host] {
		if err := m.disown(ctx, vm.Meta.Name, host); err != nil {
			return err
		}
	}
	return nil
}
