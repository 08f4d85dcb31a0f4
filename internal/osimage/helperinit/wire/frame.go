package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Version of the protocol, Magic of a hello.
const (
	Version = 1
	Magic   = "DRVHELP1"
)

// PortPrefix and a number from 0 to Ports-1 name the virtio ports.
const (
	PortPrefix = "org.drover.helper."
	Ports      = 3
)

// MaxPayload is the longest payload of a frame.
const MaxPayload = 1 << 20

const frameHead = 9

// MaxLimit is the most that one list gives.
const MaxLimit = 10000

// Type says what a frame is.
type Type uint8

// Types of frames.
const (
	TypeHello   Type = 1
	TypeVolumes Type = 2
	TypeList    Type = 3
	TypeStat    Type = 4
	TypeRead    Type = 5
	TypeTar     Type = 6
	TypeCancel  Type = 7

	TypeEnd       Type = 128
	TypeHelloBack Type = 129
	TypeVolume    Type = 130
	TypeEntry     Type = 131
	TypeData      Type = 132
	TypeHole      Type = 133
)

// ErrFormat is in the chain of every error about bytes that are not of the protocol.
var ErrFormat = errors.New("not the helper's protocol")

// Frame is one message.
type Frame struct {
	Type    Type
	Request uint32
	Payload []byte
}

// ReadFrame reads a frame; its payload is in buf if that has room.
func ReadFrame(r io.Reader, buf []byte) (Frame, error) {
	var h [frameHead]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return Frame{}, err
	}
	n := int(binary.LittleEndian.Uint32(h[:])) - 5
	if n < 0 || n > MaxPayload {
		return Frame{}, fmt.Errorf("%w: a frame of %d bytes", ErrFormat, n)
	}
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	f := Frame{Type: Type(h[4]), Request: binary.LittleEndian.Uint32(h[5:]), Payload: buf[:n]}
	if _, err := io.ReadFull(r, f.Payload); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, err
	}
	return f, nil
}

// AppendHead appends what stands before a payload of n bytes.
func AppendHead(b []byte, t Type, request uint32, n int) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(n+5))
	b = append(b, byte(t))
	return binary.LittleEndian.AppendUint32(b, request)
}

// AppendFrame appends a frame.
func AppendFrame(b []byte, f Frame) []byte {
	return append(AppendHead(b, f.Type, f.Request, len(f.Payload)), f.Payload...)
}
