// Package accel finds out, once per boot and QEMU, what runs guests on this
// machine: KVM if it really does, else emulation (TCG).
//
// # Purpose
//
// That /dev/kvm exists and opens says little: nested under a paravirtual
// hypervisor it may run only guests made for it, and others hang or die at some
// instruction that nobody emulates. So Probe runs a guest: the machine's BIOS,
// then a boot sector that goes through real, protected and long mode, takes an
// interrupt and an exception, and uses CPUID and SSE2. It must say that all went
// well before a deadline.
//
// # Main types
//
//   - Probe: runs the test guest and asks QEMU what it has.
//   - TSCKHz: how fast a guest's clock runs without KVM.
//   - Result: the verdict, the reason in words, and facts for the scheduler. It is
//     plain data (JSON); callers keep it for as long as Result.Current.
//
// # Invariants
//
//   - Accel is KVM only if the test guest passed under KVM, with the CPU model and
//     under the identity given.
//   - A Result with TCG means that the test guest passed under TCG. Where neither
//     works Probe is an error.
//   - No QEMU outlives Probe, unless the kernel cannot kill it, which is an error.
//   - Nothing is left on disk.
//
// # Lock order
//
// No locks.
//
// # Not here
//
// The command line of real VMs (package qemu) and where a Result is kept.
package accel
