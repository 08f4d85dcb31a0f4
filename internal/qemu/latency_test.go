package qemu

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"drover/internal/guest"
)

// latency is what QEMU counts for a device: requests that took at least a time, by the least of each bin.
type latency struct {
	Boundaries []int64 `json:"boundaries"`
	Bins       []int64 `json:"bins"`
}

// quantile is the upper end of the bin in which the share q of all requests has ended.
func (l latency) quantile(q float64) (time.Duration, int64) {
	var all, n int64
	for _, b := range l.Bins {
		all += b
	}
	for i, b := range l.Bins {
		if n += b; float64(n) >= q*float64(all) && i < len(l.Boundaries) {
			return time.Duration(l.Boundaries[i]), all
		}
	}
	return time.Hour, all
}

// TestPointLatency measures what a point that nobody reads, as when the repository stands still, costs the guest's writes. It compares
// and does not fail by a small number, as the machine may be busy; numbers that count are taken by hand with -v.
func TestPointLatency(t *testing.T) {
	r := newRig(t, guest.Q35, diskModules...)
	r.spec.Disks = []Disk{{ID: "root", Bus: guest.VirtioBlk, Layers: []Layer{r.image(t, "root-0", Qcow2, "64M")}}}
	p := r.start(t, Attach{})
	sh := boot(t, p)
	ctx := testContext(t)
	sh.run(t, "tr '\\0' x </dev/zero | dd of=/dev/vda bs=1M count=64 iflag=fullblock conv=fsync 2>/dev/null")
	measure := func() (time.Duration, int64) {
		t.Helper()
		var edges []int64
		for e := 10e3; e < 10e9; e *= 1.05 { // 10 µs to 10 s
			edges = append(edges, int64(e))
		}
		if err := p.QMP().Execute(ctx, "block-latency-histogram-set", map[string]any{"id": "/machine/peripheral/disk-root/virtio-backend", "boundaries-write": edges}, nil); err != nil {
			t.Fatal(err)
		}
		sh.run(t, "i=0; while [ $i -lt 500 ]; do dd if=/dev/zero of=/dev/vda bs=4k count=1 seek=$((i*7919%16384)) conv=notrunc,fsync 2>/dev/null; i=$((i+1)); done")
		var all []struct {
			QDev  string `json:"qdev"`
			Stats struct {
				Write latency `json:"wr_latency_histogram"`
			} `json:"stats"`
		}
		if err := p.QMP().Execute(ctx, "query-blockstats", nil, &all); err != nil {
			t.Fatal(err)
		}
		return all[0].Stats.Write.quantile(0.99)
	}
	measure() // warm
	idle, n := measure()
	l, err := p.BeginPoint(ctx, PointOptions{Disks: []PointDisk{{Disk: "root", Bitmap: "drover-a"}}, Fleece: r.fleece(t), Limit: 256 << 20})
	if err != nil {
		t.Fatal(err)
	}
	stalled, m := measure()
	again, _ := measure() // the same places: nothing is saved a second time
	if err := l.Close(ctx); err != nil {
		t.Fatal(err)
	}
	// And one that is read at the same time, as fast as can be.
	l, err = p.BeginPoint(ctx, PointOptions{Disks: []PointDisk{{Disk: "root"}}, Fleece: r.fleece(t)})
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, l, l.Export("root"))
	rctx, end := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<20)
		for off := int64(0); rctx.Err() == nil; off = (off + 1<<20) % c.Size() {
			if c.ReadAt(rctx, buf, off) != nil {
				return
			}
		}
	}()
	read, _ := measure()
	end()
	<-done
	if err := l.Close(ctx); err != nil {
		t.Fatal(err)
	}
	ratio := func(d time.Duration) string { return fmt.Sprintf("%v (%.2f)", d, float64(d)/float64(idle)) }
	t.Logf("p99 of writes: idle %v of %d, stalled %s of %d, the same places again %s, read %s", idle, n, ratio(stalled), m, ratio(again), ratio(read))
	if os.Getenv("DROVER_STRICT_LATENCY") != "" && float64(stalled) > 1.3*float64(idle) {
		t.Errorf("p99 of writes with a stalled reader is %s", ratio(stalled))
	}
	if stalled > idle+time.Second {
		t.Errorf("a point that nobody reads holds the guest up: p99 %v, idle %v", stalled, idle)
	}
}
