// Package qemu runs one virtual machine in one QEMU process.
//
// # Purpose
//
// From a Spec it makes QEMU's arguments, starts QEMU unprivileged and confined with everything it needs already open,
// stays its owner through crashes of the agent, and changes the running machine: disks, NICs, CD-ROMs, memory, CPUs,
// snapshots.
//
// # Main types
//
// Spec says what the machine is: plain data, kept in the state file. Plan is a Spec turned into arguments and the list
// of file descriptors that go with them. Process is a running QEMU, from Start or Adopt. LivePoint is a moment of its disks that can be read while the guest writes on.
//
// # Invariants
//
// QEMU never opens an image by name: each layer is passed as descriptors, and its backing is always stated, so a name
// inside an image header is never followed. (The socket of a remote base is opened by name: QEMU comes back to it.) Equal specs never give different arguments. A guest never gets a device at
// an address that is not in its hardware version's table. QEMU never runs as root, with supplementary groups other
// than the one that opens /dev/kvm, or without its sandbox. A pid from a state file is never touched before its start
// time was compared. A change to the machine is never reported done before QEMU (and, for an unplug, the guest) did it. A point that cannot be kept is
// lost, and never fails a guest's write.
//
// # Lock order
//
// Process.op (one operation at a time), then Process.mu (the fields). No I/O happens under mu.
//
// # Not here
//
// Making TAPs, image files and cgroup trees (the callers), hardware tables (guest), the QMP wire (qmp), the guest agent
// (qga), moving VMs between hosts (migrate), the decision which VM runs where.
package qemu
