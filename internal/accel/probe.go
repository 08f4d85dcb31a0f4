package accel

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"drover/internal/qmp"
)

// Options of Probe. The zero value is ready to use.
type Options struct {
	// Binary is QEMU; default "qemu-system-x86_64".
	Binary string
	// Device is KVM's device node, default /dev/kvm; only looked at to tell that it
	// is absent.
	Device string
	// Deadline is how long the test guest may take under KVM; default 3 s. Where KVM
	// works it takes some 0.2 s. Under TCG it gets five times as long.
	Deadline time.Duration
	// CPU is the model that VMs get under KVM, as for -cpu; default "host".
	CPU string
	// Credential is what QEMU runs as; nil: as we do. Give what VMs get, since they
	// have to open the device.
	Credential *syscall.Credential
	// Log gets one line for each guest that was run; nil discards.
	Log *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.Binary == "" {
		o.Binary = "qemu-system-x86_64"
	}
	if o.Device == "" {
		o.Device = "/dev/kvm"
	}
	if o.Deadline <= 0 {
		o.Deadline = 3 * time.Second
	}
	if o.CPU == "" {
		o.CPU = "host"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Probe decides between KVM and TCG by running a guest. It takes some 0.3 s
// where KVM works, and up to the deadline and a second where it hangs. An error
// means that this QEMU cannot run guests at all.
func Probe(ctx context.Context, o Options) (*Result, error) {
	o = o.withDefaults()
	start := time.Now()
	r := &Result{Accel: KVM}
	var err error
	if r.BootID, err = BootID(); err != nil {
		return nil, err
	}
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return nil, fmt.Errorf("accel: host CPU: %w", err)
	}
	r.CPUModel, r.CPUFeatures = hostCPU(info)
	if r.TSCKHz, err = TSCKHz(ctx); err != nil {
		return nil, err
	}
	if err := r.tryKVM(ctx, o); err != nil {
		return nil, err
	}
	model, _, _ := strings.Cut(o.CPU, ",")
	if r.Accel == TCG {
		model = "max"
		out, err := runGuest(ctx, o, TCG, model, 5*o.Deadline)
		if err == nil && !out.passed {
			_, why := out.explain(TCG)
			err = fmt.Errorf("accel: %s cannot run a guest even without KVM: %s", o.Binary, why)
		}
		if err = errors.Join(err, ctx.Err()); err != nil {
			return nil, err
		}
		o.Log.Info("accel: test guest", "accel", TCG, "passed", true, "took", out.took)
	}
	if err := r.ask(ctx, o, model); err != nil {
		return nil, err
	}
	r.Took = time.Since(start)
	return r, nil
}

// tryKVM runs the test guest under KVM and fills in the verdict.
func (r *Result) tryKVM(ctx context.Context, o Options) error {
	if _, err := os.Stat(o.Device); errors.Is(err, fs.ErrNotExist) {
		r.Accel, r.Failure = TCG, FailAbsent
		r.Reason = o.Device + " does not exist: the CPU has no virtualization, it is off in the firmware, or the kvm module is not loaded"
		return nil
	}
	out, err := runGuest(ctx, o, KVM, o.CPU, o.Deadline)
	if err := errors.Join(err, ctx.Err()); err != nil {
		return err
	}
	o.Log.Info("accel: test guest", "accel", KVM, "passed", out.passed, "took", out.took, "milestones", out.milestones)
	r.Milestones = out.milestones
	if out.passed {
		r.Reason = fmt.Sprintf("a test guest ran under KVM in %d ms", out.took.Milliseconds())
		return nil
	}
	r.Accel = TCG
	r.Failure, r.Reason = out.explain(KVM)
	return nil
}

// explain says how a run failed: the kind, and the story in one line.
func (out outcome) explain(accel string) (kind, reason string) {
	said := complaint(out.stderr)
	where := "before the BIOS ran"
	if out.biosBytes > 0 {
		where = "in the BIOS"
	}
	for _, m := range milestones {
		if strings.IndexByte(out.milestones, m.mark) >= 0 {
			where = "after " + m.after
		}
	}
	name := strings.ToUpper(accel)
	switch {
	case strings.Contains(said, "Permission denied"):
		return FailDenied, fmt.Sprintf("%s is there but QEMU's user may not open it, let its group read and write /dev/kvm: %s", name, said)
	case strings.Contains(out.milestones, "F"):
		return FailWrong, fmt.Sprintf("an ordinary guest runs under %s but computes wrong %s", name, where)
	case said != "":
		return FailError, fmt.Sprintf("%s cannot run an ordinary guest: it failed %s: %s", name, where, said)
	case out.timeout:
		return FailHang, fmt.Sprintf("%s cannot run an ordinary guest: it hung %s (killed after %.1f s)", name, where, out.took.Seconds())
	}
	return FailError, fmt.Sprintf("%s cannot run an ordinary guest: QEMU ended %s with %s", name, where, out.exit)
}

// complaint is the line of stderr that matters most. Warnings do not.
func complaint(stderr []byte) string {
	var first string
	var emulation bool
	for line := range bytes.Lines(stderr) {
		s := strings.TrimSpace(string(line))
		switch {
		case s == "emulation failure":
			emulation = true
		case first == "" && (strings.Contains(s, "error") || strings.Contains(s, "failed") || strings.Contains(s, "Could not") || strings.Contains(s, "denied")):
			first = s
		}
	}
	if emulation {
		first += ": KVM does not know an instruction that it had to emulate"
	}
	return clip(first)
}

// ask fills in what QEMU says of itself, under the accelerator chosen.
func (r *Result) ask(ctx context.Context, o Options, model string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*o.Deadline)
	defer cancel()
	conn, theirs, err := socketpair()
	if err != nil {
		return err
	}
	defer conn.Close()
	defer theirs.Close()
	cmd := exec.Command(o.Binary, "-machine", "none", "-accel", r.Accel, "-nodefaults", "-no-user-config",
		"-display", "none", "-S", "-sandbox", sandbox,
		"-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = o.attr()
	stderr := &limited{max: 16 << 10}
	cmd.Stderr = stderr
	cmd.WaitDelay = time.Second

	started := make(chan struct{})
	asked := make(chan error, 1)
	runCtx, end := context.WithCancel(ctx)
	go func() {
		<-started
		err := r.query(ctx, conn, model)
		end() // whatever came of it, QEMU is not needed any more
		asked <- err
	}()
	runErr := runBounded(runCtx, cmd, func() { theirs.Close(); close(started) })
	end()
	err = <-asked
	if errors.Is(runErr, errUnkillable) {
		return runErr
	}
	if err != nil {
		return fmt.Errorf("accel: ask %s: %w (it says: %s)", o.Binary, err, complaint(stderr.bytes()))
	}
	return nil
}

// query talks to a QEMU with machine "none". It owns conn.
func (r *Result) query(ctx context.Context, conn net.Conn, model string) error {
	c, err := qmp.New(ctx, conn, qmp.Options{MaxMessage: 4 << 20})
	if err != nil {
		return err
	}
	defer c.Close()
	v := c.Greeting().Version
	r.QEMUVersion, r.QEMUPackage = v.String(), v.Package
	machines, err := c.QueryMachines(ctx)
	if err != nil {
		return err
	}
	for _, m := range machines {
		r.Machines = append(r.Machines, m.Name)
	}
	slices.Sort(r.Machines)
	cpu, err := c.QueryCPUModelExpansion(ctx, "full", model)
	if err != nil {
		return err
	}
	for name, value := range cpu.Props {
		var on bool
		if json.Unmarshal(value, &on) == nil && on {
			r.GuestFeatures = append(r.GuestFeatures, name)
		}
	}
	slices.Sort(r.GuestFeatures)
	return nil
}
