package disk

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// machine is a real QEMU without a CPU that has a disk open; it plays the running VM.
type machine struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner

	said string
}

func boot(t *testing.T, s *Store, vm string) *machine {
	t.Helper()
	chain, err := s.Chain(vm, "root")
	must(t, err)
	var g any
	for _, l := range slices.Backward(chain) {
		g = node(s, l, g)
	}
	m := &machine{t: t, cmd: exec.CommandContext(t.Context(), "qemu-system-x86_64", "-machine", "none", "-nodefaults",
		"-display", "none", "-qmp", "stdio", "-blockdev", string(mustJSON(t, g)))}
	m.in, err = m.cmd.StdinPipe()
	must(t, err)
	out, err := m.cmd.StdoutPipe()
	must(t, err)
	m.out = bufio.NewScanner(out)
	must(t, m.cmd.Start())
	t.Cleanup(m.kill)
	timer := time.AfterFunc(time.Minute, func() { m.cmd.Process.Kill() })
	t.Cleanup(func() { timer.Stop() })
	m.do("qmp_capabilities", map[string]any{})
	return m
}

func node(s *Store, l Layer, backing any) map[string]any {
	n := map[string]any{"driver": l.Format, "node-name": "n" + l.ID,
		"file": map[string]any{"driver": "file", "filename": filepath.Join(s.root.Name(), l.File)}}
	if l.Format == "qcow2" {
		n["backing"] = backing
	}
	return n
}

func (m *machine) kill() {
	if m.cmd.ProcessState == nil {
		m.cmd.Process.Kill()
		m.cmd.Wait()
	}
}

// until reads messages until one has the key.
func (m *machine) until(want func(r map[string]any) bool) map[string]any {
	m.t.Helper()
	for m.out.Scan() {
		if !bytes.HasPrefix(m.out.Bytes(), []byte("{")) {
			m.said += m.out.Text() + "\n" // qemu-io prints beside the protocol
			continue
		}
		var r map[string]any
		must(m.t, json.Unmarshal(m.out.Bytes(), &r))
		if want(r) {
			return r
		}
	}
	m.t.Fatalf("QEMU ended")
	return nil
}

func (m *machine) do(name string, args map[string]any) any {
	m.t.Helper()
	_, err := m.in.Write(append(mustJSON(m.t, map[string]any{"execute": name, "arguments": args}), '\n'))
	must(m.t, err)
	r := m.until(func(r map[string]any) bool { return r["return"] != nil || r["error"] != nil })
	if r["error"] != nil {
		m.t.Fatalf("%s: %v", name, r["error"])
	}
	return r["return"]
}

func (m *machine) write(l Layer, at int, v byte) {
	m.t.Helper()
	m.said = ""
	m.do("human-monitor-command", map[string]any{"command-line": fmt.Sprintf(`qemu-io n%s "write -P %d %d %d"`, l.ID, v, at*block, block)})
	if !strings.Contains(m.said, fmt.Sprintf("wrote %d/%d", block, block)) {
		m.t.Fatalf("write: %s", m.said)
	}
	// What a guest hasn't flushed may go with QEMU; what it has may not.
	m.do("human-monitor-command", map[string]any{"command-line": fmt.Sprintf(`qemu-io n%s "flush"`, l.ID)})
}

// job does the live part of a merge, as an agent would.
func (m *machine) job(g Merge, root string) {
	m.t.Helper()
	args := map[string]any{"job-id": "merge", "backing-file": ""}
	if g.How == Commit {
		args["top-node"], args["base-node"] = "n"+g.Top.ID, "n"+g.Base.ID
		args["device"] = root // QEMU finds the way from the top
		m.do("block-commit", args)
	} else {
		args["device"] = "n" + g.Top.ID
		if g.Below != nil {
			args["base-node"] = "n" + g.Below.ID
		} else {
			delete(args, "backing-file")
		}
		m.do("block-stream", args)
	}
	r := m.until(func(r map[string]any) bool {
		return r["event"] == "BLOCK_JOB_COMPLETED" || r["event"] == "BLOCK_JOB_ERROR"
	})
	if d := r["data"].(map[string]any); d["error"] != nil || r["event"] != "BLOCK_JOB_COMPLETED" {
		m.t.Fatalf("job: %v", r)
	}
}

// TestLiveMerges runs both kinds of merge in a real QEMU, with writes before, between and after, and kills QEMU either before
// or after the manifest learns of the merge.
func TestLiveMerges(t *testing.T) {
	for _, format := range []string{"qcow2", "raw"} {
		for _, finish := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s finish=%v", format, finish), func(t *testing.T) {
				s := openStore(t, t.TempDir())
				ctx := t.Context()
				must(t, s.CreateDisk(ctx, "a", "root", Spec{Size: 8 * block, Format: format}))
				want := make([]byte, 8)
				put := func(at int, v byte) { write(t, s, "a", "root", at, v); want[at] = v }
				for i, sn := range []string{"s1", "s2", "s3"} {
					put(i, byte(i+1))
					put(7, byte(i+1))
					must(t, s.Snapshot(ctx, "a", sn))
				}
				put(3, 4)
				keep := frozen(t, s, "a", "s3", "root")
				for _, c := range []struct {
					snap string
					how  How
				}{{"s2", Commit}, {"s1", Commit}, {"s3", Stream}} {
					disks, err := s.Disks("a")
					must(t, err)
					m := boot(t, s, "a")
					m.write(disks["root"], 4, 40)
					want[4] = 40
					todo, err := s.DeleteSnapshot(ctx, "a", c.snap, true)
					must(t, err)
					if len(todo) != 1 || todo[0].How != c.how {
						t.Fatalf("after deleting %s: %+v", c.snap, todo)
					}
					g := todo[0]
					if err := s.MergeOffline(ctx, g); err == nil {
						t.Fatal("an offline merge of what QEMU has open")
					}
					must(t, s.StartMerge(ctx, g))
					if err := s.Snapshot(ctx, "a", "no"); err == nil {
						t.Fatal("a snapshot during a merge")
					}
					m.job(g, "n"+disks["root"].ID)
					m.write(disks["root"], 5, byte(len(c.snap)+int(c.snap[1])))
					want[5] = byte(len(c.snap) + int(c.snap[1]))
					if finish {
						must(t, s.FinishMerge(ctx, g))
						must(t, s.FinishMerge(ctx, g))
					}
					m.kill()
					if got := active(t, s, "a", "root"); !bytes.Equal(got, want) {
						t.Fatalf("after deleting %s: %v, want %v", c.snap, got, want)
					}
					if !finish {
						left, err := s.Merging("a")
						if err != nil || len(left) != 1 {
							t.Fatalf("the agent that comes back finds %+v, %v", left, err)
						}
						must(t, s.AbortMerge(ctx, left[0]))
						must(t, s.Compact(ctx, "a"))
						if got := active(t, s, "a", "root"); !bytes.Equal(got, want) {
							t.Fatalf("after the merge was done again: %v, want %v", got, want)
						}
					}
					if c.snap != "s3" {
						if got := frozen(t, s, "a", "s3", "root"); !bytes.Equal(got, keep) {
							t.Fatalf("deleting %s changed s3: %v, want %v", c.snap, got, keep)
						}
					}
				}
				if n := fileCount(t, s, "a"); n != 2 {
					t.Errorf("%d files are left", n)
				}
				// What QEMU wrote into the headers is still nothing that leads out.
				must(t, s.FullClone(ctx, "a", "", "copy"))
			})
		}
	}
}

// TestLiveSnapshot begins a snapshot and kills QEMU before or after it switched to the overlay.
func TestLiveSnapshot(t *testing.T) {
	for _, switched := range []bool{true, false} {
		t.Run(fmt.Sprintf("switched=%v", switched), func(t *testing.T) {
			s := openStore(t, t.TempDir())
			ctx := t.Context()
			must(t, s.CreateDisk(ctx, "a", "root", Spec{Size: 4 * block}))
			old, err := s.Disks("a")
			must(t, err)
			m := boot(t, s, "a")
			m.write(old["root"], 0, 1)
			must(t, s.BeginSnapshot(ctx, "a", "s1"))
			chain, err := s.Chain("a", "root")
			must(t, err)
			target := old["root"]
			if switched {
				m.do("blockdev-add", node(s, chain[0], nil))
				m.do("blockdev-snapshot", map[string]any{"node": "n" + chain[1].ID, "overlay": "n" + chain[0].ID})
				target = chain[0]
			}
			m.write(target, 1, 2)
			m.kill()
			if got := active(t, s, "a", "root"); !bytes.Equal(got, []byte{1, 2, 0, 0}) {
				t.Fatalf("the disk has %v", got)
			}
			must(t, s.FinishSnapshot(ctx, "a", "s1"))
			want := []byte{1, 0, 0, 0}
			if !switched {
				want[1] = 2
			}
			if got := frozen(t, s, "a", "s1", "root"); !bytes.Equal(got, want) {
				t.Errorf("the snapshot has %v, want %v", got, want)
			}
		})
	}
}
