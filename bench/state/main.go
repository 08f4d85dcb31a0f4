package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/httpapi"
	"drover/internal/manager"
	"drover/internal/resource"
	"drover/internal/rpc"
	"drover/internal/store"

	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Result is one measured quantity. Peer fields are empty where there is nothing to compare with.
type Result struct {
	Name     string  `json:"name"`
	Unit     string  `json:"unit"`
	Ours     float64 `json:"ours"`
	Peer     float64 `json:"peer"`
	PeerName string  `json:"peer_name"`
	Limit    float64 `json:"limit"`
	Ratio    float64 `json:"ratio"`
	Goal     string  `json:"goal"`
	Met      bool    `json:"met"`
}

func atMost(name, unit string, ours, limit float64) Result {
	r := Result{Name: name, Unit: unit, Ours: ours, Limit: limit, Met: true}
	if limit > 0 {
		r.Ratio, r.Goal, r.Met = ours/limit, fmt.Sprintf("≤ %g %s", limit, unit), ours <= limit
	}
	return r
}

func main() {
	out := flag.String("out", "", "write the results there as JSON")
	many := flag.Int("vms", 10_000, "VMs of the large state")
	lists := flag.Int("lists", 300, "lists to measure")
	changes := flag.Int("changes", 60, "changes to fan out")
	watchers := flag.Int("watchers", 100, "watchers of each change")
	serve := flag.String("serve", "", "be the manager of that state directory (the benchmark starts itself so)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if *serve != "" {
		err = serveState(ctx, *serve)
	} else {
		err = measure(ctx, *out, *many, *lists, *changes, *watchers)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench/state:", err)
		os.Exit(1)
	}
}

// serveState is the manager; it says "ready" and ends with its standard input.
func serveState(ctx context.Context, dir string) error {
	ctx, stop := context.WithCancel(ctx)
	go func() { // ends with the process
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	return httpapi.Run(ctx, manager.Config{
		StateDir: dir, Listen: "127.0.0.1:0", Version: "bench", Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
	}, func(*manager.Manager) { fmt.Println("ready") })
}

func measure(ctx context.Context, out string, many, lists, changes, watchers int) error {
	var results []Result
	err := withManager(ctx, 100, func(pid int, socket string) error {
		if _, err := listing(ctx, socket, 1); err != nil {
			return err
		}
		mb, err := resident(pid)
		results = append(results, atMost("manager memory, 100 VMs", "MB", mb, 150))
		return err
	})
	if err != nil {
		return err
	}
	err = withManager(ctx, many, func(pid int, socket string) error {
		if _, err := listing(ctx, socket, 20); err != nil { // warm
			return err
		}
		took, err := listing(ctx, socket, lists)
		if err != nil {
			return err
		}
		results = append(results,
			atMost(fmt.Sprintf("list 100 of %d VMs with a filter, p50", many), "ms", quantile(took, 0.5), 0),
			atMost(fmt.Sprintf("list 100 of %d VMs with a filter, p99", many), "ms", quantile(took, 0.99), 20))
		if took, err = fanOut(ctx, socket, changes, watchers); err != nil {
			return err
		}
		results = append(results,
			atMost(fmt.Sprintf("a change to %d watchers, p50", watchers), "ms", quantile(took, 0.5), 0),
			atMost(fmt.Sprintf("a change to %d watchers, p99", watchers), "ms", quantile(took, 0.99), 50))
		mb, err := resident(pid)
		results = append(results, atMost(fmt.Sprintf("manager memory, %d VMs, %d watchers before", many, watchers), "MB", mb, 0))
		return err
	})
	if err != nil {
		return err
	}
	table(results)
	if out == "" {
		return nil
	}
	b, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(filepath.Dir(out), 0o755), os.WriteFile(out, append(b, '\n'), 0o644))
}

func table(results []Result) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "WHAT\tMEASURED\tGOAL\tMET")
	for _, r := range results {
		met := ""
		if r.Goal != "" {
			met = map[bool]string{true: "yes", false: "NO"}[r.Met]
		}
		fmt.Fprintf(w, "%s\t%.1f %s\t%s\t%s\n", r.Name, r.Ours, r.Unit, r.Goal, met)
	}
	w.Flush()
}

// withManager runs do against a manager whose state has n VMs, and takes everything away again.
func withManager(ctx context.Context, n int, do func(pid int, socket string) error) (err error) {
	dir, err := os.MkdirTemp("", "drover-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := seed(ctx, filepath.Join(dir, "etcd"), n); err != nil {
		return fmt.Errorf("make %d VMs: %w", n, err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, "-serve", dir)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	said, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close(), cmd.Wait()) }()
	if lines := bufio.NewScanner(said); !lines.Scan() || lines.Text() != "ready" {
		return errors.New("the manager did not start")
	}
	return do(cmd.Process.Pid, filepath.Join(dir, "manager.sock"))
}

// seed writes VMs as the manager would have stored them.
func seed(ctx context.Context, dir string, n int) (err error) {
	s, err := store.Open(ctx, store.Options{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	coll, err := store.NewCollection(s, store.Kind[*v1.VM]{Name: resource.KindVM})
	if err != nil {
		return err
	}
	hosts, err := store.NewCollection(s, store.Kind[*v1.Host]{Name: resource.KindHost})
	if err != nil {
		return err
	}
	if err := hosts.Create(ctx, &v1.Host{Meta: &v1.Meta{Name: "host-0", Uid: resource.NewUID()}, Spec: &v1.HostSpec{Site: "s"}, Status: &v1.HostStatus{}}); err != nil {
		return err
	}
	nets, err := store.NewCollection(s, store.Kind[*v1.Network]{Name: resource.KindNetwork})
	if err != nil {
		return err
	}
	if err := nets.Create(ctx, &v1.Network{Meta: &v1.Meta{Name: "net", Uid: resource.NewUID()}, Spec: &v1.NetworkSpec{}}); err != nil {
		return err
	}
	var ops []store.Op
	for i := range n {
		vm := &v1.VM{
			Meta: &v1.Meta{Name: fmt.Sprintf("vm-%05d", i), Uid: resource.NewUID(), Generation: 1, CreateTime: timestamppb.Now(), Labels: map[string]string{"env": []string{"prod", "test"}[i%2], "team": strconv.Itoa(i % 17)}},
			Spec: &v1.VMSpec{
				Cpus: int32(1 + i%4), MemoryBytes: 1 << 30,
				Disks: []*v1.DiskSpec{{Name: "root", SizeBytes: 1 << 30, Datastore: "ds"}},
				Nics:  []*v1.NICSpec{{Name: "n0", Network: "net", Mac: resource.NewMAC()}},
			},
			Status: &v1.VMStatus{Owner: "host-0", Epoch: 1, Phase: v1.VMPhase_VM_PHASE_OFF, Site: "s", ObservedGeneration: 1},
		}
		resource.DefaultVM(vm, nil)
		if ops = append(ops, coll.CreateOp(vm)); len(ops) == 100 || i == n-1 {
			if _, err := s.Txn(ctx, ops...); err != nil {
				return err
			}
			ops = ops[:0]
		}
	}
	return nil
}

func client(socket string) droverv1connect.VMServiceClient {
	return droverv1connect.NewVMServiceClient(rpc.UnixClient(socket), "http://drover", rpc.ClientOptions()...)
}

func listing(ctx context.Context, socket string, n int) ([]time.Duration, error) {
	c := client(socket)
	var took []time.Duration
	for range n {
		begin := time.Now()
		l, err := c.List(ctx, &v1.ListRequest{Filter: `meta.labels.env = "prod" AND spec.cpus >= 3`, PageSize: 100})
		if err != nil {
			return nil, err
		}
		took = append(took, time.Since(begin))
		if len(l.Vms) == 0 {
			return nil, errors.New("the list is empty")
		}
	}
	return took, nil
}

// fanOut measures from the call that changes a VM until each watcher has the change.
func fanOut(ctx context.Context, socket string, changes, watchers int) ([]time.Duration, error) {
	ctx, stop := context.WithTimeout(ctx, 5*time.Minute)
	defer stop()
	got := make(chan time.Time, watchers)
	ready := make(chan error, watchers)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	for range watchers {
		c := client(socket)
		wg.Go(func() {
			st, err := c.Watch(ctx, &v1.WatchRequest{})
			if err != nil {
				ready <- err
				return
			}
			defer st.Close()
			for st.Receive() {
				switch st.Msg().Kind {
				case v1.ChangeKind_CHANGE_KIND_SYNCED:
					ready <- nil
				case v1.ChangeKind_CHANGE_KIND_MODIFIED:
					select {
					case got <- time.Now():
					case <-ctx.Done():
					}
				}
			}
		})
	}
	for range watchers {
		select {
		case err := <-ready:
			if err != nil {
				return nil, err
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("watchers did not get the state: %w", ctx.Err())
		}
	}
	c := client(socket)
	var took []time.Duration
	for i := range changes {
		vm := &v1.VM{Meta: &v1.Meta{Name: "vm-00000", Labels: map[string]string{"round": strconv.Itoa(i)}}}
		begin := time.Now()
		if _, err := c.Update(ctx, &v1.UpdateVMRequest{Vm: vm, Mask: &fieldmaskpb.FieldMask{Paths: []string{"meta.labels.round"}}}); err != nil {
			return nil, err
		}
		for range watchers {
			select {
			case at := <-got:
				took = append(took, at.Sub(begin))
			case <-ctx.Done():
				return nil, fmt.Errorf("change %d did not reach all: %w", i, ctx.Err())
			}
		}
	}
	return took, nil
}

func quantile(d []time.Duration, q float64) float64 {
	d = slices.Sorted(slices.Values(d))
	return float64(d[min(len(d)-1, int(q*float64(len(d))))].Microseconds()) / 1000
}

// resident is the memory of a process in MB, as the kernel counts it.
func resident(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kb, err := strconv.ParseFloat(f[1], 64)
			return kb / 1024 * 1.048576, err
		}
	}
	return 0, errors.New("the kernel doesn't say")
}
