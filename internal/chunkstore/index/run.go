package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"drover/internal/chunkstore/pack"
)

// A run's file, all integers little-endian:
//
//	header  4096  "DRVRUN01", repository (16), entries (8), entry pages (8), packs (4), pack pages (4), filter blocks (8),
//	              CRC-32C of the fences (4), and CRC-32C of the 60 before (4)
//	filter  filter blocks × 64, padded to a page
//	pages of entries, pages of packs
//	fences  the first eight bytes of every 32nd page of entries
const (
	runMagic   = "DRVRUN01"
	headerSize = 64
	fenceEvery = 32
	// smallFilter is the size of the filters that stay in memory.
	smallFilter = 2 << 20
	// maxEntries keeps what is computed from a header far from overflow.
	maxEntries = 1 << 40
)

// header is what a run's first page says.
type header struct {
	repository [16]byte
	entries    int64
	pages      int64
	packs      uint32
	packPages  uint32
	blocks     uint64
	fences     uint32
}

func (h *header) marshal() []byte {
	b := make([]byte, 0, pageSize)
	b = append(b, runMagic...)
	b = append(b, h.repository[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.entries))
	b = binary.LittleEndian.AppendUint64(b, uint64(h.pages))
	b = binary.LittleEndian.AppendUint32(b, h.packs)
	b = binary.LittleEndian.AppendUint32(b, h.packPages)
	b = binary.LittleEndian.AppendUint64(b, h.blocks)
	b = binary.LittleEndian.AppendUint32(b, h.fences)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	return b[:pageSize]
}

func (h *header) unmarshal(b []byte) error {
	if len(b) < headerSize || string(b[:8]) != runMagic || binary.LittleEndian.Uint32(b[60:]) != crc32.Checksum(b[:60], castagnoli) {
		return fmt.Errorf("header: %w", errDamaged)
	}
	copy(h.repository[:], b[8:])
	h.entries = int64(binary.LittleEndian.Uint64(b[24:]))
	h.pages = int64(binary.LittleEndian.Uint64(b[32:]))
	h.packs = binary.LittleEndian.Uint32(b[40:])
	h.packPages = binary.LittleEndian.Uint32(b[44:])
	h.blocks = binary.LittleEndian.Uint64(b[48:])
	h.fences = binary.LittleEndian.Uint32(b[56:])
	if h.entries < 0 || h.entries > maxEntries || h.pages < 0 || h.pages > h.entries || h.blocks == 0 || h.blocks > maxEntries || h.packPages > h.packs {
		return fmt.Errorf("header: %w", errDamaged)
	}
	return nil
}

func (h *header) filterOff() int64 { return pageSize }
func (h *header) pagesOff() int64 {
	return pageSize + (int64(h.blocks)*filterBlock+pageSize-1)/pageSize*pageSize
}
func (h *header) packsOff() int64  { return h.pagesOff() + h.pages*pageSize }
func (h *header) fencesOff() int64 { return h.packsOff() + int64(h.packPages)*pageSize }
func (h *header) fenceCount() int64 {
	return (h.pages + fenceEvery - 1) / fenceEvery
}
func (h *header) size() int64 { return h.fencesOff() + h.fenceCount()*8 }

// run is an immutable file of entries. Its methods are for concurrent use.
type run struct {
	header
	name   string
	file   *os.File
	fence  []uint64
	filter []byte // nil: in the file alone
	// dead has a bit for each removed pack; deads counts them. deads is under Index.mu.
	dead  []atomic.Uint64
	deads int
	// refs counts views with the run in it; under Index.mu. The last closes the file, and removes it if gone is set.
	refs int
	gone bool
	pool sync.Pool // of *page
}

func openRun(root *os.Root, name string, repository [16]byte) (*run, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	r := &run{name: name, file: f, pool: sync.Pool{New: func() any { return new(page) }}}
	if err := r.load(repository); err != nil {
		f.Close()
		return nil, fmt.Errorf("index run %s: %w", name, err)
	}
	return r, nil
}

func (r *run) load(repository [16]byte) error {
	head := make([]byte, headerSize)
	if _, err := r.file.ReadAt(head, 0); err != nil {
		return err
	}
	if err := r.header.unmarshal(head); err != nil {
		return err
	}
	if r.repository != repository {
		return errors.New("is of another repository")
	}
	// The size bounds what the header makes us allocate.
	if st, err := r.file.Stat(); err != nil {
		return err
	} else if st.Size() != r.size() {
		return fmt.Errorf("has %d bytes, not %d: %w", st.Size(), r.size(), errDamaged)
	}
	raw := make([]byte, r.fenceCount()*8)
	if _, err := r.file.ReadAt(raw, r.fencesOff()); err != nil {
		return err
	}
	if crc32.Checksum(raw, castagnoli) != r.fences {
		return fmt.Errorf("fences: %w", errDamaged)
	}
	r.fence = make([]uint64, len(raw)/8)
	for i := range r.fence {
		r.fence[i] = binary.LittleEndian.Uint64(raw[i*8:])
	}
	if n := int64(r.blocks) * filterBlock; n <= smallFilter {
		r.filter = make([]byte, n)
		if _, err := r.file.ReadAt(r.filter, r.filterOff()); err != nil {
			return err
		}
	}
	r.dead = make([]atomic.Uint64, (int(r.packs)+63)/64)
	return nil
}

// kill marks a pack as removed; under Index.mu.
func (r *run) kill(num uint32) {
	if !r.isDead(num) {
		r.dead[num/64].Or(1 << (num % 64))
		r.deads++
	}
}

func (r *run) isDead(n uint32) bool { return r.dead[n/64].Load()&(1<<(n%64)) != 0 }

// maybe asks the filter.
func (r *run) maybe(id *pack.ID) (bool, error) {
	at := filterAt(id, r.blocks) * filterBlock
	if r.filter != nil {
		return filterHas(r.filter[at:at+filterBlock], id), nil
	}
	p := r.pool.Get().(*page)
	defer r.pool.Put(p)
	b := p[:filterBlock]
	if _, err := r.file.ReadAt(b, r.filterOff()+int64(at)); err != nil {
		return false, err
	}
	return filterHas(b, id), nil
}

func (r *run) lookup(id *pack.ID) (hit, bool, error) {
	if ok, err := r.maybe(id); !ok || err != nil {
		return hit{}, false, err
	}
	p := r.pool.Get().(*page)
	defer r.pool.Put(p)
	n, err := seek(r.file, p, r.pagesOff(), r.between(prefix(id[:])), id[:], entrySize)
	if err != nil || n < 0 {
		return hit{}, false, err
	}
	// n is the page of the first entry that is not less. Equal ones (of several packs) may go on in the next pages.
	for i := p.first(id[:], entrySize); ; i++ {
		if i == p.count() {
			if n++; n == r.pages {
				return hit{}, false, nil
			}
			if err := p.read(r.file, r.pagesOff()+n*pageSize, entrySize); err != nil {
				return hit{}, false, err
			}
			i = 0
		}
		e := p.at(i, entrySize)
		if !bytes.Equal(e[:idSize], id[:]) {
			return hit{}, false, nil
		}
		num := binary.LittleEndian.Uint32(e[idSize:])
		if num >= r.packs {
			return hit{}, false, fmt.Errorf("pack %d of %d: %w", num, r.packs, errDamaged)
		}
		if r.isDead(num) {
			continue
		}
		h := hit{record: binary.LittleEndian.Uint16(e[idSize+4:])}
		h.pack, err = r.packID(p, num)
		return h, err == nil, err
	}
}

// span is a range of pages, and prefixes that bound what they hold.
type span struct {
	lo, hi int64
	a, b   uint64
}

// between gives the pages that may hold a prefix, by the fences.
func (r *run) between(key uint64) span {
	i, _ := slices.BinarySearch(r.fence, key) // fence[i-1] < key <= fence[i]
	s := span{hi: r.pages, b: ^uint64(0)}
	if i > 0 {
		s.lo, s.a = int64(i-1)*fenceEvery, r.fence[i-1]
	}
	if i < len(r.fence) {
		s.hi, s.b = int64(i)*fenceEvery+1, r.fence[i]
	}
	return s
}

// packID reads the pack id with a number, by way of p.
func (r *run) packID(p *page, num uint32) (id pack.PackID, err error) {
	if err := p.read(r.file, r.packsOff()+int64(num/perPacks)*pageSize, packSize); err != nil {
		return id, err
	}
	if int(num%perPacks) >= p.count() {
		return id, fmt.Errorf("pack %d: %w", num, errDamaged)
	}
	copy(id[:], p.at(int(num%perPacks), packSize))
	return id, nil
}

// find gives a pack's number.
func (r *run) find(id *pack.PackID) (num uint32, ok bool, err error) {
	p := r.pool.Get().(*page)
	defer r.pool.Put(p)
	n, err := seek(r.file, p, r.packsOff(), span{hi: int64(r.packPages), b: ^uint64(0)}, id[:], packSize)
	if err != nil || n < 0 {
		return 0, false, err
	}
	i := p.first(id[:], packSize)
	if i == p.count() || !bytes.Equal(p.at(i, packSize), id[:]) {
		return 0, false, nil
	}
	num = uint32(n)*perPacks + uint32(i)
	if num >= r.packs {
		return 0, false, fmt.Errorf("pack %d of %d: %w", num, r.packs, errDamaged)
	}
	return num, true, nil
}

// eachPack calls for all packs in order, also the dead.
func (r *run) eachPack(each func(num uint32, id pack.PackID) error) error {
	p := r.pool.Get().(*page)
	defer r.pool.Put(p)
	num := uint32(0)
	for n := range int64(r.packPages) {
		if err := p.read(r.file, r.packsOff()+n*pageSize, packSize); err != nil {
			return err
		}
		for i := range p.count() {
			if num == r.packs {
				return fmt.Errorf("pack %d of %d: %w", num, r.packs, errDamaged)
			}
			if err := each(num, pack.PackID(p.at(i, packSize))); err != nil {
				return err
			}
			num++
		}
	}
	if num != r.packs {
		return fmt.Errorf("%d packs of %d: %w", num, r.packs, errDamaged)
	}
	return nil
}

// seek reads into p the page of the span with the first entry that is not less than key, and gives its number; -1 if
// all are less. Keys are hashes or random, so it guesses their place; it halves when guesses fail.
func seek(f io.ReaderAt, p *page, off int64, s span, key []byte, size int) (int64, error) {
	end, have := s.hi, int64(-1)
	want := prefix(key)
	for try := 0; s.lo < s.hi; try++ {
		mid := s.lo + (s.hi-s.lo)/2
		if try < 4 {
			mid = min(s.lo+int64(share(want, s.a, s.b)*float64(s.hi-s.lo)), s.hi-1)
		}
		if err := p.read(f, off+mid*pageSize, size); err != nil {
			return 0, err
		}
		have = mid
		first, last := p.at(0, size)[:len(key)], p.at(p.count()-1, size)[:len(key)]
		switch {
		case bytes.Compare(last, key) < 0:
			s.lo, s.a = mid+1, prefix(last)
		case bytes.Compare(first, key) >= 0:
			// This page has one that is not less; the first may be before it.
			s.hi, s.b = mid, prefix(first)
		default:
			return mid, nil
		}
	}
	if s.lo == end {
		return -1, nil
	}
	if have != s.lo {
		if err := p.read(f, off+s.lo*pageSize, size); err != nil {
			return 0, err
		}
	}
	return s.lo, nil
}

// share is where want is between a and b, from 0 to 1.
func share(want, a, b uint64) float64 {
	if want <= a {
		return 0
	}
	if want >= b {
		return 1
	}
	return float64(want-a) / float64(b-a)
}
