package manager

import (
	"context"
	"net/http"
	"sync"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/pki"
	"drover/internal/resource"
	"drover/internal/rpc"
)

// nodes are the manager's connections to hosts, made when first needed.
type nodes struct {
	m *Manager

	mu   sync.Mutex
	open map[string]*node // by host name
}

type node struct {
	uid, address string
	http         *http.Client
	api          droverv1connect.NodeServiceClient
	vault        droverv1connect.VaultServiceClient
}

func newNodes(m *Manager) *nodes { return &nodes{m: m, open: map[string]*node{}} }

// of is the API of a host.
func (n *nodes) of(host string) (droverv1connect.NodeServiceClient, error) {
	c, err := n.node(host)
	if err != nil {
		return nil, err
	}
	return c.api, nil
}

// node is the connection to a host.
func (n *nodes) node(host string) (*node, error) {
	h, err := n.m.Hosts.lookup(host)
	if err != nil {
		return nil, err
	}
	addr := h.GetStatus().GetAddress()
	if addr == "" {
		return nil, &resource.Error{Code: resource.Unavailable, Kind: resource.KindHost, Name: host, Reason: "NO_ADDRESS", Message: "hasn't said where it can be reached", Remedy: "is drover host running there?"}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if c := n.open[host]; c != nil && c.uid == h.Meta.Uid && c.address == addr {
		return c, nil
	}
	cfg, err := pki.ClientConfig(pki.ClientOptions{
		Credential: n.m.identity, Trust: n.m.ca.Trust(), Peer: pki.Identity{Role: pki.RoleHost, Name: host, UID: h.Meta.Uid},
	})
	if err != nil {
		return nil, err
	}
	hc := rpc.TLSClient(cfg)
	c := &node{uid: h.Meta.Uid, address: addr, http: hc, api: droverv1connect.NewNodeServiceClient(hc, "https://"+addr, rpc.ClientOptions()...)}
	c.vault = droverv1connect.NewVaultServiceClient(hc, "https://"+addr, rpc.ClientOptions()...)
	if old := n.open[host]; old != nil {
		old.http.CloseIdleConnections()
	}
	n.open[host] = c
	return c, nil
}

// HostMetrics fetches what a host's agent has for Prometheus. The caller closes the body.
func (m *Manager) HostMetrics(ctx context.Context, host string) (*http.Response, error) {
	c, err := m.nodes.node(host)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+c.address+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, &resource.Error{Code: resource.Unavailable, Kind: resource.KindHost, Name: host, Reason: "HOST_UNREACHABLE", Message: "can't be reached: " + err.Error(), Err: err}
	}
	return res, nil
}

func (n *nodes) forget(host string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if c := n.open[host]; c != nil {
		c.http.CloseIdleConnections()
		delete(n.open, host)
	}
}

func (n *nodes) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.open {
		c.http.CloseIdleConnections()
	}
	clear(n.open)
}

// At is a VM and the API of the host that owns it.
func (m *Manager) At(name string) (*v1.VM, droverv1connect.NodeServiceClient, error) {
	vm, err := m.VMs.lookup(name)
	if err != nil {
		return nil, nil, err
	}
	owner := vm.GetStatus().GetOwner()
	if owner == "" {
		return nil, nil, &resource.Error{Code: resource.Precondition, Kind: resource.KindVM, Name: name, Reason: "NO_OWNER", Message: "no host holds it"}
	}
	node, err := m.nodes.of(owner)
	return vm, node, err
}

// atHost puts an error that came from a host, or from not reaching it, into words.
func atHost(vm *v1.VM, err error) error {
	if err == nil {
		return nil
	}
	err = rpc.FromError(err)
	if rpc.Detail(err) != nil {
		return err
	}
	if resource.CodeOf(err) == resource.Unavailable {
		return &resource.Error{Code: resource.Unavailable, Kind: resource.KindVM, Name: vm.Meta.Name, Reason: "HOST_UNREACHABLE", Message: "its host " + vm.Status.Owner + " can't be reached: " + err.Error(), Err: err}
	}
	return err
}

// ResetVM presses the reset button.
func (m *Manager) ResetVM(ctx context.Context, name string) (*v1.VM, error) {
	vm, node, err := m.At(name)
	if err != nil {
		return nil, err
	}
	_, err = node.Reset(ctx, &v1.NodeVMRequest{Operation: resource.NewUID(), Vm: name, Uid: vm.Meta.Uid, Epoch: vm.Status.Epoch})
	return vm, atHost(vm, err)
}

// Exec runs a program in the guest.
func (m *Manager) Exec(ctx context.Context, req *v1.ExecRequest) (*v1.ExecResponse, error) {
	vm, node, err := m.At(req.Name)
	if err != nil {
		return nil, err
	}
	res, err := node.Exec(ctx, &v1.NodeExecRequest{Uid: vm.Meta.Uid, Epoch: vm.Status.Epoch, Exec: req})
	return res, atHost(vm, err)
}

// Screenshot is a picture of the guest's screen.
func (m *Manager) Screenshot(ctx context.Context, name string) (*v1.ScreenshotResponse, error) {
	vm, node, err := m.At(name)
	if err != nil {
		return nil, err
	}
	res, err := node.Screenshot(ctx, &v1.NodeVMRequest{Vm: name, Uid: vm.Meta.Uid, Epoch: vm.Status.Epoch})
	return res, atHost(vm, err)
}
