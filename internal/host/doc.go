// Package host is the role `drover host`: the agent that runs virtual machines on one machine.
//
// # Purpose
//
// The agent joins a manager with a one-time token, is told which VMs are its own (and with which epoch), and brings
// each of them to what its spec says: disks, seed, TAPs, the QEMU process, power, hot changes, snapshots, removal. It
// tells the manager what it observes. It goes on without the manager from its copy of what it was told, and QEMU goes
// on without the agent, which adopts it again when it starts.
//
// # Main types
//
// [Config] and [Run] are the door. Inside: identity (the certificate), world (what the manager wants, kept on disk),
// machine (one VM's actor: it observes, asks plan for the next step, does it), reporter (heartbeats and what changed),
// console (the serial ring and its viewers), fabric (this host's part of the switch: ports, uplinks, tunnels, and what the
// datapath tells), node (the API that the manager calls), backupJob (one restore point in the making), track (what is known of the
// changes to a disk), openPoint and lending (what programs of others read).
//
// # Invariants
//
//   - A VM never runs here unless the last word of the manager gave it to this host, in the epoch it runs with.
//   - A VM's data is never deleted unless the manager says so: the VM carries a delete time, or its spec lost the disk.
//   - What plan decides never depends on anything but its two arguments.
//   - One machine's QEMU, disks and TAPs are never touched but by its actor. (Reset, exec and screenshot only talk.)
//   - A viewer, a slow manager or a talking guest never blocks an actor, and never fills memory or disk.
//   - An agent that ends, however it ends, never ends a VM, and never keeps a frame from passing.
//   - What a bitmap says is never believed unless every step since its point is known.
//   - QEMU never gets a TAP before the port's whole policy is in the datapath.
//
// # Lock order
//
// instant.opening (a channel), then instant.mu; agent.mu, then machine.mu. The rest (reporter.mu, console.mu, events.mu, identity.mu, world.mu, fabric.mu, lending.mu, offRead.mu) are leaves. The fabric's own state has no lock:
// one goroutine has it, and others ask it (fabric.do), holding none. No I/O and no
// channel send that can block happens under any of them, but for the ring's writes under console.mu.
//
// # Not here
//
// Placement, users, images as records and everything else that needs more than one host: package manager. How QEMU,
// disks and links work: qemu, disk, hostnet.
//
// The package is larger than most because a machine's life is one state machine: splitting it would make its parts
// meet through exported fields.
package host
