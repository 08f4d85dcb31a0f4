package chunkstore

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
)

// objects lists the store's objects below a prefix.
func (f *fixture) objects(prefix string) (names []string) {
	f.t.Helper()
	for info, err := range f.st.List(f.t.Context(), prefix, "") {
		if err != nil {
			f.t.Fatal(err)
		}
		names = append(names, info.Name)
	}
	return names
}

// spoil changes an object.
func (f *fixture) spoil(name string, change func(b []byte) []byte) {
	f.t.Helper()
	b, err := f.st.Get(f.t.Context(), name, 1<<30)
	if err == nil {
		err = f.st.Delete(f.t.Context(), name)
	}
	if err == nil {
		if b = change(bytes.Clone(b)); b != nil {
			err = f.st.Put(f.t.Context(), name, b)
		}
	}
	if err != nil {
		f.t.Fatal(err)
	}
	// As another process would see it.
	f.r.footers = newCache[PackID, *footer](64)
	f.r.pages = newCache[entry, *page](64)
}

func (f *fixture) scrub(o ScrubOptions) ScrubResult {
	f.t.Helper()
	res, err := f.r.Scrub(f.t.Context(), o)
	if err != nil {
		f.t.Fatal(err)
	}
	return res
}

func TestScrubFindsAnyBit(t *testing.T) {
	for _, o := range []CreateOptions{{}, {Unencrypted: true}} {
		f := newFixture(t, o)
		f.store(noise(1, 1<<18), PointID{})
		if res := f.scrub(ScrubOptions{}); len(res.Damaged) != 0 || res.Packs != 2 || res.Raw < 1<<17 {
			t.Fatalf("%+v", res)
		}
		rnd := rand.New(rand.NewPCG(1, 2))
		for range 200 {
			names := append(f.objects("data/"), f.objects("meta/")...)
			name := names[rnd.IntN(len(names))]
			var at int
			var good []byte
			f.spoil(name, func(b []byte) []byte {
				good = bytes.Clone(b)
				at = rnd.IntN(len(b))
				b[at] ^= 1 << rnd.IntN(8)
				return b
			})
			res := f.scrub(ScrubOptions{ReadOnly: true})
			if len(res.Damaged) != 1 {
				t.Fatalf("a bit of byte %d of %s is not found: %+v", at, name, res)
			}
			f.spoil(name, func([]byte) []byte { return good })
		}
		f.check()
	}
}

func TestScrubRepairsByParity(t *testing.T) {
	for name, change := range map[string]func(b []byte) []byte{
		"a bit":      func(b []byte) []byte { b[len(b)/2] ^= 8; return b },
		"the header": func(b []byte) []byte { b[3] ^= 8; return b },
		"the footer": func(b []byte) []byte { b[len(b)-50] ^= 8; return b },
		"the end":    func(b []byte) []byte { return b[:len(b)-5000] },
		"a range":    func(b []byte) []byte { clear(b[len(b)/2 : len(b)/2+5000]); return b },
	} {
		f := newFixture(t, CreateOptions{Parity: true})
		f.store(noise(1, 1<<20), PointID{})
		if n, err := f.r.Protect(t.Context()); n != 2 || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
		object := f.objects("data/")[0]
		f.spoil(object, change)
		res := f.scrub(ScrubOptions{})
		if len(res.Repaired) != 1 || len(res.Damaged) != 0 {
			t.Fatalf("%s: %+v", name, res)
		}
		f.check()
		f.collect(CollectOptions{})
		f.check()
		if got := f.objects("data/"); len(got) != 1 || got[0] == object {
			t.Errorf("%s: %v", name, got)
		}
		if res := f.scrub(ScrubOptions{}); len(res.Damaged)+len(res.Repaired)+res.Parity != 0 {
			t.Errorf("%s: a second scrub finds %+v", name, res)
		}
		if n := len(f.objects("parity/")); n != 2 {
			t.Errorf("%s: %d parity objects", name, n)
		}
	}
}

func TestScrubMakesParityAnew(t *testing.T) {
	f := newFixture(t, CreateOptions{Parity: true})
	f.store(noise(1, 1<<20), PointID{})
	if res := f.scrub(ScrubOptions{}); res.Parity != 2 {
		t.Fatalf("%+v", res)
	}
	f.spoil(f.objects("parity/")[0], func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
	if res := f.scrub(ScrubOptions{}); res.Parity != 1 {
		t.Errorf("%+v", res)
	}
	if res := f.scrub(ScrubOptions{}); res.Parity != 0 {
		t.Errorf("%+v", res)
	}
}

// TestNextBackupHeals damages a block of a point: it is named, the next backup stores it anew, and the next scrub puts it in its place.
func TestNextBackupHeals(t *testing.T) {
	f := newFixture(t, CreateOptions{})
	data := noise(1, 1<<20)
	a := f.store(data, PointID{})
	f.spoil(f.objects("data/")[0], func(b []byte) []byte { b[len(b)/2] ^= 8; return b })
	res := f.scrub(ScrubOptions{})
	if len(res.Damaged) != 1 || len(res.Damaged[0].Records) != 1 || len(res.Affected) == 0 {
		t.Fatalf("%+v", res)
	}
	for _, bad := range res.Affected {
		if bad.Point != a || bad.Disk != "vda" || bad.Length != 4096 {
			t.Errorf("%+v", bad)
		}
	}
	if got := res.AffectedPoints(); len(got) != 1 || got[0] != a {
		t.Errorf("affected points: %v", got)
	}
	if res := f.scrub(ScrubOptions{}); len(res.Damaged) != 1 {
		t.Errorf("a second scrub: %+v", res)
	}
	b := f.store(data, a)
	if !bytes.Equal(f.read(f.r, b), data) {
		t.Error("the new point reads wrongly")
	}
	res = f.scrub(ScrubOptions{})
	if len(res.Repaired) != 1 || len(res.Damaged) != 0 {
		t.Fatalf("%+v", res)
	}
	f.check()
	f.collect(CollectOptions{})
	f.check()
	if res := f.scrub(ScrubOptions{}); len(res.Damaged)+len(res.Repaired) != 0 {
		t.Errorf("%+v", res)
	}
}

// plainMirror has the disks themselves.
type plainMirror struct {
	f     *fixture
	asked int
}

func (m *plainMirror) Block(_ context.Context, point PointID, disk string, block int64) ([]byte, error) {
	m.asked++
	data, ok := m.f.want[point]
	if !ok || disk != "vda" {
		return nil, fmt.Errorf("no point %s", point)
	}
	return data[block*4096 : (block+1)*4096], nil
}

func TestScrubRepairsByMirror(t *testing.T) {
	f := newFixture(t, CreateOptions{})
	f.store(noise(1, 1<<20), PointID{})
	f.spoil(f.objects("data/")[0], func(b []byte) []byte { clear(b[len(b)/2 : len(b)/2+9000]); return b })
	m := &plainMirror{f: f}
	res := f.scrub(ScrubOptions{Mirror: m})
	if len(res.Repaired) != 1 || len(res.Damaged) != 0 || m.asked == 0 {
		t.Fatalf("%+v, asked %d times", res, m.asked)
	}
	f.check()
}

func TestScrubOfAMissingPack(t *testing.T) {
	f := newFixture(t, CreateOptions{})
	data := noise(1, 1<<20)
	a := f.store(data, PointID{})
	f.spoil(f.objects("data/")[0], func([]byte) []byte { return nil })
	res := f.scrub(ScrubOptions{})
	if len(res.Damaged) != 1 || len(res.AffectedPoints()) != 1 {
		t.Fatalf("%+v", res)
	}
	b := f.store(data, a)
	f.forget(a)
	f.collect(CollectOptions{})
	f.check()
	if !bytes.Equal(f.read(f.r, b), data) {
		t.Error("the new point reads wrongly")
	}
}

func TestScrubGoesRound(t *testing.T) {
	f := newFixture(t, CreateOptions{})
	for n := range 10 {
		f.store(noise(uint64(n+1), 1<<18), PointID{})
	}
	read := map[int64]int{}
	for range 10 {
		c := &scrub{r: f.r, o: ScrubOptions{Share: 0.2}}
		packs, _, _ := c.choose()
		for _, p := range packs {
			read[p.state.Added]++
		}
		f.scrub(ScrubOptions{Share: 0.2})
	}
	if len(read) != 10 {
		t.Errorf("of 10 transactions packs of %d were read", len(read))
	}
	for seq, n := range read {
		if n < 2 || n > 8 {
			t.Errorf("packs of %d were read %d times: %v", seq, n, read)
		}
	}
}
