// Package table has the rows of the datapath's maps as Go types.
//
// # Purpose
//
// One vocabulary for all that write, read or imitate the datapath: the compiler of desired state, the loader, the model. docs/formats/datapath.md
// says what each row means; bpf/maps.h has the same layouts in C, and a test of package vswitch compares the two by the object's BTF.
//
// # Main types
//
// Port, FDBEntry, Network, Member, Binding …: rows with their keys. Reason: why a frame was dropped. Tables: all configuration that a host's datapath
// holds, as plain maps.
//
// # Invariants
//
//   - No row has padding that its fields don't name: equal rows are equal bytes.
//   - The number of a reason never changes its meaning.
//
// # Lock order
//
// There are no locks; nothing here does I/O.
//
// # Not here
//
// Maps of the kernel (vswitch), what rows should be (vswitch/compile), what the datapath does with them (bpf/, vswitch/model).
package table
