package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"drover/bench/report"
	"drover/internal/lab"
)

// bench is what all share.
type bench struct {
	ctx    context.Context
	rep    *report.Report
	drover string
	images string
	work   string
	rounds int
	only   string
	data   *data
	rates  *rates

	smallest     float64 // MB that the smallest peer stores of day 1
	smallestName string
}

var vms = []string{"web", "db", "build", "desktop"}

// thinned is the day on which every other 4 MiB of a disk is gone.
const thinned = 3

func (b *bench) image(vm string, day int) string {
	dir := b.images
	if day == thinned {
		dir = b.work
	}
	return filepath.Join(dir, fmt.Sprintf("%s.day%d.raw", vm, day))
}

// part is one that can be chosen.
type part struct {
	name string
	run  func(*bench) error
}

var parts = []part{
	{"limits", (*bench).limits}, {"peers", (*bench).peers}, {"dense", (*bench).dense}, {"beside", (*bench).beside}, {"scale", (*bench).scale}, {"s3", (*bench).s3}, {"guests", (*bench).guests},
}

func main() {
	lab.MaybeDaemon()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	b := &bench{ctx: ctx, rep: &report.Report{W: os.Stdout}}
	flag.StringVar(&b.drover, "drover", "bin/drover", "the program to measure")
	flag.StringVar(&b.images, "images", "/var/cache/drover-bench/images", "what scripts/bench-images made")
	work := flag.String("work", "/var/cache/drover-bench", "where repositories are made, on the file system of -images")
	flag.IntVar(&b.rounds, "rounds", 3, "runs of each contender that is near the best")
	flag.StringVar(&b.only, "only", "", "only contenders whose name has one of these in it, by comma")
	which := flag.String("parts", strings.Join(names, ","), "only these parts")
	out := flag.String("out", "", "write the results to this file, as JSON")
	flag.Parse()
	if err := b.run(*work, *which, *out); err != nil {
		fmt.Fprintln(os.Stderr, "bench/backup:", err)
		os.Exit(1)
	}
}

func (b *bench) run(work, which, out string) (err error) {
	if b.drover, err = filepath.Abs(b.drover); err != nil {
		return err
	}
	if b.work, err = os.MkdirTemp(work, "run"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.work)) }()
	where := report.Machine(time.Now())
	var failed []error
	for _, p := range parts {
		if !slices.Contains(strings.Split(which, ","), p.name) {
			continue
		}
		began := time.Now()
		// The other parts' numbers are worth having.
		if err := p.run(b); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", p.name, err))
			b.rep.Say("%s FAILED: %v", p.name, err)
		}
		if b.ctx.Err() != nil {
			break // what was measured is told all the same
		}
		b.rep.Say("part %s took %v", p.name, time.Since(began).Round(time.Second))
	}
	if err := b.rep.Table(where); err != nil {
		return err
	}
	if out != "" {
		failed = append(failed, b.rep.Write(out, where))
	}
	return errors.Join(failed...)
}

// peers has all contenders do the same. Who is far from the best on every line in the first round isn't run again.
func (b *bench) peers() error {
	if err := b.thin("desktop"); err != nil {
		return err
	}
	var list []*contender
	for _, c := range contenders(b.drover) {
		switch {
		case b.only != "" && !slices.ContainsFunc(strings.Split(b.only, ","), func(s string) bool { return strings.Contains(c.name, s) }):
		case !c.found():
			b.rep.Say("%s: %s is not on the PATH, left out", c.name, c.program)
		default:
			list = append(list, c)
		}
	}
	runs := map[string]*series{}
	for round := range b.rounds {
		for i := range list {
			c := list[i]
			if round%2 == 1 {
				c = list[len(list)-1-i]
			}
			if round > 0 && !near(c, list, runs) {
				continue
			}
			if err := b.play(c, runs); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	b.results(list, runs)
	return nil
}

// near reports whether a contender may be the best at something.
func near(c *contender, list []*contender, runs map[string]*series) bool {
	if c.isOurs() {
		return true
	}
	for _, step := range steps {
		mine := runs[c.name].took[step]
		if len(mine) == 0 {
			continue
		}
		for _, encrypted := range []bool{false, true} {
			best := mine[0]
			for _, o := range list {
				if t := runs[o.name].took[step]; !o.isOurs() && len(t) > 0 && (!encrypted || o.encrypted) {
					best = min(best, t[0])
				}
			}
			if (!encrypted || c.encrypted) && mine[0] < 1.25*best {
				return true
			}
		}
	}
	return false
}
