package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"drover/bench/report"
)

// bench is what all share.
type bench struct {
	ctx    context.Context
	rep    *report.Report
	images string
	work   string
	rounds int
	only   string
}

var vms = []string{"web", "db", "build", "desktop"}

func (b *bench) image(vm string, day int) string {
	return filepath.Join(b.images, fmt.Sprintf("%s.day%d.raw", vm, day))
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	drover := flag.String("drover", "bin/drover", "the program to measure")
	images := flag.String("images", "/var/cache/drover-bench/images", "what scripts/bench-images made")
	work := flag.String("work", "/var/cache/drover-bench", "where repositories are made, on the file system of -images")
	rounds := flag.Int("rounds", 3, "runs of each contender")
	only := flag.String("only", "", "only contenders whose name has this in it")
	out := flag.String("out", "", "write the results to this file, as JSON")
	flag.Parse()
	if err := run(ctx, *drover, *images, *work, *rounds, *only, *out); err != nil {
		fmt.Fprintln(os.Stderr, "bench/backup:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, drover, images, work string, rounds int, only, out string) (err error) {
	drover, err = filepath.Abs(drover)
	if err != nil {
		return err
	}
	work, err = os.MkdirTemp(work, "run")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	b := &bench{ctx: ctx, rep: &report.Report{W: os.Stdout}, images: images, work: work, rounds: rounds, only: only}
	where := report.Machine(time.Now())
	var list []*contender
	for _, c := range contenders(drover) {
		switch {
		case only != "" && !strings.Contains(c.name, only):
		case !c.found():
			b.rep.Say("%s: %s is not on the PATH, left out", c.name, c.program)
		default:
			list = append(list, c)
		}
	}
	runs := map[string]*series{}
	for round := range rounds {
		for i := range list {
			c := list[i]
			if round%2 == 1 {
				c = list[len(list)-1-i]
			}
			if err := b.play(c, runs); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	b.results(list, runs)
	if err := b.rep.Table(where); err != nil {
		return err
	}
	if out == "" {
		return nil
	}
	return b.rep.Write(out, where)
}

// warm reads a file so that it lies in the page cache.
func warm(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 4<<20)
	for {
		if n, err := f.Read(buf); n == 0 {
			if err != nil && err.Error() == "EOF" {
				return nil
			}
			return err
		}
	}
}

// series are the measurements of one contender, by step.
type series struct {
	took   map[string][]float64 // seconds
	peak   float64              // bytes, over all steps
	stored map[string]float64   // bytes
}

// play takes one contender through all steps once.
func (b *bench) play(c *contender, runs map[string]*series) (err error) {
	dir, err := os.MkdirTemp(b.work, "c")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	j := &job{bench: b, c: c, dir: dir, vms: vms}
	s := runs[c.name]
	if s == nil {
		s = &series{took: map[string][]float64{}, stored: map[string]float64{}}
		runs[c.name] = s
	}
	note := func(step string) {
		s.took[step] = append(s.took[step], j.last.took.Seconds())
		s.peak = max(s.peak, float64(j.last.peak))
		b.rep.Say("%-40s %-8s %6.2f s  cpu %6.2f s  %4d MB", c.name, step, j.last.took.Seconds(), j.last.cpu.Seconds(), j.last.peak>>20)
	}
	if err := j.day(1); err != nil {
		return err
	}
	if err := errors.Join(c.init(j), j.sync()); err != nil {
		return err
	}
	if err := c.first(j); err != nil {
		return err
	}
	note("first")
	if n, err := size(j.repo()); err == nil {
		s.stored["first"] = float64(n)
	}
	if c.second != nil {
		if err := j.day(2); err != nil {
			return err
		}
		if err := c.second(j); err != nil {
			return err
		}
		note("second")
	}
	if c.verify != nil {
		if err := c.verify(j); err != nil {
			return err
		}
		note("verify")
	}
	file, err := c.restore(j)
	if err != nil {
		return err
	}
	note("restore")
	day := 2
	if c.second == nil {
		day = 1
	}
	if err := same(b.image("web", day), file); err != nil {
		return fmt.Errorf("what was restored: %w", err)
	}
	if c.prune != nil {
		if err := c.prune(j); err != nil {
			return err
		}
		note("prune")
	}
	return nil
}
