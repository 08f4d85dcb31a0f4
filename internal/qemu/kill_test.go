package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"drover/internal/guest"
	"drover/internal/qmp"
)

// run does the operation, and dies by SIGKILL in the middle of it.
func (o op) run(ctx context.Context, p *Process) error {
	sub := p.QMP().Subscribe(0, qmp.EventJobStatusChange, qmp.EventMigration)
	go func() {
		for e := range sub.C {
			var d struct{ Status string }
			if e.Decode(&d) == nil && d.Status == o.DieAt {
				unix.Kill(os.Getpid(), unix.SIGKILL)
			}
		}
	}()
	if o.Merge != "" {
		if err := p.Merge(ctx, "root", o.Merge); err != nil {
			return err
		}
	}
	if o.Memory != "" {
		mem, err := os.Create(o.Memory)
		if err != nil {
			return err
		}
		defer mem.Close()
		if err := p.Snapshot(ctx, o.Overlays, mem); err != nil {
			return err
		}
	}
	return errors.New("the operation was over before " + o.DieAt)
}

// fill writes a pattern to a part of an image.
func fill(t *testing.T, l Layer, pattern, from, mib int) {
	t.Helper()
	qemuIO(t, string(l.Format), l.Path, fmt.Sprintf("write -P %d %dM %dM", pattern, from, mib))
}

func qemuIO(t *testing.T, format, image string, cmds ...string) {
	t.Helper()
	args := []string{"-t", "unsafe", "-f", format}
	if format == "" {
		args = []string{"-r"}
	}
	for _, c := range cmds {
		args = append(args, "-c", c)
	}
	out, err := exec.Command("qemu-io", append(args, image)...).CombinedOutput()
	if err != nil || strings.Contains(string(out), "failed") {
		t.Fatalf("qemu-io %v %s: %v\n%s", args, image, err, out)
	}
}

// checkDisk reads a chain of layers as QEMU would: 32 MiB of 1, 32 MiB of 2, 16 MiB of 3, 32 MiB of 2.
func checkDisk(t *testing.T, layers []Layer) {
	t.Helper()
	node := "null"
	for _, l := range layers {
		backing := ""
		if l.Format == Qcow2 {
			backing = `,"backing":` + node
		}
		node = fmt.Sprintf(`{"driver":%q,"file":{"driver":"file","filename":%q}%s}`, l.Format, l.Path, backing)
	}
	qemuIO(t, "", "json:"+node, "read -P 1 0 32M", "read -P 2 32M 32M", "read -P 3 64M 16M", "read -P 2 80M 32M")
}

// TestAgentKilledInMerge kills agents in the middle of merges of a running machine. The next agent finishes the merge or takes it back; whatever
// it does, the chain in the state is QEMU's, and no byte is lost.
func TestAgentKilledInMerge(t *testing.T) {
	for _, c := range []struct{ layer, at string }{
		{"l1", "running"}, {"l1", "concluded"}, // in the middle of the chain
		{"l2", "running"}, {"l2", "ready"}, {"l2", "concluded"}, // the active layer
	} {
		t.Run(c.layer+" "+c.at, func(t *testing.T) {
			r := newRig(t, guest.Q35)
			r.spec.Kernel = nil // the guest's part is not in this
			layers := []Layer{r.image(t, "l0", Raw, "128M"), r.image(t, "l1", Qcow2, "128M"), r.image(t, "l2", Qcow2, "128M")}
			fill(t, layers[0], 1, 0, 64)
			fill(t, layers[1], 2, 32, 80)
			fill(t, layers[2], 3, 64, 16)
			r.spec.Disks = []Disk{{ID: "root", Bus: guest.VirtioBlk, Layers: layers}}
			p := r.afterDeath(t, op{Merge: c.layer, DieAt: c.at})
			ctx := testContext(t)
			checkGraph(t, p)
			left := p.Spec().Disks[0].Layers
			t.Logf("%d of 3 layers are left", len(left))
			// A job that was running may have ended by itself; a ready one waits, and a concluded one has merged.
			if c.at == "ready" && len(left) != 3 || c.at == "concluded" && len(left) != 2 {
				t.Errorf("layers after a kill at %q: %v", c.at, left)
			}
			for i := len(left) - 1; i > 0; i-- {
				if err := p.Merge(ctx, "root", left[i].ID); err != nil {
					t.Fatalf("a merge after adoption: %v", err)
				}
			}
			checkGraph(t, p)
			if _, err := p.Quit(ctx); err != nil {
				t.Fatal(err)
			}
			checkDisk(t, layers[:1])
		})
	}
}

// TestAgentKilledInSnapshot kills agents while they save memory. The machine runs on under the next agent, on layers that both know.
func TestAgentKilledInSnapshot(t *testing.T) {
	for _, at := range []string{"setup", "active", "completed"} {
		t.Run(at, func(t *testing.T) {
			r := newRig(t, guest.Q35)
			r.spec.Kernel = nil
			base := r.image(t, "l0", Qcow2, "16M")
			r.spec.Disks = []Disk{{ID: "root", Bus: guest.VirtioBlk, Layers: []Layer{base}}}
			memory := filepath.Join(r.dir, "memory")
			p := r.afterDeath(t, op{Overlays: map[string]Layer{"root": r.image(t, "l1", Qcow2, "16M")}, Memory: memory, DieAt: at})
			ctx := testContext(t)
			checkGraph(t, p)
			t.Logf("%d layers after", len(p.Spec().Disks[0].Layers))
			if st, err := p.QMP().QueryStatus(ctx); err != nil || !st.Running {
				t.Errorf("the machine is %v, %v", st, err)
			}
			mem, err := os.Create(memory)
			if err != nil {
				t.Fatal(err)
			}
			defer mem.Close()
			if err := p.Snapshot(ctx, map[string]Layer{"root": r.image(t, "l2", Qcow2, "16M")}, mem); err != nil {
				t.Errorf("a snapshot after adoption: %v", err)
			}
			checkGraph(t, p)
			if st, err := p.QMP().QueryStatus(ctx); err != nil || !st.Running {
				t.Errorf("the machine is %v, %v", st, err)
			}
		})
	}
}

// afterDeath has an agent start the machine and die, and adopts the machine.
func (r *rig) afterDeath(t *testing.T, o op) *Process {
	t.Helper()
	cmd, _ := runAgent(t, agentJob{Spec: r.spec, Dir: r.opt.Dir, UID: testUID, GID: testUID, Do: o})
	err := cmd.Wait()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
		t.Fatalf("the agent was not killed at %q: %v", o.DieAt, err)
	}
	p, err := Adopt(testContext(t), Options{Dir: r.opt.Dir, Log: r.opt.Log})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// checkGraph holds the state against QEMU: the same layers, the same active one, nothing under way.
func checkGraph(t *testing.T, p *Process) {
	t.Helper()
	ctx := testContext(t)
	st, err := readState(p.opt.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if st.Pending != nil {
		t.Errorf("still pending: %+v", st.Pending)
	}
	var want []string
	for _, l := range st.Spec.Disks[0].Layers {
		want = append(want, l.ID, fileOf(l.ID))
	}
	nodes, err := p.QMP().QueryNamedBlockNodes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, n := range nodes {
		got = append(got, n.NodeName)
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("QEMU has the nodes %v, the state %v", got, want)
	}
	blocks, err := p.QMP().QueryBlock(ctx)
	top := st.Spec.Disks[0].Layers[len(st.Spec.Disks[0].Layers)-1].ID
	if err != nil || !slices.ContainsFunc(blocks, func(b qmp.BlockDevice) bool { return b.Inserted != nil && b.Inserted.NodeName == top }) {
		t.Errorf("no disk writes to %s: %v", top, err)
	}
	if jobs, err := p.QMP().QueryJobs(ctx); err != nil || len(jobs) != 0 {
		t.Errorf("jobs: %v %v", jobs, err)
	}
}
