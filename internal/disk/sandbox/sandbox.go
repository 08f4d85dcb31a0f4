package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// DefaultUID is the numeric user and group of the tools, of nobody else on the machine.
const DefaultUID = 70999

// Box says how a tool is confined. The zero value is usable.
type Box struct {
	UID     int           // numeric user and group; 0 means DefaultUID
	Memory  int64         // bytes of address space; 0 means 2 GiB
	CPU     time.Duration // CPU time; 0 means 2 hours
	Timeout time.Duration // wall time; 0 means 6 hours
	MaxFile int64         // bytes that one output file may reach; 0 means 64 TiB
	Gentle  bool          // ask the tool to end (SIGTERM) when the context does, and kill it 5 seconds later
}

func (b Box) withDefaults() Box {
	if b.UID == 0 {
		b.UID = DefaultUID
	}
	if b.Memory == 0 {
		b.Memory = 2 << 30
	}
	if b.CPU == 0 {
		b.CPU = 2 * time.Hour
	}
	if b.Timeout == 0 {
		b.Timeout = 6 * time.Hour
	}
	if b.MaxFile == 0 {
		b.MaxFile = 64 << 40
	}
	return b
}

// Share lets the tools' group use the file, which must not be reachable by its path for others.
// A descriptor named by /proc/self/fd is opened anew, with the rights of the inode.
func (b Box) Share(f *os.File, write bool) error {
	mode := os.FileMode(0o640)
	if write {
		mode = 0o660
	}
	if err := f.Chown(0, b.withDefaults().UID); err != nil {
		return fmt.Errorf("give %s to the sandbox's group: %w", f.Name(), err)
	}
	return f.Chmod(mode)
}

// FD is the path by which a tool opens files[i] of Run.
func FD(i int) string { return "/proc/self/fd/" + strconv.Itoa(3+i) }

// IO is what else a tool gets; nil means /dev/null.
type IO struct {
	In  *os.File
	Out *os.File
}

// Run runs the tool until it ends, the context ends, or a limit is hit. The error carries what the tool said.
func (b Box) Run(ctx context.Context, tool IO, files []*os.File, argv ...string) error {
	b = b.withDefaults()
	ctx, cancel := context.WithTimeoutCause(ctx, b.Timeout,
		fmt.Errorf("%s took longer than %v", argv[0], b.Timeout))
	defer cancel()
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return fmt.Errorf("run %s: %w; install the package that has it (qemu-utils, xz-utils)", argv[0], err)
	}
	// prlimit and setpriv (util-linux, always there) set what os/exec can't, between fork and exec.
	args := []string{
		"--no-new-privs", "--inh-caps=-all", "--",
		"prlimit",
		"--as=" + strconv.FormatInt(b.Memory, 10),
		"--fsize=" + strconv.FormatInt(b.MaxFile, 10),
		"--cpu=" + strconv.FormatInt(int64(b.CPU/time.Second)+1, 10),
		"--core=0", "--nofile=256",
		"--", path,
	}
	cmd := exec.CommandContext(ctx, "setpriv", append(args, argv[1:]...)...)
	cmd.Dir = "/"
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.ExtraFiles = files
	if tool.In != nil {
		cmd.Stdin = tool.In
	}
	if tool.Out != nil {
		cmd.Stdout = tool.Out
	}
	said := &tail{}
	cmd.Stderr = said
	cmd.WaitDelay = 5 * time.Second
	if b.Gentle {
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Credential: &syscall.Credential{Uid: uint32(b.UID), Gid: uint32(b.UID)},
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	}
	// The death signal follows the thread that forked.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("run %s: %w", argv[0], context.Cause(ctx))
		}
		if errors.Is(err, os.ErrPermission) {
			return fmt.Errorf("run %s in a sandbox: %w; Drover needs root for this", argv[0], err)
		}
		if s := said.String(); s != "" {
			return fmt.Errorf("%s: %s (%w)", argv[0], s, err)
		}
		return fmt.Errorf("run %s: %w", argv[0], err)
	}
	return nil
}

// tail keeps the first few KiB of what a tool says.
type tail struct{ b bytes.Buffer }

func (t *tail) Write(p []byte) (int, error) {
	if room := 4096 - t.b.Len(); room > 0 {
		t.b.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (t *tail) String() string {
	s := strings.TrimSpace(strings.ReplaceAll(t.b.String(), "\n", "; "))
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return '?'
		}
		return r
	}, s)
}
