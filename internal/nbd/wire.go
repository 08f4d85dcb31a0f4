package nbd

import (
	"errors"
	"fmt"
)

// Numbers of the protocol.
const (
	magicInit       = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     = 0x49484156454f5054 // "IHAVEOPT"
	magicReply      = 0x0003e889045565a9 // of options
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef

	handFixed    = 1 << 0
	handNoZeroes = 1 << 1

	optExportName = 1
	optAbort      = 2
	optList       = 3
	optStartTLS   = 5
	optInfo       = 6
	optGo         = 7
	optStructured = 8
	optListMeta   = 9
	optSetMeta    = 10

	repAck     = 1
	repServer  = 2
	repInfo    = 3
	repMeta    = 4
	repErr     = 1 << 31
	repUnsup   = repErr | 1
	repPolicy  = repErr | 2
	repInvalid = repErr | 3
	repTLSReqd = repErr | 5
	repUnknown = repErr | 6
	repTooBig  = repErr | 9

	infoExport    = 0
	infoBlockSize = 3

	flagHas       = 1 << 0
	flagReadOnly  = 1 << 1
	flagFlush     = 1 << 2
	flagFUA       = 1 << 3
	flagTrim      = 1 << 5
	flagZeroes    = 1 << 6
	flagDF        = 1 << 7
	flagMultiConn = 1 << 8

	cmdRead   = 0
	cmdWrite  = 1
	cmdDisc   = 2
	cmdFlush  = 3
	cmdTrim   = 4
	cmdZeroes = 6
	cmdStatus = 7

	cmdFlagFUA    = 1 << 0
	cmdFlagNoHole = 1 << 1
	cmdFlagDF     = 1 << 2
	cmdFlagOne    = 1 << 3

	chunkDone = 1 << 0

	chunkNone        = 0
	chunkData        = 1
	chunkHole        = 2
	chunkStatus      = 5
	chunkError       = 1<<15 | 1
	chunkErrorOffset = 1<<15 | 2

	requestSize = 28
)

// Limits of one message, ours and what the protocol recommends.
const (
	maxName    = 4096     // names of exports and contexts
	maxOption  = 64 << 10 // data of one option, as a server takes it
	maxAnswer  = 64 << 10 // data of one reply to an option, as a client takes it
	maxPayload = 32 << 20 // of one read or write
	maxStatus  = 8<<20 + 4
	maxOptions = 64 // options in a handshake, and replies to one of them
)

// Errno is an error number of the protocol.
type Errno uint32

// The protocol's numbers.
const (
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

func (e Errno) Error() string {
	switch e {
	case EPERM:
		return "not permitted"
	case EIO:
		return "input/output error"
	case ENOMEM:
		return "out of memory"
	case EINVAL:
		return "invalid request"
	case ENOSPC:
		return "no space left"
	case EOVERFLOW:
		return "too large"
	case ENOTSUP:
		return "not supported"
	case ESHUTDOWN:
		return "the server is shutting down"
	}
	return fmt.Sprintf("error %d", uint32(e))
}

// Errors that callers branch on.
var (
	// ErrGone is wrapped by each error that comes from a connection that has ended.
	ErrGone = errors.New("the NBD connection has ended")
	// ErrNoExport: the server knows no export of this name.
	ErrNoExport = errors.New("no such export")
	// ErrProtocol is wrapped when the peer breaks the protocol.
	ErrProtocol = errors.New("the NBD peer breaks the protocol")
)

// Error is the server's refusal of one request.
type Error struct {
	Op      string // "read", "write", …
	Offset  int64
	Errno   Errno
	Message string // what the server says about it, if it does
}

func (e *Error) Error() string {
	s := fmt.Sprintf("nbd: %s at %d: %s", e.Op, e.Offset, e.Errno.Error())
	if e.Message != "" {
		s += fmt.Sprintf(" (%q)", e.Message)
	}
	return s
}

// Unwrap gives the Errno.
func (e *Error) Unwrap() error { return e.Errno }

func opName(cmd uint16) string {
	switch cmd {
	case cmdRead:
		return "read"
	case cmdWrite:
		return "write"
	case cmdFlush:
		return "flush"
	case cmdTrim:
		return "trim"
	case cmdZeroes:
		return "write zeroes"
	case cmdStatus:
		return "block status"
	}
	return fmt.Sprintf("command %d", cmd)
}

// Names of meta contexts.
const (
	// Allocation's flags are Hole and Zero.
	Allocation = "base:allocation"
	// DirtyBitmap and the name of one of QEMU's bitmaps: the flag is Dirty.
	DirtyBitmap = "qemu:dirty-bitmap:"
)

// Flags of extents.
const (
	Hole  uint32 = 1 << 0 // Allocation: takes no space
	Zero  uint32 = 1 << 1 // Allocation: reads as zeros
	Dirty uint32 = 1 << 0 // DirtyBitmap: was written
)

// Extent is a part of an export that has the same flags all over.
type Extent struct {
	Offset, Length int64 // bytes
	Flags          uint32
}

// appendExtent adds x, joined to the last if it goes on with the same flags.
func appendExtent(to []Extent, x Extent) []Extent {
	if k := len(to) - 1; k >= 0 && to[k].Flags == x.Flags && to[k].Offset+to[k].Length == x.Offset {
		to[k].Length += x.Length
		return to
	}
	return append(to, x)
}
