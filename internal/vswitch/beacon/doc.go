// Package beacon finds uplinks that have a link but no way to the others.
//
// # Purpose
//
// A carrier says that a cable is in, not that frames get through: a switch can have lost its own uplink, or a port can be in another VLAN. The uplinks of a
// team send each other beacons; one that hears none, while others hear each other, is cut off and taken out.
//
// # Main types
//
// Beacon is one frame's content, with Encode and Parse. Monitor is the state machine of one team.
//
// # Invariants
//
//   - An uplink is never called cut off unless two others of its team hear each other: of two that don't hear each other nobody knows which one it is.
//   - A beacon of another host, of another team, or made up by a guest, never counts.
//   - Without beacons ever heard nothing is cut off: the physical network may not carry them.
//
// # Lock order
//
// There are no locks: a Monitor belongs to one goroutine. Time is handed in.
//
// # Not here
//
// What follows from it (vswitch/team), sending (hostnet.Sender).
package beacon
