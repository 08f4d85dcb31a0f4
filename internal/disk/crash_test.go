package disk

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// operations are done by a process that is killed at each of its steps. The datastore has VM a: blocks 1..4 = 11..14,
// snapshots s1 (11) and s2 (11 12), on a blank disk, and VM c, a linked clone of s1 with block 5 = 15.
var operations = map[string]func(ctx context.Context, s *Store) error{
	"create": func(ctx context.Context, s *Store) error {
		return s.CreateDisk(ctx, "new", "root", Spec{Size: 8 * block})
	},
	"second disk": func(ctx context.Context, s *Store) error {
		return s.CreateDisk(ctx, "a", "data", Spec{Size: 8 * block})
	},
	"snapshot":     func(ctx context.Context, s *Store) error { return s.Snapshot(ctx, "a", "s3") },
	"revert":       func(ctx context.Context, s *Store) error { return s.Revert(ctx, "a", "s1") },
	"grow":         func(ctx context.Context, s *Store) error { return s.Grow(ctx, "a", "root", 12*block) },
	"linked clone": func(ctx context.Context, s *Store) error { return s.LinkedClone(ctx, "a", "s2", "new") },
	"full clone":   func(ctx context.Context, s *Store) error { return s.FullClone(ctx, "a", "", "new") },
	"delete vm":    func(ctx context.Context, s *Store) error { return s.DeleteVM(ctx, "c") },
	"delete disk":  func(ctx context.Context, s *Store) error { return s.DeleteDisk(ctx, "a", "root") },
	"replace":      replaceRoot,
	"delete snapshot": func(ctx context.Context, s *Store) error {
		if _, err := s.DeleteSnapshot(ctx, "a", "s2", false); err != nil {
			return err
		}
		return s.Compact(ctx, "a")
	},
}

// TestMain lets the test binary be the process that is killed.
func TestMain(m *testing.M) {
	dir := os.Getenv("DISK_CRASH_DIR")
	if dir == "" {
		os.Exit(m.Run())
	}
	left, err := strconv.Atoi(os.Getenv("DISK_CRASH_STEP"))
	if err != nil {
		panic(err)
	}
	s, err := Open(dir, Options{step: func(string) {
		if left--; left < 0 {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}})
	if err == nil {
		err = operations[os.Getenv("DISK_CRASH_OP")](context.Background(), s)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	os.Exit(0)
}

// state is everything that a user can see of the datastore.
func state(t *testing.T, s *Store) string {
	t.Helper()
	var b strings.Builder
	for _, vm := range s.VMs() {
		disks, err := s.Disks(vm)
		must(t, err)
		for _, d := range []string{"data", "root"} {
			if _, ok := disks[d]; ok {
				fmt.Fprintf(&b, "%s/%s=%v ", vm, d, bytes.TrimRight(active(t, s, vm, d), "\x00"))
			}
		}
		snaps, err := s.Snapshots(vm)
		must(t, err)
		for _, sn := range snaps {
			fmt.Fprintf(&b, "%s@%s=%v ", vm, sn.Name, bytes.TrimRight(frozen(t, s, vm, sn.Name, "root"), "\x00"))
		}
	}
	return b.String()
}

func TestKillAtEveryStep(t *testing.T) {
	base := t.TempDir()
	s := openStore(t, base)
	ctx := t.Context()
	must(t, s.CreateDisk(ctx, "a", "root", Spec{Size: 8 * block}))
	write(t, s, "a", "root", 1, 11)
	must(t, s.Snapshot(ctx, "a", "s1"))
	must(t, s.LinkedClone(ctx, "a", "s1", "c"))
	write(t, s, "c", "root", 5, 15)
	write(t, s, "a", "root", 2, 12)
	must(t, s.Snapshot(ctx, "a", "s2"))
	write(t, s, "a", "root", 3, 13)
	before := state(t, s)
	s.Close()
	for name, op := range operations {
		t.Run(name, func(t *testing.T) {
			after := ""
			for step := -1; ; step++ {
				dir := filepath.Join(t.TempDir(), "ds")
				run(t, "cp", "-a", base, dir)
				killed := false
				if step < 0 { // what it looks like when nothing goes wrong
					s := openStore(t, dir)
					must(t, op(t.Context(), s))
					after = state(t, s)
					s.Close()
					continue
				}
				cmd := exec.CommandContext(t.Context(), os.Args[0])
				cmd.Env = append(os.Environ(), "DISK_CRASH_DIR="+dir, "DISK_CRASH_OP="+name, "DISK_CRASH_STEP="+strconv.Itoa(step))
				out, err := cmd.CombinedOutput()
				if err != nil {
					if st, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || st.Signal() != syscall.SIGKILL {
						t.Fatalf("step %d: %v: %s", step, err, out)
					}
					killed = true
				}
				s := openStore(t, dir)
				got := state(t, s)
				if got != before && got != after {
					t.Fatalf("killed at step %d:\n got %s\nwant %s\n or  %s", step, got, before, after)
				}
				for _, vm := range s.VMs() {
					m, err := s.manifest(vm)
					must(t, err)
					if n := fileCount(t, s, vm); n != len(m.files()) {
						t.Errorf("killed at step %d: VM %s has %d files, its manifest %d", step, vm, n, len(m.files()))
					}
				}
				if n := fileCount(t, s, "new"); n > 0 && !strings.Contains(got, "new/") {
					t.Errorf("killed at step %d: %d files of an unfinished VM are left", step, n)
				}
				// The next start goes on: the operation can be done, or is done.
				if got == before && before != after {
					must(t, op(t.Context(), s))
				} else if name == "delete snapshot" || name == "grow" {
					must(t, s.Compact(t.Context(), "a"))
				}
				if got := state(t, s); got != after {
					t.Errorf("done after a kill at step %d:\n got %s\nwant %s", step, got, after)
				}
				s.Close()
				if !killed {
					if step < 2 {
						t.Errorf("the operation has only %d steps", step)
					}
					return
				}
			}
		})
	}
}

// watchFile has something to read when the file is written to.
func watchFile(t *testing.T, path string) *os.File {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	must(t, err)
	_, err = unix.InotifyAddWatch(fd, path, unix.IN_MODIFY)
	must(t, err)
	return os.NewFile(uintptr(fd), "inotify")
}

// TestCancelDuringMerge ends qemu-img in the middle of a commit of many blocks, at different moments.
func TestCancelDuringMerge(t *testing.T) {
	s := openStore(t, t.TempDir())
	const blocks = 512
	must(t, s.CreateDisk(t.Context(), "a", "root", Spec{Size: blocks * block}))
	fill := func(from, to int, v byte) {
		chain, err := s.Chain("a", "root")
		must(t, err)
		run(t, "qemu-io", "-c", fmt.Sprintf("write -P %d %d %d", v, from*block, (to-from)*block), graph(s, chain))
	}
	fill(0, 300, 1)
	must(t, s.Snapshot(t.Context(), "a", "s1"))
	fill(200, blocks, 2)
	want := active(t, s, "a", "root")
	if _, err := s.DeleteSnapshot(t.Context(), "a", "s1", false); err != nil {
		t.Fatal(err)
	}
	layer, err := s.Chain("a", "root")
	must(t, err)
	cancelled := 0
	for range 20 {
		todo, err := s.Merges("a", false)
		must(t, err)
		if len(todo) == 0 {
			break
		}
		ctx, cancel := context.WithCancel(t.Context())
		written := make(chan struct{})
		watch := watchFile(t, filepath.Join(s.root.Name(), layer[1].File))
		go func() { watch.Read(make([]byte, 4096)); close(written) }()
		done := make(chan error, 1)
		go func() {
			done <- s.MergeOffline(ctx, todo[0])
			watch.Close()
		}()
		// The first write to the base is the event: the commit is then under way. If there is none, the merge ends.
		<-written
		cancel()
		if err := <-done; err != nil {
			cancelled++
		}
		if got := active(t, s, "a", "root"); !bytes.Equal(got, want) {
			t.Fatalf("after a cut merge the disk differs")
		}
	}
	must(t, s.Compact(t.Context(), "a"))
	if got := active(t, s, "a", "root"); !bytes.Equal(got, want) || fileCount(t, s, "a") != 2 {
		t.Errorf("after the merge: %d files", fileCount(t, s, "a"))
	}
	if cancelled == 0 {
		t.Error("no merge was cut")
	}
}
