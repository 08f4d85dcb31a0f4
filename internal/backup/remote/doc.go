// Package remote is a repository of restore points that is served by a vault elsewhere.
//
// # Purpose
//
// A host has neither the storage's credentials nor the data key. It hashes blocks, offers their ids to the vault, and sends compressed
// what the vault lacks. What is as in the parent point never crosses the wire, and what other VMs brought before need only be proven.
//
// # Main types
//
// [Repository] is a backup.Repository over VaultService.
//
// # Invariants
//
//   - Each block is on the vault's side, or asked for and kept here, until Finish has returned: a cut connection loses nothing and costs what was
//     on its way.
//   - Bytes that a reader returns have the id that the vault named.
//   - Memory is bounded by the batches in flight, whatever the disk's size.
//
// # Lock order
//
// session.mu, then writer.mu. leaves.mu is a leaf. pointReader.mu is held while a session is opened again, and by nobody who holds another.
//
// # Not here
//
// The vault (backup/vault), who may do what there, and what of a disk is read (backup).
package remote
