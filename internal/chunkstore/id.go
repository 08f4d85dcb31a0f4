package chunkstore

import (
	"encoding/hex"

	"drover/internal/chunkstore/pack"
)

// ID names a block or a page by its content: a keyed hash. The zero ID is a hole.
type ID = pack.ID

// PackID names a pack. It is random.
type PackID = pack.PackID

// PointID names a restore point. It is random; a copy in another repository keeps it.
type PointID [16]byte

func (id PointID) String() string { return hex.EncodeToString(id[:]) }

// SessionID names a session.
type SessionID [16]byte

func (id SessionID) String() string { return hex.EncodeToString(id[:]) }
