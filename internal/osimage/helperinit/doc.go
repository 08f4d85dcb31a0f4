// Command helperinit is process 1 of the helper VM, which reads files of restore points.
//
// # Purpose
//
// It finds what file systems are on the disks that the VM has, mounts those that are asked for, read-only, and answers on its virtio ports in the protocol of
// docs/formats/helper.md. Only its source is part of drover; it is compiled when the helper's image is built, so it uses the standard library alone.
//
// # Main types
//
//   - machine: the volumes and their mounts. port: one connection and its request.
//   - found: what a superblock says. group: a volume group of LVM. array: members of an MD array.
//   - archive: a tar archive under way.
//
// # Invariants
//
//   - A path never leaves its volume, whatever its symlinks say.
//   - A file system is never mounted for writing.
//   - A file whose bytes could not be read is never sent as if it were whole.
//
// # Lock order
//
// machine.mu (held while volumes are found and mounted), port.mu and machine.listMu are not held together.
//
// # Not here
//
// Building the image: package osimage. What the client believes: backup/files.
package main
