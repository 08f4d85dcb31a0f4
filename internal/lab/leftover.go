package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"drover/internal/host"
	"drover/internal/hostnet"
)

func tracesOf(state string) (shm, cgroup string) { return host.Traces(state) }

func shmOf(state string) string {
	shm, _ := host.Traces(state)
	return shm
}

// traces is what would be left of a lab if Down forgot something. It is made while the lab stands.
type traces struct {
	prefix string   // of namespaces
	paths  []string // that must not exist
	words  []string // that no process has in its command line
	dirs   []string // in which nothing is mounted
}

func (f *Fleet) traces() traces {
	t := traces{
		prefix: namespacePrefix(f.Name()),
		paths:  []string{f.dir, f.DataDir(), filepath.Join(f.Lab.cfg.Root, f.Name()+".lock")},
		words:  []string{f.dir + "/", f.DataDir() + "/"},
		dirs:   []string{f.dir, f.DataDir()},
	}
	for _, h := range f.hostNames() {
		shm, cgroup := host.Traces(f.StateDir(h))
		t.paths = append(t.paths, shm)
		t.words = append(t.words, shm+"/")
		if cgroup != "" {
			t.paths = append(t.paths, cgroup)
		}
	}
	return t
}

// left lists what there is of them.
func (t traces) left() ([]string, error) {
	var out []string
	spaces, err := hostnet.Namespaces(t.prefix)
	if err != nil {
		return nil, err
	}
	for _, ns := range spaces {
		out = append(out, "network namespace "+ns.Name)
	}
	for _, p := range t.paths {
		if _, err := os.Lstat(p); err == nil {
			out = append(out, p)
		} else if !os.IsNotExist(err) {
			return nil, err
		}
	}
	for _, d := range t.dirs {
		mounts, err := mountsUnder(d)
		if err != nil {
			return nil, err
		}
		for _, m := range mounts {
			out = append(out, "mount "+m)
		}
	}
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		line := strings.ReplaceAll(string(b), "\x00", " ")
		for _, w := range t.words {
			if strings.Contains(line, w) && filepath.Base(filepath.Dir(file)) != fmt.Sprint(os.Getpid()) {
				out = append(out, "process "+filepath.Base(filepath.Dir(file))+": "+line)
				break
			}
		}
	}
	return out, nil
}
