package inspect

import (
	"encoding/binary"
	"strings"
)

// iso checks the primary volume descriptor (ECMA-119 8.4).
func iso(f file) (Info, error) {
	d, err := f.at(ISO, "the primary volume descriptor", 32768, 2048)
	if err != nil {
		return Info{}, err
	}
	if d[0] != 1 || string(d[1:6]) != string(isoMagic) || d[6] != 1 {
		return Info{}, refuse(ISO, "the primary volume descriptor is corrupt")
	}
	n := uint64(binary.LittleEndian.Uint32(d[80:]))
	if n != uint64(binary.BigEndian.Uint32(d[84:])) || binary.LittleEndian.Uint16(d[128:]) != 2048 {
		return Info{}, refuse(ISO, "the volume size or block size is corrupt")
	}
	if n*2048 > uint64(f.size) {
		return Info{}, refuse(ISO, "the volume has %d bytes, the file %d: truncated", n*2048, f.size)
	}
	root := uint64(binary.LittleEndian.Uint32(d[158:])) * 2048
	if d[156] != 34 || !f.holds(root, uint64(binary.LittleEndian.Uint32(d[166:]))) {
		return Info{}, refuse(ISO, "the root directory is corrupt or beyond the end of the file")
	}
	label := strings.Map(func(r rune) rune {
		if r < 0x20 || r > 0x7e {
			return -1
		}
		return r
	}, string(d[40:72]))
	return Info{VirtualSize: f.size, Label: strings.TrimSpace(label)}, nil
}
