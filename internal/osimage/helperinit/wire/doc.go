// Package wire is the protocol between the helper VM and whoever asks it for files.
//
// # Purpose
//
// docs/formats/helper.md says what the messages mean; this package makes bytes of them and parses them, at both ends. It uses the standard library
// alone, as it is compiled into the helper's process 1.
//
// # Main types
//
//   - Frame: what is on the port. ReadFrame, AppendFrame.
//   - Volume, Entry, List, Stat, Read, Tar, End: payloads.
//
// # Invariants
//
//   - Parsing never panics and never takes more memory than the frame that is parsed.
//   - What Append writes, Parse reads back the same.
//
// # Lock order
//
// There are no locks.
//
// # Not here
//
// Checks of sense (names, order, sizes): backup/files. The helper itself: helperinit.
package wire
