package inspect

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// Format names an image format as qemu-img does where it knows it.
type Format string

// The formats that Inspect recognises.
const (
	QCOW2 Format = "qcow2"
	Raw   Format = "raw"
	VMDK  Format = "vmdk"
	VHDX  Format = "vhdx"
	VHD   Format = "vpc"
	OVA   Format = "ova"
	ISO   Format = "iso"
	XZ    Format = "xz"
	Gzip  Format = "gz"
	Zstd  Format = "zst"
	// Kernel is a kernel image (docs/formats/kernel-image.md), which qemu-img does not know.
	Kernel Format = "kernel"
)

// Compressed says whether the format is a wrapper around another image.
func (f Format) Compressed() bool { return f == XZ || f == Gzip || f == Zstd }

// MaxVirtual is the largest virtual disk that is believed: 64 TiB.
const MaxVirtual int64 = 64 << 40

// Info is what an image claims, after the claims were checked against the file.
type Info struct {
	Format      Format
	Variant     string // "v3", "streamOptimized", "dynamic", …
	VirtualSize int64  // bytes; 0 for wrappers and OVA
	FileSize    int64
	ClusterSize int64  // qcow2 only
	Snapshots   int    // internal snapshots (qcow2); a conversion drops them
	Label       string // ISO volume label
	Disks       []Member
}

// Member is a disk inside an OVA: a byte range of the archive.
type Member struct {
	Name     string // base name, checked
	Offset   int64
	Size     int64
	Capacity int64 // what the OVF says
}

// Options guide Inspect. The zero value guesses by content.
type Options struct {
	// Format is the caller's word on the format; Raw accepts any content.
	Format Format
}

// ErrRefused is what every Refusal is.
var ErrRefused = errors.New("image refused")

// Refusal says why an image isn't accepted.
type Refusal struct {
	Format Format
	Reason string
}

func (r *Refusal) Error() string {
	if r.Format == "" {
		return "image refused: " + r.Reason
	}
	return fmt.Sprintf("%s image refused: %s", r.Format, r.Reason)
}

// Is makes errors.Is(err, ErrRefused) true.
func (r *Refusal) Is(target error) bool { return target == ErrRefused }

func refuse(f Format, format string, args ...any) error {
	return &Refusal{Format: f, Reason: fmt.Sprintf(format, args...)}
}

// Inspect checks the image of size bytes in r.
func Inspect(r io.ReaderAt, size int64, opt Options) (Info, error) {
	if size <= 0 {
		return Info{}, refuse(opt.Format, "the file is empty")
	}
	f := opt.Format
	if f == "" {
		var err error
		if f, err = Detect(r, size); err != nil {
			return Info{}, err
		}
	}
	file := file{r: r, size: size}
	var info Info
	var err error
	switch f {
	case QCOW2:
		info, err = qcow2(file)
	case VMDK:
		info, err = vmdk(file)
	case VHDX:
		info, err = vhdx(file)
	case VHD:
		info, err = vhd(file)
	case OVA:
		info, err = ova(file)
	case ISO:
		info, err = iso(file)
	case Raw:
		info, err = raw(file)
	case XZ, Gzip, Zstd, Kernel:
	default:
		return Info{}, refuse(f, "the format isn't known; known are qcow2, raw, vmdk, vhdx, vpc, ova, iso, xz, gz, zst, kernel")
	}
	if err != nil {
		return Info{}, err
	}
	info.Format, info.FileSize = f, size
	return info, nil
}

var (
	qcowMagic = []byte("QFI\xfb")
	vmdkMagic = []byte("KDMV")
	vhdxMagic = []byte("vhdxfile")
	vhdMagic  = []byte("conectix")
	isoMagic  = []byte("CD001")
)

// Detect names the format of the content, or refuses.
func Detect(r io.ReaderAt, size int64) (Format, error) {
	f := file{r: r, size: size}
	head := f.upTo(0, 4096)
	switch {
	case bytes.HasPrefix(head, qcowMagic):
		return QCOW2, nil
	case bytes.HasPrefix(head, vmdkMagic):
		return VMDK, nil
	case bytes.HasPrefix(head, vhdxMagic):
		return VHDX, nil
	case bytes.HasPrefix(head, vhdMagic):
		return VHD, nil
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		return XZ, nil
	case bytes.HasPrefix(head, []byte("\x1f\x8b")):
		return Gzip, nil
	case bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")):
		return Zstd, nil
	case bytes.HasPrefix(head, []byte("# Disk DescriptorFile")):
		return "", refuse(VMDK, "it is only a text descriptor that points at other files; export one monolithicSparse or streamOptimized file")
	case bytes.HasPrefix(head, []byte("COWD")):
		return "", refuse(VMDK, "the old ESX sparse format isn't supported; export as streamOptimized")
	case len(head) >= 262 && bytes.Equal(head[257:262], []byte("ustar")):
		if bytes.HasPrefix(head, []byte("image.json\x00")) {
			return Kernel, nil
		}
		return OVA, nil
	case bytes.Equal(f.upTo(32769, 5), isoMagic):
		return ISO, nil
	case size >= 512 && bytes.HasPrefix(f.upTo(size-512, 512), vhdMagic):
		return VHD, nil
	case bootable(f, head):
		return Raw, nil
	}
	n := min(len(head), 16)
	return "", refuse("", "the content is no known disk image (it begins with %q); if it really is a raw disk, say format raw", head[:n])
}

// bootable knows the marks of a raw disk: MBR, GPT, or a bare file system.
func bootable(f file, head []byte) bool {
	if f.size < 1<<20 || f.size%512 != 0 {
		return false
	}
	switch {
	case len(head) >= 520 && bytes.Equal(head[512:520], []byte("EFI PART")):
		return true
	case len(head) >= 512 && head[510] == 0x55 && head[511] == 0xaa:
		return true
	case len(head) >= 1082 && head[1080] == 0x53 && head[1081] == 0xef: // ext2/3/4
		return true
	case bytes.HasPrefix(head, []byte("XFSB")), bytes.HasPrefix(head, []byte("hsqs")):
		return true
	case bytes.Equal(f.upTo(0x10040, 8), []byte("_BHRfS_M")): // btrfs
		return true
	}
	return false
}

func raw(f file) (Info, error) {
	if f.size > MaxVirtual {
		return Info{}, refuse(Raw, "it is %d bytes; more than 64 TiB isn't believed", f.size)
	}
	// QEMU rounds the end up to a sector; so does the virtual size.
	return Info{VirtualSize: (f.size + 511) &^ 511}, nil
}

// checkVirtual bounds the size that a header claims.
func checkVirtual(f Format, n uint64) error {
	switch {
	case n == 0:
		return refuse(f, "the disk inside has size zero")
	case n > uint64(MaxVirtual):
		return refuse(f, "the header claims %d bytes; more than 64 TiB isn't believed", n)
	case n%512 != 0:
		return refuse(f, "the header claims %d bytes, which isn't a multiple of 512", n)
	}
	return nil
}

// file is a bounded view: no read leaves [0,size).
type file struct {
	r    io.ReaderAt
	size int64
}

// at reads exactly n bytes or refuses as truncated. The caller bounds n.
func (f file) at(fm Format, what string, off uint64, n int) ([]byte, error) {
	if !f.holds(off, uint64(n)) {
		return nil, refuse(fm, "%s (%d bytes at %d) lies beyond the end of the file (%d bytes): truncated or corrupt", what, n, off, f.size)
	}
	b := make([]byte, n)
	if k, err := f.r.ReadAt(b, int64(off)); k < n {
		return nil, fmt.Errorf("read %s at %d: %w", what, off, err)
	}
	return b, nil
}

// upTo reads at most n bytes; short at the end of the file.
func (f file) upTo(off int64, n int) []byte {
	if off < 0 || off >= f.size {
		return nil
	}
	b := make([]byte, min(int64(n), f.size-off))
	k, _ := f.r.ReadAt(b, off)
	return b[:k]
}

// holds says whether the n bytes at off are inside the file, without overflow.
func (f file) holds(off, n uint64) bool {
	return off <= uint64(f.size) && n <= uint64(f.size)-off
}
