package qemu

import (
	"context"
	"os"
	"strings"
	"time"
)

// Stats are a machine's counters since QEMU's start. NICs are counted at their TAPs, not here.
type Stats struct {
	CPU     time.Duration // time that QEMU's threads, the virtual CPUs among them, have run
	RSS     int64         // bytes of host memory in use, the guest's RAM included
	Balloon int64         // bytes of memory that the guest has; 0 if it is not known
	Disks   map[string]DiskStats
}

// DiskStats are one disk's counters.
type DiskStats struct {
	ReadBytes, WriteBytes       uint64
	ReadOps, WriteOps, FlushOps uint64
	ReadTime, WriteTime         time.Duration
	FailedReads, FailedWrites   uint64
}

// Stats reads the counters.
func (p *Process) Stats(ctx context.Context) (_ Stats, err error) {
	defer func() { err = p.wrap("read statistics", "", err) }()
	st, err := readProcStat(p.pid)
	if err != nil {
		return Stats{}, err
	}
	out := Stats{
		CPU: time.Duration(st.userTicks+st.sysTicks) * clockTick, RSS: st.rssPages * int64(os.Getpagesize()),
		Disks: map[string]DiskStats{},
	}
	// Without the guest's driver QEMU refuses to answer, and the guest has all of its memory.
	if n, err := p.qmp.QueryBalloon(ctx); err == nil {
		out.Balloon = n
	} else if ctx.Err() != nil {
		return Stats{}, err
	}
	blocks, err := p.qmp.QueryBlockStats(ctx, false)
	if err != nil {
		return Stats{}, err
	}
	for _, b := range blocks {
		id, ok := strings.CutPrefix(deviceOf(b.QDev), "disk-")
		if !ok {
			continue
		}
		s := b.Stats
		out.Disks[id] = DiskStats{
			ReadBytes: s.ReadBytes, WriteBytes: s.WriteBytes, ReadOps: s.ReadOps, WriteOps: s.WriteOps, FlushOps: s.FlushOps,
			ReadTime: time.Duration(s.ReadTime), WriteTime: time.Duration(s.WriteTime),
			FailedReads: s.FailedReads, FailedWrites: s.FailedWrites,
		}
	}
	return out, nil
}

// Requests is how many requests the guest has made of its disks since QEMU's start. It is cheap.
func (p *Process) Requests(ctx context.Context) (n uint64, err error) {
	blocks, err := p.qmp.QueryBlockStats(ctx, false)
	if err != nil {
		return 0, p.wrap("count the requests to disks", "", err)
	}
	for _, b := range blocks {
		if strings.HasPrefix(deviceOf(b.QDev), "disk-") {
			n += b.Stats.ReadOps + b.Stats.WriteOps + b.Stats.FlushOps + b.Stats.UnmapOps
		}
	}
	return n, nil
}

// deviceOf is the id in what QEMU calls qdev: an id, or a path such as /machine/peripheral/ID/virtio-backend.
func deviceOf(qdev string) string {
	if rest, ok := strings.CutPrefix(qdev, "/machine/peripheral/"); ok {
		id, _, _ := strings.Cut(rest, "/")
		return id
	}
	return qdev
}
