package lab

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
)

// NewFleet brings up a fleet for a test, as New does a lab. At the end of the test the lab goes down, and whatever is
// left of it then fails the test. c.Drover must be set, or the test's binary must be one that knows the roles.
func NewFleet(t T, c FleetConfig) *Fleet {
	t.Helper()
	if c.Name == "" {
		c.Name = "t" + strings.ToLower(rand.Text()[:9])
	}
	if c.Root == "" {
		root, err := os.MkdirTemp("/tmp", "lab") // short enough for sockets
		if err != nil {
			t.Fatalf("lab: %v", err)
		}
		t.Cleanup(func() {
			if err := os.RemoveAll(root); err != nil {
				t.Fatalf("lab: %v", err)
			}
		})
		c.Root = filepath.Join(root, "r")
	}
	if c.HostTimeout == 0 {
		c.HostTimeout = 3 * time.Second
	}
	c.Config = New(t, c.Config).cfg
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	f, err := UpFleet(ctx, c)
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	t.Cleanup(func() { f.NothingLeft(t) })
	return f
}

// NothingLeft takes the lab down and fails the test for what is left of it.
func (f *Fleet) NothingLeft(t T) {
	t.Helper()
	f.Close()
	if failed, ok := t.(interface{ Failed() bool }); ok && failed.Failed() {
		f.logs(t)
	}
	ctx, cancel := context.WithTimeout(context.Background(), upTimeout)
	defer cancel()
	if err := f.Down(ctx); err != nil {
		t.Fatalf("lab: %v", err)
	}
	left, err := Left(f.Lab.cfg.Root, f.Name(), f.hostNames())
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	if len(left) > 0 {
		t.Fatalf("left over of lab %s:\n%s", f.Name(), strings.Join(left, "\n"))
	}
}

// logs shows the ends of the processes' logs.
func (f *Fleet) logs(t T) {
	for _, node := range append([]string{nodeManager}, f.hostNames()...) {
		b, err := os.ReadFile(f.LogPath(node))
		if err != nil {
			t.Logf("%v", err)
			continue
		}
		lines := strings.Split(string(b), "\n")
		t.Logf("log of %s:\n%s", node, strings.Join(lines[max(0, len(lines)-60):], "\n"))
	}
}

// NoVMs deletes all VMs as they are, waits for their end, and fails the test for what is left of them on the hosts.
func (f *Fleet) NoVMs(ctx context.Context, t T) {
	t.Helper()
	if err := f.DeleteVMs(ctx); err != nil {
		t.Fatalf("%v", err)
	}
	// A host forgets a VM last, when the manager has heard that nothing of it is left.
	err := retry(ctx, func() error {
		left, err := f.Leftovers()
		if err == nil && len(left) > 0 {
			err = errors.New(strings.Join(left, "\n"))
		}
		return err
	})
	if err != nil {
		t.Fatalf("left over of VMs that were deleted:\n%v", err)
	}
}

// DeleteVMs deletes all VMs, linked clones before what they stand on, and waits until they are gone.
func (f *Fleet) DeleteVMs(ctx context.Context) error {
	for {
		list, err := f.API.VM.List(ctx, &v1.ListRequest{PageSize: 1000})
		if err != nil {
			return fmt.Errorf("delete all VMs: %w", err)
		}
		if len(list.GetVms()) == 0 {
			return nil
		}
		var failed []error
		marked := 0
		for _, vm := range list.GetVms() {
			name := vm.GetMeta().GetName()
			if vm.GetMeta().GetDeleteTime() == nil {
				if _, err := f.API.VM.Delete(ctx, &v1.DeleteRequest{Name: name, Force: true}); err != nil {
					failed = append(failed, err)
					continue
				}
			}
			marked++
		}
		if marked == 0 {
			return fmt.Errorf("delete all VMs: %w", errors.Join(failed...))
		}
		// One that is gone may make room for another to be deleted.
		for _, vm := range list.GetVms() {
			if vm, err := f.API.VM.Get(ctx, &v1.GetRequest{Name: vm.GetMeta().GetName()}); err == nil && vm.GetMeta().GetDeleteTime() != nil {
				if _, err := f.AwaitVM(ctx, vm.GetMeta().GetName(), Gone); err != nil {
					return fmt.Errorf("delete all VMs: %w", err)
				}
			}
		}
	}
}

// BuildDrover builds the program from this source tree for tests, and returns how to run it and how to remove it. The
// environment's DROVER_BIN is taken instead if it is set.
func BuildDrover(ctx context.Context) (argv []string, remove func(), err error) {
	if bin := os.Getenv("DROVER_BIN"); bin != "" {
		return []string{bin}, func() {}, nil
	}
	dir, err := os.MkdirTemp("", "drover-bin")
	if err != nil {
		return nil, nil, err
	}
	remove = func() { os.RemoveAll(dir) }
	bin := filepath.Join(dir, "drover")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", bin, "drover/cmd/drover").CombinedOutput(); err != nil {
		remove()
		return nil, nil, fmt.Errorf("build drover: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return []string{bin}, remove, nil
}
