package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// ours is Drover's command, which opens a repository directly.
func ours(drover, name string, encrypted bool) *contender {
	run := func(j *job, args ...string) error { return j.run(drover, append([]string{"repository"}, args...)...) }
	backup := func(j *job) error {
		args := []string{"backup", j.repo(), "--full-read"}
		for _, vm := range j.vms {
			args = append(args, vm+"/disk0="+j.disk(vm))
		}
		return run(j, args...)
	}
	c := &contender{
		name: name, program: drover, encrypted: encrypted,
		init: func(j *job) error {
			j.env = []string{"DROVER_CACHE=" + filepath.Join(j.dir, "home")}
			args := []string{"init", j.repo()}
			if encrypted {
				j.env = append(j.env, "DROVER_PASSPHRASE="+secret)
			} else {
				args = append(args, "--unencrypted")
			}
			return run(j, args...)
		},
		first: func(j *job) error {
			if err := backup(j); err != nil {
				return err
			}
			first := j.last
			err := j.clone("before")
			j.last = first
			return err
		},
		second: backup,
		changed: func(j *job) error {
			// The repository as it was after day 1.
			repo, args := filepath.Join(j.dir, "before"), []string{}
			for _, vm := range j.vms {
				list, err := j.changes(vm)
				if err != nil {
					return err
				}
				args = append(args, vm+"/disk0="+j.disk(vm), "--changed", vm+"/disk0="+list)
			}
			return run(j, append([]string{"backup", repo, "--cache", filepath.Join(j.dir, "cache-before")}, args...)...)
		},
		restore: func(j *job) (string, error) {
			out := filepath.Join(j.dir, "out")
			return filepath.Join(out, "disk0.raw"), run(j, "restore", j.repo(), "web", "--to", out)
		},
		verify: func(j *job) error { return run(j, "scrub", j.repo()) },
		prune: func(j *job) error {
			if err := run(j, "forget", j.repo(), "--keep", "last=1"); err != nil {
				return err
			}
			return j.more(drover, "repository", "collect", j.repo())
		},
	}
	return c
}

// clone makes a repository with the same objects, by links, as objects are never changed, and a copy of its index.
func (j *job) clone(name string) error {
	for _, pair := range [][]string{{"-al", j.repo(), filepath.Join(j.dir, name)}, {"-a", filepath.Join(j.dir, "home"), filepath.Join(j.dir, "cache-"+name)}} {
		if out, err := exec.CommandContext(j.ctx, "cp", pair...).CombinedOutput(); err != nil {
			return fmt.Errorf("copy %s: %w: %s", pair[1], err, out)
		}
	}
	return j.sync()
}

// dense has the fast codec's packs rewritten, as idle time does, and compares what is left with the smallest peer.
func (b *bench) dense() error {
	c := ours(b.drover, "drover", false)
	dir, err := os.MkdirTemp(b.work, "d")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	j := &job{bench: b, c: c, dir: dir, vms: vms}
	if err := j.day(1); err != nil {
		return err
	}
	if err := c.init(j); err != nil {
		return err
	}
	if err := c.first(j); err != nil {
		return err
	}
	fast, err := size(j.repo())
	if err != nil {
		return err
	}
	if err := j.run(b.drover, "repository", "recompress", j.repo()); err != nil {
		return err
	}
	if err := j.more(b.drover, "repository", "collect", j.repo()); err != nil {
		return err
	}
	dense, err := size(j.repo())
	if err != nil {
		return err
	}
	b.denseRow(float64(fast), float64(dense), j.last)
	return j.restored(c)
}

// restored restores a disk of day 1 and compares it.
func (j *job) restored(c *contender) error {
	file, err := c.restore(j)
	if err != nil {
		return err
	}
	j.rep.Say("%-40s %-8s %6.2f s  cpu %6.2f s  %4d MB", c.name, "dense", j.last.took.Seconds(), j.last.cpu.Seconds(), j.last.peak>>20)
	return same(j.image("web", 1), file)
}
