// Package discovery speaks LLDP and CDP with the physical switches.
//
// # Purpose
//
// Each uplink tells the switch at the other end of the cable which host it belongs to, and hears from it which port it is in.
//
// # Main types
//
// Self is what an uplink tells; LLDP and CDP make frames of it. Parse reads frames of both kinds into a Neighbor. Table remembers one for each uplink.
//
// # Invariants
//
//   - A neighbour's words are never longer than 255 bytes and never hold what a terminal would act on.
//   - A neighbour is never shown after the time that it gave for itself.
//   - What is heard never changes how frames are sent.
//
// # Lock order
//
// There are no locks: a Table belongs to one goroutine. Time is handed in.
//
// # Not here
//
// Sending and receiving: the caller sends every Interval, and gets frames as punts of the datapath.
package discovery
