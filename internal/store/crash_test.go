package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	droverv1 "drover/api/drover/v1"
	"drover/internal/store/storetest"
)

// envWriter makes the test binary, run again, a process that writes; it is the data directory.
const envWriter = "DROVER_TEST_STORE_WRITER"

func TestMain(m *testing.M) {
	storetest.MaybeMember()
	if dir := os.Getenv(envWriter); dir != "" {
		fmt.Fprintln(os.Stderr, writeForever(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// writeForever writes and says each write on standard output once it is acknowledged.
func writeForever(dir string) error {
	ctx := context.Background()
	s, err := Open(ctx, Options{Dir: dir, Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))})
	if err != nil {
		return err
	}
	vms, err := NewCollection(s, Kind[*droverv1.VM]{Name: "vm"})
	if err != nil {
		return err
	}
	counter, err := vms.Get(ctx, "counter")
	if errors.Is(err, ErrNotFound) {
		counter = newVM("counter", 0)
		err = vms.Create(ctx, counter)
	}
	if err != nil {
		return err
	}
	for {
		counter.Spec.Cpus++
		vm := newVM(fmt.Sprintf("vm-%06d", counter.Spec.Cpus), counter.Spec.Cpus)
		if _, err := s.Txn(ctx, vms.UpdateOp(counter), vms.CreateOp(vm)); err != nil {
			return err
		}
		if _, err := fmt.Println(vm.Spec.Cpus, vm.Meta.Revision); err != nil {
			return err
		}
	}
}

// TestKilledWriterLosesNothing kills a process in the middle of its writes, several times over the same directory.
func TestKilledWriterLosesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	acked := map[int32]int64{}
	for round := range 3 {
		cmd := exec.CommandContext(testContext(t), os.Args[0])
		cmd.Env = append(os.Environ(), envWriter+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		in, target := bufio.NewScanner(out), len(acked)+40+30*round
		for in.Scan() {
			var n int32
			var rev int64
			if _, err := fmt.Sscan(in.Text(), &n, &rev); err != nil {
				break // a line that the kill cut
			}
			acked[n] = rev
			if len(acked) == target {
				if err := cmd.Process.Kill(); err != nil {
					t.Error(err)
				}
			}
		}
		_ = cmd.Wait() // killed
		if len(acked) < target {
			t.Fatalf("round %d: the writer ended by itself after %d writes", round, len(acked))
		}
	}
	s := openTest(t, dir)
	list, _, err := vmsOf(t, s).List(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	found := map[int32]int64{}
	for _, vm := range list[1:] {
		found[vm.Spec.Cpus] = vm.Meta.Revision
	}
	for n, rev := range acked {
		if found[n] != rev {
			t.Errorf("write %d was acknowledged at revision %d, and is found at %d", n, rev, found[n])
		}
	}
	// Both halves of each transaction, also of one that was not acknowledged.
	if counter := list[0]; counter.Meta.Name != "counter" || int(counter.Spec.Cpus) != len(found) {
		t.Errorf("the counter is %v, objects are %d", counter, len(found))
	}
	t.Logf("%d writes acknowledged, %d found", len(acked), len(found))
}
