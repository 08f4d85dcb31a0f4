// Package seed writes the small ISO from which cloud-init sets up a guest (the NoCloud data source).
//
// # Purpose
//
// Host name, users, SSH keys, user data and network configuration become an ISO 9660 image with the label "cidata" and the files
// meta-data, user-data and network-config.
//
// # Main types
//
// Seed says what the guest gets; Seed.ISO makes the bytes. Build writes any few files as an ISO with Rock Ridge and Joliet
// names.
//
// # Invariants
//
// The same Seed gives the same bytes: no time, no randomness.
// What cloud-init couldn't parse is refused here, with the line, not in the guest's log.
// User data without additions of ours is passed through, byte for byte.
//
// # Lock order
//
// None: functions without state.
//
// # Not here
//
// Attaching the ISO (qemu), choosing addresses (manager).
package seed
