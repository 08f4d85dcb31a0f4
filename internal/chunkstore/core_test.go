package chunkstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"drover/internal/blob"
	"drover/internal/chunkstore/keys"
	"drover/internal/chunkstore/ledger"
	"drover/internal/chunkstore/pack"
)

func TestOpenRefuses(t *testing.T) {
	ctx := t.Context()
	r, st := create(t, CreateOptions{})
	for name, c := range map[string]struct {
		change func(m *blob.Memory)
		o      OpenOptions
		want   error
	}{
		"good":           {nil, OpenOptions{Passphrase: "secret"}, nil},
		"wrong":          {nil, OpenOptions{Passphrase: "Secret"}, ErrWrongKey},
		"nothing given":  {nil, OpenOptions{}, ErrWrongKey},
		"a bad recovery": {nil, OpenOptions{Recovery: "AAAA"}, ErrWrongKey},
		"another master": {nil, OpenOptions{Master: make([]byte, 32)}, nil}, // nothing is there to tell by
		"a short master": {nil, OpenOptions{Master: []byte{1}}, ErrWrongKey},
		"no config":      {func(m *blob.Memory) { _ = m.Delete(ctx, "config") }, OpenOptions{}, ErrForeign},
		"foreign":        {func(m *blob.Memory) { m.Tamper("config", func([]byte) []byte { return []byte("hello") }) }, OpenOptions{}, ErrForeign},
		"a newer version": {func(m *blob.Memory) {
			m.Tamper("config", func(b []byte) []byte { return bytes.Replace(b, []byte(`"version": 1`), []byte(`"version": 9`), 1) })
		}, OpenOptions{Passphrase: "secret"}, ErrNewer},
	} {
		t.Run(name, func(t *testing.T) {
			m := st.Clone()
			if c.change != nil {
				c.change(m)
			}
			r, err := Open(ctx, m, c.o)
			if !errors.Is(err, c.want) || c.want == nil && err != nil {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if r != nil {
				_ = r.Close()
			}
		})
	}
	_ = commitImage(t, r, image(1, 1<<20))
	if _, err := Open(ctx, st, OpenOptions{Master: make([]byte, 32)}); !errors.Is(err, ledger.ErrDamaged) {
		t.Errorf("another master key: %v", err)
	}
	if _, _, err := Create(ctx, st, CreateOptions{Passphrase: "x", Cost: cheap}); !errors.Is(err, blob.ErrExists) {
		t.Errorf("create over one: %v", err)
	}
}

func commitImage(t *testing.T, r *Repository, data []byte) PointID {
	t.Helper()
	s := begin(t, r, BeginOptions{})
	id := commit(t, s, backup(t, s, "vda", data, DiskOptions{}))
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	return id
}

func TestKeysChange(t *testing.T) {
	st := blob.NewMemory()
	r, recovery, err := Create(t.Context(), st, CreateOptions{Passphrase: "one", Cost: cheap})
	if err != nil {
		t.Fatal(err)
	}
	data := image(2, 3<<20)
	a := commitImage(t, r, data)
	if err := r.SetPassphrase(t.Context(), "two"); err != nil {
		t.Fatal(err)
	}
	if err := r.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	data2 := image(3, 3<<20)
	b := commitImage(t, r, data2)
	if _, err := Open(t.Context(), st, OpenOptions{Passphrase: "one"}); !errors.Is(err, ErrWrongKey) {
		t.Errorf("the old passphrase: %v", err)
	}
	generations := map[int32]bool{}
	for _, o := range []OpenOptions{{Passphrase: "two"}, {Recovery: strings.ToLower(recovery)}, {Master: r.Master()}} {
		r, err := Open(t.Context(), st, o)
		if err != nil {
			t.Fatal(err)
		}
		same(t, r, a, data)
		same(t, r, b, data2)
		r.ledger.View(func(s *ledger.State) {
			for _, p := range s.Packs {
				generations[p.Generation] = true
			}
		})
		_ = r.Close()
	}
	if len(generations) != 2 {
		t.Errorf("packs of data keys %v", generations)
	}
}

func TestStorageRevealsNothing(t *testing.T) {
	r, st := create(t, CreateOptions{})
	secret := []byte("the name of the rose, and other stories")
	data := bytes.Repeat(secret, 100000)
	commitImage(t, r, data)
	for info, err := range st.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		b, err := st.Get(t.Context(), info.Name, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, secret[:16]) || bytes.Contains(b, []byte("web")) || bytes.Contains(b, r.Master()) {
			t.Errorf("%s reveals something", info.Name)
		}
	}
}

func TestSessionEndedByAnother(t *testing.T) {
	r, _ := create(t, CreateOptions{})
	s := begin(t, r, BeginOptions{})
	data := image(4, 2<<20)
	d := backup(t, s, "vda", data, DiskOptions{})
	id := s.ID()
	if _, err := r.ledger.Do(t.Context(), func(*ledger.State) (*ledger.Transaction, error) {
		return &ledger.Transaction{Kind: &ledger.Transaction_End{End: &ledger.End{Session: id[:], Reason: "dead"}}}, nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), &ledger.Point{Id: make([]byte, 16), Disks: []*ledger.Disk{d}}); !errors.Is(err, ErrEnded) {
		t.Errorf("commit: %v", err)
	}
	if _, err := s.Disk(t.Context(), DiskOptions{Name: "x", Size: 1}); !errors.Is(err, ErrEnded) {
		t.Errorf("another disk: %v", err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Errorf("close: %v", err)
	}
	if len(r.Points()) != 0 {
		t.Error("a point is there")
	}
	same(t, r, commitImage(t, r, data), data)
}

func TestCutSessionServesTheNext(t *testing.T) {
	r, st := create(t, CreateOptions{})
	data := image(5, 8<<20)
	s := begin(t, r, BeginOptions{})
	backup(t, s, "vda", data, DiskOptions{})
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	r2, err := Open(t.Context(), st, OpenOptions{Passphrase: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	defer r2.Close()
	s = begin(t, r2, BeginOptions{})
	w, err := s.Disk(t.Context(), DiskOptions{Name: "vda", Size: int64(len(data))})
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(data); i += r.BlockSize() {
		if err := w.Put(t.Context(), int64(i/r.BlockSize()), data[i:i+r.BlockSize()]); err != nil {
			t.Fatal(err)
		}
	}
	d, stats, err := w.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if stats.Stored != 0 {
		t.Errorf("%d bytes were stored again", stats.Stored)
	}
	same(t, r2, commit(t, s, d), data)
}

func TestReadOnly(t *testing.T) {
	r, st := create(t, CreateOptions{})
	data := image(6, 2<<20)
	id := commitImage(t, r, data)
	before := listing(t, st)
	ro, err := Open(t.Context(), st, OpenOptions{Passphrase: "secret", ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	same(t, ro, id, data)
	if _, err := ro.Begin(t.Context(), BeginOptions{}); err == nil {
		t.Error("it writes")
	}
	if err := ro.Forget(t.Context(), "", id); err == nil {
		t.Error("it forgets")
	}
	if listing(t, st) != before {
		t.Error("a reader wrote something")
	}
}

func listing(t *testing.T, st blob.Store) string {
	t.Helper()
	var b strings.Builder
	for info, err := range st.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(info.Name + "\n")
	}
	return b.String()
}

func TestPutStored(t *testing.T) {
	r, _ := create(t, CreateOptions{})
	s := begin(t, r, BeginOptions{})
	w, err := s.Disk(t.Context(), DiskOptions{Name: "vda", Size: 3 << 16})
	if err != nil {
		t.Fatal(err)
	}
	block := bytes.Repeat([]byte("what a host sends. "), 4000)[:1<<16]
	h := keys.NewHasher(r.IDKey())
	id := h.Block(block)
	var c pack.Compressor
	codec, payload := c.Compress(block)
	if have, err := w.PutID(t.Context(), 0, id); have || err != nil {
		t.Fatalf("have %v, %v", have, err)
	}
	other := id
	other[3]++
	for name, err := range map[string]error{
		"another id":           w.PutStored(t.Context(), 0, other, codec, 1<<16, payload),
		"another codec":        w.PutStored(t.Context(), 0, id, pack.S2, 1<<16, payload),
		"a codec that is none": w.PutStored(t.Context(), 0, id, 77, 1<<16, payload),
		"another length":       w.PutStored(t.Context(), 0, id, codec, 1<<15, payload),
		"cut":                  w.PutStored(t.Context(), 0, id, codec, 1<<16, payload[:len(payload)-1]),
		"too long":             w.PutStored(t.Context(), 0, id, pack.Raw, 1<<16, make([]byte, 1<<17)),
	} {
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := w.PutStored(t.Context(), 1<<40, id, codec, 1<<16, payload); err == nil {
		t.Error("beyond the end: taken")
	}
	if err := w.PutStored(t.Context(), 0, id, codec, 1<<16, payload); err != nil {
		t.Fatal(err)
	}
	if have, err := w.PutID(t.Context(), 2, id); !have || err != nil {
		t.Fatalf("have %v, %v", have, err)
	}
	d, _, err := w.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	same(t, r, commit(t, s, d), slicesConcat(block, make([]byte, 1<<16), block))
}

func slicesConcat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// TestManyOpenLeaves writes to more leaves than may be open, in random order and some blocks twice.
func TestManyOpenLeaves(t *testing.T) {
	r, _ := create(t, CreateOptions{BlockSize: 4096})
	const leaves = openLeaves + 300
	size := int64(leaves) * Fanout * 4096
	for _, incremental := range []bool{false, true} {
		s := begin(t, r, BeginOptions{})
		o := DiskOptions{Name: "vda", Size: size, Incremental: incremental}
		want := map[int64]uint64{}
		if incremental {
			o.Parent = r.Points()[0].Disks[0]
			old, err := s.Open(t.Context(), o.Parent)
			if err != nil {
				t.Fatal(err)
			}
			x, err := old.Extents(t.Context(), 0, size)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range x {
				for b := e.Offset / 4096; !e.Zero && b < (e.Offset+e.Length)/4096; b++ {
					p := make([]byte, 8)
					if err := old.ReadAt(t.Context(), p, b*4096); err != nil {
						t.Fatal(err)
					}
					want[b] = binary.LittleEndian.Uint64(p)
				}
			}
		}
		w, err := s.Disk(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		rnd := rand.New(rand.NewPCG(8, 8))
		block := make([]byte, 4096)
		for i := range 3 * leaves {
			b := int64(i%leaves)*Fanout + int64(rnd.IntN(4))
			v := 1 + rnd.Uint64N(1<<40)
			binary.LittleEndian.PutUint64(block, v)
			want[b] = v
			if err := w.Put(t.Context(), b, block); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(w.open); n > openLeaves+1 {
			t.Errorf("%d leaves are open", n)
		}
		d, _, err := w.Finish(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		id := commit(t, s, d)
		p, _ := r.Point(id)
		disk, err := s.Open(t.Context(), p.Disks[0])
		if err != nil {
			t.Fatal(err)
		}
		got := map[int64]uint64{}
		if err := disk.Restore(t.Context(), sinkFunc(func(p []byte, off int64) {
			for ; len(p) > 0; p, off = p[4096:], off+4096 {
				got[off/4096] = binary.LittleEndian.Uint64(p)
			}
		}), RestoreOptions{Workers: 1}); err != nil {
			t.Fatal(err)
		}
		if len(got) != len(want) {
			t.Errorf("%d blocks, want %d", len(got), len(want))
		}
		for b, v := range want {
			if got[b] != v {
				t.Fatalf("block %d is %d, want %d", b, got[b], v)
			}
		}
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

type sinkFunc func(p []byte, off int64)

func (f sinkFunc) WriteAt(p []byte, off int64) (int, error) { f(p, off); return len(p), nil }

func TestResize(t *testing.T) {
	r, _ := create(t, CreateOptions{BlockSize: 4096})
	one := image(9, 5<<20)
	a := commitImage(t, r, one)
	for _, size := range []int{5<<20 + 1, 5<<20 - 4096, 1 << 20, 1, 6 << 20, 300 << 20, 4097} {
		s := begin(t, r, BeginOptions{Pins: []PointID{a}})
		pa, _ := r.Point(a)
		w, err := s.Disk(t.Context(), DiskOptions{Name: "vda", Size: int64(size), Parent: pa.Disks[0], Incremental: true})
		if err != nil {
			t.Fatal(err)
		}
		two := make([]byte, size)
		copy(two, one)
		if size > 8192 {
			copy(two[4096:], "changed")
			if err := w.Put(t.Context(), 1, two[4096:8192]); err != nil {
				t.Fatal(err)
			}
		}
		d, _, err := w.Finish(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		b := commit(t, s, d)
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		same(t, r, b, two)
	}
}

func TestChanged(t *testing.T) {
	r, _ := create(t, CreateOptions{BlockSize: 4096})
	one := image(10, 6<<20)
	two := append(bytes.Clone(one), bytes.Repeat([]byte{1}, 1<<20)...)
	copy(two[3<<20:], "changed")
	clear(two[4<<20 : 4<<20+8192])
	a, b := commitImage(t, r, one), commitImage(t, r, two)
	s := begin(t, r, BeginOptions{Reader: true})
	open := func(id PointID) *Disk {
		p, _ := r.Point(id)
		d, err := s.Open(t.Context(), p.Disks[0])
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	x, err := open(b).Changed(t.Context(), open(a))
	if err != nil {
		t.Fatal(err)
	}
	covered := make([]bool, len(two)/4096)
	for _, e := range x {
		for k := e.Offset / 4096; k < (e.Offset+e.Length)/4096; k++ {
			covered[k] = true
			if e.Zero != zeros(two[k*4096:k*4096+4096]) {
				t.Errorf("block %d: zero is %v", k, e.Zero)
			}
		}
	}
	for k := range covered {
		was := make([]byte, 4096)
		if k*4096 < len(one) {
			copy(was, one[k*4096:])
		}
		if covered[k] == bytes.Equal(was, two[k*4096:k*4096+4096]) {
			t.Errorf("block %d: changed is %v", k, covered[k])
		}
	}
}

func TestForgottenParent(t *testing.T) {
	r, _ := create(t, CreateOptions{})
	a := commitImage(t, r, image(11, 1<<20))
	p, _ := r.Point(a)
	if err := r.Forget(t.Context(), "test", a); err != nil {
		t.Fatal(err)
	}
	s := begin(t, r, BeginOptions{})
	if _, err := s.Disk(t.Context(), DiskOptions{Name: "vda", Size: 1 << 20, Parent: p.Disks[0]}); !errors.Is(err, ErrGone) {
		t.Errorf("write against it: %v", err)
	}
	if _, err := s.Open(t.Context(), p.Disks[0]); !errors.Is(err, ErrGone) {
		t.Errorf("read it: %v", err)
	}
	if _, err := r.Begin(t.Context(), BeginOptions{Pins: []PointID{a}}); !errors.Is(err, ErrGone) {
		t.Errorf("pin it: %v", err)
	}
}

// TestEachFlippedByteIsFound damages packs, one byte of each record at a time; a restore says so and never gives other bytes.
func TestEachFlippedByteIsFound(t *testing.T) {
	for _, plain := range []bool{false, true} {
		r, st := create(t, CreateOptions{BlockSize: 4096, Unencrypted: plain})
		data := image(12, 64<<10)
		id := commitImage(t, r, data)
		rnd := rand.New(rand.NewPCG(1, 1))
		for info, err := range st.List(t.Context(), "", "") {
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(info.Name, "data/") && !strings.HasPrefix(info.Name, "meta/") {
				continue
			}
			for range 200 {
				m := st.Clone()
				at := rnd.Int64N(info.Size)
				m.Tamper(info.Name, func(b []byte) []byte { b[at] ^= 1 << rnd.IntN(8); return b })
				r, err := Open(t.Context(), m, OpenOptions{Passphrase: "secret"})
				if err != nil {
					t.Fatal(err)
				}
				p, _ := r.Point(id)
				s, err := r.Begin(t.Context(), BeginOptions{Reader: true})
				if err != nil {
					t.Fatal(err)
				}
				got := make(memorySink, len(data))
				d, err := s.Open(t.Context(), p.Disks[0])
				if err != nil {
					t.Fatal(err)
				}
				if err = d.Restore(t.Context(), got, RestoreOptions{}); err == nil {
					// A header, a description or a gap: what is restored does not hang on it.
					if !bytes.Equal(got, data) {
						t.Fatalf("%s, byte %d: other bytes were restored", info.Name, at)
					}
				} else if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), `disk "vda"`) {
					t.Fatalf("%s, byte %d: %v", info.Name, at, err)
				}
				_ = s.Close(context.WithoutCancel(t.Context()))
				_ = r.Close()
			}
		}
	}
}
