package chunkstore

import "encoding/hex"

// ID names a block or a page by its content: a keyed hash. The zero ID is a hole.
type ID [32]byte

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Zero reports whether the ID is that of zeros.
func (id ID) Zero() bool { return id == ID{} }

// PackID names a pack. It is random.
type PackID [16]byte

func (id PackID) String() string { return hex.EncodeToString(id[:]) }

// PointID names a restore point. It is random; a copy in another repository keeps it.
type PointID [16]byte

func (id PointID) String() string { return hex.EncodeToString(id[:]) }

// SessionID names a session.
type SessionID [16]byte

func (id SessionID) String() string { return hex.EncodeToString(id[:]) }
