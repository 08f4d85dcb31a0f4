package chunkstore

import (
	"drover/internal/chunkstore/keys"
	"drover/internal/chunkstore/pack"
)

// scratch is what one block needs on its way. It is pooled, so that a block makes no garbage.
type scratch struct {
	hasher     *keys.Hasher
	compressor pack.Compressor
	decoder    pack.Decoder
	packed     []byte // a page
	plain      []byte // a padded block, or one decompressed
}

func (r *Repository) scratch() *scratch    { return r.scratches.Get().(*scratch) }
func (r *Repository) release(sc *scratch)  { r.scratches.Put(sc) }
func (r *Repository) newScratch() *scratch { return &scratch{hasher: keys.NewHasher(r.ring.IDKey())} }

// compress packs a block with the fast codec. The result is good until the next call.
func (sc *scratch) compress(block []byte) (pack.Codec, []byte) { return sc.compressor.Compress(block) }

// decompress unpacks a payload of a known raw length into dst, which is that long.
func (sc *scratch) decompress(dst []byte, codec pack.Codec, payload []byte) error {
	return sc.decoder.Decode(dst, codec, payload)
}

// zeros reports whether all of b is zero. Eight words at a time, and most blocks end it at once.
func zeros(b []byte) bool {
	for len(b) >= len(zeroRun) {
		if string(b[:len(zeroRun)]) != zeroRun {
			return false
		}
		b = b[len(zeroRun):]
	}
	return string(b) == zeroRun[:len(b)]
}

// zeroRun is compared against: the runtime's comparison uses the widest registers there are.
const zeroRun = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
	"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
	"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
	"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
