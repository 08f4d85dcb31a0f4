package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	"drover/internal/guest"
	"drover/internal/nbd"
)

// latencyRounds is how often each case is measured, in turns, so that a machine that gets busier or quieter does so for all: three times with DROVER_SOAK, else once.
func latencyRounds() int {
	if os.Getenv("DROVER_SOAK") != "" {
		return 3
	}
	return 1
}

// wrote is what the writer in the guest says: of one write, as the guest sees it.
type wrote struct{ p50, p99, most time.Duration }

// load is a way to write.
type load struct {
	name                         string
	count, region, stride, fsync int
}

var loads = []load{
	// As people have it: random places in a working set, written out now and then.
	{"random", 1500, 32, 0, 50},
	// The worst: each write the first into its cluster.
	{"worst", 1000, 64, 64 << 10, 0},
}

// writer builds the program of testdata/writer for the guest.
func writer(t *testing.T) cpio.Record {
	t.Helper()
	out := filepath.Join(t.TempDir(), "writer")
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", out, "testdata/writer/main.go")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the writer: %v\n%s", err, text)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return cpio.StaticFile("bin/writer", string(b), 0o755)
}

func (l load) run(t *testing.T, sh *shell) wrote {
	t.Helper()
	out := sh.run(t, fmt.Sprintf("/bin/writer /dev/vda %d %d %d %d", l.count, l.region, l.stride, l.fsync))
	var p50, p99, most int64
	if _, err := fmt.Sscan(out, &p50, &p99, &most); err != nil {
		t.Fatalf("the writer said %q: %v", out, err)
	}
	return wrote{time.Duration(p50) * time.Microsecond, time.Duration(p99) * time.Microsecond, time.Duration(most) * time.Microsecond}
}

func median(list []wrote) wrote {
	var p50, p99, most []time.Duration
	for _, w := range list {
		p50, p99, most = append(p50, w.p50), append(p99, w.p99), append(most, w.most)
	}
	mid := func(d []time.Duration) time.Duration {
		slices.Sort(d)
		return d[len(d)/2]
	}
	return wrote{mid(p50), mid(p99), mid(most)}
}

// TestPointLatency measures what a point costs the guest's writes: with nobody reading it, as when the repository stands still, and with
// somebody who reads as fast as can be. It fails by a bound that a busy machine holds, too; numbers that count are
// taken by hand with -v.
func TestPointLatency(t *testing.T) {
	r := newRig(t, guest.Q35)
	r.spec.Kernel.Initrd = buildInitrdWith(t, []cpio.Record{writer(t)}, diskModules...)
	r.spec.Disks = []Disk{{ID: "root", Bus: guest.VirtioBlk, Layers: []Layer{r.image(t, "root-0", Qcow2, "64M")}}}
	p := r.start(t, Attach{})
	sh := boot(t, p)
	ctx := testContext(t)
	sh.run(t, "tr '\\0' x </dev/zero | dd of=/dev/vda bs=1M count=64 iflag=fullblock conv=fsync 2>/dev/null")
	point := func(l load, do func(*LivePoint)) wrote {
		lp, err := p.BeginPoint(ctx, PointOptions{Disks: []PointDisk{{Disk: "root", Bitmap: "drover-a"}}, Fleece: r.fleece(t), Limit: 256 << 20})
		if err != nil {
			t.Fatal(err)
		}
		do(lp)
		w := l.run(t, sh)
		if err := errors.Join(lp.Close(ctx), p.RemoveBitmap(ctx, "root", "drover-a")); err != nil {
			t.Fatal(err)
		}
		return w
	}
	read := func(piece int64) func(load) wrote {
		return func(l load) wrote {
			rctx, end := context.WithCancel(ctx)
			done := make(chan struct{})
			defer func() {
				end()
				<-done
			}()
			return point(l, func(lp *LivePoint) {
				c := dial(t, lp, lp.Export("root"))
				go func() {
					defer close(done)
					readRound(rctx, c, piece)
				}()
			})
		}
	}
	cases := []struct {
		name string
		run  func(load) wrote
	}{
		{"idle", func(l load) wrote { return l.run(t, sh) }},
		// Nobody reads, as the repository stands still. All is to be read.
		{"full, stalled", func(l load) wrote { return point(l, func(*LivePoint) {}) }},
		// Nobody reads, and what the guest writes to is not going to be.
		{"incremental, stalled", func(l load) wrote {
			return point(l, func(lp *LivePoint) {
				c := dial(t, lp, lp.Export("root"))
				if err := c.Trim(ctx, 0, c.Size()); err != nil {
					t.Fatal(err)
				}
			})
		}},
		// Read again and again, as fast as can be: as the host does beside a busy guest, and without manners.
		{"full, read in pieces of 64 KiB", read(64 << 10)},
		{"full, read in pieces of 1 MiB", read(1 << 20)},
	}
	for _, l := range loads {
		l.run(t, sh) // warm
		got := make([][]wrote, len(cases))
		for range latencyRounds() {
			for i, c := range cases {
				got[i] = append(got[i], c.run(l))
			}
		}
		idle := median(got[0])
		for i, c := range cases {
			m := median(got[i])
			t.Logf("%s; %s: p50 %v (%.2f), p99 %v (%.2f), at most %v", l.name, c.name, m.p50, float64(m.p50)/float64(idle.p50), m.p99, float64(m.p99)/float64(idle.p99), m.most)
			if bound := 5*idle.p99 + 50*time.Millisecond; m.p99 > bound {
				t.Errorf("%s; %s: p99 %v, idle %v: the guest is held up", l.name, c.name, m.p99, idle.p99)
			}
		}
	}
}

// readRound reads a disk round and round until ctx ends.
func readRound(ctx context.Context, c *nbd.Client, size int64) {
	buf := make([]byte, size)
	for off := int64(0); ctx.Err() == nil; off = (off + size) % c.Size() {
		if c.ReadAt(ctx, buf, off) != nil {
			return
		}
	}
}
