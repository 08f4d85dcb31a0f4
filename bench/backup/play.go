package main

import (
	"errors"
	"fmt"
	"os"
)

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
	freed  float64              // bytes, when half died
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
		if n, err := size(j.repo()); err == nil {
			s.stored["second"] = float64(n)
		}
	}
	if c.changed != nil {
		if err := c.changed(j); err != nil {
			return err
		}
		note("bitmap")
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
	if c.prune == nil {
		return nil
	}
	if err := c.prune(j); err != nil {
		return err
	}
	note("prune")
	if c.second == nil {
		return nil
	}
	// Half of what a repository holds dies, all over it.
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	j = &job{bench: b, c: c, dir: dir, vms: []string{"desktop"}}
	if err := errors.Join(os.MkdirAll(dir, 0o700), j.day(1)); err != nil {
		return err
	}
	if err := errors.Join(c.init(j), c.first(j)); err != nil {
		return err
	}
	if err := j.day(thinned); err != nil {
		return err
	}
	if err := c.second(j); err != nil {
		return err
	}
	before, _ := size(j.repo())
	if err := c.prune(j); err != nil {
		return err
	}
	after, err := size(j.repo())
	s.freed = float64(before - after)
	note("thin")
	return err
}
