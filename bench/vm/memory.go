package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/host"

	"golang.org/x/sync/errgroup"

	"drover/bench/report"
)

// The goals for both roles, in MB of resident memory with 100 VMs.
const (
	agentGoal   = 60.0
	managerGoal = 150.0
)

// fakeDir holds the stand-in under QEMU's name, for the host's PATH.
func fakeDir(dir string) string { return filepath.Join(dir, "bin") }

func buildFake(ctx context.Context, dir string) error {
	if err := os.Mkdir(fakeDir(dir), 0o755); err != nil {
		return err
	}
	return build(ctx, filepath.Join(fakeDir(dir), "qemu-system-x86_64"), "./bench/vm/fakeqemu")
}

// memory measures what both roles need with many VMs, each with a disk, a NIC and a process that answers like QEMU.
func memory(ctx context.Context, o *options, dir string, rep *report.Report) error {
	// The stand-in has no guest to probe with; the host finds this as if it had probed before.
	probed, err := host.Probe(ctx, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	probed.Reason, probed.QEMUVersion = "fake QEMU", "7.2.0"
	b, err := json.Marshal(probed)
	if err != nil {
		return err
	}
	state := filepath.Join(dir, "fake", "h")
	if err := os.MkdirAll(state, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(state, "accel.json"), b, 0o600); err != nil {
		return err
	}
	ctx, r, err := newRig(ctx, o, dir, "fake", "PATH="+fakeDir(dir)+":"+os.Getenv("PATH"))
	if err != nil {
		return err
	}
	defer r.close()
	var wg errgroup.Group
	wg.SetLimit(8)
	for i := range o.defined {
		wg.Go(func() error {
			_, err := r.create(ctx, fmt.Sprintf("vm%03d", i), func(s *v1.VMSpec) {
				s.Power, s.MemoryBytes, s.Disks = v1.Power_POWER_ON, 64<<20, []*v1.DiskSpec{{Name: "d0", SizeBytes: 1 << 30}}
			})
			return err
		})
	}
	if err := wg.Wait(); err != nil {
		return err
	}
	for i := range o.defined {
		if err := r.await(ctx, fmt.Sprintf("vm%03d", i), v1.VMPhase_VM_PHASE_RUNNING); err != nil {
			return err
		}
	}
	rep.Say("memory: %d VMs run, all with a fake QEMU that answers its monitor and has no guest", o.defined)
	if o.profile != "" {
		defer r.profiles()
	}
	for _, x := range []struct {
		what string
		pid  int
		goal float64
	}{{"agent", r.host.pid(), agentGoal}, {"manager", r.manager.pid(), managerGoal}} {
		rss, took, err := settled(ctx, x.pid)
		if err != nil {
			return err
		}
		s, err := status(x.pid)
		if err != nil {
			return err
		}
		rep.Say("memory: %s: %.1f MB resident (%.1f MB of its own, %.1f MB of files), at most %.1f MB, %.0f threads; steady after %v", x.what,
			rss, s["RssAnon"], s["RssFile"], s["VmHWM"], s["Threads"], took.Round(time.Second))
		rep.Add(report.Row{Name: fmt.Sprintf("%s with %d VMs: resident memory", x.what, o.defined), Unit: "MB", Ours: rss, Goal: report.Ptr(x.goal), Better: report.Less,
			Note: fmt.Sprintf("FAKE QEMU (no guests), all running; peak %.0f MB", s["VmHWM"])})
	}
	return nil
}

// status reads the numbers in /proc/PID/status; sizes are in MB of 10^6 bytes.
func status(pid int) (map[string]float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	out := map[string]float64{}
	for l := range strings.Lines(string(b)) {
		key, rest, _ := strings.Cut(l, ":")
		value, size := strings.CutSuffix(strings.TrimSpace(rest), " kB")
		n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if size {
			n *= 1024 / 1e6
		}
		if err == nil {
			out[key] = n
		}
	}
	if out["VmRSS"] == 0 {
		return nil, errors.New("no VmRSS in it")
	}
	return out, nil
}

// settled waits until a process's resident memory has stayed within 2 % for half a minute (collections that run by
// themselves, at least every two minutes, included or not: whatever is the steady state), or two and a half minutes have passed.
func settled(ctx context.Context, pid int) (mb float64, took time.Duration, err error) {
	const each, window, most = time.Second, 30, 150 * time.Second
	began := time.Now()
	tick := time.NewTicker(each)
	defer tick.Stop()
	var seen []float64
	for {
		s, err := status(pid)
		if err != nil {
			return 0, 0, err
		}
		seen = append(seen, s["VmRSS"])
		if len(seen) >= window {
			last := seen[len(seen)-window:]
			if slices.Max(last)-slices.Min(last) <= 0.02*slices.Max(last) || time.Since(began) > most {
				return slices.Max(last), time.Since(began), nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, 0, context.Cause(ctx)
		}
	}
}

// profiles has the roles write their heap profiles.
func (r *rig) profiles() {
	for _, p := range []*process{r.host, r.manager} {
		_ = p.cmd.Process.Signal(syscall.SIGUSR1)
	}
	<-time.After(2 * time.Second) // nobody tells when they are written
}
