// Package backuptest is what a repository of restore points must do, as a test, and the simplest one that does.
//
// # Purpose
//
// [Run] is the conformance suite of backup.Repository: the one on this machine and the one over the network pass it. [Memory] is
// a map that passes it too: the reference, and a stand-in for tests of what uses a repository.
//
// # Main types
//
// [Memory].
//
// # Invariants
//
// Memory never deduplicates, compresses or forgets: it is right because it does nothing.
//
// # Lock order
//
// Memory.mu, then a writer's.
//
// # Not here
//
// Faults of storage: chunkstore's tests and blobtest.
package backuptest
