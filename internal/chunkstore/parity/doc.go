// Package parity makes and uses the Reed–Solomon shards that a pack may have beside it.
//
// # Purpose
//
// A bad sector, or a few, should not cost a block. A pack is cut into 20 shards, two more are computed, and each slice of
// 4 KiB has a checksum, so that it is known which slices are bad: two of each 22 can be made again, wherever they are, and
// a hole of nearly a tenth of the pack.
//
// # Main types
//
// [Make] gives the parity object of a pack; [Parse] reads one; [Parity] finds bad slices and repairs.
//
// # Invariants
//
//   - What Repair returns has passed the checksum of each slice, or it fails.
//   - Damage of the parity object itself is noticed, and survived if it is small.
//   - A stranger's bytes never make it panic, nor take memory beyond what they are long and a pack can be.
//
// # Lock order
//
// No locks.
//
// # Not here
//
// When parity is made, and what becomes of a repaired pack: package chunkstore.
package parity
