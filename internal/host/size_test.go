package host_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	v1 "drover/api/drover/v1"
)

// The agent stays small with a hundred VMs defined (docs/SPECIFICATION.md); those that run are measured by bench-vm.
func TestMemoryOfAHundredVMs(t *testing.T) {
	b := newBench(t)
	b.tiny()
	b.spawn()
	spec := func() *v1.VMSpec {
		s := tinySpec()
		s.Power = v1.Power_POWER_OFF
		s.Disks = []*v1.DiskSpec{{Name: "root", SizeBytes: 1 << 30}}
		s.Nics = []*v1.NICSpec{{Name: "eth0", Network: "lan"}}
		return s
	}
	var uids []string
	for i := range 100 {
		uids = append(uids, b.vm(fmt.Sprintf("vm-%d", i), spec()))
	}
	for _, uid := range uids {
		b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_OFF)
	}
	b.hostAddress()
	rss := b.agentRSS()
	t.Logf("resident: %.1f MiB", float64(rss)/(1<<20))
	if rss > 60<<20 {
		t.Errorf("the agent has %d MiB resident with 100 VMs, at most 60 promised", rss>>20)
	}
}

// agentRSS is the resident memory of the agent's process.
func (b *bench) agentRSS() int64 {
	b.t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(b.agentPID), "status"))
	if err != nil {
		b.t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			if err != nil {
				b.t.Fatal(err)
			}
			return kib << 10
		}
	}
	b.t.Fatal("the agent's status has no VmRSS")
	return 0
}
