package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	droverv1 "drover/api/drover/v1"

	"google.golang.org/protobuf/proto"
)

// testLog shows what etcd complains about with -v.
func testLog(t testing.TB) *slog.Logger {
	if !testing.Verbose() {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// openTest opens an embedded store in dir and closes it at the end of the test.
func openTest(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(testContext(t), Options{Dir: dir, Logger: testLog(t), unsafeNoFsync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close the store: %v", err)
		}
	})
	return s
}

func vmsOf(t testing.TB, s *Store) *Collection[*droverv1.VM] {
	t.Helper()
	c, err := NewCollection(s, Kind[*droverv1.VM]{Name: "vm"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func sitesOf(t testing.TB, s *Store) *Collection[*droverv1.Site] {
	t.Helper()
	c, err := NewCollection(s, Kind[*droverv1.Site]{Name: "site"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newVM(name string, cpus int32) *droverv1.VM {
	return &droverv1.VM{Meta: &droverv1.Meta{Name: name}, Spec: &droverv1.VMSpec{Cpus: cpus}}
}

func create[T proto.Message](t testing.TB, c *Collection[T], m T) T {
	t.Helper()
	if err := c.Create(testContext(t), m); err != nil {
		t.Fatal(err)
	}
	return m
}

func wantErr(t testing.TB, err, target error, parts ...string) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("got error %v, want %v", err, target)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q does not say %q", err, p)
		}
	}
}

func TestObjectsLiveAndSurviveRestart(t *testing.T) {
	ctx, dir := testContext(t), t.TempDir()
	s, err := Open(ctx, Options{Dir: filepath.Join(dir, "state"), Logger: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	vms := vmsOf(t, s)
	vm := create(t, vms, newVM("a", 2))
	if vm.Meta.Revision == 0 {
		t.Error("create set no revision")
	}
	wantErr(t, vms.Create(ctx, newVM("a", 3)), ErrExists, `create vm "a"`)
	got, err := vms.Get(ctx, "a")
	if err != nil || !proto.Equal(got, vm) {
		t.Fatalf("get: %v, %v; want %v", got, err, vm)
	}
	got.Spec.Cpus = 4
	if err := vms.Update(ctx, got); err != nil || got.Meta.Revision <= vm.Meta.Revision {
		t.Fatalf("update: %v, revision %d after %d", err, got.Meta.Revision, vm.Meta.Revision)
	}
	vm.Spec.Cpus = 8
	wantErr(t, vms.Update(ctx, vm), ErrConflict, `update vm "a"`)
	wantErr(t, vms.Update(ctx, newVM("a", 1)), ErrInvalid, "revision")
	if _, err := vms.Delete(ctx, "a", vm.Meta.Revision); !errors.Is(err, ErrConflict) {
		t.Errorf("delete at an old revision: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = openTest(t, filepath.Join(dir, "state"))
	vms = vmsOf(t, s)
	after, err := vms.Get(ctx, "a")
	if err != nil || !proto.Equal(after, got) {
		t.Fatalf("after a restart: %v, %v; want %v", after, err, got)
	}
	if _, err := vms.Delete(ctx, "a", after.Meta.Revision); err != nil {
		t.Fatal(err)
	}
	_, err = vms.Get(ctx, "a")
	wantErr(t, err, ErrNotFound, `get vm "a"`)
	wantErr(t, vms.Update(ctx, after), ErrNotFound)
	_, err = vms.Delete(ctx, "a", 0)
	wantErr(t, err, ErrNotFound)
	var e *Error
	if !errors.As(err, &e) || e.Kind != "vm" || e.Name != "a" || e.Op != "delete" {
		t.Errorf("error names %+v", e)
	}
}

func TestListPagesAtOneRevision(t *testing.T) {
	ctx := testContext(t)
	s := openTest(t, t.TempDir())
	vms, sites := vmsOf(t, s), sitesOf(t, s)
	create(t, sites, &droverv1.Site{Meta: &droverv1.Meta{Name: "zzz"}})
	const n = 2*page + 3
	for i := range n {
		create(t, vms, newVM(fmt.Sprintf("vm-%05d", i), int32(i)))
	}
	got, rev, err := vms.List(ctx)
	if err != nil || len(got) != n {
		t.Fatalf("list: %d objects, %v; want %d", len(got), err, n)
	}
	for i, vm := range got {
		if vm.Meta.Name != fmt.Sprintf("vm-%05d", i) || vm.Meta.Revision == 0 || vm.Meta.Revision > rev {
			t.Fatalf("object %d is %v, list at %d", i, vm, rev)
		}
	}
}

func TestTxnIsAllOrNothingAcrossCollections(t *testing.T) {
	ctx := testContext(t)
	s := openTest(t, t.TempDir())
	vms, sites := vmsOf(t, s), sitesOf(t, s)
	site := create(t, sites, &droverv1.Site{Meta: &droverv1.Meta{Name: "north"}})
	old := create(t, vms, newVM("old", 1))

	fresh := newVM("fresh", 1)
	rev, err := s.Txn(ctx, sites.CheckOp("north", site.Meta.Revision), vms.CreateOp(fresh), vms.DeleteOp("old", old.Meta.Revision), sites.CheckOp("south", 0))
	if err != nil || fresh.Meta.Revision != rev {
		t.Fatalf("txn: %v, object at %d, txn at %d", err, fresh.Meta.Revision, rev)
	}
	if _, err := vms.Get(ctx, "old"); !errors.Is(err, ErrNotFound) {
		t.Errorf("old after txn: %v", err)
	}
	for _, c := range []struct {
		name string
		ops  []Op
		want error
		says string
	}{
		{"exists", []Op{vms.CreateOp(newVM("x", 1)), vms.CreateOp(newVM("fresh", 1))}, ErrExists, `create vm "fresh"`},
		{"gone", []Op{vms.CreateOp(newVM("x", 1)), vms.DeleteOp("old", old.Meta.Revision)}, ErrNotFound, `delete vm "old"`},
		{"moved on", []Op{vms.CreateOp(newVM("x", 1)), sites.CheckOp("north", site.Meta.Revision+1)}, ErrConflict, `check site "north"`},
		{"appeared", []Op{vms.CreateOp(newVM("x", 1)), sites.CheckOp("north", 0)}, ErrExists, `check site "north"`},
		{"twice", []Op{vms.CreateOp(newVM("x", 1)), vms.CreateOp(newVM("x", 2))}, ErrInvalid, "twice"},
		{"no revision", []Op{vms.CreateOp(newVM("x", 1)), vms.DeleteOp("fresh", 0)}, ErrInvalid, "revision"},
		{"no name", []Op{vms.CreateOp(newVM("x", 1)), vms.CreateOp(newVM("", 0))}, ErrInvalid, "name"},
		{"none", nil, ErrInvalid, "transaction"},
	} {
		_, err := s.Txn(ctx, c.ops...)
		if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%s: got %v, want %v saying %q", c.name, err, c.want, c.says)
		}
		if _, err := vms.Get(ctx, "x"); !errors.Is(err, ErrNotFound) {
			t.Fatalf("%s: a refused transaction left x: %v", c.name, err)
		}
	}
}

func TestMutateRetriesAndSkipsNoChange(t *testing.T) {
	ctx := testContext(t)
	s := openTest(t, t.TempDir())
	vms := vmsOf(t, s)
	vm := create(t, vms, newVM("a", 0))
	const writers, each = 8, 10
	errs := make(chan error, writers)
	for range writers {
		go func() {
			for range each {
				if _, err := vms.Mutate(ctx, "a", func(vm *droverv1.VM) error { vm.Spec.Cpus++; return nil }); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range writers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	got, err := vms.Get(ctx, "a")
	if err != nil || got.Spec.Cpus != writers*each {
		t.Fatalf("after %d increments: %v, %v", writers*each, got, err)
	}
	same, err := vms.Mutate(ctx, "a", func(*droverv1.VM) error { return nil })
	if err != nil || same.Meta.Revision != got.Meta.Revision {
		t.Errorf("no change: %v, revision %d, want %d", err, same.Meta.Revision, got.Meta.Revision)
	}
	_, err = vms.Mutate(ctx, "a", func(vm *droverv1.VM) error { vm.Meta.Name = "b"; return nil })
	wantErr(t, err, ErrInvalid, "renames")
	_, err = vms.Mutate(ctx, "a", func(*droverv1.VM) error { return io.ErrUnexpectedEOF })
	wantErr(t, err, io.ErrUnexpectedEOF)
	_, err = vms.Mutate(ctx, "none", func(*droverv1.VM) error { return nil })
	wantErr(t, err, ErrNotFound)
	if vm.Meta.Revision >= got.Meta.Revision {
		t.Error("revision did not grow")
	}
}

func TestBadNamesNeverReachEtcd(t *testing.T) {
	ctx := testContext(t)
	s := openTest(t, t.TempDir())
	vms := vmsOf(t, s)
	before, err := s.Revision(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "/", "a/", "/a", "a//b", "a b", "a\x00b", "é", strings.Repeat("x", maxName+1)} {
		wantErr(t, vms.Create(ctx, newVM(name, 1)), ErrInvalid)
		_, err := vms.Get(ctx, name)
		wantErr(t, err, ErrInvalid)
		_, err = vms.Delete(ctx, name, 0)
		wantErr(t, err, ErrInvalid)
	}
	if after, err := s.Revision(ctx); err != nil || after != before {
		t.Errorf("revision %d became %d, %v", before, after, err)
	}
	create(t, vms, newVM("vm-1/snap-2", 1))
}

func TestSecondProcessIsRefusedAtOnce(t *testing.T) {
	dir := t.TempDir()
	openTest(t, dir)
	_, err := Open(testContext(t), Options{Dir: dir, Logger: testLog(t)})
	wantErr(t, err, ErrUnavailable, dir, "in use")
}

func TestOptionsRefuseOpenNetworks(t *testing.T) {
	log := testLog(t)
	for _, c := range []struct {
		o    Options
		says string
	}{
		{Options{Logger: log}, "either"},
		{Options{Logger: log, Dir: "x", Endpoints: []string{"unix:///x"}}, "either"},
		{Options{Dir: "x"}, "logger"},
		{Options{Logger: log, Endpoints: []string{"http://10.0.0.1:2379"}}, "not encrypted"},
		{Options{Logger: log, Endpoints: []string{"https://10.0.0.1:2379"}}, "certificate"},
		{Options{Logger: log, Endpoints: []string{"10.0.0.1:2379"}}, "etcd endpoint"},
		{Options{Logger: log, Dir: "x", QuotaBytes: -1}, "negative"},
	} {
		err := c.o.Validate()
		wantErr(t, err, ErrInvalid, c.says)
	}
	ok := Options{Logger: log, Endpoints: []string{"unix:///run/etcd", "http://127.0.0.1:1"}}
	if err := ok.Validate(); err != nil {
		t.Error(err)
	}
}

func TestReclaimShrinksAndKeepsState(t *testing.T) {
	ctx := testContext(t)
	s := openTest(t, t.TempDir())
	vms := vmsOf(t, s)
	vm := newVM("a", 1)
	vm.Spec.Description = strings.Repeat("x", 100_000)
	create(t, vms, vm)
	for i := range 60 {
		vm.Spec.Cpus = int32(i)
		if err := vms.Update(ctx, vm); err != nil {
			t.Fatal(err)
		}
	}
	s.embedded.server.Server.Backend().ForceCommit()
	before := s.embedded.server.Server.Backend().Size()
	if err := s.Reclaim(ctx); err != nil {
		t.Fatal(err)
	}
	if after := s.embedded.server.Server.Backend().Size(); after*4 > before {
		t.Errorf("reclaim shrank %d bytes to %d only", before, after)
	}
	if got, err := vms.Get(ctx, "a"); err != nil || !proto.Equal(got, vm) {
		t.Errorf("after reclaim: %v", err)
	}
}
