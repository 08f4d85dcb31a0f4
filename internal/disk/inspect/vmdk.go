package inspect

import (
	"bytes"
	"encoding/binary"
	"strconv"
	"strings"
)

const (
	vmdkGDAtEnd   = ^uint64(0)
	vmdkCompress  = 1 << 16
	maxDescriptor = 1 << 20
)

// vmdk checks a hosted sparse extent (VMware's "Virtual Disk Format 5.0", section "Hosted Sparse Extents").
func vmdk(f file) (Info, error) {
	h, err := f.at(VMDK, "the header", 0, 512)
	if err != nil {
		return Info{}, err
	}
	le := binary.LittleEndian
	if !bytes.HasPrefix(h, vmdkMagic) {
		return Info{}, refuse(VMDK, "it has no sparse header: descriptors that point at other files aren't accepted; export one monolithicSparse or streamOptimized file")
	}
	if v := le.Uint32(h[4:]); v < 1 || v > 3 {
		return Info{}, refuse(VMDK, "version %d isn't supported", v)
	}
	capacity, desc, descLen := le.Uint64(h[12:]), le.Uint64(h[28:]), le.Uint64(h[36:])
	if capacity == 0 {
		return Info{}, refuse(VMDK, "its header holds only a descriptor that points at other files")
	}
	if h[72] != 0 && le.Uint32(h[8:])&vmdkCompress == 0 {
		return Info{}, refuse(VMDK, "it wasn't closed cleanly; repair or export it again")
	}
	if descLen == 0 || descLen > maxDescriptor/512 || desc == 0 || desc > uint64(f.size)/512 {
		return Info{}, refuse(VMDK, "the embedded descriptor (%d sectors at %d) is missing or outside the file", descLen, desc)
	}
	text, err := f.at(VMDK, "the embedded descriptor", desc*512, int(descLen*512))
	if err != nil {
		return Info{}, err
	}
	kind, err := vmdkDescriptor(string(bytes.TrimRight(text, "\x00")), capacity)
	if err != nil {
		return Info{}, err
	}
	// streamOptimized keeps the real header in a footer, 1024 bytes before the end.
	if le.Uint64(h[56:]) == vmdkGDAtEnd {
		if f.size < 1536 {
			return Info{}, refuse(VMDK, "the footer is missing: truncated")
		}
		foot, err := f.at(VMDK, "the footer", uint64(f.size)-1024, 512)
		if err != nil {
			return Info{}, err
		}
		if !bytes.HasPrefix(foot, vmdkMagic) {
			return Info{}, refuse(VMDK, "the footer is missing: truncated")
		}
		if le.Uint64(foot[12:]) != capacity {
			return Info{}, refuse(VMDK, "header and footer disagree on the capacity")
		}
		h = foot
	}
	if capacity > uint64(MaxVirtual)/512 {
		return Info{}, refuse(VMDK, "the header claims %d sectors; more than 64 TiB isn't believed", capacity)
	}
	if err := vmdkGrains(f, h, capacity); err != nil {
		return Info{}, err
	}
	return Info{Variant: kind, VirtualSize: int64(capacity * 512)}, nil
}

// vmdkGrains checks the grain directory and where its tables lie.
func vmdkGrains(f file, h []byte, capacity uint64) error {
	le := binary.LittleEndian
	grain, perGT, gd := le.Uint64(h[20:]), uint64(le.Uint32(h[44:])), le.Uint64(h[56:])
	if !powerOfTwo(grain) || grain < 8 || grain > 4096 {
		return refuse(VMDK, "the grain size of %d sectors is invalid", grain)
	}
	if perGT == 0 || perGT > 512 {
		return refuse(VMDK, "%d entries in a grain table are invalid", perGT)
	}
	n := (capacity + grain*perGT - 1) / (grain * perGT)
	if n*4 > 512<<20 || gd > uint64(f.size)/512 || !f.holds(gd*512, n*4) {
		return refuse(VMDK, "the grain directory (%d entries at sector %d) lies beyond the end of the file: truncated or corrupt", n, gd)
	}
	seen := make(map[uint64]struct{})
	for done := uint64(0); done < n; {
		step := min(n-done, 1<<16)
		b, err := f.at(VMDK, "the grain directory", gd*512+done*4, int(step*4))
		if err != nil {
			return err
		}
		for i := uint64(0); i < step; i++ {
			gt := uint64(le.Uint32(b[i*4:]))
			if gt == 0 {
				continue
			}
			if _, dup := seen[gt]; dup {
				return refuse(VMDK, "two directory entries use the grain table at sector %d: corrupt", gt)
			}
			seen[gt] = struct{}{}
			if err := vmdkTable(f, gt*512, int(perGT*4)); err != nil {
				return err
			}
		}
		done += step
	}
	return nil
}

// vmdkTable checks that the grains of one table begin inside the file.
func vmdkTable(f file, off uint64, n int) error {
	b, err := f.at(VMDK, "a grain table", off, n)
	if err != nil {
		return err
	}
	for i := 0; i < n; i += 4 {
		// 0 is unallocated, 1 a zeroed grain.
		if g := uint64(binary.LittleEndian.Uint32(b[i:])); g > 1 && g*512 >= uint64(f.size) {
			return refuse(VMDK, "a grain at sector %d lies beyond the end of the file: truncated or corrupt", g)
		}
	}
	return nil
}

// vmdkDescriptor checks the text descriptor: one extent, which is this very file, and no parent.
func vmdkDescriptor(text string, capacity uint64) (string, error) {
	kind, extents := "", 0
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if key, value, ok := strings.Cut(line, "="); ok && !strings.Contains(key, `"`) {
			value = strings.Trim(strings.TrimSpace(value), `"`)
			switch strings.ToLower(strings.TrimSpace(key)) {
			case "createtype":
				kind = value
			case "parentcid":
				if !strings.EqualFold(value, "ffffffff") {
					return "", refuse(VMDK, "it is a delta of a parent disk; export the whole disk")
				}
			case "parentfilenamehint":
				return "", refuse(VMDK, "it names a parent file (%.100q); export the whole disk", value)
			}
			continue
		}
		fields := strings.Fields(line)
		switch strings.ToUpper(fields[0]) {
		case "RW", "RDONLY", "NOACCESS":
		default:
			continue
		}
		extents++
		if len(fields) < 4 || !strings.EqualFold(fields[2], "SPARSE") {
			return "", refuse(VMDK, "the extent %.100q isn't a sparse extent inside this file", line)
		}
		if n, err := strconv.ParseUint(fields[1], 10, 64); err != nil || n != capacity {
			return "", refuse(VMDK, "descriptor and header disagree on the capacity (%.30s and %d sectors)", fields[1], capacity)
		}
		_, name, _ := strings.Cut(line, `"`)
		name, _, _ = strings.Cut(name, `"`)
		if strings.ContainsAny(name, `/\`) || name == ".." {
			return "", refuse(VMDK, "the extent names a path (%.100q)", name)
		}
	}
	if kind != "monolithicSparse" && kind != "streamOptimized" {
		return "", refuse(VMDK, "the type %.40q isn't supported (monolithicSparse and streamOptimized are)", kind)
	}
	if extents != 1 {
		return "", refuse(VMDK, "the descriptor has %d extents; only one, in the same file, is accepted", extents)
	}
	return kind, nil
}
