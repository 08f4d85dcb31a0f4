// Package blob is where a repository's objects are: a directory (also on NFS), or a bucket of any S3.
//
// # Purpose
//
// Four verbs, put if absent, read a range, list and delete, are all that a repository needs; nothing is ever
// overwritten. Wrappers add retries, a bandwidth limit and counts.
//
// # Main types
//
// [Store] is what all of them are. [Open] makes one from a URL.
//
// # Invariants
//
//   - An object is never seen half written, also not after a crash: it is absent or whole and durable.
//   - Put never replaces an object.
//   - A read never returns bytes of another object or fewer bytes than asked for without an error.
//
// # Lock order
//
// No lock of this package is held over I/O.
//
// # Not here
//
// What the objects mean: package chunkstore.
package blob
