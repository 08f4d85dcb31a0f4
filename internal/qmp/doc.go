// Package qmp speaks the QEMU Machine Protocol: commands, replies, events.
//
// # Purpose
//
// One Client is one connection to one QEMU monitor. Any number of goroutines
// run commands on it at the same time; replies find their command by id.
// Typed methods cover the commands that a VM manager needs, a file per group;
// Execute runs any other. QEMU is treated as hostile: a guest that broke out of
// it may say anything on this socket, but can neither make us use unbounded
// memory nor stop the reader.
//
// # Main types
//
//   - Client: the connection. Made by Dial or New, ended by Close.
//   - Error: QEMU's own refusal of a command (class and description).
//   - Event, Subscription: what QEMU says by itself, and one listener to it.
//   - Schema: what this QEMU knows, from query-qmp-schema.
//
// # Invariants
//
//   - The reader never waits for a subscriber. One that falls behind loses
//     events, and is told so by a single Lagged event at the place of the gap.
//   - A reply is never given to another command than its own. The reply to a
//     command whose context ended is dropped.
//   - No message longer than Options.MaxMessage is held in memory, nor an event
//     longer than MaxEvent.
//   - A command that was written in part is never followed by another: the
//     connection ends instead.
//   - After Done is closed no call waits: all fail with ErrGone.
//
// # Lock order
//
// Client.writing (a one-place semaphore, held while a command is written), then
// Client.mu. Client.subMu is taken alone. Client.mu and Client.subMu are never
// held over I/O.
//
// # Not here
//
// Starting QEMU, its command line, and what a VM should look like: package qemu.
// The guest agent's protocol, which looks alike but has no ids: package qga.
// QMP's out-of-band execution and pretty-printed output are not supported.
package qmp
