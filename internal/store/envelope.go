package store

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// The envelope's fixed bytes; the layout is in doc.go.
const (
	envelopeMagic   = 0xD7
	envelopeVersion = 0x01
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal wraps payload as schema version v.
func seal(v uint32, payload []byte) []byte {
	b := make([]byte, 0, 2+binary.MaxVarintLen32+4+len(payload))
	b = append(b, envelopeMagic, envelopeVersion)
	b = binary.AppendUvarint(b, uint64(v))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(payload, castagnoli))
	return append(b, payload...)
}

// unseal gives the schema version and the payload, which aliases b.
func unseal(b []byte) (uint32, []byte, error) {
	if len(b) < 2 || b[0] != envelopeMagic {
		return 0, nil, fmt.Errorf("%w: no envelope", ErrCorrupt)
	}
	if b[1] > envelopeVersion {
		return 0, nil, fmt.Errorf("%w: envelope version %d, this one knows up to %d", ErrNewerSchema, b[1], envelopeVersion)
	}
	if b[1] != envelopeVersion {
		return 0, nil, fmt.Errorf("%w: envelope version %d", ErrCorrupt, b[1])
	}
	b = b[2:]
	v, n := binary.Uvarint(b)
	if n <= 0 || v == 0 || v > 1<<31 {
		return 0, nil, fmt.Errorf("%w: bad schema version", ErrCorrupt)
	}
	b = b[n:]
	if len(b) < 4 {
		return 0, nil, fmt.Errorf("%w: truncated", ErrCorrupt)
	}
	sum, payload := binary.LittleEndian.Uint32(b), b[4:]
	if crc32.Checksum(payload, castagnoli) != sum {
		return 0, nil, fmt.Errorf("%w: checksum does not match", ErrCorrupt)
	}
	return uint32(v), payload, nil
}
