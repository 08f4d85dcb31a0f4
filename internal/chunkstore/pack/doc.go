// Package pack is the format of a pack: an object of many records, each a block or a page, that describe themselves.
//
// # Purpose
//
// It lays out and reads headers, records, footers and trailers, and seals and opens payloads. docs/formats/repository.md is
// the specification.
//
// # Main types
//
// [Entry] is a record as a footer lists it; Sealer is the key of one pack.
//
// # Invariants
//
//   - Bytes of a stranger never make it panic, nor take memory beyond what they are long.
//   - A record whose checksum, seal or lengths are wrong is never returned.
//
// # Lock order
//
// No locks. A Sealer is for concurrent use.
//
// # Not here
//
// Where packs are kept, which blocks go into which, and compression: package chunkstore.
package pack
