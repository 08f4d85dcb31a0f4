// Package faultfs is a file system in memory that crashes and fails on demand.
//
// # Purpose
//
// Who claims to survive a power failure at any moment is tested at every moment. A crash keeps what was synced; of all else it
// keeps whatever the seed says: any write, none, a torn one, a name without its file's bytes, a deletion or not.
//
// # Main types
//
// [FS] implements vfs.FS. [FS.CrashAt] picks the operation that is the last, [FS.Crash] returns what the disk has after it.
// [FS.Intercept] fails single operations.
//
// # Invariants
//
//   - The bytes of a file that was synced, and a name whose directory was synced, survive every crash.
//   - After the crash each operation on the old file system fails with [ErrCrashed].
//   - The same operations and the same seed leave the same disk.
//
// # Lock order
//
// FS.mu guards everything and is a leaf. Intercepting functions run under it and may not call the file system.
//
// # Not here
//
// Renames and truncation, which the stores do not use; order between unsynced operations on different names, which no file system is
// trusted to keep.
package faultfs
