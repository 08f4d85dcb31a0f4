// Package index finds the pack that holds a block: a disposable cache in a local directory.
//
// # Purpose
//
// A repository of 100 TB has 800 million blocks. Their ids do not fit in memory, so they stand in sorted files. What is
// lost or damaged is built anew from the footers of packs, so nothing here is written with more care than it takes to
// notice damage.
//
// # Main types
//
// [Index] is the open cache: recent packs in memory, older ones in runs. A run is one immutable file: a blocked Bloom
// filter, pages of sorted ids, pages of sorted pack ids. Runs of like size are merged in the background.
//
// # Invariants
//
//   - A hit is exact: whole ids are compared, and each page that answers has passed its checksum.
//   - A miss may be wrong (after damage, or in a removed pack). It costs a store, never a block.
//   - A pack is in one place as a whole: in a table in memory, or in one run.
//   - Memory is bounded: tables, small filters, and 8 bytes for some 3,400 ids.
//   - A lookup waits for no merge, and holds no lock while it reads a file.
//
// # Lock order
//
// Index.mu is the only lock, and a leaf. No I/O under it.
//
// # Not here
//
// Which packs there are, and which are condemned: the repository's log. Where in a pack a record begins: its footer.
package index
