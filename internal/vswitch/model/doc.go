// Package model is the datapath's rules in plain Go.
//
// # Purpose
//
// It says what the datapath does with one frame, and why, step by step: for people ("port trace"), and as the second opinion that the programs of bpf/
// are tested against. docs/formats/datapath.md is the judge between the two.
//
// # Main types
//
// Model is a host's tables. PortIn, UplinkIn and TunnelIn take a Frame and give a Result: Verdict, Reason, Outputs, Punts, Notes, and Steps for people.
// Namer knows what ports, networks and hosts are called.
//
// # Invariants
//
//   - The same tables and the same frames in the same order give the same results.
//   - No frame makes it panic.
//   - Without Trace no text is made.
//
// # Lock order
//
// There are no locks: one goroutine uses a Model. Nothing here does I/O or asks the time.
//
// # Not here
//
// The datapath itself (bpf/), rows of the tables (vswitch/table), where rows come from (vswitch/compile), frames from descriptions (vswitch/frame).
package model
