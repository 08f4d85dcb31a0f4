package chunkstore_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"drover/internal/blob"
	cs "drover/internal/chunkstore"
	"drover/internal/chunkstore/keys"
)

// TestEveryAnswer spoils each request of a story in turn: it fails, its answer is lost, or what it reads is spoilt. What was acknowledged is there
// all the same, no read gives wrong bytes, and all works again when the trouble is over.
func TestEveryAnswer(t *testing.T) {
	end := deadline(t, 12*time.Second, 20*time.Minute)
	first, runs := seed(t), 0
	for s := first; time.Now().Before(end); s++ {
		whole := newWorld(t.Context(), t, s)
		var total atomic.Int64
		whole.setFaults(func(blob.Verb, string) blob.Outcome { total.Add(1); return blob.Outcome{} })
		r := whole.mustOpen()
		whole.story(r)
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		for at := 1 + int64(s%11); at <= total.Load() && time.Now().Before(end); at += 11 {
			for how := range 4 {
				w := newWorld(t.Context(), t, s)
				rnd := rand.New(rand.NewPCG(s, uint64(at)))
				n, hit := int64(0), ""
				w.setFaults(func(verb blob.Verb, name string) blob.Outcome {
					n++
					// The last kind is an outage: several in a row.
					if n < at || n > at && (how != 3 || n > at+8) {
						return blob.Outcome{}
					}
					hit = fmt.Sprintf("%s of %s", verb, name)
					switch how {
					case 0, 3:
						return blob.Outcome{Err: errTired}
					case 1:
						return blob.Outcome{Err: errTired, Done: true}
					}
					return blob.Outcome{Change: func(p []byte) {
						if len(p) > 0 {
							p[rnd.IntN(len(p))] ^= 1 << rnd.IntN(8)
						}
					}}
				})
				ok := false
				func() {
					defer func() {
						if !ok {
							t.Logf("seed %d, request %d of %d, kind %d: %s", s, at, total.Load(), how, hit)
						}
					}()
					if r, err := w.open(); err == nil {
						w.story(r)
						w.setFaults(nil)
						// The program that met the fault goes on, too.
						if err := r.Refresh(w.ctx); err != nil {
							t.Fatalf("refresh afterwards: %v", err)
						}
						w.verify(r)
						if err := w.backup(r, "web"); err != nil {
							t.Fatalf("a backup by the same program: %v", err)
						}
						_ = r.Close()
					}
					w.setFaults(nil)
					w.aftermath()
					ok = true
				}()
				runs++
			}
		}
	}
	t.Logf("%d faults from seed %d on", runs, first)
	if runs < 50 && !testing.Short() {
		t.Errorf("only %d faults in the time", runs)
	}
}

// specimen is a repository in memory, with points of two VMs.
func specimen(t *testing.T, o cs.CreateOptions) (*world, *blob.Memory) {
	t.Helper()
	st := blob.NewMemory()
	o.BlockSize, o.Passphrase, o.Cost, o.Open.NewIndex = blockSize, "secret", keys.Cost{Time: 1, Memory: 8, Threads: 1}, cs.MemoryIndex
	r, _, err := cs.Create(t.Context(), st, o)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, ctx: t.Context(), r: rand.New(rand.NewPCG(5, 5)), points: map[cs.PointID]*point{}, master: r.Master()}
	w.fs = newWorld(t.Context(), t, 1).fs // of no use, but asked whether it has crashed
	for i := range 4 {
		if err := w.backup(r, fmt.Sprintf("vm%d", i%2)); err != nil {
			t.Fatal(err)
		}
	}
	if o.Parity {
		if _, err := r.Scrub(t.Context(), cs.ScrubOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return w, st
}

// tryAll opens a repository that somebody has meddled with and reads what it can. Errors are right, wrong bytes are not, nor points that nobody made.
// It returns how many points could be read.
func (w *world) tryAll(st blob.Store) (read int, err error) {
	w.t.Helper()
	r, err := cs.Open(w.ctx, st, cs.OpenOptions{Passphrase: "secret", NewIndex: cs.MemoryIndex, ReadOnly: true})
	if err != nil {
		return 0, err
	}
	defer r.Close()
	s, err := r.Begin(w.ctx, cs.BeginOptions{Reader: true})
	if err != nil {
		return 0, err
	}
	defer s.Close(w.ctx)
	for _, lp := range r.Points() {
		p := w.points[cs.PointID(lp.Id)]
		if p == nil {
			w.t.Fatalf("a point that nobody made: %x", lp.Id)
		}
		if e := w.readPoint(s, lp, p); e != nil {
			err = e
			continue
		}
		read++
	}
	return read, err
}

func objects(t *testing.T, st blob.Store) (out []blob.Info) {
	t.Helper()
	for i, err := range st.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, i)
	}
	return out
}

// TestBitFlips flips bits anywhere in any object. No read gives wrong bytes, and a scrub finds each flip in a pack.
func TestBitFlips(t *testing.T) {
	end := deadline(t, 8*time.Second, 10*time.Minute)
	kinds := []cs.CreateOptions{{}, {Unencrypted: true}, {Hash: keys.SHA256}, {Parity: true}}
	for i, o := range kinds {
		w, st := specimen(t, o)
		if n, err := w.tryAll(st); n != len(w.points) || err != nil {
			t.Fatalf("the specimen: %d points, %v", n, err)
		}
		list := objects(t, st)
		rnd := rand.New(rand.NewPCG(seed(t), uint64(i)))
		flips, noticed := 0, 0
		stop := time.Now().Add(time.Until(end) / time.Duration(len(kinds)-i))
		for round := 0; time.Now().Before(stop); round++ {
			for _, obj := range list {
				if obj.Size == 0 || !time.Now().Before(stop) && round > 0 {
					continue
				}
				at := rnd.Int64N(obj.Size)
				switch round {
				case 0:
					at = 0
				case 1:
					at = obj.Size - 1
				case 2:
					at = min(obj.Size-1, 70)
				case 3:
					at = max(0, obj.Size-40)
				}
				bit := byte(1) << rnd.IntN(8)
				bad := st.Clone()
				bad.Tamper(obj.Name, func(p []byte) []byte { p[at] ^= bit; return p })
				n, err := w.tryAll(bad)
				flips++
				if err != nil || n < len(w.points) {
					noticed++
				}
				isPack := strings.HasPrefix(obj.Name, "data/") || strings.HasPrefix(obj.Name, "meta/")
				if !isPack {
					continue
				}
				r, err := cs.Open(t.Context(), bad, cs.OpenOptions{Passphrase: "secret", NewIndex: cs.MemoryIndex})
				if err != nil {
					t.Fatalf("%s with a flip at %d: open: %v", obj.Name, at, err)
				}
				res, err := r.Scrub(t.Context(), cs.ScrubOptions{})
				if err != nil {
					t.Fatalf("%s of %d bytes with a flip at %d: scrub: %v", obj.Name, obj.Size, at, err)
				}
				if len(res.Damaged)+len(res.Repaired) == 0 {
					t.Fatalf("%s of %d bytes: a scrub does not see a flip at %d", obj.Name, obj.Size, at)
				}
				if o.Parity {
					if len(res.Damaged) > 0 {
						t.Fatalf("%s: parity does not repair a flip at %d: %+v", obj.Name, at, res.Damaged)
					}
					if n, err := w.tryAll(bad); n != len(w.points) || err != nil {
						t.Fatalf("%s: after the repair of a flip at %d %d points are read: %v", obj.Name, at, n, err)
					}
				}
				if err := r.Close(); err != nil {
					t.Fatal(err)
				}
			}
		}
		t.Logf("%+v: %d flips in %d objects, %d noticed by reading alone", o.Hash, flips, len(list), noticed)
	}
}

// TestHostileStorage: whoever has the storage but not the key cuts, swaps, empties and mixes objects. Nothing panics, nothing
// reads wrong.
func TestHostileStorage(t *testing.T) {
	end := deadline(t, 5*time.Second, 10*time.Minute)
	w, st := specimen(t, cs.CreateOptions{})
	other, foreign := specimen(t, cs.CreateOptions{})
	_ = other
	list, theirs := objects(t, st), objects(t, foreign)
	rnd := rand.New(rand.NewPCG(seed(t), 9))
	get := func(st *blob.Memory, name string) []byte {
		p, err := st.Get(t.Context(), name, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	put := func(p []byte) func([]byte) []byte { return func([]byte) []byte { return p } }
	runs := 0
	for ; time.Now().Before(end); runs++ {
		bad := st.Clone()
		for range 1 + rnd.IntN(2) {
			a, b := list[rnd.IntN(len(list))].Name, list[rnd.IntN(len(list))].Name
			pa, pb := get(st, a), get(st, b)
			switch rnd.IntN(8) {
			case 0: // cut
				bad.Tamper(a, func(p []byte) []byte { return append([]byte{}, p[:rnd.IntN(len(p)+1)]...) })
			case 1: // gone
				bad.Tamper(a, put(nil))
			case 2: // swapped
				bad.Tamper(a, put(pb))
				bad.Tamper(b, put(pa))
			case 3: // one's bytes in another's place
				bad.Tamper(a, put(pb))
			case 4: // longer
				bad.Tamper(a, func(p []byte) []byte { return append(p, bytes.Repeat([]byte{byte(rnd.Uint32())}, 1+rnd.IntN(100))...) })
			case 5: // of another repository
				c := theirs[rnd.IntN(len(theirs))].Name
				bad.Tamper(a, put(get(foreign, c)))
			case 6: // noise
				bad.Tamper(a, func(p []byte) []byte {
					for i := range p {
						p[i] = byte(rnd.Uint32())
					}
					return p
				})
			case 7: // the middle of one in another
				bad.Tamper(a, func(p []byte) []byte {
					copy(p[rnd.IntN(len(p)+1):], pb[rnd.IntN(len(pb)+1):])
					return p
				})
			}
		}
		_, _ = w.tryAll(bad)
		if runs%4 == 0 {
			r, err := cs.Open(t.Context(), bad, cs.OpenOptions{Passphrase: "secret", NewIndex: cs.MemoryIndex})
			if err != nil {
				continue
			}
			_, _ = r.Collect(t.Context(), cs.CollectOptions{})
			_, _ = r.Scrub(t.Context(), cs.ScrubOptions{})
			_ = r.Close()
			_, _ = w.tryAll(bad)
		}
	}
	t.Logf("%d attacks", runs)
}

// TestNothingInTheClear: the storage sees no block, no name and no description.
func TestNothingInTheClear(t *testing.T) {
	w, st := specimen(t, cs.CreateOptions{})
	var blocks [][]byte
	for _, p := range w.points {
		for _, x := range p.disks {
			for _, l := range x.letters {
				if l != 0 {
					blocks = append(blocks, alphabet[l][100:132])
				}
			}
		}
	}
	blocks = append(blocks, []byte("vm0"), []byte("vm1"), []byte("secret"), w.master)
	slices.SortFunc(blocks, bytes.Compare)
	blocks = slices.CompactFunc(blocks, bytes.Equal)
	for _, o := range objects(t, st) {
		p, err := st.Get(t.Context(), o.Name, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range blocks {
			// Names are short, and noise holds them by chance: only in text do they tell something.
			if bytes.Contains(p, b) && (len(b) > 8 || !strings.HasPrefix(o.Name, "data/") && !strings.HasPrefix(o.Name, "meta/")) {
				t.Errorf("%s holds %q", o.Name, b)
			}
		}
	}
}
