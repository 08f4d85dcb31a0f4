package wire

import (
	"encoding/binary"
	"fmt"
)

// Code says how a request ended.
type Code uint8

// Codes.
const (
	OK          Code = 0
	NotFound    Code = 1
	WrongType   Code = 2
	Damaged     Code = 3
	Unsupported Code = 4
	Cancelled   Code = 5
	BadRequest  Code = 6
	Other       Code = 7
)

// Kind is an entry's type.
type Kind uint8

// Kinds.
const (
	Directory Kind = 1
	File      Kind = 2
	Symlink   Kind = 3
	Special   Kind = 4
)

// NoDisk is the disk of a volume that is on several.
const NoDisk = 65535

// End is the last reply to a request.
type End struct {
	Code    Code
	Message string
}

// Volume is something that may hold files.
type Volume struct {
	ID, FS, Label, UUID string
	Size                uint64
	Disk, Part          uint16
	Place, Note         string
}

// Entry is a file of any type.
type Entry struct {
	Name     string
	Kind     Kind
	Mode     uint32
	UID, GID uint32
	Size     uint64
	Seconds  int64
	Nanos    uint32
	Links    uint32
	Target   string
}

// List, Stat, Read and Tar are requests.
type List struct {
	Volume, Path, After string
	Limit               uint32
}

// Stat asks for one entry.
type Stat struct {
	Volume, Path string
	Follow       bool
}

// Read asks for a file's bytes.
type Read struct{ Volume, Path string }

// Tar asks for an archive.
type Tar struct{ Items []TarItem }

// TarItem is a tree, and the name that it has in the archive.
type TarItem struct{ Volume, Path, Name string }

var le = binary.LittleEndian

func str(b []byte, s string) []byte {
	s = s[:min(len(s), 65535)]
	return append(le.AppendUint16(b, uint16(len(s))), s...)
}

// Append makes a payload.
func (e End) Append(b []byte) []byte { return str(append(b, byte(e.Code)), e.Message) }

// Append makes a payload.
func (v Volume) Append(b []byte) []byte {
	b = str(str(str(str(b, v.ID), v.FS), v.Label), v.UUID)
	b = le.AppendUint64(b, v.Size)
	b = le.AppendUint16(le.AppendUint16(b, v.Disk), v.Part)
	return str(str(b, v.Place), v.Note)
}

// Append makes a payload.
func (e Entry) Append(b []byte) []byte {
	b = append(str(b, e.Name), byte(e.Kind))
	b = le.AppendUint32(le.AppendUint32(le.AppendUint32(b, e.Mode), e.UID), e.GID)
	b = le.AppendUint64(le.AppendUint64(b, e.Size), uint64(e.Seconds))
	b = le.AppendUint32(le.AppendUint32(b, e.Nanos), e.Links)
	return str(b, e.Target)
}

// Append makes a payload.
func (l List) Append(b []byte) []byte {
	return le.AppendUint32(str(str(str(b, l.Volume), l.Path), l.After), l.Limit)
}

// Append makes a payload.
func (s Stat) Append(b []byte) []byte {
	b = str(str(b, s.Volume), s.Path)
	if s.Follow {
		return append(b, 1)
	}
	return append(b, 0)
}

// Append makes a payload.
func (r Read) Append(b []byte) []byte { return str(str(b, r.Volume), r.Path) }

// Append makes a payload of at most 65,535 items.
func (t Tar) Append(b []byte) []byte {
	b = le.AppendUint16(b, uint16(len(t.Items)))
	for _, i := range t.Items {
		b = str(str(str(b, i.Volume), i.Path), i.Name)
	}
	return b
}

// Hello is the payload of TypeHello and, with a text instead of the magic before it, of TypeHelloBack.
func Hello() []byte { return le.AppendUint16([]byte(Magic), Version) }

// HelloBack is the helper's answer.
func HelloBack(release string) []byte { return str(le.AppendUint16(nil, Version), release) }

// dec takes a payload apart. The first error stays, and later reads give zeros.
type dec struct {
	b   []byte
	bad bool
}

func (d *dec) take(n int) []byte {
	if d.bad || n > len(d.b) {
		d.bad, d.b = true, nil
		return make([]byte, min(n, 8))
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}

func (d *dec) u8() uint8   { return d.take(1)[0] }
func (d *dec) u16() uint16 { return le.Uint16(d.take(2)) }
func (d *dec) u32() uint32 { return le.Uint32(d.take(4)) }
func (d *dec) u64() uint64 { return le.Uint64(d.take(8)) }
func (d *dec) str() string {
	n := int(d.u16())
	if d.bad || n > len(d.b) {
		d.bad, d.b = true, nil
		return ""
	}
	return string(d.take(n))
}

func (d *dec) end(what string) error {
	if d.bad || len(d.b) > 0 {
		return fmt.Errorf("%w: %s of a wrong length", ErrFormat, what)
	}
	return nil
}

// ParseHello gives the client's version.
func ParseHello(b []byte) (version uint16, err error) {
	d := &dec{b: b}
	if string(d.take(8)) != Magic {
		return 0, fmt.Errorf("%w: hello without the magic", ErrFormat)
	}
	version = d.u16()
	return version, d.end("hello")
}

// ParseHelloBack gives the helper's version and kernel.
func ParseHelloBack(b []byte) (version uint16, release string, err error) {
	d := &dec{b: b}
	version, release = d.u16(), d.str()
	return version, release, d.end("hello")
}

// ParseEnd parses a payload.
func ParseEnd(b []byte) (End, error) {
	d := &dec{b: b}
	e := End{Code: Code(d.u8()), Message: d.str()}
	return e, d.end("end")
}

// ParseVolume parses a payload.
func ParseVolume(b []byte) (Volume, error) {
	d := &dec{b: b}
	v := Volume{ID: d.str(), FS: d.str(), Label: d.str(), UUID: d.str(), Size: d.u64(), Disk: d.u16(), Part: d.u16(), Place: d.str(), Note: d.str()}
	return v, d.end("volume")
}

// ParseEntry parses a payload.
func ParseEntry(b []byte) (Entry, error) {
	d := &dec{b: b}
	e := Entry{Name: d.str(), Kind: Kind(d.u8()), Mode: d.u32(), UID: d.u32(), GID: d.u32(), Size: d.u64(), Seconds: int64(d.u64()), Nanos: d.u32(), Links: d.u32(), Target: d.str()}
	return e, d.end("entry")
}

// ParseList parses a payload.
func ParseList(b []byte) (List, error) {
	d := &dec{b: b}
	l := List{Volume: d.str(), Path: d.str(), After: d.str(), Limit: d.u32()}
	return l, d.end("list")
}

// ParseStat parses a payload.
func ParseStat(b []byte) (Stat, error) {
	d := &dec{b: b}
	s := Stat{Volume: d.str(), Path: d.str(), Follow: d.u8() == 1}
	return s, d.end("stat")
}

// ParseRead parses a payload.
func ParseRead(b []byte) (Read, error) {
	d := &dec{b: b}
	r := Read{Volume: d.str(), Path: d.str()}
	return r, d.end("read")
}

// ParseTar parses a payload.
func ParseTar(b []byte) (Tar, error) {
	d := &dec{b: b}
	n := int(d.u16())
	var t Tar
	for range n {
		if d.bad {
			break
		}
		t.Items = append(t.Items, TarItem{Volume: d.str(), Path: d.str(), Name: d.str()})
	}
	return t, d.end("tar")
}

// ParseHole parses a payload.
func ParseHole(b []byte) (uint64, error) {
	d := &dec{b: b}
	n := d.u64()
	return n, d.end("hole")
}

// Hole makes a payload.
func Hole(n uint64) []byte { return le.AppendUint64(nil, n) }
