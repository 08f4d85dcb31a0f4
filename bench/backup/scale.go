package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"drover/bench/report"
	"drover/internal/blob"
	"drover/internal/chunkstore"
	"drover/internal/chunkstore/index"
	"drover/internal/chunkstore/ledger"
	"drover/internal/chunkstore/pack"
	"drover/internal/vfs"
)

// The synthetic repository: 16 VMs of 64 GiB, 100 days, each day 1 % of the leaves change in an eighth of their blocks, every other day the same. That is 110 TB of restore points.
const (
	forgedVMs    = 16
	forgedDays   = 100
	forgedLeaves = 4096
	// indexed is how many ids the index gets: 1 TiB of distinct blocks.
	indexed = 16 << 20
)

func (b *bench) scale() error {
	return errors.Join(b.scaleCollect(), b.scaleIndex())
}

func (b *bench) scaleCollect() (err error) {
	dir := filepath.Join(b.work, "scale")
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	st, err := blob.OpenDir(vfs.OS{}, dir)
	if err != nil {
		return err
	}
	defer blob.Close(st)
	f, err := newForge(b.ctx, st)
	if err != nil {
		return err
	}
	rnd := rand.New(rand.NewPCG(2, 2))
	disks := make([]*forgedDisk, forgedVMs)
	f.blocks = forgedVMs * forgedLeaves * fanout
	told, logical := int64(0), int64(0)
	for day := range forgedDays {
		var points []*ledger.Point
		for vm := range disks {
			d := disks[vm]
			dirty := map[int]bool{}
			write := func(i int, fresh func(int) bool) error {
				dirty[i/fanout] = true
				return f.leaf(b.ctx, d, i, fresh)
			}
			if day == 0 {
				d = &forgedDisk{number: int64(vm), leaves: make([]spot, forgedLeaves), parents: make([]spot, forgedLeaves/fanout)}
				disks[vm] = d
				for i := range d.leaves {
					if err := write(i, func(int) bool { return false }); err != nil {
						return err
					}
				}
			} else {
				for k := range forgedLeaves / 100 {
					i := k // the database, on every other day; then it is files anywhere
					if day%2 == 1 {
						i = rnd.IntN(forgedLeaves)
					}
					if err := write(i, func(slot int) bool { return slot%8 == day%8 }); err != nil {
						return err
					}
				}
			}
			root, err := f.root(b.ctx, d, dirty)
			if err != nil {
				return err
			}
			logical += root.Size
			points = append(points, &ledger.Point{Id: pointID(vm, day), VmUid: fmt.Sprint("vm", vm), Vm: fmt.Sprint("vm", vm), Disks: []*ledger.Disk{root}, Logical: root.Size})
		}
		if err := f.commit(b.ctx, points, told); err != nil {
			return err
		}
		told = (f.blocks + packRecords - 1) / packRecords
	}
	if err := f.do(b.ctx, &ledger.Transaction{Kind: &ledger.Transaction_End{End: &ledger.End{Session: f.session}}}); err != nil {
		return err
	}
	pages, packs := f.pages, told
	f = nil
	mem := watchMemory()
	began := time.Now()
	r, err := chunkstore.Open(b.ctx, st, chunkstore.OpenOptions{Cache: filepath.Join(dir, "cache")})
	if err != nil {
		return err
	}
	opened := time.Since(began)
	var old []chunkstore.PointID
	for _, p := range r.Points() {
		if id := chunkstore.PointID(p.GetId()); string(id[11:]) < fmt.Sprintf("%05d", forgedDays/2) {
			old = append(old, id)
		}
	}
	if err := r.Forget(b.ctx, "bench", old...); err != nil {
		return errors.Join(err, r.Close())
	}
	began = time.Now()
	res, err := r.Collect(b.ctx, chunkstore.CollectOptions{Share: -1})
	took := time.Since(began)
	peak := mem()
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	if res.Dropped == 0 || len(res.Lost) > 0 {
		return fmt.Errorf("the collection of %d points dropped %d packs, %d blocks lost", len(old), res.Dropped, len(res.Lost))
	}
	note := fmt.Sprintf("synthetic: %d VMs, %d days, %d pages, %d packs; no data behind it; half of the points deleted, %d packs dropped, nothing copied", forgedVMs, forgedDays, pages, packs, res.Dropped)
	tb := float64(logical) / 1e12
	b.rep.Add(report.Row{Name: fmt.Sprintf("open a repository with %.0f TB of restore points", tb), Unit: "s", Ours: opened.Seconds(), Better: report.Less})
	b.rep.Add(report.Row{Name: fmt.Sprintf("collection over %.0f TB of restore points", tb), Unit: "s", Ours: took.Seconds(), Better: report.Less, Note: note})
	b.rep.Add(report.Row{Name: "its memory", Unit: "MB", Ours: peak / 1e6, Better: report.Less, Note: "heap of the process that opens and collects"})
	rate := float64(res.Pages) * fanout * blockSize / took.Seconds()
	b.rep.Add(report.Row{Name: "distinct disk that a collection walks", Unit: "TB/s", Ours: rate / 1e12, Better: report.More, Note: fmt.Sprintf("so 100 TB of disks that share nothing take %.0f s, by this rate", 1e14/rate)})
	return nil
}

func (b *bench) scaleIndex() (err error) {
	dir := filepath.Join(b.work, "index")
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	mem := watchMemory()
	x, err := index.Open(dir, index.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, x.Close()) }()
	entries := make([]pack.Entry, packRecords)
	began := time.Now()
	for n := int64(0); n < indexed; n += packRecords {
		for i := range entries {
			entries[i].ID = at(n + int64(i)).id
		}
		if err := x.Add(dataPack(n/packRecords), entries); err != nil {
			return err
		}
	}
	filled := time.Since(began)
	lookups := func(hit bool) (float64, error) {
		var wg sync.WaitGroup
		var count, wrong atomic.Int64
		end := time.Now().Add(1500 * time.Millisecond)
		began := time.Now()
		for w := range 2 {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(w), 9))
				for time.Now().Before(end) {
					for range 64 {
						n := rnd.Int64N(indexed)
						if !hit {
							n += 1 << 40
						}
						_, _, ok, err := x.Lookup(at(n).id)
						if err != nil || ok != hit {
							wrong.Add(1)
						}
						count.Add(1)
					}
				}
			})
		}
		wg.Wait()
		rate := float64(count.Load()) / time.Since(began).Seconds()
		if n := wrong.Load(); n > 0 {
			return rate, fmt.Errorf("%d of %d lookups in the index are wrong", n, count.Load())
		}
		return rate, nil
	}
	hits, err := lookups(true)
	if err != nil {
		return err
	}
	misses, err := lookups(false)
	if err != nil {
		return err
	}
	disk, _ := size(dir)
	note := fmt.Sprintf("%d ids, 1 TiB of distinct blocks; %.0f MB on disk; filled in %.1f s", indexed, float64(disk)/1e6, filled.Seconds())
	b.rep.Add(report.Row{Name: "index: lookups that hit", Unit: "1/s", Ours: hits, Better: report.More, Note: note})
	b.rep.Add(report.Row{Name: "index: lookups that miss", Unit: "1/s", Ours: misses, Better: report.More})
	b.rep.Add(report.Row{Name: "index: memory", Unit: "MB", Ours: mem() / 1e6, Better: report.Less,
		Note: fmt.Sprintf("heap, while filling and looking up; what grows with the repository is 8 bytes for some 3,400 ids: %.1f MB for 100 TB of distinct blocks", 1e14/blockSize/3400*8/1e6)})
	return nil
}

// watchMemory begins to watch this process's heap; what it returns tells how far it grew, in bytes.
func watchMemory() func() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	before := m.HeapInuse
	stop, done := make(chan struct{}), make(chan uint64)
	go func() {
		most := before
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapInuse)
			case <-stop:
				done <- most
				return
			}
		}
	}()
	return func() float64 {
		close(stop)
		return float64(<-done - before)
	}
}
