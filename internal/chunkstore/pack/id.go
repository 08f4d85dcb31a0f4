package pack

import "encoding/hex"

// ID names a block or a page by its content: a keyed hash. The zero ID is a hole.
type ID [32]byte

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Zero reports whether the ID is that of zeros.
func (id ID) Zero() bool { return id == ID{} }

// PackID names a pack. It is random.
type PackID [16]byte

func (id PackID) String() string { return hex.EncodeToString(id[:]) }

// Entry is what a footer says of one record. Its number is its position.
type Entry struct {
	ID     ID
	Offset uint32 // of the record's head
	Stored uint32 // bytes of the payload as stored
	Raw    uint32 // bytes before compression
	Codec  Codec
}

// Codec says how a payload is compressed.
type Codec byte

// The codecs.
const (
	Raw   Codec = 0
	S2    Codec = 1
	Zstd  Codec = 2
	MinLZ Codec = 3

	maxCodec = MinLZ
)
