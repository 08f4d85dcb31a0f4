package blob

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// maxName bounds names, in bytes. A file under tmp carries the whole name in one element.
const maxName = 200

// ValidName reports whether name can be an object's. tmp is the directory store's own, and so nobody's.
func ValidName(name string) bool {
	if name == "" || len(name) > maxName {
		return false
	}
	for e := range strings.SplitSeq(name, "/") {
		if e == "" || e == "." || e == ".." {
			return false
		}
	}
	if name == tmpDir || strings.HasPrefix(name, tmpDir+"/") {
		return false
	}
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-' || c == '/':
		default:
			return false
		}
	}
	return true
}

// begin is what each operation checks first.
func begin(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !ValidName(name) {
		return permanent{fmt.Errorf("object name %q: want a path of a-z, 0-9, dot, underscore and hyphen, of at most 200 characters, not under tmp", name)}
	}
	return nil
}

// errEnded is a mistake of the caller.
var errEnded = error(permanent{errors.New("the object's writing has ended")})

func tooLong(name string, size, limit int64) error {
	return permanent{fmt.Errorf("read %s: it has %d bytes, at most %d were expected", name, size, limit)}
}
