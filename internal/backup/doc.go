// Package backup makes restore points of virtual machines, and machines of restore points.
//
// # Purpose
//
// A restore point is all that a VM is at one moment: its disks, definition, firmware variables, on request its memory. This
// package says what is in one, reads disks into a repository and repositories into disks, whatever the disks and the
// repository are, and wherever they are.
//
// # Main types
//
// [Repository] is what points are kept in: one on this machine, or a service on another. [Point] is a restore point.
//
// # Invariants
//
//   - A point appears in a repository only when all of it is durable there.
//   - A restore never writes bytes that were not checked, and never says that it is done before they are durable.
//
// # Lock order
//
// None: values and single owners.
//
// # Not here
//
// The storage format (chunkstore), when points are made and how long they are kept (backup/policy), hosts and managers.
package backup
