package parity

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/klauspost/reedsolomon"
)

// The layout: docs/formats/repository.md, "Parity".
const (
	Shards = 20 // of data
	Extra  = 2  // of parity
	// Slice is what has a checksum and is repaired as a whole.
	Slice = 4096

	headerSize = 64
	// maxPack bounds what a header may say.
	maxPack = 128 << 20
)

// Errors that callers branch on.
var (
	// ErrDamaged: the parity object is not what was written, in a place that cannot be done without.
	ErrDamaged = errors.New("the parity is damaged")
	// ErrTooMuch: more slices are bad than can be made again.
	ErrTooMuch = errors.New("more is damaged than parity can repair")
)

var (
	magic      = [8]byte{'D', 'R', 'V', 'P', 'R', 'T', 'Y', '1'}
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// Parity is the parity of one pack.
type Parity struct {
	Pack [16]byte
	Size int64 // of the pack
	// shard is the length of each of the 22, a multiple of Slice. The pack is thought to go on with zeros.
	shard int64
	// sums are of all slices: those of the pack, and then those of the parity.
	sums   []uint32
	extra  [Extra][]byte
	intact bool
}

// sizes gives a shard's length and the number of slices with a sum: of the pack, its last perhaps short, and of parity.
func sizes(pack int64) (shard int64, data, extra int) {
	slices := (pack + Slice - 1) / Slice
	per := (slices + Shards - 1) / Shards
	return per * Slice, int(slices), int(per) * Extra
}

func tableSize(data, extra int) int { return headerSize + 4*(data+extra) + 4 }

// ObjectSize is how long a pack's parity object is.
func ObjectSize(pack int64) int64 {
	shard, data, extra := sizes(pack)
	return Extra*shard + 2*int64(tableSize(data, extra))
}

// ReadFunc fills p from an offset of the pack.
type ReadFunc func(p []byte, off int64) error

// Make reads a pack once, in order, and returns its parity object.
func Make(id [16]byte, size int64, read ReadFunc) ([]byte, error) {
	if size <= 0 || size > maxPack {
		return nil, fmt.Errorf("parity of pack %x: its size is %d bytes", id, size)
	}
	enc, err := newEncoder()
	if err != nil {
		return nil, err
	}
	shard, data, extra := sizes(size)
	table := tableSize(data, extra)
	out := make([]byte, table, ObjectSize(size))
	head := out[:headerSize]
	copy(head, magic[:])
	copy(head[8:], id[:])
	binary.LittleEndian.PutUint64(head[24:], uint64(size))
	head[32], head[33] = Shards, Extra
	binary.LittleEndian.PutUint32(head[36:], Slice)
	sums := out[headerSize:]
	sum := func(n int, b []byte) {
		binary.LittleEndian.PutUint32(sums[4*n:], crc32.Checksum(b, castagnoli))
	}
	shards := out[table : table+Extra*int(shard)]
	out = out[:table+Extra*int(shard)]
	buf := make([]byte, min(shard, 256<<10))
	var into [Extra][]byte
	for off := int64(0); off < size; {
		i, at := off/shard, off%shard
		n := min(int64(len(buf)), shard-at)
		b := buf[:n]
		have := min(n, size-off)
		if err := read(b[:have], off); err != nil {
			return nil, err
		}
		clear(b[have:])
		for s := int64(0); s < have; s += Slice {
			sum(int((off+s)/Slice), b[s:min(s+Slice, have)])
		}
		for j := range into {
			into[j] = shards[int64(j)*shard+at:][:n]
		}
		if err := enc.EncodeIdx(b, int(i), into[:]); err != nil {
			return nil, fmt.Errorf("parity of pack %x: %w", id, err)
		}
		off += n
	}
	for n := range extra {
		sum(data+n, shards[n*Slice:(n+1)*Slice])
	}
	binary.LittleEndian.PutUint32(out[table-4:], crc32.Checksum(out[:table-4], castagnoli))
	return append(out, out[:table]...), nil
}

func newEncoder() (reedsolomon.Encoder, error) {
	return reedsolomon.New(Shards, Extra, reedsolomon.WithMaxGoroutines(1))
}

// Parse reads a parity object. It keeps object, which the caller leaves as it is.
func Parse(object []byte) (*Parity, error) {
	for _, end := range []bool{false, true} {
		if p, ok := parse(object, end); ok {
			return p, nil
		}
	}
	return nil, ErrDamaged
}

// parse reads by the table at the beginning or at the end.
func parse(object []byte, end bool) (*Parity, bool) {
	if len(object) < headerSize {
		return nil, false
	}
	var size int64
	if end {
		// The length alone tells where the last table begins: sizes are found by trying those that fit.
		size = sizeOf(object)
	} else {
		size = int64(binary.LittleEndian.Uint64(object[24:]))
	}
	if size <= 0 || size > maxPack || ObjectSize(size) != int64(len(object)) {
		return nil, false
	}
	shard, data, extra := sizes(size)
	n := tableSize(data, extra)
	table := object[:n]
	if end {
		table = object[len(object)-n:]
	}
	if [8]byte(table) != magic || table[32] != Shards || table[33] != Extra || binary.LittleEndian.Uint32(table[36:]) != Slice ||
		int64(binary.LittleEndian.Uint64(table[24:])) != size || crc32.Checksum(table[:n-4], castagnoli) != binary.LittleEndian.Uint32(table[n-4:]) {
		return nil, false
	}
	p := &Parity{Pack: [16]byte(table[8:24]), Size: size, shard: shard, sums: make([]uint32, data+extra)}
	for i := range p.sums {
		p.sums[i] = binary.LittleEndian.Uint32(table[headerSize+4*i:])
	}
	for j := range p.extra {
		p.extra[j] = object[int64(n)+int64(j)*shard:][:shard]
	}
	p.intact = string(object[:n]) == string(object[len(object)-n:])
	return p, true
}

// sizeOf finds the pack's size from the table at the end of an object whose beginning is damaged; 0 if there is none.
func sizeOf(object []byte) int64 {
	// An object's length fixes the number of slices of the pack; the header in the last table says the rest.
	lo, hi := int64(1), int64(maxPack/Slice)
	for lo < hi {
		mid := (lo + hi) / 2
		if ObjectSize(mid*Slice) < int64(len(object)) {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	_, data, extra := sizes(lo * Slice)
	n := tableSize(data, extra)
	if n > len(object) {
		return 0
	}
	return int64(binary.LittleEndian.Uint64(object[len(object)-n+24:]))
}

// Whole reports whether the object itself is as it was written.
func (p *Parity) Whole() bool {
	if !p.intact {
		return false
	}
	for n := range len(p.sums) - p.data() {
		if !p.extraGood(n) {
			return false
		}
	}
	return true
}

func (p *Parity) data() int { return int((p.Size + Slice - 1) / Slice) }

func (p *Parity) extraGood(n int) bool {
	per := int(p.shard / Slice)
	b := p.extra[n/per][n%per*Slice:][:Slice]
	return crc32.Checksum(b, castagnoli) == p.sums[p.data()+n]
}

// Bad gives the slices of a pack that are not what was written. A pack that is shorter lacks its last; one that is longer is cut.
func (p *Parity) Bad(pack []byte) []int {
	var bad []int
	for n := range p.data() {
		if !p.good(pack, n) {
			bad = append(bad, n)
		}
	}
	return bad
}

func (p *Parity) good(pack []byte, n int) bool {
	off, end := int64(n)*Slice, min(int64(n+1)*Slice, p.Size)
	return end <= int64(len(pack)) && crc32.Checksum(pack[off:end], castagnoli) == p.sums[n]
}

// Repair returns a pack as it was written, made of the bytes that there are, and how many slices were made again. pack is left as
// it is. It fails with ErrTooMuch if too much is lost.
func (p *Parity) Repair(pack []byte) (whole []byte, repaired int, err error) {
	bad := p.Bad(pack)
	// The room goes to the end of the last shard: the code works on zeros there.
	whole = make([]byte, p.shard*Shards)
	copy(whole[:p.Size], pack)
	if len(bad) == 0 {
		return whole[:p.Size], 0, nil
	}
	enc, err := newEncoder()
	if err != nil {
		return nil, 0, err
	}
	per := int(p.shard / Slice)
	rows := map[int]bool{}
	for _, n := range bad {
		rows[n%per] = true
	}
	isBad := make([]bool, per*Shards)
	for _, n := range bad {
		isBad[n] = true
	}
	for row := range rows {
		var set [Shards + Extra][]byte
		lost := 0
		for i := range Shards {
			n := i*per + row
			b := whole[n*Slice : (n+1)*Slice : (n+1)*Slice]
			if isBad[n] {
				lost++
				b = b[:0]
			}
			set[i] = b
		}
		for j := range Extra {
			if n := j*per + row; p.extraGood(n) {
				set[Shards+j] = p.extra[j][row*Slice:][:Slice]
			}
		}
		if err := enc.ReconstructData(set[:]); errors.Is(err, reedsolomon.ErrTooFewShards) {
			return nil, 0, fmt.Errorf("pack %x: %d of 22 slices around offset %d: %w", p.Pack, lost, row*Slice, ErrTooMuch)
		} else if err != nil {
			return nil, 0, fmt.Errorf("pack %x: %w", p.Pack, err)
		}
		for i := range Shards {
			if n := i*per + row; isBad[n] {
				copy(whole[n*Slice:(n+1)*Slice], set[i])
			}
		}
	}
	whole = whole[:p.Size]
	if still := p.Bad(whole); len(still) > 0 {
		return nil, 0, fmt.Errorf("pack %x: %d slices are wrong after the repair: %w", p.Pack, len(still), ErrTooMuch)
	}
	return whole, len(bad), nil
}
