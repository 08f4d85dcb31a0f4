package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"

	"drover/bench/report"
)

// beside measures a writer while another process collects the same repository again and again, with packs to copy: nobody waits, but the processors are shared.
func (b *bench) beside() (err error) {
	if err := b.thin("desktop"); err != nil {
		return err
	}
	c := ours(b.drover, "drover", false)
	var took [2]float64
	collections := 0
	for i, busy := range []bool{false, true} {
		dir, err := os.MkdirTemp(b.work, "b")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		j := &job{bench: b, c: c, dir: dir, vms: []string{"desktop"}}
		if err := errors.Join(j.day(1), c.init(j)); err != nil {
			return err
		}
		if err := c.second(j); err != nil {
			return err
		}
		if err := j.day(thinned); err != nil {
			return err
		}
		if err := c.second(j); err != nil {
			return err
		}
		if err := j.run(b.drover, "repository", "forget", j.repo(), "--keep", "last=1"); err != nil {
			return err
		}
		ctx, stop := context.WithCancel(b.ctx)
		var wg sync.WaitGroup
		var failed error
		if busy {
			wg.Go(func() {
				for ctx.Err() == nil {
					cmd := exec.Command(b.drover, "repository", "collect", j.repo(), "--cache", dir+"/collector")
					if out, err := cmd.CombinedOutput(); err != nil {
						failed = fmt.Errorf("collect: %w: %s", err, out)
						return
					}
					collections++
				}
			})
		}
		j.vms = []string{"web", "db", "build"}
		err = errors.Join(j.day(1), c.second(j))
		stop()
		wg.Wait()
		if err = errors.Join(err, failed); err != nil {
			return err
		}
		took[i] = j.last.took.Seconds()
		if busy {
			// What was written beside the collector is whole.
			if err := c.verify(j); err != nil {
				return err
			}
			if err := j.restored(c); err != nil {
				return err
			}
		}
	}
	b.rep.Add(report.Row{Name: "first backup of three disks while another collects", Unit: "s", Ours: took[1], Better: report.Less,
		Note: fmt.Sprintf("%.2f s alone; %d collections beside it, the first copies half of a disk; two processors for both", took[0], collections)})
	return nil
}
