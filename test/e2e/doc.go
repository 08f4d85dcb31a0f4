// Package e2e has the tests of the whole system: the real program, in a lab, with real guests.
//
// # Purpose
//
// What users do, through the API alone, on two sites with two hosts each: VMs from creation to deletion, networks over
// the WAN, devices added and removed while guests run, snapshots, clones, and what happens when any process is killed.
//
// # Main types
//
// rig is a fleet with the calls that tests make. Tests share one fleet; those that break hosts have their own.
//
// # Invariants
//
// A test never leaves a VM behind, nor a fleet anything at all: both are checked, not hoped for.
//
// # Lock order
//
// No locks.
//
// # Not here
//
// The lab itself: package lab. Random faults: package fault below.
package e2e
