package host

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "drover/api/drover/v1"
)

// facts are what doesn't change while the machine runs.
type facts struct {
	cpus   int32
	model  string
	memory int64
	kernel string
	os     string
	boot   time.Time
}

func readFacts(shm string) facts {
	f := facts{cpus: int32(runtime.NumCPU())}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		f.model = field(b, "model name")
	}
	f.memory, _ = memory()
	f.memory = min(f.memory, fileSystemSize(shm, f.memory))
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		f.kernel = unix.ByteSliceToString(u.Release[:])
	}
	if b, err := os.ReadFile("/etc/os-release"); err == nil {
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
				f.os = strings.Trim(v, `"'`)
			}
		}
	}
	if b, err := os.ReadFile("/proc/stat"); err == nil {
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, "btime "); ok {
				if s, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64); err == nil {
					f.boot = time.Unix(s, 0)
				}
			}
		}
	}
	return f
}

// field reads "key : value" of /proc files.
func field(b []byte, key string) string {
	s := bufio.NewScanner(bytes.NewReader(b))
	for s.Scan() {
		k, v, ok := strings.Cut(s.Text(), ":")
		if ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// fileSystemSize is the size of the file system that a directory is on, in bytes; otherwise where that is not to be had. Guests' memory is
// there: a guest that touches more than it holds is killed (SIGBUS), so no more is offered. Debian makes /dev/shm half of the RAM.
func fileSystemSize(dir string, otherwise int64) int64 {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil || st.Blocks == 0 {
		return otherwise
	}
	return int64(st.Blocks) * st.Bsize
}

// memory is total and available bytes.
func memory() (total, free int64) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0
	}
	kib := func(key string) int64 {
		n, err := strconv.ParseInt(strings.TrimSuffix(field(b, key), " kB"), 10, 64)
		if err != nil {
			return 0
		}
		return n << 10
	}
	return kib("MemTotal"), kib("MemAvailable")
}

// cpuTimes are the machine's busy and total CPU ticks since it booted.
func cpuTimes() (busy, total uint64, err error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	cols := strings.Fields(line)
	if len(cols) < 6 || cols[0] != "cpu" {
		return 0, 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	// user nice system idle iowait irq softirq steal; guest time is in user already.
	for i, c := range cols[1:min(len(cols), 9)] {
		n, err := strconv.ParseUint(c, 10, 64)
		if err != nil {
			return 0, 0, err
		}
		total += n
		if i != 3 && i != 4 {
			busy += n
		}
	}
	return busy, total, nil
}

// hostStatus is what the manager hears of the machine.
func (a *agent) hostStatus() *v1.HostStatus {
	s := &v1.HostStatus{
		Address: a.address, Version: a.cfg.Version,
		Accelerator: &v1.Accelerator{Name: string(a.accel.name), Reason: a.accel.reason},
		QemuVersion: a.accel.version, MachineTypes: a.accel.machines,
		Cpus: a.facts.cpus, CpuModel: a.facts.model, MemoryBytes: a.facts.memory, Kernel: a.facts.kernel, Os: a.facts.os,
		BootTime:           timestamppb.New(a.facts.boot),
		CertificateExpires: timestamppb.New(a.id.credential.Leaf().NotAfter),
		CpuLoad:            a.load.now(),
	}
	_, s.MemoryFreeBytes = memory()
	for _, m := range a.all() {
		s.Vms++
		switch m.report().GetStatus().GetPhase() {
		case v1.VMPhase_VM_PHASE_RUNNING, v1.VMPhase_VM_PHASE_PAUSED, v1.VMPhase_VM_PHASE_STOPPING, v1.VMPhase_VM_PHASE_IO_ERROR:
			s.VmsRunning++
		}
	}
	if a.cfg.RepositoriesOnly {
		s.RepositoriesOnly, s.Accelerator = true, nil
		return s
	}
	a.fabric.facts(s)
	return s
}
