package accel

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// The accelerators, as QEMU names them.
const (
	KVM = "kvm"
	TCG = "tcg"
)

// How KVM failed.
const (
	FailAbsent = "absent" // no device node
	FailDenied = "denied" // no permission for the identity given
	FailHang   = "hang"   // the guest did not finish before the deadline
	FailError  = "error"  // KVM or QEMU gave up
	FailWrong  = "wrong"  // the guest ran and computed wrong
)

// Result of a probe. Plain data.
type Result struct {
	// Accel is KVM or TCG.
	Accel string `json:"accel"`
	// Reason says in one line why, for people.
	Reason string `json:"reason"`
	// Failure is how KVM failed, one of the Fail… words; empty if Accel is KVM.
	Failure string `json:"failure,omitempty"`
	// Milestones are the bytes that the test guest wrote under KVM; all is "RTPLXC".
	Milestones string `json:"milestones,omitempty"`

	// CPUModel and CPUFeatures are the host's own, from /proc/cpuinfo.
	CPUModel    string   `json:"cpu_model"`
	CPUFeatures []string `json:"cpu_features"`
	// GuestFeatures are what a guest with the widest CPU model gets under Accel, in
	// QEMU's names; sorted.
	GuestFeatures []string `json:"guest_features"`

	// TSCKHz is how fast the host's time stamp counter runs.
	TSCKHz int64 `json:"tsc_khz"`

	QEMUVersion string `json:"qemu_version"` // "7.2.22"
	QEMUPackage string `json:"qemu_package"`
	// Machines are the machine types of this QEMU, without aliases; sorted.
	Machines []string `json:"machines"`

	// BootID is the kernel's id of this boot.
	BootID string `json:"boot_id"`
	// Took is how long the probe took, in nanoseconds.
	Took time.Duration `json:"took"`
}

// Current reports whether the result still holds, for this boot and this QEMU
// version (from Version).
func (r *Result) Current(bootID, qemuVersion string) bool {
	return bootID != "" && r.TSCKHz > 0 && r.BootID == bootID && qemuVersion != "" && r.QEMUVersion == qemuVersion
}

// BootID is the kernel's id of this boot.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("accel: boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Version is the version of a QEMU binary, "7.2.22", cheaper than a probe.
func Version(ctx context.Context, binary string) (string, error) {
	out, err := exec.CommandContext(ctx, binary, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("accel: %s --version: %w; is QEMU installed?", binary, err)
	}
	_, rest, ok := strings.Cut(string(out), "version ")
	f := strings.Fields(rest)
	if !ok || len(f) == 0 {
		return "", fmt.Errorf("accel: %s --version says %q", binary, firstLine(out))
	}
	return f[0], nil
}

func firstLine(b []byte) string {
	line, _, _ := bytes.Cut(bytes.TrimSpace(b), []byte("\n"))
	return clip(string(line))
}

// clip makes one printable line of at most 200 characters.
func clip(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, s)
	if r := []rune(s); len(r) > 200 {
		s = string(r[:200]) + "…"
	}
	return s
}

// hostCPU reads model name and flags of the first CPU in /proc/cpuinfo's format.
func hostCPU(cpuinfo []byte) (model string, flags []string) {
	for line := range strings.Lines(string(cpuinfo)) {
		key, value, ok := strings.Cut(line, ":")
		if !ok {
			if model != "" && flags != nil {
				return model, flags
			}
			continue
		}
		switch strings.TrimSpace(key) {
		case "model name":
			model = strings.TrimSpace(value)
		case "flags":
			flags = strings.Fields(value)
		}
	}
	return model, flags
}
