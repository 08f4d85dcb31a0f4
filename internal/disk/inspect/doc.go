// Package inspect reads what a disk image claims about itself, before any tool touches it.
//
// # Purpose
//
// An image comes from a stranger: its header can name files of the host, promise exabytes, or be cut short.
// Inspect recognises qcow2, VMDK (monolithicSparse, streamOptimized), VHDX, VHD, OVA, ISO 9660 and the wrappers
// xz, gzip and zstd by content, checks every table that a converter would follow, and refuses with a reason.
//
// # Main types
//
// Info is what the image is; Refusal is why it isn't accepted (errors.Is ErrRefused).
//
// # Invariants
//
// An image that names another file (backing file, data file, extent, parent) is never accepted.
// A parser never allocates more than a few MiB for what a header claims, never reads the same table twice because an
// image points at it twice, and never panics.
// Raw is never guessed from ignorance: it needs a boot record or file system that is known, or the caller's word.
//
// # Lock order
//
// None: functions without state.
//
// # Not here
//
// Conversion and import (disk/library), layers (disk).
package inspect
