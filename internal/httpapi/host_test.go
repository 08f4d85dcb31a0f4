package httpapi

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/backup/remote"
	"drover/internal/backup/vault"
	"drover/internal/pki"
	"drover/internal/resource"
	"drover/internal/rpc"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
)

// testHost plays a host in the test's process: it joins over TLS, watches, reports, and serves NodeService, as host does; only
// its VMs are records.
type testHost struct {
	droverv1connect.UnimplementedNodeServiceHandler
	t          *testing.T
	name, uid  string
	token      pki.JoinToken
	key        crypto.Signer
	trust      *pki.Trust
	credential *pki.Credential
	manager    string
	client     *http.Client
	api        droverv1connect.AgentServiceClient
	address    string
	stop       func() // ends watching and serving, as a kill would

	mu   sync.Mutex
	vms  map[string]*v1.VM // by uid, as last told
	seen []string          // images that were told of before the VM that needs them was, in order
	ops  map[string]int    // how often each operation was really done, by "WHAT VM/SNAPSHOT"
	done map[string]bool   // operation IDs
	hold chan struct{}     // if set, operations wait for it
	fail error             // if set, operations fail
	mute bool              // reports nothing of VMs
	// status may alter what is reported of a VM.
	status func(*v1.VMReport)
	// about may alter what the host reports of itself.
	about func(*v1.HostStatus)
	sw    toldSwitch
	// content is what disks hold, by "UID/DISK".
	content map[string][]byte
	points  int // restore points that were written
}

func errorOf(err error) resource.Code { return resource.CodeOf(rpc.FromError(err)) }

func reasonOf(err error) string { return rpc.Detail(rpc.FromError(err)).GetReason() }

const (
	testSite    = "s1"
	testNetwork = "net1"
	gib         = 1 << 30
)

// site and network of all test hosts.
func (r *rig) prepare(t *testing.T) {
	t.Helper()
	_, err := r.sites().Create(t.Context(), &v1.CreateSiteRequest{Site: &v1.Site{Meta: &v1.Meta{Name: testSite}}})
	if err != nil && errorOf(err) != resource.Exists {
		t.Fatal(err)
	}
	_, err = r.networks().Create(t.Context(), &v1.CreateNetworkRequest{Network: &v1.Network{Meta: &v1.Meta{Name: testNetwork}}})
	if err != nil && errorOf(err) != resource.Exists {
		t.Fatal(err)
	}
}

// join makes a host and has it run until the test ends.
func (r *rig) join(t *testing.T, name string) *testHost {
	t.Helper()
	r.prepare(t)
	tok, err := r.hosts().CreateJoinToken(t.Context(), &v1.CreateJoinTokenRequest{Host: name, Site: testSite})
	if err != nil {
		t.Fatal(err)
	}
	h := &testHost{t: t, name: name, manager: r.address, vms: map[string]*v1.VM{}, ops: map[string]int{}, done: map[string]bool{}, sw: newTold()}
	if h.token, err = pki.ParseJoinToken(tok.Token); err != nil {
		t.Fatal(err)
	}
	if h.key, err = pki.NewKey(); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.address = l.Addr().String()
	if err := h.enrol(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.run(t, l)
	return h
}

func (h *testHost) enrol(ctx context.Context) error {
	csr, err := pki.NewRequest(h.key, h.name)
	if err != nil {
		return err
	}
	c := rpc.TLSClient(pki.PinnedConfig(h.token.CA))
	defer c.CloseIdleConnections()
	res, err := droverv1connect.NewAgentServiceClient(c, "https://"+h.manager, rpc.ClientOptions()...).Enroll(ctx, &v1.EnrollRequest{Token: h.token.Text(), Csr: csr, Hostname: h.name, Address: h.address})
	if err != nil {
		return err
	}
	if h.trust, err = pki.ParseTrust(res.Ca); err != nil {
		return err
	}
	chain, err := pki.DecodeCertificates(res.Certificate)
	if err != nil {
		return err
	}
	h.uid = res.HostUid
	if h.credential, err = pki.SaveCredential(filepath.Join(h.t.TempDir(), "host.pem"), h.key, chain); err != nil {
		return err
	}
	cfg, err := pki.ClientConfig(pki.ClientOptions{Credential: h.credential, Trust: h.trust, Peer: pki.Identity{Role: pki.RoleManager}})
	if err != nil {
		return err
	}
	h.client = rpc.TLSClient(cfg)
	h.api = droverv1connect.NewAgentServiceClient(h.client, "https://"+h.manager, rpc.ClientOptions()...)
	return nil
}

// run serves and watches until stop.
func (h *testHost) run(t *testing.T, l net.Listener) {
	t.Helper()
	cfg, err := pki.ServerConfig(pki.ServerOptions{Credential: h.credential, Trust: h.trust, RequireClient: true})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(droverv1connect.NewNodeServiceHandler(h, rpc.HandlerOptions(rpc.Errors(slog.New(slog.DiscardHandler)))...))
	vaults, err := vault.New(context.Background(), vault.Options{StateDir: t.TempDir(), CacheDir: t.TempDir(), Dial: func(a *v1.VaultAddress) (droverv1connect.VaultServiceClient, func(), error) {
		return remote.Dial(a, h.credential, h.trust)
	}})
	if err != nil {
		t.Fatal(err)
	}
	mux.Handle(vaults.Handler())
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "drover_test_host{name=%q} 1\n", h.name) })
	srv := &http.Server{Handler: mux, TLSConfig: cfg, Protocols: rpc.ServerProtocols(false), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.ServeTLS(l, "", "") })
	if err := h.hello(ctx); err != nil {
		t.Fatal(err)
	}
	synced := make(chan struct{})
	wg.Go(func() {
		for once := synced; ctx.Err() == nil; once = nil {
			h.watch(ctx, once)
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond): // as a real host, not at once again
			}
		}
	})
	var once sync.Once
	h.stop = func() {
		once.Do(func() {
			cancel()
			srv.Close()
			h.client.CloseIdleConnections()
			wg.Wait()
			_ = vaults.Close()
		})
	}
	t.Cleanup(h.stop)
	select {
	case <-synced:
	case <-time.After(20 * time.Second):
		t.Fatalf("host %s was not told the state", h.name)
	}
}

func (h *testHost) hello(ctx context.Context) error {
	st := &v1.HostStatus{
		Address: h.address, Version: "test", Cpus: 16, MemoryBytes: 64 * gib, MemoryFreeBytes: 60 * gib, Accelerator: &v1.Accelerator{Name: "tcg"},
		Networks: []*v1.HostNetwork{{Network: testNetwork, Uplink: "eth0"}},
	}
	h.mu.Lock()
	if h.about != nil {
		h.about(st)
	}
	h.mu.Unlock()
	_, err := h.api.Report(ctx, &v1.ReportRequest{
		Full:       true,
		Host:       st,
		Datastores: []*v1.DatastoreReport{{Name: "ds-" + h.name, Path: "/srv/" + h.name, Status: &v1.DatastoreStatus{Ready: true, CapacityBytes: 1 << 44, FreeBytes: 1 << 44}}},
	})
	return err
}

func (h *testHost) watch(ctx context.Context, synced chan<- struct{}) {
	st, err := h.api.Watch(ctx, &v1.AgentWatchRequest{})
	if err != nil {
		return
	}
	defer st.Close()
	for st.Receive() {
		c := st.Msg()
		h.sw.take(c)
		switch {
		case c.Kind == v1.ChangeKind_CHANGE_KIND_SYNCED:
			if synced != nil {
				close(synced)
				synced = nil
			}
			if h.hello(ctx) != nil {
				return
			}
		case c.GetImage() != nil:
			h.mu.Lock()
			h.seen = append(h.seen, c.GetImage().Meta.Name)
			h.mu.Unlock()
		case c.GetVm() != nil:
			if h.take(ctx, proto.CloneOf(c.GetVm()), c.Kind == v1.ChangeKind_CHANGE_KIND_DELETED) != nil {
				return
			}
		}
	}
}

// take brings a VM to what is wished, at once, and reports it.
func (h *testHost) take(ctx context.Context, vm *v1.VM, gone bool) error {
	h.mu.Lock()
	if gone {
		delete(h.vms, vm.Meta.Uid)
		h.mu.Unlock()
		return nil
	}
	for _, d := range vm.Spec.Disks {
		if d.Image != "" && !slices.Contains(h.seen, d.Image) {
			h.t.Errorf("VM %s came before its image %s", vm.Meta.Name, d.Image)
		}
	}
	h.vms[vm.Meta.Uid] = vm
	mute := h.mute
	h.mu.Unlock()
	if mute {
		return nil
	}
	return h.report(ctx, vm)
}

func (h *testHost) reportOf(vm *v1.VM) *v1.VMReport {
	rep := &v1.VMReport{Name: vm.Meta.Name, Uid: vm.Meta.Uid, Epoch: vm.Status.Epoch, Gone: vm.Meta.DeleteTime != nil, Status: &v1.VMStatus{
		ObservedGeneration: vm.Meta.Generation, Phase: v1.VMPhase_VM_PHASE_OFF,
	}}
	switch vm.Spec.Power {
	case v1.Power_POWER_ON:
		rep.Status.Phase = v1.VMPhase_VM_PHASE_RUNNING
	case v1.Power_POWER_PAUSED:
		rep.Status.Phase = v1.VMPhase_VM_PHASE_PAUSED
	}
	for _, d := range vm.Spec.Disks {
		rep.Status.Disks = append(rep.Status.Disks, &v1.DiskStatus{Name: d.Name, Datastore: d.Datastore, SizeBytes: max(d.SizeBytes, 1<<20)})
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.status != nil {
		h.status(rep)
	}
	return rep
}

func (h *testHost) report(ctx context.Context, vm *v1.VM) error {
	_, err := h.api.Report(ctx, &v1.ReportRequest{Vms: []*v1.VMReport{h.reportOf(vm)}})
	return err
}

// set changes how the host behaves.
func (h *testHost) set(change func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change()
}

func (h *testHost) did(what string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ops[what]
}

func (h *testHost) operate(ctx context.Context, what string, req *v1.NodeSnapshotRequest, st *connect.ServerStream[v1.NodeProgress]) error {
	h.mu.Lock()
	hold, fail := h.hold, h.fail
	vm := h.vms[req.Uid]
	if vm == nil || vm.Status.Epoch != req.Epoch {
		fail = &resource.Error{Code: resource.Conflict, Reason: "EPOCH_STALE", Message: "not this host's"}
	}
	if fail == nil && !h.done[req.Operation] {
		h.done[req.Operation] = true
		h.ops[what+" "+req.Vm+"/"+req.Snapshot]++
	}
	h.mu.Unlock()
	if err := st.Send(&v1.NodeProgress{Progress: 0.5, Step: what}); err != nil {
		return err
	}
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if fail != nil {
		return fail
	}
	return st.Send(&v1.NodeProgress{Progress: 1, Done: true, MemorySizeBytes: 42})
}

func (h *testHost) CreateSnapshot(ctx context.Context, req *v1.NodeSnapshotRequest, st *connect.ServerStream[v1.NodeProgress]) error {
	return h.operate(ctx, "create", req, st)
}

func (h *testHost) RevertSnapshot(ctx context.Context, req *v1.NodeSnapshotRequest, st *connect.ServerStream[v1.NodeProgress]) error {
	return h.operate(ctx, "revert", req, st)
}

func (h *testHost) DeleteSnapshot(ctx context.Context, req *v1.NodeSnapshotRequest, st *connect.ServerStream[v1.NodeProgress]) error {
	return h.operate(ctx, "delete", req, st)
}

func (h *testHost) Exec(_ context.Context, req *v1.NodeExecRequest) (*v1.ExecResponse, error) {
	return &v1.ExecResponse{Stdout: []byte("said by the guest")}, nil
}

// Attach echoes.
func (h *testHost) Attach(ctx context.Context, st *connect.BidiStream[v1.AttachInput, v1.AttachOutput]) error {
	for {
		m, err := st.Receive()
		if err != nil {
			return nil //nolint:nilerr // the manager hung up
		}
		if err := st.Send(&v1.AttachOutput{Data: append([]byte("> "), m.Data...)}); err != nil {
			return err
		}
	}
}

func (r *rig) networks() droverv1connect.NetworkServiceClient {
	return droverv1connect.NewNetworkServiceClient(rpc.UnixClient(r.socket), base, rpc.ClientOptions()...)
}

func (r *rig) snapshots() droverv1connect.SnapshotServiceClient {
	return droverv1connect.NewSnapshotServiceClient(rpc.UnixClient(r.socket), base, rpc.ClientOptions()...)
}

func (r *rig) images() droverv1connect.ImageServiceClient {
	return droverv1connect.NewImageServiceClient(rpc.UnixClient(r.socket), base, rpc.ClientOptions()...)
}

func (r *rig) tasks() droverv1connect.TaskServiceClient {
	return droverv1connect.NewTaskServiceClient(rpc.UnixClient(r.socket), base, rpc.ClientOptions()...)
}

// await waits until a VM is as wanted; nil stands for one that is gone.
func (r *rig) await(t *testing.T, name, what string, fits func(*v1.VM) bool) *v1.VM {
	t.Helper()
	var last *v1.VM
	err := follow(t, func(ctx context.Context, see func(*v1.VM) bool) error {
		st, err := r.vms().Watch(ctx, &v1.WatchRequest{Filter: `meta.name = "` + name + `"`})
		if err != nil {
			return err
		}
		defer st.Close()
		for st.Receive() {
			c := st.Msg()
			switch c.Kind {
			case v1.ChangeKind_CHANGE_KIND_SYNCED:
			case v1.ChangeKind_CHANGE_KIND_DELETED:
				last = nil
			default:
				last = proto.CloneOf(c.Vm)
			}
			if c.Kind == v1.ChangeKind_CHANGE_KIND_SYNCED || last == nil {
				if last == nil && see(nil) {
					return nil
				}
				continue
			}
			if see(last) {
				return nil
			}
		}
		return st.Err()
	}, fits)
	if err != nil {
		t.Fatalf("waiting until VM %s is %s: %v; it is %v", name, what, err, last)
	}
	return last
}

func follow[T any](t *testing.T, watch func(context.Context, func(T) bool) error, fits func(T) bool) error {
	ctx, stop := context.WithTimeoutCause(t.Context(), 20*time.Second, errors.New("took longer than 20 s"))
	defer stop()
	if err := watch(ctx, fits); err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	return nil
}

func isPhase(p v1.VMPhase) func(*v1.VM) bool {
	return func(vm *v1.VM) bool { return vm != nil && vm.GetStatus().GetPhase() == p }
}

func isGone(vm *v1.VM) bool { return vm == nil }

// awaitTask waits until a task has ended.
func (r *rig) awaitTask(t *testing.T, name string) *v1.Task {
	t.Helper()
	var last *v1.Task
	err := follow(t, func(ctx context.Context, see func(*v1.Task) bool) error {
		st, err := r.tasks().Watch(ctx, &v1.WatchRequest{Filter: `meta.name = "` + name + `"`})
		if err != nil {
			return err
		}
		defer st.Close()
		for st.Receive() {
			if x := st.Msg().Task; x != nil {
				if last = proto.CloneOf(x); see(last) {
					return nil
				}
			}
		}
		return st.Err()
	}, func(x *v1.Task) bool { return x.Status.State >= v1.TaskState_TASK_STATE_SUCCEEDED })
	if err != nil {
		t.Fatalf("waiting for task %s: %v; it is %v", name, err, last)
	}
	return last
}

// vm creates a small VM.
func (r *rig) vm(t *testing.T, name string, change ...func(*v1.VM)) *v1.VM {
	t.Helper()
	vm := &v1.VM{Meta: &v1.Meta{Name: name}, Spec: &v1.VMSpec{MemoryBytes: 64 << 20, Disks: []*v1.DiskSpec{{Name: "root", SizeBytes: 1 << 20}}, Nics: []*v1.NICSpec{{Name: "n0", Network: testNetwork}}}}
	for _, c := range change {
		c(vm)
	}
	made, err := r.vms().Create(t.Context(), &v1.CreateVMRequest{Vm: vm})
	if err != nil {
		t.Fatalf("create VM %s: %v", name, err)
	}
	return made
}
