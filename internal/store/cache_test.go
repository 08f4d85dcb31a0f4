package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	droverv1 "drover/api/drover/v1"
)

// runCache runs a cache of c until the test ends, and waits for its first state.
func runCache(t testing.TB, c *Collection[*droverv1.VM], ring int) *Cache[*droverv1.VM] {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	cache, done := newCache(c, ring), make(chan struct{})
	go func() {
		defer close(done)
		if err := cache.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("the cache ended: %v", err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	if err := cache.WaitRevision(testContext(t), 1); err != nil {
		t.Fatal(err)
	}
	return cache
}

func TestCacheReadsItsWrites(t *testing.T) {
	ctx := testContext(t)
	s := openTest(t, t.TempDir())
	vms, sites := vmsOf(t, s), sitesOf(t, s)
	create(t, vms, newVM("m", 1))
	cache := runCache(t, vms, 8)
	for i := range 50 {
		vm := create(t, vms, newVM(fmt.Sprintf("vm-%02d", i), int32(i)))
		if err := cache.WaitRevision(ctx, vm.Meta.Revision); err != nil {
			t.Fatal(err)
		}
		if got, ok := cache.Get(vm.Meta.Name); !ok || got.Spec.Cpus != int32(i) || got.Meta.Revision != vm.Meta.Revision {
			t.Fatalf("get: %v, %v", got, ok)
		}
	}
	rev, err := vms.Delete(ctx, "vm-00", 0)
	if err != nil {
		t.Fatal(err)
	}
	// A revision that another collection made: no event of ours will ever carry it.
	site := create(t, sites, &droverv1.Site{Meta: &droverv1.Meta{Name: "north"}})
	if err := cache.WaitRevision(ctx, site.Meta.Revision); err != nil {
		t.Fatal(err)
	}
	if _, ok := cache.Get("vm-00"); ok || cache.Len() != 50 || cache.Revision() < rev {
		t.Errorf("after a delete at %d: found %v, %d objects at %d", rev, ok, cache.Len(), cache.Revision())
	}
	list, at := cache.List()
	if len(list) != 50 || at < site.Meta.Revision || list[0].Meta.Name != "m" || list[49].Meta.Name != "vm-49" {
		t.Errorf("list: %d at %d", len(list), at)
	}
	again, _ := cache.List()
	if &again[0] != &list[0] {
		t.Error("an unchanged list was copied")
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	wantErr(t, cache.WaitRevision(short, at+1000), context.DeadlineExceeded, "revision")
}

func next(t *testing.T, s *Subscription[*droverv1.VM]) []Event[*droverv1.VM] {
	t.Helper()
	b, err := s.Next(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSubscribersFollowResumeAndResync(t *testing.T) {
	ctx := testContext(t)
	s := openTest(t, t.TempDir())
	vms := vmsOf(t, s)
	a := create(t, vms, newVM("a", 1))
	cache := runCache(t, vms, 8)
	update := func() {
		t.Helper()
		a.Spec.Cpus++
		if err := vms.Update(ctx, a); err != nil {
			t.Fatal(err)
		}
		if err := cache.WaitRevision(ctx, a.Meta.Revision); err != nil {
			t.Fatal(err)
		}
	}
	fast, slow := cache.Subscribe(0), cache.Subscribe(0)
	for _, sub := range []*Subscription[*droverv1.VM]{fast, slow} {
		if got := say(next(t, sub)); got != "reset() put(a) synced() " {
			t.Fatalf("first: %s", got)
		}
	}
	before := a.Meta.Revision
	for i := range 20 { // more than the ring holds
		update()
		b := next(t, fast)
		if say(b) != "put(a) " || b[0].Object.Spec.Cpus != a.Spec.Cpus || b[0].Old.Spec.Cpus != a.Spec.Cpus-1 {
			t.Fatalf("change %d: %+v", i, b)
		}
	}
	if b := next(t, slow); say(b) != "reset() put(a) synced() " || b[1].Object.Spec.Cpus != a.Spec.Cpus {
		t.Errorf("the slow one: %v", b)
	}
	if b := next(t, cache.Subscribe(before)); say(b) != "reset() put(a) synced() " {
		t.Errorf("resume from too long ago: %s", say(b))
	}
	mid := a.Meta.Revision
	update()
	update()
	if b := next(t, cache.Subscribe(mid)); say(b) != "put(a) put(a) " || b[0].Revision <= mid {
		t.Errorf("resume: %+v", b)
	}
	rev, err := vms.Delete(ctx, "a", 0)
	if err != nil {
		t.Fatal(err)
	}
	if b := next(t, slow); b[len(b)-1].Type != Delete && say(next(t, slow)) != "delete(a) " {
		t.Errorf("delete: %s", say(b))
	}
	if err := cache.WaitRevision(ctx, rev); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if b, err := cache.Subscribe(rev).Next(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nothing new, but: %v, %v", b, err)
	}
}

func TestCacheHealsWhenItsHistoryIsCompacted(t *testing.T) {
	s := openTest(t, t.TempDir())
	vms := vmsOf(t, s)
	cache := newCache(vms, 8)
	put := func(typ EventType, name string, rev int64) Event[*droverv1.VM] {
		return Event[*droverv1.VM]{Type: typ, Name: name, Object: newVM(name, 1), Revision: rev}
	}
	cache.apply([]Event[*droverv1.VM]{put(Reset, "", 5), put(Put, "a", 3), put(Put, "b", 5), put(Synced, "", 5)})
	sub := cache.Subscribe(5)
	cache.apply([]Event[*droverv1.VM]{put(Put, "c", 6)})
	if got := say(next(t, sub)); got != "put(c) " {
		t.Fatalf("got %s", got)
	}
	// The watch lost its place: b and c went unseen.
	cache.apply([]Event[*droverv1.VM]{put(Reset, "", 9), put(Put, "a", 3), put(Put, "d", 9), put(Synced, "", 9)})
	if got := say(next(t, sub)); got != "reset() put(a) put(d) synced() " {
		t.Errorf("got %s", got)
	}
	if _, ok := cache.Get("b"); ok || cache.Len() != 2 {
		t.Error("b is still there")
	}
}

func TestStoppedCacheTellsEveryone(t *testing.T) {
	s := openTest(t, t.TempDir())
	cache := NewCache(vmsOf(t, s))
	ctx, cancel := context.WithCancel(testContext(t))
	ran := make(chan error, 1)
	go func() { ran <- cache.Run(ctx) }()
	if err := cache.WaitRevision(ctx, 1); err != nil {
		t.Fatal(err)
	}
	sub := cache.Subscribe(0)
	next(t, sub)
	waited := make(chan error, 2)
	go func() { _, err := sub.Next(testContext(t)); waited <- err }()
	go func() { waited <- cache.WaitRevision(testContext(t), 1<<40) }()
	cancel()
	wantErr(t, <-ran, context.Canceled)
	for range 2 {
		wantErr(t, <-waited, context.Canceled, "cache of vm")
	}
}

// fanOut measures one change to 100 subscribers, from before the write to each one having it.
func fanOut(tb testing.TB, vms *Collection[*droverv1.VM], cache *Cache[*droverv1.VM], vm *droverv1.VM, rounds int) []time.Duration {
	const watchers = 100
	ctx, cancel := context.WithCancel(testContext(tb))
	type seen struct {
		rev int64
		at  time.Time
	}
	got := make(chan seen, watchers)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	_, rev := cache.List()
	for range watchers {
		sub := cache.Subscribe(rev)
		wg.Go(func() {
			for {
				b, err := sub.Next(ctx)
				if err != nil {
					return
				}
				select {
				case got <- seen{b[len(b)-1].Revision, time.Now()}:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	var took []time.Duration
	for range rounds {
		vm.Spec.Cpus++
		start := time.Now()
		if err := vms.Update(ctx, vm); err != nil {
			tb.Fatal(err)
		}
		for range watchers {
			select {
			case s := <-got:
				if s.rev != vm.Meta.Revision {
					tb.Fatalf("a watcher saw %d, the change is %d", s.rev, vm.Meta.Revision)
				}
				took = append(took, s.at.Sub(start))
			case <-ctx.Done():
				tb.Fatal("a watcher missed the change")
			}
		}
	}
	slices.Sort(took)
	return took
}

func TestFanOutToHundredWatchers(t *testing.T) {
	s := openTest(t, t.TempDir())
	vms := vmsOf(t, s)
	vm := create(t, vms, newVM("a", 1))
	cache := runCache(t, vms, defaultRing)
	if err := cache.WaitRevision(testContext(t), vm.Meta.Revision); err != nil {
		t.Fatal(err)
	}
	took := fanOut(t, vms, cache, vm, 50)
	p99 := took[len(took)*99/100]
	t.Logf("median %v, p99 %v", took[len(took)/2], p99)
	// The promise is 50 ms p99, on a machine that is not busy with other tests; ten times that is broken on any.
	if p99 > 500*time.Millisecond {
		t.Errorf("p99 is %v", p99)
	}
}
