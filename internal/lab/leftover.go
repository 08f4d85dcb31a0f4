package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"drover/internal/host"
	"drover/internal/hostnet"
)

func tracesOf(state string) (shm, cgroup string) {
	shm, cgroup, _ = host.Traces(state)
	return shm, cgroup
}

func shmOf(state string) string {
	shm, _, _ := host.Traces(state)
	return shm
}

// traces is what would be left of a lab if Down forgot something.
type traces struct {
	prefix string   // of namespaces
	paths  []string // that must not exist
	words  []string // that no process has in its command line
	dirs   []string // in which nothing is mounted
}

// Left lists what there is of a lab: network namespaces, processes, mounts, cgroups, memory, files. After Down it is
// nothing. hosts are the names of its hosts; root is as in Config.
func Left(root, name string, hosts []string) ([]string, error) {
	if root == "" {
		root = DefaultRoot
	}
	dir, data := labDir(root, name), dataDir(root, name)
	t := traces{
		prefix: namespacePrefix(name),
		paths:  []string{dir, data, filepath.Join(root, name+".lock")},
		words:  []string{dir + "/", data + "/", "daemon " + name + " "},
		dirs:   []string{dir, data},
	}
	for _, h := range hosts {
		shm, cgroup, pins := host.Traces(filepath.Join(data, h))
		t.paths = append(t.paths, shm, pins)
		t.words = append(t.words, shm+"/")
		if cgroup != "" {
			t.paths = append(t.paths, cgroup)
		}
	}
	return t.left()
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
