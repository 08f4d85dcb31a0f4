package qemu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"drover/internal/guest"
)

func TestMachinesBoot(t *testing.T) {
	for _, m := range []guest.Machine{guest.Q35, guest.MicroVM} {
		t.Run(string(m), func(t *testing.T) {
			mods := []string{"virtio_pci", "virtio_blk"}
			if m == guest.MicroVM {
				mods = []string{"virtio_mmio", "virtio_blk"}
			}
			r := newRig(t, m, mods...)
			r.spec.Disks = []Disk{{ID: "root", Bus: guest.VirtioBlk, Layers: []Layer{r.image(t, "root", Qcow2, "64M")}}}
			begin := time.Now()
			p := r.start(t, Attach{})
			started := time.Since(begin)
			sh := boot(t, p)
			t.Logf("started in %v, booted in %v", started, time.Since(begin))
			if got := sh.run(t, "cat /sys/block/vda/size"); got != "131072" {
				t.Errorf("disk of %s sectors", got)
			}
			if got := sh.run(t, "cat /sys/block/vda/serial"); got != "root" {
				t.Errorf("serial %q", got)
			}
			sh.run(t, "echo data >/dev/vda && sync")
			if err := p.QMP().SystemPowerdown(testContext(t)); err != nil {
				t.Error(err)
			}
			fmt.Fprintln(sh.conn, "9 poweroff -f")
			exit, err := p.Wait(testContext(t))
			if err != nil || exit.Kind != ExitGuest {
				t.Errorf("exit %v, %v", exit, err)
			}
			if _, err := os.Stat(r.spec.Memory.Path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("memory after the end: %v", err)
			}
		})
	}
}

// TestStartShowsWhyQEMUFailed checks that users read QEMU's own words.
func TestStartShowsWhyQEMUFailed(t *testing.T) {
	r := newRig(t, guest.Q35)
	r.spec.CPU.Model = "No-Such-CPU"
	_, err := Start(testContext(t), r.spec, Attach{}, r.opt)
	if err == nil || !strings.Contains(err.Error(), "No-Such-CPU") || !strings.Contains(err.Error(), "unable to find CPU model") {
		t.Errorf("error: %v", err)
	}
	b, err := os.ReadFile(filepath.Join(r.opt.Dir, logFile))
	if err != nil || !strings.Contains(string(b), "No-Such-CPU") {
		t.Errorf("log: %s %v", b, err)
	}
	left, err := os.ReadDir(r.opt.Dir)
	if err != nil || len(left) != 1 {
		t.Errorf("left behind besides the log: %v %v", left, err)
	}
}
