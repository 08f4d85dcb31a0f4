// Package unit reads and writes sizes, times and enum values for people.
//
// # Purpose
//
// One spelling of quantities for everything that the command line takes and shows.
//
// # Main types
//
// None: functions on plain values. ParseSize and Size are each other's opposite as far as rounding allows.
//
// # Invariants
//
// A size that would overflow or lose a part of a byte is never rounded: it is refused. Nothing here reads a clock.
//
// # Lock order
//
// No locks.
//
// # Not here
//
// Tables (table), documents (manifest).
package unit
