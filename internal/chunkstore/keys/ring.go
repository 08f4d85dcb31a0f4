package keys

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"strconv"
	"sync"

	"github.com/zeebo/blake3"

	"drover/internal/chunkstore/pack"
)

const derivation = "drover repository 1 "

// Derive makes the key for one use of material.
func Derive(use string, material ...[]byte) []byte {
	h := blake3.NewDeriveKey(derivation + use)
	for _, m := range material {
		_, _ = h.Write(m)
	}
	return h.Sum(nil)
}

// OpenMaster is the master key of a repository that is not encrypted: it hides nothing.
func OpenMaster(id string) []byte {
	sum := blake3.Sum256([]byte(id))
	return sum[:]
}

// Ring derives a repository's keys from its master key. It is for concurrent use.
type Ring struct {
	master    []byte
	encrypted bool
	hash      string
	id, log   []byte
	hashers   sync.Pool
}

// NewRing takes the master key.
func NewRing(c *Config, master []byte) *Ring {
	r := &Ring{master: master, encrypted: c.Encrypted(), hash: c.Hash, id: Derive("id", master), log: Derive("log", master)}
	r.hashers.New = func() any { return NewHasher(r.hash, r.id) }
	return r
}

// Master returns the master key.
func (r *Ring) Master() []byte { return r.master }

// Log returns the key of the log.
func (r *Ring) Log() []byte { return r.log }

// IDKey returns what ids are made with.
func (r *Ring) IDKey() (string, []byte) { return r.hash, r.id }

// Sealer returns the key of a pack.
func (r *Ring) Sealer(generation uint32, id pack.PackID) (*pack.Sealer, error) {
	if !r.encrypted {
		return pack.NewSealer(nil)
	}
	data := Derive("data generation "+strconv.FormatUint(uint64(generation), 10), r.master)
	return pack.NewSealer(Derive("pack", data, id[:]))
}

// BlockID is the id of a whole block.
func (r *Ring) BlockID(block []byte) pack.ID {
	h := r.hashers.Get().(*Hasher)
	id := h.Block(block)
	r.hashers.Put(h)
	return id
}

// Hasher makes ids. It is not for concurrent use, and makes no garbage.
type Hasher struct {
	h   hash.Hash
	buf [sha256.Size]byte
}

// NewHasher takes what IDKey returned.
func NewHasher(kind string, key []byte) *Hasher {
	if kind == SHA256 {
		return &Hasher{h: hmac.New(sha256.New, key)}
	}
	h, err := blake3.NewKeyed(key)
	if err != nil {
		panic("keys: an id key that is not 32 bytes")
	}
	return &Hasher{h: h}
}

// Block is the id of a block: its keyed hash.
func (h *Hasher) Block(block []byte) pack.ID {
	h.h.Reset()
	_, _ = h.h.Write(block)
	return pack.ID(h.h.Sum(h.buf[:0]))
}

// Page is the id of a page, from what it points to and not where that is.
func (h *Hasher) Page(level byte, span int64, ids func(yield func(pack.ID) bool)) pack.ID {
	h.h.Reset()
	var head [13]byte
	copy(head[:], "page")
	head[4] = level
	binary.LittleEndian.PutUint64(head[5:], uint64(span))
	_, _ = h.h.Write(head[:])
	for id := range ids {
		h.buf = id
		_, _ = h.h.Write(h.buf[:])
	}
	return pack.ID(h.h.Sum(h.buf[:0]))
}

// Description is the id of a point's description. What is hashed has an odd length, and a block an even one, so that neither passes for the other.
func (h *Hasher) Description(json []byte) pack.ID {
	h.h.Reset()
	_, _ = h.h.Write([]byte("description"))
	_, _ = h.h.Write(json)
	if len(json)%2 != 0 {
		_, _ = h.h.Write([]byte{1})
	} else {
		_, _ = h.h.Write([]byte{2, 2})
	}
	return pack.ID(h.h.Sum(h.buf[:0]))
}
