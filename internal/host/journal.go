package host

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
)

// journalLimit is how many operations a VM's journal remembers.
const journalLimit = 64

// kindRevert is the one kind of operation that is carried through by the agent itself.
const kindRevert = "revert"

// journal is what became of operations that the manager asked for, so that one asked for twice is done once, and one
// that was cut off is carried through. It is version 1 of journal.json in the VM's record.
type journal struct {
	Version int     `json:"version"`
	Entries []entry `json:"entries"`
}

type entry struct {
	Operation  string `json:"operation"`
	Kind       string `json:"kind"`
	Done       bool   `json:"done"`
	Result     int64  `json:"result,omitempty"`
	Snapshot   string `json:"snapshot,omitempty"`
	Memory     bool   `json:"memory,omitempty"`
	Spec       []byte `json:"spec,omitempty"`
	Generation int64  `json:"generation,omitempty"`
	// Going: it has changed something that it cannot take back, so it must be carried through before the VM runs again.
	Going bool `json:"going,omitempty"`

	// Again says that it had begun before.
	Again bool `json:"-"`
}

func (m *machine) journalPath() string { return filepath.Join(m.dir, "journal.json") }

func (m *machine) journal() (journal, error) {
	j := journal{Version: 1}
	err := readJSON(m.journalPath(), &j)
	return j, err
}

// beginOperation writes down that an operation begins, or finds that it has begun or is done.
func (m *machine) beginOperation(e entry) (entry, error) {
	if e.Operation == "" {
		return e, fmt.Errorf("a %s of VM %s without an operation ID", e.Kind, m.name())
	}
	j, err := m.journal()
	if err != nil {
		return e, err
	}
	for _, old := range j.Entries {
		if old.Operation == e.Operation {
			if old.Kind != e.Kind || old.Snapshot != e.Snapshot {
				return e, fmt.Errorf("operation %s of VM %s was another: %s %s", e.Operation, m.name(), old.Kind, old.Snapshot)
			}
			old.Again = true
			return old, nil
		}
	}
	j.Entries = append(j.Entries, e)
	// Done ones are forgotten first come; one that is not done is needed.
	for i := 0; len(j.Entries) > journalLimit && i < len(j.Entries); {
		if j.Entries[i].Done {
			j.Entries = slices.Delete(j.Entries, i, i+1)
		} else {
			i++
		}
	}
	return e, writeJSON(m.journalPath(), j)
}

func (m *machine) endOperation(operation string, result int64) error {
	j, err := m.journal()
	if err != nil {
		return err
	}
	for i := range j.Entries {
		if j.Entries[i].Operation == operation {
			j.Entries[i].Done, j.Entries[i].Result = true, result
		}
	}
	return writeJSON(m.journalPath(), j)
}

// commitOperation notes that there is no way back from here.
func (m *machine) commitOperation(operation string) error {
	j, err := m.journal()
	if err != nil {
		return err
	}
	for i := range j.Entries {
		if j.Entries[i].Operation == operation {
			j.Entries[i].Going = true
		}
	}
	return writeJSON(m.journalPath(), j)
}

// endRevert is endOperation for a revert. Earlier ones that were cut off have nothing left to carry through.
func (m *machine) endRevert(operation string) error {
	j, err := m.journal()
	if err != nil {
		return err
	}
	j.Entries = slices.DeleteFunc(j.Entries, func(e entry) bool {
		return e.Kind == kindRevert && !e.Done && e.Operation != operation
	})
	for i := range j.Entries {
		if j.Entries[i].Operation == operation {
			j.Entries[i].Done = true
		}
	}
	return writeJSON(m.journalPath(), j)
}

// dropOperation forgets one that failed and left nothing: asked for again, it is tried again.
func (m *machine) dropOperation(operation string) error {
	j, err := m.journal()
	if err != nil {
		return err
	}
	j.Entries = slices.DeleteFunc(j.Entries, func(e entry) bool { return e.Operation == operation })
	return writeJSON(m.journalPath(), j)
}

// once does something short that needs no carrying through, unless it was done.
func (m *machine) once(operation, kind string, do func() error) error {
	e, err := m.beginOperation(entry{Operation: operation, Kind: kind})
	if err != nil || e.Done {
		return err
	}
	if err := do(); err != nil {
		return errors.Join(err, m.dropOperation(operation))
	}
	return m.endOperation(operation, 0)
}
