package chunkstore

import (
	"bytes"
	"testing"

	"drover/internal/chunkstore/keys"
)

func TestPage(t *testing.T) {
	p := &page{level: 1, n: 200, span: 12345 << 16}
	for i := range p.n {
		if i%3 == 0 {
			continue
		}
		p.ids[i], p.places[i] = ID{byte(i), 1}, place{pack: PackID{byte(i / 50)}, record: uint16(i)}
	}
	b := p.encode(nil)
	if len(b) > maxPage {
		t.Errorf("%d bytes", len(b))
	}
	q, err := parsePage(b)
	if err != nil || *q != *p {
		t.Fatalf("another page: %v", err)
	}
	h := keys.NewHasher(keys.BLAKE3, make([]byte, 32))
	id := p.id(h)
	q.places[1] = place{}
	if q.id(h) != id {
		t.Error("the id depends on where blocks are")
	}
	q.ids[1] = ID{}
	if q.id(h) == id {
		t.Error("the id does not depend on the blocks")
	}
}

func TestShape(t *testing.T) {
	for _, c := range []struct {
		size, blocks int64
		level        int
		leaves       int64
	}{{0, 0, 0, 0}, {1, 1, 0, 1}, {256 << 16, 256, 0, 1}, {256<<16 + 1, 257, 1, 2}, {65536 << 16, 65536, 1, 256}, {65536<<16 + 1, 65537, 2, 257}} {
		s := newShape(c.size, 1<<16)
		if s.blocks != c.blocks || s.level != c.level || s.pages(0) != c.leaves {
			t.Errorf("%d bytes: %+v, %d leaves", c.size, s, s.pages(0))
		}
		for l := range s.level + 1 {
			entries, span := int64(0), int64(0)
			for i := range s.pages(l) {
				n, sp := s.entries(l, i)
				entries, span = entries+int64(n), span+sp
			}
			below := c.blocks
			if l > 0 {
				below = s.pages(l - 1)
			}
			if entries != below || span != c.blocks<<16 {
				t.Errorf("%d bytes, level %d: %d entries, %d bytes", c.size, l, entries, span)
			}
		}
	}
}

func FuzzPage(f *testing.F) {
	p := &page{n: 3, span: 3 << 16}
	p.ids[1], p.places[1] = ID{1}, place{pack: PackID{2}, record: 3}
	f.Add(p.encode(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parsePage(b)
		if err != nil {
			return
		}
		q, err := parsePage(p.encode(nil))
		if err != nil || *q != *p {
			t.Fatalf("a page that was read is written as another: %v", err)
		}
		_ = p.hole()
	})
}

func TestZeros(t *testing.T) {
	for n := range 600 {
		b := make([]byte, n)
		if !zeros(b) {
			t.Fatalf("%d zeros are none", n)
		}
		for i := range n {
			b[i] = 1
			if zeros(b) {
				t.Fatalf("byte %d of %d is not seen", i, n)
			}
			b[i] = 0
		}
	}
	if zeros(bytes.Repeat([]byte{0, 0, 0, 1}, 100)) {
		t.Error("that is not zero")
	}
}
