// Package qga speaks to the QEMU guest agent: a process inside the guest.
//
// # Purpose
//
// One Client is one connection to the host's end of the agent's virtio-serial
// port. The protocol has no ids and no framing but lines, and the agent may be
// absent, slow, restarted in the middle of an answer, or an attacker. So one
// command runs at a time, each under a deadline, and after anything unusual the
// next one first finds the place in the stream again (guest-sync-delimited).
//
// # Main types
//
//   - Client: the connection. Made by Dial or New, ended by Close.
//   - Error: the agent's own refusal of a command.
//   - Interface, OSInfo, ExecStatus: what the guest says, cleaned: bounded in
//     number and length, valid UTF-8, without control characters.
//
// # Invariants
//
//   - No call waits without a deadline: the context's or Options.Timeout.
//   - A reply is never taken for the answer to another command.
//   - No reply longer than the command's bound is held in memory.
//   - What the guest says is never trusted: addresses are parsed, text is cleaned,
//     counts are bounded. It is still only what the guest claims.
//
// # Lock order
//
// Client.busy (a one-place semaphore, held for a whole command). Nothing else.
//
// # Not here
//
// The port itself and whether the agent is running: VSERPORT_CHANGE events in
// package qmp tell. What to do when a guest does not shut down.
package qga
