package host

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"syscall"

	"drover/internal/accel"
	"drover/internal/guest"
)

const accelFile = "accel.json"

// accelerator is what runs guests here.
type accelerator struct {
	name     guest.Accel
	reason   string
	version  string // of QEMU
	machines []string
	tscKHz   int64 // of the host's time stamp counter
}

// probe finds the accelerator, or reads what was found earlier in this boot with this QEMU.
func (a *agent) probe(ctx context.Context) error {
	if a.cfg.RepositoriesOnly {
		return nil
	}
	path := filepath.Join(a.cfg.StateDir, accelFile)
	version, err := accel.Version(ctx, a.cfg.QEMU)
	if err != nil {
		return fmt.Errorf("%w (Debian: apt install qemu-system-x86)", err)
	}
	r := new(accel.Result)
	if err := readJSON(path, r); err != nil || !r.Current(a.boot, version) {
		if r, err = accel.Probe(ctx, accel.Options{
			Binary: a.cfg.QEMU, Log: a.log, Credential: vmCredential(), CPU: kvmModel(),
		}); err != nil {
			return err
		}
		r.BootID = a.boot
		if err := writeJSON(path, r); err != nil {
			return err
		}
	}
	a.accel = accelerator{name: guest.Accel(r.Accel), reason: r.Reason, version: r.QEMUVersion, machines: r.Machines, tscKHz: r.TSCKHz}
	a.log.Info("accelerator", "name", r.Accel, "reason", r.Reason)
	return nil
}

// vmCredential is what VMs' QEMUs run as, for a probe.
func vmCredential() *syscall.Credential {
	return &syscall.Credential{Uid: userBase - 1, Gid: userBase - 1, Groups: kvmGroup()}
}

// Probe finds what runs guests on this machine, as a host does when it starts.
func Probe(ctx context.Context, log *slog.Logger) (*accel.Result, error) {
	return accel.Probe(ctx, accel.Options{Credential: vmCredential(), Log: log, CPU: kvmModel()})
}

// kvmModel is the CPU that VMs get under KVM unless they name another: what the probe tries.
func kvmModel() string {
	hw, err := guest.Lookup(guest.Q35, guest.Latest)
	if err != nil {
		return ""
	}
	return hw.CPU[guest.KVM].Model
}

// kvmGroup is the group that may open /dev/kvm, as QEMU gets it.
func kvmGroup() []uint32 {
	var st syscall.Stat_t
	if syscall.Stat("/dev/kvm", &st) != nil || st.Gid == 0 {
		return nil
	}
	return []uint32{st.Gid}
}
