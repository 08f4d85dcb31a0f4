package store

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	droverv1 "drover/api/drover/v1"
)

// follow runs a watch until the test ends and gives its batches.
func follow(t *testing.T, c *Collection[*droverv1.VM], from int64) <-chan []Event[*droverv1.VM] {
	ctx, cancel := context.WithCancel(testContext(t))
	out, done := make(chan []Event[*droverv1.VM], 1000), make(chan struct{})
	go func() {
		defer close(done)
		if err := c.Watch(ctx, from, func(b []Event[*droverv1.VM]) error { out <- b; return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("watch ended: %v", err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return out
}

// nextBatch gives the next batch that is not mere progress.
func nextBatch(t *testing.T, ch <-chan []Event[*droverv1.VM]) []Event[*droverv1.VM] {
	t.Helper()
	for {
		select {
		case b := <-ch:
			if b[0].Type != Progress {
				return b
			}
		case <-time.After(20 * time.Second):
			t.Fatal("no event came")
		}
	}
}

// say writes a batch down, without revisions.
func say(batch []Event[*droverv1.VM]) string {
	s := ""
	for _, e := range batch {
		s += fmt.Sprintf("%v(%s) ", e.Type, e.Name)
	}
	return s
}

func wantBatch(t *testing.T, ch <-chan []Event[*droverv1.VM], want string) []Event[*droverv1.VM] {
	t.Helper()
	b := nextBatch(t, ch)
	if say(b) != want {
		t.Fatalf("got %s, want %s", say(b), want)
	}
	return b
}

func TestWatchDeliversStateThenChanges(t *testing.T) {
	ctx := testContext(t)
	s := openTest(t, t.TempDir())
	vms, sites := vmsOf(t, s), sitesOf(t, s)
	a := create(t, vms, newVM("a", 1))
	ch := follow(t, vms, 0)
	b := wantBatch(t, ch, "reset() put(a) synced() ")
	if b[1].Object.Meta.Revision != a.Meta.Revision || b[2].Revision < a.Meta.Revision {
		t.Errorf("revisions: %+v", b)
	}
	create(t, sites, &droverv1.Site{Meta: &droverv1.Meta{Name: "north"}}) // not ours
	a.Spec.Cpus = 2
	if err := vms.Update(ctx, a); err != nil {
		t.Fatal(err)
	}
	if b := wantBatch(t, ch, "put(a) "); b[0].Object.Spec.Cpus != 2 || b[0].Revision != a.Meta.Revision {
		t.Errorf("update: %+v", b[0])
	}
	rev, err := s.Txn(ctx, vms.CreateOp(newVM("b", 1)), vms.DeleteOp("a", a.Meta.Revision), vms.CreateOp(newVM("c", 1)))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range wantBatch(t, ch, "put(b) delete(a) put(c) ") {
		if e.Revision != rev {
			t.Errorf("%v at %d, the transaction at %d", e, e.Revision, rev)
		}
	}
}

func TestWatchResumesAndSurvivesCompaction(t *testing.T) {
	ctx := testContext(t)
	s := openTest(t, t.TempDir())
	vms := vmsOf(t, s)
	a := create(t, vms, newVM("a", 1))
	from := a.Meta.Revision
	create(t, vms, newVM("b", 1))
	if _, err := vms.Delete(ctx, "b", 0); err != nil {
		t.Fatal(err)
	}
	c := create(t, vms, newVM("c", 1))

	resumed := follow(t, vms, from)
	got := ""
	for got != "put(b) delete(b) put(c) " {
		if got += say(nextBatch(t, resumed)); len(got) > 60 {
			t.Fatalf("resumed: %s", got)
		}
	}
	if err := s.Compact(ctx, c.Meta.Revision); err != nil {
		t.Fatal(err)
	}
	if err := s.Compact(ctx, c.Meta.Revision); err != nil {
		t.Errorf("compacting again: %v", err)
	}
	late := follow(t, vms, from)
	wantBatch(t, late, "reset() put(a) put(c) synced() ")
	create(t, vms, newVM("d", 1))
	wantBatch(t, late, "put(d) ")
	wantBatch(t, resumed, "put(d) ")
}

func TestWatchEndsWithItsHandler(t *testing.T) {
	s := openTest(t, t.TempDir())
	stop := errors.New("enough")
	if err := vmsOf(t, s).Watch(testContext(t), 0, func([]Event[*droverv1.VM]) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
}
