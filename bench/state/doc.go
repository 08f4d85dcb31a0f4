// Command state measures the manager's state: lists, fan-out and memory with many VMs.
//
// # Purpose
//
// Part (d) of `make bench-vm`, and the manager's half of part (c). It makes a state with VMs that are only records,
// starts a real manager on it in a process of its own, and asks it through the API over its Unix socket.
//
// # Main types
//
// Result is one measured quantity with its goal.
//
// # Invariants
//
// Nothing is measured before the manager has answered once. The manager that it started never outlives it.
//
// # Lock order
//
// No locks.
//
// # Not here
//
// Real VMs, hosts and peers (the other parts of the benchmark).
package main
