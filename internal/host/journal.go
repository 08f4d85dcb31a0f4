package host

import (
	"fmt"
)

// journalLimit is how many operations a VM's journal remembers.
const journalLimit = 64

// journal is what became of operations that the manager asked for, so that one asked for twice is done once. It is
// version 1 of journal.json.
type journal struct {
	Version int     `json:"version"`
	Entries []entry `json:"entries"`
}

type entry struct {
	Operation string `json:"operation"`
	Kind      string `json:"kind"`
	Done      bool   `json:"done"`
	Result    int64  `json:"result,omitempty"`
}

// once does an operation unless it is known to be done. It is the actor's.
func (m *machine) once(operation, kind string, do func() error) error {
	if operation == "" {
		return do()
	}
	done, _, err := m.recall(operation, kind)
	if err != nil || done {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	return m.remember(operation, kind, 0)
}

// recall says whether an operation was done, and with what result.
func (m *machine) recall(operation, kind string) (bool, int64, error) {
	j := journal{}
	if err := readJSON(m.journalPath(), &j); err != nil {
		return false, 0, err
	}
	for _, e := range j.Entries {
		if e.Operation == operation {
			if e.Kind != kind {
				return false, 0, fmt.Errorf("operation %s of VM %s was a %s, not a %s", operation, m.name(), e.Kind, kind)
			}
			return e.Done, e.Result, nil
		}
	}
	return false, 0, nil
}

func (m *machine) remember(operation, kind string, result int64) error {
	j := journal{}
	if err := readJSON(m.journalPath(), &j); err != nil {
		return err
	}
	j.Version = 1
	j.Entries = append(j.Entries, entry{Operation: operation, Kind: kind, Done: true, Result: result})
	if over := len(j.Entries) - journalLimit; over > 0 {
		j.Entries = j.Entries[over:]
	}
	return writeJSON(m.journalPath(), j)
}
