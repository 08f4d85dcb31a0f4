// Package vault serves repositories to hosts and to the manager.
//
// # Purpose
//
// The machine that has a repository's storage answers VaultService for it: in the manager's process, or in a host's. It keeps the key and the
// credentials of the storage, so that hosts need neither, and opens its repositories again after a restart without anybody.
//
// # Main types
//
// [Vaults] are the repositories that are open here, with grants and sessions. Its Handler is mounted beside other services.
//
// # Invariants
//
//   - A host reads and writes what a grant of the manager names, and nothing else. No call that hosts may make deletes or changes a point.
//   - A block is believed when its bytes were hashed here. An id alone gives no host a block of another VM: it takes one from the parent at the same
//     place, one that it sent in this session, or one that it has proven to have, by hashing it under the session's challenge. So an id that leaked,
//     or was guessed, can't be turned into bytes by a restore. What remains: who has the bytes can find out that somebody else has them too.
//   - A host can't date points into the future, nor make points of other ids than its grant names, so that it can't push others out of retention.
//   - Memory is bounded: requests of a host under way, bytes in one, disks in a session, sessions of a grant.
//   - Keys and secrets are in files of mode 0600, and in no answer and no log.
//
// # Lock order
//
// Vaults.mu, then session.mu, then disk.mu. None is held over I/O but disk.mu, for ids of the parent. vault.turn is held while a repository is opened or closed.
//
// # Not here
//
// The format and its garbage collection (chunkstore), when to do what (manager), the other end (backup/remote).
package vault
