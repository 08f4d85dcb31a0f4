package manager

import (
	"context"
	"sync"
	"time"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/resource"
	"drover/internal/rpc"
)

// browsers remember where points are open for their files, so that the host's session is found again and the grant lives as long.
type browsers struct {
	mu   sync.Mutex
	open map[string]*browser // by point
}

type browser struct {
	host   string
	req    *v1.NodeBrowseRequest
	end    func()
	until  time.Time
	active int
}

// browseIdle is how long a session may be unused. The host's ends by itself after ten minutes; the grant goes a little later.
const browseIdle = 12 * time.Minute

// helperImage is the name of the kernel image that boots the helper VM.
const helperImage = "helper"

// helper is the image of the helper VM.
func (m *Manager) helper() (*v1.Image, error) {
	i, ok := m.Images.cache.Get(helperImage)
	if !ok || i.GetStatus().GetPhase() != v1.ImagePhase_IMAGE_PHASE_READY || i.Spec.Kind != v1.ImageKind_IMAGE_KIND_KERNEL {
		return nil, &resource.Error{Code: resource.Precondition, Kind: resource.KindImage, Name: helperImage, Reason: "HELPER_MISSING", Message: "the image of the helper VM, which reads files out of restore points, is not in the library",
			Remedy: "make it with drover image build helper, and import it as " + helperImage}
	}
	return i, nil
}

// browse finds or begins the session that reads a point's files. The caller calls done.
func (m *Manager) browse(ctx context.Context, name string) (b *browser, node droverv1connect.NodeServiceClient, done func(), err error) {
	p, r, err := m.point(name)
	if err != nil {
		return nil, nil, nil, err
	}
	s := &m.browsing
	s.sweep(m.cfg.Clock.Now())
	s.mu.Lock()
	b = s.open[name]
	if b != nil {
		b.active++
	}
	s.mu.Unlock()
	done = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		b.active--
		b.until = m.cfg.Clock.Now().Add(browseIdle)
	}
	if b != nil {
		if node, err = m.nodes.of(b.host); err == nil {
			return b, node, done, nil
		}
		done()
		s.close(name)
	}
	img, err := m.helper()
	if err != nil {
		return nil, nil, nil, err
	}
	host, err := m.helperHost(r, p)
	if err != nil {
		return nil, nil, nil, err
	}
	if node, err = m.nodes.of(host.Meta.Name); err != nil {
		return nil, nil, nil, err
	}
	t, end, err := m.target(ctx, r, host.Meta.Uid, p, 0)
	if err != nil {
		return nil, nil, nil, err
	}
	b = &browser{host: host.Meta.Name, end: end, active: 1, until: m.cfg.Clock.Now().Add(browseIdle), req: &v1.NodeBrowseRequest{
		Source: t, Point: p.Status.Id, HelperSha256: img.Status.Sha256, HelperSize: img.Status.SizeBytes,
	}}
	s.mu.Lock()
	if s.open == nil {
		s.open = map[string]*browser{}
	}
	old := s.open[name]
	s.open[name] = b
	s.mu.Unlock()
	if old != nil {
		old.end()
	}
	return b, node, done, nil
}

// sweep ends sessions that nobody has used for some time.
func (s *browsers) sweep(now time.Time) {
	s.mu.Lock()
	var ends []func()
	for name, b := range s.open {
		if b.active == 0 && now.After(b.until) {
			delete(s.open, name)
			ends = append(ends, b.end)
		}
	}
	s.mu.Unlock()
	for _, end := range ends {
		end()
	}
}

func (s *browsers) close(name string) {
	s.mu.Lock()
	b := s.open[name]
	delete(s.open, name)
	s.mu.Unlock()
	if b != nil {
		b.end()
	}
}

// helperHost is a host that runs a helper VM or a boot test for a point: the one that serves the repository, the VM's own, or the emptiest. Always
// the same for a point while the hosts stay the same.
func (m *Manager) helperHost(r *v1.Repository, p *v1.RestorePoint) (*v1.Host, error) {
	want := []string{r.Spec.Host}
	if vm, ok := m.VMs.cache.Get(p.Status.Vm); ok && vm.Meta.Uid == p.Status.VmUid {
		want = append(want, vm.GetStatus().GetOwner())
	}
	ready := func(h *v1.Host) bool {
		return h.GetStatus().GetPhase() == v1.HostPhase_HOST_PHASE_READY && !h.Spec.GetCordoned() && !h.GetStatus().GetRepositoriesOnly()
	}
	for _, name := range want {
		if h, ok := m.Hosts.cache.Get(name); ok && ready(h) {
			return h, nil
		}
	}
	var best *v1.Host
	room := int64(-1)
	all, _ := m.Hosts.cache.List()
	held := m.residents()
	for _, h := range all {
		if !ready(h) {
			continue
		}
		c := m.room(h, held[h.Meta.Name])
		if free := c.MemoryMiB - c.AllocatedMemoryMiB; best == nil || free > room {
			best, room = h, free
		}
	}
	if best == nil {
		return nil, &resource.Error{Code: resource.Unavailable, Kind: resource.KindPoint, Name: p.Meta.Name, Reason: "NO_HOST_READY", Message: "no host is there to read it on"}
	}
	return best, nil
}

// BrowsePoint lists volumes or a directory of a restore point.
func (m *Manager) BrowsePoint(ctx context.Context, req *v1.BrowseRequest) (*v1.BrowseResponse, error) {
	point, err := m.resolvePoint(req.Point)
	if err != nil {
		return nil, err
	}
	b, node, done, err := m.browse(ctx, point)
	if err != nil {
		return nil, err
	}
	defer done()
	ask := clone(b.req)
	ask.Path, ask.After, ask.Limit = req.Path, req.After, req.Limit
	res, err := node.Browse(ctx, ask)
	if err != nil {
		return nil, m.browseFailed(point, b.host, err)
	}
	return res, nil
}

// browseFailed puts an error of a host into words. A session that the host or the vault doesn't know any more is begun anew by the next call.
func (m *Manager) browseFailed(point, host string, err error) error {
	err = rpc.FromError(err)
	switch resource.CodeOf(err) {
	case resource.Unavailable, resource.Denied, resource.Internal, resource.Anonymous:
		m.browsing.close(point)
	}
	if rpc.Detail(err) != nil {
		return err
	}
	return &resource.Error{Code: resource.CodeOf(err), Kind: resource.KindPoint, Name: point, Reason: "BROWSE_FAILED", Message: "host " + host + ": " + err.Error(), Err: err}
}

// DownloadFiles streams files of a restore point.
func (m *Manager) DownloadFiles(ctx context.Context, req *v1.DownloadRequest, send func(*v1.DownloadResponse) error) error {
	if len(req.Paths) == 0 || len(req.Paths) > 1000 {
		return &resource.Error{Code: resource.Invalid, Kind: resource.KindPoint, Name: req.Point, Field: "paths", Reason: "OUT_OF_RANGE", Message: "1 to 1000 paths are taken"}
	}
	point, err := m.resolvePoint(req.Point)
	if err != nil {
		return err
	}
	b, node, done, err := m.browse(ctx, point)
	if err != nil {
		return err
	}
	defer done()
	st, err := node.Download(ctx, &v1.NodeDownloadRequest{Session: b.req, Paths: req.Paths})
	if err != nil {
		return m.browseFailed(point, b.host, err)
	}
	defer st.Close()
	for st.Receive() {
		if err := send(st.Msg()); err != nil {
			return err
		}
	}
	if err := st.Err(); err != nil {
		return m.browseFailed(point, b.host, err)
	}
	return nil
}
