package host_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/clock"
	"drover/internal/pki"
	"drover/internal/resource"
	"drover/internal/rpc"
)

// fakeManager serves AgentService over real TLS from memory: it stands for the manager package, which this one must
// not import.
type fakeManager struct {
	droverv1connect.UnimplementedAgentServiceHandler
	t     testing.TB
	ca    *pki.CA
	cred  *pki.Credential
	addr  string
	token pki.JoinToken
	srv   *http.Server
	host  string
	uid   string

	mu      sync.Mutex
	vms     map[string]*v1.VM
	objects []*v1.AgentChange
	files   map[string]string // image SHA-256 to path
	changed chan struct{}     // closed and made anew at each change
	status  map[string]*v1.VMReport
	ports   map[string]*v1.PortReport
	hostSt  *v1.HostStatus
	events  []*v1.Event
	samples []*v1.Sample
	enrols  int
	streams int
	fail    error // what Report answers

	cutAfter int64    // the next download of a qcow2 ends after this
	ranges   []string // that downloads of qcow2 asked for
}

func newManager(t testing.TB, dir string) *fakeManager {
	t.Helper()
	m := &fakeManager{
		t: t, host: "h1", uid: resource.NewUID(), vms: map[string]*v1.VM{}, files: map[string]string{}, status: map[string]*v1.VMReport{},
		changed: make(chan struct{}), ports: map[string]*v1.PortReport{},
	}
	var err error
	if m.ca, err = pki.Open(filepath.Join(dir, "ca"), clock.Real()); err != nil {
		t.Fatal(err)
	}
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := m.ca.Issue(key.Public(), pki.Grant{Identity: pki.Identity{Role: pki.RoleManager, Name: "manager", UID: resource.NewUID()}})
	if err != nil {
		t.Fatal(err)
	}
	if m.cred, err = pki.SaveCredential(filepath.Join(dir, "manager.pem"), key, chain); err != nil {
		t.Fatal(err)
	}
	m.listen("127.0.0.1:0")
	if m.token, err = pki.NewJoinToken(m.ca.Fingerprint(), []string{m.addr}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.stop)
	return m
}

func (m *fakeManager) listen(addr string) {
	m.t.Helper()
	conf, err := pki.ServerConfig(pki.ServerOptions{Credential: m.cred, Trust: m.ca.Trust()})
	if err != nil {
		m.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(droverv1connect.NewAgentServiceHandler(m, rpc.HandlerOptions()...))
	mux.HandleFunc("GET /images/{sum}", func(w http.ResponseWriter, r *http.Request) {
		m.mu.Lock()
		path, ok := m.files[r.PathValue("sum")]
		cut := m.cutAfter
		if strings.HasSuffix(path, ".qcow2") {
			m.cutAfter = 0
			m.ranges = append(m.ranges, r.Header.Get("Range"))
		} else {
			cut = 0
		}
		m.mu.Unlock()
		if !ok {
			http.NotFound(w, r)
			return
		}
		if cut > 0 {
			w = &cutWriter{w, cut}
		}
		http.ServeFile(w, r, path)
	})
	l, err := net.Listen("tcp", addr)
	if err != nil {
		m.t.Fatal(err)
	}
	m.addr = l.Addr().String()
	m.srv = &http.Server{Handler: mux, TLSConfig: conf, Protocols: rpc.ServerProtocols(false)}
	srv := m.srv
	go func() { _ = srv.ServeTLS(l, "", "") }()
}

func (m *fakeManager) stop() { _ = m.srv.Close() }

func (m *fakeManager) bump() {
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *fakeManager) Enroll(_ context.Context, req *v1.EnrollRequest) (*v1.EnrollResponse, error) {
	if req.GetToken() != m.token.Text() {
		return nil, connect.NewError(connect.CodePermissionDenied, pki.ErrJoinRefused)
	}
	m.mu.Lock()
	m.enrols++
	m.mu.Unlock()
	chain, err := m.ca.IssueRequest(req.GetCsr(), pki.Grant{
		Identity: pki.Identity{Role: pki.RoleHost, Name: m.host, UID: m.uid}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
	if err != nil {
		return nil, err
	}
	return &v1.EnrollResponse{
		Certificate: pki.EncodeCertificates(chain...), Ca: m.ca.Trust().PEM(), Host: m.host, HostUid: m.uid, Site: "s1",
	}, nil
}

func (m *fakeManager) Watch(ctx context.Context, _ *v1.AgentWatchRequest, stream *connect.ServerStream[v1.AgentChange]) error {
	m.mu.Lock()
	m.streams++
	m.mu.Unlock()
	sent := map[string]*v1.VM{}
	objects := 0
	synced := false
	for {
		m.mu.Lock()
		changed := m.changed
		var out []*v1.AgentChange
		out = append(out, m.objects[objects:]...)
		objects = len(m.objects)
		for uid, vm := range m.vms {
			if !proto.Equal(sent[uid], vm) {
				out = append(out, &v1.AgentChange{Kind: v1.ChangeKind_CHANGE_KIND_MODIFIED, Object: &v1.AgentChange_Vm{Vm: proto.CloneOf(vm)}})
				sent[uid] = proto.CloneOf(vm)
			}
		}
		for uid, vm := range sent {
			if m.vms[uid] == nil {
				out = append(out, &v1.AgentChange{Kind: v1.ChangeKind_CHANGE_KIND_DELETED, Object: &v1.AgentChange_Vm{Vm: vm}})
				delete(sent, uid)
			}
		}
		m.mu.Unlock()
		if !synced {
			out = append(out, &v1.AgentChange{Kind: v1.ChangeKind_CHANGE_KIND_SYNCED})
			synced = true
		}
		for _, c := range out {
			if err := stream.Send(c); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (m *fakeManager) Report(_ context.Context, req *v1.ReportRequest) (*v1.ReportResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return nil, m.fail
	}
	res := &v1.ReportResponse{Interval: durationpb.New(time.Second)}
	for _, r := range req.GetVms() {
		vm := m.vms[r.GetUid()]
		if vm == nil || vm.GetStatus().GetEpoch() != r.GetEpoch() || vm.GetStatus().GetOwner() != m.host {
			res.Stale = append(res.Stale, r.GetName())
		} else if r.GetGone() {
			delete(m.vms, r.GetUid())
		} else if r.GetGuestOff() && vm.GetMeta().GetGeneration() == r.GetStatus().GetObservedGeneration() {
			vm.Spec.Power = v1.Power_POWER_OFF
			vm.Meta.Generation++
		}
		m.status[r.GetUid()] = r
	}
	for _, p := range req.GetPorts() {
		m.ports[p.GetName()] = p
	}
	if req.GetHost() != nil {
		m.hostSt = req.GetHost()
	}
	m.events = append(m.events, req.GetEvents()...)
	m.samples = append(m.samples, req.GetSamples()...)
	m.bump()
	return res, nil
}

// put tells the host of objects.
func (m *fakeManager) put(cs ...*v1.AgentChange) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.objects = append(m.objects, cs...)
	m.bump()
}

// image publishes a file as an image.
func (m *fakeManager) image(name, path string, kind v1.ImageKind) {
	m.t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		m.t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	m.mu.Lock()
	m.files[hex.EncodeToString(sum[:])] = path
	m.mu.Unlock()
	m.put(&v1.AgentChange{Kind: v1.ChangeKind_CHANGE_KIND_ADDED, Object: &v1.AgentChange_Image{Image: &v1.Image{
		Meta: &v1.Meta{Name: name}, Spec: &v1.ImageSpec{Kind: kind},
		Status: &v1.ImageStatus{Phase: v1.ImagePhase_IMAGE_PHASE_READY, Sha256: hex.EncodeToString(sum[:]), SizeBytes: int64(len(data))},
	}}})
}

// vm gives the host a VM and returns its uid.
func (m *fakeManager) vm(name string, spec *v1.VMSpec) string {
	uid := resource.NewUID()
	vm := &v1.VM{Meta: &v1.Meta{Name: name, Uid: uid, Generation: 1}, Spec: spec, Status: &v1.VMStatus{Owner: m.host, Epoch: 1}}
	resource.DefaultVM(vm, nil)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.vms[uid] = vm
	m.bump()
	return uid
}

// edit changes a VM and counts a generation.
func (m *fakeManager) edit(uid string, change func(*v1.VM)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(m.vms[uid])
	m.vms[uid].Meta.Generation++
	m.bump()
}

func (m *fakeManager) power(uid string, p v1.Power, grace ...time.Duration) {
	m.edit(uid, func(vm *v1.VM) {
		vm.Spec.Power = p
		vm.Spec.StopGrace = nil
		if len(grace) > 0 {
			vm.Spec.StopGrace = durationpb.New(grace[0])
		}
	})
}

func (m *fakeManager) remove(uid string) {
	m.edit(uid, func(vm *v1.VM) { vm.Meta.DeleteTime = timestamppb.Now() })
}

// await waits until a VM's report fits.
func (m *fakeManager) await(uid, what string, within time.Duration, fits func(*v1.VMReport) bool) *v1.VMReport {
	m.t.Helper()
	var last *v1.VMReport
	m.until(what, within, func() string {
		return fmt.Sprint("last report: ", short(last), "; events: ", m.eventText())
	}, func() bool {
		last = m.status[uid]
		return last != nil && fits(last)
	})
	return last
}

func (m *fakeManager) awaitPhase(uid string, within time.Duration, p v1.VMPhase) *v1.VMReport {
	m.t.Helper()
	return m.await(uid, p.String(), within, func(r *v1.VMReport) bool { return r.GetStatus().GetPhase() == p })
}

// until waits for a condition that a report can make true. fits is called with the lock held.
func (m *fakeManager) until(what string, within time.Duration, say func() string, fits func() bool) {
	m.t.Helper()
	deadline := time.After(within)
	for {
		m.mu.Lock()
		ok := fits()
		changed := m.changed
		m.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			m.mu.Lock()
			defer m.mu.Unlock()
			m.t.Fatalf("after %v still not: %s; %s", within, what, say())
		}
	}
}

func (m *fakeManager) awaitEvent(reason string, within time.Duration) {
	m.t.Helper()
	m.until("event "+reason, within, m.eventText, func() bool {
		for _, e := range m.events {
			if e.GetReason() == reason {
				return true
			}
		}
		return false
	})
}

func (m *fakeManager) eventText() string {
	var out []string
	for _, e := range m.events {
		out = append(out, e.GetReason()+": "+e.GetMessage())
	}
	return strings.Join(out, "; ")
}

func short(r *v1.VMReport) string {
	b, _ := json.Marshal(r)
	return string(b)
}

// node is a client of the host's own API.
func (m *fakeManager) node(addr string) droverv1connect.NodeServiceClient {
	m.t.Helper()
	conf, err := pki.ClientConfig(pki.ClientOptions{
		Credential: m.cred, Trust: m.ca.Trust(), Peer: pki.Identity{Role: pki.RoleHost, Name: m.host, UID: m.uid},
	})
	if err != nil {
		m.t.Fatal(err)
	}
	c := rpc.TLSClient(conf)
	m.t.Cleanup(c.CloseIdleConnections)
	return droverv1connect.NewNodeServiceClient(c, "https://"+addr, rpc.ClientOptions()...)
}

// hostAddress waits until the host has said where it is.
func (m *fakeManager) hostAddress() string {
	m.t.Helper()
	m.until("the host's heartbeat", 60*time.Second, m.eventText, func() bool { return m.hostSt != nil })
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.hostSt.GetAddress()
}
