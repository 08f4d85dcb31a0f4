// Package placement decides on which host a VM runs and on which datastores
// its disks lie.
//
// # Purpose
//
// From a picture of the hosts and a request it ranks the hosts that fit and
// says of every other one, in words for its user, why not. [PlaceAll] plans a
// whole set, as for an evacuation, before anything moves. By default VMs are
// spread; [Options] can pack them instead.
//
// # Main types
//
// [Host], [Request] and [Term] go in; [Result], [Candidate] and [Rejection], or
// a [Plan], come out.
//
// # Invariants
//
// The package never does I/O, starts a goroutine, reads a clock or draws a
// random number: the same input gives the same answer. No answer ever takes a
// host or a datastore over its capacity, puts a VM on a host that is not ready,
// or breaks a hard rule, be it the VM's own or that of a VM which is there
// already. Of two equal hosts the one first by name wins.
//
// # Lock order
//
// No locks; a call shares nothing with another.
//
// # Not here
//
// What counts as allocated (the caller sums up; a stopped VM may count or not),
// and that a plan is still right when it is carried out: the manager commits an
// owner by compare-and-swap. PlaceAll does not reuse what the VMs that it moves
// leave behind, since they leave after they have arrived. It searches back only
// within VMs that must be together, so that it may miss a plan that exists when
// hosts are nearly full; it never makes a wrong one.
package placement
