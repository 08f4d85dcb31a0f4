// Package erspan sends copies of a port's frames to an analyser: ERSPAN type II in GRE.
//
// # Purpose
//
// A mirror whose target is not a port of the same host is an address. The datapath copies frames into its capture ring; this wraps each as switches do
// (draft-foschiano-erspan, RFC 2784, RFC 2890) and sends it.
//
// # Main types
//
// Encode makes a packet's payload of a table.Capture. Sender sends to one address in one session.
//
// # Invariants
//
//   - A sender never waits for the network: what does not fit is lost, and the numbers of the packets show it.
//   - A frame of which the datapath kept only the beginning is marked as cut.
//
// # Lock order
//
// There are no locks: a Sender belongs to one goroutine.
//
// # Not here
//
// Which frames are mirrored (the datapath), mirrors to ports of this host.
package erspan
