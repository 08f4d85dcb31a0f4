package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"drover/internal/host"
	"drover/internal/osimage"
)

// options are the flags.
type options struct {
	drover, out      string
	pairs, warm      int
	batch, batchRuns int
	defined          int
	testSeconds      float64
	only             string
	profile          string
	verbose          bool
	timeout          time.Duration
}

func (o *options) flags() *flag.FlagSet {
	f := flag.NewFlagSet("vm", flag.ExitOnError)
	f.StringVar(&o.drover, "drover", "", "the binary to measure; empty: the roles inside this program")
	f.StringVar(&o.out, "out", "", "write the results to this file, as JSON")
	f.IntVar(&o.pairs, "pairs", 31, "pairs of single starts")
	f.IntVar(&o.warm, "warm", 2, "pairs before them that do not count")
	f.IntVar(&o.batch, "batch", 20, "starts at once")
	f.IntVar(&o.batchRuns, "batch-pairs", 3, "pairs of starts at once")
	f.IntVar(&o.defined, "defined", 100, "VMs while memory is measured")
	f.Float64Var(&o.testSeconds, "test-seconds", 0, "how long `make test` took, to be in the table")
	f.StringVar(&o.only, "only", "", "only these parts, by comma: start, batch, memory, state")
	f.StringVar(&o.profile, "profile", "", "write the roles' heap profiles into this directory (without -drover)")
	f.BoolVar(&o.verbose, "v", false, "show the roles' logs")
	f.DurationVar(&o.timeout, "timeout", 40*time.Minute, "give up after this long")
	return f
}

func (o *options) wants(part string) bool {
	return o.only == "" || strings.Contains(","+o.only+",", ","+part+",")
}

// The environment that this program is started with anew.
const (
	envRole = "DROVER_BENCH_ROLE" // inside, manager, host
	envDir  = "DROVER_BENCH_DIR"
	envArg  = "DROVER_BENCH_ARG"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var o options
	err := func() error {
		switch os.Getenv(envRole) {
		case "":
			return outside(ctx, &o)
		case "manager":
			return managerRole(ctx)
		case "host":
			return hostRole(ctx)
		}
		if err := o.flags().Parse(os.Args[1:]); err != nil {
			return err
		}
		return inside(ctx, &o, os.Getenv(envDir))
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench/vm:", err)
		os.Exit(1)
	}
}

// outside prepares what needs the network, makes the namespaces, and removes what is left in files.
func outside(ctx context.Context, o *options) (err error) {
	if err := o.flags().Parse(os.Args[1:]); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("it makes namespaces and TAPs, which needs root")
	}
	dir, err := os.MkdirTemp("", "dbv")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sweep(dir)) }()
	if err := os.Chmod(dir, 0o711); err != nil {
		return err
	}
	image, err := osimage.BuildTiny(ctx, osimage.Tiny{}, osimage.Options{})
	if err != nil {
		return fmt.Errorf("build the test guest: %w", err)
	}
	if err := os.Symlink(image.Path, filepath.Join(dir, "tiny.tar")); err != nil {
		return err
	}
	if o.wants("memory") {
		if err := buildFake(ctx, dir); err != nil {
			return err
		}
	}
	if o.wants("state") {
		if err := build(ctx, stateProgram(dir), "./bench/state"); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	// The death signal comes when the thread ends that started the child.
	runtime.LockOSThread()
	cmd := self(ctx, "inside", dir, "")
	cmd.Args = append(cmd.Args, os.Args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL, Setpgid: true,
	}
	cmd.Stdin, cmd.Stdout = nil, os.Stdout
	err = cmd.Run()
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("ended early: %w", cause)
	}
	return err
}

// sweep removes what the kernel does not when the namespaces end: files, guests' memory, cgroups, the switch.
func sweep(dir string) error {
	var errs []error
	for _, name := range rigNames {
		cfg := host.Config{StateDir: filepath.Join(dir, name, "h")}
		if err := cfg.Validate(); err != nil {
			return err
		}
		_, _, pins := host.Traces(cfg.StateDir)
		errs = append(errs, os.RemoveAll(cfg.ShmDir), os.RemoveAll(pins))
		tag, _ := strings.CutPrefix(filepath.Base(cfg.ShmDir), "drover-")
		for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
			group := filepath.Join(root, "drover-"+tag)
			vms, _ := filepath.Glob(filepath.Join(group, "vm-*"))
			for _, d := range append(vms, group) {
				if err := os.Remove(d); err != nil && !errors.Is(err, os.ErrNotExist) {
					errs = append(errs, err)
				}
			}
		}
	}
	return errors.Join(append(errs, os.RemoveAll(dir))...)
}
