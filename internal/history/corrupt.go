package history

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// errDamaged: the file opens but is not whole.
var errDamaged = errors.New("the file is damaged")

func isCorrupt(err error) bool {
	var e *sqlite.Error
	if errors.As(err, &e) {
		code := e.Code() & 0xff
		return code == sqlite3.SQLITE_CORRUPT || code == sqlite3.SQLITE_NOTADB
	}
	return errors.Is(err, errDamaged)
}

// moveAside renames the corrupt file and its log and index, says so, and removes an older one of these: the disk
// is not for wrecks. The handles must be closed.
func (db *DB) moveAside(cause error) error {
	to := fmt.Sprintf("%s.corrupt-%d", db.opt.Path, db.opt.Clock.Now().UnixNano())
	old, err := filepath.Glob(globQuote(db.opt.Path) + ".corrupt-*")
	if err != nil {
		return err
	}
	for _, f := range old {
		if err := os.Remove(f); err != nil {
			return fmt.Errorf("make room for a corrupt history: %w", err)
		}
	}
	for _, suffix := range []string{"-wal", "-shm", ""} {
		if err := os.Rename(db.opt.Path+suffix, to+suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("move the corrupt history aside: %w", err)
		}
	}
	db.opt.Log.Error("history file is corrupt: it was moved aside and a new one is begun; older metrics, events, audit records and task logs are in it",
		"path", db.opt.Path, "moved_to", to, "err", cause)
	return nil
}

func globQuote(s string) string {
	out := make([]byte, 0, len(s))
	for i := range len(s) {
		switch s[i] {
		case '*', '?', '[', '\\':
			out = append(out, '\\')
		}
		out = append(out, s[i])
	}
	return string(out)
}
