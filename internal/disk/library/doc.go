// Package library takes images in: it downloads, checks, unpacks, inspects and converts them.
//
// # Purpose
//
// From a file, an upload or a URL to DIR/SHA256.qcow2 (or .iso), where SHA256 is that of the file's own bytes: what a
// host fetches can be checked with nothing but its name.
//
// # Layout
//
//	.lock              held (flock) while a Library is open
//	SHA256.qcow2|.iso  finished, read-only
//	partial/KEY.part   a download that was cut; KEY is the SHA-256 of the URL; with KEY.json, its state
//	tmp/               unfinished work, emptied on Open
//
// # Main types
//
// Library is an open directory; Request says what to import; Result what came of it.
//
// # Invariants
//
// A name in DIR never holds other bytes than it says, nor half of them: files are synced, then renamed.
// Nothing is left in tmp/ by a failure; by a kill, nothing after the next Open. Only a download that can go on is kept, for a week.
// No tool sees an image that inspect refused; tools run in the sandbox.
// An image never grows past Options.MaxBytes, whatever it is wrapped in.
//
// # Lock order
//
// Library.mu guards the set of URLs in work, never held over I/O.
//
// # Not here
//
// The record of images and who may see them (manager), the host's cache (disk).
package library
