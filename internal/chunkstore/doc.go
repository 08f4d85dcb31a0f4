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
// A leaf of a DiskWriter, then DiskWriter.mu or packer.mu; a leaf is held while the page that it begins with is read, so that
// others who write to it wait for that. Session.mu, packer.mu, the ledger's lock, and those of the index and of caches are
// leaves. Turns (Session.addTurn, Repository.indexTurn, the ledger's) are taken before any lock, and held over I/O.
//
// # Not here
//
// Where objects are kept: blob. What a restore point of a VM is, when one is made and how long it is kept: backup.
package chunkstore
