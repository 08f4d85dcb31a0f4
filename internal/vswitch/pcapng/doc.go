// Package pcapng writes captured frames as a pcapng file (draft-ietf-opsawg-pcapng), in pieces that can be sent as they come.
//
// # Purpose
//
// A capture of a port goes to a file or straight into Wireshark. Each point of capture is an interface of the file; a frame that was dropped says why
// in its comment; a tag that the kernel keeps beside the frame stands in the frame again.
//
// # Main types
//
// Writer makes the blocks. Options says what the file tells of itself.
//
// # Invariants
//
//   - What was appended so far is always a whole number of blocks.
//   - An interface stands before the first frame that names it.
//
// # Lock order
//
// There are no locks: one goroutine uses a Writer. Nothing here does I/O.
//
// # Not here
//
// Where frames come from (vswitch), one line of text for a frame (vswitch/frame).
package pcapng
