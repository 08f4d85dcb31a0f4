package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// contender is a program in one setting. Steps that it doesn't have are nil.
type contender struct {
	name      string
	encrypted bool
	program   string // looked for on the PATH
	// first backs up day 1 into an empty repository, second day 2 into the same.
	init, first, second func(*job) error
	// changed is second in a repository like the one before it, told what has changed. The repository that it leaves is not used.
	changed func(*job) error
	// restore writes the disk "web" of day 2 and returns the file.
	restore func(*job) (string, error)
	verify  func(*job) error
	// prune forgets day 1 and gives its space back.
	prune func(*job) error
}

const secret = "correct horse battery staple"

// job is one contender's repository in one round.
type job struct {
	*bench
	c    *contender
	dir  string // empty at the beginning; the repository is repo below it
	vms  []string
	last usage
	env  []string
}

func (j *job) repo() string { return filepath.Join(j.dir, "repo") }

// disk is where a VM's disk of a day lies. Both days have the same path, as a running VM's would: link changes.
func (j *job) disk(vm string) string { return filepath.Join(j.dir, "disks", vm+".raw") }

// day makes the disks those of a day, and reads them so that they lie in the page cache.
func (j *job) day(n int) error {
	if err := os.MkdirAll(filepath.Join(j.dir, "disks"), 0o700); err != nil {
		return err
	}
	for _, vm := range j.vms {
		if err := os.RemoveAll(j.disk(vm)); err != nil {
			return err
		}
		if err := os.Link(j.image(vm, n), j.disk(vm)); err != nil {
			return fmt.Errorf("%w; scripts/bench-images makes the disks", err)
		}
		if err := warm(j.disk(vm)); err != nil {
			return err
		}
	}
	return nil
}

func (j *job) disks() []string {
	var out []string
	for _, vm := range j.vms {
		out = append(out, j.disk(vm))
	}
	return out
}

func contenders(drover string) []*contender {
	return append([]*contender{
		ours(drover, "drover", false), ours(drover, "drover, encrypted", true),
		borg("borg, fixed 4 MiB, no compression", "none", "none", false), borg("borg, fixed 4 MiB, lz4", "none", "lz4", false),
		borg("borg, fixed 4 MiB, lz4, encrypted", "repokey-blake2", "lz4", true),
	}, append(resticAndKopia(), desync(), qemuImg())...)
}

func borg(name, encryption, compression string, encrypted bool) *contender {
	run := func(j *job, args ...string) error { return j.run("borg", args...) }
	archive := func(day string) func(*job) error {
		return func(j *job) error {
			return run(j, append([]string{"create", "--chunker-params=fixed,4194304", "--sparse", "-C", compression, "--files-cache=disabled", j.repo() + "::" + day}, j.disks()...)...)
		}
	}
	return &contender{
		name: name, program: "borg", encrypted: encrypted,
		init: func(j *job) error {
			j.env = []string{"BORG_BASE_DIR=" + filepath.Join(j.dir, "home"), "BORG_PASSPHRASE=" + secret, "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes"}
			return run(j, "init", "-e", encryption, j.repo())
		},
		first: archive("day1"), second: archive("day2"),
		restore: func(j *job) (string, error) {
			out := filepath.Join(j.dir, "out")
			if err := os.MkdirAll(out, 0o700); err != nil {
				return "", err
			}
			path := strings.TrimPrefix(j.disk("web"), "/")
			return filepath.Join(out, path), j.runIn(out, "borg", "extract", "--sparse", j.repo()+"::day2", path)
		},
		verify: func(j *job) error { return run(j, "check", "--verify-data", j.repo()) },
		prune: func(j *job) error {
			if err := run(j, "delete", j.repo()+"::day1"); err != nil {
				return err
			}
			return j.more("borg", "compact", "--threshold", "0", j.repo())
		},
	}
}

func resticAndKopia() []*contender {
	restic := func(name, compression string) *contender {
		run := func(j *job, args ...string) error {
			return j.run("restic", append([]string{"-q", "--compression", compression, "-r", j.repo()}, args...)...)
		}
		backup := func(day string) func(*job) error {
			return func(j *job) error {
				return run(j, append([]string{"backup", "--tag", day, "--force", "--read-concurrency", "2"}, j.disks()...)...)
			}
		}
		return &contender{
			name: name, program: "restic", encrypted: true,
			init: func(j *job) error {
				j.env = []string{"RESTIC_PASSWORD=" + secret, "RESTIC_CACHE_DIR=" + filepath.Join(j.dir, "home")}
				return run(j, "init")
			},
			first: backup("day1"), second: backup("day2"),
			restore: func(j *job) (string, error) {
				out := filepath.Join(j.dir, "out")
				return filepath.Join(out, j.disk("web")), run(j, "restore", "latest", "--sparse", "--target", out, "--include", j.disk("web"))
			},
			verify: func(j *job) error { return run(j, "check", "--read-data") },
			prune: func(j *job) error {
				return run(j, "forget", "--keep-last", "1", "--group-by", "paths", "--prune", "--max-unused", "0")
			},
		}
	}
	kopia := func(name, compression string) *contender {
		run := func(j *job, args ...string) error {
			return j.run("kopia", append([]string{"--config-file=" + filepath.Join(j.dir, "kopia.config"), "--log-dir=" + filepath.Join(j.dir, "log"), "--no-progress"}, args...)...)
		}
		snapshot := func(j *job) error {
			return run(j, "snapshot", "create", "--parallel=2", filepath.Join(j.dir, "disks"))
		}
		return &contender{
			name: name, program: "kopia", encrypted: true,
			init: func(j *job) error {
				j.env = []string{"KOPIA_PASSWORD=" + secret, "KOPIA_CHECK_FOR_UPDATES=false"}
				if err := run(j, "repository", "create", "filesystem", "--path="+j.repo(), "--block-hash=BLAKE3-256", "--encryption=AES256-GCM-HMAC-SHA256", "--object-splitter=FIXED-1M",
					"--cache-directory="+filepath.Join(j.dir, "home")); err != nil {
					return err
				}
				return run(j, "policy", "set", "--global", "--compression="+compression)
			},
			first: snapshot, second: snapshot,
			restore: func(j *job) (string, error) {
				list, err := j.output("kopia", "--config-file="+filepath.Join(j.dir, "kopia.config"), "snapshot", "list", "--json")
				if err != nil {
					return "", err
				}
				var snaps []struct {
					RootEntry struct {
						Obj string `json:"obj"`
					} `json:"rootEntry"`
				}
				if err := json.Unmarshal(list, &snaps); err != nil || len(snaps) == 0 {
					return "", fmt.Errorf("kopia snapshot list: %d snapshots, %w", len(snaps), err)
				}
				out := filepath.Join(j.dir, "out.raw")
				return out, run(j, "restore", "--write-sparse-files", "--parallel=2", snaps[len(snaps)-1].RootEntry.Obj+"/web.raw", out)
			},
			verify: func(j *job) error {
				return run(j, "snapshot", "verify", "--verify-files-percent=100", "--parallel=2", "--file-parallelism=2")
			},
		}
	}
	return []*contender{
		restic("restic", "auto"), restic("restic, no compression", "off"),
		kopia("kopia, fixed 1 MiB, zstd-fastest", "zstd-fastest"), kopia("kopia, fixed 1 MiB, no compression", "none"),
	}
}

func desync() *contender {
	index := func(j *job, vm, day string) string { return filepath.Join(j.dir, vm+"-"+day+".caibx") }
	store := func(day string) func(*job) error {
		return func(j *job) error {
			j.last = usage{}
			for _, vm := range j.vms {
				if err := j.more("desync", "make", "-n", "2", "-s", j.repo(), index(j, vm, day), j.disk(vm)); err != nil {
					return err
				}
			}
			return nil
		}
	}
	return &contender{
		name: "desync", program: "desync",
		init:  func(j *job) error { return os.MkdirAll(j.repo(), 0o700) },
		first: store("day1"), second: store("day2"),
		restore: func(j *job) (string, error) {
			out := filepath.Join(j.dir, "out.raw")
			return out, j.run("desync", "extract", "-n", "2", "-s", j.repo(), index(j, "web", "day2"), out)
		},
		verify: func(j *job) error { return j.run("desync", "verify", "-n", "2", "-s", j.repo()) },
		prune: func(j *job) error {
			args := []string{"prune", "-y", "-s", j.repo()}
			for _, vm := range j.vms {
				args = append(args, index(j, vm, "day2"))
			}
			return j.run("desync", args...)
		},
	}
}

func qemuImg() *contender {
	return &contender{
		name: "qemu-img, compressed qcow2", program: "qemu-img",
		init: func(j *job) error { return os.MkdirAll(j.repo(), 0o700) },
		first: func(j *job) error {
			j.last = usage{}
			for _, vm := range j.vms {
				if err := j.more("qemu-img", "convert", "-c", "-W", "-m", "8", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", j.disk(vm), filepath.Join(j.repo(), vm+".qcow2")); err != nil {
					return err
				}
			}
			return nil
		},
		restore: func(j *job) (string, error) {
			out := filepath.Join(j.dir, "out.raw")
			return out, j.run("qemu-img", "convert", "-W", "-m", "8", "-f", "qcow2", "-O", "raw", filepath.Join(j.repo(), "web.qcow2"), out)
		},
	}
}

// found reports whether the contender can be run here.
func (c *contender) found() bool {
	_, err := exec.LookPath(c.program)
	return err == nil
}
