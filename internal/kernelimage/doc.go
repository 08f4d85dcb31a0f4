// Package kernelimage reads and writes kernel images: what a VM boots directly, without firmware or a boot loader.
//
// # Purpose
//
// One file that holds a kernel, an initramfs, and the command line that belongs to them, so that the image library can keep, hash and
// send it as it does a disk. docs/formats/kernel-image.md is the format's specification.
//
// # Main types
//
//   - Manifest: image.json, which comes first and says what follows.
//   - Write, ReadManifest, Extract: the file as a stream.
//
// # Invariants
//
//   - Extract never writes outside of its directory, nor any other name than those of the format.
//   - Extract never returns without error when a byte differs from what the manifest says, and leaves nothing behind when it fails.
//   - The same content never gives two different files.
//
// # Lock order
//
// There are no locks.
//
// # Not here
//
// Building the content (package osimage), storing it (the image library).
package kernelimage
