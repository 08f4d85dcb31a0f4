package index

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"drover/internal/chunkstore/pack"
)

func testID(n uint64) (id pack.ID) {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], n)
	r := rand.NewChaCha8(seed)
	_, _ = r.Read(id[:])
	return id
}

func testPack(n uint64) (id pack.PackID) {
	full := testID(n | 1<<63)
	copy(id[:], full[:])
	return id
}

func testIDs(p uint64, n int) []pack.Entry {
	ids := make([]pack.Entry, n)
	for i := range ids {
		ids[i].ID = testID(p<<20 + uint64(i))
	}
	return ids
}

func open(t testing.TB, dir string, o Options) *Index {
	t.Helper()
	x, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// settled waits until all but the last table stand in runs.
func settled(t testing.TB, x *Index) {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		x.mu.RLock()
		n, from := len(x.frozen), choose(x.view.runs, x.o.Table)
		x.mu.RUnlock()
		if n == 0 && len(from) == 0 {
			return
		}
		select {
		case <-deadline:
			t.Fatal("the index does not settle")
		case <-time.After(time.Millisecond):
		}
	}
}

func look(x *Index, id pack.ID) (hit, bool) {
	p, n, ok, _ := x.Lookup(id)
	return hit{pack: p, record: n}, ok
}

func check(t testing.TB, x *Index, p uint64, per int, want bool) {
	t.Helper()
	if got := x.Has(testPack(p)); got != want {
		t.Fatalf("Has(pack %d) = %v", p, got)
	}
	for i := range per {
		id := testID(p<<20 + uint64(i))
		h, ok := look(x, id)
		if ok != want || ok && (h != hit{pack: testPack(p), record: uint16(i)}) {
			t.Fatalf("Lookup(pack %d, record %d) = %v, %v, want %v", p, i, h, ok, want)
		}
	}
}

func TestIndex(t *testing.T) {
	const packs, per = 200, 50
	dir := t.TempDir()
	o := Options{Repository: [16]byte{1}, Table: 300}
	x := open(t, dir, o)
	for p := range uint64(packs) {
		x.Add(testPack(p), testIDs(p, per))
		check(t, x, p, per, true)
	}
	settled(t, x)
	if s := x.Stats(); s.Runs < 2 || s.Runs > 20 {
		t.Errorf("%d runs of %d entries", s.Runs, s.Entries)
	}
	for p := range uint64(packs) {
		check(t, x, p, per, true)
		check(t, x, p+packs, per, false)
	}
	for p := uint64(0); p < packs; p += 3 {
		x.Remove(testPack(p))
		check(t, x, p, per, false)
	}
	settled(t, x)
	seen := map[pack.PackID]bool{}
	for id := range x.Packs() {
		seen[id] = true
	}
	for p := range uint64(packs) {
		check(t, x, p, per, p%3 != 0)
		if seen[testPack(p)] != (p%3 != 0) {
			t.Errorf("Packs has pack %d: %v", p, seen[testPack(p)])
		}
	}
	x.Add(testPack(3), testIDs(3, per)) // condemned, then reprieved
	check(t, x, 3, per, true)
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}

	// Removal is not kept: the repository's log says what is gone, and the opener removes it again.
	x = open(t, dir, o)
	for p := range uint64(packs) {
		if p%3 != 0 || p == 3 {
			check(t, x, p, per, true)
		} else {
			x.Remove(testPack(p))
			check(t, x, p, per, false)
		}
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}

	o.Repository = [16]byte{2}
	x = open(t, dir, o)
	defer x.Close()
	check(t, x, 1, per, false)
	files, _ := filepath.Glob(filepath.Join(dir, runPrefix+"*"))
	if len(files) > 0 {
		t.Errorf("files of another repository stay: %v", files)
	}
	if _, err := Open(dir, o); err == nil {
		t.Error("a directory was opened twice")
	}
}

func TestTheSameBlockInManyPacks(t *testing.T) {
	x := open(t, t.TempDir(), Options{Table: 64})
	defer x.Close()
	const packs = 600 // more equal entries than a page has
	same := testID(42)
	for p := range uint64(packs) {
		x.Add(testPack(p), append(testIDs(p, 70), pack.Entry{ID: same}))
	}
	settled(t, x)
	for p := range uint64(packs) {
		h, ok := look(x, same)
		if !ok || h.record != 70 {
			t.Fatalf("after %d removals: %v, %v", p, h, ok)
		}
		x.Remove(h.pack)
		if x.Has(h.pack) {
			t.Fatal("removed and still there")
		}
	}
	if h, ok := look(x, same); ok {
		t.Fatalf("found in %x, which is removed", h.pack)
	}
}

// TestDamage flips each kind of byte: the index answers rightly or says that it lost something, never wrongly.
func TestDamage(t *testing.T) {
	const packs, per = 40, 60
	o := Options{Table: 1000}
	base := t.TempDir()
	x := open(t, base, o)
	for p := range uint64(packs) {
		x.Add(testPack(p), testIDs(p, per))
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(base)
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for n := range 100 {
		dir := t.TempDir()
		at := rnd.IntN(len(files))
		for i, f := range files {
			raw, err := os.ReadFile(filepath.Join(base, f.Name()))
			if err != nil {
				t.Fatal(err)
			}
			if i == at && len(raw) > 0 {
				switch n % 3 {
				case 0, 1:
					raw[rnd.IntN(len(raw))] ^= 1 << rnd.IntN(8)
				case 2:
					raw = raw[:rnd.IntN(len(raw))]
				}
			}
			if err := os.WriteFile(filepath.Join(dir, f.Name()), raw, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		x := open(t, dir, o)
		for p := range uint64(packs) {
			for i := range per {
				id := testID(p<<20 + uint64(i))
				if h, ok := look(x, id); ok && (h != hit{pack: testPack(p), record: uint16(i)}) {
					t.Fatalf("run %d: wrong answer %v", n, h)
				}
			}
		}
		// What is lost is added again, and then all is there.
		for p := range uint64(packs) {
			x.Add(testPack(p), testIDs(p, per))
		}
		missed := 0
		for p := range uint64(packs) {
			for i := range per {
				id := testID(p<<20 + uint64(i))
				if _, ok := look(x, id); !ok {
					missed++
				}
			}
		}
		if missed > per { // a bit of the filter hides some of those that share it
			t.Fatalf("run %d: %d entries are missed", n, missed)
		}
		x.Close()
	}
}

func TestConcurrent(t *testing.T) {
	x := open(t, t.TempDir(), Options{Table: 500})
	const writers, packs, per = 4, 60, 40
	var wg sync.WaitGroup
	for w := range uint64(writers) {
		wg.Go(func() {
			for p := range uint64(packs) {
				p += w * packs
				x.Add(testPack(p), testIDs(p, per))
				if p%4 == 1 {
					x.Remove(testPack(p - 1))
				}
				for q := w * packs; q <= p; q += 7 {
					id := testID(q<<20 + 1)
					h, ok := look(x, id)
					gone := q%4 == 0 && q < p
					if ok == gone || ok && h.pack != testPack(q) {
						t.Errorf("pack %d at %d: %v, %v", q, p, h, ok)
					}
				}
			}
		})
	}
	wg.Wait()
	settled(t, x)
	for p := range uint64(writers * packs) {
		check(t, x, p, per, p%4 != 0)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
}

func FuzzRun(f *testing.F) {
	dir := f.TempDir()
	x := open(f, dir, Options{})
	x.Add(testPack(1), testIDs(1, 300))
	x.Close()
	files, _ := filepath.Glob(filepath.Join(dir, runPrefix+"*"))
	for _, name := range files {
		raw, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "run-1"), raw, 0o600); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		r, err := openRun(root, "run-1", [16]byte{})
		if err != nil {
			return
		}
		defer r.file.Close()
		for i := range uint64(300) {
			id := testID(1<<20 + i)
			_, _, _ = r.lookup(&id)
		}
		p := testPack(1)
		_, _, _ = r.find(&p)
		_ = r.eachPack(func(uint32, pack.PackID) error { return nil })
		if m, _, err := merge(root, "run-2", [16]byte{}, []*run{r}, nil); err == nil {
			m.file.Close()
		}
	})
}

// BenchmarkIndex builds an index of N entries (DROVER_INDEX_ENTRIES, in millions; 1 by default) and looks up.
func BenchmarkIndex(b *testing.B) {
	millions := 1
	if s := os.Getenv("DROVER_INDEX_ENTRIES"); s != "" {
		if _, err := fmt.Sscan(s, &millions); err != nil {
			b.Fatal(err)
		}
	}
	const per = 2000
	packs := uint64(millions) * 1_000_000 / per
	dir := os.Getenv("DROVER_INDEX_DIR")
	if dir == "" {
		dir = b.TempDir()
	}
	x := open(b, dir, Options{})
	defer x.Close()
	start := time.Now()
	ids := make([]pack.Entry, per)
	for p := range packs {
		fastIDs(p, ids)
		x.Add(testPack(p), ids)
	}
	added := time.Since(start)
	settled(b, x)
	s := x.Stats()
	b.Logf("%d million entries: %v to add, %v to settle; %d runs, %d MB of files, heap %d MB", millions, added.Round(time.Millisecond),
		time.Since(start).Round(time.Millisecond), s.Runs, s.Bytes>>20, heapBytes()>>20)
	one := make([]pack.Entry, 1)
	for _, hit := range []bool{true, false} {
		b.Run(fmt.Sprintf("hit=%v", hit), func(b *testing.B) {
			rnd := rand.New(rand.NewPCG(3, 4))
			for range b.N {
				p := rnd.Uint64N(packs)
				if !hit {
					p += packs
				}
				one = one[:1]
				fastIDs(p, one)
				h, ok := look(x, one[0].ID)
				if ok != hit || ok && h.record != 0 {
					b.Fatal(p, h, ok)
				}
			}
		})
	}
}

// fastIDs are testIDs that cost little.
func fastIDs(p uint64, ids []pack.Entry) {
	r := rand.NewPCG(p, p^0x9e3779b97f4a7c15)
	for i := range ids {
		for j := 0; j < idSize; j += 8 {
			binary.LittleEndian.PutUint64(ids[i].ID[j:], r.Uint64())
		}
	}
}

func heapBytes() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
