package chunkstore

import (
	"encoding/binary"
	"errors"
	"fmt"

	"drover/internal/chunkstore/keys"
)

// Fanout is how many entries a page has at most.
const Fanout = 256

const (
	pageHead  = 16
	pageEntry = 36
	maxLevel  = 6 // 256^7 blocks of 4 KiB are more than 2^63 bytes
	maxDisk   = 1 << 60
	maxPage   = pageHead + Fanout*16 + Fanout*pageEntry
)

var errPage = errors.New("not a page")

// place is where a record was written.
type place struct {
	pack   PackID
	record uint16
}

// page is a node of a disk's tree. Once read or written it is not changed.
type page struct {
	level   int
	span    int64
	n       int
	ids     [Fanout]ID
	places  [Fanout]place
	present [Fanout / 64]uint64 // of leaves being written: which entries are set
}

// encode appends the page's bytes.
func (p *page) encode(b []byte) []byte {
	var table []PackID
	var index [Fanout]uint16
	at := -1 // of the table, that of the entry before: they are mostly the same
	for i := range p.n {
		if p.ids[i].Zero() {
			continue
		}
		k := p.places[i].pack
		if at < 0 || table[at] != k {
			at = -1
			for j := len(table) - 1; j >= 0; j-- {
				if table[j] == k {
					at = j
					break
				}
			}
			if at < 0 {
				table = append(table, k)
				at = len(table) - 1
			}
		}
		index[i] = uint16(at)
	}
	b = append(b, byte(p.level), 0, 0, 0)
	b = binary.LittleEndian.AppendUint16(b, uint16(p.n))
	b = binary.LittleEndian.AppendUint16(b, uint16(len(table)))
	b = binary.LittleEndian.AppendUint64(b, uint64(p.span))
	for i := range table {
		b = append(b, table[i][:]...)
	}
	for i := range p.n {
		b = append(b, p.ids[i][:]...)
		record := p.places[i].record
		if p.ids[i].Zero() {
			record = 0
		}
		b = binary.LittleEndian.AppendUint16(b, index[i])
		b = binary.LittleEndian.AppendUint16(b, record)
	}
	return b
}

// parsePage reads a page. The caller compares its id.
func parsePage(b []byte) (*page, error) {
	if len(b) < pageHead || b[1]|b[2]|b[3] != 0 {
		return nil, errPage
	}
	p := &page{level: int(b[0]), n: int(binary.LittleEndian.Uint16(b[4:])), span: int64(binary.LittleEndian.Uint64(b[8:]))}
	t := int(binary.LittleEndian.Uint16(b[6:]))
	if p.level > maxLevel || p.n > Fanout || t > Fanout || p.span < 0 || len(b) != pageHead+t*16+p.n*pageEntry {
		return nil, fmt.Errorf("%w: its counts are wrong", errPage)
	}
	table := b[pageHead:]
	entries := table[t*16:]
	for i := range p.n {
		e := entries[i*pageEntry:]
		p.ids[i] = ID(e[:32])
		if p.ids[i].Zero() {
			continue
		}
		k := int(binary.LittleEndian.Uint16(e[32:]))
		if k >= t {
			return nil, fmt.Errorf("%w: entry %d points beyond its table", errPage, i)
		}
		p.places[i] = place{pack: PackID(table[k*16 : k*16+16]), record: binary.LittleEndian.Uint16(e[34:])}
	}
	return p, nil
}

// id is the page's id, by what it points to.
func (p *page) id(h *keys.Hasher) ID {
	return h.Page(byte(p.level), p.span, func(yield func(ID) bool) {
		for i := range p.n {
			if !yield(p.ids[i]) {
				return
			}
		}
	})
}

// hole reports whether all below it is zeros.
func (p *page) hole() bool {
	for i := range p.n {
		if !p.ids[i].Zero() {
			return false
		}
	}
	return true
}

// shape says how a disk's blocks hang in a tree.
type shape struct {
	size      int64 // bytes
	blockSize int64
	blocks    int64
	level     int // of the root
}

func newShape(size, blockSize int64) shape {
	s := shape{size: size, blockSize: blockSize, blocks: (size + blockSize - 1) / blockSize}
	for n := int64(Fanout); n < s.blocks; n *= Fanout {
		s.level++
	}
	return s
}

// pageBlocks is how many blocks a full page of a level spans.
func pageBlocks(level int) int64 {
	n := int64(Fanout)
	for range level {
		n *= Fanout
	}
	return n
}

// pages is how many pages a level has.
func (s shape) pages(level int) int64 {
	n := pageBlocks(level)
	return (s.blocks + n - 1) / n
}

// entries is how many entries page i of a level has, and span how many bytes of disk it stands for, in whole blocks.
func (s shape) entries(level int, i int64) (n int, span int64) {
	below := pageBlocks(level)
	blocks := min(below, s.blocks-i*below)
	each := below / Fanout
	return int((blocks + each - 1) / each), blocks * s.blockSize
}
