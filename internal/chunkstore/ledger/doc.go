// Package ledger is the log of a repository: its transactions, what each demands, and the state that they add up to.
//
// # Purpose
//
// [State] is what a repository holds after some transaction; applying the next is pure. The log itself puts sealed
// transactions into a blob.Store, each if its number is free.
//
// # Main types
//
// [Transaction] is one entry, [State] their sum.
//
// # Invariants
//
//   - The same transactions in the same order give the same state, whoever applies them.
//   - A transaction that the rules of docs/formats/repository.md refuse is never written.
//
// # Lock order
//
// Log.mu is a leaf; no I/O under it.
//
// # Not here
//
// Packs, pages and who decides to write a transaction: package chunkstore.
package ledger
