package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// stateVersion is the format of the state file. Version 1 is the first. A reader refuses versions it does not know.
const stateVersion = 1

// The files in a machine's directory, which only the agent can enter.
const (
	stateFile  = "state.json"
	qmpSocket  = "qmp.sock"
	conSocket  = "console.sock"
	qgaSocket  = "qga.sock"
	stderrFIFO = "stderr.fifo"
	logFile    = "qemu.log"
)

// state is what an agent needs to find its QEMU again. It is written before the process starts (PID 0), after, and
// around every change of the machine: what is about to change stands in Pending until QEMU has done it.
type state struct {
	Version   int      `json:"version"`
	PID       int      `json:"pid"`
	StartTime uint64   `json:"start_time"` // clock ticks since boot: /proc/PID/stat, field 22
	BootID    string   `json:"boot_id"`
	UID       uint32   `json:"uid"`
	GID       uint32   `json:"gid"`
	Cgroup    string   `json:"cgroup,omitempty"`
	Spec      Spec     `json:"spec"`
	Pending   *pending `json:"pending,omitempty"`
}

// pending is a change of the block graph that may or may not have happened.
type pending struct {
	Overlays map[string]Layer `json:"overlays,omitempty"` // a snapshot: disk id to its new active layer
	Resume   bool             `json:"resume,omitempty"`   // the snapshot has stopped the guest, which ran
	Disk     string           `json:"disk,omitempty"`     // a merge of Layer of this disk into the one below it
	Layer    string           `json:"layer,omitempty"`
}

func readState(dir string) (*state, error) {
	path := filepath.Join(dir, stateFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read machine state: %w", err)
	}
	if len(b) == 0 {
		return nil, fmt.Errorf("read machine state %s: %w: the file is empty, as after a loss of power", path, ErrNotRunning)
	}
	s, err := parseState(b)
	if err != nil {
		return nil, fmt.Errorf("read machine state %s: %w", path, err)
	}
	return s, nil
}

func parseState(b []byte) (*state, error) {
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, err
	}
	if s.Version != stateVersion {
		return nil, fmt.Errorf("format version %d: this Drover knows %d; use the Drover that wrote it", s.Version, stateVersion)
	}
	if s.PID < 0 {
		return nil, errors.New("negative pid")
	}
	if err := s.Spec.Validate(); err != nil {
		return nil, err
	}
	return &s, nil
}

// write replaces the state file: whoever reads it finds the old one or the new one. It is not synced to the disk: it speaks of a process, and
// after a loss of power there is none. Two syncs were most of what Start took besides QEMU itself.
func (s *state) write(dir string) error {
	b, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, stateFile)
	if err = os.WriteFile(path+".new", append(b, '\n'), 0o600); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return fmt.Errorf("write machine state %s: %w", path, err)
	}
	return nil
}
