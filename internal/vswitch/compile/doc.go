// Package compile turns what the manager said, and the devices of this host, into the rows of the datapath.
//
// # Purpose
//
// One pure function from desired state to table.Tables. Nothing here looks at the kernel: what the host found out is in the input. Whatever can't be
// put into rows is told as a Problem, and never guessed.
//
// # Main types
//
// Input and Compile, which gives a Result. View is the input without its registrations, prepared: it places single registrations, so that one
// that comes needs no whole compile.
//
// # Invariants
//
//   - Equal input gives equal output, in whatever order its lists are.
//   - No row of fdb is for a MAC that is neither registered nor a local port's own or granted.
//   - A port whose policy is not whole gets no row in ports, so that it passes nothing.
//   - An encrypted network's frames never get a way to another site that is not encrypted, and none is believed from an end there that is not.
//
// # Lock order
//
// There are no locks.
//
// # Not here
//
// Writing rows (vswitch), which uplink a bucket names (vswitch/team), leases and grants (guard), who is told what (manager).
package compile
