package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"google.golang.org/protobuf/proto"

	v1 "drover/api/drover/v1"
)

// A record is what the agent keeps of a VM, in STATE/vms/UID: vm.pb is the VM as the manager last told it (binary
// protobuf), local.json what this host knows of it. The two change apart; each changes whole.
const (
	recordVM    = "vm.pb"
	recordLocal = "local.json"
	recordRing  = "console.ring"
)

var uidForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]{0,63}$`)

// local is version 1 of local.json.
type local struct {
	Version int `json:"version"`
	// Held says that the manager's last word gave the VM to this host.
	Held bool `json:"held"`
	// Boot is the boot that this was written in.
	Boot string `json:"boot,omitempty"`
	// Made says that the disks were made once. After that a missing disk is an error, never made anew blank.
	Made map[string]madeDisk `json:"made,omitempty"`
	// Cloned says that the disks were cloned once. A clone that has lost all its disks doesn't become one again.
	Cloned bool `json:"cloned,omitempty"`
	// Run is the QEMU process that may be there.
	Run *runRecord `json:"run,omitempty"`
	// Halt is why a VM that should run doesn't, until its spec changes.
	Halt *halt `json:"halt,omitempty"`
	// Crashes are the times of late unasked ends, newest last.
	Crashes  []time.Time `json:"crashes,omitempty"`
	Restarts int32       `json:"restarts,omitempty"`
	// Phase as last reported, and since when.
	Phase     v1.VMPhase `json:"phase,omitempty"`
	PhaseTime time.Time  `json:"phase_time,omitzero"`
	Message   string     `json:"message,omitempty"`
	// Snapshot that the present state descends from.
	Snapshot string `json:"snapshot,omitempty"`
	// Places are the slots of devices; see spec.go.
	Places map[string]int `json:"places,omitempty"`
	// User is the numeric user and group that QEMU runs as.
	User uint32 `json:"user,omitempty"`
	// GenerationID changes when the guest goes back in time, or is a copy.
	GenerationID string `json:"generation_id,omitempty"`
	// Starts counts the times that it was started.
	Starts int64 `json:"starts,omitempty"`
	// Restore is the snapshot whose memory the next start takes.
	Restore string `json:"restore,omitempty"`
	// LeastGeneration: specs of lower generations are from before a revert.
	LeastGeneration int64 `json:"least_generation,omitempty"`
	// Compact: layers wait to be merged when the VM is off.
	Compact bool `json:"compact,omitempty"`
	// Tracks are what is known of the changes to disks since restore points.
	Tracks []*track `json:"tracks,omitempty"`
	// Frozen: the guest's file systems may be frozen; an agent that finds it so thaws them.
	Frozen bool `json:"frozen,omitempty"`
	// Instant is a restore whose disks are not whole yet.
	Instant *instantRecord `json:"instant,omitempty"`
	// Gone: all of it was removed, as the manager wanted; only the manager hasn't heard yet.
	Gone bool `json:"gone,omitempty"`
}

// madeDisk says where a disk's files are.
type madeDisk struct {
	Datastore string `json:"datastore"`
	Path      string `json:"path"` // the datastore's directory when it was made
	Image     string `json:"image_sha256,omitempty"`
}

// runRecord is enough to find a QEMU process again.
type runRecord struct {
	Boot    string    `json:"boot"`
	Epoch   int64     `json:"epoch"`
	Started time.Time `json:"started"`
	// Spec that the process has by now, hot changes included (binary protobuf).
	Spec  []byte `json:"spec"`
	Accel string `json:"accel,omitempty"`
	// Stopping: the agent is ending it, so its end is no crash.
	Stopping bool `json:"stopping,omitempty"`
}

// haltReason says why a VM stays off though its spec says on.
type haltReason string

const (
	haltGuestOff haltReason = "guest_off"
	haltCrashed  haltReason = "crashed"
	haltFailed   haltReason = "failed"
)

// halt holds for one generation and epoch: a new one tries again.
type halt struct {
	Reason     haltReason `json:"reason"`
	Generation int64      `json:"generation"`
	Epoch      int64      `json:"epoch"`
	Message    string     `json:"message,omitempty"`
}

// vmDir is where a VM's record is. The uid came over the wire: one that could climb out of the directory is refused.
func (a *agent) vmDir(uid string) (string, error) {
	if !uidForm.MatchString(uid) {
		return "", fmt.Errorf("VM uid %q: not of the form %s", uid, uidForm)
	}
	return filepath.Join(a.cfg.StateDir, "vms", uid), nil
}

func saveVM(dir string, vm *v1.VM) error {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(vm)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, recordVM), data, 0o600)
}

func loadRecord(dir string) (*v1.VM, *local, error) {
	data, err := os.ReadFile(filepath.Join(dir, recordVM))
	if err != nil {
		return nil, nil, err
	}
	vm := new(v1.VM)
	if err := proto.Unmarshal(data, vm); err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", filepath.Join(dir, recordVM), err)
	}
	l := new(local)
	if err := readJSON(filepath.Join(dir, recordLocal), l); err != nil {
		return nil, nil, err
	}
	return vm, l, nil
}

// records lists the uids that have a directory.
func (a *agent) records() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(a.cfg.StateDir, "vms"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var uids []string
	for _, e := range entries {
		if e.IsDir() && uidForm.MatchString(e.Name()) {
			uids = append(uids, e.Name())
		}
	}
	return uids, nil
}

func (r *runRecord) spec() *v1.VMSpec {
	s := new(v1.VMSpec)
	if r == nil || proto.Unmarshal(r.Spec, s) != nil {
		return new(v1.VMSpec)
	}
	return s
}

func (r *runRecord) setSpec(s *v1.VMSpec) error {
	data, err := proto.Marshal(s)
	if err == nil {
		r.Spec = data
	}
	return err
}
