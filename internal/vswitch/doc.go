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
// Datapath is what Open returns. Apply brings it to new tables, Register to new registrations alone, Attach puts it on a device. Events, Punts and Capture read its
// rings, Try runs a program on one frame.
//
// # Invariants
//
//   - A link or map that is not below the datapath's own directory is never touched.
//   - A row of ports is never there without what it refers to: it is written after all of it and removed before it. A process that is killed leaves a port
//     whole, or without its row.
//   - A program that passes frames is never detached to be replaced: its link is updated.
//   - Maps of another layout are never written, and never removed while a link may use them.
//   - A member of a network keeps its row in the flood list while others come and go: no flood sends twice or misses one who stays.
//   - A pinned link is never taken for that of a device which has got the same index.
//   - A ring never has two readers.
//   - Copies for captures are never made with nobody to look: Close and Open switch them off.
//
// # Lock order
//
// Datapath.life, then Datapath.mu, then rings.mu. mu guards the copy of what the maps hold and orders all who write maps: system calls are made under it, since the
// copy and the maps must not differ. Callbacks are called without any of them.
//
// # Not here
//
// What the tables should be (vswitch/compile), links and addresses (hostnet), what punts mean (guard, vswitch/…).
package vswitch
