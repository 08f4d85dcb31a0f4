package lab

import (
	"context"
	"errors"
	"fmt"

	"drover/internal/hostnet"
	"drover/internal/unwind"
)

// The two bridges of a switch namespace.
const (
	bridgeManagement = "mgmt"
	bridgeFabric     = "fabric"
)

// Links in host, manager and router namespaces.
const (
	linkManagement = "mgmt0"
	linkGuests     = "vm0" // the router's, on the guests' network
)

// fabric builds namespaces and links. It owns nothing once built: the kernel does.
type fabric struct {
	cfg  Config
	topo Topology
	nets map[string]*hostnet.Net // by node
}

// build makes all that is missing. It changes nothing of what stands.
func build(ctx context.Context, u *unwind.Stack, c Config, t Topology) (err error) {
	f := &fabric{cfg: c, topo: t, nets: map[string]*hostnet.Net{}}
	defer func() {
		for _, n := range f.nets {
			err = errors.Join(err, n.Close())
		}
	}()
	for _, n := range t.Nodes {
		if err := hostnet.CreateNamespace(u, n.Namespace); err != nil {
			return err
		}
		if f.nets[n.Name], err = hostnet.Open(n.Namespace); err != nil {
			return err
		}
	}
	for i, s := range t.Sites {
		if err := f.site(ctx, i, s); err != nil {
			return fmt.Errorf("site %s: %w", s.Name, err)
		}
	}
	return nil
}

func (f *fabric) mark(node, link string) hostnet.Mark {
	return hostnet.Mark{Kind: "lab", ID: f.cfg.Name + "/" + node + "/" + link}
}

// cable is one veth from a switch port to a node.
type cable struct {
	port, bridge string // on the switch
	node, link   string
}

func (f *fabric) cables(i int, s SiteNet) []cable {
	rt := routerNode(s.Name)
	out := []cable{
		{"rt-mgmt", bridgeManagement, rt, linkManagement},
		{"rt-vm", bridgeFabric, rt, linkGuests},
	}
	if i == 0 {
		out = append(out, cable{"manager", bridgeManagement, nodeManager, linkManagement})
	}
	for j, h := range f.topo.Hosts(s.Name) {
		out = append(out, cable{fmt.Sprintf("h%dm", j+1), bridgeManagement, h.Name, linkManagement})
		for k, up := range h.Uplinks {
			out = append(out, cable{uplinkPortName(j, k), bridgeFabric, h.Name, up})
		}
	}
	return out
}

func (f *fabric) site(ctx context.Context, i int, s SiteNet) error {
	swName := switchNode(s.Name)
	sw := f.nets[swName]
	for _, br := range []string{bridgeManagement, bridgeFabric} {
		if err := sw.EnsureBridge(nil, hostnet.Bridge{Name: br, Mark: f.mark(swName, br), MTU: f.cfg.MTU}); err != nil {
			return err
		}
	}
	var ports []string
	for _, c := range f.cables(i, s) {
		if err := f.plug(sw, swName, c); err != nil {
			return err
		}
		ports = append(ports, c.port)
	}
	// A port that forwards already goes on when the tree is turned on, so wait.
	if err := sw.WaitUp(ctx, ports...); err != nil {
		return err
	}
	for _, br := range []string{bridgeManagement, bridgeFabric} {
		if err := sw.SetSTP(br, true, forwardDelay); err != nil {
			return err
		}
	}
	return f.addresses(i, s)
}

// plug lays a cable. A host may have put its uplink on a bridge or taken it down;
// that is its own business when the cable is there already.
func (f *fabric) plug(sw *hostnet.Net, swName string, c cable) error {
	end := f.nets[c.node]
	_, err := sw.Link(c.port)
	fresh := errors.Is(err, hostnet.ErrNotFound)
	err = sw.EnsureVeth(nil, end, hostnet.Veth{
		A: c.port, MarkA: f.mark(swName, c.port),
		B: c.link, MarkB: f.mark(c.node, c.link), MTU: f.cfg.MTU,
	})
	if err != nil {
		return err
	}
	if err := errors.Join(sw.Attach(nil, c.bridge, c.port), sw.SetUp(c.port, true)); err != nil {
		return err
	}
	if !fresh {
		if l, err := end.Link(c.link); err != nil || l.Up {
			return err
		}
	}
	return end.SetUp(c.link, true)
}

func (f *fabric) addresses(i int, s SiteNet) error {
	router := f.nets[routerNode(s.Name)]
	err := errors.Join(
		router.EnsureAddress(nil, linkManagement, gateway(s.Management)),
		router.EnsureAddress(nil, linkGuests, gateway(s.Guests)),
		router.SetSysctl("ipv4.ip_forward", "1"),
	)
	if err != nil {
		return err
	}
	nodes := f.topo.Hosts(s.Name)
	if i == 0 {
		m, err := f.topo.Node(nodeManager)
		if err != nil {
			return err
		}
		nodes = append(nodes, m)
	}
	for _, n := range nodes {
		end := f.nets[n.Name]
		if err := end.EnsureAddress(nil, linkManagement, n.Address); err != nil {
			return err
		}
		if err := end.EnsureRoute(nil, prefix(0, 0, 0, 0, 0), gateway(s.Management).Addr()); err != nil {
			return err
		}
	}
	return nil
}
