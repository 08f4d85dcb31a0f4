package main

import (
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
	return &contender{
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
		first: backup, second: backup,
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
}
