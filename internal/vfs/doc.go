// Package vfs is the file system as stores of objects need it.
//
// # Purpose
//
// A store that promises durability is only believed when its crashes are tested. So it reaches files through [FS], which
// is the machine's in production and one that crashes and fails on demand in tests (package faultfs).
//
// # Main types
//
// [FS] opens a [Root]: a directory with what is below it. [OS] is the machine's.
//
// # Invariants
//
//   - No path leaves its root, and no symbolic link is followed on the way, not even inside it.
//   - Create and Link never replace a name.
//   - What SyncDir returned for is found after a crash; nothing else is promised of names.
//
// # Lock order
//
// No locks.
//
// # Not here
//
// Objects, their names and what is written in which order: package blob.
package vfs
