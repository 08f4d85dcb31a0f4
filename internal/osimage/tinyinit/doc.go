// Command tinyinit is process 1 of the tiny test guest.
//
// # Purpose
//
// It turns a kernel and an initramfs into a guest that a test can talk to: it loads drivers, configures the
// network, and serves what a test wants to ask of a running machine. Only its source is part of drover; it is compiled
// when an image is built, outside of any module, so it uses the standard library alone.
//
// # Main types
//
//   - machine: what the parts share (hostname, NICs, the console).
//   - modules: the drivers that the image carries, loaded when a device asks for them.
//   - netif: one NIC, from its link to its address.
//   - agent: the QEMU guest agent protocol on a virtio port.
//   - server: HTTP on port 80 and echo on port 7.
//
// # Invariants
//
//   - Nothing is printed on the console before "drover-tiny: init".
//   - "drover-tiny: ready" is never printed twice, and never before HTTP listens.
//   - Nothing polls: an idle guest never uses the CPU.
//   - Nothing that comes from a seed, a lease, a request or the agent's port ends the process.
//
// # Lock order
//
// machine.mu and procs.mu are leaves: nothing is locked, and no I/O done, under them.
//
// # Not here
//
// Building the image: package osimage.
package main
