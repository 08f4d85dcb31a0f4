// Package vswitch loads and keeps a host's datapath: the eBPF programs of bpf/, their maps and their links.
//
// # Purpose
//
// The only door to the kernel's eBPF. It makes maps and programs, pins them so that they outlive the agent, brings their content to what
// is wanted (table.Tables) in an order in which no port ever passes a frame before its whole policy is there, attaches ports, uplinks and the
// tunnel device, and reads counters, events, punts and captures.
//
// # Main types
//
// Datapath is what Open returns.
//
// # Invariants
//
//   - A link or map that is not below the datapath's own directory is never touched.
//   - A row of ports is written after everything it refers to and removed before it.
//   - A program that passes frames is never detached to be replaced: its link is updated.
//
// # Lock order
//
// Datapath.mu guards the copy of the tables; nothing else is locked under it.
//
// # Not here
//
// What the tables should be (vswitch/compile), links and addresses (hostnet), what punts mean (guard, vswitch/…).
package vswitch
