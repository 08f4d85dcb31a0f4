package chunkstore

import (
	"fmt"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"drover/internal/chunkstore/keys"
	"drover/internal/chunkstore/pack"
)

// scratch is what one block needs on its way. It is pooled, so that a block makes no garbage.
type scratch struct {
	hasher  *keys.Hasher
	packed  []byte // compressed
	plain   []byte // a padded block, or one decompressed
	decoder *zstd.Decoder
}

func (r *Repository) scratch() *scratch    { return r.scratches.Get().(*scratch) }
func (r *Repository) release(sc *scratch)  { r.scratches.Put(sc) }
func (r *Repository) newScratch() *scratch { return &scratch{hasher: keys.NewHasher(r.ring.IDKey())} }

// compress packs a block with the fast codec. What does not get smaller by 1/32 stays as it is: reading it is quicker.
func (sc *scratch) compress(block []byte) (pack.Codec, []byte) {
	if n := s2.MaxEncodedLen(len(block)); cap(sc.packed) < n {
		sc.packed = make([]byte, n)
	}
	packed := s2.Encode(sc.packed[:cap(sc.packed)], block)
	if len(packed) > len(block)-len(block)/32 {
		return pack.Raw, block
	}
	return pack.S2, packed
}

// decompress unpacks a payload of a known raw length into dst, which is that long.
func (sc *scratch) decompress(dst []byte, codec pack.Codec, payload []byte) error {
	switch codec {
	case pack.Raw:
		if len(payload) != len(dst) {
			return fmt.Errorf("%w: a block of %d bytes has %d", pack.ErrDamaged, len(dst), len(payload))
		}
		copy(dst, payload)
		return nil
	case pack.S2:
		n, err := s2.DecodedLen(payload)
		if err != nil || n != len(dst) {
			return fmt.Errorf("%w: a compressed block of %d bytes has %d", pack.ErrDamaged, len(dst), n)
		}
		if _, err := s2.Decode(dst, payload); err != nil {
			return fmt.Errorf("%w: %w", pack.ErrDamaged, err)
		}
		return nil
	case pack.Zstd:
		if sc.decoder == nil {
			d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(pack.MaxRaw), zstd.WithDecodeAllCapLimit(true), zstd.IgnoreChecksum(true))
			if err != nil {
				return err
			}
			sc.decoder = d
		}
		out, err := sc.decoder.DecodeAll(payload, dst[:0:len(dst)])
		if err != nil || len(out) != len(dst) {
			return fmt.Errorf("%w: a compressed block of %d bytes has %d", pack.ErrDamaged, len(dst), len(out))
		}
		if len(out) > 0 && &out[0] != &dst[0] {
			copy(dst, out)
		}
		return nil
	}
	return fmt.Errorf("%w: codec %d is unknown", pack.ErrDamaged, codec)
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
