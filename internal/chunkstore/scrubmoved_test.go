package chunkstore

import (
	"bytes"
	"testing"
)

// Blocks that were moved since their pages were written: pages name packs that are gone, and a scrub must follow.
func TestScrubAfterMoves(t *testing.T) {
	moved := func(t *testing.T) (*fixture, PointID) {
		f := newFixture(t, CreateOptions{})
		a := f.store(noise(1, 1<<20), PointID{})
		old := f.objects("data/")
		if _, err := f.r.Rewrite(t.Context(), RewriteOptions{}); err != nil {
			t.Fatal(err)
		}
		f.collect(CollectOptions{})
		if now := f.objects("data/"); len(now) != 1 || now[0] == old[0] {
			t.Fatalf("not moved: %v, before %v", now, old)
		}
		return f, a
	}
	t.Run("named", func(t *testing.T) {
		f, a := moved(t)
		f.spoil(f.objects("data/")[0], func(b []byte) []byte { b[len(b)/2] ^= 8; return b })
		res := f.scrub(ScrubOptions{})
		if got := res.AffectedPoints(); len(res.Damaged) != 1 || len(got) != 1 || got[0] != a || len(res.Affected) != 1 {
			t.Errorf("%+v", res)
		}
	})
	t.Run("missing pack", func(t *testing.T) {
		f, a := moved(t)
		f.spoil(f.objects("data/")[0], func([]byte) []byte { return nil })
		res := f.scrub(ScrubOptions{})
		if got := res.AffectedPoints(); len(res.Damaged) != 1 || len(got) != 1 || got[0] != a {
			t.Errorf("%+v", res)
		}
	})
	t.Run("mirror", func(t *testing.T) {
		f, _ := moved(t)
		f.spoil(f.objects("data/")[0], func(b []byte) []byte { clear(b[len(b)/2 : len(b)/2+9000]); return b })
		m := &plainMirror{f: f}
		if res := f.scrub(ScrubOptions{Mirror: m}); len(res.Repaired) != 1 || len(res.Damaged) != 0 {
			t.Fatalf("%+v, asked %d times", res, m.asked)
		}
		f.check()
	})
	t.Run("next backup heals", func(t *testing.T) {
		f, a := moved(t)
		f.spoil(f.objects("data/")[0], func(b []byte) []byte { b[len(b)/2] ^= 8; return b })
		if res := f.scrub(ScrubOptions{}); len(res.Damaged) != 1 {
			t.Fatalf("%+v", res)
		}
		data := noise(1, 1<<20)
		b := f.store(data, a)
		for _, id := range []PointID{a, b} {
			if !bytes.Equal(f.read(f.r, id), data) {
				t.Errorf("point %s reads wrongly", id)
			}
		}
		if res := f.scrub(ScrubOptions{}); len(res.Repaired) != 1 || len(res.Damaged) != 0 {
			t.Errorf("%+v", res)
		}
		f.check()
	})
}
