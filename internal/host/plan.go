package host

import (
	"time"

	v1 "drover/api/drover/v1"
)

// wish is what the manager wants of one VM, as far as plan needs it.
type wish struct {
	held       bool // the manager's last word gave it to this host
	remove     bool // it carries a delete time
	epoch      int64
	generation int64
	power      v1.Power
	template   bool
	policy     v1.RestartPolicy
	force      bool // don't ask the guest at a stop
	stopWait   time.Duration
}

// processState is what became of QEMU.
type processState int

const (
	procNone     processState = iota
	procPrepared              // made, its CPUs never ran
	procRunning
	procPaused
	procIOError  // stopped by a disk error
	procShutdown // the guest switched off; the process may be there still
	procBroken   // the guest panicked, or QEMU reports an internal error
	procLost     // it ended and nobody asked it to
)

// stopStage is how far a graceful stop has come.
type stopStage int

const (
	stopNone  stopStage = iota
	stopACPI            // the power button was pressed
	stopAgent           // the guest agent was asked
)

// sight is what the host observes of one VM.
type sight struct {
	now       time.Time
	process   processState
	epoch     int64 // that the process runs with
	ready     bool  // the disks are as the spec wants
	data      bool  // there is anything to remove: disks, TAPs, files
	compact   bool  // layers wait to be merged
	links     bool  // TAPs or files of a process that is gone are left
	hot       bool  // the running machine differs from the spec in what can be changed
	undone    bool  // a revert was cut off half-way
	unsaved   bool  // what is wanted is not on disk
	gate      bool  // after a reboot: its turn in the start order has come
	halt      *halt
	crashes   []time.Time
	retry     time.Time // not before this: the last try failed
	stage     stopStage
	stopSince time.Time
	ioNext    time.Time // when to look for room again
}

// action is one kind of step.
type action int

const (
	doWait      action = iota // until step.until, or until something happens if zero
	doProvision               // make, grow, remove disks
	doStart
	doResume
	doPause
	doPressPower
	doAskAgent
	doKill    // end QEMU now
	doClean   // remove what a process left: TAPs, sockets, memory file, cgroup
	doWipe    // remove everything of the VM
	doHot     // bring the running machine to the spec
	doCompact // merge layers while it is off
	doMend    // see whether the disk error is over, and go on if so
	doHalt    // note why it stays off
	doCrash   // note the crash and when to start again
	doSettle  // carry a revert through
)

var actionNames = map[action]string{
	doWait: "wait", doProvision: "provision", doStart: "start", doResume: "resume", doPause: "pause",
	doPressPower: "press-power", doAskAgent: "ask-agent", doKill: "kill", doClean: "clean", doWipe: "wipe", doHot: "hot",
	doMend: "mend", doCompact: "compact", doHalt: "halt", doCrash: "crash", doSettle: "settle",
}

func (a action) String() string { return actionNames[a] }

// step is what to do next, and why.
type step struct {
	do    action
	why   string
	until time.Time
	halt  haltReason
}

// A VM that crashes more than crashLimit times in crashWindow stays off. Between, it waits twice as long each time.
const (
	crashLimit  = 5
	crashWindow = 10 * time.Minute
	crashMin    = time.Second
	crashMax    = time.Minute
)

// plan says what brings the VM nearer to what is wanted. The steps are done in order until one fails; then everything
// is observed again. It looks at nothing but its arguments.
func plan(w wish, s sight) []step {
	alive := s.process != procNone && s.process != procLost
	switch {
	case w.remove:
		return planRemove(s, alive)
	case !w.held:
		return planRelease(s, alive, "this host does not hold the VM any more")
	case alive && s.epoch != w.epoch:
		return planRelease(s, true, "it runs with an epoch that is not current")
	case s.undone && s.now.Before(s.retry):
		return []step{{do: doWait, until: s.retry}}
	case s.undone:
		return []step{{do: doSettle}}
	case w.template || w.power == v1.Power_POWER_OFF || w.power == v1.Power_POWER_UNSPECIFIED:
		return planOff(w, s, alive)
	default:
		return planOn(w, s)
	}
}

func planRemove(s sight, alive bool) []step {
	var steps []step
	if alive {
		steps = append(steps, step{do: doKill, why: "the VM is deleted"})
	}
	if alive || s.process == procLost || s.links {
		steps = append(steps, step{do: doClean})
	}
	if s.data {
		steps = append(steps, step{do: doWipe})
	}
	if len(steps) > 0 && !s.retry.IsZero() && s.now.Before(s.retry) {
		return []step{{do: doWait, until: s.retry}}
	}
	if len(steps) == 0 {
		return []step{{do: doWait}}
	}
	return steps
}

func planRelease(s sight, alive bool, why string) []step {
	switch {
	case alive:
		return []step{{do: doKill, why: why}, {do: doClean}}
	case s.process == procLost || s.links:
		return []step{{do: doClean}}
	}
	return []step{{do: doWait}}
}

func planOff(w wish, s sight, alive bool) []step {
	switch {
	case !alive && (s.process == procLost || s.links):
		return []step{{do: doClean}}
	case !alive:
		if s.ready && !s.compact || halted(w, s) {
			return []step{{do: doWait}}
		}
		if s.now.Before(s.retry) {
			return []step{{do: doWait, until: s.retry}}
		}
		if s.unsaved {
			return []step{{do: doWait}}
		}
		if s.ready {
			return []step{{do: doCompact}}
		}
		return []step{{do: doProvision}}
	case s.process == procShutdown || s.process == procBroken || s.process == procPrepared:
		return []step{{do: doKill, why: "it is to be off"}, {do: doClean}}
	case w.force:
		return []step{{do: doKill, why: "it is to be off at once"}, {do: doClean}}
	}
	return planStop(w, s)
}

// planStop climbs the ladder: power button, guest agent, power cut. The agent is asked at a third of the time.
func planStop(w wish, s sight) []step {
	if s.stage == stopNone {
		steps := []step{{do: doPressPower}}
		if s.process == procPaused {
			steps = []step{{do: doResume, why: "a paused guest can't shut down"}, {do: doPressPower}}
		}
		return steps
	}
	ask, cut := s.stopSince.Add(w.stopWait/3), s.stopSince.Add(w.stopWait)
	switch {
	case !s.now.Before(cut):
		return []step{{do: doKill, why: "the guest did not shut down in time"}, {do: doClean}}
	case s.stage == stopACPI && !s.now.Before(ask):
		return []step{{do: doAskAgent}}
	case s.stage == stopACPI:
		return []step{{do: doWait, until: ask}}
	}
	return []step{{do: doWait, until: cut}}
}

func planOn(w wish, s sight) []step {
	switch s.process {
	case procShutdown:
		end := []step{{do: doKill, why: "the guest switched off"}, {do: doClean}}
		if w.policy != v1.RestartPolicy_RESTART_POLICY_ALWAYS {
			return append(end, step{do: doHalt, halt: haltGuestOff, why: "the guest switched itself off"})
		}
		return append(end, planCrash(w, s, "the guest switched itself off")...)
	case procBroken, procLost:
		why := "QEMU ended unexpectedly"
		var steps []step
		if s.process == procBroken {
			why = "the guest panicked"
			steps = append(steps, step{do: doKill, why: why})
		}
		return append(append(steps, step{do: doClean}), planCrash(w, s, why)...)
	case procPrepared:
		return []step{{do: doKill, why: "its start was cut short"}, {do: doClean}}
	case procIOError:
		if s.now.Before(s.ioNext) {
			return []step{{do: doWait, until: s.ioNext}}
		}
		return []step{{do: doMend}}
	case procRunning, procPaused:
		return planRunning(w, s)
	}
	switch {
	case s.links:
		return []step{{do: doClean}}
	case halted(w, s):
		return []step{{do: doWait}}
	case s.now.Before(s.retry):
		return []step{{do: doWait, until: s.retry}}
	case s.unsaved:
		return []step{{do: doWait}} // an older record would count after a restart of the agent
	case !s.ready:
		return []step{{do: doProvision}}
	case !s.gate:
		return []step{{do: doWait}}
	}
	return []step{{do: doStart}}
}

func planRunning(w wish, s sight) []step {
	paused := s.process == procPaused
	switch {
	case w.power == v1.Power_POWER_ON && paused:
		return []step{{do: doResume}}
	case w.power == v1.Power_POWER_PAUSED && !paused:
		return []step{{do: doPause}}
	case s.hot && s.now.Before(s.retry):
		return []step{{do: doWait, until: s.retry}}
	case s.hot && s.unsaved:
		return []step{{do: doWait}}
	case s.hot:
		return []step{{do: doHot}}
	}
	return []step{{do: doWait}}
}

// planCrash applies the restart policy to an end that nobody asked for.
func planCrash(w wish, s sight, why string) []step {
	if w.policy == v1.RestartPolicy_RESTART_POLICY_NEVER {
		return []step{{do: doHalt, halt: haltCrashed, why: why}}
	}
	n := 0
	for _, t := range s.crashes {
		if s.now.Sub(t) < crashWindow {
			n++
		}
	}
	if n >= crashLimit {
		return []step{{do: doHalt, halt: haltCrashed, why: why + ", too often to start it again"}}
	}
	return []step{{do: doCrash, why: why, until: s.now.Add(min(crashMin<<n, crashMax))}}
}

// halted says that the VM stays off until its spec changes or it is given anew.
func halted(w wish, s sight) bool {
	return s.halt != nil && s.halt.Generation == w.generation && s.halt.Epoch == w.epoch
}

// phase puts what is observed into the API's word.
func phase(w wish, s sight) v1.VMPhase {
	stopping := w.template || w.power == v1.Power_POWER_OFF || w.power == v1.Power_POWER_UNSPECIFIED || !w.held
	if w.remove {
		return v1.VMPhase_VM_PHASE_DELETING
	}
	switch s.process {
	case procRunning, procPaused:
		if stopping {
			return v1.VMPhase_VM_PHASE_STOPPING
		}
		if s.process == procPaused {
			return v1.VMPhase_VM_PHASE_PAUSED
		}
		return v1.VMPhase_VM_PHASE_RUNNING
	case procIOError:
		return v1.VMPhase_VM_PHASE_IO_ERROR
	case procPrepared:
		return v1.VMPhase_VM_PHASE_STARTING
	case procShutdown, procBroken, procLost:
		return v1.VMPhase_VM_PHASE_STOPPING
	}
	if halted(w, s) {
		switch s.halt.Reason {
		case haltCrashed:
			return v1.VMPhase_VM_PHASE_CRASHED
		case haltFailed:
			return v1.VMPhase_VM_PHASE_FAILED
		default:
			return v1.VMPhase_VM_PHASE_OFF
		}
	}
	switch {
	case !w.held:
		return v1.VMPhase_VM_PHASE_OFF
	case !s.ready:
		return v1.VMPhase_VM_PHASE_PROVISIONING
	case stopping:
		return v1.VMPhase_VM_PHASE_OFF
	}
	return v1.VMPhase_VM_PHASE_STARTING
}
