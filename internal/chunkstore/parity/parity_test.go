package parity

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
)

func random(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return b
}

func of(b []byte) ReadFunc {
	return func(p []byte, off int64) error {
		copy(p, b[off:])
		return nil
	}
}

func mustMake(t testing.TB, b []byte) *Parity {
	t.Helper()
	object, err := Make([16]byte{7}, int64(len(b)), of(b))
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(object)) != ObjectSize(int64(len(b))) {
		t.Fatalf("object of %d bytes, not %d", len(object), ObjectSize(int64(len(b))))
	}
	p, err := Parse(object)
	if err != nil {
		t.Fatal(err)
	}
	if !p.Whole() || p.Pack != [16]byte{7} {
		t.Fatal("a new object is not whole")
	}
	return p
}

func TestRepair(t *testing.T) {
	for _, size := range []int{1, 100, Slice, Slice + 1, 20*Slice - 1, 20 * Slice, 20*Slice + 1, 1 << 20, 5<<20 + 77} {
		b := random(size, uint64(size))
		p := mustMake(t, b)
		shard := int(p.shard)
		for name, damage := range map[string]func(b []byte) []byte{
			"none":      func(b []byte) []byte { return b },
			"one bit":   func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
			"first":     func(b []byte) []byte { b[0] ^= 0x80; return b },
			"last":      func(b []byte) []byte { b[len(b)-1] ^= 0x80; return b },
			"cut":       func(b []byte) []byte { return b[:len(b)-min(len(b), max(1, 2*shard-Slice))] },
			"cut one":   func(b []byte) []byte { return b[:len(b)-1] },
			"longer":    func(b []byte) []byte { return append(b, 1, 2, 3) },
			"a tenth":   func(b []byte) []byte { clear(b[:min(len(b), 2*shard)]); return b },
			"in middle": func(b []byte) []byte { clear(b[len(b)/3 : min(len(b), len(b)/3+2*shard-Slice)]); return b },
		} {
			hurt := damage(bytes.Clone(b))
			before := bytes.Clone(hurt)
			whole, n, err := p.Repair(hurt)
			if err != nil {
				t.Errorf("%d bytes, %s: %v", size, name, err)
				continue
			}
			if !bytes.Equal(whole, b) {
				t.Errorf("%d bytes, %s: repaired wrongly", size, name)
			}
			if !bytes.Equal(hurt, before) {
				t.Errorf("%d bytes, %s: the input was changed", size, name)
			}
			if (n == 0) != (name == "none" || name == "longer") {
				t.Errorf("%d bytes, %s: %d slices repaired", size, name, n)
			}
		}
	}
}

func TestTooMuch(t *testing.T) {
	b := random(20*10*Slice, 1)
	p := mustMake(t, b)
	for _, i := range []int{0, 5, 19} {
		b[i*int(p.shard)+3*Slice+9] ^= 1
	}
	if _, _, err := p.Repair(b); !errors.Is(err, ErrTooMuch) {
		t.Errorf("three of one row: %v", err)
	}
}

func TestScatteredDamage(t *testing.T) {
	b := random(20*100*Slice, 2)
	p := mustMake(t, b)
	hurt := bytes.Clone(b)
	for row := range 100 {
		for i := range Extra {
			hurt[(row*7+i*3)%20*int(p.shard)+row*Slice+row] ^= 4
		}
	}
	whole, n, err := p.Repair(hurt)
	if err != nil || n != 200 || !bytes.Equal(whole, b) {
		t.Errorf("%d slices repaired, %v", n, err)
	}
}

// TestDamagedParity damages the object as well: one bad slice of the pack is repaired as long as a table is readable.
func TestDamagedParity(t *testing.T) {
	b := random(3<<20, 3)
	object, err := Make([16]byte{7}, int64(len(b)), of(b))
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for n := range 300 {
		o := bytes.Clone(object)
		at := rnd.IntN(len(o))
		if n < 100 {
			at = n // in the first header
		}
		o[at] ^= 1 << rnd.IntN(8)
		p, err := Parse(o)
		if err != nil {
			t.Fatalf("bit of byte %d: %v", at, err)
		}
		if p.Whole() {
			t.Fatalf("bit of byte %d is not noticed", at)
		}
		hurt := bytes.Clone(b)
		hurt[rnd.IntN(len(hurt))] ^= 1
		if whole, _, err := p.Repair(hurt); err != nil || !bytes.Equal(whole, b) {
			t.Fatalf("bit of byte %d: %v", at, err)
		}
	}
	for n := range 50 {
		if _, err := Parse(object[:rnd.IntN(len(object))]); !errors.Is(err, ErrDamaged) {
			t.Fatalf("run %d: an object that was cut: %v", n, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	b := random(100_000, 4)
	object, err := Make([16]byte{7}, int64(len(b)), of(b))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(object)
	f.Add(object[:50])
	f.Fuzz(func(t *testing.T, o []byte) {
		if p, err := Parse(o); err == nil {
			if whole, _, err := p.Repair(b); err == nil && int64(len(whole)) != p.Size {
				t.Fatal("wrong length")
			}
		}
	})
}

func BenchmarkMake(b *testing.B) {
	data := random(64<<20, 5)
	b.SetBytes(int64(len(data)))
	for range b.N {
		if _, err := Make([16]byte{}, int64(len(data)), of(data)); err != nil {
			b.Fatal(err)
		}
	}
}
