package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process is one that the lab recorded: a pid alone is used again by the kernel,
// with the start time it is not.
type Process struct {
	Name  string `json:"name"`
	Node  string `json:"node"`
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot, proc(5)
}

var errGone = errors.New("process is gone")

// startTime reads when a process was started. The error is errGone also for a
// zombie, then with its start time.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return 0, errGone
	}
	if err != nil {
		return 0, fmt.Errorf("process %d: %w", pid, err)
	}
	return parseStat(b)
}

// parseStat takes state and start time, fields 3 and 22, from behind the command
// name, which may hold anything.
func parseStat(b []byte) (uint64, error) {
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return 0, fmt.Errorf("process status %q: no command name", b)
	}
	fields := strings.Fields(string(b[i+1:]))
	if len(fields) < 20 {
		return 0, fmt.Errorf("process status %q: %d fields after the name", b, len(fields))
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err == nil && (fields[0] == "Z" || fields[0] == "X") {
		err = errGone
	}
	return start, err
}

func (p Process) alive() bool {
	st, err := startTime(p.PID)
	return err == nil && st == p.Start
}

// kill ends the process at once and waits until it is gone. still is asked again
// when the pid cannot be used anew any more.
func kill(ctx context.Context, pid int, still func() bool) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if !still() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	return waitExit(ctx, pid, fd)
}

// waitExit waits until the process behind a pidfd has ended.
func waitExit(ctx context.Context, pid, fd int) error {
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 100)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", pid, err)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("wait for process %d: %w", pid, context.Cause(ctx))
		}
	}
}

// inNamespaces lists the processes, but this one, whose network namespace is one
// of those inodes. Processes that may not be looked at are none of ours.
func inNamespaces(inodes map[uint64]bool) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var out []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err == nil && pid != os.Getpid() && isIn(pid, inodes) {
			out = append(out, pid)
		}
	}
	return out, nil
}

func isIn(pid int, inodes map[uint64]bool) bool {
	var st unix.Stat_t
	return unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &st) == nil && inodes[st.Ino]
}

// killIn ends all processes in those namespaces, and those that they start
// meanwhile.
func killIn(ctx context.Context, inodes map[uint64]bool) error {
	for {
		pids, err := inNamespaces(inodes)
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			if err := kill(ctx, pid, func() bool { return isIn(pid, inodes) }); err != nil {
				return err
			}
		}
		if ctx.Err() != nil {
			return fmt.Errorf("processes %v keep coming: %w", pids, context.Cause(ctx))
		}
	}
}

// killTimeout bounds the end of all of a lab's processes.
const killTimeout = 20 * time.Second

func procDir(dir string) string { return filepath.Join(dir, "proc") }

// record writes down a process that Down is to end.
func record(dir string, p Process) error {
	return writeJSON(filepath.Join(procDir(dir), p.Name+".json"), p)
}

// freeName checks that a process may have that name.
func freeName(dir, name string) error {
	if !nodeName.MatchString(name) {
		return fmt.Errorf("process name %q: want letters, digits and dashes, at most 32, beginning with a letter", name)
	}
	procs, err := recorded(dir)
	if err != nil {
		return err
	}
	for _, p := range procs {
		if p.Name == name && p.alive() {
			return fmt.Errorf("process %s runs already on %s with pid %d: end it first", name, p.Node, p.PID)
		}
	}
	return nil
}

// recorded lists what was recorded. A half-written record is left out: what it
// would name is in one of the lab's namespaces.
func recorded(dir string) ([]Process, error) {
	files, err := filepath.Glob(filepath.Join(procDir(dir), "*.json"))
	if err != nil {
		return nil, err
	}
	var out []Process
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("recorded process: %w", err)
		}
		var p Process
		if json.Unmarshal(b, &p) == nil && p.PID > 1 {
			out = append(out, p)
		}
	}
	return out, nil
}
