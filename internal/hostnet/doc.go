// Package hostnet makes, finds and removes network links, addresses, routes and
// network namespaces of the machine.
//
// # Purpose
//
// Everything that Drover asks of the kernel's network goes through here: TAPs for
// guests, the VXLAN device, veth pairs, uplinks, queues, counters, facts about
// physical NICs, frames sent by hand. Every
// change is idempotent: asking for what already is changes nothing; what was
// really changed is pushed on the caller's unwind.Stack, which may be nil.
//
// # Main types
//
// Net is one network namespace seen from outside it. TAP, VXLAN and Veth say what
// a link should be; Link says what is. Mark is how links of ours are told from
// others: it is kept in the link's alias (ifalias), so it survives us.
//
// # Invariants
//
//   - A link without our Mark is never deleted or changed into another kind; a
//     physical NIC is only ever attached, detached, set up, and given an MTU, a queue
//     of ours, and promiscuous mode.
//   - The main thread of the process never changes its namespace, and a thread that
//     cannot be brought back to its namespace never runs other Go code.
//   - A TAP never keeps a virtio header flag that its adapter does not use: a TAP
//     whose flags differ is remade, not changed.
//   - A name longer than the kernel's 15 bytes never reaches the kernel.
//
// # Lock order
//
// There are no locks. A Net may be used from several goroutines.
//
// # Not here
//
// Forwarding policy, tunnels and eBPF (vswitch), and which links a host should
// have (host, lab).
package hostnet
