package pack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Sizes of the format, in bytes, and its limits.
const (
	HeaderSize  = 64
	HeadSize    = 44
	CRCSize     = 4
	TagSize     = 16
	EntrySize   = 48
	TrailerSize = 32

	Target     = 64 << 20 // a pack ends with the record that passes it
	MaxRecords = 65535
	// MaxSize is more than any pack has: a full one, and the largest record, and the footer.
	MaxSize = Target + MaxRaw + 1<<16 + MaxRecords*EntrySize
	// MaxRaw is the most that one record holds before compression.
	MaxRaw = 4 << 20

	recordTag = 0xD7
)

// ErrDamaged says that bytes are not what was written.
var ErrDamaged = errors.New("damaged")

var (
	castagnoli   = crc32.MakeTable(crc32.Castagnoli)
	headerMagic  = [8]byte{'D', 'R', 'V', 'P', 'A', 'C', 'K', '1'}
	trailerMagic = [8]byte{'D', 'R', 'V', 'F', 'O', 'O', 'T', '1'}
)

// Kind tells packs of blocks from packs of pages.
type Kind byte

// The kinds.
const (
	Data Kind = 1
	Meta Kind = 2
)

// Header is the beginning of a pack.
type Header struct {
	Kind       Kind
	Generation uint32
	Pack       PackID
	Repository [16]byte
}

// Append appends the header's bytes.
func (h *Header) Append(b []byte) []byte {
	start := len(b)
	b = append(b, headerMagic[:]...)
	b = append(b, byte(h.Kind), 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, h.Generation)
	b = append(b, h.Pack[:]...)
	b = append(b, h.Repository[:]...)
	b = append(b, make([]byte, 12)...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// ParseHeader reads a header.
func ParseHeader(b []byte) (Header, error) {
	var h Header
	if len(b) < HeaderSize {
		return h, fmt.Errorf("%w: the header is cut off", ErrDamaged)
	}
	if [8]byte(b[:8]) != headerMagic {
		return h, fmt.Errorf("%w: not a pack", ErrDamaged)
	}
	if crc32.Checksum(b[:60], castagnoli) != binary.LittleEndian.Uint32(b[60:]) {
		return h, fmt.Errorf("%w: the header's checksum is wrong", ErrDamaged)
	}
	h = Header{Kind: Kind(b[8]), Generation: binary.LittleEndian.Uint32(b[12:]), Pack: PackID(b[16:32]), Repository: [16]byte(b[32:48])}
	if h.Kind != Data && h.Kind != Meta {
		return h, fmt.Errorf("%w: a pack of unknown kind %d", ErrDamaged, h.Kind)
	}
	return h, nil
}

// Head stands before a payload.
type Head struct {
	Codec  Codec
	Raw    uint32
	Stored uint32
	ID     ID
}

// Size is the whole record's length.
func (h *Head) Size() int { return HeadSize + int(h.Stored) + CRCSize }

// Put writes the head to b, of HeadSize bytes.
func (h *Head) Put(b []byte) {
	_ = b[HeadSize-1]
	b[0], b[1], b[2], b[3] = recordTag, byte(h.Codec), 0, 0
	binary.LittleEndian.PutUint32(b[4:], h.Raw)
	binary.LittleEndian.PutUint32(b[8:], h.Stored)
	copy(b[12:], h.ID[:])
}

// Finish writes the checksum behind a record that stands whole in b.
func Finish(b []byte) {
	n := len(b) - CRCSize
	binary.LittleEndian.PutUint32(b[n:], crc32.Checksum(b[:n], castagnoli))
}

// ParseRecord reads the record that b begins with, checks its checksum, and returns its payload as stored, which is part of b.
func ParseRecord(b []byte) (Head, []byte, error) {
	var h Head
	if len(b) < HeadSize+CRCSize {
		return h, nil, fmt.Errorf("%w: the record is cut off", ErrDamaged)
	}
	if b[0] != recordTag || b[2] != 0 || b[3] != 0 {
		return h, nil, fmt.Errorf("%w: no record begins here", ErrDamaged)
	}
	h = Head{Codec: Codec(b[1]), Raw: binary.LittleEndian.Uint32(b[4:]), Stored: binary.LittleEndian.Uint32(b[8:]), ID: ID(b[12:44])}
	if h.Raw > MaxRaw || h.Codec > maxCodec || int64(h.Stored) > int64(len(b)-HeadSize-CRCSize) {
		return h, nil, fmt.Errorf("%w: the record's lengths are wrong", ErrDamaged)
	}
	n := HeadSize + int(h.Stored)
	if crc32.Checksum(b[:n], castagnoli) != binary.LittleEndian.Uint32(b[n:]) {
		return h, nil, fmt.Errorf("%w: the record's checksum is wrong", ErrDamaged)
	}
	return h, b[HeadSize:n], nil
}

// Trailer ends a pack.
type Trailer struct {
	Footer  uint32 // its stored length
	Records uint32
	Size    uint64 // of the pack
}

// AppendFooter appends the footer and the trailer to a pack's last bytes b, of which offset stand before b[0]. It returns the pack's size too.
func AppendFooter(b []byte, offset int64, s *Sealer, entries []Entry) ([]byte, int64) {
	plain := make([]byte, 0, len(entries)*EntrySize+TagSize)
	for i := range entries {
		e := &entries[i]
		plain = append(plain, e.ID[:]...)
		plain = binary.LittleEndian.AppendUint32(plain, e.Offset)
		plain = binary.LittleEndian.AppendUint32(plain, e.Stored)
		plain = binary.LittleEndian.AppendUint32(plain, e.Raw)
		plain = append(plain, byte(e.Codec), 0, 0, 0)
	}
	stored := s.Seal(plain[:0], plain, footerNumber, nil)
	start := len(b)
	b = append(b, stored...)
	b = append(b, trailerMagic[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(stored)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(entries)))
	size := offset + int64(len(b)) + 16
	b = binary.LittleEndian.AppendUint64(b, uint64(size))
	b = append(b, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
	return b, size
}

// TailSize is how much of a pack's end holds the footer and the trailer of so many records.
func TailSize(records int, sealed bool) int {
	n := records*EntrySize + TrailerSize
	if sealed {
		n += TagSize
	}
	return n
}

// ParseTail reads the footer. The tail is the pack's end, at least TailSize long, size the pack's length.
func ParseTail(tail []byte, size int64, s *Sealer) ([]Entry, error) {
	if len(tail) < TrailerSize {
		return nil, fmt.Errorf("%w: the trailer is cut off", ErrDamaged)
	}
	t := tail[len(tail)-TrailerSize:]
	if [8]byte(t[:8]) != trailerMagic {
		return nil, fmt.Errorf("%w: the pack has no trailer", ErrDamaged)
	}
	stored, records := int64(binary.LittleEndian.Uint32(t[8:])), int(binary.LittleEndian.Uint32(t[12:]))
	if binary.LittleEndian.Uint64(t[16:]) != uint64(size) || records > MaxRecords || stored+TrailerSize > int64(len(tail)) {
		return nil, fmt.Errorf("%w: the trailer's lengths are wrong", ErrDamaged)
	}
	whole := tail[len(tail)-TrailerSize-int(stored):]
	if crc32.Checksum(whole[:len(whole)-CRCSize], castagnoli) != binary.LittleEndian.Uint32(whole[len(whole)-CRCSize:]) {
		return nil, fmt.Errorf("%w: the footer's checksum is wrong", ErrDamaged)
	}
	plain, err := s.Open(nil, whole[:stored], footerNumber, nil)
	if err != nil {
		return nil, fmt.Errorf("the footer: %w", err)
	}
	if len(plain) != records*EntrySize {
		return nil, fmt.Errorf("%w: the footer has the wrong length", ErrDamaged)
	}
	entries := make([]Entry, records)
	end := int64(HeaderSize)
	for i := range entries {
		p := plain[i*EntrySize:]
		e := Entry{ID: ID(p[:32]), Offset: binary.LittleEndian.Uint32(p[32:]), Stored: binary.LittleEndian.Uint32(p[36:]), Raw: binary.LittleEndian.Uint32(p[40:]), Codec: Codec(p[44])}
		if int64(e.Offset) != end || e.Raw > MaxRaw || e.Codec > maxCodec {
			return nil, fmt.Errorf("%w: the footer's record %d is impossible", ErrDamaged, i)
		}
		end += HeadSize + int64(e.Stored) + CRCSize
		entries[i] = e
	}
	if end != size-int64(len(whole)) {
		return nil, fmt.Errorf("%w: the footer does not say where records end", ErrDamaged)
	}
	return entries, nil
}

// Scan reads records from the beginning of a pack whose end was lost, up to the first that is wrong. What is returned was checked by checksum alone.
func Scan(b []byte) (Header, []Entry, error) {
	h, err := ParseHeader(b)
	if err != nil {
		return h, nil, err
	}
	var entries []Entry
	for off := HeaderSize; len(entries) < MaxRecords; {
		head, _, err := ParseRecord(b[off:])
		if err != nil {
			break
		}
		entries = append(entries, Entry{ID: head.ID, Offset: uint32(off), Stored: head.Stored, Raw: head.Raw, Codec: head.Codec})
		off += head.Size()
	}
	return h, entries, nil
}
