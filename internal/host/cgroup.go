package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"drover/internal/unwind"
)

// cgroupRoot finds where cgroup v2 is mounted (proc_pid_mountinfo(5)); empty where there is none.
func cgroupRoot() string {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		before, after, ok := strings.Cut(line, " - ")
		cols := strings.Fields(before)
		if ok && len(cols) >= 5 && strings.HasPrefix(after, "cgroup2 ") {
			return cols[4]
		}
	}
	return ""
}

func (a *agent) cgroupDir() string {
	root := cgroupRoot()
	if root == "" {
		return ""
	}
	return filepath.Join(root, "drover-"+a.tag())
}

// makeCgroup makes a VM's own cgroup. Without cgroup v2 it returns "".
func (a *agent) makeCgroup(u *unwind.Stack, uid string) (string, error) {
	base := a.cgroupDir()
	if base == "" {
		return "", nil
	}
	if err := os.Mkdir(base, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("make cgroup: %w", err)
	}
	// Controllers that are not there, or belong to v1, can't be had; accounting and killing work without.
	for _, c := range []string{"+cpu", "+memory", "+io", "+pids"} {
		if err := os.WriteFile(filepath.Join(base, "cgroup.subtree_control"), []byte(c), 0); err != nil {
			a.log.Debug("cgroup controller not there", "controller", c, "err", err)
		}
	}
	dir := filepath.Join(base, "vm-"+uid)
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return dir, nil
	}
	if err != nil {
		return "", fmt.Errorf("make cgroup: %w", err)
	}
	u.Push("remove cgroup "+dir, func(context.Context) error { return a.removeCgroup(uid) })
	return dir, nil
}

// removeCgroup removes a VM's cgroup; its processes have ended.
func (a *agent) removeCgroup(uid string) error {
	base := a.cgroupDir()
	if base == "" {
		return nil
	}
	err := os.Remove(filepath.Join(base, "vm-"+uid))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	// The last one takes the parent along; that it is not empty is no fault.
	_ = os.Remove(base)
	return err
}
