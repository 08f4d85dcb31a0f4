package accel

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// generous is for a machine that is busy with other tests.
const generous = 30 * time.Second

// TestGuestPassesUnderTCG shows that the probe can succeed.
func TestGuestPassesUnderTCG(t *testing.T) {
	out, err := runGuest(t.Context(), Options{}.withDefaults(), TCG, "max", generous)
	if err != nil {
		t.Fatal(err)
	}
	if !out.passed || out.milestones != "RTPLXC" || out.biosBytes == 0 {
		t.Fatalf("%+v\n%s", out, out.stderr)
	}
	t.Logf("took %v", out.took)
}

// TestProbe says the same as what a guest under KVM says, whatever this machine
// is.
func TestProbe(t *testing.T) {
	for _, cpu := range []string{"host", "host,arch-capabilities=off", "qemu64"} {
		t.Run(cpu, func(t *testing.T) { testProbe(t, cpu) })
	}
}

func testProbe(t *testing.T, cpu string) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*generous)
	defer cancel()
	r, err := Probe(ctx, Options{CPU: cpu})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %s (%s, milestones %q, took %v)", r.Accel, r.Reason, r.Failure, r.Milestones, r.Took)
	switch r.Accel {
	case KVM:
		if r.Failure != "" || r.Milestones != "RTPLXC" {
			t.Errorf("KVM with failure %q, milestones %q", r.Failure, r.Milestones)
		}
	case TCG:
		if r.Failure == "" || r.Milestones == "RTPLXC" {
			t.Errorf("TCG with failure %q, milestones %q", r.Failure, r.Milestones)
		}
	default:
		t.Errorf("accelerator %q", r.Accel)
	}
	if r.Reason == "" || r.CPUModel == "" || !slices.Contains(r.CPUFeatures, "lm") || r.Took <= 0 {
		t.Errorf("%+v", r)
	}
	if !slices.ContainsFunc(r.Machines, func(m string) bool { return strings.HasPrefix(m, "pc-q35-") }) || !slices.IsSorted(r.Machines) {
		t.Errorf("machines %v", r.Machines)
	}
	if !slices.Contains(r.GuestFeatures, "sse2") || !slices.IsSorted(r.GuestFeatures) {
		t.Errorf("features %v", r.GuestFeatures)
	}
	v, err := Version(ctx, "qemu-system-x86_64")
	id, err2 := BootID()
	if err != nil || err2 != nil || !r.Current(id, v) || r.Current(id, "0.1") || r.Current("x", v) {
		t.Errorf("version %q, boot %q, %v, %v", v, id, err, err2)
	}
	b, err := json.Marshal(r)
	var back Result
	if err = errors.Join(err, json.Unmarshal(b, &back)); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(*r, back); d != "" {
		t.Error(d)
	}
}

func TestProbeWithoutDevice(t *testing.T) {
	r, err := Probe(t.Context(), Options{Device: filepath.Join(t.TempDir(), "kvm"), Deadline: generous})
	if err != nil {
		t.Fatal(err)
	}
	if r.Accel != TCG || r.Failure != FailAbsent || r.Milestones != "" {
		t.Fatalf("%+v", r)
	}
}

// TestProbeUnprivileged: the verdict is for the identity given, and all that the
// guest needs is reachable for it.
func TestProbeUnprivileged(t *testing.T) {
	st, err := os.Stat("/dev/kvm")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	r, err := Probe(t.Context(), Options{Deadline: generous, Credential: &syscall.Credential{Uid: 65432, Gid: 65432}})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %s", r.Accel, r.Reason)
	want := FailAbsent
	if st != nil {
		if want = FailDenied; st.Mode().Perm()&0o006 == 0o006 {
			want = r.Failure // open to all: as TestProbe
		}
	}
	if r.Failure != want || (r.Accel == KVM) != (r.Failure == "") {
		t.Fatalf("%+v", r)
	}
}

// fakeQEMU writes a shell script that takes QEMU's place.
func fakeQEMU(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFailures(t *testing.T) {
	for name, c := range map[string]struct {
		script, kind, say string
		deadline          time.Duration
	}{
		"hang before the BIOS":  {`exec sleep 1000`, FailHang, "before the BIOS", 200 * time.Millisecond},
		"hang in the BIOS":      {`echo SeaBIOS >&4; exec sleep 1000`, FailHang, "in the BIOS", 500 * time.Millisecond},
		"hang after long mode":  {`echo SeaBIOS >&4; printf RTPL; exec sleep 1000`, FailHang, "long mode", 500 * time.Millisecond},
		"child keeps the pipe":  {`sleep 1000 & exec sleep 1000`, FailHang, "hung", 200 * time.Millisecond},
		"KVM stops the guest":   {`printf RTPLX; echo "KVM internal error. Suberror: 1" >&2; echo "emulation failure" >&2; exec sleep 1000`, FailError, "exception", generous},
		"QEMU aborts":           {`echo "qemu: warning: x" >&2; echo "qemu: error: failed to set MSR 0x10a to 0x69" >&2; kill -6 $$`, FailError, "MSR 0x10a", generous},
		"denied":                {`echo "Could not access KVM kernel module: Permission denied" >&2; exit 1`, FailDenied, "may not open it", generous},
		"triple fault":          {`echo b >&4; printf RT; exit 0`, FailError, "timer", generous},
		"wrong result":          {`printf RTPLF; exit 35`, FailWrong, "wrong after the switch to long mode", generous},
		"right status, no work": {`exit 33`, FailError, "before the BIOS", generous},
		"work, wrong status":    {`printf RTPLXC; exit 1`, FailError, "SSE2", generous},
		"endless output":        {`exec yes RTPLXC`, FailHang, "hung", 300 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			o := Options{Binary: fakeQEMU(t, c.script)}.withDefaults()
			start := time.Now()
			out, err := runGuest(t.Context(), o, KVM, "host", c.deadline)
			if err != nil {
				t.Fatal(err)
			}
			kind, say := out.explain(KVM)
			if out.passed || kind != c.kind || !strings.Contains(say, c.say) {
				t.Errorf("passed %v, %s: %s", out.passed, kind, say)
			}
			if d := time.Since(start); d > generous/2 {
				t.Errorf("took %v", d)
			}
		})
	}
}

func TestNeitherWorks(t *testing.T) {
	_, err := Probe(t.Context(), Options{Binary: fakeQEMU(t, `echo "qemu: error: no BIOS" >&2; exit 1`)})
	if err == nil || !strings.Contains(err.Error(), "no BIOS") {
		t.Fatalf("got %v", err)
	}
	_, err = Probe(t.Context(), Options{Binary: "/nonexistent/qemu", Device: "/dev/null"})
	if !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("got %v", err)
	}
}

// TestKillReapsGroup: neither QEMU nor what it started is left.
func TestKillReapsGroup(t *testing.T) {
	note := filepath.Join(t.TempDir(), "pids")
	o := Options{Binary: fakeQEMU(t, fmt.Sprintf(`sleep 1000 & echo $$ $! >%s.new; mv %s.new %s; printf R; exec sleep 1000`, note, note, note))}.withDefaults()
	if _, err := runGuest(t.Context(), o, KVM, "host", time.Second); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(note)
	if err != nil {
		t.Fatal(err)
	}
	var parent, child int
	if _, err := fmt.Sscan(string(b), &parent, &child); err != nil {
		t.Fatal(err)
	}
	for _, pid := range []int{parent, child} {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err == nil && !bytes.Contains(stat, []byte(") Z ")) && syscall.Kill(pid, 0) == nil {
			t.Errorf("pid %d is alive: %s", pid, stat)
		}
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Probe(ctx, Options{}); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}

func TestBootImage(t *testing.T) {
	b := bootImage()
	if len(bootCode) > 510 || b[510] != 0x55 || b[511] != 0xaa || len(b) != diskSize {
		t.Fatalf("code of %d bytes", len(bootCode))
	}
}

func TestHostCPU(t *testing.T) {
	model, flags := hostCPU([]byte("processor\t: 0\nmodel name\t: A: B\nflags\t\t: fpu lm\n\nprocessor\t: 1\nmodel name\t: C\n"))
	if model != "A: B" || !slices.Equal(flags, []string{"fpu", "lm"}) {
		t.Fatalf("%q %q", model, flags)
	}
	if model, flags := hostCPU(nil); model != "" || flags != nil {
		t.Fatalf("%q %q", model, flags)
	}
}
