package vswitch

import "github.com/vishvananda/netlink"

// addLink makes a device with an index.
func addLink(name string, index int) error {
	l := netlink.NewVeth(netlink.LinkAttrs{Name: name, Index: index, TxQLen: -1})
	l.PeerName = name + "-peer"
	return netlink.LinkAdd(l)
}
