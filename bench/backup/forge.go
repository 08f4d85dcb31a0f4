package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"

	"drover/internal/blob"
	"drover/internal/chunkstore"
	"drover/internal/chunkstore/keys"
	"drover/internal/chunkstore/ledger"
	"drover/internal/chunkstore/pack"
)

// forge writes a repository's log and pages without any data: what the log says of packs of blocks is made up, and their objects are not there. Walking,
// condemning and dropping need none.
type forge struct {
	store   blob.Store
	log     *ledger.Log
	hasher  *keys.Hasher
	raw     [16]byte
	session []byte
	rnd     *rand.Rand

	meta    pack.PackID
	buf     []byte
	entries []pack.Entry
	added   []*ledger.Pack
	blocks  int64 // given places
	pages   int64
}

const (
	fanout      = 256
	packRecords = 1000
)

// place of a record.
type spot struct {
	id     pack.ID
	pack   pack.PackID
	record uint16
}

func newForge(ctx context.Context, store blob.Store) (*forge, error) {
	r, _, err := chunkstore.Create(ctx, store, chunkstore.CreateOptions{Unencrypted: true})
	if err != nil {
		return nil, err
	}
	if err := r.Close(); err != nil {
		return nil, err
	}
	b, err := store.Get(ctx, "config", 1<<16)
	if err != nil {
		return nil, err
	}
	c, err := keys.ParseConfig(b)
	if err != nil {
		return nil, err
	}
	ring := keys.NewRing(c, keys.OpenMaster(c.ID))
	f := &forge{store: store, hasher: keys.NewHasher(ring.IDKey()), raw: c.RawID(), session: make([]byte, 16), rnd: rand.New(rand.NewPCG(1, 1))}
	binary.LittleEndian.PutUint64(f.session, 1)
	if f.log, err = ledger.OpenLog(ctx, store, ledger.Options{Key: ring.Log()}); err != nil {
		return nil, err
	}
	f.begin()
	return f, f.do(ctx, &ledger.Transaction{Kind: &ledger.Transaction_Begin{Begin: &ledger.Begin{Session: f.session}}})
}

func (f *forge) do(ctx context.Context, t *ledger.Transaction) error {
	_, err := f.log.Do(ctx, func(*ledger.State) (*ledger.Transaction, error) { return t, nil })
	return err
}

// name of the n-th pack of blocks, spread like a random one.
func dataPack(n int64) (id pack.PackID) {
	x := uint64(n+1) * 0x9e3779b97f4a7c15
	binary.LittleEndian.PutUint64(id[:], x^x>>29)
	binary.LittleEndian.PutUint64(id[8:], uint64(n))
	return id
}

// at is where the n-th block is.
func at(n int64) spot {
	s := spot{pack: dataPack(n / packRecords), record: uint16(n % packRecords)}
	x := uint64(n+1) * 0xbf58476d1ce4e5b9
	for i := 0; i < 32; i += 8 {
		x = (x ^ x>>30) * 0x94d049bb133111eb
		binary.LittleEndian.PutUint64(s.id[i:], x|1)
	}
	return s
}

func (f *forge) begin() {
	binary.LittleEndian.PutUint64(f.meta[:], f.rnd.Uint64())
	binary.LittleEndian.PutUint64(f.meta[8:], f.rnd.Uint64())
	h := pack.Header{Kind: pack.Meta, Generation: 1, Pack: f.meta, Repository: f.raw}
	f.buf, f.entries = h.Append(f.buf[:0]), nil
}

// page writes a page of what hangs below it, as docs/formats/repository.md has it.
func (f *forge) page(ctx context.Context, level byte, span int64, below []spot) (spot, error) {
	var table []pack.PackID
	where := make([]int, len(below))
	for i := range below {
		k := slices.Index(table, below[i].pack)
		if k < 0 {
			k = len(table)
			table = append(table, below[i].pack)
		}
		where[i] = k
	}
	plain := []byte{level, 0, 0, 0}
	plain = binary.LittleEndian.AppendUint16(plain, uint16(len(below)))
	plain = binary.LittleEndian.AppendUint16(plain, uint16(len(table)))
	plain = binary.LittleEndian.AppendUint64(plain, uint64(span))
	for i := range table {
		plain = append(plain, table[i][:]...)
	}
	for i := range below {
		plain = append(plain, below[i].id[:]...)
		plain = binary.LittleEndian.AppendUint16(plain, uint16(where[i]))
		plain = binary.LittleEndian.AppendUint16(plain, below[i].record)
	}
	id := f.hasher.Page(level, span, func(yield func(pack.ID) bool) {
		for i := range below {
			if !yield(below[i].id) {
				return
			}
		}
	})
	head := pack.Head{Codec: pack.Raw, Raw: uint32(len(plain)), Stored: uint32(len(plain)), ID: id}
	s := spot{id: id, pack: f.meta, record: uint16(len(f.entries))}
	f.entries = append(f.entries, pack.Entry{ID: id, Offset: uint32(len(f.buf)), Stored: head.Stored, Raw: head.Raw, Codec: pack.Raw})
	from := len(f.buf)
	f.buf = slices.Grow(f.buf, head.Size())[:from+head.Size()]
	head.Put(f.buf[from:])
	copy(f.buf[from+pack.HeadSize:], plain)
	pack.Finish(f.buf[from:])
	f.pages++
	if len(f.buf) >= pack.Target {
		return s, f.flush(ctx)
	}
	return s, nil
}

// flush ends the pack of pages.
func (f *forge) flush(ctx context.Context) error {
	sealer, err := pack.NewSealer(nil)
	if err != nil {
		return err
	}
	tail, size := pack.AppendFooter(nil, int64(len(f.buf)), sealer, f.entries)
	name := f.meta.String()
	if err := f.store.Put(ctx, "meta/"+name[:2]+"/"+name, append(f.buf, tail...)); err != nil {
		return err
	}
	f.added = append(f.added, &ledger.Pack{Id: slices.Clone(f.meta[:]), Meta: true, Size: size, Raw: size, Records: int32(len(f.entries)), Generation: 1})
	f.begin()
	return nil
}

// commit makes points, with the packs since the last commit. It ends the open pack of pages.
func (f *forge) commit(ctx context.Context, points []*ledger.Point, told int64) error {
	if err := f.flush(ctx); err != nil {
		return err
	}
	for n := told; n*packRecords < f.blocks; n++ {
		id := dataPack(n)
		f.added = append(f.added, &ledger.Pack{Id: id[:], Size: 32 << 20, Raw: packRecords * blockSize, Records: packRecords, Generation: 1})
	}
	for len(f.added) > 1000 {
		if err := f.do(ctx, &ledger.Transaction{Kind: &ledger.Transaction_Add{Add: &ledger.Add{Session: f.session, Packs: f.added[:1000]}}}); err != nil {
			return err
		}
		f.added = f.added[1000:]
	}
	err := f.do(ctx, &ledger.Transaction{Kind: &ledger.Transaction_Commit{Commit: &ledger.Commit{Session: f.session, Packs: f.added, Points: points, More: true}}})
	f.added = nil
	return err
}

// disk is what a synthetic disk of a power of 256 leaves' parents looks like: its leaves and their parents.
type forgedDisk struct {
	number  int64
	leaves  []spot
	parents []spot
}

// leaf writes a leaf of 256 blocks. Those of fresh have just been written, the others are as on the first day.
func (f *forge) leaf(ctx context.Context, d *forgedDisk, i int, fresh func(slot int) bool) error {
	below := make([]spot, fanout)
	for slot := range below {
		n := (d.number*int64(len(d.leaves)) + int64(i)) * fanout
		if fresh(slot) {
			n = f.blocks
			f.blocks++
			below[slot] = at(n)
			continue
		}
		below[slot] = at(n + int64(slot))
	}
	s, err := f.page(ctx, 0, fanout*blockSize, below)
	d.leaves[i] = s
	return err
}

// root writes the parents of the leaves that changed, and the root.
func (f *forge) root(ctx context.Context, d *forgedDisk, dirty map[int]bool) (*ledger.Disk, error) {
	for p := range d.parents {
		if !dirty[p] {
			continue
		}
		s, err := f.page(ctx, 1, fanout*fanout*blockSize, d.leaves[p*fanout:(p+1)*fanout])
		if err != nil {
			return nil, err
		}
		d.parents[p] = s
	}
	size := int64(len(d.leaves)) * fanout * blockSize
	s, err := f.page(ctx, 2, size, d.parents)
	return &ledger.Disk{Name: "vda", Size: size, Level: 2, Root: &ledger.Place{Pack: slices.Clone(s.pack[:]), Record: int32(s.record), Id: slices.Clone(s.id[:])}}, err
}

// pointID is that of a VM and a day.
func pointID(vm, day int) []byte {
	return fmt.Appendf(nil, "vm%06dday%05d", vm, day)
}
