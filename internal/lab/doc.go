// Package lab builds data centers out of network namespaces on one machine.
//
// # Purpose
//
// Sites with a physical switch, a router, hosts with uplinks, DHCP for guests, and
// a WAN between the sites whose delay, loss, bandwidth and cuts are set while it
// runs. For people ("drover lab") and for tests (New). See Topology for the shape:
//
//	   host namespaces          SITE-sw                    SITE-rt
//	mgmt0 ───────────── hNm ─┤ mgmt   ├─ rt-mgmt ──── mgmt0 ┐
//	up0, up1, … ────── hNuK ─┤ fabric ├─ rt-vm ─────── vm0  ├ wanK ══ daemon ══ wanK of the
//	                          both bridges with             ┘ (TUN)             other site
//	                          spanning tree, no VLAN filter
//
// # Main types
//
// Config says what to build, Topology is that with every name and address filled in,
// Lab is one that stands. WAN holds a link's parameters. Daemon is the
// process that carries the WAN and the DHCP servers. Fleet is a lab in which a manager
// and an agent for each host run, for people and for whole-system tests (NewFleet).
// Command is "drover lab".
//
// # Invariants
//
//   - Nothing of a lab ever exists in the machine's own network namespace: no link,
//     address, route, sysctl or rule.
//   - Two labs never share a namespace: all of a lab's are called drover-NAME-…,
//     and a lab's name has no dash, so that no lab's prefix is another's.
//   - A process that is not recorded by the lab and not in one of its namespaces is
//     never signalled; a recorded one only while its start time is the same.
//   - Down never needs the daemon, the maker, or a complete Up.
//   - A directory that says where something of the lab is never goes before that.
//   - The WAN never reorders packets of one direction.
//
// # Lock order
//
// The lab's lock file, then pipe.mu or leases.mu, which are leaves.
//
// # Not here
//
// What manager and agents do: they are the program's own roles, started as processes
// and spoken to by their API alone.
//
// The package is larger than most: the network, the processes in it and the story that
// is told with them are one thing to its users, and share the way down.
package lab
