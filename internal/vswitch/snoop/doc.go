// Package snoop knows which ports listen to which multicast groups.
//
// # Purpose
//
// Multicast goes to members of its group only. Who is one the guests say in IGMP (RFC 1112, 2236, 3376) and MLD (RFC 2710, 3810) messages, of which the
// datapath punts copies. Where no router asks them, the host asks its own guests (RFC 4541).
//
// # Main types
//
// Parse reads a frame into a Message. Snooper is the state machine of all networks of a host: it takes messages, ports and the time, and gives rows for the
// datapath and queries to send.
//
// # Invariants
//
//   - A port never has more than MaxGroups groups: a guest can't take the others' space.
//   - A query of a port that may not be a router changes nothing: a guest can't get all multicast, nor silence the querier, by asking.
//   - Queries of ours never leave the host: each host asks its own guests.
//   - A member whose own report was kept back because it heard another's is not forgotten: a report of an old version keeps all members of its group.
//
// # Lock order
//
// There are no locks: a Snooper belongs to one goroutine. Time is handed in.
//
// # Not here
//
// Forwarding (the datapath), sending queries (the agent). Sources of source-specific groups: a group is a group.
package snoop
