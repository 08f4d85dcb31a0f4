package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// procStat is what Drover reads of /proc/PID/stat (proc(5)).
type procStat struct {
	state     byte
	userTicks uint64
	sysTicks  uint64
	startTime uint64
	rssPages  int64
}

// clockTick is the unit of the times in /proc: USER_HZ is 100 on all Linux architectures Drover runs on.
const clockTick = time.Second / 100

func readProcStat(pid int) (procStat, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return procStat{}, err
	}
	return parseProcStat(string(b))
}

// parseProcStat finds the fields after the command's name, which may hold anything, parentheses too.
func parseProcStat(s string) (procStat, error) {
	_, rest, ok := cutLast(s, ") ")
	f := strings.Fields(rest)
	if !ok || len(f) < 22 || len(f[0]) != 1 {
		return procStat{}, errors.New("process statistics are not in the form of proc(5)")
	}
	out := procStat{state: f[0][0]}
	var errs [4]error
	out.userTicks, errs[0] = strconv.ParseUint(f[11], 10, 64)
	out.sysTicks, errs[1] = strconv.ParseUint(f[12], 10, 64)
	out.startTime, errs[2] = strconv.ParseUint(f[19], 10, 64)
	out.rssPages, errs[3] = strconv.ParseInt(f[21], 10, 64)
	return out, errors.Join(errs[:]...)
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// pidfd is a process that can be waited for and signalled without mistaking another for it.
type pidfd struct{ f *os.File }

// openPidfd opens a process. O_NONBLOCK lets Go's poller wait for it without a thread.
func openPidfd(pid int) (*pidfd, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return &pidfd{os.NewFile(uintptr(fd), "pidfd")}, nil
}

func (p *pidfd) signal(sig unix.Signal) error {
	raw, err := p.f.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	return errors.Join(err, serr)
}

// wait returns when the process has ended, or the pidfd is closed.
func (p *pidfd) wait() error {
	raw, err := p.f.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return err == nil && n == 1
	})
}

// openRunning opens the process of a state, if it is still the same one and alive. A nil pidfd means that it is not.
func openRunning(pid int, startTime uint64, boot string) (*pidfd, error) {
	now, err := bootID()
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	if pid <= 0 || boot != now {
		return nil, nil
	}
	fd, err := openPidfd(pid)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	// Read after the pidfd was opened: if the start time fits, the pidfd is of that very process.
	st, err := readProcStat(pid)
	if err != nil || st.startTime != startTime || st.state == 'Z' || st.state == 'X' {
		fd.f.Close()
		return nil, nil
	}
	return fd, nil
}

// killAndWait ends a process for good.
func killAndWait(ctx context.Context, fd *pidfd) error {
	if err := fd.signal(unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- fd.wait() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		fd.f.Close() // ends the waiter
		<-done
		return fmt.Errorf("wait for a killed process: %w", ctx.Err())
	}
}
