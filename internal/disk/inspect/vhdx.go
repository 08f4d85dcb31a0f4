package inspect

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
)

// GUIDs of MS-VHDX 2.2, as they lie in the file.
var (
	vhdxBAT      = []byte{0x66, 0x77, 0xC2, 0x2D, 0x23, 0xF6, 0x00, 0x42, 0x9D, 0x64, 0x11, 0x5E, 0x9B, 0xFD, 0x4A, 0x08}
	vhdxMetadata = []byte{0x06, 0xA2, 0x7C, 0x8B, 0x90, 0x47, 0x9A, 0x4B, 0xB8, 0xFE, 0x57, 0x5F, 0x05, 0x0F, 0x88, 0x6E}
	vhdxParams   = []byte{0x37, 0x67, 0xA1, 0xCA, 0x36, 0xFA, 0x43, 0x4D, 0xB3, 0xB6, 0x33, 0xF0, 0xAA, 0x44, 0xE7, 0x6B}
	vhdxSize     = []byte{0x24, 0x42, 0xA5, 0x2F, 0x1B, 0xCD, 0x76, 0x48, 0xB2, 0x11, 0x5D, 0xBE, 0xD8, 0x3B, 0xF4, 0xB8}
	vhdxSector   = []byte{0x1D, 0xBF, 0x41, 0x81, 0x6F, 0xA9, 0x09, 0x47, 0xBA, 0x47, 0xF2, 0x33, 0xA8, 0xFA, 0xAB, 0x5F}
	vhdxParent   = []byte{0x2D, 0x5F, 0xD3, 0xA8, 0x0B, 0xB3, 0x4D, 0x45, 0xAB, 0xF7, 0xD3, 0xD8, 0x48, 0x34, 0xAB, 0x0C}
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// vhdx checks MS-VHDX structures: header, region table, metadata, block table.
func vhdx(f file) (Info, error) {
	id, err := f.at(VHDX, "the file identifier", 0, 8)
	if err != nil {
		return Info{}, err
	}
	if !bytes.Equal(id, vhdxMagic) {
		return Info{}, refuse(VHDX, "the magic number is wrong")
	}
	if err := vhdxHeader(f); err != nil {
		return Info{}, err
	}
	bat, meta, err := vhdxRegions(f)
	if err != nil {
		return Info{}, err
	}
	size, block, sector, err := vhdxMeta(f, meta)
	if err != nil {
		return Info{}, err
	}
	if err := checkVirtual(VHDX, size); err != nil {
		return Info{}, err
	}
	// MS-VHDX 2.5.1: one bitmap entry follows every chunk of payload entries.
	chunk := (uint64(1) << 23) * sector / block
	payload := (size + block - 1) / block
	entries := payload + (payload-1)/chunk
	if entries*8 > bat.n {
		return Info{}, refuse(VHDX, "the block table has %d bytes; a disk of %d bytes needs %d", bat.n, size, entries*8)
	}
	for done := uint64(0); done < entries; {
		step := min(entries-done, 1<<16)
		b, err := f.at(VHDX, "the block table", bat.off+done*8, int(step*8))
		if err != nil {
			return Info{}, err
		}
		for i := uint64(0); i < step; i++ {
			e := binary.LittleEndian.Uint64(b[i*8:])
			if state := e & 7; (state == 6 || state == 7) && !f.holds(e>>20<<20, block) {
				return Info{}, refuse(VHDX, "a block at %d MiB lies beyond the end of the file: truncated or corrupt", e>>20)
			}
		}
		done += step
	}
	return Info{VirtualSize: int64(size)}, nil
}

// vhdxHeader finds the current one of the two headers.
func vhdxHeader(f file) error {
	var best []byte
	var seq uint64
	for _, off := range []uint64{64 << 10, 128 << 10} {
		h, err := f.at(VHDX, "the header", off, 4096)
		if err != nil {
			return err
		}
		if !bytes.HasPrefix(h, []byte("head")) || !crcOK(h) {
			continue
		}
		if n := binary.LittleEndian.Uint64(h[8:]); best == nil || n > seq {
			best, seq = h, n
		}
	}
	if best == nil {
		return refuse(VHDX, "both headers are corrupt")
	}
	if v := binary.LittleEndian.Uint16(best[66:]); v != 1 {
		return refuse(VHDX, "version %d isn't supported", v)
	}
	if !bytes.Equal(best[48:64], make([]byte, 16)) {
		return refuse(VHDX, "it wasn't closed cleanly (its log isn't empty); open it once where it comes from, then export it again")
	}
	return nil
}

type vhdxRegion struct{ off, n uint64 }

func vhdxRegions(f file) (bat, meta vhdxRegion, err error) {
	for _, off := range []uint64{192 << 10, 256 << 10} {
		t, err := f.at(VHDX, "the region table", off, 64<<10)
		if err != nil {
			return bat, meta, err
		}
		if !bytes.HasPrefix(t, []byte("regi")) || !crcOK(t) {
			continue
		}
		n := binary.LittleEndian.Uint32(t[8:])
		if n > 2047 {
			return bat, meta, refuse(VHDX, "the region table claims %d entries", n)
		}
		for i := range n {
			e := t[16+32*i:]
			r := vhdxRegion{binary.LittleEndian.Uint64(e[16:]), uint64(binary.LittleEndian.Uint32(e[24:]))}
			known := true
			switch {
			case bytes.Equal(e[:16], vhdxBAT):
				bat = r
			case bytes.Equal(e[:16], vhdxMetadata):
				meta = r
			default:
				known = false
			}
			if !known && binary.LittleEndian.Uint32(e[28:])&1 != 0 {
				return bat, meta, refuse(VHDX, "it needs a region that isn't known")
			}
			if known && (r.off < 1<<20 || !f.holds(r.off, r.n)) {
				return bat, meta, refuse(VHDX, "a region (%d bytes at %d) lies beyond the end of the file: truncated or corrupt", r.n, r.off)
			}
		}
		if bat.n == 0 || meta.n < 64<<10 {
			return bat, meta, refuse(VHDX, "the block table or the metadata is missing")
		}
		return bat, meta, nil
	}
	return bat, meta, refuse(VHDX, "both region tables are corrupt")
}

func vhdxMeta(f file, meta vhdxRegion) (size, block, sector uint64, err error) {
	t, err := f.at(VHDX, "the metadata table", meta.off, 64<<10)
	if err != nil {
		return 0, 0, 0, err
	}
	le := binary.LittleEndian
	n := le.Uint16(t[10:])
	if !bytes.HasPrefix(t, []byte("metadata")) || n > 2047 {
		return 0, 0, 0, refuse(VHDX, "the metadata table is corrupt")
	}
	for i := range int(n) {
		e := t[32+32*i:]
		off, length := uint64(le.Uint32(e[16:])), uint64(le.Uint32(e[20:]))
		if off > meta.n || length > meta.n-off {
			return 0, 0, 0, refuse(VHDX, "a metadata item lies outside its region")
		}
		if bytes.Equal(e[:16], vhdxParent) {
			return 0, 0, 0, refuse(VHDX, "it is a differencing disk with a parent file; export the whole disk")
		}
		if length < 4 {
			continue
		}
		v, err := f.at(VHDX, "a metadata item", meta.off+off, int(min(length, 8)))
		if err != nil {
			return 0, 0, 0, err
		}
		v = append(v, 0, 0, 0, 0)
		switch {
		case bytes.Equal(e[:16], vhdxParams):
			block = uint64(le.Uint32(v))
			if le.Uint32(v[4:])&2 != 0 {
				return 0, 0, 0, refuse(VHDX, "it is a differencing disk with a parent file; export the whole disk")
			}
		case bytes.Equal(e[:16], vhdxSize):
			size = le.Uint64(v)
		case bytes.Equal(e[:16], vhdxSector):
			sector = uint64(le.Uint32(v))
		}
	}
	if !powerOfTwo(block) || block < 1<<20 || block > 256<<20 {
		return 0, 0, 0, refuse(VHDX, "the block size %d is invalid", block)
	}
	if sector != 512 && sector != 4096 {
		return 0, 0, 0, refuse(VHDX, "the sector size %d is invalid", sector)
	}
	return size, block, sector, nil
}

// crcOK checks a structure's CRC-32C, stored at 4 and taken as zero.
func crcOK(b []byte) bool {
	c := bytes.Clone(b)
	clear(c[4:8])
	return crc32.Checksum(c, castagnoli) == binary.LittleEndian.Uint32(b[4:])
}
