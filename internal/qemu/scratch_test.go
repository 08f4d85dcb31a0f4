package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"drover/internal/hostnet"
)

// janitorEnv makes the test binary wait for the end of a test run, and end and delete what that left: a run may be killed.
const janitorEnv = "DROVER_QEMU_TEST_JANITOR"

// scratch is where everything that a run makes lies or what it is called by.
var scratch struct {
	dir string // machines; short, as the paths of sockets are
	ram string // their memory, in a tmpfs
}

// namespace and group are the names of what else a run makes.
func namespaceName(run int) string { return fmt.Sprintf("droverqemu-%d", run) }
func cgroupName(run int) string    { return fmt.Sprintf("drovertest-qemu-%d", run) }

func TestMain(m *testing.M) {
	if file := os.Getenv(agentEnv); file != "" {
		if err := agentMain(file); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		return
	}
	if run := os.Getenv(janitorEnv); run != "" {
		os.Exit(janitorMain(run))
	}
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "qemu tests:", err)
		code = 1
	}
	os.Exit(code)
}

func runTests(m *testing.M) (code int, err error) {
	if scratch.dir, err = os.MkdirTemp("", "dq"); err != nil {
		return 1, err
	}
	if scratch.ram, err = os.MkdirTemp("/dev/shm", "dq"); err != nil {
		return 1, err
	}
	if err := os.Chmod(scratch.ram, 0o711); err != nil {
		return 1, err
	}
	janitor := exec.Command("/proc/self/exe")
	janitor.Env = append(os.Environ(), janitorEnv+"="+strconv.Itoa(os.Getpid()), "TMPDIR="+scratch.dir, "RAMDIR="+scratch.ram)
	janitor.Stderr = os.Stderr
	janitor.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // what kills this run must not kill it
	life, err := janitor.StdinPipe()
	if err != nil {
		return 1, err
	}
	if err := janitor.Start(); err != nil {
		return 1, err
	}
	code = m.Run()
	life.Close()
	if err := janitor.Wait(); err != nil && code == 0 {
		return 1, fmt.Errorf("the tests have left something behind: %w", err)
	}
	return code, nil
}

// janitorMain waits for the end of the run, says what it left, and returns 1 if that was machines.
func janitorMain(run string) int {
	io.Copy(io.Discard, os.Stdin)
	pid, err := strconv.Atoi(run)
	if err != nil {
		return 1
	}
	dir, ram := os.Getenv("TMPDIR"), os.Getenv("RAMDIR")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	code := 0
	say := func(what string, err error) {
		code = 1
		fmt.Fprintln(os.Stderr, "qemu tests: left behind:", what, err)
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == stateFile {
			say(path, Clean(ctx, filepath.Dir(path)))
		}
		return err
	})
	if err != nil {
		say(dir, err)
	}
	if left, err := os.ReadDir(ram); err != nil || len(left) > 0 {
		say(ram, err)
	}
	os.RemoveAll(ram)
	os.RemoveAll(dir)
	if _, err := os.Stat("/run/netns/" + namespaceName(pid)); err == nil {
		say("namespace", hostnet.DeleteNamespace(namespaceName(pid)))
	}
	if root, err := cgroupRoot(); err == nil {
		if err := os.Remove(filepath.Join(root, cgroupName(pid))); !errors.Is(err, fs.ErrNotExist) {
			say("cgroup", err)
		}
	}
	return code
}

// TestJanitorEndsWhatAKilledRunLeft kills a test run in the middle of a test.
func TestJanitorEndsWhatAKilledRunLeft(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestHang$")
	cmd.Env = append(os.Environ(), hangEnv+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	var dir, ram string
	_, err = fmt.Fscanln(out, &pid, &dir, &ram)
	cmd.Process.Kill()
	io.Copy(io.Discard, out)
	cmd.Wait()
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(patience)
	for {
		_, err1 := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
		_, err2 := os.Stat(dir)
		_, err3 := os.Stat(ram)
		if err1 != nil && err2 != nil && err3 != nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after a killed run there are: process %d (%v), %s (%v), %s (%v)", pid, err1, dir, err2, ram, err3)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

const hangEnv = "DROVER_QEMU_TEST_HANG"

// TestHang is the run that TestJanitorEndsWhatAKilledRunLeft kills; by itself it only shows that the machine starts.
func TestHang(t *testing.T) {
	r := newRig(t, "q35")
	p := r.start(t, Attach{})
	if os.Getenv(hangEnv) == "" {
		return
	}
	fmt.Println(p.PID(), scratch.dir, scratch.ram)
	<-t.Context().Done()
}
