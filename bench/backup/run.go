package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// usage is what processes took.
type usage struct {
	took time.Duration // until the data is on the disk
	cpu  time.Duration
	peak int64 // bytes resident, of the largest process
}

// run starts a program and measures it alone.
func (j *job) run(program string, args ...string) error {
	j.last = usage{}
	return j.exec(j.dir, program, args...)
}

// runIn is run in another directory.
func (j *job) runIn(dir, program string, args ...string) error {
	j.last = usage{}
	return j.exec(dir, program, args...)
}

// more adds to what the step before took.
func (j *job) more(program string, args ...string) error { return j.exec(j.dir, program, args...) }

func (j *job) exec(dir, program string, args ...string) error {
	var out bytes.Buffer
	cmd := exec.CommandContext(j.ctx, program, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &out
	cmd.Env = append(append(os.Environ(), "HOME="+filepath.Join(j.dir, "home"), "TZ=UTC"), j.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := os.MkdirAll(filepath.Join(j.dir, "home"), 0o700); err != nil {
		return err
	}
	// A child's largest memory counts from its parent's at the fork (exec_mmap in the kernel): make ours small, and what was largest forgotten (proc(5), clear_refs).
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		return err
	}
	began := time.Now()
	err := cmd.Run()
	if err == nil {
		err = j.sync()
	}
	took := time.Since(began)
	if err != nil {
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		return fmt.Errorf("%s %s: %w: %s", filepath.Base(program), args[0], err, strings.Join(lines[max(0, len(lines)-5):], " | "))
	}
	j.last.took += took
	j.last.cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if r, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		j.last.peak = max(j.last.peak, r.Maxrss<<10)
	}
	return nil
}

// output runs a program outside the measured time.
func (j *job) output(program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(j.ctx, program, args...)
	cmd.Env = append(append(os.Environ(), "HOME="+filepath.Join(j.dir, "home")), j.env...)
	return cmd.Output()
}

// sync puts all that was written on the disk, so that nobody's writes are paid for by the next.
func (j *job) sync() error {
	d, err := os.Open(j.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

// size is what a directory takes on disk, in bytes of its files.
func size(dir string) (int64, error) {
	var n int64
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		i, err := e.Info()
		if err == nil {
			n += i.Size()
		}
		return err
	})
	return n, err
}

// same compares two files, holes and all.
func same(a, b string) error {
	x, err := os.Open(a)
	if err != nil {
		return err
	}
	defer x.Close()
	y, err := os.Open(b)
	if err != nil {
		return err
	}
	defer y.Close()
	p, q := make([]byte, 4<<20), make([]byte, 4<<20)
	for off := int64(0); ; {
		n, errX := x.ReadAt(p, off)
		m, errY := y.ReadAt(q, off)
		if n != m || !bytes.Equal(p[:n], q[:m]) {
			return fmt.Errorf("%s is not %s: they differ within 4 MiB of %d", b, a, off)
		}
		if errX != nil || errY != nil {
			if n == m && errX != nil && errY != nil {
				return nil
			}
			return errors.Join(errX, errY)
		}
		off += int64(n)
	}
}
