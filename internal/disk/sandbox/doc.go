// Package sandbox runs the tools that touch hostile image files, qemu-img above all, where they can hurt nobody.
//
// # Purpose
//
// A bug in a converter must not become a hole in the host. A tool runs as an unprivileged user without groups or
// capabilities, with no-new-privileges, in its own session, PID, network, IPC and UTS namespaces, under limits of memory, file
// size, CPU and time; it sees its files only as descriptors that were opened for it.
//
// # Main types
//
// Box is the set of limits; Box.Run runs one tool; Node describes one image of a block graph for qemu-img.
//
// # Invariants
//
// A tool never outlives Run, nor does anything it started: it is PID 1 of its namespace, and dies with the caller.
// A tool never opens an image by its path: graphs name /proc/self/fd/N and state backing explicitly, or null.
//
// # Lock order
//
// None: no shared state.
//
// # Not here
//
// What the images mean (disk, disk/library), running VMs (qemu).
package sandbox
