package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"drover/internal/blob"
	"drover/internal/clock"
)

// hooked is a store that calls back.
type hooked struct {
	blob.Store
	put  func(name string, do func() error) error
	get  func(name string)
	list func(prefix string)
	made func(name string)
}

func (h hooked) Create(ctx context.Context, name string) (blob.Writer, error) {
	if h.made != nil {
		h.made(name)
	}
	return h.Store.Create(ctx, name)
}

func (h hooked) Put(ctx context.Context, name string, data []byte) error {
	do := func() error { return h.Store.Put(ctx, name, data) }
	if h.put == nil {
		return do()
	}
	return h.put(name, do)
}

func (h hooked) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	if h.get != nil {
		h.get(name)
	}
	return h.Store.Get(ctx, name, limit)
}

func (h hooked) List(ctx context.Context, prefix, after string) iter.Seq2[blob.Info, error] {
	if h.list != nil {
		h.list(prefix)
	}
	return h.Store.List(ctx, prefix, after)
}

// TestCollectorsCross: a collector with an old walk condemns a pack that another collector, with a newer walk, has seen alive and not condemned. The other
// may not drop it: its list of condemned packs that are needed does not have it.
func TestCollectorsCross(t *testing.T) {
	ctx := t.Context()
	r, st := create(t, CreateOptions{})
	data := image(5, 2<<20)
	first := commitImage(t, r, data)
	if err := r.Forget(ctx, "test", first); err != nil {
		t.Fatal(err)
	}
	again := func(h hooked) *Repository {
		h.Store = st
		o, err := Open(ctx, h, OpenOptions{Passphrase: "secret"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = o.Close() })
		return o
	}
	atCondemn, condemn, condemned, ended := make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan struct{})
	var on, once atomic.Bool
	old := again(hooked{put: func(name string, do func() error) error {
		if !on.Load() || once.Load() || !strings.HasPrefix(name, "log/") {
			return do()
		}
		select {
		case <-atCondemn:
		default:
			close(atCondemn)
			<-condemn
		}
		err := do()
		if err == nil {
			once.Store(true)
			close(condemned)
			<-ended
		}
		return err
	}})
	on.Store(true)
	failed := make(chan error, 1)
	go func() {
		_, err := old.Collect(ctx, CollectOptions{})
		failed <- err
	}()
	<-atCondemn
	// Now the pack is needed again, by one who never had it open with the condemn.
	second := commitImage(t, r, data)
	listed, reads := false, 0
	fresh := again(hooked{list: func(prefix string) { listed = listed || prefix == "meta/" }, get: func(name string) {
		if !listed || !strings.HasPrefix(name, "log/") {
			return
		}
		// The first is after the listing, before the walk; the second is that of the drop.
		if reads++; reads == 2 {
			close(condemn)
			<-condemned
		}
	}})
	res, err := fresh.Collect(ctx, CollectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if reads < 2 {
		t.Fatal("the other collector did not come between")
	}
	if res.Waiting == 0 {
		t.Errorf("nothing waits: %+v", res)
	}
	close(ended)
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	s := begin(t, r, BeginOptions{Reader: true})
	defer s.Close(ctx)
	p, ok := r.Point(second)
	if !ok {
		t.Fatal("the point is gone")
	}
	d, err := s.Open(ctx, p.GetDisks()[0])
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(data))
	if err := d.ReadAt(ctx, got, 0); err != nil || !bytes.Equal(got, data) {
		t.Fatal("a point that was acknowledged can't be read:", err)
	}
}

// aheadClock is an hour ahead.
type aheadClock struct{ clock.Clock }

func (l aheadClock) Now() time.Time { return l.Clock.Now().Add(time.Hour) }

// TestMoverTakenForDead: while a collector compacts, another takes its session for dead, and its new packs for orphans. The blocks stay where they are.
func TestMoverTakenForDead(t *testing.T) {
	ctx := t.Context()
	r, st := create(t, CreateOptions{})
	r.o.Clock = aheadClock{r.o.Clock} // times in the log are rounded
	data := image(6, 4<<20)
	first := commitImage(t, r, data)
	part := data[:1<<20]
	second := commitImage(t, r, part)
	if err := r.Forget(ctx, "test", first); err != nil {
		t.Fatal(err)
	}
	var packs, crossed bool
	h := hooked{Store: st, made: func(name string) { packs = packs || strings.HasPrefix(name, "data/") }}
	h.put = func(name string, do func() error) error {
		if packs && !crossed && strings.HasPrefix(name, "log/") {
			crossed = true
			if res, err := r.Collect(ctx, CollectOptions{Dead: 1, Share: -1}); err != nil || res.Ended == 0 || res.Orphans == 0 {
				t.Errorf("the other collector ended and deleted nothing: %+v, %v", res, err)
			}
		}
		return do()
	}
	o, err := Open(ctx, h, OpenOptions{Passphrase: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if _, err := o.Collect(ctx, CollectOptions{}); !errors.Is(err, ErrEnded) {
		t.Errorf("who was taken for dead: %v", err)
	}
	if !crossed {
		t.Fatal("nothing was compacted")
	}
	if _, err := o.Collect(ctx, CollectOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := r.Refresh(ctx); err != nil {
		t.Fatal(err)
	}
	s := begin(t, r, BeginOptions{Reader: true})
	defer s.Close(ctx)
	p, _ := r.Point(second)
	d, err := s.Open(ctx, p.GetDisks()[0])
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(part))
	if err := d.ReadAt(ctx, got, 0); err != nil || !bytes.Equal(got, part) {
		t.Fatal("a point that was acknowledged can't be read:", err)
	}
}
