// Package guest holds the tables of what a virtual machine looks like to its guest.
//
// # Purpose
//
// A VM has a hardware version from its first day. The version names one frozen row per machine kind: the QEMU machine
// type, the device models with every property that a guest can see, and a fixed address for each device. A newer Drover
// or a newer QEMU reads the same row, so a running guest, a saved state and a migrated VM always meet the same machine.
// The package also knows what to propose for an operating system family.
//
// # Main types
//
// Hardware is one frozen row; Lookup finds it. Adapter and AdapterRow describe a NIC model, DiskBus and DiskRow a disk's
// way into the guest. Device is a model at an address. OS is a row of proposals for a family of operating systems.
//
// # Invariants
//
// A released row never changes: a golden file per row holds its JSON, and the test never rewrites an existing one. A
// change to hardware is a new version. Two devices never share an address. microvm is not versioned by QEMU: its row
// states every property it can and says Versioned=false, and a microvm guest must not be moved to, nor its memory
// restored under, another QEMU version.
//
// # Lock order
//
// None: there is no state.
//
// # Not here
//
// QEMU command lines and processes (package qemu), which adapters a host permits (placement), guest images. Nothing
// here does I/O, starts a goroutine or reads a clock.
package guest
