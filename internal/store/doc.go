// Package store keeps Drover's state in etcd as typed collections of protobuf messages.
//
// # Purpose
//
// One code path over an etcd server inside this process (no listener at all) or an external cluster:
// compare-and-swap on revisions, transactions over several collections, watches that resume, an
// in-memory copy for readers, schema migration, backup and restore. It is the only package that
// imports etcd.
//
// # Main types
//
// Store is the connection. Kind describes what is kept under one prefix and how older schema versions
// become the current one. Collection[T] reads and writes one kind. Op and Store.Txn change several
// objects at once. Cache[T] is the copy of a collection that readers use; Subscription follows it.
// Error carries kind and name with one of the sentinels ErrNotFound, ErrExists, ErrConflict,
// ErrCompacted, ErrNewerSchema, ErrCorrupt, ErrInvalid, ErrUnavailable.
//
// Keys are /drover/v1/KIND/NAME. A value is an envelope: the byte 0xD7, the envelope version 0x01, the
// schema version as an unsigned varint, the CRC-32C of the payload (4 bytes, little endian), the
// payload: the message in deterministic binary protobuf, with meta.revision cleared. On read
// meta.revision is etcd's modification revision.
//
// A backup is the 8 bytes "DROVERBK", the format version (4 bytes, big endian), the header's length (4 bytes,
// big endian), a JSON header, the etcd snapshot as etcd streams it, then a trailer: the snapshot's length
// (8 bytes, big endian) and the SHA-256 of everything before the digest.
//
// # Invariants
//
// A write never replaces a revision that its caller did not name. A value of a newer schema is never
// decoded, dropped or overwritten. A watcher never misses a change silently: it gets every change in
// order, or Reset and the whole state. A subscriber never blocks the feed nor another subscriber.
// A message handed out by a Cache is never mutated. The embedded server never listens on a socket.
// Restore never writes into a directory that is not empty, nor from a file whose checksum is wrong.
// etcd locks and leases are never used: safety comes from compare-and-swap.
//
// # Lock order
//
// Cache.mu is the only mutex; nothing is called and no I/O is done under it.
//
// # Not here
//
// Names, uids, generations, defaults and validation (resource), high-volume history (history), filters
// and paging (query).
package store
