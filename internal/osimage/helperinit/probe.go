package main

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// found is what a superblock says.
type found struct {
	fs, label, uuid string
	note            string // why it cannot be mounted
	devices         uint64 // of btrfs
}

// File systems and members that the code branches on.
const (
	fsMD      = "mdraid"
	fsLVM     = "lvm"
	fsBtrfs   = "btrfs"
	fsUnknown = "unknown"
)

// probe looks for the marks of what it knows. It never fails: what cannot be read is not found.
func probe(r io.ReaderAt, size int64) found {
	at := func(off int64, n int) []byte {
		b := make([]byte, n)
		if off >= 0 && off < size {
			r.ReadAt(b, off)
		}
		return b
	}
	b := at(0, 4096)
	super := at(1024, 1024)
	for _, off := range mdOffsets(size) {
		if binary.LittleEndian.Uint32(at(off, 4)) == mdMagic {
			return found{fs: fsMD}
		}
	}
	for s := range 4 {
		if string(b[s*512:s*512+8]) == "LABELONE" && string(b[s*512+24:s*512+32]) == "LVM2 001" {
			return found{fs: fsLVM}
		}
	}
	switch {
	case string(b[:6]) == "LUKS\xba\xbe":
		return found{fs: "luks", uuid: text(b[0xa8 : 0xa8+40]), note: "is encrypted (LUKS)"}
	case string(b[3:11]) == "-FVE-FS-":
		return found{fs: "bitlocker", note: "is encrypted (BitLocker)"}
	case string(b[:4]) == "XFSB":
		return found{fs: "xfs", label: text(b[108:120]), uuid: uuid(b[32:48])}
	case string(b[3:11]) == "NTFS    ":
		return found{fs: "ntfs", uuid: fmt.Sprintf("%016X", binary.LittleEndian.Uint64(b[0x48:]))}
	case string(b[3:11]) == "EXFAT   ":
		return found{fs: "exfat", uuid: fmt.Sprintf("%08X", binary.LittleEndian.Uint32(b[0x64:]))}
	case string(b[3:7]) == "ReFS":
		return found{fs: "refs", note: "ReFS is not supported"}
	case string(b[:4]) == "hsqs":
		return found{fs: "squashfs"}
	case binary.LittleEndian.Uint16(super[0x38:]) == 0xef53:
		return probeExt(super)
	case string(b[4086:4096]) == "SWAPSPACE2":
		return found{fs: "swap", note: "is swap space"}
	case string(b[4086:4096]) == "SWAP-SPACE":
		return found{fs: "swap", note: "is swap space"}
	}
	if s := at(0x10000, 1024); string(s[0x40:0x48]) == "_BHRfS_M" {
		return found{fs: fsBtrfs, label: text(s[0x12b : 0x12b+256]), uuid: uuid(s[0x20:0x30]), devices: binary.LittleEndian.Uint64(s[0x88:])}
	}
	if f, ok := probeFAT(b); ok {
		return f
	}
	if s := at(0x8000, 2048); string(s[1:6]) == "CD001" {
		return found{fs: "iso9660", label: text(s[40:72])}
	} else if string(s[1:6]) == "BEA01" {
		return found{fs: "udf"}
	}
	for off := int64(128 << 10); off < 256<<10; off += 1024 {
		if binary.LittleEndian.Uint64(at(off, 8)) == 0x00bab10c {
			return found{fs: "zfs", note: "ZFS is not supported"}
		}
	}
	return found{fs: fsUnknown, note: "has no file system that is known"}
}

// probeExt: Documentation/filesystems/ext4/super.rst.
func probeExt(s []byte) found {
	f := found{fs: "ext2", label: text(s[0x78:0x88]), uuid: uuid(s[0x68:0x78])}
	compat, incompat := binary.LittleEndian.Uint32(s[0x5c:]), binary.LittleEndian.Uint32(s[0x60:])
	if compat&4 != 0 {
		f.fs = "ext3"
	}
	if incompat&(0x40|0x80|0x200|0x8000) != 0 || binary.LittleEndian.Uint32(s[0x64:])&0x78 != 0 {
		f.fs = "ext4"
	}
	if incompat&8 != 0 {
		f.note = "is the journal of another file system"
	}
	return f
}

func probeFAT(b []byte) (found, bool) {
	sector := binary.LittleEndian.Uint16(b[11:])
	if b[510] != 0x55 || b[511] != 0xaa || b[0] != 0xeb && b[0] != 0xe9 || sector < 512 || sector&(sector-1) != 0 || b[13] == 0 || b[16] == 0 {
		return found{}, false
	}
	switch {
	case bytes.HasPrefix(b[0x52:], []byte("FAT32")):
		return found{fs: "vfat", label: fatLabel(b[0x47:0x52]), uuid: fmt.Sprintf("%08X", binary.LittleEndian.Uint32(b[0x43:]))}, true
	case bytes.HasPrefix(b[0x36:], []byte("FAT")):
		return found{fs: "vfat", label: fatLabel(b[0x2b:0x36]), uuid: fmt.Sprintf("%08X", binary.LittleEndian.Uint32(b[0x27:]))}, true
	}
	return found{}, false
}

func fatLabel(b []byte) string {
	if s := text(b); s != "NO NAME" {
		return s
	}
	return ""
}

// text is a field's printable UTF-8, up to its first NUL.
func text(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	s := strings.TrimSpace(string(b))
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return ""
	}
	return s
}

func uuid(b []byte) string {
	h := hex.EncodeToString(b)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
