package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"drover/internal/store/storetest"
)

// leaderOf asks the cluster which member leads.
func leaderOf(t *testing.T, s *Store, ms []*storetest.Member) int {
	t.Helper()
	for i, m := range ms {
		st, err := s.client.Status(testContext(t), m.URL)
		if err != nil {
			t.Fatal(err)
		}
		if st.Leader == st.Header.MemberId {
			return i
		}
	}
	t.Fatal("the cluster has no leader")
	return 0
}

func TestExternalClusterLosesItsLeader(t *testing.T) {
	ctx := testContext(t)
	ms := storetest.StartCluster(t, 3)
	var urls []string
	for _, m := range ms {
		urls = append(urls, m.URL)
	}
	s, err := Open(ctx, Options{Endpoints: urls, Logger: testLog(t), RequestTimeout: 3 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	vms := vmsOf(t, s)
	cache := runCache(t, vms, defaultRing)
	sub := cache.Subscribe(0)
	next(t, sub)

	var last int64
	write := func(i int) {
		t.Helper()
		vm := newVM(fmt.Sprintf("vm-%03d", i), int32(i))
		for {
			err := vms.Create(ctx, vm)
			if err == nil {
				last = vm.Meta.Revision
				return
			}
			t.Logf("write %d: %v", i, err)
			// Unavailable means unknown: it may be there already.
			if got, gerr := vms.Get(ctx, vm.Meta.Name); gerr == nil && got.Spec.Cpus == int32(i) {
				last = got.Meta.Revision
				return
			}
			if !errors.Is(err, ErrUnavailable) || ctx.Err() != nil {
				t.Fatalf("write %d: %v", i, err)
			}
		}
	}
	const before, after = 20, 60
	for i := range before {
		write(i)
	}
	dead := leaderOf(t, s, ms)
	ms[dead].Kill(t)
	killed := time.Now()
	for i := before; i < after; i++ {
		write(i)
		if i == before {
			t.Logf("the first write after the leader's death took %v", time.Since(killed))
		}
	}
	if err := cache.WaitRevision(ctx, last); err != nil {
		t.Fatal(err)
	}
	if cache.Len() != after {
		t.Errorf("the cache has %d objects of %d", cache.Len(), after)
	}
	seen := 0
	for seen < after {
		for _, e := range next(t, sub) {
			if want := fmt.Sprintf("vm-%03d", seen); e.Type != Put || e.Name != want {
				t.Fatalf("the follower got %v of %s, want %s", e.Type, e.Name, want)
			}
			seen++
		}
	}

	// A second death takes the majority: requests fail in time and say so; nothing is lost when one is back.
	other := (dead + 1) % 3
	ms[other].Kill(t)
	short, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	wantErr(t, vms.Create(short, newVM("lost", 1)), ErrUnavailable)
	ms[other].Start(t)
	ms[other].Ready(t)
	write(after)
	if err := cache.WaitRevision(ctx, last); err != nil {
		t.Fatal(err)
	}
	if _, ok := cache.Get(fmt.Sprintf("vm-%03d", after)); !ok {
		t.Error("the watch did not go on")
	}

	// A backup of the cluster becomes the state of an embedded server.
	dir := t.TempDir()
	file, err := os.Create(filepath.Join(dir, "backup"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Backup(ctx, file, time.Unix(0, 0))
	if err := errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(ctx, file.Name(), filepath.Join(dir, "state"), testLog(t)); err != nil {
		t.Fatal(err)
	}
	// The write that failed without a majority may have come through after all.
	live, _, err := vms.List(ctx)
	if err != nil || len(live) < after+1 {
		t.Fatalf("the cluster has %d objects, %v", len(live), err)
	}
	moved, _, err := vmsOf(t, openTest(t, filepath.Join(dir, "state"))).List(ctx)
	if err != nil || len(moved) != len(live) {
		t.Errorf("moved to an embedded server: %d objects, %v; want %d", len(moved), err, len(live))
	}
}
