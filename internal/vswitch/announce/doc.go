// Package announce makes the frames that tell a network where a VM is now.
//
// # Purpose
//
// After a VM moved, or its frames leave by another uplink, physical switches still send to the old place until they see a frame from its MAC.
// The host sends such frames itself, at once: RARP, which any switch learns from, ARP for its IPv4 and neighbour advertisements for its IPv6 addresses.
//
// # Main types
//
// Subject is a VM's MAC with its addresses; Frames is what to send; Delays is when.
//
// # Invariants
//
//   - A frame never claims an address that the caller did not name.
//   - A neighbour advertisement never takes the router flag away from a router: its neighbours would forget their routes.
//
// # Lock order
//
// There are no locks and no I/O.
//
// # Not here
//
// Who moved, and sending (host, hostnet.Sender).
package announce
