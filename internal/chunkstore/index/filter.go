package index

import (
	"encoding/binary"
	"math/bits"

	"drover/internal/chunkstore/pack"
)

// The filter is blocked: an id has all its bits in one block of 64 bytes. The block follows from the id's first bytes,
// so that a run written in order writes its filter in order, with one block in memory.
const (
	filterBlock = 64
	filterBits  = 12 // bits for each id
	filterProbe = 6  // bits set for each id
)

func filterBlocks(entries int64) uint64 {
	return uint64(entries*filterBits/(filterBlock*8)) + 1
}

func filterAt(id *pack.ID, blocks uint64) uint64 {
	hi, _ := bits.Mul64(prefix(id[:]), blocks)
	return hi
}

func filterSet(block []byte, id *pack.ID) {
	h := binary.LittleEndian.Uint64(id[8:])
	for range filterProbe {
		block[h>>3&63] |= 1 << (h & 7)
		h >>= 9
	}
}

func filterHas(block []byte, id *pack.ID) bool {
	h := binary.LittleEndian.Uint64(id[8:])
	for range filterProbe {
		if block[h>>3&63]&(1<<(h&7)) == 0 {
			return false
		}
		h >>= 9
	}
	return true
}
