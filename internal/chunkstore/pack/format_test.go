package pack

import (
	"bytes"
	"errors"
	"testing"
)

var testKey = bytes.Repeat([]byte{7}, 32)

// build makes a pack of some payloads.
func build(t testing.TB, key []byte, payloads ...string) ([]byte, []Entry, *Sealer) {
	t.Helper()
	s, err := NewSealer(key)
	if err != nil {
		t.Fatal(err)
	}
	h := Header{Kind: Data, Generation: 3, Pack: PackID{1, 2}, Repository: [16]byte{9}}
	b := h.Append(nil)
	var entries []Entry
	for i, p := range payloads {
		head := Head{Codec: Raw, Raw: uint32(len(p)), Stored: uint32(len(p) + s.Overhead()), ID: ID{byte(i + 1)}}
		entries = append(entries, Entry{ID: head.ID, Offset: uint32(len(b)), Stored: head.Stored, Raw: head.Raw})
		rec := make([]byte, head.Size())
		head.Put(rec)
		s.Seal(rec[:HeadSize], []byte(p), uint32(i), rec[:HeadSize])
		Finish(rec)
		b = append(b, rec...)
	}
	tail, size := AppendFooter(nil, int64(len(b)), s, entries)
	b = append(b, tail...)
	if int64(len(b)) != size || len(tail) != TailSize(len(entries), key != nil) {
		t.Fatalf("a pack of %d bytes says %d, its tail %d", len(b), size, len(tail))
	}
	return b, entries, s
}

func readAll(b []byte, records int, s *Sealer) ([]string, error) {
	entries, err := ParseTail(b[max(0, len(b)-TailSize(records, s.Sealed())):], int64(len(b)), s)
	if err != nil {
		return nil, err
	}
	var out []string
	for i, e := range entries {
		rec := bytes.Clone(b[e.Offset:])
		h, stored, err := ParseRecord(rec)
		if err != nil {
			return nil, err
		}
		if h.ID != e.ID {
			return nil, errors.New("another record")
		}
		plain, err := s.Open(nil, stored, uint32(i), rec[:HeadSize])
		if err != nil {
			return nil, err
		}
		out = append(out, string(plain))
	}
	return out, nil
}

func TestPack(t *testing.T) {
	for _, key := range [][]byte{nil, testKey} {
		b, _, s := build(t, key, "one", "", "three")
		got, err := readAll(b, 3, s)
		if err != nil || len(got) != 3 || got[0] != "one" || got[1] != "" || got[2] != "three" {
			t.Errorf("got %q, %v", got, err)
		}
		h, err := ParseHeader(b)
		if err != nil || h.Kind != Data || h.Generation != 3 || h.Pack != (PackID{1, 2}) || h.Repository != [16]byte{9} {
			t.Errorf("header %+v, %v", h, err)
		}
	}
}

func TestEachFlippedBitIsFound(t *testing.T) {
	for _, key := range [][]byte{nil, testKey} {
		b, _, s := build(t, key, "one", "two")
		for i := range len(b) * 8 {
			c := bytes.Clone(b)
			c[i/8] ^= 1 << (i % 8)
			_, herr := ParseHeader(c)
			_, err := readAll(c, 2, s)
			if herr == nil && err == nil {
				t.Fatalf("bit %d of byte %d is believed", i%8, i/8)
			}
			if err != nil && !errors.Is(err, ErrDamaged) {
				t.Fatalf("byte %d: %v", i/8, err)
			}
		}
	}
}

func TestForgedRecord(t *testing.T) {
	b, entries, s := build(t, testKey, "one", "two")
	// The second record in the first one's place, with a good checksum.
	rec := bytes.Clone(b[entries[1].Offset : int(entries[1].Offset)+HeadSize+int(entries[1].Stored)+CRCSize])
	_, stored, err := ParseRecord(rec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(nil, stored, 0, rec[:HeadSize]); !errors.Is(err, ErrDamaged) {
		t.Errorf("a record that was moved opens: %v", err)
	}
	// Another head with a good checksum.
	rec[12] ^= 1
	Finish(rec)
	if _, stored, err = ParseRecord(rec); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(nil, stored, 1, rec[:HeadSize]); !errors.Is(err, ErrDamaged) {
		t.Errorf("a record under another head opens: %v", err)
	}
}

func TestTornPackIsReadUpToTheTear(t *testing.T) {
	b, entries, _ := build(t, testKey, "one", "two", "three")
	for n := range len(b) {
		_, got, err := Scan(b[:n])
		if n < HeaderSize {
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("%d bytes: %v", n, err)
			}
			continue
		}
		want := 0
		for want < len(entries) && int(entries[want].Offset)+HeadSize+int(entries[want].Stored)+CRCSize <= n {
			want++
		}
		if err != nil || len(got) != want {
			t.Fatalf("%d bytes: %d records, %v; want %d", n, len(got), err, want)
		}
		for i := range got {
			if got[i] != entries[i] {
				t.Fatalf("%d bytes: record %d is %+v", n, i, got[i])
			}
		}
	}
}

func TestCodecs(t *testing.T) {
	var c Compressor
	var d Decoder
	text := bytes.Repeat([]byte("a line of text\n"), 4000)
	codec, packed := c.Compress(text)
	if codec != MinLZ || len(packed) > len(text)/4 {
		t.Errorf("codec %d, %d of %d bytes", codec, len(packed), len(text))
	}
	out := make([]byte, len(text))
	if err := d.Decode(out, codec, packed); err != nil || !bytes.Equal(out, text) {
		t.Errorf("unpacked to other bytes: %v", err)
	}
	for _, wrong := range []int{0, 1, len(text) - 1, len(text) + 1} {
		for codec := range Codec(6) {
			if err := d.Decode(make([]byte, wrong), codec, packed); !errors.Is(err, ErrDamaged) {
				t.Errorf("%d bytes by codec %d: %v", wrong, codec, err)
			}
		}
	}
}

func FuzzPack(f *testing.F) {
	for _, key := range [][]byte{nil, testKey} {
		b, _, _ := build(f, key, "one", "two")
		f.Add(b)
		f.Add(b[:len(b)-9])
		f.Add(b[HeaderSize:])
	}
	sealed, _ := NewSealer(testKey)
	bare, _ := NewSealer(nil)
	f.Fuzz(func(t *testing.T, b []byte) {
		_, entries, _ := Scan(b)
		for _, e := range entries {
			if int(e.Offset)+HeadSize+int(e.Stored)+CRCSize > len(b) {
				t.Fatal("a record beyond the end")
			}
		}
		for _, s := range []*Sealer{sealed, bare} {
			entries, err := ParseTail(b, int64(len(b)), s)
			if err != nil && !errors.Is(err, ErrDamaged) {
				t.Fatal(err)
			}
			for _, e := range entries {
				if int(e.Offset)+HeadSize+int(e.Stored)+CRCSize > len(b) {
					t.Fatal("a record beyond the end")
				}
			}
		}
	})
}

func FuzzDecode(f *testing.F) {
	var c Compressor
	codec, packed := c.Compress(bytes.Repeat([]byte("a line of text\n"), 300))
	f.Add(byte(codec), packed)
	f.Add(byte(S2), []byte{4, 12, 1, 2, 3, 4})
	f.Add(byte(Zstd), []byte{0x28, 0xb5, 0x2f, 0xfd, 4, 0})
	var d Decoder
	f.Fuzz(func(t *testing.T, codec byte, b []byte) {
		dst := make([]byte, 4500, 4600)
		tail := dst[4500:4600]
		if err := d.Decode(dst, Codec(codec), b); err != nil && !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
		for _, x := range tail {
			if x != 0 {
				t.Fatal("written beyond the buffer")
			}
		}
	})
}
