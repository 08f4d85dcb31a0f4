// Package inet has the few sums and addresses that frames written by hand need.
//
// # Purpose
//
// Checksums of RFC 1071, and Ethernet addresses of multicast groups.
//
// # Main types
//
// None: functions.
//
// # Invariants
//
// Nothing here does I/O.
//
// # Lock order
//
// No locks.
//
// # Not here
//
// Parsing of frames (vswitch/frame, vswitch/snoop).
package inet
