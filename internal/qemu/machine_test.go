package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"drover/internal/accel"
	"drover/internal/guest"
)

// patience bounds everything in a test with a guest: software emulation on a busy machine is slow.
const patience = 5 * time.Minute

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// testUID is of nobody else on a Debian machine: between the dynamic and the reserved ranges.
const testUID = 61990

// rig is a directory for one test machine.
type rig struct {
	dir  string
	opt  Options
	spec Spec
}

// newRig makes a spec for a guest that boots testKernel with the modules.
func newRig(t *testing.T, m guest.Machine, modules ...string) *rig {
	t.Helper()
	// Unix socket paths are short, so not t.TempDir.
	dir, err := os.MkdirTemp(scratch.dir, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ram, err := os.MkdirTemp(scratch.ram, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(ram, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left, err := os.ReadDir(ram); err != nil || len(left) > 0 {
			t.Errorf("memory is left behind: %v %v", left, err)
		}
		os.RemoveAll(ram)
	})
	s := small(m)
	s.Memory = Memory{MiB: 192, Path: filepath.Join(ram, "ram")}
	s.Kernel = &Kernel{Image: kernel(t).image, Cmdline: "console=ttyS0 quiet panic=-1 nokaslr mitigations=off no_timer_check"}
	if m == guest.MicroVM {
		s.Kernel.Cmdline += fmt.Sprintf(" tsc_early_khz=%d", tscKHz(t))
	}
	if modules != nil {
		s.Kernel.Initrd = buildInitrd(t, modules...)
	}
	return &rig{dir: dir, spec: s, opt: Options{Dir: filepath.Join(dir, "run"), UID: testUID, GID: testUID, OOM: 200, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}}
}

var tscOnce = sync.OnceValues(func() (int64, error) { return accel.TSCKHz(context.Background()) })

// tscKHz is what a host tells Linux on a microvm.
func tscKHz(t *testing.T) int64 {
	t.Helper()
	khz, err := tscOnce()
	if err != nil {
		t.Fatal(err)
	}
	return khz
}

// image makes a new image as a disk.
func (r *rig) image(t *testing.T, id string, f Format, size string, args ...string) Layer {
	t.Helper()
	path := filepath.Join(r.dir, id+"."+string(f))
	cmd := exec.Command("qemu-img", append(append([]string{"create", "-q", "-f", string(f)}, args...), path, size)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v\n%s", err, out)
	}
	return Layer{ID: id, Path: path, Format: f}
}

// start starts the machine, without letting it run, and ends it with the test.
func (r *rig) start(t *testing.T, a Attach) *Process {
	t.Helper()
	p, err := Start(testContext(t), r.spec, a, r.opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if _, err := p.Kill(ctx); err != nil {
			t.Errorf("kill: %v", err)
		}
		if err := Clean(ctx, r.opt.Dir); err != nil {
			t.Errorf("clean: %v", err)
		}
	})
	return p
}

// shell talks to guestInit.
type shell struct {
	conn net.Conn
	in   *bufio.Reader
	n    int
}

// boot runs the machine and waits for its shell.
func boot(t *testing.T, p *Process) *shell {
	t.Helper()
	if err := p.QMP().Cont(testContext(t)); err != nil {
		t.Fatal(err)
	}
	s := &shell{conn: p.Serial(), in: newReader(p.Serial())}
	s.until(t, "@ready")
	return s
}

func (s *shell) until(t *testing.T, mark string) (out, status string) {
	t.Helper()
	s.conn.SetReadDeadline(time.Now().Add(patience))
	var b strings.Builder
	for {
		line, err := s.in.ReadString('\n')
		if err != nil {
			t.Fatalf("console before %s: %v; the guest said:\n%s%s", mark, err, b.String(), line)
		}
		line = strings.TrimRight(line, "\r\n")
		if i := strings.Index(line, mark+" "); i >= 0 {
			b.WriteString(line[:i])
			return b.String(), line[i+len(mark)+1:]
		}
		b.WriteString(line + "\n")
	}
}

// try runs a command in the guest.
func (s *shell) try(t *testing.T, cmd string) (string, error) {
	t.Helper()
	s.n++
	if _, err := fmt.Fprintf(s.conn, "%d %s\n", s.n, cmd); err != nil {
		t.Fatal(err)
	}
	out, status := s.until(t, fmt.Sprintf("@%d", s.n))
	if status != "0" {
		return out, errors.New("status " + status)
	}
	return out, nil
}

func (s *shell) run(t *testing.T, cmd string) string {
	t.Helper()
	out, err := s.try(t, cmd)
	if err != nil {
		t.Fatalf("in the guest: %s: %v\n%s", cmd, err, out)
	}
	return strings.TrimSpace(out)
}

func newReader(c net.Conn) *bufio.Reader { return bufio.NewReader(c) }
