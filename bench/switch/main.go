package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"drover/bench/report"
	"drover/internal/hostnet"

	"golang.org/x/sys/unix"
)

// options are the flags.
type options struct {
	out     string
	quick   bool
	rounds  int
	run     time.Duration
	only    string
	kinds   string
	timeout time.Duration
	verbose bool
}

func (o *options) flags() *flag.FlagSet {
	f := flag.NewFlagSet("switch", flag.ExitOnError)
	f.StringVar(&o.out, "out", "", "write the results to this file, as JSON")
	f.BoolVar(&o.quick, "quick", false, "below a minute: short runs, fewer rounds; the numbers say little")
	f.IntVar(&o.rounds, "rounds", 5, "runs of each contender")
	f.DurationVar(&o.run, "run", 700*time.Millisecond, "length of a run")
	f.StringVar(&o.only, "only", "", "only these parts, by comma: veth, tap, overlay, flat, change")
	f.StringVar(&o.kinds, "contenders", "", "only these, by comma: direct, bridge, bridge-bare, ovs, plain, secure")
	f.DurationVar(&o.timeout, "timeout", 15*time.Minute, "give up after this long")
	f.BoolVar(&o.verbose, "v", false, "print every run")
	return f
}

func (o *options) parse() error {
	if err := o.flags().Parse(os.Args[1:]); err != nil {
		return err
	}
	if o.quick {
		o.rounds, o.run = 3, 120*time.Millisecond
	}
	if o.rounds < 1 || o.run <= 0 {
		return errors.New("-rounds and -run must be more than 0")
	}
	return nil
}

func listed(list, what string) bool {
	return list == "" || strings.Contains(","+list+",", ","+what+",")
}

// envDir is the directory of the program that runs inside the namespaces.
const envDir = "DROVER_BENCH_DIR"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var o options
	err := o.parse()
	if err == nil {
		if dir := os.Getenv(envDir); dir != "" {
			err = inside(ctx, &o, dir)
		} else {
			err = outside(ctx, &o)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench/switch:", err)
		os.Exit(1)
	}
}

// outside runs this program again in namespaces of its own, and removes what is left in files.
func outside(ctx context.Context, o *options) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("it makes namespaces and TAPs, which needs root")
	}
	dir, err := os.MkdirTemp("", "dbs")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	// The death signal comes when the thread ends that started the child.
	runtime.LockOSThread()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	// A thread in a system call that the scheduler does not know of must not be waited for (GOGC) nor be interrupted (asyncpreemptoff), and each has a place
	// to run (GOMAXPROCS).
	cmd.Env = append(os.Environ(), envDir+"="+dir, "GOGC=off", "GODEBUG=asyncpreemptoff=1", "GOMAXPROCS=40")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL, Setpgid: true,
	}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	err = cmd.Run()
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("ended early: %w", cause)
	}
	return err
}

// bench is what the parts share.
type bench struct {
	*options
	ctx context.Context // ends when the program should
	dir string
	log *slog.Logger
	rep *report.Report
}

// inside runs the measurements, as the first process of its namespaces.
func inside(ctx context.Context, o *options, dir string) error {
	if err := ownNamespaces(dir); err != nil {
		return err
	}
	level := slog.LevelWarn
	if o.verbose {
		level = slog.LevelInfo
	}
	b := &bench{options: o, ctx: ctx, dir: dir, rep: &report.Report{W: os.Stdout},
		log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))}
	began := time.Now()
	where := report.Machine(began) // with the load that was there before ours
	for _, part := range []struct {
		name string
		run  func() error
	}{
		{"veth", b.veth}, {"tap", b.tap}, {"overlay", b.overlay}, {"change", b.change},
		// Last: when a thousand ports go, the kernel is busy for half a minute.
		{"flat", b.flat},
	} {
		if !listed(o.only, part.name) {
			continue
		}
		if err := part.run(); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	b.rep.Say("took %v", time.Since(began).Round(time.Second))
	if err := b.rep.Table(where); err != nil {
		return err
	}
	if o.out == "" {
		return nil
	}
	return b.rep.Write(o.out, where)
}

// ownNamespaces gives this process its own view of files where namespaces and maps are named. Mounts stay in here.
func ownNamespaces(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts to ourselves: %w", err)
	}
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		return err
	}
	for _, m := range []struct{ what, where string }{{"proc", "/proc"}, {"tmpfs", "/run/netns"}, {"bpf", filepath.Join(dir, "bpf")}} {
		if err := os.MkdirAll(m.where, 0o700); err != nil {
			return err
		}
		if err := unix.Mount(m.what, m.where, m.what, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.what, m.where, err)
		}
	}
	n, err := hostnet.Current()
	if err != nil {
		return err
	}
	return errors.Join(n.SetUp("lo", true), n.Close())
}
