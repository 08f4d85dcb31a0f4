package vswitch

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"drover/internal/hostnet"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

func TestForeign(t *testing.T) {
	n := testNet(t, "foreign")
	d := testDatapath(t, n, filepath.Join(testBPF(t), "drover-t"))
	dev := testTAP(t, n, "a")
	spy, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "spy", Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}, // TCX_NEXT
	})
	must(t, err)
	t.Cleanup(func() { spy.Close() })
	info, err := spy.Info()
	must(t, err)
	id, _ := info.ID()
	attach := func(at ebpf.AttachType, where link.Anchor) {
		t.Helper()
		must(t, n.Do(func() error {
			l, err := link.AttachTCX(link.TCXOptions{Interface: dev, Program: spy, Attach: at, Anchor: where})
			if err == nil {
				t.Cleanup(func() { l.Close() })
			}
			return err
		}))
	}
	look := func(want ...string) {
		t.Helper()
		got, err := d.Foreign(dev)
		must(t, err)
		if !slices.Equal(got, want) {
			t.Errorf("Foreign = %q, want %q", got, want)
		}
	}
	look()
	attach(ebpf.AttachTCXIngress, link.Tail())
	look(fmt.Sprintf("tcx ingress program spy (id %d), alone: ours is not attached", id))
	must(t, d.Attach(t.Context(), Device{Ifindex: dev, Kind: KindPort}))
	before := fmt.Sprintf("tcx ingress program spy (id %d), before ours", id)
	look(before) // we are at the tail
	attach(ebpf.AttachTCXEgress, link.Tail())
	behind := fmt.Sprintf("tcx egress program spy (id %d), behind ours", id)
	look(before, behind)
	name := hostnet.Name("dt", "a")
	must(t, n.Run(exec.Command("tc", "qdisc", "add", "dev", name, "clsact")))
	must(t, n.Run(exec.Command("tc", "filter", "add", "dev", name, "ingress", "u32", "match", "u32", "0", "0", "flowid", "1:1")))
	look(before, behind, "tc filter ingress u32, behind ours")
	if _, err := d.Foreign(9999); err == nil {
		t.Error("Foreign of no device says nothing")
	}
}
