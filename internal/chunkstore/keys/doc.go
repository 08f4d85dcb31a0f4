// Package keys is a repository's config object, its wrapped master keys, and the keys derived from them.
//
// # Purpose
//
// It makes and reads `config` and `keys/NAME`, and derives a key for each use from the master key.
//
// # Main types
//
// [Config] is what everybody must know before the key. [Wrapped] is one copy of the master key. [Ring] derives keys, and makes ids.
//
// # Invariants
//
//   - The master key is never written bare.
//   - A key that opens the wrong repository, or stands under another name, is refused.
//   - Work that a stranger's parameters can ask for is bounded.
//
// # Lock order
//
// No locks that are held across calls.
//
// # Not here
//
// Where the objects are kept: package chunkstore.
package keys
