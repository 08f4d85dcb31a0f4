package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// A page is what a lookup reads: a count (2), count entries in order, room, CRC-32C (4) of all before. Entries have one
// size in one part of a run.
const (
	pageSize  = 4096
	pageHead  = 2
	pageTail  = 4
	idSize    = 32
	entrySize = idSize + 4 + 2 // id, number of the pack in the run, number of the record
	packSize  = 16
	perPage   = (pageSize - pageHead - pageTail) / entrySize
	perPacks  = (pageSize - pageHead - pageTail) / packSize
)

var errDamaged = errors.New("damaged")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type page [pageSize]byte

func (p *page) count() int { return int(binary.LittleEndian.Uint16(p[:])) }

func (p *page) at(i, size int) []byte {
	o := pageHead + i*size
	return p[o : o+size : o+size]
}

// add appends an entry; the caller has seen that there is room.
func (p *page) add(entry []byte) {
	n := p.count()
	copy(p[pageHead+n*len(entry):], entry)
	binary.LittleEndian.PutUint16(p[:], uint16(n+1))
}

func (p *page) seal() {
	binary.LittleEndian.PutUint32(p[pageSize-pageTail:], crc32.Checksum(p[:pageSize-pageTail], castagnoli))
}

// read fills the page from off and checks it.
func (p *page) read(f io.ReaderAt, off int64, size int) error {
	if _, err := f.ReadAt(p[:], off); err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(p[pageSize-pageTail:]) != crc32.Checksum(p[:pageSize-pageTail], castagnoli) {
		return fmt.Errorf("page at %d: %w", off, errDamaged)
	}
	if n := p.count(); n == 0 || n > (pageSize-pageHead-pageTail)/size {
		return fmt.Errorf("page at %d has %d entries: %w", off, n, errDamaged)
	}
	return nil
}

// first is the place of the first entry that is not less than key.
func (p *page) first(key []byte, size int) int {
	lo, hi := 0, p.count()
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		if bytes.Compare(p.at(mid, size)[:len(key)], key) < 0 {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// prefix is a key's place among all keys.
func prefix(key []byte) uint64 { return binary.BigEndian.Uint64(key) }
