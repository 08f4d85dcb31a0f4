package seed

import (
	"encoding/binary"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf16"
)

// File is a file in the root of an ISO.
type File struct {
	Name string
	Data []byte
}

const (
	sector  = 2048
	maxISO  = 16 << 20
	maxName = 60
)

var namePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]*$`)

// The layout, in sectors: 0–15 system area, then these, then the files.
const (
	atPVD = 16 + iota
	atSVD
	atEnd
	atPathL
	atPathM
	atJPathL
	atJPathM
	atRoot
	atJRoot
	atER
	atFiles
)

// Build makes an ISO 9660 image (ECMA-119) with Rock Ridge (IEEE P1282) and Joliet names. Its bytes depend on nothing but the
// arguments.
func Build(label string, files []File) ([]byte, error) {
	if len(label) > 16 || !namePattern.MatchString(label) {
		return nil, fmt.Errorf("ISO label %.40q: 1 to 16 letters, digits, dots, dashes", label)
	}
	if len(files) > 8 {
		return nil, errors.New("more than 8 files: the ISO's root directory has one sector")
	}
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	at := make([]uint32, len(files))
	next := uint32(atFiles)
	total := 0
	for i, f := range files {
		if len(f.Name) > maxName || !namePattern.MatchString(f.Name) || i > 0 && files[i-1].Name == f.Name {
			return nil, fmt.Errorf("file name %.80q can't go on the ISO", f.Name)
		}
		if total += len(f.Data); total > maxISO {
			return nil, fmt.Errorf("the files have more than %d MiB", maxISO>>20)
		}
		at[i] = next
		next += uint32((len(f.Data) + sector - 1) / sector)
	}
	b := make([]byte, int(next)*sector)
	sec := func(n int) []byte { return b[n*sector : (n+1)*sector] }
	volume(sec(atPVD), 1, pad(label, 32), pad("", 32), next, atRoot, atPathL, atPathM)
	svd := sec(atSVD)
	volume(svd, 2, ucs2(label, 32), ucs2("", 32), next, atJRoot, atJPathL, atJPathM)
	copy(svd[88:], "%/E") // UCS-2 level 3
	copy(sec(atEnd), "\xffCD001\x01")
	for _, p := range []struct {
		at, root int
		order    binary.ByteOrder
	}{{atPathL, atRoot, binary.LittleEndian}, {atPathM, atRoot, binary.BigEndian}, {atJPathL, atJRoot, binary.LittleEndian}, {atJPathM, atJRoot, binary.BigEndian}} {
		t := sec(p.at)
		t[0] = 1
		p.order.PutUint32(t[2:], uint32(p.root))
		p.order.PutUint16(t[6:], 1)
	}
	er := rockER()
	copy(sec(atER), er)

	root, jroot := sec(atRoot), sec(atJRoot)
	sp := []byte{'S', 'P', 7, 1, 0xbe, 0xef, 0}
	root = put(root, record([]byte{0}, atRoot, sector, true, slices.Concat(sp, rockPX(0o040555, 2), rockCE(atER, len(er)))))
	root = put(root, record([]byte{1}, atRoot, sector, true, rockPX(0o040555, 2)))
	jroot = put(jroot, record([]byte{0}, atJRoot, sector, true, nil))
	jroot = put(jroot, record([]byte{1}, atJRoot, sector, true, nil))
	for i, f := range files {
		// The plain name only has to be unique and legal; everybody reads Rock Ridge or Joliet.
		plain := fmt.Sprintf("FILE%d.;1", i)
		nm := append([]byte{'N', 'M', byte(5 + len(f.Name)), 1, 0}, f.Name...)
		root = put(root, record([]byte(plain), at[i], len(f.Data), false, slices.Concat(rockPX(0o100444, 1), nm)))
		jroot = put(jroot, record([]byte(ucs2(f.Name, 2*len(f.Name))), at[i], len(f.Data), false, nil))
		copy(b[int(at[i])*sector:], f.Data)
	}
	return b, nil
}

// put copies a record and returns what is left of the sector.
func put(dir, rec []byte) []byte { return dir[copy(dir, rec):] }

func volume(b []byte, kind byte, label, blank string, size, root, pathL, pathM uint32) {
	b[0] = kind
	copy(b[1:], "CD001\x01")
	copy(b[8:], blank)
	copy(b[40:], label)
	both32(b[80:], size)
	both16(b[120:], 1)
	both16(b[124:], 1)
	both16(b[128:], sector)
	both32(b[132:], 10) // the path table holds the root only
	binary.LittleEndian.PutUint32(b[140:], pathL)
	binary.BigEndian.PutUint32(b[148:], pathM)
	copy(b[156:], record([]byte{0}, root, sector, true, nil))
	for _, f := range [][2]int{{190, 128}, {318, 128}, {446, 128}, {574, 128}, {702, 37}, {739, 37}, {776, 37}} {
		if kind == 2 {
			copy(b[f[0]:], ucs2("", f[1]))
		} else {
			copy(b[f[0]:], pad("", f[1]))
		}
	}
	for i := range 4 {
		copy(b[813+17*i:], "0000000000000000") // "not specified"; the 17th byte is zero
	}
	b[881] = 1
}

// record is a directory record with a fixed date (1980-01-01).
func record(name []byte, at uint32, size int, dir bool, system []byte) []byte {
	n := 33 + len(name)
	n += n % 2
	b := make([]byte, n, n+len(system)+1)
	both32(b[2:], at)
	both32(b[10:], uint32(size))
	copy(b[18:], []byte{80, 1, 1, 0, 0, 0, 0})
	if dir {
		b[25] = 2
	}
	both16(b[28:], 1)
	b[32] = byte(len(name))
	copy(b[33:], name)
	b = append(b, system...)
	if len(b)%2 == 1 {
		b = append(b, 0)
	}
	b[0] = byte(len(b))
	return b
}

func rockPX(mode, links uint32) []byte {
	b := make([]byte, 36)
	copy(b, "PX\x24\x01")
	both32(b[4:], mode)
	both32(b[12:], links)
	return b
}

func rockCE(at uint32, n int) []byte {
	b := make([]byte, 28)
	copy(b, "CE\x1c\x01")
	both32(b[4:], at)
	both32(b[20:], uint32(n))
	return b
}

// rockER says that the extensions are Rock Ridge; Linux ignores them without.
func rockER() []byte {
	const id = "RRIP_1991A"
	const text = "THE ROCK RIDGE INTERCHANGE PROTOCOL PROVIDES SUPPORT FOR POSIX FILE SYSTEM SEMANTICS"
	b := []byte{'E', 'R', 0, 1, byte(len(id)), byte(len(text)), 0, 1}
	b = append(append(b, id...), text...)
	b[2] = byte(len(b))
	return b
}

func both16(b []byte, n uint16) {
	binary.LittleEndian.PutUint16(b, n)
	binary.BigEndian.PutUint16(b[2:], n)
}

func both32(b []byte, n uint32) {
	binary.LittleEndian.PutUint32(b, n)
	binary.BigEndian.PutUint32(b[4:], n)
}

func pad(s string, n int) string { return s + strings.Repeat(" ", n-len(s)) }

// ucs2 is big-endian UCS-2, padded with spaces to n bytes.
func ucs2(s string, n int) string {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = binary.BigEndian.AppendUint16(b, u)
	}
	for len(b)+1 < n {
		b = append(b, 0, ' ')
	}
	return string(b)
}
