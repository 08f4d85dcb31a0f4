// Package chunkstore is the deduplicating repository: blocks of disks, each distinct one stored once.
//
// # Purpose
//
// Writers cut disks into fixed blocks and store those that the repository lacks; readers put a disk together again from
// any restore point; collection, compaction, scrub and copies run beside both. The format, and why it is safe, is
// docs/formats/repository.md.
//
// # Main types
//
// [Repository] is an open one. A [Session] writes points by way of [DiskWriter]; a [Disk] reads one disk of a point.
//
// # Invariants
//
//   - Nothing acknowledged is ever lost, whatever is killed whenever.
//   - A read returns the bytes that were written, or an error that names the disk, the offset and the pack.
//   - No clock decides what is safe.
//   - Collection never makes a writer or a reader wait, nor the other way round.
//   - Memory does not grow with the repository but for its list of packs and points.
//
// # Lock order
//
// Session.mu, then Repository.mu, then the locks of the index and of caches, which are leaves. No I/O under Repository.mu.
//
// # Not here
//
// Where objects are kept: blob. What a restore point of a VM is, when one is made and how long it is kept: backup.
package chunkstore
