package inspect

import (
	"bytes"
	"encoding/binary"
)

// vhd checks a VHD (Microsoft's "Virtual Hard Disk Image Format Specification" 1.0): fixed or dynamic.
func vhd(f file) (Info, error) {
	if f.size < 1024 {
		return Info{}, refuse(VHD, "the file is too short: truncated")
	}
	foot, err := f.at(VHD, "the footer", uint64(f.size)-512, 512)
	if err != nil {
		return Info{}, err
	}
	if !bytes.HasPrefix(foot, vhdMagic) {
		return Info{}, refuse(VHD, "the footer at the end is missing: truncated or corrupt")
	}
	be := binary.BigEndian
	if be.Uint32(foot[64:]) != vhdSum(foot, 64) {
		return Info{}, refuse(VHD, "the footer's checksum is wrong: corrupt")
	}
	size := be.Uint64(foot[48:])
	if err := checkVirtual(VHD, size); err != nil {
		return Info{}, err
	}
	switch kind := be.Uint32(foot[60:]); kind {
	case 2:
		if uint64(f.size)-512 < size {
			return Info{}, refuse(VHD, "it claims %d bytes but holds %d: truncated", size, f.size-512)
		}
		return Info{Variant: "fixed", VirtualSize: int64(size)}, nil
	case 3:
		head, err := f.at(VHD, "the copy of the footer", 0, 512)
		if err != nil {
			return Info{}, err
		}
		if !bytes.Equal(head, foot) {
			return Info{}, refuse(VHD, "the footer and its copy at the start differ: corrupt")
		}
		return Info{Variant: "dynamic", VirtualSize: int64(size)}, vhdDynamic(f, be.Uint64(foot[16:]), size)
	case 4:
		return Info{}, refuse(VHD, "it is a differencing disk with a parent file; export the whole disk")
	default:
		return Info{}, refuse(VHD, "the disk type %d isn't supported", kind)
	}
}

func vhdDynamic(f file, off, size uint64) error {
	h, err := f.at(VHD, "the dynamic header", off, 1024)
	if err != nil {
		return err
	}
	be := binary.BigEndian
	if !bytes.HasPrefix(h, []byte("cxsparse")) || be.Uint32(h[36:]) != vhdSum(h, 36) {
		return refuse(VHD, "the dynamic header is corrupt")
	}
	table, n, block := be.Uint64(h[16:]), uint64(be.Uint32(h[28:])), uint64(be.Uint32(h[32:]))
	if !powerOfTwo(block) || block < 4096 || block > 256<<20 {
		return refuse(VHD, "the block size %d is invalid", block)
	}
	if n < (size+block-1)/block {
		return refuse(VHD, "the block table has %d entries; a disk of %d bytes needs more", n, size)
	}
	if !f.holds(table, n*4) {
		return refuse(VHD, "the block table lies beyond the end of the file: truncated or corrupt")
	}
	bitmap := (block/512/8 + 511) &^ 511
	for done := uint64(0); done < n; {
		step := min(n-done, 1<<16)
		b, err := f.at(VHD, "the block table", table+done*4, int(step*4))
		if err != nil {
			return err
		}
		for i := uint64(0); i < step; i++ {
			at := be.Uint32(b[i*4:])
			if at != 0xffffffff && !f.holds(uint64(at)*512, bitmap) {
				return refuse(VHD, "a block at sector %d lies beyond the end of the file: truncated or corrupt", at)
			}
		}
		done += step
	}
	return nil
}

// vhdSum is the one's complement of the sum of the bytes, without the checksum field at skip.
func vhdSum(b []byte, skip int) uint32 {
	var s uint32
	for i, c := range b {
		if i < skip || i >= skip+4 {
			s += uint32(c)
		}
	}
	return ^s
}
