package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/hostnet"

	"golang.org/x/sync/errgroup"

	"drover/bench/report"
)

// watcher reads one VM's console through the API and tells when the guest's first line came, at each start.
type watcher struct {
	lines chan time.Time
	err   error // set before lines is closed
}

// watchConsole follows a console until ctx ends. The stream opens with the first that the guest says; what it said
// before, the stream begins with.
func (r *rig) watchConsole(ctx context.Context, name string) *watcher {
	w := &watcher{lines: make(chan time.Time, 1024)}
	go func() {
		defer close(w.lines)
		st, err := r.vms.ConsoleLog(ctx, &v1.ConsoleLogRequest{Name: name, Follow: true})
		if err != nil {
			w.err = err
			return
		}
		defer st.Close()
		seen, text := 0, ""
		for st.Receive() {
			now := time.Now()
			text += string(st.Msg().GetData())
			for ; seen < strings.Count(text, firstLine); seen++ {
				w.lines <- now
			}
		}
		w.err = errors.Join(st.Err(), errors.New("the console's stream ended"))
	}()
	return w
}

func (w *watcher) next(ctx context.Context) (time.Time, error) {
	select {
	case t, ok := <-w.lines:
		if !ok {
			return t, w.err
		}
		return t, nil
	case <-time.After(settle):
		return time.Time{}, fmt.Errorf("no %q on the console within %v", firstLine, settle)
	case <-ctx.Done():
		return time.Time{}, context.Cause(ctx)
	}
}

// guest is a VM that is started again and again.
type guest struct {
	name, uid string
	console   *watcher
	kit       *kit
	dir       string
}

// guests makes n VMs with a NIC and a blank disk each, and waits until the host has made their disks.
func (r *rig) guests(ctx context.Context, prefix string, n int) ([]*guest, error) {
	var all []*guest
	for i := range n {
		vm, err := r.create(ctx, fmt.Sprintf("%s%d", prefix, i), func(s *v1.VMSpec) {
			s.Disks = []*v1.DiskSpec{{Name: "d0", SizeBytes: 1 << 30}}
		})
		if err != nil {
			return nil, err
		}
		all = append(all, &guest{name: vm.Meta.Name, uid: vm.Meta.Uid, dir: filepath.Join(r.dir, "hand", vm.Meta.Name)})
	}
	for _, g := range all {
		if err := r.await(ctx, g.name, v1.VMPhase_VM_PHASE_OFF); err != nil {
			return nil, err
		}
		g.console = r.watchConsole(ctx, g.name)
	}
	return all, nil
}

// start is one start through the API: the moments of the call, of its answer, and of the guest's first line.
func (r *rig) start(ctx context.Context, g *guest) (began, answered, line time.Time, err error) {
	began = time.Now()
	if _, err = r.vms.Start(ctx, &v1.StartVMRequest{Name: g.name}); err != nil {
		return
	}
	answered = time.Now()
	line, err = g.console.next(ctx)
	return
}

// learn reads how to start a running VM by hand, once.
func (r *rig) learn(ctx context.Context, g *guest) (err error) {
	if g.kit != nil {
		return nil
	}
	if err := r.await(ctx, g.name, v1.VMPhase_VM_PHASE_RUNNING); err != nil {
		return err
	}
	g.kit, err = r.kitOf(g.uid)
	return err
}

// single measures one start at a time, ours and by hand in turn.
func (r *rig) single(ctx context.Context, o *options, rep *report.Report) error {
	gs, err := r.guests(ctx, "one", 1)
	if err != nil {
		return err
	}
	g := gs[0]
	n, err := hostnet.Current()
	if err != nil {
		return err
	}
	defer n.Close()
	var ours, peer, over, cpus, handCPUs, overCPUs, answer, reach, inside []float64
	for i := range o.warm + o.pairs {
		began, answered, line, err := r.start(ctx, g)
		if err != nil {
			return err
		}
		if err := r.learn(ctx, g); err != nil {
			return err
		}
		at, took, err := r.hostPart(ctx, g.name, began)
		if err != nil {
			return err
		}
		if err := r.stop(ctx, g.name); err != nil {
			return err
		}
		bridge, err := bridgeOf(n)
		if err != nil {
			return err
		}
		h, err := g.kit.prepare(g.dir, bridge, n)
		if err != nil {
			return err
		}
		hbegan, hline, err := h.start(ctx)
		h.close()
		if err != nil {
			return err
		}
		a, b := report.Ms(line.Sub(began)), report.Ms(hline.Sub(hbegan))
		c, d := report.Ms(at.Add(took).Sub(began)), report.Ms((<-h.runs).Sub(hbegan))
		rep.Say("start %2d: ours %7.1f ms, by hand %7.1f ms, difference %+7.1f ms; to running CPUs %.1f and %.1f ms; answered after %.1f ms, at the host after %.1f ms, QEMU let go %.1f ms later; load %s%s",
			i-o.warm+1, a, b, a-b, c, d, report.Ms(answered.Sub(began)), report.Ms(at.Sub(began)), report.Ms(took), report.Load(), map[bool]string{true: " (warm-up)"}[i < o.warm])
		if i < o.warm {
			continue
		}
		ours, peer, over = append(ours, a), append(peer, b), append(over, a-b)
		cpus, handCPUs, overCPUs = append(cpus, c), append(handCPUs, d), append(overCPUs, c-d)
		answer, reach, inside = append(answer, report.Ms(answered.Sub(began))), append(reach, report.Ms(at.Sub(began))), append(inside, report.Ms(took))
	}
	rep.Add(report.Row{Name: "vm start to the guest's first line", Unit: "ms", Ours: report.Median(ours), Peer: report.Ptr(report.Median(peer)), PeerName: "the same QEMU command line by hand", Better: report.Less})
	rep.Add(report.Row{Name: "vm start: overhead (median of pairs' differences)", Unit: "ms", Ours: report.Median(over), Goal: report.Ptr(50.0), Better: report.Less,
		Note: fmt.Sprintf("%d pairs, middle half %.0f to %.0f ms", len(over), report.Quantile(over, 0.25), report.Quantile(over, 0.75))})
	rep.Add(report.Row{Name: "vm start to running CPUs", Unit: "ms", Ours: report.Median(cpus), Peer: report.Ptr(report.Median(handCPUs)), PeerName: "the same by hand", Better: report.Less})
	rep.Add(report.Row{Name: "vm start: overhead until the CPUs run (all that Drover adds is before that)", Unit: "ms", Ours: report.Median(overCPUs), Goal: report.Ptr(50.0), Better: report.Less,
		Note: fmt.Sprintf("middle half %.0f to %.0f ms; the boot's own noise is not in it", report.Quantile(overCPUs, 0.25), report.Quantile(overCPUs, 0.75))})
	rep.Add(report.Row{Name: "vm start: the call is answered", Unit: "ms", Ours: report.Median(answer), Better: report.Less})
	rep.Add(report.Row{Name: "vm start: from the call to the host's work", Unit: "ms", Ours: report.Median(reach), Better: report.Less})
	rep.Add(report.Row{Name: "vm start: the host's work (TAP, files, QEMU's own start) to running CPUs", Unit: "ms", Ours: report.Median(inside), Better: report.Less})
	return nil
}

// hostPart is when the host began to start a VM, and how long it took until the CPUs ran, as its event says.
func (r *rig) hostPart(ctx context.Context, name string, since time.Time) (at time.Time, took time.Duration, err error) {
	err = poll(ctx, "there is an event of VM "+name+"'s start", func() (bool, error) {
		l, err := r.events.List(ctx, &v1.ListEventsRequest{Kind: "vm", Name: name, PageSize: 20})
		if err != nil {
			return false, err
		}
		for _, e := range l.GetEvents() {
			if e.GetReason() != "VM_STARTED" || e.GetTime().AsTime().Before(since) {
				continue
			}
			_, text, _ := strings.Cut(e.GetMessage(), " in ")
			if took, err = time.ParseDuration(text); err != nil {
				return false, fmt.Errorf("event of VM %s: %q has no duration: %w", name, e.GetMessage(), err)
			}
			at = e.GetTime().AsTime().Add(-took)
			return true, nil
		}
		return false, nil
	})
	return at, took, err
}

// together measures many starts at once: from the first call until all guests have printed their first line.
func (r *rig) together(ctx context.Context, o *options, rep *report.Report) error {
	gs, err := r.guests(ctx, "many", o.batch)
	if err != nil {
		return err
	}
	n, err := hostnet.Current()
	if err != nil {
		return err
	}
	defer n.Close()
	var ours, peer []float64
	for i := range o.batchRuns {
		a, err := all(gs, func(g *guest) (time.Time, time.Time, error) {
			began, _, line, err := r.start(ctx, g)
			return began, line, err
		})
		if err != nil {
			return err
		}
		for _, g := range gs {
			if err := r.learn(ctx, g); err != nil {
				return err
			}
		}
		for _, g := range gs {
			if err := r.stop(ctx, g.name); err != nil {
				return err
			}
		}
		b, err := r.handTogether(ctx, gs, n)
		if err != nil {
			return err
		}
		rep.Say("%d at once, %d: ours %.2f s, by hand %.2f s; load %s", o.batch, i+1, a.Seconds(), b.Seconds(), report.Load())
		ours, peer = append(ours, a.Seconds()), append(peer, b.Seconds())
	}
	rep.Add(report.Row{Name: fmt.Sprintf("%d starts at once, until all have printed a line", o.batch), Unit: "s", Ours: report.Median(ours), Peer: report.Ptr(report.Median(peer)),
		PeerName: "the same QEMUs by hand at once", Better: report.Less, Note: fmt.Sprintf("%d pairs", o.batchRuns)})
	return nil
}

func (r *rig) handTogether(ctx context.Context, gs []*guest, n *hostnet.Net) (time.Duration, error) {
	bridge, err := bridgeOf(n)
	if err != nil {
		return 0, err
	}
	hands := map[*guest]*hand{}
	defer func() {
		for _, h := range hands {
			h.close()
		}
	}()
	for _, g := range gs {
		if hands[g], err = g.kit.prepare(g.dir, bridge, n); err != nil {
			delete(hands, g)
			return 0, err
		}
	}
	return all(gs, func(g *guest) (time.Time, time.Time, error) { return hands[g].start(ctx) })
}

// all starts all guests at once; it gives the time from the first beginning to the last line.
func all(gs []*guest, start func(*guest) (began, line time.Time, err error)) (time.Duration, error) {
	begins, lines := make([]time.Time, len(gs)), make([]time.Time, len(gs))
	var wg errgroup.Group
	for i, g := range gs {
		wg.Go(func() (err error) {
			begins[i], lines[i], err = start(g)
			return err
		})
	}
	if err := wg.Wait(); err != nil {
		return 0, err
	}
	first, last := begins[0], lines[0]
	for i := range gs {
		if begins[i].Before(first) {
			first = begins[i]
		}
		if lines[i].After(last) {
			last = lines[i]
		}
	}
	return last.Sub(first), nil
}
