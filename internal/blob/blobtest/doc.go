// Package blobtest is the conformance suite that every store of objects passes.
//
// # Purpose
//
// The repository's safety rests on what a store promises, so all of them are held to the same promises: put if absent, also among
// many at once, whole objects, exact ranges, listings in order, errors that callers branch on.
//
// # Main types
//
// [Run] runs the suite.
//
// # Invariants
//
// The suite knows no kind of store. It leaves nothing behind but in the store that it was given.
//
// # Lock order
//
// No locks.
//
// # Not here
//
// Crashes of the directory store, and what only S3 has: package blob's own tests.
package blobtest
