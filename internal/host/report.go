package host

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	v1 "drover/api/drover/v1"
)

// Bounds of one report, and of what waits for a manager that is away.
const (
	reportTimeout = 20 * time.Second
	reportMin     = 20 * time.Millisecond // between two reports: what changes together goes together
	heartbeat     = 5 * time.Second       // until the manager says otherwise
	sampleLimit   = 20000
	sampleBatch   = 2000
	eventBatch    = 200
)

// reporter collects what the manager is to hear and tells it.
type reporter struct {
	wake chan struct{}

	mu      sync.Mutex
	full    bool
	host    bool            // the host's status has changed
	ports   bool            // and that of ports
	dirty   map[string]bool // uids
	samples []*v1.Sample
}

func newReporter() *reporter {
	return &reporter{wake: make(chan struct{}, 1), full: true, dirty: map[string]bool{}}
}

func (r *reporter) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// changed says that a VM's status is not what was last told.
func (r *reporter) changed(uid string) {
	r.mu.Lock()
	r.dirty[uid] = true
	r.mu.Unlock()
	r.poke()
}

func (r *reporter) needFull() {
	r.mu.Lock()
	r.full = true
	r.mu.Unlock()
	r.poke()
}

func (r *reporter) hostChanged() {
	r.mu.Lock()
	r.host = true
	r.mu.Unlock()
	r.poke()
}

func (r *reporter) portsChanged() {
	r.mu.Lock()
	r.ports = true
	r.mu.Unlock()
	r.poke()
}

func (r *reporter) addSamples(s []*v1.Sample) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.samples = append(r.samples, s...)
	if over := len(r.samples) - sampleLimit; over > 0 {
		r.samples = slices.Clone(r.samples[over:])
	}
}

// batch is one report and what has to be marked as told when it has arrived.
type batch struct {
	req     *v1.ReportRequest
	mark    int
	samples int
	uids    []string
}

// report tells the manager until ctx ends: at once what changed, everything after a failure, and a heartbeat at least
// as often as the manager wants.
func (a *agent) report(ctx context.Context) {
	interval := heartbeat
	wait := backoff{min: 250 * time.Millisecond, max: 5 * time.Second}
	timer := a.clk.NewTimer(0)
	defer timer.Stop()
	beat := true
	var told time.Time // when the host's status was last sent
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.reporter.wake:
			// News that come often must not keep the heartbeat away.
			beat = a.clk.Now().Sub(told) >= interval
		case <-timer.C:
			beat = true
		}
		b := a.batch(beat)
		if b.req.GetHost() != nil {
			told = a.clk.Now()
		}
		res, err := a.send(ctx, b)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			a.log.Warn("report not delivered", "err", err)
			a.reporter.needFull()
			timer.Reset(wait.next())
			drain(a.reporter.wake)
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
				timer.Reset(0)
			}
			continue
		}
		wait.reset()
		a.delivered(b, res)
		if d := res.GetInterval(); d != nil {
			interval = min(max(d.AsDuration(), 100*time.Millisecond), time.Minute)
		}
		timer.Reset(interval)
		select {
		case <-ctx.Done():
			return
		case <-a.clk.After(reportMin):
		}
	}
}

func drain(c <-chan struct{}) {
	select {
	case <-c:
	default:
	}
}

func (a *agent) send(ctx context.Context, b batch) (*v1.ReportResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	return a.manager.Report(ctx, b.req)
}

// batch makes the next report. What it takes out of the reporter comes back whole by needFull if it gets lost.
func (a *agent) batch(beat bool) batch {
	r := a.reporter
	r.mu.Lock()
	full := r.full
	dirty := slices.Collect(maps.Keys(r.dirty))
	host, ports := full || beat || r.host, full || r.ports
	r.full, r.host, r.ports, r.dirty = false, false, false, map[string]bool{}
	b := batch{samples: min(len(r.samples), sampleBatch)}
	samples := slices.Clone(r.samples[:b.samples])
	r.mu.Unlock()

	b.req = &v1.ReportRequest{Full: full, Samples: samples}
	b.req.Events, b.mark = a.events.take(eventBatch)
	if host {
		b.req.Host = a.hostStatus()
	}
	if ports && a.fabric != nil {
		b.req.Ports = a.fabric.portReports(full)
	}
	if full || beat {
		b.req.Datastores = a.datastoreReports()
	}
	if full {
		for _, m := range a.all() {
			dirty = append(dirty, m.uid)
		}
		slices.Sort(dirty)
		dirty = slices.Compact(dirty)
	}
	for _, uid := range dirty {
		if m := a.machine(uid); m != nil {
			b.req.Vms = append(b.req.Vms, m.report())
			b.uids = append(b.uids, uid)
		}
	}
	return b
}

// delivered forgets what has arrived.
func (a *agent) delivered(b batch, res *v1.ReportResponse) {
	a.events.sent(b.mark)
	if a.fabric != nil {
		a.fabric.toldGone(b.req.GetPorts())
	}
	r := a.reporter
	r.mu.Lock()
	r.samples = r.samples[min(b.samples, len(r.samples)):]
	more := len(r.samples) > 0
	if len(r.samples) == 0 {
		r.samples = nil
	}
	r.mu.Unlock()
	if next, _ := a.events.take(1); more || len(next) > 0 {
		r.poke()
	}
	stale := map[string]bool{}
	for _, name := range res.GetStale() {
		stale[name] = true
	}
	for i, uid := range b.uids {
		switch rep := b.req.Vms[i]; {
		case rep.GetGone():
			a.forget(uid)
		case stale[rep.GetName()]:
			if m := a.machine(uid); m != nil && m.refused(rep.GetEpoch()) {
				a.log.Warn("the manager refused a VM's report: it is not this host's, or in another epoch",
					"vm", rep.GetName(), "epoch", rep.GetEpoch())
				a.resync()
			}
		}
	}
}
