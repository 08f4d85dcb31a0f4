package host

import (
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "drover/api/drover/v1"
)

// status is what the manager hears of a VM. What is not the host's to say (owner, placement) is only repeated.
func (m *machine) status(vm *v1.VM, w wish, s sight) *v1.VMStatus {
	st := &v1.VMStatus{
		Phase: phase(w, s), Owner: m.a.id.Host, Epoch: w.epoch, Site: m.a.id.Site,
		ObservedGeneration: w.generation, Restarts: m.local.Restarts, CurrentSnapshot: m.local.Snapshot,
		RestartRequired: m.restart,
	}
	st.Message = m.message(w, s)
	run := m.local.Run
	if run != nil && s.process != procNone && s.process != procLost {
		have := run.spec()
		st.StartTime = timestamppb.New(run.Started)
		st.Accelerator, st.QemuVersion = run.Accel, m.a.accel.version
		st.Cpus, st.MemoryBytes = have.GetCpus(), have.GetMemoryBytes()
		if hw, err := hardwareOf(have); err == nil {
			st.MachineType = hw.QEMU
		}
	}
	st.Disks = m.diskStatus(vm, run)
	st.Nics = m.nicStatus(vm, run)
	st.Guest = m.guestStatus()
	if st.Guest != nil {
		m.guestAddresses(st.Nics)
	}
	st.Conditions = m.conditions(w, s)
	return st
}

func (m *machine) message(w wish, s sight) string {
	switch {
	case !w.held && !w.remove:
		return "the manager does not give this VM to this host; its data is kept"
	case s.process == procIOError && m.restoreNote() != "":
		return "stands still: " + m.restoreNote()
	case s.process == procIOError:
		return "stopped by a disk error: " + m.ioReason() + "; it goes on by itself when that is mended"
	case m.problem != "":
		return m.problem
	case halted(w, s):
		return s.halt.Message
	case s.process == procNone && !s.ready && m.doing() != "":
		return m.doing()
	}
	return m.restoreNote()
}

// restoreNote is what is to be said of a restore that goes on while the VM runs.
func (m *machine) restoreNote() string {
	m.mu.Lock()
	i := m.instant
	m.mu.Unlock()
	if i == nil {
		return ""
	}
	return i.say()
}

func (m *machine) ioReason() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.heard.ioError == "" {
		return "see the host's log"
	}
	return m.heard.ioError
}

func (m *machine) conditions(w wish, s sight) []*v1.Condition {
	var out []*v1.Condition
	add := func(kind, message string) { out = append(out, condition(kind, message)) }
	if s.process == procIOError {
		add("IO_ERROR", m.ioReason())
	}
	if !w.held && !w.remove && !m.local.Gone {
		add("ORPHANED", "this host has the data of a VM that it does not hold; nothing is removed until the manager deletes the VM")
	}
	if m.problem != "" {
		add("STEP_FAILED", m.problem)
	}
	return out
}

func (m *machine) nicStatus(vm *v1.VM, run *runRecord) []*v1.NICStatus {
	var out []*v1.NICStatus
	have := run.spec()
	for _, n := range vm.GetSpec().GetNics() {
		st := &v1.NICStatus{Name: n.GetName(), Mac: n.GetMac(), Network: n.GetNetwork(), Adapter: n.GetAdapter()}
		if h := nicSpec(have, n.GetName()); h != nil {
			st.Attached, st.Device = true, tapName(m.uid, n.GetName())
			st.Mac, st.Network, st.Adapter = h.GetMac(), h.GetNetwork(), h.GetAdapter()
		}
		out = append(out, st)
	}
	return out
}

func phaseName(p v1.VMPhase) string {
	return strings.ToLower(strings.TrimPrefix(p.String(), "VM_PHASE_"))
}
