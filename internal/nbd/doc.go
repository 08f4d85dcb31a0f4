// Package nbd speaks the Network Block Device protocol, as client and as server.
//
// # Purpose
//
// A running VM's disk is read through QEMU's NBD server, with the bitmap of what changed in its block status; a restore
// point is lent to QEMU, to the helper VM and to programs of other vendors by our own server. Spoken is fixed newstyle with
// structured replies, meta contexts and TLS (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md). Names of
// exports are secrets here: a server lists none.
//
// # Main types
//
//   - Client: an export that is open, by one or several connections. Made by Dial, ended by Close.
//   - Server: serves what its Lookup finds, to any number of peers. Serve runs it until its context ends.
//   - Export: what is served. Contexter and Writable are what it may do besides.
//   - Extent: a part of an export, with flags of one meta context.
//   - Error: the other side's refusal of one request.
//
// # Invariants
//
//   - The peer is hostile, on both sides: no message makes us hold more memory than the options allow, panic, or wait
//     for ever in a handshake.
//   - A buffer given to ReadAt is not touched after ReadAt has returned, also when its context ended.
//   - A read never returns without an error unless as many bytes as were asked for have come.
//   - A request that was written in part is never followed by another: the connection ends instead.
//   - After a connection has ended no call waits: all fail with ErrGone.
//   - A server that has certificates never speaks of an export before TLS, but to a peer on a unix socket.
//   - Serve returns after the last of its requests has ended and the last export is released.
//
// # Lock order
//
// conn.writing (one place, held while a request is written), then conn.mu, then call.mu. session.writing is taken alone.
// No other lock is held over I/O.
//
// # Not here
//
// Oldstyle negotiation, NBD_OPT_EXTENDED_HEADERS and 64-bit lengths, resize. Starting QEMU's server (qmp). What is in a
// restore point (backup).
package nbd
