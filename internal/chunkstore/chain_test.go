package chunkstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"strings"
	"testing"

	"drover/internal/chunkstore/ledger"
)

// TestMovedOften: what a page points to may have gone from pack to pack for as long as the repository is old.
func TestMovedOften(t *testing.T) {
	ctx := t.Context()
	r, st := create(t, CreateOptions{})
	data := image(7, 1<<20)
	id := commitImage(t, r, data)
	for range 80 {
		var loads []load
		r.ledger.View(func(s *ledger.State) {
			for id, p := range s.Packs {
				if !p.Meta && p.Condemned == 0 {
					loads = append(loads, load{id: id, state: p})
				}
			}
		})
		if res, err := r.move(ctx, moveOptions{purpose: "test"}, loads); err != nil || res.Packs == 0 {
			t.Fatalf("%+v, %v", res, err)
		}
		if res, err := r.Collect(ctx, CollectOptions{Share: -1}); err != nil || res.Dropped == 0 {
			t.Fatalf("%+v, %v", res, err)
		}
	}
	o, err := Open(ctx, st, OpenOptions{Passphrase: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	s := begin(t, o, BeginOptions{Reader: true})
	defer s.Close(ctx)
	p, _ := o.Point(id)
	d, err := s.Open(ctx, p.GetDisks()[0])
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(data))
	if err := d.ReadAt(ctx, got, 0); err != nil || !bytes.Equal(got, data) {
		t.Fatal("a block that was moved 80 times can't be read:", err)
	}
}

// TestWrongBlockWithGoodChecksum: the id of a block is what counts in the end.
func TestWrongBlockWithGoodChecksum(t *testing.T) {
	ctx := t.Context()
	r, st := create(t, CreateOptions{Unencrypted: true})
	data := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{8}).Read(data)
	id := commitImage(t, r, data)
	for i, err := range st.List(ctx, "data/", "") {
		if err != nil {
			t.Fatal(err)
		}
		st.Tamper(i.Name, func(b []byte) []byte {
			b = bytes.Clone(b)
			// A record's codec does not matter for one that is raw: the last byte of the payload is one of the block.
			for at := 64; b[at] == 0xD7; {
				n := int(binary.LittleEndian.Uint32(b[at+8:]))
				if end := at + 44 + n; b[at+1] == 0 {
					b[end-1] ^= 1
					binary.LittleEndian.PutUint32(b[end:], crc32.Checksum(b[at:end], crc32.MakeTable(crc32.Castagnoli)))
					return b
				} else {
					at = end + 4
				}
			}
			t.Fatal("no block is raw")
			return b
		})
	}
	s := begin(t, r, BeginOptions{Reader: true})
	defer s.Close(ctx)
	p, _ := r.Point(id)
	for _, n := range []int{4096, 1 << 20} {
		d, err := s.Open(ctx, p.GetDisks()[0])
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, n)
		for off := int64(0); off < 1<<20 && err == nil; off += int64(n) {
			err = d.ReadAt(ctx, got, off)
		}
		if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "not what its id says") {
			t.Errorf("a block that is another, read %d at a time: %v", n, err)
		}
	}
}
