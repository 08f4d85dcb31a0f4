package httpapi

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/rpc"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
)

// toldSwitch is what a test host was told of the switch.
type toldSwitch struct {
	*sync.Mutex
	changed  chan struct{} // closed and replaced on every change
	profiles map[string]*v1.PortProfile
	peers    map[string]*v1.Peer
	regs     map[string]*v1.Registration
	networks map[string]*v1.Network
	// early is whether a whole batch came before SYNCED; fulls counts whole batches.
	early, synced bool
	fulls         int
}

func newTold() toldSwitch {
	return toldSwitch{Mutex: new(sync.Mutex), changed: make(chan struct{}), profiles: map[string]*v1.PortProfile{}, peers: map[string]*v1.Peer{}, regs: map[string]*v1.Registration{}, networks: map[string]*v1.Network{}}
}

func (x *toldSwitch) take(c *v1.AgentChange) {
	x.Lock()
	defer x.Unlock()
	gone := c.Kind == v1.ChangeKind_CHANGE_KIND_DELETED
	switch {
	case c.Kind == v1.ChangeKind_CHANGE_KIND_SYNCED:
		x.synced = true
	case c.GetProfile() != nil && gone:
		delete(x.profiles, c.GetProfile().Meta.Name)
	case c.GetProfile() != nil:
		x.profiles[c.GetProfile().Meta.Name] = proto.CloneOf(c.GetProfile())
	case c.GetPeer() != nil && gone:
		delete(x.peers, c.GetPeer().Host)
	case c.GetPeer() != nil:
		x.peers[c.GetPeer().Host] = proto.CloneOf(c.GetPeer())
	case c.GetNetwork() != nil:
		x.networks[c.GetNetwork().Meta.Name] = proto.CloneOf(c.GetNetwork())
	case c.GetRegistrations() != nil:
		b := c.GetRegistrations()
		if b.Full {
			clear(x.regs)
			x.fulls++
			x.early = x.early || !x.synced
		}
		for _, r := range b.Set {
			x.regs[fmt.Sprintf("%d/%s", r.Vni, r.Mac)] = proto.CloneOf(r)
		}
		for _, key := range b.Removed {
			delete(x.regs, key)
		}
	default:
		return
	}
	close(x.changed)
	x.changed = make(chan struct{})
}

// until waits until what the host was told is as wanted.
func (h *testHost) until(t *testing.T, what string, fits func(*toldSwitch) bool) {
	t.Helper()
	end := time.After(10 * time.Second)
	for {
		h.sw.Lock()
		ok, changed := fits(&h.sw), h.sw.changed
		h.sw.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-end:
			h.sw.Lock()
			defer h.sw.Unlock()
			t.Fatalf("host %s was not told %s; it has registrations %v, peers %v, profiles %v", h.name, what, h.sw.regs, h.sw.peers, h.sw.profiles)
		}
	}
}

// registered says which registration a port has, of its own MAC.
func (x *toldSwitch) registered(port string) *v1.Registration {
	for _, r := range x.regs {
		if r.Port == port && (r.Mac[:8] == "52:54:00") {
			return r
		}
	}
	return nil
}

func (h *testHost) reportPort(t *testing.T, vm *v1.VM, nic string, st *v1.PortStatus) {
	t.Helper()
	if _, err := h.api.Report(t.Context(), &v1.ReportRequest{Ports: []*v1.PortReport{{Name: vm.Meta.Name + "/" + nic, Uid: vm.Meta.Uid, Epoch: vm.Status.Epoch, Status: st}}}); err != nil {
		t.Fatal(err)
	}
}

// say has the host report anew what it is.
func (h *testHost) say(t *testing.T, about func(*v1.HostStatus)) {
	t.Helper()
	h.set(func() { h.about = about })
	if err := h.hello(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (h *testHost) Capture(_ context.Context, req *v1.CapturePortRequest, st *connect.ServerStream[v1.CapturePortResponse]) error {
	for i := range 3 {
		if err := st.Send(&v1.CapturePortResponse{Data: []byte(req.Name), Frames: int64(i)}); err != nil {
			return err
		}
	}
	return nil
}

func (h *testHost) Trace(_ context.Context, req *v1.TracePortRequest) (*v1.TracePortResponse, error) {
	return &v1.TracePortResponse{Verdict: "DROPPED", Reason: "ARP", Frame: h.name + " " + req.Describe}, nil
}

func (h *testHost) Table(_ context.Context, req *v1.SwitchTableRequest, st *connect.ServerStream[v1.SwitchTableResponse]) error {
	return st.Send(&v1.SwitchTableResponse{Entries: []*v1.TableEntry{{Network: req.Network, Target: h.name}}})
}

func (r *rig) profiles() droverv1connect.PortProfileServiceClient {
	return droverv1connect.NewPortProfileServiceClient(rpc.UnixClient(r.socket), base, rpc.ClientOptions()...)
}

func (r *rig) ports() droverv1connect.PortServiceClient {
	return droverv1connect.NewPortServiceClient(rpc.UnixClient(r.socket), base, rpc.ClientOptions()...)
}

func (r *rig) switches() droverv1connect.SwitchServiceClient {
	return droverv1connect.NewSwitchServiceClient(rpc.UnixClient(r.socket), base, rpc.ClientOptions()...)
}

func (r *rig) nics() droverv1connect.NICServiceClient {
	return droverv1connect.NewNICServiceClient(rpc.UnixClient(r.socket), base, rpc.ClientOptions()...)
}

func (r *rig) profile(t *testing.T, name string, spec *v1.PortProfileSpec) *v1.PortProfile {
	t.Helper()
	p, err := r.profiles().Create(t.Context(), &v1.CreatePortProfileRequest{Profile: &v1.PortProfile{Meta: &v1.Meta{Name: name}, Spec: spec}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (r *rig) network(t *testing.T, name string, spec *v1.NetworkSpec) *v1.Network {
	t.Helper()
	n, err := r.networks().Create(t.Context(), &v1.CreateNetworkRequest{Network: &v1.Network{Meta: &v1.Meta{Name: name}, Spec: spec}})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
