package lab

import (
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
)

// Nodes that are not hosts. A node's namespace is drover-LAB-NODE.
const (
	nodeCore    = "core"    // the daemon
	nodeManager = "manager" // on the management network of the first site
)

func switchNode(site string) string { return site + "-sw" }
func routerNode(site string) string { return site + "-rt" }

// Kind is what a node stands for.
type Kind string

// The kinds of nodes.
const (
	KindCore    Kind = "core"
	KindManager Kind = "manager"
	KindSwitch  Kind = "switch"
	KindRouter  Kind = "router"
	KindHost    Kind = "host"
)

// Topology is a lab with every name and address filled in. It follows from the
// Config alone.
type Topology struct {
	Nodes []Node
	Sites []SiteNet
	Links []WANLink
}

// Node is one network namespace.
type Node struct {
	Name      string
	Kind      Kind
	Site      string       // empty for core
	Namespace string       // as "ip netns" lists it
	Address   netip.Prefix // on the management network; zero for core and switch
	Uplinks   []string     // of a host: links on the site's fabric
}

// SiteNet is a site's address plan.
type SiteNet struct {
	Name       string
	Management netip.Prefix // 10.(10+site).0.0/24: .1 router, .2 manager, .11… hosts
	Guests     netip.Prefix // 10.(100+site).0.0/16: .0.1 router, .1.0 to .254.255 by DHCP
}

// gateway is the router's address on the network p.
func gateway(p netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(p.Masked().Addr().Next(), p.Bits())
}

// WANLink joins the routers of two sites.
type WANLink struct {
	Name string // "east-west"
	A, B string // sites
	// Device is the name of the link's end in both routers.
	Device       string
	AddrA, AddrB netip.Prefix
}

func prefix(a, b, c, d byte, bits int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{a, b, c, d}), bits)
}

// namespacePrefix begins the names of all of a lab's namespaces, and of no other's.
func namespacePrefix(lab string) string { return "drover-" + lab + "-" }

func plan(c Config) Topology {
	var t Topology
	node := func(name string, kind Kind, site string) *Node {
		t.Nodes = append(t.Nodes, Node{Name: name, Kind: kind, Site: site, Namespace: namespacePrefix(c.Name) + name})
		return &t.Nodes[len(t.Nodes)-1]
	}
	node(nodeCore, KindCore, "")
	for i, s := range c.Sites {
		sn := SiteNet{
			Name:       s.Name,
			Management: prefix(10, byte(10+i), 0, 0, 24),
			Guests:     prefix(10, byte(100+i), 0, 0, 16),
		}
		t.Sites = append(t.Sites, sn)
		node(switchNode(s.Name), KindSwitch, s.Name)
		node(routerNode(s.Name), KindRouter, s.Name).Address = gateway(sn.Management)
		if i == 0 {
			node(nodeManager, KindManager, s.Name).Address = prefix(10, byte(10+i), 0, 2, 24)
		}
		for j, h := range s.Hosts {
			n := node(h.Name, KindHost, s.Name)
			n.Address = prefix(10, byte(10+i), 0, byte(11+j), 24)
			for k := range h.Uplinks {
				n.Uplinks = append(n.Uplinks, fmt.Sprintf("up%d", k))
			}
		}
		for _, other := range c.Sites[:i] {
			k := len(t.Links)
			t.Links = append(t.Links, WANLink{
				Name: other.Name + "-" + s.Name, A: other.Name, B: s.Name,
				Device: fmt.Sprintf("wan%d", k),
				AddrA:  prefix(10, 9, byte(k), 1, 30), AddrB: prefix(10, 9, byte(k), 2, 30),
			})
		}
	}
	return t
}

// Node finds a node by its name.
func (t Topology) Node(name string) (Node, error) {
	for _, n := range t.Nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return Node{}, fmt.Errorf("no node %q in the lab: see its status for the names", name)
}

// Site finds a site by its name.
func (t Topology) Site(name string) (SiteNet, error) {
	for _, s := range t.Sites {
		if s.Name == name {
			return s, nil
		}
	}
	return SiteNet{}, fmt.Errorf("no site %q in the lab", name)
}

// Hosts lists the host nodes of a site, or of all if site is empty.
func (t Topology) Hosts(site string) []Node {
	var out []Node
	for _, n := range t.Nodes {
		if n.Kind == KindHost && (site == "" || n.Site == site) {
			out = append(out, n)
		}
	}
	return out
}

// The DHCP pool within Guests, as offsets.
const (
	poolFirst = 1 << 8
	poolSize  = 254 << 8
)

// GuestAddress is the address that DHCP gives to a MAC, unless another MAC of the
// same hash came first; then it is the next free one.
func (s SiteNet) GuestAddress(mac net.HardwareAddr) netip.Addr { return s.nthChoice(mac, 0) }

// nthChoice is the address that a MAC gets if n others of its choice are taken.
func (s SiteNet) nthChoice(mac net.HardwareAddr, n uint32) netip.Addr {
	h := fnv.New32a()
	h.Write(mac)
	off := poolFirst + (h.Sum32()%poolSize+n)%poolSize
	a := s.Guests.Masked().Addr().As4()
	a[2], a[3] = byte(off>>8), byte(off)
	return netip.AddrFrom4(a)
}
