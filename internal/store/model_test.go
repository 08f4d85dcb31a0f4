package store

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	droverv1 "drover/api/drover/v1"

	"pgregory.net/rapid"
)

// TestModel does random operations, with right and stale revisions, on a collection and on a plain map, and compares the
// outcome of each, and at the end the collection, a cache of it, and what a watcher saw.
func TestModel(t *testing.T) {
	ctx := testContext(t)
	s := openTest(t, t.TempDir())
	run := 0
	rapid.Check(t, func(r *rapid.T) {
		run++
		vms, err := NewCollection(s, Kind[*droverv1.VM]{Name: fmt.Sprintf("model-%d", run)})
		if err != nil {
			r.Fatal(err)
		}
		cache := runCache(t, vms, 4)
		sub := cache.Subscribe(0)
		type state struct {
			cpus int32
			rev  int64
		}
		model := map[string]state{}
		var last int64 // revision of the latest change
		names := rapid.SampledFrom([]string{"a", "b", "c/d"})
		stale := func(name string) int64 {
			if rev := model[name].rev; rev > 0 && rapid.IntRange(0, 3).Draw(r, "stale") > 0 {
				return rev
			}
			return 1
		}
		want := func(name string, rev int64) error {
			switch m, ok := model[name]; {
			case !ok:
				return ErrNotFound
			case m.rev != rev:
				return ErrConflict
			}
			return nil
		}
		check := func(got, want error) {
			if !errors.Is(got, want) {
				r.Fatalf("got %v, want %v", got, want)
			}
		}
		seen := map[string]state{}
		// take lets the follower read up to revision rev.
		take := func(rev int64) {
			for sub.seen < min(rev, last) {
				for _, e := range next(t, sub) {
					switch e.Type {
					case Put:
						seen[e.Name] = state{e.Object.Spec.Cpus, e.Revision}
					case Delete:
						delete(seen, e.Name)
					case Reset:
						clear(seen)
					}
				}
			}
		}
		steps := rapid.IntRange(1, 25).Draw(r, "steps")
		for range steps {
			name, cpus := names.Draw(r, "name"), rapid.Int32Range(1, 9).Draw(r, "cpus")
			switch rapid.IntRange(0, 6).Draw(r, "op") {
			case 0:
				vm := newVM(name, cpus)
				err := vms.Create(ctx, vm)
				if _, ok := model[name]; ok {
					check(err, ErrExists)
					continue
				}
				check(err, nil)
				model[name] = state{cpus, vm.Meta.Revision}
				last = max(last, vm.Meta.Revision)
			case 1:
				vm := newVM(name, cpus)
				vm.Meta.Revision = stale(name)
				expect := want(name, vm.Meta.Revision)
				check(vms.Update(ctx, vm), expect)
				if expect == nil {
					model[name] = state{cpus, vm.Meta.Revision}
					last = vm.Meta.Revision
					last = max(last, vm.Meta.Revision)
				}
			case 2:
				rev := stale(name)
				expect := want(name, rev)
				at, err := vms.Delete(ctx, name, rev)
				check(err, expect)
				if expect == nil {
					last = at
					delete(model, name)
				}
			case 3:
				vm, err := vms.Mutate(ctx, name, func(vm *droverv1.VM) error { vm.Spec.Cpus = cpus; return nil })
				m, ok := model[name]
				if !ok {
					check(err, ErrNotFound)
					continue
				}
				check(err, nil)
				if m.cpus == cpus && vm.Meta.Revision != m.rev {
					r.Fatal("a change of nothing was written")
				}
				model[name] = state{cpus, vm.Meta.Revision}
				last = max(last, vm.Meta.Revision)
			case 4:
				other := names.Filter(func(n string) bool { return n != name }).Draw(r, "other")
				vm, rev := newVM(name, cpus), stale(other)
				_, err := s.Txn(ctx, vms.CreateOp(vm), vms.DeleteOp(other, rev))
				expect := want(other, rev)
				if _, ok := model[name]; ok {
					expect = ErrExists
				}
				check(err, expect)
				if expect == nil {
					model[name] = state{cpus, vm.Meta.Revision}
					last = vm.Meta.Revision
					last = max(last, vm.Meta.Revision)
					delete(model, other)
				}
			case 5:
				rev, err := s.Revision(ctx)
				check(err, nil)
				check(s.Compact(ctx, rev), nil)
			case 6:
				take(cache.Revision()) // the follower catches up, or else lags until the ring has moved on
			}
		}
		list, rev, err := vms.List(ctx)
		check(err, nil)
		check(cache.WaitRevision(ctx, rev), nil)
		cached, _ := cache.List()
		take(last)
		for what, objs := range map[string][]*droverv1.VM{"collection": list, "cache": cached} {
			if len(objs) != len(model) || !slices.IsSortedFunc(objs, func(a, b *droverv1.VM) int {
				if a.Meta.Name < b.Meta.Name {
					return -1
				}
				return 1
			}) {
				r.Fatalf("%s has %v, the model %v", what, objs, model)
			}
			for _, vm := range objs {
				if m := model[vm.Meta.Name]; m != (state{vm.Spec.Cpus, vm.Meta.Revision}) {
					r.Fatalf("%s has %v, the model %v", what, vm, m)
				}
			}
		}
		if fmt.Sprint(seen) != fmt.Sprint(model) {
			r.Fatalf("a follower saw %v, the model is %v", seen, model)
		}
	})
}
