package store

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	droverv1 "drover/api/drover/v1"
)

// fill creates n VMs of a usual size (about 1 kB), 100 in a transaction.
func fill(tb testing.TB, vms *Collection[*droverv1.VM], n int) {
	tb.Helper()
	var ops []Op
	for i := range n {
		vm := newVM(fmt.Sprintf("vm-%05d", i), int32(i%8))
		vm.Meta.Labels = map[string]string{"env": "prod", "app": "web"}
		vm.Spec.Description = strings.Repeat("x", 500)
		vm.Spec.Disks = []*droverv1.DiskSpec{{Name: "root"}, {Name: "data"}}
		vm.Spec.Nics = []*droverv1.NICSpec{{Name: "n0", Network: "lan", Mac: "52:54:00:00:00:01"}}
		vm.Status = &droverv1.VMStatus{Owner: "host-1", Message: strings.Repeat("y", 200)}
		if ops = append(ops, vms.CreateOp(vm)); len(ops) == 100 || i == n-1 {
			if _, err := vms.store.Txn(testContext(tb), ops...); err != nil {
				tb.Fatal(err)
			}
			ops = ops[:0]
		}
	}
}

// rss is this process's resident memory by kind, in MB.
func rss(tb testing.TB, field string) float64 {
	tb.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); f[0] == field+":" {
			kb, err := strconv.Atoi(f[1])
			if err != nil {
				tb.Fatal(err)
			}
			return float64(kb) / 1024
		}
	}
	tb.Fatalf("no %s in the status", field)
	return 0
}

// BenchmarkMemory reports the resident memory of a process with an embedded server and a cache of n VMs, each changed
// twice. Run each size alone: memory of the one before stays.
func BenchmarkMemory(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := openTest(b, b.TempDir())
			vms := vmsOf(b, s)
			fill(b, vms, n)
			cache := runCache(b, vms, defaultRing)
			for b.Loop() {
				for i := range 2 * n {
					vm := newVM(fmt.Sprintf("vm-%05d", i%n), 1)
					if _, err := vms.Mutate(testContext(b), vm.Meta.Name, func(vm *droverv1.VM) error { vm.Spec.Cpus++; return nil }); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(rss(b, "VmHWM"), "MB-peak")
			runtime.GC()
			debug.FreeOSMemory()
			b.ReportMetric(rss(b, "VmRSS"), "MB")
			b.ReportMetric(rss(b, "RssAnon"), "MB-anon")
			b.ReportMetric(float64(cache.Len()), "VMs")
		})
	}
}

func BenchmarkCacheList(b *testing.B) {
	s := openTest(b, b.TempDir())
	vms := vmsOf(b, s)
	fill(b, vms, 10_000)
	cache := runCache(b, vms, defaultRing)
	b.Run("unchanged", func(b *testing.B) {
		for b.Loop() {
			if l, _ := cache.List(); len(l) != 10_000 {
				b.Fatal(len(l))
			}
		}
	})
	b.Run("changed", func(b *testing.B) {
		l, rev := cache.List()
		for b.Loop() {
			rev++
			cache.apply([]Event[*droverv1.VM]{{Type: Put, Name: "vm-05000", Object: l[5000], Revision: rev}})
			if l, _ := cache.List(); len(l) != 10_000 {
				b.Fatal(len(l))
			}
		}
	})
	b.Run("from etcd", func(b *testing.B) {
		for b.Loop() {
			if l, _, err := vms.List(testContext(b)); err != nil || len(l) != 10_000 {
				b.Fatal(len(l), err)
			}
		}
	})
}

func BenchmarkFanOut(b *testing.B) {
	s := openTest(b, b.TempDir())
	vms := vmsOf(b, s)
	fill(b, vms, 10_000)
	cache := runCache(b, vms, defaultRing)
	vm, err := vms.Get(testContext(b), "vm-00000")
	if err != nil {
		b.Fatal(err)
	}
	var took []time.Duration
	for b.Loop() {
		took = fanOut(b, vms, cache, vm, 50)
	}
	b.ReportMetric(float64(took[len(took)*99/100])/1e6, "p99-ms")
}

func BenchmarkCreate(b *testing.B) {
	s, err := Open(testContext(b), Options{Dir: b.TempDir(), Logger: testLog(b)}) // with fsync
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	vms := vmsOf(b, s)
	n := 0
	for b.Loop() {
		n++
		create(b, vms, newVM(fmt.Sprint("vm-", n), 1))
	}
}
