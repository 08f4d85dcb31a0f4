package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"drover/internal/blob"
	"drover/internal/chunkstore/ledger"
)

// store writes one point of one disk, in a session of its own.
func (f *fixture) store(data []byte, parent PointID) PointID {
	f.t.Helper()
	s, err := f.r.Begin(f.t.Context(), BeginOptions{Purpose: "test"})
	if err != nil {
		f.t.Fatal(err)
	}
	var o DiskOptions
	if p, ok := f.r.Point(parent); ok {
		o.Parent = p.Disks[0]
	}
	id := commit(f.t, s, backup(f.t, s, "vda", data, o))
	f.end(s)
	f.want[id] = bytes.Clone(data)
	return id
}

func (f *fixture) end(s *Session) {
	f.t.Helper()
	if err := s.Close(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
}

// fixture is a repository, and what its points must read as.
type fixture struct {
	t    *testing.T
	r    *Repository
	st   *blob.Memory
	want map[PointID][]byte
}

func newFixture(t *testing.T, o CreateOptions) *fixture {
	t.Helper()
	if o.BlockSize == 0 {
		o.BlockSize = 4096
	}
	r, st := create(t, o)
	return &fixture{t: t, r: r, st: st, want: map[PointID][]byte{}}
}

func (f *fixture) forget(ids ...PointID) {
	f.t.Helper()
	if err := f.r.Forget(f.t.Context(), "test", ids...); err != nil {
		f.t.Fatal(err)
	}
	for _, id := range ids {
		delete(f.want, id)
	}
}

func (f *fixture) collect(o CollectOptions) CollectResult {
	f.t.Helper()
	res, err := f.r.Collect(f.t.Context(), o)
	if err != nil {
		f.t.Fatal(err)
	}
	if len(res.Lost) > 0 {
		f.t.Fatalf("blocks are lost: %v", res.Lost)
	}
	return res
}

// check reads all points, by this opening of the repository and by a fresh one.
func (f *fixture) check() {
	f.t.Helper()
	fresh, err := Open(f.t.Context(), f.st, OpenOptions{Passphrase: "secret", ReadOnly: true})
	if err != nil {
		f.t.Fatal(err)
	}
	defer fresh.Close()
	for _, r := range []*Repository{f.r, fresh} {
		for id, want := range f.want {
			if got := f.read(r, id); !bytes.Equal(got, want) {
				f.t.Fatalf("point %s reads wrongly", id)
			}
		}
	}
}

func (f *fixture) read(r *Repository, id PointID) []byte {
	f.t.Helper()
	p, ok := r.Point(id)
	if !ok {
		f.t.Fatalf("point %s is gone", id)
	}
	s, err := r.Begin(f.t.Context(), BeginOptions{Reader: true, Pins: []PointID{id}})
	if err != nil {
		f.t.Fatal(err)
	}
	defer f.end(s)
	d, err := s.Open(f.t.Context(), p.Disks[0])
	if err != nil {
		f.t.Fatal(err)
	}
	got := make(memorySink, d.Size())
	if err := d.Restore(f.t.Context(), got, RestoreOptions{}); err != nil {
		f.t.Fatalf("restore point %s: %v", id, err)
	}
	if _, err := s.Description(f.t.Context(), p); err != nil {
		f.t.Fatal(err)
	}
	return got
}

// size is what packs take in the store.
func (f *fixture) size() (n int64) {
	for _, prefix := range []string{"data/", "meta/", "parity/"} {
		for info, err := range f.st.List(f.t.Context(), prefix, "") {
			if err != nil {
				f.t.Fatal(err)
			}
			n += info.Size
		}
	}
	return n
}

func noise(seed uint64, size int) []byte {
	b := image(seed, size)
	for i := range b {
		b[i] ^= byte(uint64(i)*0x9e3779b97f4a7c15>>56) + byte(seed*31) + byte(i/4096)
	}
	return b
}

func TestCollectFreesWhatIsForgotten(t *testing.T) {
	f := newFixture(t, CreateOptions{})
	a := f.store(noise(1, 1<<20), PointID{})
	before := f.size()
	b := f.store(noise(2, 1<<20), a)
	f.forget(b)
	res := f.collect(CollectOptions{})
	if res.Dropped != 2 || res.Dead != 2 || f.size() != before {
		t.Errorf("%+v, %d bytes and %d before", res, f.size(), before)
	}
	f.check()
	f.forget(a)
	f.collect(CollectOptions{})
	if f.size() != 0 {
		t.Errorf("%d bytes stay of nothing", f.size())
	}
	// What was collected is stored anew.
	f.store(noise(1, 1<<20), PointID{})
	f.check()
}

func TestCollectCompacts(t *testing.T) {
	for _, memory := range []int64{0, 200} {
		f := newFixture(t, CreateOptions{})
		data := noise(1, 2<<20)
		a := f.store(data, PointID{})
		part := bytes.Clone(data)
		copy(part[1<<19:], noise(2, len(part)-1<<19)) // a quarter stays
		b := f.store(part, a)
		f.forget(a)
		before := f.size()
		res := f.collect(CollectOptions{Memory: memory})
		if res.Move.Packs < 1 || res.Dropped < 2 || f.size() > before*2/3 {
			t.Errorf("memory %d: %+v, %d bytes of %d", memory, res, f.size(), before)
		}
		f.check()
		// And again: what was moved moves on, and is found.
		copy(part[1<<18:], noise(3, 1<<19))
		f.store(part, b)
		f.forget(b)
		f.collect(CollectOptions{Memory: memory, Share: 1})
		f.check()
		if res := f.collect(CollectOptions{Memory: memory}); res.Waiting != 0 || res.Dropped != 0 {
			t.Errorf("memory %d: a second collection finds %+v", memory, res)
		}
		f.check()
	}
}

func TestCollectMakesParity(t *testing.T) {
	f := newFixture(t, CreateOptions{Parity: true})
	a := f.store(noise(1, 1<<20), PointID{})
	f.store(noise(2, 1<<20), PointID{})
	if res := f.collect(CollectOptions{}); res.Parity != 4 || len(f.objects("parity/")) != 4 {
		t.Errorf("%+v", res)
	}
	f.forget(a)
	if res := f.collect(CollectOptions{}); res.Parity != 0 || len(f.objects("parity/")) != 2 {
		t.Errorf("%+v", res)
	}
	f.check()
}

func TestCollectWaitsForSessions(t *testing.T) {
	f := newFixture(t, CreateOptions{})
	a := f.store(noise(1, 1<<20), PointID{})
	p, _ := f.r.Point(a)
	reader := begin(t, f.r, BeginOptions{Reader: true, Pins: []PointID{a}})
	f.forget(a)
	if res := f.collect(CollectOptions{}); res.Dead != 0 || res.Dropped != 0 {
		t.Errorf("what a reader needs is condemned: %+v", res)
	}
	d, err := reader.Open(t.Context(), p.Disks[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := d.ReadAt(t.Context(), make([]byte, 1<<20), 0); err != nil {
		t.Fatal(err)
	}
	f.end(reader)

	// A session that is open at the condemn may refer to what is condemned.
	other := begin(t, f.r, BeginOptions{Purpose: "other"})
	res := f.collect(CollectOptions{})
	if res.Dead != 2 || res.Dropped != 0 || res.Waiting != 2 {
		t.Errorf("%+v", res)
	}
	f.end(other)
	if res := f.collect(CollectOptions{}); res.Dropped != 2 || f.size() != 0 {
		t.Errorf("%+v", res)
	}
}

// TestCollectRescues condemns under a writer that found a block in the pack before.
func TestCollectRescues(t *testing.T) {
	f := newFixture(t, CreateOptions{})
	data := noise(1, 1<<20)
	a := f.store(data, PointID{})
	s := begin(t, f.r, BeginOptions{})
	d := backup(t, s, "vda", data, DiskOptions{}) // all of it is there
	f.forget(a)
	// The writer began before the forget, so that a is walked on; its pages aside, make the walk see nothing of it.
	f.r.ledger.View(func(s *ledger.State) { s.Forgotten = nil })
	if res := f.collect(CollectOptions{}); res.Dead == 0 || res.Dropped != 0 {
		t.Fatalf("%+v", res)
	}
	b := commit(t, s, d)
	f.want[b] = data
	f.end(s)
	res := f.collect(CollectOptions{})
	if res.Rescued == 0 {
		t.Errorf("%+v", res)
	}
	f.check()
}

func TestCollectOrphans(t *testing.T) {
	f := newFixture(t, CreateOptions{})
	f.store(noise(1, 1<<20), PointID{})
	put := func(n byte) string {
		id := PackID{0xab, n}
		name := packName(1, id)
		if err := f.st.Put(t.Context(), name, []byte("left by a crash")); err != nil {
			t.Fatal(err)
		}
		return name
	}
	first := put(1)
	s := begin(t, f.r, BeginOptions{})
	if res := f.collect(CollectOptions{}); res.Orphans != 0 {
		t.Errorf("an object that an open session may have written is gone: %+v", res)
	}
	f.end(s)
	if res := f.collect(CollectOptions{}); res.Orphans != 1 {
		t.Errorf("%+v", res)
	}
	if _, err := f.st.Size(t.Context(), first); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("the orphan is there: %v", err)
	}
	f.check()
}

// silent is a clock that stands still, and jumps.
type jumping struct{ now time.Time }

func (c *jumping) Now() time.Time                         { return c.now }
func (c *jumping) NewTimer(d time.Duration) *time.Timer   { return time.NewTimer(d) }
func (c *jumping) After(d time.Duration) <-chan time.Time { return time.After(d) }

func TestCollectEndsDeadSessions(t *testing.T) {
	c := &jumping{now: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}
	f := newFixture(t, CreateOptions{Open: OpenOptions{Clock: c}})
	data := noise(1, 1<<20)
	a := f.store(data, PointID{})
	s := begin(t, f.r, BeginOptions{})
	d := backup(t, s, "vda", noise(2, 1<<20), DiskOptions{})
	c.now = c.now.Add(-100 * 24 * time.Hour)
	if res := f.collect(CollectOptions{}); res.Ended != 0 {
		t.Errorf("a clock that went back ended a session: %+v", res)
	}
	c.now = c.now.Add(200 * 24 * time.Hour)
	if res := f.collect(CollectOptions{}); res.Ended != 1 {
		t.Errorf("%+v", res)
	}
	id := PointID(f.r.randomID())
	if err := s.Commit(t.Context(), &ledger.Point{Id: id[:], Disks: []*ledger.Disk{d}}); !errors.Is(err, ErrEnded) {
		t.Errorf("a session that was ended commits: %v", err)
	}
	f.end(s)
	f.collect(CollectOptions{})
	f.store(noise(2, 1<<20), a)
	f.check()
}

func TestCollectorOfAnOlderVersion(t *testing.T) {
	f := newFixture(t, CreateOptions{})
	a := f.store(noise(1, 1<<20), PointID{})
	f.forget(a)
	_, err := f.r.ledger.Do(t.Context(), func(*ledger.State) (*ledger.Transaction, error) {
		return &ledger.Transaction{Kind: &ledger.Transaction_Require{Require: &ledger.Require{Writer: 1, Collector: ledger.CollectorVersion + 1}}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	before := f.size()
	if _, err := f.r.Collect(t.Context(), CollectOptions{}); !errors.Is(err, ErrNewer) {
		t.Errorf("collected: %v", err)
	}
	if f.size() != before {
		t.Error("it deleted something")
	}
	f.store(noise(2, 1<<20), PointID{})
	f.check()
}

// TestCollectorsAtOnce lets several openings of a repository collect, rewrite and back up at the same time.
func TestCollectorsAtOnce(t *testing.T) {
	f := newFixture(t, CreateOptions{})
	data := noise(1, 1<<20)
	var points []PointID
	for n := range 6 {
		copy(data[n<<17:], noise(uint64(10+n), 1<<18))
		points = append(points, f.store(data, PointID{}))
	}
	others := make([]*Repository, 3)
	for i := range others {
		r, err := Open(t.Context(), f.st, OpenOptions{Passphrase: "secret"})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		others[i] = r
	}
	for round := range 6 {
		f.forget(points[0])
		points = points[1:]
		ctx := context.WithoutCancel(t.Context())
		err := each(ctx, 4, 4, func(ctx context.Context, i int) error {
			switch i {
			case 0, 1:
				_, err := others[i].Collect(ctx, CollectOptions{Share: 0.9})
				return err
			case 2:
				_, err := others[i].Rewrite(ctx, RewriteOptions{})
				return err
			}
			copy(data[round<<16:], noise(uint64(100+round), 1<<16))
			points = append(points, f.store(data, points[len(points)-1]))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := f.r.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.check()
	}
	f.collect(CollectOptions{Share: 0.9})
	f.collect(CollectOptions{Share: 0.9})
	f.check()
	if res := f.collect(CollectOptions{Share: 0.9}); res.Waiting > 0 || res.Dropped > 0 {
		t.Errorf("a third collection finds %+v", res)
	}
}

func TestRewrite(t *testing.T) {
	for _, o := range []CreateOptions{{}, {Unencrypted: true}, {Hash: "sha256"}} {
		f := newFixture(t, o)
		var words []byte
		rnd := rand.New(rand.NewPCG(1, 2))
		for len(words) < 1<<20 {
			words = fmt.Appendf(words, "%d %s ", rnd.IntN(5000), []string{"start", "stop", "attach", "migrate"}[rnd.IntN(4)])
		}
		f.store(words[:1<<20], PointID{})
		before := f.size()
		res, err := f.r.Rewrite(t.Context(), RewriteOptions{})
		if err != nil {
			t.Fatal(err)
		}
		f.check()
		f.collect(CollectOptions{})
		if res.Packs != 1 || f.size() >= before {
			t.Errorf("%+v: %d bytes of %d", res, f.size(), before)
		}
		f.check()
		if res, err := f.r.Rewrite(t.Context(), RewriteOptions{}); err != nil || res.Packs != 0 {
			t.Errorf("rewritten twice: %+v, %v", res, err)
		}
	}
}
