// Package fault has the test of what random faults do to the whole system.
//
// # Purpose
//
// VMs are made, changed and deleted by several users at once while manager, agents and QEMUs are killed at random points.
// Afterwards, with all processes up again, what the API says and what runs must agree, and when all VMs are deleted nothing
// of them may be left.
//
// # Main types
//
// user makes random calls on VMs of its own. killer ends processes and starts them again. watcher looks for VMs that run twice.
//
// # Invariants
//
// The seed is always printed, and the environment's DROVER_SEED begins with the same choices again. Which call a kill
// meets is up to the machine. A fault that an assertion finds is never explained away by a kill.
//
// # Lock order
//
// No locks.
//
// # Not here
//
// Single faults with a known outcome: package e2e.
package fault
