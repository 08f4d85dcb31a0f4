package disk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func mustJSON(t failer, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	must(t, err)
	return b
}

// model is a VM as plain bytes, one per block.
type model struct {
	data  []byte
	snaps map[string][]byte
	holds map[string]map[string]bool // snapshot → clones on it
}

// TestModel runs random operations on a real datastore and on plain bytes and compares after each.
func TestModel(t *testing.T) {
	name, img := testImage(t, 8)
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp("", "model")
		must(rt, err)
		defer os.RemoveAll(dir)
		s, err := Open(dir, Options{})
		must(rt, err)
		defer func() { s.Close() }()
		ctx := context.Background()
		must(rt, s.EnsureImage(ctx, name, fetchBytes(img)))
		vms := map[string]*model{}
		n := 0
		fresh := func(p string) string { n++; return fmt.Sprintf("%s%d", p, n) }
		add := func(spec Spec, data []byte) {
			vm := fresh("vm")
			must(rt, s.CreateDisk(ctx, vm, "root", spec))
			vms[vm] = &model{data: data, snaps: map[string][]byte{}, holds: map[string]map[string]bool{}}
		}
		imgData := append(bytes.Repeat([]byte{1}, 4), make([]byte, 4)...)
		add(Spec{Image: name}, bytes.Clone(imgData))
		add(Spec{Size: 8 * block, Format: "raw"}, make([]byte, 8))
		pick := func() (string, *model) {
			vm := rapid.SampledFrom(slices.Sorted(maps.Keys(vms))).Draw(rt, "vm")
			return vm, vms[vm]
		}
		pickSnap := func(m *model) string {
			if len(m.snaps) == 0 {
				return ""
			}
			return rapid.SampledFrom(slices.Sorted(maps.Keys(m.snaps))).Draw(rt, "snap")
		}
		inUse := func(m *model) bool {
			for _, c := range m.holds {
				if len(c) > 0 {
					return true
				}
			}
			return false
		}
		gone := func(vm string) {
			delete(vms, vm)
			for _, m := range vms {
				for _, c := range m.holds {
					delete(c, vm)
				}
			}
		}
		doWrite := func(vm string, m *model) {
			at := rapid.IntRange(0, len(m.data)-1).Draw(rt, "block")
			v := byte(rapid.IntRange(2, 255).Draw(rt, "value"))
			write(rt, s, vm, "root", at, v)
			m.data[at] = v
		}
		ops := map[string]func(){
			"write":  func() { vm, m := pick(); doWrite(vm, m) },
			"write2": func() { vm, m := pick(); doWrite(vm, m); doWrite(vm, m) },
			"snapshot": func() {
				vm, m := pick()
				sn := fresh("s")
				must(rt, s.Snapshot(ctx, vm, sn))
				m.snaps[sn], m.holds[sn] = bytes.Clone(m.data), map[string]bool{}
			},
			"abort": func() {
				vm, m := pick()
				must(rt, s.BeginSnapshot(ctx, vm, "pending"))
				if rapid.Bool().Draw(rt, "finish") {
					must(rt, s.FinishSnapshot(ctx, vm, "pending"))
					doWrite(vm, m)
					_, err := s.DeleteSnapshot(ctx, vm, "pending", false)
					must(rt, err)
				} else {
					must(rt, s.AbortSnapshot(ctx, vm, "pending"))
				}
			},
			"revert": func() {
				vm, m := pick()
				if sn := pickSnap(m); sn != "" {
					must(rt, s.Revert(ctx, vm, sn))
					m.data = bytes.Clone(m.snaps[sn])
				}
			},
			"delete snapshot": func() {
				vm, m := pick()
				sn := pickSnap(m)
				if sn == "" {
					return
				}
				_, err := s.DeleteSnapshot(ctx, vm, sn, false)
				if len(m.holds[sn]) > 0 {
					if !errors.As(err, new(*InUseError)) {
						rt.Fatalf("deleting a snapshot with clones: %v", err)
					}
					return
				}
				must(rt, err)
				delete(m.snaps, sn)
				delete(m.holds, sn)
				if rapid.Bool().Draw(rt, "compact") {
					must(rt, s.Compact(ctx, vm))
				}
			},
			"compact": func() { vm, _ := pick(); must(rt, s.Compact(ctx, vm)) },
			"grow": func() {
				vm, m := pick()
				if len(m.data) < 16 {
					must(rt, s.Grow(ctx, vm, "root", int64(len(m.data)+1)*block))
					m.data = append(m.data, 0)
				}
			},
			"linked clone": func() {
				vm, m := pick()
				if sn := pickSnap(m); sn != "" && len(vms) < 5 {
					to := fresh("vm")
					must(rt, s.LinkedClone(ctx, vm, sn, to))
					m.holds[sn][to] = true
					vms[to] = &model{data: bytes.Clone(m.snaps[sn]), snaps: map[string][]byte{}, holds: map[string]map[string]bool{}}
				}
			},
			"full clone": func() {
				vm, m := pick()
				if len(vms) < 5 {
					to, sn, data := fresh("vm"), pickSnap(m), m.data
					if sn != "" {
						data = m.snaps[sn]
					}
					must(rt, s.FullClone(ctx, vm, sn, to))
					vms[to] = &model{data: bytes.Clone(data), snaps: map[string][]byte{}, holds: map[string]map[string]bool{}}
				}
			},
			"delete vm": func() {
				if len(vms) < 2 {
					return
				}
				vm, m := pick()
				err := s.DeleteVM(ctx, vm)
				if inUse(m) {
					if !errors.As(err, new(*InUseError)) {
						rt.Fatalf("deleting a VM with clones: %v", err)
					}
					return
				}
				must(rt, err)
				gone(vm)
			},
			"reopen": func() {
				must(rt, s.Close())
				var err error
				s, err = Open(dir, Options{})
				must(rt, err)
			},
		}
		names := slices.Sorted(maps.Keys(ops))
		for range rapid.IntRange(4, 14).Draw(rt, "steps") {
			op := rapid.SampledFrom(names).Draw(rt, "op")
			ops[op]()
		}
		for vm, m := range vms {
			if got := active(rt, s, vm, "root"); !bytes.Equal(got, m.data) {
				rt.Fatalf("VM %s has %v, want %v", vm, got, m.data)
			}
			for sn, want := range m.snaps {
				if got := frozen(rt, s, vm, sn, "root"); !bytes.Equal(got, want) {
					rt.Fatalf("snapshot %s of VM %s has %v, want %v", sn, vm, got, want)
				}
			}
			mf, err := s.manifest(vm)
			must(rt, err)
			if n := fileCount(rt, s, vm); n != len(mf.files()) {
				rt.Fatalf("VM %s has %d files, its manifest %d", vm, n, len(mf.files()))
			}
		}
	})
}
