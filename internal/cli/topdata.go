package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"
	"drover/internal/cli/table"
	"drover/internal/cli/unit"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// usageOf is what an object uses, as its metrics tell; less than 0 is unknown.
type usageOf struct{ cpu, memory, read, written, received, sent float64 }

var noUsage = usageOf{-1, -1, -1, -1, -1, -1}

// board is what "top" shows.
type board struct {
	mu      sync.Mutex
	hosts   map[string]*v1.Host
	vms     map[string]*v1.VM
	use     map[string]usageOf // by "vm/NAME"
	problem string

	// changed has something when the board must be drawn again.
	changed chan struct{}
}

func newBoard() *board {
	return &board{hosts: map[string]*v1.Host{}, vms: map[string]*v1.VM{}, use: map[string]usageOf{}, changed: make(chan struct{}, 1)}
}

func (b *board) touch() {
	select {
	case b.changed <- struct{}{}:
	default:
	}
}

// How far back metrics are read, and how often.
const (
	topWindow  = 2 * time.Minute
	topRefresh = 5 * time.Second
	topRetry   = 2 * time.Second
)

// load fills the board once.
func (b *board) load(ctx context.Context, a *App, c *client.Client) error {
	for _, k := range []*kind{hostKind(), vmKind()} {
		items, _, err := k.all(ctx, c, &v1.ListRequest{}, 0)
		if err != nil {
			return err
		}
		b.mu.Lock()
		for _, o := range items {
			b.put(o)
		}
		b.mu.Unlock()
	}
	return b.measure(ctx, a, c)
}

// put needs b.mu.
func (b *board) put(o object) {
	switch o := o.(type) {
	case *v1.Host:
		b.hosts[o.GetMeta().GetName()] = o
	case *v1.VM:
		b.vms[o.GetMeta().GetName()] = o
	}
}

// measure reads the metrics of VMs.
func (b *board) measure(ctx context.Context, a *App, c *client.Client) error {
	res, err := c.Metric.Query(ctx, &v1.QueryMetricsRequest{Kind: "vm", Since: timestamppb.New(a.now().Add(-topWindow))})
	if err != nil {
		return err
	}
	use := map[string]usageOf{}
	for _, s := range res.GetSeries() {
		key := s.GetKind() + "/" + s.GetName()
		u, ok := use[key]
		if !ok {
			u = noUsage
		}
		pts := s.GetPoints()
		if len(pts) == 0 {
			continue
		}
		last := pts[len(pts)-1].GetMean()
		two := pts[max(0, len(pts)-2):]
		perSecond := func(to *float64) {
			if r, err := rate(two, two); err == nil {
				*to = r
			}
		}
		switch s.GetMetric() {
		case "cpu_seconds_total":
			perSecond(&u.cpu)
		case "cpu":
			u.cpu = last
		case "memory_resident_bytes", "memory":
			u.memory = last
		case "disk_read_bytes_total":
			perSecond(&u.read)
		case "disk_read":
			u.read = last
		case "disk_written_bytes_total":
			perSecond(&u.written)
		case "disk_write":
			u.written = last
		case "network_receive_bytes_total":
			perSecond(&u.received)
		case "net_rx":
			u.received = last
		case "network_transmit_bytes_total":
			perSecond(&u.sent)
		case "net_tx":
			u.sent = last
		}
		use[key] = u
	}
	b.mu.Lock()
	b.use = use
	b.mu.Unlock()
	b.touch()
	return nil
}

// follow keeps the board current until ctx ends. What goes wrong is shown and tried again.
func (b *board) follow(ctx context.Context, a *App, c *client.Client) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, k := range []*kind{hostKind(), vmKind()} {
		g.Go(func() error {
			return b.again(ctx, a, func() error {
				err := k.watch(ctx, c, &v1.WatchRequest{}, func(ch change) error { b.see(k, ch); return nil })
				if err == nil {
					err = errors.New("the manager ended the watch")
				}
				return err
			})
		})
	}
	g.Go(func() error {
		tick := time.NewTicker(topRefresh)
		defer tick.Stop()
		return b.again(ctx, a, func() error {
			for {
				if err := b.measure(ctx, a, c); err != nil {
					return err
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		})
	})
	return g.Wait()
}

// again repeats f, a little later each time, until ctx ends or f fails for good.
func (b *board) again(ctx context.Context, a *App, f func() error) error {
	for {
		err := f()
		if ctx.Err() != nil {
			return nil
		}
		if code := exitOf(err); code != exitUnavailable && code != exitFailed && code != exitInterrupted {
			return err
		}
		text, _ := a.told(err)
		b.mu.Lock()
		b.problem = text
		b.mu.Unlock()
		b.touch()
		t := time.NewTimer(topRetry)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil
		}
	}
}

func (b *board) see(k *kind, ch change) {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.touch()
	b.problem = ""
	switch ch.kind {
	case v1.ChangeKind_CHANGE_KIND_RESET:
		if k.name == "host" {
			clear(b.hosts)
		} else {
			clear(b.vms)
		}
	case v1.ChangeKind_CHANGE_KIND_SYNCED:
	case v1.ChangeKind_CHANGE_KIND_DELETED:
		if k.name == "host" {
			delete(b.hosts, ch.object.GetMeta().GetName())
		} else {
			delete(b.vms, ch.object.GetMeta().GetName())
		}
	default:
		b.put(ch.object)
	}
}

// lines is the board as text: a heading, hosts, VMs, the busiest first.
func (b *board) lines(now time.Time, colour bool) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	hosts, vms := &table.Table{Headers: []string{"HOST", "SITE", "STATE", "ACCEL", "VMS", "CPU", "CPUS", "MEMORY USED", "OF", "GIVEN"}, Right: map[int]bool{4: true, 5: true, 6: true, 7: true, 8: true, 9: true}},
		&table.Table{Headers: []string{"VM", "HOST", "STATE", "CPU", "CPUS", "MEMORY", "OF", "READ", "WRITTEN", "RECEIVED", "SENT", "UP", "ADDRESS"}, Right: map[int]bool{3: true, 4: true, 5: true, 6: true, 7: true, 8: true, 9: true, 10: true, 11: true}}
	running := 0
	for _, name := range sortedKeys(b.hosts) {
		st := b.hosts[name].GetStatus()
		hosts.Add(table.Text(name), table.Text(b.hosts[name].GetSpec().GetSite()), hostState(b.hosts[name]), table.Text(st.GetAccelerator().GetName()), table.Text(fmt.Sprintf("%d/%d", st.GetVmsRunning(), st.GetVms())),
			load(st.GetCpuLoad()), table.Text(fmt.Sprint(st.GetCpus())), table.Text(unit.Size(st.GetMemoryBytes()-st.GetMemoryFreeBytes())), table.Text(unit.Size(st.GetMemoryBytes())), table.Text(unit.Size(st.GetMemoryAllocatedBytes())))
	}
	names := sortedKeys(b.vms)
	slices.SortStableFunc(names, func(x, y string) int { return cmp.Compare(b.usage(y).cpu, b.usage(x).cpu) })
	for _, name := range names {
		vm, u := b.vms[name], b.usage(name)
		if vm.GetStatus().GetPhase() == v1.VMPhase_VM_PHASE_RUNNING {
			running++
		} else {
			u = noUsage
		}
		up := ""
		if vm.GetStatus().GetPhase() == v1.VMPhase_VM_PHASE_RUNNING {
			up = unit.Age(now, vm.GetStatus().GetStartTime())
		}
		vms.Add(table.Text(name), table.Text(vm.GetStatus().GetOwner()), vmState(vm), load(u.cpu), table.Text(fmt.Sprint(vm.GetSpec().GetCpus())), size(u.memory), table.Text(unit.Size(vm.GetSpec().GetMemoryBytes())),
			table.Text(unit.Rate(u.read)), table.Text(unit.Rate(u.written)), table.Text(unit.Rate(u.received)), table.Text(unit.Rate(u.sent)), table.Text(up), table.Text(firstAddress(vm)))
	}
	head := fmt.Sprintf("drover top   %s   hosts: %d   VMs: %d running of %d", now.Local().Format("15:04:05"), len(b.hosts), running, len(b.vms))
	out := []string{table.Paint(head, table.Bold, colour)}
	if b.problem != "" {
		out = append(out, table.Paint(table.Clean(b.problem), table.Red, colour))
	}
	out = append(out, "")
	out = append(out, hosts.Lines(colour)...)
	out = append(out, "")
	return append(out, vms.Lines(colour)...)
}

// usage needs b.mu.
func (b *board) usage(vm string) usageOf {
	if u, ok := b.use["vm/"+vm]; ok {
		return u
	}
	return noUsage
}

func load(v float64) table.Cell {
	switch {
	case v < 0:
		return table.Text("-")
	case v > 0.9:
		return table.Cell{Text: unit.Percent(v), Colour: table.Red}
	}
	return table.Text(unit.Percent(v))
}

func size(v float64) table.Cell {
	if v < 0 {
		return table.Text("-")
	}
	return table.Text(unit.Size(int64(v)))
}

func sortedKeys[T any](m map[string]T) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.SortFunc(out, strings.Compare)
	return out
}
