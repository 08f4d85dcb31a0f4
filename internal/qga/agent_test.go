package qga

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// forbidden are the commands that would change this machine: the real agent
// runs on it, not in a guest.
const forbidden = "guest-shutdown,guest-set-time,guest-suspend-disk,guest-suspend-ram,guest-suspend-hybrid," +
	"guest-fsfreeze-freeze,guest-fsfreeze-freeze-list,guest-fsfreeze-thaw,guest-fstrim,guest-set-vcpus," +
	"guest-set-memory-blocks,guest-set-user-password,guest-ssh-add-authorized-keys,guest-ssh-remove-authorized-keys"

// realAgent starts the real guest agent on a socket that listens already, passed
// the way systemd does.
func realAgent(t *testing.T) *Client {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "qga")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"`, "sh",
		"/usr/sbin/qemu-ga", "-m", "unix-listen", "-p", path, "-t", dir, "-b", forbidden)
	cmd.ExtraFiles = []*os.File{f}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	err = cmd.Start()
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	c, err := Dial(testContext(t), path, Options{})
	t.Cleanup(func() {
		if c != nil {
			c.Close()
		}
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
		if t.Failed() {
			t.Logf("qemu-ga: %s", log.String())
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRealAgent(t *testing.T) {
	c := realAgent(t)
	ctx := testContext(t)
	if err := c.Ping(ctx); err != nil {
		t.Fatal(err)
	}
	info, err := c.Info(ctx)
	if err != nil || info.Version == "" || !info.Commands["guest-exec"] || info.Commands["guest-shutdown"] {
		t.Fatalf("%+v, %v", info, err)
	}
	if err := c.Shutdown(ctx, PowerDown); !IsUnsupported(err) {
		t.Fatalf("disabled command: %v", err)
	}
	nics, err := c.NetworkInterfaces(ctx)
	if err != nil {
		t.Fatal(err)
	}
	loopback := false
	for _, i := range nics {
		for _, a := range i.Addrs {
			loopback = loopback || a == netip.MustParsePrefix("127.0.0.1/8")
		}
	}
	if !loopback {
		t.Errorf("no loopback in %+v", nics)
	}
	if o, err := c.OSInfo(ctx); err != nil || o.ID == "" || o.KernelRelease == "" {
		t.Errorf("%+v, %v", o, err)
	}
	want, _ := os.Hostname()
	if name, err := c.HostName(ctx); err != nil || name != want {
		t.Errorf("host name %q, %v", name, err)
	}
	if s, err := c.FreezeStatus(ctx); err != nil || s != Thawed {
		t.Errorf("status %q, %v", s, err)
	}
}

func TestRealAgentExec(t *testing.T) {
	c := realAgent(t)
	ctx := testContext(t)
	s, err := c.Run(ctx, Command{Path: "/bin/sh", Args: []string{"-c", "cat; echo $X >&2; exit 3"}, Env: []string{"X=y"}, Input: []byte("in\x00put")})
	if err != nil || s.Code != 3 || string(s.Out) != "in\x00put" || string(s.Err) != "y\n" || s.Truncated {
		t.Fatalf("%+v, %v", s, err)
	}
	s, err = c.Run(ctx, Command{Path: "/bin/sh", Args: []string{"-c", "kill -9 $$"}})
	if err != nil || s.Signal != 9 {
		t.Errorf("%+v, %v", s, err)
	}
	s, err = c.Run(ctx, Command{Path: "/bin/sh", Args: []string{"-c", "head -c 6000000 /dev/zero"}})
	if err != nil || !s.Truncated || len(s.Out) != maxOutput {
		t.Errorf("%d bytes, truncated %v, %v", len(s.Out), s.Truncated, err)
	}
	var refused *Error
	if _, err := c.Run(ctx, Command{Path: "/no/such"}); !errors.As(err, &refused) {
		t.Errorf("got %v", err)
	}
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if _, err := c.Run(short, Command{Path: "/bin/sleep", Args: []string{"5"}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if err := c.Ping(ctx); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestRealAgentFiles(t *testing.T) {
	c := realAgent(t)
	ctx := testContext(t)
	path := filepath.Join(t.TempDir(), "file")
	data := []byte(strings.Repeat("0123456789abcde\n", 50_000)) // several chunks
	if err := c.WriteFile(ctx, path, data); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, data) {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if b, err := c.ReadFile(ctx, path, len(data)); err != nil || !bytes.Equal(b, data) {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if b, err := c.ReadFile(ctx, path, 1000); !errors.Is(err, ErrTooLong) || !bytes.Equal(b, data[:1000]) {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	var refused *Error
	if _, err := c.ReadFile(ctx, path+"x", 10); !errors.As(err, &refused) {
		t.Fatalf("got %v", err)
	}
}

// TestRealAgentResync: whatever state a cut-off command leaves the agent in, the
// next command works.
func TestRealAgentResync(t *testing.T) {
	c := realAgent(t)
	for range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Microsecond)
		_, err := c.OSInfo(ctx)
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if err := c.Ping(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.conn.Write([]byte(`{"execute": "guest-pi`)); err != nil {
		t.Fatal(err)
	}
	c.synced = false
	if err := c.Ping(testContext(t)); err != nil {
		t.Fatal(err)
	}
}
