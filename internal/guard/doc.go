// Package guard makes sense of what the datapath's guards tell: leases, further MACs, threats.
//
// # Purpose
//
// The datapath decides alone which frames pass. What it needs to know for that over time, and what people should know of it, is worked out here from its
// punts and events: which addresses DHCP gave to a port, which MACs a port asks for, and who claims what is not theirs.
//
// # Main types
//
// Leases follows DHCPv4 and DHCPv6 (RFC 2131, RFC 8415) and keeps them in a file. MACs turns frames from MACs that are not
// registered yet into requests, within the port's limit. Threats turns events into texts, fewer the longer they go on. Port is what the caller knows of a port.
//
// # Invariants
//
//   - A lease comes from a server's message that the datapath delivered to the port from a trusted place, for a MAC of the port; never from what a guest says.
//   - What a guest says ends leases of its own port alone.
//   - A port has at most MaxLeases leases; what is kept of a port grows with nothing that its guest does.
//   - Bytes of frames are hostile: none makes a parser panic or read on without end.
//
// # Lock order
//
// There are no locks: one goroutine uses each. Only OpenLeases and Save do I/O, nothing asks the time.
//
// # Not here
//
// Which frames pass (bpf/guard.h), rows (vswitch/compile), multicast groups (vswitch/snoop), who is told (host).
package guard
